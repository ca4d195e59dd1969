"""The executable specification of fastopt: kernels, networks and training in plain float64 NumPy and SciPy.

Functions carry the names, arguments and defaults of the compiled package (less `out` and `n_threads`), and
compute in float64 whatever they are given, by the formula rather than fast: every kernel and training run
of the package is tested against them. Arguments are checked only where NumPy would go on in silence.

Sources
-------
Weston & Watkins (1999), Support vector machines for multi-class pattern recognition: multiclass hinge.
Parikh & Boyd (2014), Proximal algorithms: soft threshold, proximal gradient.
Sutskever, Martens, Dahl & Hinton (2013), On the importance of initialization and momentum: Nesterov momentum.
Glorot & Bengio (2010), Understanding the difficulty of training deep feedforward networks: glorot_*.
He, Zhang, Ren & Sun (2015), Delving deep into rectifiers: he_*.
Srivastava et al. (2014), Dropout: dropout, here inverted (the kept outputs are scaled up while training).
Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators: SplitMix64 (shuffle, dropout).
"""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
from scipy.special import expit, log_softmax
from scipy.special import softmax as _softmax


class DivergenceError(ArithmeticError):
    """Training left the finite numbers; the network is as after the last completed epoch."""


def _float64(a):
    return np.asarray(a, dtype=np.float64)


# ----------------------------------------------------------------------------------------------- dense layers

_ACTIVATION = {None: lambda z: z, "relu": lambda z: np.maximum(z, 0.0), "sigmoid": expit, "tanh": np.tanh}

# the derivative in terms of the output a = f(z); relu has subgradient 0 at 0
_DERIVATIVE = {"relu": lambda a: a > 0.0, "sigmoid": lambda a: a * (1.0 - a), "tanh": lambda a: 1.0 - a * a}


def dense_forward(x, weight, bias=None, *, activation=None):
    """f(x Wᵀ + b): x (n, in), weight (out, in), bias (out,) -> (n, out)."""
    scores = _float64(x) @ _float64(weight).T
    if bias is not None:
        scores = scores + _float64(bias)
    return _ACTIVATION[activation](scores)


def dense_backward(dout, x, weight, *, output=None, activation=None):
    """dz = dout f'(z);  dx = dz W (n, in),  dW = dzᵀ x (out, in),  db = Σ_i dz_i (out,)."""
    dz = _float64(dout)
    if activation is not None:
        dz = dz * _DERIVATIVE[activation](_float64(output))
    return dz @ _float64(weight), dz.T @ _float64(x), dz.sum(axis=0)


# ----------------------------------------------------------------------------------------------------- losses


def _reduce(losses, dscores, sample_weight, reduction):
    """Mean Σ w l / Σ w, sum Σ w l or none l, of per-sample losses (n,) and dscores (n, ...)."""
    n = len(losses)
    w = np.ones(n) if sample_weight is None else _float64(sample_weight)
    if n == 0:
        raise ValueError("expected at least one sample")
    if w.shape != (n,) or not w.sum() > 0.0:
        raise ValueError(f"sample_weight: expected {n} weights of positive sum")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if reduction == "none":
        return losses, dscores
    total = w.sum() if reduction == "mean" else 1.0
    return float(np.sum(w * losses) / total), np.einsum("i,i...->i...", w / total, dscores)


def _labels(scores, y):
    """scores (n, K) and labels (n,) in 0..K-1 -> float64, integers."""
    scores, y = _float64(scores), np.asarray(y)
    if scores.ndim != 2 or y.shape != scores.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"expected (n, K) and (n,) integers, got {scores.shape} and {y.shape} {y.dtype}")
    if np.any(y < 0) or np.any(y >= scores.shape[1]):
        raise ValueError(f"y: expected labels 0..{scores.shape[1] - 1}")
    return scores, y.astype(np.intp)


