"""Update rules: single steps on arrays, and the optimizer that a Trainer or a loop of your own runs."""

import dataclasses

import numpy as np

from . import boundary
from ._dispatch import core


def _step(rule, param, grad, velocity, lr, momentum, weight_decay, l1):
    p = boundary.parameter("param", param)
    inputs = {"param": param}
    if velocity is not None:
        boundary.output("velocity", velocity, p.shape, p.dtype, inputs)
        inputs["velocity"] = velocity
    numbers = [
        boundary.number("lr", lr, least=0.0),
        boundary.number("momentum", momentum, least=0.0, below=1.0),
        boundary.number("weight_decay", weight_decay, least=0.0),
        boundary.number("l1", l1, least=0.0),
    ]
    for name, value in zip(("lr", "momentum", "weight_decay", "l1"), numbers, strict=True):
        boundary.fits(name, value, p.dtype)
    g = boundary.data("grad", grad, p.shape, p.dtype)
    for name, array in inputs.items():
        boundary.output(name, array, p.shape, p.dtype, {"grad": grad})
    kernels = core(p.dtype)
    flat_velocity = None if velocity is None else velocity.reshape(-1)
    kernels.call_step(kernels.RULES[rule], p.reshape(-1), g.reshape(-1), flat_velocity, *numbers)


def sgd_step(param, grad, *, lr, weight_decay=0.0, l1=0.0):
    r"""One step of gradient descent, in place.

    .. math:: W \leftarrow S(W - \alpha g), \qquad g = \nabla W + wd\, W

    S is the soft threshold at α l1, the identity without l1 (proximal gradient: Parikh & Boyd 2014, § 4.2).

    Parameters
    ----------
    param : ndarray, float32 or float64
        W, updated in place: C-contiguous, writable.
    grad : array_like of the same shape
        Converted to the dtype of `param`.
    lr : float >= 0
        The learning rate α.
    weight_decay : float >= 0
        wd, a multiple of the parameter added to its gradient; l2 * sum(W**2) in the loss is wd = 2 l2.
    l1 : float >= 0
        The penalty l1 * sum(|W|); parameters become exact zeros.

    Raises
    ------
    ValueError, TypeError
        A hyper-parameter out of range, an array that cannot be updated in place or whose shapes differ, a gradient
        that is not finite; nothing is touched then.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([1.0, -2.0])
    >>> fo.sgd_step(weight, [0.5, 0.5], lr=0.1)
    >>> weight
    array([ 0.95, -2.05])
    """
    _step("sgd", param, grad, None, lr, 0.0, weight_decay, l1)


def momentum_step(param, grad, velocity, *, lr, momentum=0.9, weight_decay=0.0, l1=0.0):
    r"""One step with momentum, in place; the learning rate is inside the velocity.

    .. math:: V \leftarrow \gamma V + \alpha g, \quad W \leftarrow W - V, \qquad g = \nabla W + wd\, W

    With l1: W⁺ = S(W - γV - αg), V ← W - W⁺, W ← W⁺, S the soft threshold at α l1, which reaches the minimiser of
    the penalised loss as written. Sources: Polyak 1964; Rumelhart, Hinton & Williams 1986.

    Parameters
    ----------
    param, velocity : ndarray, float32 or float64
        W and V, updated in place: C-contiguous, writable, of one shape and dtype. V starts at zero.
    grad : array_like of the same shape
        Converted to the dtype of `param`.
    lr : float >= 0
        The learning rate α.
    momentum : float in [0, 1)
        γ
    weight_decay, l1 : float >= 0
        As `sgd_step`.

    Raises
    ------
    ValueError, TypeError
        As `sgd_step`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight, velocity = np.array([1.0]), np.array([0.5])
    >>> fo.momentum_step(weight, [1.0], velocity, lr=0.1)
    >>> weight, velocity
    (array([0.45]), array([0.55]))
    """
    boundary.parameter("velocity", velocity)
    _step("momentum", param, grad, velocity, lr, momentum, weight_decay, l1)


