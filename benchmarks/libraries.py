"""The same epoch in each library, and one line for each in LIBRARIES.

A class has `prepare(X, y)`, which also sets `version`, and `epoch(order)`, which trains one epoch in that order of the
samples and returns the mean of the losses seen.
"""

import hashlib
import math
import platform
import time
from operator import mul

import numpy as np

from .workloads import WORKLOADS

TURN = 0.05  # seconds


class Library:
    extrapolated = False

    def __init__(self, workload, threads):
        self.work, self.threads, self.epochs = WORKLOADS[workload], threads, 0
        self.prepare(*self.work.data())

    @classmethod
    def thread_counts(cls, threads):
        """Another library is given the one at which it is better."""
        return sorted({1, threads})

    def about(self):
        return self.version

    def next_order(self):
        self.epochs += 1
        return self.work.order(self.epochs - 1)

    def next_epoch(self):
        return self.timed(self.next_order())

    def turn(self):
        """Seconds of an epoch; of a short one the mean of some in a row, after one that finds cold caches."""
        seconds = self.next_epoch()["seconds"]
        if seconds < TURN / 2 and not self.extrapolated:
            orders = [self.next_order() for _ in range(math.ceil(TURN / seconds))]
            seconds = sum(self.timed(order)["seconds"] for order in orders) / len(orders)
        return seconds

    def timed(self, order):
        start = time.perf_counter()
        loss = self.epoch(order)
        return {"seconds": time.perf_counter() - start, "loss": loss}


class Fastopt(Library):
    dtype = "float32"

    @classmethod
    def thread_counts(cls, threads):
        return [threads]

    def prepare(self, X, y):
        import fastopt as fo

        self.version = fo.__version__
        work, weights = self.work, iter(self.work.weights())
        net = fo.MLP(work.sizes, work.activation, lambda shape, rng: next(weights), dtype=self.dtype)
        rule = fo.SGD(work.lr, momentum=work.momentum, nesterov=work.momentum > 0, weight_decay=work.weight_decay)
        self.trainer = fo.Trainer(
            net, loss="softmax_cross_entropy", optimizer=rule, batch_size=work.batch, seed=0, n_threads=self.threads
        )
        self.X, self.y = X.astype(self.dtype), y

    def epoch(self, order):
        # its own shuffle, with the seed that made `order`
        return self.trainer.fit(self.X, self.y, epochs=1).loss[-1]

    def peak(self):
        """Floating-point operations a second of one processor that does nothing but fused multiply-adds."""
        from fastopt._dispatch import core

        start = time.perf_counter()
        operations = core(self.dtype).call_fma_loop(200_000)
        return operations / (time.perf_counter() - start)

    def folder(self):
        import fastopt

        return fastopt.__file__

    def bits(self):
        """A checksum of the parameters."""
        return hashlib.sha256(self.trainer.net.flat).hexdigest()


class FastoptFloat64(Fastopt):
    dtype = "float64"


class NumPy(Library):
    """The mini-batch loop as one writes it by hand, with preallocated parameters and in-place updates."""

    def prepare(self, X, y):
        self.version = np.__version__
        self.X, self.y = X, y
        self.weights = self.work.weights()
        self.biases = [np.zeros(len(w), np.float32) for w in self.weights]
        self.velocity = [np.zeros_like(p) for p in self.weights + self.biases]

    def epoch(self, order):
        total = 0.0
        for start in range(0, len(order), self.work.batch):
            rows = order[start : start + self.work.batch]
            total += self.step(self.X[rows], self.y[rows])
        return total / len(order)

    def step(self, x, y):
        outputs = [x]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = outputs[-1] @ weight.T
            z += bias
            if i + 1 < len(self.weights):
                if self.work.activation == "relu":
                    np.maximum(z, 0, out=z)
                else:
                    np.exp(-z, out=z)
                    z += 1
                    np.reciprocal(z, out=z)
            outputs.append(z)
        rows = np.arange(len(y))
        p = outputs.pop()
        p -= p.max(axis=1, keepdims=True)
        at_label = p[rows, y].copy()
        np.exp(p, out=p)
        total = p.sum(axis=1, keepdims=True)
        loss = float(np.sum(np.log(total[:, 0]) - at_label))
        p /= total
        p[rows, y] -= 1
        p /= len(y)
        for i in reversed(range(len(self.weights))):
            dweight, dbias = p.T @ outputs[i], p.sum(axis=0)
            if i:
                p = p @ self.weights[i]
                p *= outputs[i] > 0 if self.work.activation == "relu" else outputs[i] * (1 - outputs[i])
            dweight += np.float32(self.work.weight_decay) * self.weights[i]
            self.update(self.weights[i], dweight, self.velocity[i])
            self.update(self.biases[i], dbias, self.velocity[len(self.weights) + i])
        return loss

    def update(self, param, grad, velocity):
        grad *= np.float32(self.work.lr)
        if self.work.momentum:
            velocity *= np.float32(self.work.momentum)
            velocity += grad
            grad += np.float32(self.work.momentum) * velocity
        param -= grad


