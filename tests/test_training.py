"""Whole trainings: against the reference, however they are cut into pieces, and when they fail."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pickle
import re
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fastopt as fo
from fastopt import reference

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
LABELLED = ["softmax_cross_entropy", "hinge", "squared_hinge"]
LOSSES = [*LABELLED, "binary_cross_entropy", "mse", "mae", "msle", "huber"]
losses = pytest.mark.parametrize("loss", LOSSES)
RULES = {
    "sgd": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}
rules = pytest.mark.parametrize("rule", RULES)


def pseudo_huber(scores, y):
    """A loss of one's own: the mean over samples of Σ_j √(1 + d²) − 1, d = s − y."""
    d = scores - np.reshape(y, scores.shape)
    root = np.sqrt(1.0 + d * d)
    return float(np.mean(np.sum(root - 1.0, axis=1))), d / root / len(d)


def targets(loss, rng, n, n_outputs):
    if loss in LABELLED:
        return rng.choice([-1, 1], n) if n_outputs == 1 else rng.integers(0, n_outputs, n)
    return rng.random((n, n_outputs))


def problem(loss, sizes, n=50, dtype="float64", **options):
    """Samples and a network with biases; for msle its predictions start well above −1."""
    rng = np.random.default_rng(0)
    net = fo.MLP(sizes, dtype=dtype, **{"seed": 1, **options})
    for bias in net.biases:
        bias[...] = rng.uniform(-0.1, 0.1, bias.shape)
    if loss == "msle":
        net.biases[-1][...] += 4.0
    return rng.standard_normal((n, sizes[0])).astype(dtype), targets(loss, rng, n, sizes[-1]), net


def state(trainer):
    """All that a user sees of a training, as bytes; velocity and generators show in what follows."""
    history = trainer.history
    columns = [np.array(column).tobytes() for column in (history.loss, history.val_loss, history.lr)]
    return trainer.net.flat.tobytes(), trainer.epoch, *columns


# -------------------------------------------------------------------------------------- against the reference

SCHEDULES = {  # of the learning rate; None is a constant
    "constant": None,
    "falling": lambda step: 1 / (1 + 0.1 * step),
    "with pauses": lambda step: float(step % 3),
}
WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33])
CONFIGURATIONS = st.fixed_dictionaries(
    {
        "loss": st.sampled_from([*LOSSES, pseudo_huber]),
        "widths": st.lists(WIDTHS, min_size=2, max_size=5),
        "activation": st.sampled_from(["relu", "sigmoid", "tanh", None]),
        "dropout": st.sampled_from([0.0, 0.0, 0.1, 0.5]),
        "n": st.integers(1, 70) | st.sampled_from([96, 129, 200]),
        "batch_size": st.sampled_from([1, 2, 3, 7, 8, 16, 17, 31, 32, 33, 64, 97, 128]),
        "shuffle": st.booleans(),
        "sample_weight": st.sampled_from([None, "random", "zero batches"]),
        "rule": st.sampled_from(list(RULES)),
        "schedule": st.sampled_from(list(SCHEDULES)),
        "penalties": st.fixed_dictionaries(
            {},
            optional={
                "weight_decay": st.sampled_from([0.01, 0.1]),
                "l1": st.sampled_from([1e-3, 0.05]),
                "l2": st.sampled_from([1e-3, 0.05]),
                "decay_bias": st.sampled_from([None, False, True]),
            },
        ),
        "validation": st.sampled_from([None, "plain", "weighted"]),
        "early_stopping": st.none() | st.tuples(st.sampled_from(["loss", "val_loss"]), st.integers(1, 4)),
        "target_loss": st.none() | st.sampled_from([0.3, 1.0]),
        "n_threads": st.sampled_from([1, 2, 5, None]),
        "seed": st.integers(0, 2**64 - 1),
    }
)
STEPS = 20