def nesterov_step(param, grad, velocity, *, lr, momentum=0.9, weight_decay=0.0, l1=0.0):
    r"""One step with Nesterov momentum in gradient-shift form, in place; the learning rate is inside the velocity.

    .. math::
        V \leftarrow \gamma V + \alpha g, \quad W \leftarrow W - (\gamma V + \alpha g), \qquad g = \nabla W + wd\, W

    W is the point that the gradient is taken at. With l1: θ = W + γV, θ⁺ = S(W - αg), V ← θ - θ⁺, W ← θ⁺ - γV, S the
    soft threshold at α l1; the sparse iterate is θ⁺ = W + γV. Sources: Sutskever et al. 2013; Beck & Teboulle 2009.

    Parameters
    ----------
    param, velocity : ndarray, float32 or float64
        W and V, updated in place: C-contiguous, writable, of one shape and dtype. V starts at zero.
    grad : array_like of the same shape
        Converted to the dtype of `param`.
    lr : float >= 0
        The learning rate α.
    momentum : float in [0, 1)
        γ
    weight_decay, l1 : float >= 0
        As `sgd_step`.

    Raises
    ------
    ValueError, TypeError
        As `sgd_step`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight, velocity = np.array([1.0]), np.array([0.5])
    >>> fo.nesterov_step(weight, [1.0], velocity, lr=0.1)
    >>> weight.round(3), velocity
    (array([0.405]), array([0.55]))
    """
    boundary.parameter("velocity", velocity)
    _step("nesterov", param, grad, velocity, lr, momentum, weight_decay, l1)


@dataclasses.dataclass
class SGDState:
    """What `SGD.update` carries from step to step: the step's number, a velocity an array, and which arrays decay."""

    step: int
    velocity: list
    decay: list