class PurePython(Library):
    """Lists and loops, on the first samples of the epoch: the time of the whole is extrapolated."""

    extrapolated = True
    operations = 10_000_000

    def __init__(self, workload, threads):
        super().__init__(workload, threads)
        self.numpy = NumPy(workload, 1)

    @classmethod
    def thread_counts(cls, threads):
        return [1]

    def prepare(self, X, y):
        self.version = platform.python_version()
        self.X, self.y = X, y
        self.layers = [(weight.tolist(), [0.0] * len(weight)) for weight in self.work.weights()]
        self.velocity = self.zeros()
        self.rows = min(len(X), max(1, len(X) * self.operations // self.work.operations))

    def zeros(self):
        return [([[0.0] * len(weight[0]) for _ in weight], [0.0] * len(bias)) for weight, bias in self.layers]

    def timed(self, order):
        """Seconds of the whole epoch: those of the gradients grow with the samples, those of updates with batches.
        Expected is the loss of NumPy, which has trained on the same slices."""
        order, batch = order[: self.rows], self.work.batch
        loss = seconds_of_gradients = seconds_of_updates = 0.0
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            x, y = self.X[rows].tolist(), self.y[rows].tolist()
            start = time.perf_counter()
            grads = self.zeros()
            zeroed = time.perf_counter()
            loss += sum(self.add_gradient(row, label, grads, len(rows)) for row, label in zip(x, y, strict=True))
            added = time.perf_counter()
            self.update(grads)
            seconds_of_gradients += added - zeroed
            seconds_of_updates += time.perf_counter() - added + zeroed - start
        seconds = seconds_of_gradients * self.work.n / len(order)
        seconds += seconds_of_updates * math.ceil(self.work.n / batch) / math.ceil(len(order) / batch)
        return {"seconds": seconds, "loss": loss / len(order), "expected": self.numpy.epoch(order)}

    def add_gradient(self, x, label, grads, n):
        """The loss of a sample; its share of the batch's gradient is added to grads."""
        relu = self.work.activation == "relu"
        outputs = [x]
        for weight, bias in self.layers:
            z = [sum(map(mul, row, outputs[-1])) + b for row, b in zip(weight, bias, strict=True)]
            if len(outputs) < len(self.layers):
                z = [max(v, 0.0) for v in z] if relu else [1 / (1 + math.exp(-v)) for v in z]
            outputs.append(z)
        scores = outputs.pop()
        highest = max(scores)
        d = [math.exp(s - highest) for s in scores]
        total = sum(d)
        loss = math.log(total) + highest - scores[label]
        d = [v / total / n for v in d]
        d[label] -= 1 / n
        for (weight, _), (dweight, dbias), h in zip(self.layers[::-1], grads[::-1], outputs[::-1], strict=True):
            dh = [0.0] * len(h)
            for j, d_j in enumerate(d):
                dbias[j] += d_j
                dw, w = dweight[j], weight[j]
                for i, h_i in enumerate(h):
                    dw[i] += d_j * h_i
                if h is not x:
                    for i, w_i in enumerate(w):
                        dh[i] += d_j * w_i
            d = [v * ((h_i > 0) if relu else h_i * (1 - h_i)) for v, h_i in zip(dh, h, strict=True)]
        return loss

    def update(self, grads):
        lr, momentum = self.work.lr, self.work.momentum
        for (weight, bias), (dweight, dbias), (v_weight, v_bias) in zip(
                self.layers, grads, self.velocity, strict=True):
            decays = [self.work.weight_decay] * len(weight) + [0.0]
            for w, g, v, decay in zip([*weight, bias], [*dweight, dbias], [*v_weight, v_bias], decays, strict=True):
                for i, g_i in enumerate(g):
                    step = lr * (g_i + decay * w[i])
                    if momentum:
                        v[i] = momentum * v[i] + step
                        step += momentum * v[i]
                    w[i] -= step


class ScikitLearn(Library):
    """MLPClassifier: `partial_fit` is one epoch in the order of its rows."""

    def prepare(self, X, y):
        import sklearn
        from sklearn.neural_network import MLPClassifier

        self.version = sklearn.__version__
        work, n_classes = self.work, self.work.sizes[-1]
        if n_classes == 2:
            raise NotImplementedError("MLPClassifier gives two classes a single output")
        self.X, self.y = X, y
        self.model = MLPClassifier(
            work.sizes[1:-1], activation="logistic" if work.activation == "sigmoid" else "relu", solver="sgd",
            # which it divides by the batch size
            alpha=work.weight_decay * work.batch,
            batch_size=work.batch, learning_rate_init=work.lr, momentum=work.momentum,
            nesterovs_momentum=work.momentum > 0, shuffle=False,
        )
        # makes the parameters and the optimizer, which begin anew
        self.model.partial_fit(X[: work.batch], y[: work.batch], classes=np.arange(n_classes))
        for coef, bias, weight in zip(self.model.coefs_, self.model.intercepts_, work.weights(), strict=True):
            coef[...], bias[...] = weight.T, 0
        for velocity in self.model._optimizer.velocities:
            velocity[...] = 0

    def epoch(self, order):
        before = self.penalty()
        self.model.partial_fit(self.X[order], self.y[order])
        # the mean over the epoch of a penalty that hardly changes
        return float(self.model.loss_ - (before + self.penalty()) / 2)

    def penalty(self):
        return self.work.weight_decay / 2 * sum(np.vdot(coef, coef) for coef in self.model.coefs_)


class PyTorch(Library):
    """Eager, with the fused SGD."""

    compiled = False

    def prepare(self, X, y):
        import torch

        self.version = torch.__version__
        torch.set_num_threads(self.threads)
        self.torch, work = torch, self.work
        self.X, self.y = torch.from_numpy(X), torch.from_numpy(y)
        layers = []
        for i, weight in enumerate(work.weights()):
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.zero_()
            layers.append(layer)
            if i + 2 < len(work.sizes):
                layers.append(torch.nn.ReLU() if work.activation == "relu" else torch.nn.Sigmoid())
        self.model = torch.nn.Sequential(*layers)
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim == 2], "weight_decay": work.weight_decay},
            {"params": [p for p in self.model.parameters() if p.ndim == 1]},
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=work.lr, momentum=work.momentum, nesterov=work.momentum > 0, fused=True
        )
        self.loss = self.loss_of
        if self.compiled:
            self.loss = torch.compile(self.loss_of)

    def loss_of(self, x, y):
        return self.torch.nn.functional.cross_entropy(self.model(x), y)

    def epoch(self, order):
        order = self.torch.from_numpy(order)
        total = 0.0
        for rows in order.split(self.work.batch):
            loss = self.loss(self.X[rows], self.y[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(rows)
        return float(total) / len(order)


class PyTorchCompiled(PyTorch):
    """The forward pass and the loss through torch.compile."""

    compiled = True


class JAX(Library):
    """A jitted lax.scan over the epoch's batches, with optax."""

    def prepare(self, X, y):
        import jax
        import jax.numpy as jnp
        import optax

        self.version = f"{jax.__version__}, optax {optax.__version__}"
        self.jax, work = jax, self.work
        X, y = jnp.asarray(X), jnp.asarray(y)
        params = [(jnp.asarray(w), jnp.zeros(len(w), jnp.float32)) for w in work.weights()]
        momentum = work.momentum or None
        rule = optax.chain(
            optax.add_decayed_weights(work.weight_decay, jax.tree.map(lambda p: p.ndim == 2, params)),
            optax.sgd(work.lr, momentum=momentum, nesterov=momentum is not None),
        )
        act = jax.nn.relu if work.activation == "relu" else jax.nn.sigmoid

        def loss_of(params, x, y):
            for i, (weight, bias) in enumerate(params):
                x = x @ weight.T + bias
                x = act(x) if i + 1 < len(params) else x
            return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

        def step(carry, rows):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_of)(params, X[rows], y[rows])
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss * len(rows)

        def epoch(carry, order):
            n = len(order) // work.batch * work.batch
            carry, losses = jax.lax.scan(step, carry, order[:n].reshape(-1, work.batch))
            total = losses.sum()
            if n < len(order):
                carry, last = step(carry, order[n:])
                total += last
            return carry, total / len(order)

        self.run = jax.jit(epoch, donate_argnums=0)
        self.carry = params, rule.init(params)

    def epoch(self, order):
        self.carry, loss = self.run(self.carry, order)
        loss = float(loss)
        self.jax.block_until_ready(self.carry)
        return loss


LIBRARIES = {
    "fastopt": Fastopt, "fastopt float64": FastoptFloat64, "NumPy": NumPy, "pure Python": PurePython,
    "scikit-learn": ScikitLearn, "PyTorch": PyTorch, "PyTorch compiled": PyTorchCompiled, "JAX": JAX,
}