def _pair(pred, target):
    """pred (n,) or (n, m) and a target of its shape; a target (n,) also matches (n, 1)."""
    pred, target = _float64(pred), _float64(target)
    if target.shape == pred.shape[:1] and pred.shape[1:] == (1,):
        target = target[:, np.newaxis]
    if pred.ndim not in (1, 2) or target.shape != pred.shape:
        raise ValueError(f"expected equal shapes (n,) or (n, m), got {pred.shape} and {target.shape}")
    return pred, target


def _mean_over_outputs(losses, dpred):
    """(n,) or (n, m) losses -> (n,), the mean over m, and its gradient."""
    m = losses.shape[1] if losses.ndim == 2 else 1
    return losses.reshape(len(losses), m).mean(axis=1), dpred / m


def softmax(scores):
    """p_j = e^{s_j} / Σ_k e^{s_k} along the last axis."""
    return _softmax(_float64(scores), axis=-1)


def softmax_cross_entropy(scores, y, *, sample_weight=None, class_weight=None, label_smoothing=0.0, reduction="mean"):
    """l = −Σ_j t_j ln p_j,  dl/ds = p − t,  with p = softmax(s) and t = (1−e) onehot(y) + e/K."""
    scores, y = _labels(scores, y)
    K = scores.shape[1]
    t = (1.0 - label_smoothing) * np.eye(K)[y] + label_smoothing / K
    losses = -np.sum(t * log_softmax(scores, axis=1), axis=1)
    weight = _by_class(sample_weight, class_weight, y, K)
    return _reduce(losses, _softmax(scores, axis=1) - t, weight, reduction)


