"""What a Trainer's loss takes beside scores and labels, and the accuracy counted in the same pass."""

import math

import numpy as np
import pytest

import fastopt as fo
from fastopt import reference

CASES = {
    "class weights": ("softmax_cross_entropy", 4, {"class_weight": [0.5, 2.0, 0.0, 1.0]}),
    "smoothing": ("softmax_cross_entropy", 4, {"label_smoothing": 0.1}),
    "smoothing of many": ("softmax_cross_entropy", 20, {"label_smoothing": 0.1, "class_weight": np.arange(20.0)}),
    "hinge": ("hinge", 3, {"class_weight": (1, 2, 3)}),
    "squared hinge": ("squared_hinge", 3, {"class_weight": (1, 2, 3)}),
    "binary hinge": ("hinge", 1, {"class_weight": [0.25, 4.0]}),
    "binary": ("binary_cross_entropy", 2, {"label_smoothing": 0.3}),
    "huber": ("huber", 2, {"delta": 0.125}),
    "no options": ("hinge", 5, {}),
}


def problem(loss, n_outputs, n=61):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, 9))
    if loss in ("binary_cross_entropy", "huber"):
        return X, rng.random((n, n_outputs))
    return X, rng.integers(0, n_outputs, n) if n_outputs > 1 else rng.choice([-1, 1], n)


def train(impl, case, dtype="float64", n_threads=1, epochs=3, weight=None):
    loss, n_outputs, options = CASES[case]
    X, y = problem(loss, n_outputs)
    net = fo.MLP([9, 7, n_outputs], dtype=dtype, seed=1, dropout=0.25)
    trainer = impl.Trainer(net, loss=loss, optimizer=fo.SGD(0.05, momentum=0.5), batch_size=16, seed=2,
                           n_threads=n_threads, loss_options=options)
    trainer.fit(X, y, epochs=epochs, sample_weight=weight, validation_data=(X[:30], y[:30]))
    return trainer


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_as_the_reference(case, weighted):
    weight = np.arange(61) % 4 / 2 if weighted else None
    ours, theirs = train(fo, case, weight=weight), train(reference, case, weight=weight)
    np.testing.assert_allclose(ours.net.flat, theirs.net.flat, rtol=0, atol=1e-13)
    for column in ("loss", "val_loss", "accuracy"):
        np.testing.assert_allclose(getattr(ours.history, column), getattr(theirs.history, column), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_same_bits_on_threads_and_after_a_resume(case, dtype, tmp_path):
    one, several = train(fo, case, dtype), train(fo, case, dtype, n_threads=3)
    assert one.net.flat.tobytes() == several.net.flat.tobytes()
    assert repr(one.history.accuracy) == repr(several.history.accuracy)
    broken = train(fo, case, dtype, epochs=1)
    broken.save(tmp_path / "run.ckpt")
    resumed = fo.Trainer.load(tmp_path / "run.ckpt")
    loss, n_outputs, _ = CASES[case]
    X, y = problem(loss, n_outputs)
    resumed.fit(X, y, epochs=2, validation_data=(X[:30], y[:30]))
    assert resumed.net.flat.tobytes() == one.net.flat.tobytes()
    for column in ("loss", "val_loss", "accuracy", "val_accuracy", "top_k_accuracy"):
        assert repr(getattr(resumed.history, column)) == repr(getattr(one.history, column))


def test_accuracy_is_that_of_the_scores():
    """With a rate of almost nothing, every batch sees the network that is left; validation sees it in any case."""
    X, y = problem("hinge", 5)
    net = fo.MLP([9, 7, 5], dtype="float64", seed=1)
    trainer = fo.Trainer(net, loss="hinge", optimizer=fo.SGD(1e-300), batch_size=16, seed=2)
    history = trainer.fit(X, y, epochs=1, validation_data=(X, y))
    assert history.accuracy == history.val_accuracy == [fo.accuracy(net.forward(X), y)]
    own = fo.Trainer(net, loss=lambda s, y: fo.hinge(s, y), optimizer=fo.SGD(0.1), seed=0)
    assert math.isnan(own.fit(X, y, epochs=1).accuracy[0])


def test_the_first_of_equal_scores_counts():
    net = fo.MLP([2, 3], init="zeros", dtype="float64")
    trainer = fo.Trainer(net, loss="hinge", optimizer=fo.SGD(1e-300), batch_size=7, shuffle=False)
    assert trainer.fit(np.zeros((6, 2)), [0, 0, 1, 1, 2, 2], epochs=1).accuracy == [2 / 6]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_outputs", [2, 3, 16, 17, 40])
def test_top_k(n_outputs, dtype, tmp_path):
    """Whole numbers as scores, so that many are equal."""
    rng = np.random.default_rng(7)
    X, y = rng.integers(-2, 3, (61, 5)).astype(dtype), rng.integers(0, n_outputs, 61)
    for k in sorted({1, 2, n_outputs - 1, n_outputs}):
        net = fo.MLP([5, n_outputs], None, lambda shape, rng: rng.integers(-1, 2, shape), dtype=dtype, seed=1)
        options = {"optimizer": fo.SGD(1e-30), "batch_size": 13, "seed": 2, "top_k": k}
        trainer = fo.Trainer(net, loss="squared_hinge", **options)
        history = trainer.fit(X, y, epochs=1, validation_data=(X, y))
        expected = reference.top_k_accuracy(net.forward(X), y, k)
        assert history.top_k_accuracy == history.val_top_k_accuracy == [expected]
        assert fo.top_k_accuracy(net.forward(X), y, k) == expected
        assert history.accuracy == [reference.accuracy(net.forward(X), y)]
    trainer.save(tmp_path / "run.ckpt")
    again = fo.Trainer.load(tmp_path / "run.ckpt")
    assert again.fit(X, y, epochs=1).top_k_accuracy == [expected] * 2
    with pytest.raises(ValueError, match="top_k must be"):
        fo.Trainer(net, loss="hinge", optimizer=fo.SGD(0.1), top_k=n_outputs + 1)
    with pytest.raises(ValueError, match="top_k needs a loss of labels"):
        fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1), top_k=1)


