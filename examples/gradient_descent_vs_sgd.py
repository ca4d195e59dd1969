"""Full-batch gradient descent against mini-batch SGD on two blobs, and how to read the two losses.

    python examples/gradient_descent_vs_sgd.py [--out gradient_descent_vs_sgd.png]

1,000 points in the plane, one sigmoid unit a = sigmoid(w x + b), squared error, 100 epochs, learning rate
0.01. A textbook experiment reports a loss of 0.447 for gradient descent and 0.006 for SGD with batches of 32:
seventy times less. Most of that is the unit of measurement:

    as the textbook reads it   gradient descent: the SUM of (a - y)^2 over all points
                               SGD: the AVERAGE over the batches of each batch's sum, so a sum over 32 points
    per sample                 both: the mean of (a - y)^2 over the points of an epoch

Read per sample, the same two runs end a factor of 2-3 apart. The textbook's gradient is also not the gradient
of that loss: it is the sum of (a - y) x over the batch, without the derivative a (1 - a) of the sigmoid. The
last two runs follow the gradient of the mean squared error as it is, at the same learning rate: both are
slower, and gradient descent, which takes 100 steps where SGD takes 3,200, falls further behind.
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

import fastopt as fo

N, BATCH, EPOCHS, LR = 1000, 32, 100, 0.01


def blobs():
    """Two Gaussian blobs of 500 points each, standard deviation 1.5: X (1000, 2), y (1000, 1) in {0, 1}."""
    rng = np.random.RandomState(1)
    centres = rng.uniform(-10, 10, (2, 2))
    X = np.concatenate([rng.normal(centre, 1.5, (N // 2, 2)) for centre in centres])
    return X, np.repeat([0.0, 1.0], N // 2)[:, None]


def textbook_loss(scores, y):
    """The mean of (a - y)^2, with the gradient the textbook follows: a sum, the sigmoid's slope left out."""
    a = 1 / (1 + np.exp(-scores))
    return float(np.mean((a - y) ** 2)), a - y


def mean_squared_error(scores, y):
    """The same loss with its own gradient."""
    a = 1 / (1 + np.exp(-scores))
    return float(np.mean((a - y) ** 2)), 2 * (a - y) * a * (1 - a) / len(y)


def run(loss, batch_size, seed=0):
    """Loss per sample of every epoch, from weights 0."""
    X, y = blobs()
    net = fo.MLP([2, 1], init="zeros", dtype="float64")
    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(LR), batch_size=batch_size, seed=seed)
    return np.array(trainer.fit(X, y, epochs=EPOCHS).loss)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gradient_descent_vs_sgd.png")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which SGD sees the points")
    args = parser.parse_args(argv)

    gd, sgd = (run(textbook_loss, batch, args.seed) for batch in (N, BATCH))
    true_gd, true_sgd = (run(mean_squared_error, batch, args.seed) for batch in (N, BATCH))
    n_batches = -(-N // BATCH)
    rows = [  # the reading, and its curve for gradient descent and for SGD
        ("textbook: sum over the set | average batch sum", gd * N, sgd * N / n_batches),
        ("the same runs, mean over samples", gd, sgd),
        ("the mean's own gradient, mean over samples", true_gd, true_sgd),
    ]
    print(f"{'loss of the last epoch, read as':<50}{'gradient descent':>18}{'SGD':>12}{'ratio':>9}")
    for name, full, mini in rows:
        print(f"{name:<50}{full[-1]:>18.6f}{mini[-1]:>12.6f}{full[-1] / mini[-1]:>9.1f}")

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, full, mini) in zip(figure.subplots(1, 3), rows, strict=True):
        axes.semilogy(range(1, EPOCHS + 1), full, label="gradient descent (batch 1,000)")
        axes.semilogy(range(1, EPOCHS + 1), mini, label="SGD (batches of 32)")
        axes.set(title=name, xlabel="epoch", ylabel="loss")
        axes.title.set_fontsize("medium")
        axes.legend()
    figure.savefig(args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