def _by_class(sample_weight, class_weight, y, n_outputs):
    """The weights w_i c_{y_i}; of one output the classes are -1 and 1."""
    if class_weight is None:
        return sample_weight
    by_class = _float64(class_weight)[np.asarray(y, int) if n_outputs > 1 else (np.asarray(y, int).ravel() + 1) // 2]
    return by_class if sample_weight is None else by_class * _float64(sample_weight)


def _margin_loss(phi, dphi, scores, y):
    """Σ_{j≠y} φ(h_j), h_j = max(0, s_j − s_y + 1), for (n, K) scores and labels (Weston & Watkins 1999);
    φ(h), h = max(0, 1 − y s), for (n,) or (n, 1) scores and y in {−1, +1}."""
    scores = _float64(scores)
    if scores.ndim == 1 or scores.shape[1] == 1:
        s, y = _pair(scores, y)
        if not np.all(np.abs(y) == 1.0):
            raise ValueError("y: expected -1 or +1")
        h = np.maximum(0.0, 1.0 - y * s)
        return phi(h).reshape(len(h)), -y * dphi(h)
    s, y = _labels(scores, y)
    rows = np.arange(len(s))
    h = np.maximum(0.0, s - s[rows, y][:, np.newaxis] + 1.0)
    h[rows, y] = 0.0
    dscores = dphi(h)
    dscores[rows, y] = -dscores.sum(axis=1)
    return phi(h).sum(axis=1), dscores


def hinge(scores, y, *, sample_weight=None, class_weight=None, reduction="mean"):
    """l = Σ_{j≠y} max(0, s_j − s_y + 1), or binary max(0, 1 − y s); subgradient 0 at a margin just met."""
    losses, dscores = _margin_loss(lambda h: h, lambda h: np.where(h > 0.0, 1.0, 0.0), scores, y)
    weight = _by_class(sample_weight, class_weight, y, dscores[0].size)
    return _reduce(losses, dscores, weight, reduction)


def squared_hinge(scores, y, *, sample_weight=None, class_weight=None, reduction="mean"):
    """l = Σ_{j≠y} max(0, s_j − s_y + 1)², or binary max(0, 1 − y s)²."""
    losses, dscores = _margin_loss(lambda h: h * h, lambda h: 2.0 * h, scores, y)
    weight = _by_class(sample_weight, class_weight, y, dscores[0].size)
    return _reduce(losses, dscores, weight, reduction)


def binary_cross_entropy(scores, y, *, sample_weight=None, label_smoothing=0.0, reduction="mean"):
    """l = −1/m Σ (y ln a + (1−y) ln(1−a)),  dl/ds = 1/m (a − y),  with a = sigmoid(s) and y in [0, 1];
    y (1−e) + e/2 in its place."""
    s, y = _pair(scores, y)
    if not np.all((y >= 0.0) & (y <= 1.0)):
        raise ValueError("y: expected values in [0, 1]")
    y = y * (1.0 - label_smoothing) + label_smoothing / 2
    losses = y * np.logaddexp(0.0, -s) + (1.0 - y) * np.logaddexp(0.0, s)  # −ln sigmoid(s) = ln(1 + e^−s)
    return _reduce(*_mean_over_outputs(losses, expit(s) - y), sample_weight, reduction)


def mse(pred, target, *, sample_weight=None, reduction="mean"):
    """l = 1/m Σ (p − t)²,  dl/dp = 2/m (p − t)."""
    p, t = _pair(pred, target)
    return _reduce(*_mean_over_outputs((p - t) ** 2, 2.0 * (p - t)), sample_weight, reduction)


def mae(pred, target, *, sample_weight=None, reduction="mean"):
    """l = 1/m Σ |p − t|,  dl/dp = 1/m sign(p − t), 0 at 0."""
    p, t = _pair(pred, target)
    return _reduce(*_mean_over_outputs(np.abs(p - t), np.sign(p - t)), sample_weight, reduction)


def huber(pred, target, *, delta=1.0, sample_weight=None, reduction="mean"):
    """l = 1/m Σ h(a),  a = p − t,  h = a²/2 where |a| ≤ δ, δ (|a| − δ/2) beyond;  dl/dp = 1/m clip(a, −δ, δ)."""
    p, t = _pair(pred, target)
    a = p - t
    losses = np.where(np.abs(a) <= delta, a * a / 2, delta * (np.abs(a) - delta / 2))
    return _reduce(*_mean_over_outputs(losses, np.clip(a, -delta, delta)), sample_weight, reduction)


def msle(pred, target, *, sample_weight=None, reduction="mean"):
    """l = 1/m Σ (ln(1+p) − ln(1+t))²,  dl/dp = 2/m (ln(1+p) − ln(1+t)) / (1+p);  p, t > −1."""
    p, t = _pair(pred, target)
    if not (np.all(p > -1.0) and np.all(t > -1.0)):
        raise ValueError("pred, target: expected values above -1")
    d = np.log1p(p) - np.log1p(t)
    return _reduce(*_mean_over_outputs(d * d, 2.0 * d / (1.0 + p)), sample_weight, reduction)


def top_k_accuracy(scores, y, k):
    """The share of samples whose label is among the k highest scores, of equal scores the first."""
    scores, y = _labels(scores, y)
    order = np.argsort(-scores, axis=1, kind="stable")
    return float(np.mean(np.any(order[:, :k] == y[:, None], axis=1)))


def accuracy(scores, y):
    """Fraction with argmax_j s_j = y (first maximum); for (n,) or (n, 1) scores, with (s > 0) = (y = 1)."""
    scores, y = _float64(scores), np.asarray(y)
    if scores.ndim == 1 or scores.shape[1] == 1:
        return float(np.mean((scores.ravel() > 0.0) == (y.ravel() == 1)))
    return float(np.mean(scores.argmax(axis=1) == y))


# ---------------------------------------------------------------------------------------------------- updates


def _soft_threshold(x, threshold):
    """S(x) = sign(x) max(|x| − threshold, 0), the proximal operator of threshold·|x|."""
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)


def sgd_step(param, grad, *, lr, weight_decay=0.0, l1=0.0):
    """W ← S(W − α g), g = ∇W + wd W, S the soft threshold at α·l1. In place."""
    g = grad + weight_decay * param
    param[...] = _soft_threshold(param - lr * g, lr * l1)


