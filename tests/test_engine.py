"""The compiled core from within: what it may touch, and corners of the engine that other tests don't reach."""

import dataclasses
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from pages import between

import fastopt as fo
from fastopt import reference
from fastopt._dispatch import core

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
at_end = pytest.mark.parametrize("at_end", [False, True], ids=["begins", "ends"])


def same_between_walls(function, arguments, at_end):
    """The function changes copies of its arguments between guarded pages as it changes the arguments."""
    copies = [between(a, at_end) if isinstance(a, np.ndarray) else a for a in arguments]
    assert function(*arguments) == function(*copies)
    for a, b in zip(arguments, copies, strict=True):
        assert not isinstance(a, np.ndarray) or a.tobytes() == b.tobytes()


def numbers(dtype, *shape):
    return np.random.default_rng(list(repr(shape).encode())).standard_normal(shape).astype(dtype)


@dtypes
@at_end
@pytest.mark.parametrize("k", [1, 2, 3, 9, 16, 17, 33])
@pytest.mark.parametrize("loss", core("float32").LOSSES)
def test_losses_touch_nothing_else(loss, k, at_end, dtype):
    classifies = loss in ("softmax_cross_entropy", "hinge", "squared_hinge")
    for n, weighted in product((1, 3, 8, 16, 19, 33), (False, True)):
        y = np.arange(n) % k if k > 1 or loss == "softmax_cross_entropy" else np.arange(n) % 2 * 2 - 1
        arguments = [core(dtype).LOSSES[loss], np.abs(numbers(dtype, n, k)), y if classifies else None,
                     None if classifies else np.abs(numbers(dtype, k, n).T.copy()),
                     np.full(n, 0.5, dtype) if weighted else None, np.empty(n, dtype), np.empty((n, k), dtype), 0.5]
        same_between_walls(core(dtype).call_loss, arguments, at_end)
        same_between_walls(core(dtype).call_softmax, [arguments[1], np.empty((n, k), dtype)], at_end)


@dtypes
@at_end
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 5), (1, 130, 19), (3, 5, 7), (7, 16, 32), (33, 129, 9),
                                   (130, 31, 33)], ids=str)
def test_dense_layers_touch_nothing_else(shape, n_threads, at_end, dtype):
    n, n_in, n_out = shape
    x, weight, bias = numbers(dtype, n, n_in), numbers(dtype, n_out, n_in), numbers(dtype, n_out)
    for activation, b in product(range(4), (None, bias)):
        out, alone = np.full((2, n, n_out), np.nan, dtype)
        same_between_walls(core(dtype).call_dense_forward, [x, weight, b, out, activation, n_threads], at_end)
        core(dtype).call_dense_forward(x, weight, b, alone, activation, 1)
        assert np.isfinite(out).all() and out.tobytes() == alone.tobytes()
    for add, dx in product((False, True), (None, np.empty((n, n_in), dtype))):
        arguments = [numbers(dtype, n, n_out), x, weight, dx, np.ones((n_out, n_in), dtype), np.ones(n_out, dtype)]
        same_between_walls(core(dtype).call_dense_backward, [*arguments, add, n_threads], at_end)


@dtypes
@at_end
def test_vectors_touch_nothing_else(at_end, dtype):
    c = core(dtype)
    for n in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 70):
        a, b = numbers(dtype, n), numbers(dtype, n, 1)[:, 0].copy()
        for rule, velocity in (("sgd", None), ("momentum", b), ("nesterov", b)):
            for l1 in (0.0, 0.1):
                kept = None if velocity is None else velocity.copy()
                same_between_walls(c.call_step, [c.RULES[rule], a.copy(), b, kept, 0.1, 0.9, 0.01, l1], at_end)
        for activation in range(4):
            same_between_walls(c.call_activation_backward, [activation, a, b, np.empty(n, dtype)], at_end)
        for weight in (None, b):
            same_between_walls(c.call_weighted_sum, [a, weight], at_end)
        same_between_walls(c.call_all_finite, [a], at_end)
        same_between_walls(c.call_penalty, [a], at_end)


