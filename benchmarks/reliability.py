"""python -m benchmarks.reliability: what it costs to be right on bad numbers and to say so.

First an epoch whose first weights, gradients, activations and targets are denormal, beside the same epoch with all of
them a power of two larger; promised is at most 3 times as long.

Then `fit(epochs=1)` as it stands beside one without its checks: of X, read while the epoch trains, of labels or targets
before it, and of the parameters after it. Promised is a share below 5 %. A call's later epochs spare the first two.
"""

import statistics
import sys

import numpy as np

from . import common
from .common import both, interleaved, machine
from .worker import Failed, Worker
from .workloads import WORKLOADS

# the smallest normal number is 2**-126, or 2**-1022: what is below 8 becomes denormal, and keeps 20 bits of 1
SCALES = {"float32": 2.0**-129, "float64": 2.0**-1025}
NAMES = ("W1", "L1", "W6")


def fit_of(workload, dtype, y, scale=1.0):
    """A function that trains an epoch from the same parameters, and returns its loss."""
    import fastopt as fo

    work = WORKLOADS[workload]
    X, labels = work.data()
    weights = [weight.astype(dtype) for weight in work.weights()]
    # with this, and ReLU, everything in the step is proportional to it but for the later layers' weights
    weights[0] *= scale
    initial = iter(weights)
    net = fo.MLP(work.sizes, "relu", lambda shape, rng: next(initial), dtype=dtype)
    targets = np.eye(work.sizes[-1], dtype=dtype)[labels] * np.dtype(dtype).type(scale)
    X, start, rule = X.astype(dtype), net.flat.copy(), fo.SGD(work.lr, momentum=work.momentum)
    loss, y = ("mse", targets) if y == "targets" else ("softmax_cross_entropy", labels)

    def run():
        net.flat[...] = start
        trainer = fo.Trainer(net, loss=loss, optimizer=rule, batch_size=work.batch, seed=0, n_threads=1)
        return trainer.fit(X, y, epochs=1).loss[-1]

    return run, net


class Denormals:
    """Served by a worker."""

    def __init__(self, workload, dtype):
        self.runs = {name: fit_of(workload, dtype, "targets", scale)
                     for name, scale in (("normal", 1.0), ("denormal", SCALES[dtype]))}

    def seconds(self, repeats):
        run, net = self.runs["denormal"]
        before = net.weights[0].copy()
        run()
        weights = np.abs(net.weights[0])
        if not 0 < weights.max() < np.finfo(weights.dtype).tiny or np.mean(weights == np.abs(before)) > 0.5:
            raise ValueError("the weights are not denormal, or were not trained")
        return interleaved({name: run for name, (run, _) in self.runs.items()}, repeats)


class Checks:
    """Served by a worker."""

    def __init__(self, workload, y):
        from fastopt import boundary
        from fastopt._dispatch import core

        self.run, self.net = fit_of(workload, "float32", y)
        kernels = core("float32")

        class Unchecked(kernels.Engine):
            def begin_epoch(self, *arguments):
                super().begin_epoch(*arguments[:-1], False)

            def parameters_finite(self):
                return True

        self.checks = [
            (kernels, "Engine", Unchecked),
            (boundary, "labels", lambda name, value, *_, **__: value),
            (boundary, "targets", lambda name, value, *_, **__: value),
        ]

    def without(self):
        kept = [(owner, name, getattr(owner, name)) for owner, name, _ in self.checks]
        for owner, name, replacement in self.checks:
            setattr(owner, name, replacement)
        try:
            return self.run()
        finally:
            for owner, name, check in kept:
                setattr(owner, name, check)

    def seconds(self, repeats):
        if self.run() != self.without():
            raise ValueError("the checks change the loss")
        return interleaved({"with": self.run, "without": self.without}, repeats)


def table(title, maker, cases, columns, compare, repeats):
    print(f"\n{title}\n")
    print(f"{'':24}" + "".join(f"{column:>26}" for column in columns) + f"{'of minima, of medians':>25}")
    for case in cases:
        try:
            with Worker(maker, *case, threads=1) as worker:
                seconds = worker("seconds", repeats)
        except Failed as error:
            print(f"{' '.join(case):24} is left out: {error}")
            continue
        first, second = (seconds[column] for column in columns)
        shown = "  ".join(compare(of(first), of(second)) for of in (min, statistics.median))
        print(f"{' '.join(case):24}{both(first)}{both(second)}{shown:>25}", flush=True)


def main(argv=None):
    parser = common.parser("benchmarks.reliability", __doc__, only=("denormals", "checks"))
    options = parser.parse_args(argv)
    print(f"{machine()}; one thread, minimum and median of {options.repeats}")
    for name in NAMES:
        print(f"{name}: {WORKLOADS[name].n:,} x {WORKLOADS[name].sizes}, batch {WORKLOADS[name].batch}")
    if "denormals" in options.only:
        cases = [(workload, dtype) for workload in NAMES for dtype in SCALES]
        table("One epoch", "reliability.Denormals", cases, ("normal", "denormal"), lambda a, b: f"{b / a:.2f} x",
              options.repeats)
    if "checks" in options.only:
        cases = [(workload, y) for workload in NAMES for y in ("labels", "targets")]
        table("One fit of one epoch, its checks", "reliability.Checks", cases, ("with", "without"),
              lambda a, b: f"{1 - b / a:.1%}", options.repeats)


if __name__ == "__main__":
    sys.exit(main())