def sample_weights(kind, n, batch_size):
    if kind is None:
        return None
    weight = np.random.default_rng(3).random(n)
    return weight if kind == "random" else weight * (np.arange(n) // batch_size % 2 == 0)


def train(impl, net, c, data):
    X, y, w, validation = data
    schedule = SCHEDULES[c["schedule"]]
    # a margin loss sums over the outputs; large steps would have rounding grow from one to the next
    highest = 0.02 / (net.sizes[-1] if c["loss"] in ("hinge", "squared_hinge") else 1)
    lr = highest if schedule is None else lambda step: highest * schedule(step)
    optimizer = fo.SGD(lr, **RULES[c["rule"]], **c["penalties"])
    trainer = impl.Trainer(
        net,
        loss=c["loss"],
        optimizer=optimizer,
        batch_size=c["batch_size"],
        shuffle=c["shuffle"],
        seed=c["seed"],
        n_threads=c["n_threads"],
    )
    early_stopping = None
    if c["early_stopping"] and (validation or c["early_stopping"][0] == "loss"):
        # below min_delta an improvement could be one of rounding, which is each side's own
        early_stopping = fo.EarlyStopping(*c["early_stopping"], min_delta=1e-6)
    try:
        trainer.fit(
            X,
            y,
            epochs=math.ceil(STEPS / math.ceil(c["n"] / c["batch_size"])),
            sample_weight=w,
            validation_data=validation,
            early_stopping=early_stopping,
            target_loss=c["target_loss"],
        )
    except ArithmeticError as error:  # msle: a prediction of −1 or less
        return trainer, re.search(r"epoch \d+, batch \d+", str(error))[0]
    return trainer, None


def is_well_conditioned(expected, failure, net, c, data):
    """Whether a rounding of each first parameter stays below a hundredth of what the comparison allows: in a training
    that explodes it grows with the steps, and says how far two correct implementations may be from each other."""
    rounded = net.copy()
    rounded.flat[...] *= 1 + np.random.default_rng(4).choice([-1, 1], net.flat.size) * 2.0**-52
    moved, where = train(reference, rounded, c, data)
    if (where, moved.epoch) != (failure, expected.epoch):
        return False
    scale = max(1.0, np.abs(expected.net.flat).max())
    return np.allclose(moved.net.flat, expected.net.flat, rtol=1e-12, atol=1e-12 * scale) and all(
        np.allclose(getattr(moved.history, c), getattr(expected.history, c), rtol=1e-12, atol=1e-14, equal_nan=True)
        for c in ("loss", "val_loss")
    )


@given(CONFIGURATIONS)
def test_twenty_steps_are_the_references(c):
    c["batch_size"] = max(c["batch_size"], math.ceil(c["n"] / STEPS))
    sizes = c["widths"]
    if c["loss"] == "softmax_cross_entropy":
        sizes = [*sizes[:-1], max(sizes[-1], 2)]
    weighted = None if callable(c["loss"]) else c["sample_weight"]
    X, y, net = problem(
        c["loss"], sizes, c["n"] + 9, activation=c["activation"], dropout=c["dropout"], seed=c["seed"]
    )
    seen, held_out = slice(c["n"]), slice(c["n"], None)
    validation = None
    if c["validation"]:
        weight = [sample_weights("random", 9, 1)] if c["validation"] == "weighted" and weighted else []
        validation = (X[held_out], y[held_out], *weight)
    data = X[seen], y[seen], sample_weights(weighted, c["n"], c["batch_size"]), validation
    expected, failure = train(reference, net, c, data)
    assume(is_well_conditioned(expected, failure, net, c, data))
    trained, got = train(fo, net, c, data)
    assert got == failure
    assert trained.epoch == expected.epoch
    # the bound that 20 steps of float64 rounding may reach
    scale = max(1.0, np.abs(expected.net.flat).max())
    np.testing.assert_allclose(trained.net.flat, expected.net.flat, rtol=1e-10, atol=1e-10 * scale)
    for column in ("loss", "val_loss"):
        values = getattr(expected.history, column)
        np.testing.assert_allclose(getattr(trained.history, column), values, rtol=1e-10, atol=1e-12)
    assert trained.history.lr == expected.history.lr


@losses
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_float32_follows_the_reference(loss, activation):
    X, y, net = problem(loss, [5, 33, 9, 3], 90, "float32", activation=activation, dropout=0.1)
    options = {"loss": loss, "optimizer": fo.SGD(0.02, **RULES["nesterov"]), "batch_size": 32, "seed": 2}
    expected = reference.Trainer(net, **options)
    expected.fit(X, y, epochs=7)
    trained = fo.Trainer(net, **options)
    history = trained.fit(X, y, epochs=7)
    # 21 steps with a velocity that adds up ten of them, each of some 1e2 roundings of 6e-8
    np.testing.assert_allclose(trained.net.flat, expected.net.flat, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(history.loss, expected.history.loss, rtol=1e-5)


@pytest.mark.parametrize(("row", "unit"), [(0, 0), (0, 8), (3, 1), (6, 8)])
@pytest.mark.parametrize("above", [0, 1])
def test_dropout_keeps_a_draw_at_the_threshold(row, unit, above):
    """The probability is set to that draw of the first step, which is kept, or to the next one, which drops it."""
    key = reference._stream(5, 2, 0, 0)
    dropout = ((reference._bits(key, row * 9 + unit) >> 40) + above) / 2**24
    X, y, net = problem("mse", [3, 9, 2], 7, dropout=dropout, activation="sigmoid")
    options = {"loss": "mse", "optimizer": fo.SGD(0.1), "batch_size": 7, "seed": 5}
    expected, trained = reference.Trainer(net, **options), fo.Trainer(net, **options)
    expected.fit(X, y, epochs=1)
    trained.fit(X, y, epochs=1)
    # one float64 step
    np.testing.assert_allclose(trained.net.flat, expected.net.flat, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------- a loss of one's own


@dtypes
@losses
@pytest.mark.parametrize("n_outputs", [1, 5])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_python_loss_that_calls_the_kernel_gives_the_same_bits(dtype, loss, n_outputs, n_threads):
    if loss == "softmax_cross_entropy":
        n_outputs += 1
    trainers = []
    for candidate in (loss, lambda scores, y: getattr(fo, loss)(scores, y)):
        X, y, net = problem(loss, [4, 17, n_outputs], 50, dtype, activation="tanh", dropout=0.3)
        optimizer = fo.SGD(0.05, **RULES["nesterov"], l1=1e-3)
        trainer = fo.Trainer(
            net, loss=candidate, optimizer=optimizer, batch_size=16, seed=4, n_threads=n_threads
        )
        trainer.fit(X, y, epochs=4, validation_data=(X[:9], y[:9]))
        trainers.append(trainer)
    named, own = trainers
    assert np.array_equal(named.net.flat, own.net.flat)
    # a batch's sum of losses is its mean times its size: rounded once more
    np.testing.assert_allclose(own.history.loss, named.history.loss, rtol=1e-14)
    np.testing.assert_allclose(own.history.val_loss, named.history.val_loss, rtol=1e-14)


def test_a_python_loss_gets_scores_of_its_own():
    """What it does to its arguments, or to its answer afterwards, changes nothing."""
    X, y, net = problem("mse", [3, 8, 2])
    kept = []

    def scribble(scores, y):
        for old in kept:
            old[...] = np.nan
        value, dscores = fo.mse(scores, y)
        kept[:] = scores, dscores, y
        return value, dscores

    options = {"optimizer": fo.SGD(0.1, momentum=0.9), "batch_size": 8, "seed": 0}
    untouched = fo.Trainer(net.copy(), loss="mse", **options)
    untouched.fit(X, y, epochs=3)
    scribbled = fo.Trainer(net.copy(), loss=scribble, **options)
    scribbled.fit(X, y, epochs=3, validation_data=(X, y))
    assert np.array_equal(scribbled.net.flat, untouched.net.flat)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda scores: None, TypeError, r"\(value, dscores\)"),
        (lambda scores: 1.0, TypeError, r"\(value, dscores\)"),
        (lambda scores: (np.zeros(2), scores), ValueError, "one number"),
        (lambda scores: (1.0, scores[:, :1]), ValueError, r"dscores.*\(\d+, 2\)"),
        (lambda scores: (1.0, scores.T), ValueError, "dscores"),
        (lambda scores: (1.0, [["a", "b"]] * len(scores)), TypeError, "dscores"),
        (lambda scores: (math.nan, scores), fo.DivergenceError, "epoch 0, batch 1"),
        (lambda scores: (math.inf, scores), fo.DivergenceError, "epoch 0, batch 1"),
        (lambda scores: (1.0, scores * math.nan), fo.DivergenceError, "epoch 0, batch 1"),
    ],
)
def test_what_a_python_loss_may_answer(answer, error, message):
    """The second batch's answer ends the fit, and nothing of the first one's step is left."""
    X, y, net = problem("mse", [3, 2], 20)
    calls = itertools.count()
    loss = lambda scores, y: fo.mse(scores, y) if next(calls) < 1 else answer(scores)  # noqa: E731
    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.1), batch_size=8, seed=0)
    before = state(trainer)
    with pytest.raises(error, match=message):
        trainer.fit(X, y, epochs=1)
    assert state(trainer) == before


# ------------------------------------------------------------------------------------- stopping and callbacks


def staircase(validation_losses):
    """A loss of 1 that moves the only weight by 1 an epoch, and validation losses read off a list.

    x = 1 and the gradient −1 take the score from k to k + 1; the validation set has two samples.
    """

    def loss(scores, y):
        value = 1.0 if len(scores) == 1 else validation_losses[round(float(scores[0, 0])) - 1]
        return value, np.full_like(scores, -1.0)

    net = fo.MLP([1, 1], init="zeros", dtype="float64")
    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.5), batch_size=1, shuffle=False)
    return trainer, functools.partial(
        trainer.fit, np.ones((1, 1)), np.zeros(1), validation_data=(np.ones((2, 1)), np.zeros(2))
    )


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "epochs_done", "best"),
    [
        pytest.param([5, 4, 3, 2, 1], 1, 0.0, 5, 5, id="always better"),
        pytest.param([3, 2, 2, 2, 1], 2, 0.0, 4, 2, id="equal is not better"),
        pytest.param([3, 2, 2.5, 1, 1.5], 2, 0.0, 5, 4, id="better in time"),
        pytest.param([4, 3.5, 3, 2.5, 2], 3, 1.0, 5, 4, id="small steps add up above min_delta"),
        pytest.param([4, 3, 2, 1, 0], 1, 1.0, 2, 1, id="min_delta must be exceeded"),
        pytest.param([NAN, NAN, NAN, 1, 1], 3, 0.0, 3, None, id="nan from the start"),
        pytest.param([2, NAN, NAN, 1, 1], 2, 0.0, 3, 1, id="nan is no progress"),
        pytest.param([2, NAN, 1, NAN, 3], 2, 0.0, 5, 3, id="nan does not become the best"),
        pytest.param([INF, INF, 5, 6, 7], 2, 0.0, 2, None, id="inf is no progress"),
    ],
)
@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping(values, patience, min_delta, epochs_done, best, restore_best):
    trainer, fit = staircase(values)
    rule = fo.EarlyStopping(patience=patience, min_delta=min_delta, restore_best=restore_best)
    history = fit(epochs=5, early_stopping=rule)
    assert trainer.epoch == len(history.loss) == epochs_done
    recorded = [INF if math.isnan(value) else value for value in values]  # nan is an epoch without validation
    assert history.val_loss == recorded[:epochs_done]
    shown = best if restore_best and best else epochs_done
    assert trainer.net.weights[0][0, 0] == shown / 2