@dataclasses.dataclass(frozen=True)
class SGD:
    r"""Stochastic gradient descent, plain, with momentum, or with Nesterov momentum.

    .. math::
        g &= \nabla W + (wd + 2\, l2)\, W \\
        \text{plain:} \quad W &\leftarrow W - \alpha g \\
        \text{momentum:} \quad V &\leftarrow \gamma V + \alpha g, \quad W \leftarrow W - V \\
        \text{Nesterov:} \quad V &\leftarrow \gamma V + \alpha g, \quad W \leftarrow W - (\gamma V + \alpha g)

    from V = 0; l1 acts by the proximal forms of `sgd_step`, `momentum_step` and `nesterov_step`. Immutable.

    Parameters
    ----------
    lr : float > 0, or callable
        The learning rate α; a callable lr(step), step counted from 0, may return 0.
    momentum : float in [0, 1)
        γ; 0 is plain gradient descent.
    nesterov : bool
        Needs momentum.
    weight_decay : float >= 0
        Added to the gradient as wd * W; not part of the reported loss.
    l1, l2 : float >= 0
        Penalties l1 * sum(|W|) + l2 * sum(W**2), part of the reported loss.
    decay_bias : bool, optional
        Whether biases decay and are penalised too; None is no.

    Raises
    ------
    ValueError, TypeError
        A hyper-parameter out of range, or nesterov without momentum.

    Examples
    --------
    A loop of your own:

    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.SGD(0.1, momentum=0.9)
    >>> state = opt.init(weight)
    >>> for _ in range(2):
    ...     opt.update(weight, 2 * weight, state)
    >>> weight
    array([[ 0.46, -0.92]])
    """

    lr: object
    _: dataclasses.KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    decay_bias: bool | None = None

    def __post_init__(self):
        checked = {
            "lr": self.lr if callable(self.lr) else boundary.number("lr", self.lr, above=0.0),
            "momentum": boundary.number("momentum", self.momentum, least=0.0, below=1.0),
            "nesterov": boundary.flag("nesterov", self.nesterov),
            "decay_bias": None if self.decay_bias is None else boundary.flag("decay_bias", self.decay_bias),
        } | {name: boundary.number(name, getattr(self, name), least=0.0) for name in ("weight_decay", "l1", "l2")}
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # Python's own numbers, which files hold
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum > 0, got momentum=0")

    @property
    def rule(self):
        """The name of the rule: "sgd", "momentum" or "nesterov"."""
        return "nesterov" if self.nesterov else "momentum" if self.momentum > 0 else "sgd"

    @property
    def penalised(self):
        """Whether any decay or penalty acts."""
        return self.weight_decay > 0 or self.l1 > 0 or self.l2 > 0

    def lr_at(self, step):
        """The learning rate of a step, counted from 0."""
        if not callable(self.lr):
            return self.lr
        return boundary.number(f"lr({step})", self.lr(step), least=0.0)

    def check_fits(self, dtype):
        """That the constants stay finite in the dtype."""
        for name in ("momentum", "weight_decay", "l1", "l2"):
            boundary.fits(name, getattr(self, name), dtype)
        if not callable(self.lr):
            boundary.fits("lr", self.lr, dtype)

    def init(self, params, decay=None):
        """The state for `update`: zero velocities, step 0.

        Parameters
        ----------
        params : MLP, ndarray or list of ndarrays
        decay : bool or list of bool, optional
            Whether each array decays and is penalised; by default those of two or more dimensions do (all with
            decay_bias=True). A bare 1-D array with a penalty must say.

        Raises
        ------
        ValueError, TypeError
            Arrays that cannot be updated in place; decay of another length, or missing for a bare 1-D array.
        """
        arrays = _arrays("params", params)
        for name, array in arrays:
            boundary.parameter(name, array)
        if decay is None:
            if isinstance(params, np.ndarray) and params.ndim < 2 and self.penalised and self.decay_bias is None:
                raise ValueError("decay must be given for a bare 1-D array: True to penalise it, False not to")
            flags = [array.ndim >= 2 or bool(self.decay_bias) for _, array in arrays]
        else:
            flags = list(decay) if isinstance(decay, (list, tuple, np.ndarray)) else [boundary.flag("decay", decay)]
            if len(flags) != len(arrays):
                raise ValueError(f"decay must have {len(arrays)} entries, got {len(flags)}")
            flags = [boundary.flag(f"decay[{i}]", value) for i, value in enumerate(flags)]
        velocity = [] if self.rule == "sgd" else [np.zeros_like(array) for _, array in arrays]
        return SGDState(0, velocity, flags)

    def update(self, params, grads, state):
        """One step of all arrays, in place; `state` advances.

        Parameters
        ----------
        params : MLP, ndarray or list of ndarrays
            As given to `init`. After a step of Nesterov with l1 the sparse iterate is W + γV (see `nesterov_step`).
        grads : of the form of `params`; for an MLP the flat gradient of `loss_and_grad`, or a list
        state : SGDState

        Raises
        ------
        ValueError, TypeError
            As the step functions, for any of the arrays; nothing is touched then.
        """
        arrays = _arrays("params", params)
        gradients = _gradients(params, grads, arrays)
        if not isinstance(state, SGDState):
            raise TypeError(f"state must be what init returned, got {type(state).__name__}")
        if len(gradients) != len(arrays) or len(state.decay) != len(arrays):
            raise ValueError(f"grads and state must have {len(arrays)} arrays, got {len(gradients)} and "
                             f"{len(state.decay)}")
        if len(state.velocity) != (0 if self.rule == "sgd" else len(arrays)):
            raise ValueError(f"state was made for another rule: {self.rule} does not go with {len(state.velocity)} "
                             f"velocities")
        lr, steps = self.lr_at(state.step), []
        for i, (name, array) in enumerate(arrays):
            param = boundary.parameter(name, array)
            self.check_fits(param.dtype)
            boundary.fits(f"lr({state.step})" if callable(self.lr) else "lr", lr, param.dtype)
            grad = boundary.data(gradients[i][0], gradients[i][1], param.shape, param.dtype)
            outputs = {name: param}
            velocity = None
            if state.velocity:
                outputs[f"the velocity of {name}"] = state.velocity[i]
                boundary.output(f"the velocity of {name}", state.velocity[i], param.shape, param.dtype, {name: param})
                velocity = state.velocity[i].reshape(-1)
            boundary.check_apart(outputs, dict(gradients) | dict(arrays[:i]))
            wd, l1 = (self.weight_decay + 2 * self.l2, self.l1) if state.decay[i] else (0.0, 0.0)
            steps.append((param.reshape(-1), grad.reshape(-1), velocity, lr, self.momentum, wd, l1))
        for step in steps:
            kernels = core(step[0].dtype)
            kernels.call_step(kernels.RULES[self.rule], *step)
        state.step += 1


def _arrays(name, params):
    """(name, array) of each array of a network, a list, or of one array."""
    if hasattr(params, "weights"):
        pairs = zip(params.weights, params.biases, strict=True)
        return [
            (f"{kind}[{i}]", array)
            for i, pair in enumerate(pairs)
            for kind, array in zip(("weights", "biases"), pair, strict=True)
        ]
    if isinstance(params, np.ndarray):
        return [(name, params)]
    if not isinstance(params, (list, tuple)):
        raise TypeError(f"{name} must be an MLP, an array or a list of arrays, got {type(params).__name__}")
    return [(f"{name}[{i}]", array) for i, array in enumerate(params)]


def _gradients(params, grads, arrays):
    """(name, gradient) for each of the arrays; a network's flat gradient is cut like its buffer."""
    if not hasattr(params, "weights") or not isinstance(grads, np.ndarray):
        return _arrays("grads", grads)
    flat = boundary.data("grads", grads, params.flat.shape, params.flat.dtype)
    ends = np.cumsum([array.size for _, array in arrays])
    pieces = np.split(flat, ends[:-1])
    return [(f"grads of {name}", piece.reshape(array.shape))
            for (name, array), piece in zip(arrays, pieces, strict=True)]
