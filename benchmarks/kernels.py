"""python -m benchmarks.kernels: each kernel alone, on one processor, in float32 and float64.

"kernel" is the compiled function on arrays that are there, "call" the public function with its checks and its new
arrays, NumPy the same by hand. The last column is the fraction of a bound that is measured in turn with the kernel:

* products: the peak, a loop of independent fused multiply-adds;
* losses and softmax: one pass over memory plus NumPy's exponentials or logarithms, where the loss has them;
* optimizer steps on 10^7 parameters: the bytes a second of NumPy's param += grad, which moves what plain SGD moves.

All results are compared before they are timed.
"""

import sys

import numpy as np

from . import common
from .common import duration, interleaved, machine
from .worker import Failed, Worker

ROWS_OF_DENSE = [(8, 20, 16), (32, 64, 32), (128, 784, 64), (128, 512, 512), (256, 2048, 2048)]
LOSSES = {  # the NumPy functions that stand for its transcendentals
    "softmax_cross_entropy": [np.exp], "hinge": [], "squared_hinge": [], "binary_cross_entropy": [np.exp, np.log1p],
    "mse": [], "mae": [], "msle": [np.log1p, np.log1p], "huber": [],
}
LABEL_LOSSES = ("softmax_cross_entropy", "hinge", "squared_hinge")
RULES = {"sgd": 3, "momentum": 5, "nesterov": 5}  # arrays read or written
UPDATES = {  # by an optimizer's `update`: arrays read or written, class, arguments
    "SGD, torch, momentum": (5, "SGD", {"convention": "torch", "momentum": 0.9, "weight_decay": 1e-4}),
    "SGD, keras, nesterov": (
        5, "SGD", {"convention": "keras", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "SGD, l1, momentum": (5, "SGD", {"momentum": 0.9, "l1": 1e-5}),
    "SGD, sklearn_sgd, l1": (5, "SGD", {"convention": "sklearn_sgd", "l1": 1e-5}),
    "AdaGrad": (5, "AdaGrad", {}), "RMSProp": (5, "RMSProp", {}), "AdaDelta": (7, "AdaDelta", {}),
    "Adam": (7, "Adam", {}), "AdamW": (7, "AdamW", {}),
}
N_PARAMETERS = 10_000_000
NUMBERS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}


class Kernels:
    """Served by a worker. A case is (runs, amount, unit, bound): bound makes seconds of the minima of the runs."""

    def __init__(self, dtype):
        import fastopt as fo
        from fastopt import reference
        from fastopt._dispatch import core

        self.fo, self.reference, self.core, self.dtype = fo, reference, core(dtype), np.dtype(dtype)
        self.rng, self.peak = np.random.default_rng(0), 0.0
        self.cases = {}
        for n, n_in, n_out in ROWS_OF_DENSE:
            self.cases[f"dense_forward {n} x {n_in} -> {n_out}"] = self.forward, n, n_in, n_out
            self.cases[f"dense_backward {n} x {n_in} -> {n_out}"] = self.backward, n, n_in, n_out
        for k in 1000, 10:
            self.cases[f"softmax (4096, {k})"] = self.softmax, 4096, k
            for loss in LOSSES:
                self.cases[f"{loss} (4096, {k})"] = self.loss, loss, 4096, k
        for rule in RULES:
            self.cases[f"{rule}_step, 10^7 parameters"] = self.step, rule
        for name in UPDATES:
            self.cases[f"{name}, 10^7"] = self.update, name
        for n in 1, 8, 128:
            self.cases[f"forward of 784-64-10, {n} row(s)"] = self.network, n

    def names(self):
        return list(self.cases)

    def measure(self, name, repeats):
        make, *arguments = self.cases[name]
        runs, amount, unit, bound = make(*arguments)
        best = {run: min(seconds) for run, seconds in interleaved(runs, repeats).items()}
        ours = best.get("kernel", best.get("call"))
        return best | {"rate": amount / ours / 1e9, "unit": unit, "fraction": bound(best) / ours}

    def agree(self, what, result, expected):
        # in the mean: at the kink of a hinge the last bit decides on a whole element
        tolerance = 1e-4 if self.dtype == np.float32 else 1e-10
        if not np.mean(np.abs(result - expected)) <= tolerance * np.mean(np.abs(expected)):
            raise ValueError(f"{what} differs from the reference")

    def array(self, *shape):
        return self.rng.standard_normal(shape).astype(self.dtype)

    def of_peak(self, runs, operations):
        loop = 10_000
        total = self.core.call_fma_loop(loop)
        runs["peak"] = lambda: self.core.call_fma_loop(loop)

        def bound(best):
            self.peak = max(self.peak, total / best["peak"])
            return operations / self.peak

        return runs, operations, "GFLOP/s", bound

    def forward(self, n, n_in, n_out):
        x, weight, bias = self.array(n, n_in), self.array(n_out, n_in), self.array(n_out)
        out = np.empty((n, n_out), self.dtype)
        runs = {
            "kernel": lambda: self.core.call_dense_forward(x, weight, bias, out, 0, 1),
            "call": lambda: self.fo.dense_forward(x, weight, bias, n_threads=1),
            "NumPy": lambda: x @ weight.T + bias,
        }
        runs["kernel"]()
        for result in out, runs["call"](), runs["NumPy"]():
            self.agree("dense_forward", result, self.reference.dense_forward(x, weight, bias))
        return self.of_peak(runs, 2 * n * n_in * n_out)

    def backward(self, n, n_in, n_out):
        dout, x, weight = self.array(n, n_out), self.array(n, n_in), self.array(n_out, n_in)
        grads = np.empty_like(x), np.empty_like(weight), np.empty(n_out, self.dtype)
        runs = {
            "kernel": lambda: self.core.call_dense_backward(dout, x, weight, *grads, False, 1),
            "call": lambda: self.fo.dense_backward(dout, x, weight, n_threads=1),
            "NumPy": lambda: (dout @ weight, dout.T @ x, dout.sum(axis=0)),
        }
        runs["kernel"]()
        for results in grads, runs["call"](), runs["NumPy"]():
            for result, expected in zip(results, self.reference.dense_backward(dout, x, weight), strict=True):
                self.agree("dense_backward", result, expected)
        return self.of_peak(runs, 4 * n * n_in * n_out)

    def of_pass(self, runs, scores, one_pass, functions):
        out = np.empty_like(scores)
        runs["pass"] = lambda: one_pass(out)
        for function in functions:
            runs[function.__name__] = lambda function=function: function(scores, out=out)
        added = ["pass", *(function.__name__ for function in functions)]
        return runs, scores.size, "Gscores/s", lambda best: sum(best[run] for run in added)

    def softmax(self, n, k):
        scores, out = self.array(n, k), np.empty((n, k), self.dtype)
        runs = {
            "kernel": lambda: self.core.call_softmax(scores, out),
            "call": lambda: self.fo.softmax(scores),
        }
        runs["kernel"]()
        for result in out, runs["call"]():
            self.agree("softmax", result, self.reference.softmax(scores))
        return self.of_pass(runs, scores, lambda out: np.negative(scores, out=out), [np.exp])

    def loss(self, loss, n, k):
        # msle takes positive numbers, binary cross-entropy targets in 0 .. 1
        scores = np.abs(self.array(n, k))
        labels = self.rng.integers(0, k, n) if loss in LABEL_LOSSES else None
        targets = None if loss in LABEL_LOSSES else self.rng.random((n, k)).astype(self.dtype)
        y = targets if labels is None else labels
        factor, losses, dscores = np.full(n, 1 / n, self.dtype), np.empty(n, self.dtype), np.empty_like(scores)
        public, code = getattr(self.fo, loss), self.core.LOSSES[loss]
        runs = {
            "kernel": lambda: self.core.call_loss(code, scores, labels, targets, factor, losses, dscores),
            "call": lambda: public(scores, y),
        }
        runs["kernel"]()
        value, gradient = getattr(self.reference, loss)(scores, y)
        for result in (losses.mean(), dscores), runs["call"]():
            self.agree(loss, result[0], value)
            self.agree(loss, result[1], gradient)
        if targets is None:
            return self.of_pass(runs, scores, lambda out: np.negative(scores, out=out), LOSSES[loss])
        return self.of_pass(runs, scores, lambda out: np.add(scores, targets, out=out), LOSSES[loss])

    def step(self, rule):
        arrays = RULES[rule]
        grad, start = self.array(N_PARAMETERS), self.array(N_PARAMETERS)
        names = ("lr", "weight_decay") if rule == "sgd" else tuple(NUMBERS)
        options = {name: NUMBERS[name] for name in names}

        def begin():
            return start.copy(), None if rule == "sgd" else np.zeros_like(start)

        def call(module, param, velocity):
            more = () if velocity is None else (velocity,)
            getattr(module, f"{rule}_step")(param, grad, *more, **options)

        kernels, public, expected = begin(), begin(), begin()
        runs = {
            "kernel": lambda: self.core.call_step(self.core.RULES[rule], kernels[0], grad, kernels[1],
                                                  NUMBERS["lr"], NUMBERS["momentum"], NUMBERS["weight_decay"], 0.0),
            "call": lambda: call(self.fo, *public),
        }
        # twice, so that a velocity counts
        for _ in range(2):
            runs["kernel"]()
            runs["call"]()
            call(self.reference, *expected)
        for result in kernels[0], public[0]:
            self.agree(rule, result, expected[0])
        runs["copy"] = lambda: np.add(start, grad, out=start)
        return (runs, arrays * grad.nbytes, "GB/s",
                lambda best: best["copy"] * arrays / RULES["sgd"])

    def update(self, name):
        from fastopt.optim import kernel_settings

        arrays, rule, options = UPDATES[name]
        optimizer = getattr(self.fo, rule)(1e-3, **options)
        grad, start = self.array(N_PARAMETERS), self.array(N_PARAMETERS)
        param, exact = start.copy(), start.astype(np.float64)
        state, settings = optimizer.init(param, decay=True), kernel_settings(optimizer)
        (moments,) = state.moments
        exact_moments = [moment.astype(np.float64) for moment in moments]
        momenta = optimizer.momentum_at(0), optimizer.momentum_at(1)
        for t in range(2):
            total = (t + 1) * 1e-3 * optimizer.l1
            self.core.call_update(settings, t, 1e-3, *momenta, total, 0.0, True, param, grad, moments)
            self.reference._update(optimizer, exact, grad.astype(np.float64), exact_moments, step=t, lr=1e-3,
                                   momenta=momenta, l1_total=total)
        self.agree(name, param, exact)
        runs = {
            "kernel": lambda: self.core.call_update(settings, 2, 1e-3, *momenta, 1e-8, 0.0, True, param, grad, moments),
            "call": lambda: optimizer.update(param, grad, state),
            "copy": lambda: np.add(start, grad, out=start),
        }
        return (runs, arrays * grad.nbytes, "GB/s",
                lambda best: best["copy"] * arrays / RULES["sgd"])

    def network(self, n):
        net = self.fo.MLP([784, 64, 10], dtype=self.dtype.name, seed=0)
        X = self.array(n, 784)
        (w0, w1), (b0, b1) = net.weights, net.biases
        runs = {
            "call": lambda: net.forward(X, n_threads=1),
            "NumPy": lambda: np.maximum(X @ w0.T + b0, 0) @ w1.T + b1,
        }
        self.agree("forward", runs["call"](), runs["NumPy"]())
        return self.of_peak(runs, 2 * n * (784 * 64 + 64 * 10))


def main(argv=None):
    parser = common.parser("benchmarks.kernels", __doc__, only=None)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args(argv)
    print(f"{machine()}; minimum of {options.repeats}\n")
    columns = ("kernel", "call", "NumPy")
    print(f"{'':43}" + "".join(f"{column:>13}" for column in columns) + f"{'rate':>18}{'of bound':>10}")
    with Worker("kernels.Kernels", "float32", threads=1) as single, Worker(
            "kernels.Kernels", "float64", threads=1) as double:
        for name in single("names"):
            if options.only not in name:
                continue
            for dtype, worker in ("float32", single), ("float64", double):
                try:
                    result = worker("measure", name, options.repeats)
                except Failed as error:
                    return f"{name}: {error}"
                times = "".join(f"{duration(result[run]) if run in result else '':>13}" for run in columns)
                print(f"{name if dtype == 'float32' else '':35}{dtype:8}{times}"
                      f"{result['rate']:>8.2f} {result['unit']:9}{result['fraction']:>10.0%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