def test_patience_starts_again_after_it_has_ended_a_fit():
    """The best is remembered: epoch 1 is shown until epoch 7 is better."""
    trainer, fit = staircase([3.0, 4.0, 4.0, 3.5, 3.5, 5.0, 2.0, 3.0])
    rule = fo.EarlyStopping(patience=2)
    for epoch, best in ((3, 1), (5, 1), (8, 7)):
        fit(epochs=3, early_stopping=rule)
        assert trainer.epoch == epoch
        assert trainer.net.weights[0][0, 0] == best / 2


def test_training_goes_on_from_the_last_epoch_not_from_the_best():
    """Also without the rule; but from what was written into the network, if it was."""
    trainer, fit = staircase([3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    fit(epochs=3, early_stopping=fo.EarlyStopping())
    assert trainer.net.weights[0][0, 0] == 1 / 2
    fit(epochs=1)
    assert trainer.net.weights[0][0, 0] == 4 / 2
    fit(epochs=1, early_stopping=fo.EarlyStopping(patience=3))
    trainer.net.weights[0][0, 0] = -1.0
    fit(epochs=1)
    assert trainer.net.weights[0][0, 0] == -1 / 2


@pytest.mark.parametrize(
    ("options", "epochs_done"),
    [
        ({"epochs": 0}, 0),
        ({"epochs": 4}, 4),
        ({"epochs": 9, "target_loss": 1.0}, 9),  # equal is not below
        ({"epochs": 9, "target_loss": 1.5}, 1),
        ({"epochs": 9, "callbacks": [lambda trainer: None]}, 9),
        ({"epochs": 9, "callbacks": [lambda trainer: True if trainer.epoch == 3 else None]}, 3),
        ({"epochs": 9, "callbacks": lambda trainer: True if trainer.epoch == 3 else None}, 3),
        ({"epochs": 9, "callbacks": [lambda trainer: True, lambda trainer: None]}, 1),
        ({"epochs": 9, "callbacks": [lambda trainer: trainer.stop() if trainer.epoch == 5 else None]}, 5),
        ({"epochs": 9, "early_stopping": fo.EarlyStopping("loss", patience=2)}, 3),
        ({"epochs": 9, "early_stopping": fo.EarlyStopping("loss", patience=8)}, 9),
    ],
)
def test_what_ends_a_fit(options, epochs_done):
    trainer, fit = staircase([3.0] * 9)
    history = fit(**options)
    assert history is trainer.history
    assert trainer.epoch == epochs_done
    assert [len(getattr(history, name)) for name in ("loss", "val_loss", "lr", "seconds")] == [
        epochs_done
    ] * 4


def test_every_callback_is_called_after_every_epoch():
    """The first one's answer does not keep the others from seeing the epoch, its losses and its weights."""
    trainer, fit = staircase([5.0, 4.0, 3.0])
    seen = []

    def see(name):
        def callback(trainer):
            history = trainer.history
            seen.append((name, trainer.epoch, history.val_loss[-1], trainer.net.weights[0][0, 0]))
            return True if name == "a" and trainer.epoch == 2 else None

        return callback

    fit(epochs=3, callbacks=[see("a"), see("b")])
    assert seen == [(name, k, 6.0 - k, k / 2) for k in (1, 2) for name in "ab"]


def test_history_has_one_entry_an_epoch():
    X, y, net = problem("mse", [3, 2], 20)
    optimizer = fo.SGD(lambda step: 0.1 / (1 + step))
    trainer = fo.Trainer(net, loss="mse", optimizer=optimizer, batch_size=8, seed=0)
    first = trainer.fit(X, y, epochs=2, validation_data=(X, y))
    second = trainer.fit(X, y, epochs=1)
    assert first is second is trainer.history
    assert second.lr == [0.1 / (1 + step) for step in (2, 5, 8)]  # of the last of three batches
    assert [math.isnan(value) for value in second.val_loss] == [False, False, True]
    assert all(seconds >= 0 for seconds in second.seconds)
    assert "3 epochs" in repr(second)


class Odd(Exception):
    """Raised by a callback."""


def fit_again(trainer):
    trainer.fit(np.ones((1, 1)), np.zeros(1), epochs=1)


def fail(trainer):
    raise Odd


def stop(trainer):
    trainer.stop()


def ctrl_c(trainer):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        pytest.param(fail, Odd, id="raises"),
        pytest.param(fit_again, RuntimeError, id="fits again"),
        pytest.param(ctrl_c, KeyboardInterrupt, id="Ctrl-C"),
        *(
            pytest.param(lambda t, a=answer: a, TypeError, id=repr(answer))
            for answer in (1, False, "stop", 0.0)
        ),
    ],
)
@pytest.mark.parametrize("restore_best", [None, False, True])
def test_a_callback_that_fails(callback, error, restore_best):
    """The error comes out, the trainer is as at the epoch's end, and going on gives the unbroken run."""
    values = [5.0, 3.0, 4.0, 4.0, 4.0]
    options = {}
    if restore_best is not None:
        options["early_stopping"] = fo.EarlyStopping(patience=2, restore_best=restore_best)
    trainer, fit = staircase(values)
    with pytest.raises(error):
        fit(epochs=5, callbacks=[lambda t: callback(t) if t.epoch == 3 else None], **options)
    assert trainer.epoch == len(trainer.history.loss) == 3
    assert trainer.history.val_loss == values[:3]
    assert trainer.net.weights[0][0, 0] == (2 / 2 if restore_best else 3 / 2)
    unbroken, fit_unbroken = staircase(values)
    fit_unbroken(epochs=5, **options)
    fit(epochs=2, **options)
    assert state(trainer) == state(unbroken)


def test_a_trainer_that_nobody_holds():
    """The fit keeps what it needs, though the callback drops the last reference."""
    X, y, net = problem("mse", [3, 2], 20)
    held = [fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1), seed=0)]
    history = held[0].fit(X, y, epochs=3, callbacks=[lambda trainer: held.clear()])
    assert not held and len(history.loss) == 3


# --------------------------------------------------------------------------- the same bits, however it is cut

EPOCHS = 8


def schedule(step):
    return 0.05 / (1 + 0.1 * step)


NESTEROV_L1 = fo.SGD(0.05, **RULES["nesterov"], l1=0.01)
# name -> loss, optimizer, dropout, whether the samples are shuffled and weighted, the early stopping rule
RUNS = {
    "sgd": ("hinge", fo.SGD(0.05), 0.0, True, False, None),
    "in order": ("mse", fo.SGD(0.05, l2=0.01, decay_bias=True), 0.0, False, False, None),
    "momentum, dropout": ("mae", fo.SGD(0.05, momentum=0.8, weight_decay=0.1), 0.4, True, True, None),
    "nesterov, l1": ("softmax_cross_entropy", NESTEROV_L1, 0.2, True, False, None),
    "schedule": ("squared_hinge", fo.SGD(schedule, momentum=0.8), 0.2, True, True, None),
    "own loss": (pseudo_huber, fo.SGD(schedule, **RULES["nesterov"], l1=0.01), 0.2, True, False, None),
    "early stopping": ("mse", NESTEROV_L1, 0.2, True, False, fo.EarlyStopping(patience=5)),
    "own loss, early stopping": (pseudo_huber, NESTEROV_L1, 0.0, True, False, fo.EarlyStopping(patience=5)),
}
runs = pytest.mark.parametrize("run", RUNS)