def momentum_step(param, grad, velocity, *, lr, momentum=0.9, weight_decay=0.0, l1=0.0):
    """V ← γ V + α g, W ← W − V;  with l1: W⁺ = S(W − γ V − α g), V ← W − W⁺, W ← W⁺. In place."""
    g = grad + weight_decay * param
    if l1 == 0.0:
        velocity[...] = momentum * velocity + lr * g
        param -= velocity
    else:
        new = _soft_threshold(param - momentum * velocity - lr * g, lr * l1)
        velocity[...] = param - new
        param[...] = new


def nesterov_step(param, grad, velocity, *, lr, momentum=0.9, weight_decay=0.0, l1=0.0):
    """V ← γ V + α g, W ← W − (γ V + α g);  with l1: θ = W + γ V, θ⁺ = S(W − α g), V ← θ − θ⁺, W ← θ⁺ − γ V.

    In place. W is where the gradient is taken (Sutskever et al. 2013), θ the iterate, sparse under l1.
    """
    g = grad + weight_decay * param
    if l1 == 0.0:
        velocity[...] = momentum * velocity + lr * g
        param -= momentum * velocity + lr * g
    else:
        theta = param + momentum * velocity
        new = _soft_threshold(param - lr * g, lr * l1)
        velocity[...] = theta - new
        param[...] = new - momentum * velocity


def _update(optimizer, param, grad, moments, *, step, lr, momenta, n=1, l1_total=0.0, penalised=True):
    """One step of one array, in place, by an optimizer's rule and flags, over a batch of n samples.

    `momenta` are the step's and the next one's, `moments` what the rule keeps; `l1_total` is the cumulative penalty up
    to this step. The equations are those of the optimizers' docstrings, in their order: penalties into the gradient,
    decay before, rule, decay after, l1.
    """
    s, rule = optimizer.settings, optimizer.rule
    share = (1 / n if s["penalty_scale"] == "batch" else 1.0) if penalised else 0.0
    decay, l1, l2 = share * optimizer.weight_decay, share * optimizer.l1, share * optimizer.l2
    gamma, next_gamma = momenta
    g = grad + 2 * l2 * param + (decay * param if s["decay"] == "coupled" else 0.0)
    if s["l1_mode"] == "subgradient":
        g = g + l1 * np.sign(param)
    keep = {"coupled": 1.0, "decoupled": 1 - lr * decay, "independent": 1 - decay}[s["decay"]]
    keep = max(0.0, keep) if s["decay_floor"] else keep
    before, after = (1.0, keep) if s["decay_order"] == "after" else (keep, 1.0)
    proximal = l1 if s["l1_mode"] == "prox" else 0.0
    if rule == "nesterov" and proximal > 0:
        velocity, theta = moments[0], param + gamma * moments[0]
        new = _soft_threshold(before * param - lr * g, lr * proximal)
        velocity[...] = theta - new
        param[...] = new - next_gamma * velocity
        return
    if rule == "momentum" and proximal > 0:
        momentum_step(param, g, moments[0], lr=lr, momentum=gamma, l1=proximal)
        return
    size, direction = _direction(optimizer, g, moments, step, lr, gamma)
    new = after * (before * param - size * direction)
    if s["l1_mode"] == "cumulative" and l1 > 0:
        paid, z = moments[0], new
        new = np.where(z > 0, np.maximum(0, z - (l1_total + paid)), z)
        new = np.where(z < 0, np.minimum(0, z + l1_total - paid), new)
        paid += new - z
    param[...] = _soft_threshold(new, size * proximal)


