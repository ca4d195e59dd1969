"""Read handwritten digits: a small network and a linear support vector machine.

    python examples/digits.py                                   1,797 digits that come with scikit-learn
    python examples/digits.py --data mnist --data-dir DIR       70,000 digits: the four MNIST files in DIR

Both models are trained by fastopt, then the same mini-batch steps are done in NumPy and in pure Python, to
show what an interpreted loop costs: the same network, starting weights, loss, batch size and Nesterov rule;
only the order of the samples differs. A table ends the program; the loss curves go to --out. --no-compare
leaves the NumPy and pure Python loops out.
"""

import argparse
import gzip
import math
import os
import time
from operator import mul

import numpy as np
from matplotlib.figure import Figure

import fastopt as fo

MOMENTUM = 0.9


# ------------------------------------------------ the data: X (n, pixels) in [0, 1], y (n,) in 0..9

def bundled_digits():
    """1,797 images of 8x8 pixels; a quarter of them, the same at every run, is kept for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    X = (digits.data / 16).astype(np.float32)
    X, X_test, y, y_test = train_test_split(
        X, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
    return X, y, X_test, y_test


def read_idx(folder, name, offset):
    """The bytes of one MNIST file behind its header, unzipped or not."""
    path = os.path.join(folder, name)
    with gzip.open(path + ".gz") if os.path.exists(path + ".gz") else open(path, "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def mnist(folder):
    """60,000 training and 10,000 test images of 28x28 pixels."""
    data = []
    for part in "train", "t10k":
        pixels = read_idx(folder, f"{part}-images-idx3-ubyte", 16).reshape(-1, 784)
        data += [pixels / np.float32(255), read_idx(folder, f"{part}-labels-idx1-ubyte", 8)]
    return data


# ------------------------------------------------ the main job: two models, a few lines each

def train(sizes, loss, lr, batch_size, epochs, data, threads):
    """Train a network of the given layer sizes; [pixels, 10] has no hidden layer: a linear classifier."""
    X, y, X_test, y_test = data
    net = fo.MLP(sizes, activation="relu", seed=0)
    start = net.copy()
    nesterov = fo.SGD(lr, momentum=MOMENTUM, nesterov=True)
    trainer = fo.Trainer(net, loss=loss, optimizer=nesterov, batch_size=batch_size, seed=0, n_threads=threads)
    # The test images give the second curve of the picture; nothing is chosen by them.
    history = trainer.fit(X, y, epochs=epochs, validation_data=(X_test, y_test), progress=True)
    return start, net, history


# ------------------------------------------------ the same training in NumPy and in pure Python

def batches(n, batch_size, epochs, rng):
    """Row numbers of every mini-batch of every epoch: without replacement, the last batch short."""
    for _ in range(epochs):
        order = rng.permutation(n)
        for first in range(0, n, batch_size):
            yield order[first:first + batch_size]


def numpy_training(net, loss, lr, X, y, steps):
    """Train net in place, one mini-batch after the other."""
    params = net.weights + net.biases         # array views: updating them updates the network
    velocity = [np.zeros_like(p) for p in params]
    last = len(net.weights) - 1
    for rows in steps:
        hidden, labels, n = [X[rows]], y[rows], np.arange(len(rows))
        for k, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            z = hidden[-1] @ W.T + b
            hidden.append(z if k == last else np.maximum(z, 0))
        scores = hidden.pop()
        if loss == "hinge":                             # sum over j != y of max(0, s_j - s_y + 1)
            d = (scores - scores[n, labels, None] + 1 > 0).astype(scores.dtype)
            d[n, labels] -= d.sum(axis=1)
        else:                                           # softmax cross-entropy: probabilities less the truth
            d = np.exp(scores - scores.max(axis=1, keepdims=True))
            d /= d.sum(axis=1, keepdims=True)
            d[n, labels] -= 1
        d /= len(rows)
        dW, db = [], []
        for k in range(last, -1, -1):
            dW.insert(0, d.T @ hidden[k])
            db.insert(0, d.sum(axis=0))
            if k:
                d = (d @ net.weights[k]) * (hidden[k] > 0)
        for p, grad, v in zip(params, dW + db, velocity, strict=True):
            grad *= lr
            v *= MOMENTUM
            v += grad
            p -= MOMENTUM * v + grad


def python_training(net, loss, lr, X, y, steps, seconds=math.inf):
    """The same with lists and loops, until the seconds are over; returns the number of mini-batches done."""
    layers = [(W.tolist(), b.tolist()) for W, b in zip(net.weights, net.biases, strict=True)]
    velocity = [([[0.0] * len(W[0]) for _ in W], [0.0] * len(b)) for W, b in layers]
    done, end = 0, time.perf_counter() + seconds
    for rows in steps:
        grads = [([[0.0] * len(W[0]) for _ in W], [0.0] * len(b)) for W, b in layers]
        for x, label in zip(X[rows].tolist(), y[rows].tolist(), strict=True):
            hidden = [x]
            for W, b in layers:
                z = [sum(map(mul, w, hidden[-1])) + b_j for w, b_j in zip(W, b, strict=True)]
                hidden.append(z if W is layers[-1][0] else [max(v, 0.0) for v in z])
            scores = hidden.pop()
            if loss == "hinge":
                d = [float(s - scores[label] + 1 > 0) for s in scores]
                d[label] -= sum(d)
            else:
                top = max(scores)
                d = [math.exp(s - top) for s in scores]
                total = sum(d)
                d = [v / total for v in d]
                d[label] -= 1
            d = [v / len(rows) for v in d]
            for (W, _), (dW, db), h in zip(layers[::-1], grads[::-1], hidden[::-1], strict=True):
                dh = [0.0] * len(h)
                for j, d_j in enumerate(d):
                    db[j] += d_j
                    dw = dW[j]
                    for i, h_i in enumerate(h):
                        dw[i] += d_j * h_i
                    if h is not x:
                        for i, w in enumerate(W[j]):
                            dh[i] += d_j * w
                d = [v if h_i > 0 else 0.0 for v, h_i in zip(dh, h, strict=True)]
        for (W, b), (dW, db), (vW, vb) in zip(layers, grads, velocity, strict=True):
            for w, dw, v in zip([*W, b], [*dW, db], [*vW, vb], strict=True):
                for i, g in enumerate(dw):
                    v[i] = MOMENTUM * v[i] + lr * g
                    w[i] -= MOMENTUM * v[i] + lr * g
        done += 1
        if time.perf_counter() > end:
            break
    for (W, b), weight, bias in zip(layers, net.weights, net.biases, strict=True):
        weight[:], bias[:] = W, b
    return done


def compare(start, loss, lr, batch_size, epochs, data):
    """Rows (who, test accuracy, seconds, mini-batches timed, mini-batches in all) of the two loops."""
    X, y, X_test, y_test = data
    total = epochs * math.ceil(len(X) / batch_size)

    def steps():
        return batches(len(X), batch_size, epochs, np.random.default_rng(0))

    net, began = start.copy(), time.perf_counter()
    numpy_training(net, loss, lr, X, y, steps())
    seconds = time.perf_counter() - began
    yield "NumPy", fo.accuracy(net.forward(X_test), y_test), seconds, total, total

    began = time.perf_counter()
    done = python_training(start.copy(), loss, lr, X, y, steps(), seconds=1.0)
    yield "pure Python", None, (time.perf_counter() - began) * total / done, done, total


# ------------------------------------------------ the program

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-dir", default=".", help="folder with the MNIST files, .gz or unzipped")
    parser.add_argument("--epochs", type=int, help="for both models (default: 40; mnist: 20 and 10)")
    parser.add_argument("--threads", type=int, help="at most so many (the result does not depend on it)")
    parser.add_argument("--out", default="digits.png", help="picture of the loss curves (digits.png)")
    parser.add_argument("--no-compare", action="store_true", help="without the NumPy and pure Python loops")
    args = parser.parse_args(argv)

    if args.data == "mnist":
        data, batch_size, layers, epochs = mnist(args.data_dir), 128, [784, 256, 128, 10], (20, 10)
    else:
        data, batch_size, layers, epochs = bundled_digits(), 32, [64, 32, 10], (40, 40)
    X, _, X_test, y_test = data
    models = [  # name, layer sizes, loss, learning rate, epochs
        ("network", layers, "softmax_cross_entropy", 0.05, args.epochs or epochs[0]),
        ("linear SVM", [layers[0], 10], "hinge", 0.01, args.epochs or epochs[1]),
    ]
    print(f"{args.data}: {len(X):,} training and {len(X_test):,} test images of {X.shape[1]} pixels")

    figure = Figure(figsize=(10, 4), layout="constrained")
    table = []
    for axes, (name, sizes, loss, lr, n_epochs) in zip(figure.subplots(1, 2), models, strict=True):
        name += " " + "-".join(map(str, sizes))
        print(f"{name}: {loss}, {n_epochs} epochs in mini-batches of {batch_size}", flush=True)
        start, net, history = train(sizes, loss, lr, batch_size, n_epochs, data, args.threads)
        history.plot(ax=axes)
        axes.set_title(f"{name}, {loss}")
        ours = sum(history.seconds)
        table.append((name, "fastopt", fo.accuracy(net.forward(X_test), y_test), ours, "", ""))
        if not args.no_compare:
            print("    the same in NumPy and in pure Python ...", flush=True)
            for who, accuracy, seconds, done, total in compare(start, loss, lr, batch_size, n_epochs, data):
                note = f"~ from {done:,} of {total:,} mini-batches" if done < total else ""
                table.append(("", who, accuracy, seconds, f"{seconds / ours:,.1f} x", note))
    figure.savefig(args.out)

    print(f"\n{'model':<24}{'trained by':<13}{'test accuracy':>13}{'training time':>16}")
    for name, who, accuracy, seconds, ratio, note in table:
        shown = "" if accuracy is None else f"{100 * accuracy:.2f} %"
        places = 3 if seconds < 100 else 0
        print(f"{name:<24}{who:<13}{shown:>13}{seconds:>14,.{places}f} s{ratio:>12}  {note}".rstrip())
    print(f"\nloss curves: {args.out}")


if __name__ == "__main__":
    main()