def start(run, n=50, batch_size=8, dtype="float32", patience=5, n_threads=None):
    """A trainer and its fit. Validation targets are far below the others, so that val_loss soon rises."""
    loss, optimizer, dropout, shuffle, weighted, rule = RUNS[run]
    X, y, net = problem(loss, [5, 9, 4, 3], n, dtype, activation="tanh", dropout=dropout)
    options = {"batch_size": batch_size, "shuffle": shuffle, "seed": 7, "n_threads": n_threads}
    trainer = fo.Trainer(net, loss=loss, optimizer=optimizer, **options)
    weight = sample_weights("random", n, batch_size) if weighted else None
    validation = None
    if rule is not None:
        rule, validation = dataclasses.replace(rule, patience=patience), (X[:20], y[:20] - 9.0)
    return trainer, functools.partial(
        trainer.fit, X, y, sample_weight=weight, validation_data=validation, early_stopping=rule
    )


@functools.cache
def unbroken(run, epochs=EPOCHS, **options):
    trainer, fit = start(run, **options)
    fit(epochs=epochs)
    return state(trainer)


def last_epoch(run):
    return unbroken(run)[1]


@pytest.mark.parametrize("run", [run for run in RUNS if "early" in run])
def test_the_early_stopping_runs_stop_early_and_restore(run):
    """What the tests below rely on: the best epoch is one of the first two, and patience ends the run."""
    best = last_epoch(run) - 5
    assert best in (1, 2)
    trainer, fit = start(run)
    fit(epochs=best)
    assert trainer.net.flat.tobytes() == unbroken(run)[0]


def at_epoch_3(action):
    return lambda trainer: action(trainer) if trainer.epoch == 3 else None


def stop_from_a_thread(trainer):
    thread = threading.Thread(target=trainer.stop)
    thread.start()
    thread.join()


CUTS = {
    "fit after fit": [{"epochs": 1}] * 4,
    "a fit of no epochs": [{"epochs": 0}, {"epochs": 2}, {"epochs": 0}],
    "a callback's True": [{"epochs": EPOCHS, "callbacks": [at_epoch_3(lambda trainer: True)]}],
    "stop() in a callback": [{"epochs": EPOCHS, "callbacks": [at_epoch_3(lambda trainer: trainer.stop())]}],
    "stop() in a thread": [{"epochs": EPOCHS, "callbacks": [at_epoch_3(stop_from_a_thread)]}],
    "a callback's error": [{"epochs": EPOCHS, "callbacks": [at_epoch_3(fail)]}],
    "a target": [{"epochs": EPOCHS, "target_loss": 1e9}] * 3,
}


@runs
@pytest.mark.parametrize("cut", CUTS)
@dtypes
def test_cut_between_epochs(run, cut, dtype):
    trainer, fit = start(run, dtype=dtype)
    for options in CUTS[cut]:
        try:
            fit(**options)
        except Odd:
            pass
    assert 0 < trainer.epoch < 5
    fit(epochs=EPOCHS - trainer.epoch)
    assert state(trainer) == unbroken(run, dtype=dtype)


actions = pytest.mark.parametrize("action", [stop, ctrl_c])
N_BATCHES = 7


def acting(function, action, at, holder):
    """`function` that acts on the held trainer in its call number `at`."""
    calls = itertools.count()

    def wrapped(*arguments):
        if next(calls) == at:
            action(holder[0])
        return function(*arguments)

    return wrapped


@actions
@pytest.mark.parametrize("where", ["loss", "lr"])
@pytest.mark.parametrize("at", [0, 1, 5, 6, 7, 12, 13, 3 * N_BATCHES - 1])
def test_cut_in_a_callable(where, action, at):
    """The running batch may end or be dropped; none is left out or taken twice."""
    X, y, net = problem("mse", [5, 9, 3], 50, dropout=0.2)
    plain, trainers, holder = {"loss": pseudo_huber, "lr": schedule}, [], []
    for callables in (plain, plain | {where: acting(plain[where], action, at, holder)}):
        optimizer = fo.SGD(callables["lr"], **RULES["nesterov"], l1=0.01)
        trainer = fo.Trainer(net.copy(), loss=callables["loss"], optimizer=optimizer, batch_size=8, seed=7)
        trainers.append(trainer)
    whole, cut = trainers
    whole.fit(X, y, epochs=3)
    holder.append(cut)
    with pytest.raises(KeyboardInterrupt) if action is ctrl_c else contextlib.nullcontext():
        cut.fit(X, y, epochs=3)
    assert cut.epoch == len(cut.history.loss) == at // N_BATCHES
    if where == "loss" and 0 < at % N_BATCHES < N_BATCHES - 1:
        with pytest.raises(ValueError, match="X has 49 samples.*50"):
            cut.fit(X[1:], y[1:], epochs=1)
    cut.fit(X, y, epochs=3 - cut.epoch)
    assert cut.epoch == 3
    assert state(cut) == state(whole)


@pytest.mark.parametrize("loss", ["mse", pseudo_huber])
def test_what_a_signal_handler_raises_leaves_the_last_epoch(loss):
    """Only Ctrl-C and `stop` keep a part of one."""

    def ring(*_):
        if cut._engine is not None:
            raise TimeoutError

    X, y, net = problem("mse", [5, 9, 3], 4000, dropout=0.2)
    options = {"loss": loss, "optimizer": fo.SGD(0.001, momentum=0.9), "batch_size": 2, "seed": 7}
    cut, whole = fo.Trainer(net.copy(), **options), fo.Trainer(net.copy(), **options)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for after in np.linspace(0.005, 0.05, 10):
            with pytest.raises(TimeoutError):
                # and again: what is raised in a callback of the garbage collector's, as pytest's plugins have, is lost
                signal.setitimer(signal.ITIMER_REAL, after, 0.05)
                cut.fit(X, y, epochs=1000)
            assert cut._state["partial"] is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    whole.fit(X, y, epochs=cut.epoch)
    assert state(cut) == state(whole)


def test_ctrl_c_does_not_keep_the_best_parameters_from_being_shown():
    X, y, net = problem("mse", [5, 3], 50)
    rule = fo.EarlyStopping("loss", patience=9)
    trainers = [fo.Trainer(net.copy(), loss="mse", optimizer=fo.SGD(20.0), seed=7) for _ in range(2)]
    cut, whole = trainers
    whole.fit(X, y, epochs=3, early_stopping=rule)
    assert whole.history.loss[0] < whole.history.loss[2]
    calls = []

    def parameters():
        calls.append(len(calls))
        if len(calls) == 2:  # the first was before the first epoch
            raise KeyboardInterrupt
        return fo.Trainer._parameters(cut)

    cut._parameters = parameters
    with pytest.raises(KeyboardInterrupt):
        cut.fit(X, y, epochs=3, early_stopping=rule)
    assert len(calls) == 3 and state(cut) == state(whole)
    for trainer in trainers:
        trainer.fit(X, y, epochs=1)
    assert state(cut) == state(whole)


def test_a_copy_of_a_trainer_shares_nothing_with_it():
    X, y, net = problem("mse", [5, 3], 50)
    trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1, momentum=0.9), seed=7)
    trainer.fit(X, y, epochs=2)
    before, twin = state(trainer), copy.copy(trainer)
    assert state(twin) == before
    twin.fit(X, y, epochs=2)
    assert state(trainer) == before
    trainer.fit(X, y, epochs=2)
    assert state(trainer) == state(twin)