@pytest.mark.parametrize(
    ("loss", "options", "error", "message"),
    [
        ("mse", {"delta": 1.0}, ValueError, "loss_options must be empty for mse, got 'delta'"),
        ("hinge", {"label_smoothing": 0.1}, ValueError, "loss_options must be class_weight for hinge"),
        ("hinge", {"class_weight": [1.0, 2.0]}, ValueError, "class_weight must have shape"),
        ("hinge", {"class_weight": [1.0, -2.0, 1.0]}, ValueError, "class_weight must be >= 0"),
        ("hinge", {"class_weight": [0.0, 0.0, 0.0]}, ValueError, "class_weight must be >= 0 and not all 0"),
        ("hinge", {"class_weight": [1.0, math.nan, 1.0]}, ValueError, r"class_weight\[1\] is nan"),
        ("softmax_cross_entropy", {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\]"),
        ("huber", {"delta": 0.0}, ValueError, "delta must be"),
        ("huber", {"delta": "1"}, TypeError, "delta must be"),
        (lambda s, y: (0.0, s), {"delta": 1.0}, ValueError, "for a loss of your own"),
    ],
)
def test_refused(loss, options, error, message):
    with pytest.raises(error, match=message):
        fo.Trainer(fo.MLP([2, 3]), loss=loss, optimizer=fo.SGD(0.1), loss_options=options)


@pytest.mark.parametrize("options", [5, "abc", [("label_smoothing", 0.1)], 0])
def test_options_are_a_dict(options):
    net = fo.MLP([2, 3])
    with pytest.raises(TypeError, match="loss_options must be a dict"):
        fo.Trainer(net, loss="softmax_cross_entropy", optimizer=fo.SGD(0.1), loss_options=options)
    with pytest.raises(TypeError, match="loss_options must be a dict"):
        net.loss_and_grad(np.ones((2, 2)), [0, 1], loss_options=options)


@pytest.mark.parametrize(
    "weights", [[np.int64(1), 2, 1], list(np.ones(3, "f")), range(1, 4), np.ones(3), (1.0, 2.0, 3.0)]
)
def test_options_are_stored_as_they_were(weights, tmp_path):
    options = {"class_weight": weights, "label_smoothing": np.float32(0.5)}
    trainer = fo.Trainer(fo.MLP([2, 3]), loss="softmax_cross_entropy", optimizer=fo.SGD(0.1), top_k=2,
                         loss_options=options)
    expected = np.array(weights, float)
    if isinstance(weights, (list, np.ndarray)):
        weights[0] = 99
    trainer.save(tmp_path / "run.ckpt")
    for loss in (None, "softmax_cross_entropy"):
        again = fo.Trainer.load(tmp_path / "run.ckpt", loss)
        assert (again._class_weight == expected).all()
        assert (again._smoothing, again._top_k) == (0.5, 2)
    other = fo.Trainer.load(tmp_path / "run.ckpt", "huber", loss_options={"delta": 0.25})
    assert (other._class_weight, other._delta, other._top_k) == (None, 0.25, None)
    with pytest.raises(ValueError, match="pass the loss that they belong to"):
        fo.Trainer.load(tmp_path / "run.ckpt", loss_options={"delta": 0.25})


def test_scores_that_overflow_are_not_right():
    X, y = problem("hinge", 3)
    net = fo.MLP([9, 8, 3], seed=0)
    net.flat[:] *= 10
    trainer = fo.Trainer(net, loss="hinge", optimizer=fo.SGD(1e-6), seed=0, top_k=1)
    history = trainer.fit(X, y, epochs=1, validation_data=(X * 1e38, y))
    assert history.val_loss == [math.inf]
    assert math.isnan(history.val_accuracy[0])
    assert math.isnan(history.val_top_k_accuracy[0])


def test_a_score_alone_has_no_top():
    with pytest.raises(ValueError, match="K at least 2"):
        fo.top_k_accuracy([[0.3], [-1.0]], [0, 0], 1)
    with pytest.raises(ValueError, match="top_k needs a loss of labels, and a score for each"):
        fo.Trainer(fo.MLP([2, 1]), loss="hinge", optimizer=fo.SGD(0.1), top_k=1)


def test_weights_that_leave_no_sample():
    net = fo.MLP([2, 3], seed=0)
    trainer = fo.Trainer(net, loss="hinge", optimizer=fo.SGD(0.1), loss_options={"class_weight": [0, 0, 1]})
    before = net.flat.copy()
    with pytest.raises(ValueError, match="give every sample the weight 0"):
        trainer.fit(np.ones((4, 2)), [0, 1, 0, 1], epochs=1)
    assert (net.flat == before).all()


def test_loss_and_grad_takes_options_too():
    X, y = problem("hinge", 3)
    net, options = fo.MLP([9, 3], dtype="float64", seed=1), {"class_weight": [1, 2, 3]}
    value, grad = net.loss_and_grad(X, y, "hinge", loss_options=options)
    expected, dscores = fo.hinge(net.forward(X), y, **options)
    assert value == expected
    np.testing.assert_allclose(grad[:27].reshape(3, 9), dscores.T @ X, rtol=1e-12)
    with pytest.raises(ValueError, match="loss_options must be empty for mse"):
        net.loss_and_grad(X, X[:, :3], "mse", loss_options=options)
