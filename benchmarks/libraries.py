"""The same epoch in each library. A class is made with a workload and a number of threads; `epoch(order)` trains one
epoch in that order of the samples and returns the mean of the losses seen."""

import numpy as np


class Fastopt:
    def __init__(self, work, threads):
        import fastopt as fo

        self.version = fo.__version__
        weights = iter(work.weights())
        net = fo.MLP(work.sizes, work.activation, lambda shape, rng: next(weights))
        rule = fo.SGD(work.lr, momentum=work.momentum, nesterov=work.momentum > 0, weight_decay=work.weight_decay)
        self.trainer = fo.Trainer(
            net, loss="softmax_cross_entropy", optimizer=rule, batch_size=work.batch, seed=0, n_threads=threads
        )
        self.X, self.y = work.data()

    def epoch(self, order):
        # its own shuffle, with the seed that made `order`
        return self.trainer.fit(self.X, self.y, epochs=1).loss[-1]


class NumPy:
    """The mini-batch loop as one writes it by hand, with preallocated parameters and in-place updates."""

    def __init__(self, work, threads):
        self.version = np.__version__
        self.work = work
        self.X, self.y = work.data()
        self.weights = work.weights()
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


class PyTorch:
    """Eager, with the fused SGD."""

    compiled = False

    def __init__(self, work, threads):
        import torch

        self.version = torch.__version__
        torch.set_num_threads(threads)
        self.torch, self.work = torch, work
        X, y = work.data()
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


class JAX:
    """A jitted lax.scan over the epoch's batches, with optax."""

    def __init__(self, work, threads):
        import jax
        import jax.numpy as jnp
        import optax

        self.version = f"{jax.__version__} (optax {optax.__version__})"
        self.jax, self.work = jax, work
        X, y = work.data()
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
    "fastopt": Fastopt, "NumPy": NumPy, "PyTorch": PyTorch, "PyTorch compiled": PyTorchCompiled, "JAX": JAX,
}