def test_a_history_that_was_changed_is_not_saved(tmp_path):
    """`load` would refuse it, when the good file is gone."""
    X, y, net = problem("mse", [5, 3], 50)
    trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1), seed=7)
    trainer.fit(X, y, epochs=2)
    trainer.save(tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    trainer.history.val_loss.pop()
    with pytest.raises(ValueError, match="history.val_loss has 1 entries, not one for each of the 2 epochs"):
        trainer.save(tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == content


def test_a_sum_of_losses_that_overflows_is_a_divergence():
    """Each batch's is finite, as is the sum of the weights."""
    net = fo.MLP([1, 1], dtype="float64", init="zeros")
    trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(1e-9), batch_size=2)
    with pytest.raises(fo.DivergenceError, match="batch 2: the sum of the weighted losses is not finite"):
        trainer.fit(np.zeros((6, 1)), np.full(6, 1.42), epochs=1, sample_weight=np.full(6, 2.5e307))
    assert trainer.epoch == 0 and (trainer.net.flat == 0).all()


LONG = {"n": 4000, "batch_size": 2, "patience": 10**6}


@contextlib.contextmanager
def interruptible():
    """Yields an event: Ctrl-C raises while it is set, once, and is ignored otherwise."""
    armed = threading.Event()

    def handler(*_):
        if armed.is_set():
            armed.clear()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield armed
    finally:
        signal.signal(signal.SIGINT, before)


@actions
@pytest.mark.parametrize(
    ("run", "n_threads"),
    [
        ("momentum, dropout", 1),
        ("momentum, dropout", 2),
        ("nesterov, l1", 1),
        ("own loss", 1),
        ("early stopping", 1),
    ],
)
def test_cut_anywhere(action, run, n_threads):
    """Another thread cuts twenty epochs, each somewhere; the pieces make up the unbroken run."""
    trainer, fit = start(run, n_threads=n_threads, **LONG)
    done, cuts = threading.Event(), 0

    def keep_cutting():
        while not done.wait(0.002):
            action(trainer)

    thread = threading.Thread(target=keep_cutting)
    with interruptible() as armed:
        thread.start()
        try:
            while cuts < 20:
                epoch = trainer.epoch
                try:
                    armed.set()
                    fit(epochs=1)
                    armed.clear()
                except KeyboardInterrupt:
                    pass
                cuts += trainer.epoch == epoch
        finally:
            done.set()
            thread.join()
    fit(epochs=1)
    assert state(trainer) == unbroken(run, trainer.epoch, **LONG)


def interrupted_at(event, call):
    """Ctrl-C when the `event`-th function is entered or left; the events until then, and where it struck."""
    count, place = 0, None

    def profile(frame, kind, _):
        nonlocal count, place
        count += 1
        if count == event:
            sys.setprofile(None)
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {kind}"
            signal.raise_signal(signal.SIGINT)

    with interruptible() as armed:
        try:
            armed.set()
            sys.setprofile(profile)
            try:
                call()
            finally:
                sys.setprofile(None)  # itself an event
        except KeyboardInterrupt:
            pass
        finally:
            armed.clear()
    return count, place


@pytest.mark.parametrize("run", ["schedule", "early stopping", "own loss, early stopping"])
def test_ctrl_c_between_any_two_calls(run):
    """Epochs may be so short that most of a fit is Python: wherever Ctrl-C strikes, nothing is half done."""
    trainer, fit = start(run)
    fit(epochs=1)
    events, _ = interrupted_at(0, lambda: fit(epochs=2))
    wrong = {}
    for event in range(1, events):
        trainer, fit = start(run)
        fit(epochs=1)
        _, place = interrupted_at(event, lambda fit=fit: fit(epochs=2))
        try:
            fit(epochs=4 - trainer.epoch)
        except Exception as error:
            wrong[place] = repr(error)
        else:
            if state(trainer) != unbroken(run, 4):
                wrong[place] = "other bits than the unbroken run"
    assert not wrong


# ------------------------------------------------------------------------------------------------ checkpoints


def load(path, run):
    """The trainer of a run with its callables, and its fit."""
    loss, optimizer, *_ = RUNS[run]
    fresh, fit = start(run)
    callables = {"loss": loss if callable(loss) else None, "lr": schedule if callable(optimizer.lr) else None}
    trainer = fo.Trainer.load(path, **callables)
    return trainer, functools.partial(trainer.fit, *fit.args, **fit.keywords)


def resume(folder):
    """Finishes every checkpoint of a folder; in a new process (below), which prints what came out."""
    outcomes = {}
    for path in sorted(Path(folder).glob("*.ckpt")):
        try:
            trainer, fit = load(path, path.name.split(";")[0])
            fit(epochs=EPOCHS - trainer.epoch)
            outcomes[path.name] = digest(trainer)
        except Exception as error:
            outcomes[path.name] = repr(error)
    print(json.dumps(outcomes))


def digest(trainer):
    return hashlib.sha256(repr(state(trainer)).encode()).hexdigest()


def save_all(run, folder):
    """Checkpoints of a run: before it, in a callback, between fits, after a failure, inside an epoch."""
    trainer, fit = start(run)
    trainer.save(folder / f"{run};before.ckpt")
    fit(epochs=4, callbacks=[at_epoch_3(lambda trainer: trainer.save(folder / f"{run};in a callback.ckpt"))])
    trainer.save(folder / f"{run};between fits.ckpt")
    with pytest.raises(Odd):
        fit(epochs=EPOCHS, callbacks=[fail])
    trainer.save(folder / f"{run};after a failure.ckpt")
    if run.startswith("own loss"):
        for at in (4 * N_BATCHES + 3, 5 * N_BATCHES - 1):
            trainer, fit = start(run)
            trainer._loss = acting(trainer.loss, stop, at, [trainer])
            fit(epochs=EPOCHS)
            assert trainer.epoch == 4
            trainer.save(folder / f"{run};at batch {at}.ckpt")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for run in RUNS:
        save_all(run, folder)
    code = f"import test_training; test_training.resume({str(folder)!r})"
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@runs
def test_a_checkpoint_goes_on_in_a_new_process(run, resumed):
    trainer, fit = start(run)
    fit(epochs=EPOCHS)
    mine = {name: value for name, value in resumed.items() if name.startswith(f"{run};")}
    assert len(mine) == (6 if run.startswith("own loss") else 4)
    assert mine == dict.fromkeys(mine, digest(trainer))


@runs
def test_a_loaded_trainer_is_the_saved_one(run, tmp_path):
    """History, counters and network at once."""
    trainer, fit = start(run)
    fit(epochs=3)
    trainer.save(tmp_path / "a")
    loaded, _ = load(tmp_path / "a", run)
    assert state(loaded) == state(trainer)
    assert loaded.history.seconds == trainer.history.seconds
    assert loaded.optimizer == trainer.optimizer and loaded.loss == trainer.loss
    assert repr(loaded.net) == repr(trainer.net)


@pytest.mark.parametrize("run", [run for run in RUNS if "own loss" in run or run == "schedule"])
def test_callables_must_be_passed_again(run, tmp_path):
    trainer, _ = start(run)
    trainer.save(tmp_path / "a")
    loss, optimizer, *_ = RUNS[run]
    needed = {name for name, value in (("loss", loss), ("lr", optimizer.lr)) if callable(value)}
    passed = {"loss": pseudo_huber, "lr": schedule}
    for name in needed:
        others = {other: passed[other] for other in needed - {name}}
        with pytest.raises(ValueError, match=rf"\b{name}\b.*pass it again") as caught:
            fo.Trainer.load(tmp_path / "a", **others)
        assert not isinstance(caught.value, fo.ModelFormatError)


@pytest.mark.parametrize(
    ("lr", "options", "early_stopping"),
    [
        (np.float32(0.1), {}, None),
        (Fraction(1, 8), {"momentum": np.float32(0.5), "l1": np.float16(0.25)}, None),
        (1, {"momentum": np.float64(0.5), "nesterov": np.bool_(True), "decay_bias": np.bool_(False)}, None),
        (0.1, {}, fo.EarlyStopping("loss", np.int64(3), np.float32(0.5), np.bool_(True))),
    ],
)
def test_numbers_of_any_kind_are_stored(lr, options, early_stopping, tmp_path):
    """What SGD and EarlyStopping take is what save takes, and what load gives back."""
    X, y, net = problem("mse", [3, 2], 20)
    trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(lr, **options), batch_size=np.int64(8), seed=0)
    trainer.fit(X, y, epochs=2, early_stopping=early_stopping)
    trainer.save(tmp_path / "a")
    loaded = fo.Trainer.load(tmp_path / "a")
    assert loaded.optimizer == trainer.optimizer
    for each in (trainer, loaded):
        each.fit(X, y, epochs=2, early_stopping=early_stopping)
    assert state(loaded) == state(trainer)


