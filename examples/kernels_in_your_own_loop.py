"""The kernels and the optimizer of fastopt inside a training loop of your own.

    python examples/kernels_in_your_own_loop.py [--epochs 100]

Two spirals in the plane, a network 2-32-2. The first loop is written with the kernels alone (dense_forward,
softmax_cross_entropy, dense_backward, nesterov_step); the second leaves the update to SGD.init and
SGD.update, which take any arrays. Both do the same arithmetic and end with the same weights, bit for bit.
"""

import argparse

import numpy as np

import fastopt as fo

LR, MOMENTUM, DECAY, BATCH = 0.1, 0.9, 1e-4, 32


def spirals(n_per_class=500, noise=0.06, seed=0):
    """Points (n, 2) of two interleaved spirals and their labels (n,) in {0, 1}."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], n_per_class)
    t = np.sqrt(rng.random(2 * n_per_class)) * 1.5 * np.pi          # the angle, evenly spread along the arm
    arm = np.stack([t * np.cos(t + np.pi * y), t * np.sin(t + np.pi * y)], axis=1) / 3
    return arm + noise * rng.standard_normal(arm.shape), y


def initial_parameters(seed=0):
    """weight (out, in) and bias (out,) of both layers, He-uniform."""
    rng = np.random.default_rng(seed)
    W1 = rng.uniform(-1, 1, (32, 2)) * np.sqrt(6 / 2)
    W2 = rng.uniform(-1, 1, (2, 32)) * np.sqrt(6 / 32)
    return W1, np.zeros(32), W2, np.zeros(2)


def gradients(x, y, W1, b1, W2, b2):
    """One mini-batch forward and backward: the mean loss and its gradient for each parameter."""
    hidden = fo.dense_forward(x, W1, b1, activation="relu")         # (n, 32)
    scores = fo.dense_forward(hidden, W2, b2)                       # (n, 2)
    loss, dscores = fo.softmax_cross_entropy(scores, y)
    dhidden, dW2, db2 = fo.dense_backward(dscores, hidden, W2)
    _, dW1, db1 = fo.dense_backward(dhidden, x, W1, output=hidden, activation="relu")
    return loss, (dW1, db1, dW2, db2)


def batches(X, y, epochs, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(X))
        for first in range(0, len(X), BATCH):
            rows = order[first:first + BATCH]
            yield X[rows], y[rows]


def with_kernels(X, y, epochs):
    params = initial_parameters()
    velocity = [np.zeros_like(p) for p in params]
    for x_batch, y_batch in batches(X, y, epochs):
        _, grads = gradients(x_batch, y_batch, *params)
        for p, g, v in zip(params, grads, velocity, strict=True):
            decay = DECAY if p.ndim == 2 else 0.0                   # biases are not penalised
            fo.nesterov_step(p, g, v, lr=LR, momentum=MOMENTUM, weight_decay=decay)
    return params


def with_optimizer(X, y, epochs):
    params = list(initial_parameters())
    optimizer = fo.SGD(LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    state = optimizer.init(params)                                  # decays what has two axes, not the biases
    for x_batch, y_batch in batches(X, y, epochs):
        _, grads = gradients(x_batch, y_batch, *params)
        optimizer.update(params, list(grads), state)
    return params


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args(argv)

    X, y = spirals()
    for name, params in [("start", initial_parameters()),
                         ("kernels alone", with_kernels(X, y, args.epochs)),
                         ("SGD.init and SGD.update", with_optimizer(X, y, args.epochs))]:
        W1, b1, W2, b2 = params
        scores = fo.dense_forward(fo.dense_forward(X, W1, b1, activation="relu"), W2, b2)
        loss, _ = fo.softmax_cross_entropy(scores, y)
        print(f"{name:<24} loss {loss:.4f}   accuracy {100 * fo.accuracy(scores, y):6.2f} %")

    pairs = zip(with_kernels(X, y, 1), with_optimizer(X, y, 1), strict=True)
    print("same weights from both loops:", all(np.array_equal(p, q) for p, q in pairs))

    # The gradient that a loop of your own relies on can be checked against finite differences.
    W1, b1, W2, b2 = initial_parameters()

    def loss_of_first_weight(W):
        loss, (dW1, *_) = gradients(X[:7], y[:7], W, b1, W2, b2)
        return loss, dW1

    report = fo.check_gradient(loss_of_first_weight, W1)
    print(f"gradient check: ok {report.ok}, largest error {report.max_error:.1e}")


if __name__ == "__main__":
    main()