def _direction(optimizer, g, moments, step, lr, gamma):
    """What a rule steps along, and how far: W -= size * direction."""
    s, rule = optimizer.settings, optimizer.rule
    if rule == "sgd":
        return lr, g
    if rule in ("momentum", "nesterov"):
        velocity = moments[0]
        gain = lr if s["lr_in_velocity"] else 1 - (s["dampening"] if step > 0 or s["dampen_first"] else 0.0)
        velocity[...] = gamma * velocity + gain * g
        return 1.0 if s["lr_in_velocity"] else lr, velocity if rule == "momentum" else gamma * velocity + gain * g
    if rule == "adagrad":
        moments[0] += g * g
        return lr / _root(moments[0], optimizer), g
    if rule == "adam":
        mean, squares = moments
        mean[...] = optimizer.beta1 * mean + (1 - optimizer.beta1) * g
        squares[...] = optimizer.beta2 * squares + (1 - optimizer.beta2) * g * g
        size = lr / (1 - optimizer.beta1 ** (step + 1))
        return size / _root(squares / (1 - optimizer.beta2 ** (step + 1)), optimizer), mean
    squares = moments[0]
    squares[...] = optimizer.rho * squares + (1 - optimizer.rho) * g * g
    if rule == "rmsprop":
        return lr / _root(squares, optimizer), g
    if rule == "rmsprop_momentum":
        moments[1][...] = gamma * moments[1] + g / _root(squares, optimizer)
        return lr, moments[1]
    ratio = np.sqrt(moments[1] + optimizer.eps) / np.sqrt(squares + optimizer.eps)  # adadelta
    moments[1][...] = optimizer.rho * moments[1] + (1 - optimizer.rho) * (ratio * g) ** 2
    return lr * ratio, g


def _root(squares, optimizer):
    eps = optimizer.eps
    return np.sqrt(squares + eps) if optimizer.eps_inside else np.sqrt(squares) + eps