def test_save_while_another_thread_fits(tmp_path):
    """A checkpoint is of the end of an epoch: in a callback it may be saved, beside a fit it may not."""
    trainer, fit = start("sgd")
    errors = []

    def save():
        try:
            trainer.save(tmp_path / "a")
        except RuntimeError as error:
            errors.append(error)

    def save_in_a_thread(trainer):
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()

    fit(epochs=1, callbacks=[save_in_a_thread])
    assert len(errors) == 1 and not (tmp_path / "a").exists()
    save()
    assert len(errors) == 1 and (tmp_path / "a").exists()


# --------------------------------------------------------------------------------------------------- failures


class Rate:
    """A learning rate that can be changed between fits."""

    def __init__(self, value):
        self.value = value

    def explode(self):
        self.value = 1e30

    def __call__(self, step):
        return self.value


@dtypes
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")  # in pseudo_huber
@pytest.mark.parametrize("loss", [*LOSSES, pseudo_huber])
@pytest.mark.parametrize("early_stopping", [None, fo.EarlyStopping("loss", patience=10**6)])
def test_divergence_keeps_the_last_finite_epoch(dtype, loss, early_stopping):
    """Weights, velocity, counters, history: a rate that explodes in epoch 3 leaves what three epochs made."""
    seen = []
    for explodes in (False, True):
        X, y, net = problem(loss, [5, 9, 3], 50, dtype, dropout=0.1)
        rate = Rate(0.01)
        optimizer = fo.SGD(rate, momentum=0.9, weight_decay=0.1)
        trainer = fo.Trainer(net, loss=loss, optimizer=optimizer, batch_size=8, seed=0)
        fit = functools.partial(trainer.fit, X, y, early_stopping=early_stopping)
        fit(epochs=2)
        if explodes:
            with pytest.raises(fo.DivergenceError, match=r"epoch 3, batch [0-6]\b"):
                fit(epochs=20, callbacks=[at_epoch_3(lambda trainer, rate=rate: rate.explode())])
            rate.value = 0.01
        else:
            fit(epochs=1)
        first = state(trainer)
        fit(epochs=2)
        seen.append((first, state(trainer)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("at", [0, 1, 6, 7, 17])
def test_divergence_names_epoch_and_batch(at):
    X, y, net = problem("mse", [5, 9, 3], 50)
    calls = itertools.count()

    def loss(scores, y):
        value, dscores = fo.mse(scores, y)
        return (math.nan if next(calls) == at else value), dscores

    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.1), batch_size=8, seed=0)
    with pytest.raises(fo.DivergenceError, match=rf"epoch {at // N_BATCHES}, batch {at % N_BATCHES}\b"):
        trainer.fit(X, y, epochs=9)
    assert trainer.epoch == at // N_BATCHES


@pytest.mark.parametrize("impl", [fo, reference])
def test_a_prediction_outside_the_domain_of_msle_diverges(impl):
    """Batch 0 takes the prediction to −2e3 ln 2, batch 1 finds it there."""
    net = fo.MLP([1, 1], init="zeros", dtype="float64")
    trainer = impl.Trainer(net, loss="msle", optimizer=fo.SGD(1e3), batch_size=1, shuffle=False, seed=0)
    with pytest.raises(impl.DivergenceError, match="epoch 0, batch 1"):
        trainer.fit(np.ones((4, 1)), np.full(4, -0.5), epochs=1)
    assert np.array_equal(trainer.net.flat, [0.0, 0.0])


def replaced(array, index, value):
    array = np.array(array, dtype=np.float64)
    array[index] = value
    return array


def raising(error):
    def function(*_):
        raise error

    return function


GOOD_X, GOOD_Y, _ = problem("hinge", [5, 3], 50)
BAD_FITS = {  # what is wrong -> X, y, options, error, message
    "nan": (replaced(GOOD_X, (49, 4), NAN), GOOD_Y, {}, ValueError, r"X\[49, 4\] is nan"),
    "inf": (replaced(GOOD_X, (0, 0), -INF), GOOD_Y, {}, ValueError, r"X\[0, 0\] is -inf"),
    "narrowed": (
        replaced(GOOD_X, (7, 1), 1e300),
        GOOD_Y,
        {},
        ValueError,
        r"X\[7, 1\] = 1e\+300 does not fit",
    ),
    "columns": (GOOD_X[:, :4], GOOD_Y, {}, ValueError, r"X must have shape \(n, 5\), got \(50, 4\)"),
    "empty": (GOOD_X[:0], GOOD_Y[:0], {}, ValueError, "X is empty"),
    "label": (GOOD_X, replaced(GOOD_Y, 5, 12), {}, ValueError, r"y\[5\] = 12.* is not in 0\.\.2"),
    "labels": (GOOD_X, GOOD_Y[:9], {}, ValueError, r"y must have shape \(50\)|y must have shape \(50,\)"),
    "strings": (GOOD_X, GOOD_Y.astype(str), {}, TypeError, "y must hold real numbers"),
    "epochs": (GOOD_X, GOOD_Y, {"epochs": -1}, ValueError, "epochs must be >= 0, got -1"),
    "weight": (GOOD_X, GOOD_Y, {"sample_weight": -np.ones(50)}, ValueError, r"sample_weight\[0\] = -1"),
    "zero weight": (
        GOOD_X,
        GOOD_Y,
        {"sample_weight": np.zeros(50)},
        ValueError,
        "sample_weight sums to zero",
    ),
    "validation": (GOOD_X, GOOD_Y, {"validation_data": GOOD_X}, TypeError, "validation_data must be"),
    "validation y": (
        GOOD_X,
        GOOD_Y,
        {"validation_data": (GOOD_X, GOOD_Y + 9)},
        ValueError,
        r"validation y\[0\]",
    ),
    "validation X": (
        GOOD_X,
        GOOD_Y,
        {"validation_data": (replaced(GOOD_X, (3, 2), NAN), GOOD_Y)},
        ValueError,
        r"validation X\[3, 2\] is nan",
    ),
    "no validation": (
        GOOD_X,
        GOOD_Y,
        {"early_stopping": fo.EarlyStopping()},
        ValueError,
        "no validation_data",
    ),
    "early stopping": (GOOD_X, GOOD_Y, {"early_stopping": 5}, TypeError, "early_stopping must be"),
    "target": (GOOD_X, GOOD_Y, {"target_loss": NAN}, ValueError, "target_loss must be finite"),
    "callback": (GOOD_X, GOOD_Y, {"callbacks": [None]}, TypeError, r"callbacks\[0\] must be callable"),
}