@dtypes
@at_end
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("sizes", [[1, 1], [3, 2], [2, 70, 3], [17, 5, 3], [40, 19, 33]], ids=str)
def test_training_touches_nothing_else(sizes, n_threads, at_end, dtype):
    """Rows are read where they lie; also a row's last values, and the last row's."""
    X, y, targets = numbers(dtype, 37, sizes[0]), np.arange(37) % max(2, sizes[-1]), numbers(dtype, 37, sizes[-1])
    weights = np.linspace(0, 1, 37)
    trained = []
    for keep in (lambda a: a, lambda a: between(a, at_end)):
        net = fo.MLP(sizes, dtype=dtype, seed=0)
        for loss, labels in (("mse", targets), ("hinge", y if sizes[-1] > 1 else y * 2 - 1)):
            trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.01, momentum=0.5), batch_size=10, seed=0,
                                 n_threads=n_threads)
            trainer.fit(keep(X), keep(labels), epochs=2, sample_weight=keep(weights.astype(dtype)))
        trained.append(net.flat.tobytes() + net.forward(keep(X)).tobytes())
    assert trained[0] == trained[1]


HELPERS = """
import os
import numpy as np
import fastopt as fo
from fastopt import reference
from fastopt import boundary

boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
X = np.random.default_rng(0).standard_normal((4000, 20)).astype("float32")
net = fo.MLP([20, 8, 3], seed=0)

def threads():
    return os.listdir("/proc/self/task")

def switches(thread):
    with open(f"/proc/self/task/{thread}/status") as status:
        return [line for line in status if "ctxt_switches" in line]

before = threads()
for n_threads in (1, 2, 1, 5, 3):
    net.forward(X, n_threads=n_threads)
    print(len(threads()) - len(before))
# each wakes for a job that wants it, sooner or later
asleep = {thread: switches(thread) for thread in threads() if thread not in before}
for _ in range(10_000):
    net.forward(X, n_threads=5)
    asleep = {thread: seen for thread, seen in asleep.items() if switches(thread) == seen}
    if not asleep:
        break
print(len(asleep))
"""


def test_helpers_are_started_once_and_wake_for_a_job():
    """Results don't need them: alone the caller computes the same."""
    child = subprocess.run([sys.executable, "-P", "-c", HELPERS], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["0", "1", "1", "4", "4", "0"]


@pytest.mark.parametrize("clip_norm", [None, 0.2], ids=["", "clip_norm"])
@pytest.mark.parametrize("sizes", [[5, 9, 140], [6, 5, 150, 4], [140, 3]], ids=str)
@pytest.mark.parametrize("optimizer", [fo.SGD(0.05), fo.SGD(0.05, momentum=0.9), fo.AdaGrad(0.05), fo.RMSProp(0.01),
                                       fo.RMSProp(0.01, momentum=0.9), fo.AdaDelta(0.5, eps=0.01), fo.Adam(0.01)],
                         ids=lambda optimizer: optimizer.rule)
def test_blocks_of_outputs_inputs_and_rows_as_the_reference(optimizer, sizes, clip_norm):
    """More than 128 of each: the sums go on from block to block."""
    X, y = numbers("float64", 300, sizes[0]), np.arange(300) % sizes[-1]
    runs = []
    for impl in (fo, reference):
        net = fo.MLP(sizes, "tanh", dtype="float64", seed=1)
        trainer = impl.Trainer(net, loss="softmax_cross_entropy", batch_size=140, seed=2,
                               optimizer=dataclasses.replace(optimizer, clip_norm=clip_norm))
        history = trainer.fit(X, y, epochs=2)
        runs.append((trainer.net.flat, history.loss))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-11)


@pytest.mark.parametrize("kind", "?bBhHiIlLqQefd")
def test_rows_of_any_kind(kind):
    """Also where two kinds are of one size, and below 0."""
    least = 0 if kind in "?BHILQ" else -3
    X = np.arange(least, least + 12).reshape(4, 3).astype(kind)
    net = fo.MLP([3, 1], "relu", lambda shape, rng: np.ones(shape), dtype="float64")
    assert net.forward(X)[:, 0].tolist() == X.astype(float).sum(axis=1).tolist()
    assert net.forward(X[::-1, ::-1])[:, 0].tolist() == X[::-1].astype(float).sum(axis=1).tolist()


@pytest.mark.parametrize("width", [1, 17, 100_000])
def test_a_value_not_finite_is_found_in_a_row_of_any_width(width):
    net, X = fo.MLP([width, 1], seed=0), np.zeros((3, width))
    X[2, -1] = np.inf
    with pytest.raises(ValueError, match=rf"X\[2, {width - 1}\] is inf"):
        net.forward(X)


