"""A saturated output unit: slow to learn under the quadratic cost, quick under cross-entropy.

    python examples/saturation.py [--out saturation.png]

One sigmoid unit a = sigmoid(w x + b) with one sample x = 1, y = 0, and w = b = 2, so that it starts with
a = 0.9820, confidently wrong. Learning rate 0.15, 299 updates:

    quadratic cost a^2 / 2     dC/ds = (a - y) a (1 - a)     the last factor is nearly 0 while a is nearly 1
    cross-entropy              dC/ds = a - y                 large while the unit is wrong
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

import fastopt as fo


def quadratic_cost(scores, y):
    """A loss of one's own: (scores, y) -> the mean over the batch, and its gradient for the scores."""
    a = 1 / (1 + np.exp(-scores))
    y = y.reshape(scores.shape)
    return float(np.mean((a - y) ** 2) / 2), (a - y) * a * (1 - a) / len(y)


def outputs(loss, updates):
    """The output of the unit before the first update and after each."""
    net = fo.MLP([1, 1], dtype="float64")
    net.flat[:] = 2.0                           # w and b
    x, y = np.ones((1, 1)), np.zeros(1)

    def output():
        return 1 / (1 + np.exp(-net.forward(x)[0, 0]))

    seen = [output()]
    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.15), batch_size=1)
    trainer.fit(x, y, epochs=updates, callbacks=[lambda trainer: seen.append(output())])
    return seen


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="saturation.png")
    parser.add_argument("--updates", type=int, default=299)
    args = parser.parse_args(argv)

    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    print(f"{'cost':<18}{'first output':>14}{f'after {args.updates} updates':>22}")
    for name, loss in [("quadratic", quadratic_cost), ("cross-entropy", "binary_cross_entropy")]:
        a = outputs(loss, args.updates)
        print(f"{name:<18}{a[0]:>14.4f}{a[-1]:>22.5f}")
        axes.plot(a, label=name)
    axes.set(title="x = 1, y = 0, w = b = 2, learning rate 0.15", xlabel="update", ylabel="output")
    axes.legend()
    figure.savefig(args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