@pytest.mark.parametrize("fault", BAD_FITS)
def test_a_fit_that_cannot_start_changes_nothing(fault):
    """Nor does it forget an early stopping under way: the fits before and after make up the unbroken run."""
    X, y, options, error, message = BAD_FITS[fault]
    rule = {"early_stopping": fo.EarlyStopping("loss", patience=10**6)}
    trainers = []
    for faulty in (False, True):
        net = fo.MLP([5, 3], dropout=0.1, seed=1)
        optimizer = fo.SGD(0.05, **RULES["nesterov"], l1=0.01)
        trainer = fo.Trainer(net, loss="hinge", optimizer=optimizer, batch_size=8, seed=0)
        trainer.fit(GOOD_X, GOOD_Y, epochs=3, **rule)
        if faulty:
            before = state(trainer)
            with pytest.raises(error, match=message):
                trainer.fit(X, y, **{"epochs": 2, **options})
            assert state(trainer) == before
        trainer.fit(GOOD_X, GOOD_Y, epochs=3, **rule)
        trainers.append(trainer)
    assert state(trainers[0]) == state(trainers[1])


@pytest.mark.parametrize(
    ("fault", "error"),
    [("loss raises", Odd), ("lr raises", Odd), ("lr < 0", ValueError), ("lr nan", ValueError)],
)
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_callable_that_fails_leaves_the_last_epoch(fault, error, epoch):
    """In the middle of an epoch, in the first or in a later one."""
    X, y, net = problem("mse", [5, 9, 3], 50, dropout=0.1)
    at = epoch * N_BATCHES + 4
    wrong = {"lr raises": raising(Odd), "lr < 0": lambda step: -1.0, "lr nan": lambda step: NAN}

    def lr(step):
        return (wrong.get(fault, schedule) if broken and step == at else schedule)(step)

    def loss(scores, y):
        if broken and fault == "loss raises" and next(calls) == at:
            raise Odd
        return pseudo_huber(scores, y)

    trainers = []
    for breaks in (False, True):
        calls, broken = itertools.count(), breaks
        optimizer = fo.SGD(lr, **RULES["nesterov"], l1=0.01)
        trainer = fo.Trainer(net.copy(), loss=loss, optimizer=optimizer, batch_size=8, seed=0)
        if breaks:
            with pytest.raises(error):
                trainer.fit(X, y, epochs=4)
            assert trainer.epoch == len(trainer.history.loss) == epoch
        broken = False
        trainer.fit(X, y, epochs=4 - trainer.epoch)
        trainers.append(trainer)
    assert state(trainers[0]) == state(trainers[1])


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("restore_best", [None, True])
@pytest.mark.parametrize(
    ("answer", "error"),
    [(raising(Odd), Odd), (lambda: None, TypeError), (lambda: (1.0, np.zeros(3)), ValueError)],
)
def test_a_validation_that_fails_leaves_the_last_epoch(answer, error, epoch, restore_best):
    """The epoch that it belongs to is not done: no weight, velocity, counter or history of it is left."""
    X, y, net = problem("mse", [5, 9, 3], 50, dropout=0.1)
    rule = None if restore_best is None else fo.EarlyStopping("loss", patience=9, restore_best=restore_best)
    options = {"optimizer": NESTEROV_L1, "batch_size": 8, "seed": 0}
    broken = []

    def loss(scores, y):
        return answer() if broken and len(scores) == 50 else pseudo_huber(scores, y)

    trainer, whole = (fo.Trainer(net.copy(), loss=loss, **options) for _ in range(2))
    for each in (trainer, whole):
        each.fit(X, y, epochs=epoch, validation_data=(X, y), early_stopping=rule)
    broken.append(True)
    with pytest.raises(error):
        trainer.fit(X, y, epochs=2, validation_data=(X, y), early_stopping=rule)
    assert state(trainer) == state(whole)
    broken.clear()
    for each in (trainer, whole):
        each.fit(X, y, epochs=2, validation_data=(X, y), early_stopping=rule)
    assert state(trainer) == state(whole)


# --------------------------------------------------------------------------------------------------- networks

NETWORKS = [
    {"sizes": [3, 2]},
    {"sizes": [1, 1], "dtype": "float64"},
    {"sizes": (784, 64, 10), "activation": None, "dropout": 0.25},
    {"sizes": [5, 33, 17, 4], "activation": "sigmoid", "dtype": "float64", "init": "he_normal"},
]


def through_a_file(net, tmp_path):
    net.save(tmp_path / "model.safetensors")
    return fo.MLP.load(tmp_path / "model.safetensors")


def through_a_trainers_file(net, tmp_path):
    fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1), seed=0).save(tmp_path / "run.ckpt")
    return fo.Trainer.load(tmp_path / "run.ckpt").net


COPIES = {
    "copy()": lambda net, tmp_path: net.copy(),
    "copy.copy": lambda net, tmp_path: copy.copy(net),
    "copy.deepcopy": lambda net, tmp_path: copy.deepcopy(net),
    "pickle": lambda net, tmp_path: pickle.loads(pickle.dumps(net)),
    "model": through_a_file,
    "checkpoint": through_a_trainers_file,
}


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_equal_and_independent(options, way, tmp_path):
    net = fo.MLP(**options)
    net.biases[0][...] = [-0.0, *np.linspace(1e-42, 1e30, len(net.biases[0]) - 1)]
    twin, before = COPIES[way](net, tmp_path), net.flat.copy()
    for name in ("sizes", "activation", "dropout", "dtype", "n_parameters"):
        assert getattr(twin, name) == getattr(net, name)
    assert twin.flat.tobytes() == net.flat.tobytes()
    assert not np.shares_memory(twin.flat, net.flat)
    twin.weights[-1][...] = 7.0
    twin.biases[-1][...] = 8.0
    assert twin.flat[-1] == 8.0 and twin.flat[-1 - len(twin.biases[-1])] == 7.0
    assert net.flat.tobytes() == before.tobytes()


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_the_flat_buffer(options):
    """weights[0], biases[0], weights[1], ... in C order: what is written there is what the network uses."""
    net = fo.MLP(**options)
    parts = [part for pair in zip(net.weights, net.biases, strict=True) for part in pair]
    assert [part.shape for part in net.weights] == [(b, a) for a, b in itertools.pairwise(net.sizes)]
    assert net.flat.size == net.n_parameters == sum(part.size for part in parts)
    net.flat[...] = np.random.default_rng(0).uniform(-1, 1, net.n_parameters)
    assert np.array_equal(np.concatenate([part.ravel() for part in parts]), net.flat)
    X = np.random.default_rng(1).standard_normal((4, net.sizes[0]))
    expected = reference.MLP.from_network(net).forward(X)
    # sums of up to 784 products, in the network's precision
    tolerance = 1e-3 if net.dtype == "float32" else 1e-12
    np.testing.assert_allclose(net.forward(X), expected, rtol=tolerance, atol=tolerance)


# the variance of a weight, and the largest value of the uniform laws
INITS = {
    "glorot_uniform": (lambda n_in, n_out: 2 / (n_in + n_out), True),
    "glorot_normal": (lambda n_in, n_out: 2 / (n_in + n_out), False),
    "he_uniform": (lambda n_in, n_out: 2 / n_in, True),
    "he_normal": (lambda n_in, n_out: 2 / n_in, False),
}