# ------------------------------------------------------------------------------------------------- generators
# Each works on Python integers and on uint64 arrays alike: both wrap at 2**64.

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z):
    """The finaliser of SplitMix64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _stream(seed, *words):
    """The key of an independent stream for each (seed, words)."""
    key = _mix(seed + _GOLDEN & _MASK)
    for word in words:
        key = _mix((key ^ word) + _GOLDEN & _MASK)
    return key


def _bits(key, i):
    """Draw i = 0, 1, ... of a stream, 64 bits: SplitMix64 started at key."""
    return _mix(key + (i + 1) * _GOLDEN & _MASK)


def _shuffle(seed, epoch, n):
    """A permutation of 0..n-1 (Fisher & Yates), from the stream (seed, 1, epoch)."""
    key, order = _stream(seed, 1, epoch), list(range(n))
    for i in range(n - 1, 0, -1):
        j = _bits(key, i) * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.intp)


def _dropout(seed, step, layer, shape, p):
    """The mask on hidden outputs: 0 with probability p, else 1/(1−p); from the stream (seed, 2, t, l)."""
    i = np.arange(shape[0] * shape[1], dtype=np.uint64).reshape(shape)
    kept = _bits(_stream(seed, 2, step, layer), i) >> 40 >= int(p * 2**24 + 0.5)
    return kept / (1.0 - p)


# --------------------------------------------------------------------------------------------------- networks


_INIT = {  # shape is (out, in)
    "glorot_uniform": lambda shape, rng: (rng.random(shape) * 2.0 - 1.0) * np.sqrt(6.0 / sum(shape)),
    "glorot_normal": lambda shape, rng: rng.standard_normal(shape) * np.sqrt(2.0 / sum(shape)),
    "he_uniform": lambda shape, rng: (rng.random(shape) * 2.0 - 1.0) * np.sqrt(6.0 / shape[1]),
    "he_normal": lambda shape, rng: rng.standard_normal(shape) * np.sqrt(2.0 / shape[1]),
    "zeros": lambda shape, rng: np.zeros(shape),
}


class MLP:
    """Hidden layers f(x Wᵀ + b) and a linear output layer, in float64 whatever `dtype` says.

    `weights` and `biases` are views into `flat`, which holds weights[0], biases[0], weights[1], ...
    """

    def __init__(self, sizes, activation="relu", init="glorot_uniform", dropout=0.0, dtype="float64", seed=0):
        self.sizes, self.activation, self.dropout = tuple(sizes), activation, dropout
        self.n_parameters = sum((n_in + 1) * n_out for n_in, n_out in pairwise(self.sizes))
        self.flat = np.zeros(self.n_parameters)
        self.weights, self.biases, start = [], [], 0
        for n_in, n_out in pairwise(self.sizes):
            middle, end = start + n_out * n_in, start + n_out * (n_in + 1)
            self.weights.append(self.flat[start:middle].reshape(n_out, n_in))
            self.biases.append(self.flat[middle:end])
            start = end
        self._functions = [activation] * (len(self.weights) - 1) + [None]  # the activation of each layer
        rng = np.random.default_rng(seed)
        for weight in self.weights:
            weight[...] = (init if callable(init) else _INIT[init])(weight.shape, rng)

    @classmethod
    def from_network(cls, net):
        """A float64 copy of any network with `sizes`, `activation`, `dropout`, `weights` and `biases`."""
        twin = cls(net.sizes, net.activation, "zeros", net.dropout)
        for mine, theirs in zip(twin.weights + twin.biases, [*net.weights, *net.biases], strict=True):
            mine[...] = theirs
        return twin

    @property
    def params(self):
        """Views in the order of `flat`: weights[0], biases[0], weights[1], ..."""
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair]

    def _forward(self, X, masks=None):
        """What goes into every layer, and what comes out of it before its dropout mask is applied."""
        inputs, outputs = [_float64(X)], []
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs.append(dense_forward(inputs[k], weight, bias, activation=self._functions[k]))
            inputs.append(outputs[k] if masks is None else outputs[k] * masks[k])
        return inputs, outputs

    def _backward(self, dscores, inputs, outputs, masks=None):
        """The gradients in the order of `params`."""
        grads, dout = [], dscores
        for k in reversed(range(len(self.weights))):
            dout = dout if masks is None else dout * masks[k]
            layer = {"output": outputs[k], "activation": self._functions[k]}
            dout, dweight, dbias = dense_backward(dout, inputs[k], self.weights[k], **layer)
            grads = [dweight, dbias, *grads]
        return grads

    def forward(self, X):
        """Scores (n, K) of X (n, D), without dropout."""
        return self._forward(X)[1][-1]

    def loss_and_grad(self, X, y, loss="softmax_cross_entropy", sample_weight=None):
        """The loss over (X, y), without dropout and penalties, and its gradient in the order of `flat`."""
        inputs, outputs = self._forward(X)
        value, dscores = _evaluate(loss, outputs[-1], y, sample_weight)
        return value, np.concatenate([g.ravel() for g in self._backward(dscores, inputs, outputs)])


_LOSSES = {
    f.__name__: f for f in (softmax_cross_entropy, hinge, squared_hinge, binary_cross_entropy, mse, mae, msle, huber)
}


def _evaluate(loss, scores, y, sample_weight=None, options=None):
    """(mean loss, dscores) of a loss given by name or as a callable (scores, y) -> (value, dscores)."""
    if not callable(loss):
        return _LOSSES[loss](scores, y, sample_weight=sample_weight, **options or {})
    if sample_weight is not None:
        raise ValueError("sample_weight: expected None with a loss of your own")
    return loss(scores, y)


# --------------------------------------------------------------------------------------------------- training


class Trainer:
    """Mini-batch training of a float64 copy of `net`, kept as `trainer.net`.

    A step is `_update` with the gradient of L = Σ w_i l_i / Σ w_i over the batch; penalties act on the weights, on
    biases only where the optimizer says so. With Nesterov and l1, `net` shows θ = W + γ V between epochs.
    `n_threads` is ignored.

    `history` has one entry an epoch: `loss` (of the samples as seen, plus the penalty at the end), `val_loss`
    (nan without validation data) and `lr` (of the last step). Training goes on from the last epoch where
    `restore_best` showed a better one, and an equal early-stopping rule goes on counting unless it had stopped.
    """

    def __init__(self, net, *, loss, optimizer, batch_size=32, shuffle=True, seed=None, n_threads=None,
                 loss_options=None):
        self.loss_options = loss_options or {}
        self.net, self.loss, self.optimizer = MLP.from_network(net), loss, optimizer
        self.batch_size, self.shuffle = batch_size, shuffle
        self.seed = (np.random.SeedSequence().entropy if seed is None else int(seed)) & _MASK
        self.moments = [[np.full_like(p, optimizer.first_moment) for _ in optimizer.moment_names]
                        for p in self.net.params]
        self.l1_total = 0.0
        self.step, self.epoch, self.history = 0, 0, SimpleNamespace(loss=[], val_loss=[], accuracy=[], lr=[])
        self._watch = None  # the early-stopping rule, its best value and parameters, the epochs waited
        self._continuation = None  # the parameters shown, and those to go on from
        self._penalised = [True, optimizer.decays_bias] * len(self.net.weights)

    def fit(self, X, y, *, epochs, sample_weight=None, validation_data=None,
            early_stopping=None, target_loss=None, callbacks=()):  # fmt: skip
        """Train `epochs` further epochs, or until a stopping rule fires; returns the cumulative history."""
        X, y = _float64(X), np.asarray(y)
        if sample_weight is not None and callable(self.loss):
            raise ValueError("sample_weight: expected None with a loss of your own")
        w = np.ones(len(X)) if sample_weight is None else _float64(sample_weight)
        if len(X) == 0 or not w.sum() > 0.0:
            raise ValueError("expected at least one sample of positive weight")
        best, best_flat, waited = np.inf, None, 0
        if self._watch is not None and self._watch[0] == early_stopping:
            _, best, best_flat, waited = self._watch
            waited = 0 if waited >= early_stopping.patience else waited
        if self._continuation is not None and np.array_equal(self._continuation[0], self.net.flat):
            self.net.flat[:] = self._continuation[1]
        self._continuation = None
        try:
            for _ in range(epochs):
                loss, lr, correct = self._epoch(X, y, w)
                self.history.accuracy.append(correct)
                self.history.loss.append(loss)
                self.history.val_loss.append(self._validate(validation_data))
                self.history.lr.append(lr)
                stop = target_loss is not None and loss < target_loss
                if early_stopping is not None:
                    value = getattr(self.history, early_stopping.monitor)[-1]
                    if value < best - early_stopping.min_delta:
                        best, best_flat, waited = value, self.net.flat.copy(), 0
                    else:
                        waited += 1
                    stop = stop or waited >= early_stopping.patience
                for callback in callbacks:
                    answer = callback(self)
                    if answer is not None and answer is not True:
                        raise TypeError(f"callback: expected True or None, got {answer!r}")
                    stop = stop or answer is True
                if stop:
                    break
        finally:
            self._watch = None if early_stopping is None else (early_stopping, best, best_flat, waited)
            if best_flat is not None and early_stopping.restore_best:
                self._continuation = (best_flat, self.net.flat.copy())
                self.net.flat[:] = best_flat
        return self.history

    def _epoch(self, X, y, w):
        """One epoch on copies, kept when it has stayed finite; returns (epoch loss, lr of the last step)."""
        opt, n, step = self.optimizer, len(X), self.step
        net, l1_total = MLP.from_network(self.net), self.l1_total
        moments = [[m.copy() for m in kept] for kept in self.moments]
        if opt.shows_theta:
            _shift(net.params, moments, -opt.momentum_at(step, self.epoch))
        order = _shuffle(self.seed, self.epoch, n) if self.shuffle else np.arange(n)
        seen, correct, weights = 0.0, 0.0, 0.0  # Σ w_i l_i, right predictions, Σ w_i
        with np.errstate(over="ignore", invalid="ignore"):
            for batch, start in enumerate(range(0, n, self.batch_size)):
                rows = order[start : start + self.batch_size]
                lr = opt.lr_at(step, self.epoch, self.history)
                value, weight, grads, right = self._batch(net, X[rows], y[rows], w[rows], step)
                correct, weights = correct + right, weights + weight
                if opt.clip_value is not None:
                    grads = [np.clip(g, -opt.clip_value, opt.clip_value) for g in grads]
                norm = np.sqrt(sum(np.sum(g * g) for g in grads))
                if opt.clip_norm is not None and norm > opt.clip_norm:
                    grads = [g * (opt.clip_norm / norm) for g in grads]
                ends = start + self.batch_size >= n
                momenta = opt.momentum_at(step, self.epoch), opt.momentum_at(step + 1, self.epoch + ends)
                per_batch = opt.settings["penalty_scale"] == "batch"
                l1_total += lr * opt.l1 / (len(rows) if per_batch else 1)
                for p, g, kept, penalised in zip(net.params, grads, moments, self._penalised, strict=True):
                    _update(opt, p, g, kept, step=step, lr=lr, momenta=momenta, n=len(rows), l1_total=l1_total,
                            penalised=penalised)
                if not (np.isfinite(value) and np.isfinite(net.flat).all()):
                    raise DivergenceError(f"training diverged in epoch {self.epoch}, batch {batch}")
                seen += value
                step += 1
        if opt.shows_theta:
            _shift(net.params, moments, opt.momentum_at(step, self.epoch + 1))
        penalty, share = 0.0, 1 / min(self.batch_size, n) if opt.settings["penalty_scale"] == "batch" else 1.0
        for p, penalised in zip(net.params, self._penalised, strict=True):
            if penalised:
                for factor, size in ((opt.l1, np.abs(p)), (opt.l2, p * p)):
                    penalty += share * factor * size.sum() if factor else 0.0  # the square may be infinite
        self.net.flat[:], self.moments, self.l1_total = net.flat, moments, l1_total
        self.step, self.epoch = step, self.epoch + 1
        return float(seen / weights + penalty), lr, correct / n

    def _batch(self, net, X, y, w, step):
        """Σ w_i l_i over the batch, Σ w_i, the gradients of their quotient (zero without weight), right predictions."""
        shapes = [(len(X), width) for width in net.sizes[1:-1]]
        masks = [_dropout(self.seed, step, k, shape, net.dropout) for k, shape in enumerate(shapes)] + [1.0]
        inputs, outputs = net._forward(X, masks)
        scores = outputs[-1]
        labelled = self.loss in ("softmax_cross_entropy", "hinge", "squared_hinge")
        right = accuracy(scores, y) * len(X) if labelled else np.nan
        if "class_weight" in self.loss_options:
            w = _by_class(w, self.loss_options["class_weight"], y, scores.shape[1])
        options = {name: value for name, value in self.loss_options.items() if name != "class_weight"}
        if self.loss == "msle" and not np.all(scores > -1.0):  # outside the domain
            return np.nan, w.sum(), net._backward(np.zeros_like(scores), inputs, outputs, masks), right
        if w.sum() > 0.0:
            value, dscores = _evaluate(self.loss, scores, y, None if callable(self.loss) else w, options)
        else:  # nan where a loss is infinite
            value, dscores = 0.0 * _evaluate(self.loss, scores, y, None, options)[0], np.zeros_like(scores)
        return value * w.sum(), w.sum(), net._backward(dscores, inputs, outputs, masks), right

    def _validate(self, validation_data):
        """The loss over (X, y) or (X, y, sample_weight), without dropout and penalties; inf outside its domain."""
        if validation_data is None:
            return np.nan
        X, y, weight = (*validation_data, None)[:3]
        scores = self.net.forward(X)
        if self.loss == "msle" and not np.all(scores > -1.0):
            return np.inf
        return _evaluate(self.loss, scores, y, weight, self.loss_options)[0]


def _shift(params, moments, gamma):
    """From the point of the gradient to the iterate, θ = W + γ V, and with −γ back."""
    for p, (velocity,) in zip(params, moments, strict=True):
        p += gamma * velocity