@dtypes
@pytest.mark.parametrize("k", [1, 2, 9, 16, 17, 35])
@pytest.mark.parametrize("loss", core("float32").LOSSES)
def test_a_score_not_finite_makes_its_samples_loss_nan(loss, k, dtype):
    """The trainer sees it by that, also where the loss of an infinite score would be finite."""
    classifies = loss in ("softmax_cross_entropy", "hinge", "squared_hinge")
    y = np.full(2 * k, 0 if k > 1 or loss == "softmax_cross_entropy" else 1)
    for bad in (np.inf, -np.inf, np.nan):
        scores = np.abs(numbers(dtype, 2 * k, k))
        scores[np.arange(k), np.arange(k)] = bad
        losses, dscores, targets = np.empty(2 * k, dtype), np.empty_like(scores), np.zeros_like(scores)
        core(dtype).call_loss(core(dtype).LOSSES[loss], scores, y if classifies else None,
                              None if classifies else targets, None, losses, dscores, 0.5)
        assert np.isnan(losses).tolist() == [True] * k + [False] * k
        if k > 1:
            core(dtype).call_softmax(scores, dscores)
            assert np.isnan(dscores).tolist() == [[True] * k] * k + [[False] * k] * k


@pytest.mark.parametrize("n", [1, 5, 300])
def test_a_score_that_overflows_is_found_in_any_row(n):
    X = np.zeros((n, 2), np.float32)
    X[-1] = 1e30
    net = fo.MLP([2, 3], "relu", lambda shape, rng: np.full(shape, 1e30), seed=0)
    with pytest.raises(OverflowError, match=f"scores of row {n - 1} "):
        net.forward(X)


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "hinge"])
def test_a_batch_of_small_weights_or_of_none(loss, weight):
    """The mean is over the weights, whatever their sum; a batch without weight changes nothing."""
    X, y = numbers("float64", 20, 3), np.arange(20) % 4
    trained = []
    for rows, weights in ((20, np.repeat([weight, 1.0], 10)), (20 if weight else 10, np.ones(20))):
        net = fo.MLP([3, 4], dtype="float64", seed=0)
        trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.1), batch_size=10, shuffle=False)
        trainer.fit(X[-rows:], y[-rows:], epochs=1, sample_weight=weights[-rows:])
        trained.append(net.flat)
    np.testing.assert_allclose(*trained, rtol=1e-13)


@pytest.mark.parametrize("column", [0, 20, 39])
@pytest.mark.parametrize(("optimizer", "value"), [(fo.SGD(1e10), 1e30), (fo.AdaGrad(0.1), 1e25), (fo.Adam(0.1), 1e25)],
                         ids=["a weight", "its squares", "its second moment"])
def test_what_overflows_in_an_epochs_last_step_is_found_anywhere(optimizer, value, column):
    """The loss was finite, and the parameters of the other inputs are."""
    net, X = fo.MLP([40, 8], "relu", lambda shape, rng: np.zeros(shape), seed=0), np.zeros((4, 40), np.float32)
    X[:, column] = value
    with pytest.raises(fo.DivergenceError, match="at the epoch's end the parameters"):
        fo.Trainer(net, loss="softmax_cross_entropy", optimizer=optimizer).fit(X, np.zeros(4, int), epochs=1)
    assert (net.flat == 0).all()


@pytest.mark.parametrize("output", [0, 4, 7])
@pytest.mark.parametrize("optimizer", [fo.AdaGrad(0.1), fo.Adam(0.1)])
def test_what_overflows_beside_a_bias_is_found(optimizer, output):
    """The square of its gradient: the bias itself and all of the weights stay finite."""

    def loss(scores, y):
        return 1.0, np.where(np.arange(8) == output, np.float32(1e25), np.zeros_like(scores))

    net = fo.MLP([5, 8], seed=0)
    before = net.flat.copy()
    with pytest.raises(fo.DivergenceError, match="or what the optimizer keeps of them, are not finite"):
        fo.Trainer(net, loss=loss, optimizer=optimizer).fit(np.zeros((4, 5)), np.zeros(4), epochs=1)
    assert (net.flat == before).all()