@dtypes
@pytest.mark.parametrize("init", INITS)
def test_init_laws(init, dtype):
    variance_of, uniform = INITS[init]
    net = fo.MLP([300, 100, 40], init=init, dtype=dtype, seed=3)
    for weight, bias in zip(net.weights, net.biases, strict=True):
        n_out, n_in = weight.shape
        variance, n = variance_of(n_in, n_out), weight.size
        kurtosis = 1.8 if uniform else 3.0
        # four standard errors of a mean and of a second moment
        assert abs(weight.mean()) < 4 * np.sqrt(variance / n)
        assert abs(np.mean(weight**2.0) / variance - 1) < 4 * np.sqrt((kurtosis - 1) / n)
        bound = np.sqrt(3 * variance)
        if uniform:
            assert bound * (1 - 20 / n) < np.abs(weight).max() <= bound * (1 + np.finfo(dtype).eps)
        else:
            beyond = np.mean(np.abs(weight) > bound)  # P(|Z| > √3) = 0.0833
            assert abs(beyond - 0.0833) < 4 * np.sqrt(0.0833 / n)
        assert not bias.any()
    assert not fo.MLP([300, 100], init="zeros", dtype=dtype).flat.any()


def test_init_by_a_callable():
    """It is called layer after layer with the shape and one generator, that of the seed."""
    shapes = []

    def init(shape, rng):
        shapes.append(shape)
        return rng.integers(-8, 8, shape)

    net, rng = fo.MLP([3, 5, 2], init=init, seed=6), np.random.default_rng(6)
    assert shapes == [(5, 3), (2, 5)]
    for weight in net.weights:
        assert np.array_equal(weight, rng.integers(-8, 8, weight.shape))
    assert not any(bias.any() for bias in net.biases)


@pytest.mark.parametrize(
    ("init", "error"),
    [
        (lambda shape, rng: np.zeros(shape[::-1]), ValueError),
        (lambda shape, rng: np.full(shape, NAN), ValueError),
        (lambda shape, rng: np.full(shape, 1e300), ValueError),
        (lambda shape, rng: None, TypeError),
        (lambda shape, rng: np.full(shape, "a"), TypeError),
        (raising(Odd), Odd),
        ("glorot", ValueError),
        (0.1, TypeError),
    ],
)
def test_init_that_cannot_be(init, error):
    with pytest.raises(error, match=None if error is Odd else "init"):
        fo.MLP([3, 2], init=init)


@pytest.mark.parametrize("what", ["weights", "order", "dropout"])
def test_seeds(what):
    """The same seed gives the same bits, another gives others."""

    def train(seed):
        dropout = 0.5 if what == "dropout" else 0.0
        X, y, net = problem("mse", [4, 9, 2], 40, dropout=dropout, seed=seed if what == "weights" else 1)
        options = {"batch_size": 8, "shuffle": what == "order", "seed": 1 if what == "weights" else seed}
        trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1), **options)
        trainer.fit(X, y, epochs=1)
        return net.flat.tobytes()

    seeds = [0, 1, 2, 2**32, 2**63, 2**64 - 1]
    bits = [train(seed) for seed in seeds]
    assert bits == [train(seed) for seed in seeds]
    assert len(set(bits)) == len(seeds)
    if what != "weights":
        assert train(None) != train(None)


# ---------------------------------------------------------------------------------------- a loop of one's own

PENALTIES = {
    "none": {},
    "decay": {"weight_decay": 0.1, "l2": 0.05},
    "l1": {"l1": 0.02},
    "biases too": {"weight_decay": 0.1, "l1": 0.02, "decay_bias": True},
}


@dtypes
@rules
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("weighted", [False, True])
def test_update_is_the_trainers_step(dtype, rule, penalty, weighted):
    """Epochs of one batch of 300 and the same steps by hand: the same loss and the same bits."""
    optimizer = fo.SGD(schedule, **RULES[rule], **PENALTIES[penalty])
    X, y, net = problem("softmax_cross_entropy", [5, 17, 4], 300, dtype, activation="tanh")
    w = sample_weights("random", 300, 1) if weighted else None
    by_hand = net.copy()
    options = {"loss": "softmax_cross_entropy", "batch_size": 300, "shuffle": False, "seed": 0}
    trainer = fo.Trainer(net, optimizer=optimizer, **options)
    history = trainer.fit(X, y, epochs=3, sample_weight=w)
    state = optimizer.init(by_hand)
    for epoch in range(3):
        value, grad = by_hand.loss_and_grad(X, y, sample_weight=w)
        optimizer.update(by_hand, grad, state)
        if penalty == "none":
            assert history.loss[epoch] == value
    shown = by_hand.flat
    if rule == "nesterov" and optimizer.l1:  # the network shows θ = W + γ V
        velocity = np.concatenate([v.ravel() for v in state.velocity])
        shown = shown + shown.dtype.type(optimizer.momentum) * velocity
    assert np.array_equal(net.flat, shown)


@dtypes
@losses
@pytest.mark.parametrize("n_outputs", [1, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_grad_is_the_first_step(dtype, loss, n_outputs, weighted):
    """One step of rate 1: W − dW by hand is what the engine makes, bit for bit; the loss is the epoch's."""
    n_outputs += loss == "softmax_cross_entropy" and n_outputs == 1
    X, y, net = problem(loss, [7, 33, 9, n_outputs], 77, dtype, activation="sigmoid")
    w = sample_weights("random", 77, 1) if weighted else None
    value, grad = net.loss_and_grad(X, y, loss=loss, sample_weight=w)
    stepped = net.flat.copy()
    fo.sgd_step(stepped, grad, lr=1.0)
    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(1.0), batch_size=77, shuffle=False)
    history = trainer.fit(X, y, epochs=1, sample_weight=w)
    assert history.loss == [value]
    assert np.array_equal(net.flat, stepped)


# ---------------------------------------------------------------------------------------------------- threads


def test_a_second_fit_is_refused():
    """While the first waits in a callback; it then ends as if nothing had been."""
    trainer, fit = start("nesterov, l1")
    inside, go_on = threading.Event(), threading.Event()

    def wait(trainer):
        inside.set()
        assert go_on.wait(60)

    first = threading.Thread(target=fit, kwargs={"epochs": EPOCHS, "callbacks": [wait]})
    first.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match="already running"):
        fit(epochs=1)
    go_on.set()
    first.join()
    assert state(trainer) == unbroken("nesterov, l1")


def test_a_stop_without_a_fit_is_not_kept():
    """It ends the running fit, not one that starts later."""
    trainer, fit = start("sgd")
    trainer.stop()
    fit(epochs=EPOCHS)
    trainer.stop()
    assert state(trainer) == unbroken("sgd")
    fit(epochs=1)
    assert trainer.epoch == EPOCHS + 1


def in_threads(n, call):
    """What `call(k)` returns in thread k, all at once."""
    results, barrier = [None] * n, threading.Barrier(n)

    def target(k):
        barrier.wait()
        results[k] = call(k)

    threads = [threading.Thread(target=target, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_sixteen_threads_call_forward():
    X, _, net = problem("mse", [20, 65, 33, 7], 700, "float32", activation="tanh")
    expected = net.forward(X, n_threads=1)

    def call(k):
        rows = slice(k, 700, 1 + k % 3)
        return all(
            np.array_equal(net.forward(X[rows], n_threads=1 + k % 4), expected[rows]) for _ in range(20)
        )

    assert in_threads(16, call) == [True] * 16


def test_trainers_in_threads_do_not_meet():
    def call(k):
        trainer, fit = start(list(RUNS)[k % len(RUNS)])
        fit(epochs=EPOCHS)
        return state(trainer)

    assert in_threads(16, call) == [unbroken(list(RUNS)[k % len(RUNS)]) for k in range(16)]
