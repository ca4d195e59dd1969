"""Gradients of every loss and network against differences and between dtypes; kinks; the checker itself."""

import numpy as np
import pytest

import fastopt as fo
from fastopt import reference

pytestmark = pytest.mark.filterwarnings("error")

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
activations = pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
batches = pytest.mark.parametrize("n", [1, 2, 7])
LABELS = ("softmax_cross_entropy", "hinge", "squared_hinge")
LOSSES = (*LABELS, "binary_cross_entropy", "mse", "mae", "msle", "huber")


def problem(loss, shape, seed=0):
    """Scores farther from every kink and pole than a step of differences, and what they are compared with."""
    rng = np.random.default_rng(seed)
    n, k = shape[0], shape[-1]
    scores = rng.standard_normal(shape)
    if loss == "msle":
        scores = np.abs(scores) - 0.5
    if loss in LABELS:
        return scores, rng.integers(0, k, n) if len(shape) == 2 and k > 1 else rng.choice([-1, 1], n)
    return scores, rng.random(shape)


# ------------------------------------------------------------------------------------------- losses, networks


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 4), (7, 3), (3, 19), (7,), (7, 1)], ids=str)
@pytest.mark.parametrize("loss", [*LOSSES, "label smoothing"])
def test_loss(loss, shape, weighted, reduction):
    """For "none" the gradient is that of the plain sum: samples do not mix, weights do not act."""
    options = {"reduction": reduction}
    if loss == "label smoothing":
        loss, options["label_smoothing"] = "softmax_cross_entropy", 0.2
    if loss == "softmax_cross_entropy" and (len(shape) == 1 or shape[1] == 1):
        shape = (*shape[:1], 2)
    scores, y = problem(loss, shape)
    if weighted:
        options["sample_weight"] = 0.25 + np.arange(len(scores))

    def value_and_gradient(s):
        value, dscores = getattr(fo, loss)(s, y, **options)
        return np.sum(value), dscores

    report = fo.check_gradient(value_and_gradient, scores)
    assert report.ok, report
    # a component too small for differences to resolve counts as right: the formula settles those
    exact = getattr(reference, loss)(scores, y, **options)[1]
    np.testing.assert_allclose(report.analytic, exact, rtol=1e-13, atol=1e-14 * np.abs(exact).max())


def network(loss, activation, dtype, sizes=(5, 4, 6, 3), seed=3):
    net = fo.MLP(list(sizes), activation=activation, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for bias in net.biases:
        bias[...] = rng.uniform(-0.2, 0.2, bias.shape)
    net.biases[-1][...] += 4.0 if loss == "msle" else 0.0  # predictions above -1
    return net


def batch(loss, n, k=3):
    rng = np.random.default_rng(n)
    y = rng.integers(0, k, n) if loss in LABELS else rng.random((n, k))
    return rng.standard_normal((n, 5)).astype("float32"), y, 0.5 + rng.random(n)


@batches
@activations
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_network(loss, activation, weighted, n):
    net, (X, y, w) = network(loss, activation, "float64"), batch(loss, n)
    w = w if weighted else None

    def value_and_gradient(flat):
        net.flat[:] = flat
        return net.loss_and_grad(X, y, loss=loss, sample_weight=w)

    report = fo.check_gradient(value_and_gradient, net.flat.copy(), rtol=1e-6)
    assert report.ok, report
    _, exact = reference.MLP.from_network(network(loss, activation, "float64")).loss_and_grad(X, y, loss, w)
    np.testing.assert_allclose(
        report.analytic, exact, rtol=1e-12, atol=1e-13 * np.abs(exact).max()
    )  # 6 sums deep


@batches
@activations
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_agrees_with_float64(loss, activation, n):
    X, y, w = batch(loss, n)
    narrow, wide = network(loss, activation, "float32"), network(loss, activation, "float64")
    wide.flat[:] = narrow.flat
    (value, grad), (exact, dexact) = (net.loss_and_grad(X, y, loss, w) for net in (narrow, wide))
    assert grad.dtype == "float32"
    assert abs(value - exact) <= 1e-5 * max(1.0, abs(exact))
    np.testing.assert_allclose(grad, dexact, rtol=0, atol=1e-5 * np.abs(dexact).max())


@dtypes
@pytest.mark.parametrize("n", [255, 256, 257, 1000])
def test_large_batches_add_up(dtype, n):
    """The gradient of the mean is the mean of the gradients of its parts, whatever the chunks inside."""
    X, y, w = batch("softmax_cross_entropy", n)
    net = network("softmax_cross_entropy", "tanh", dtype)
    value, grad = net.loss_and_grad(X, y, sample_weight=w)
    parts = [(rows, w[rows].sum() / w.sum()) for rows in (slice(i, i + 100) for i in range(0, n, 100))]
    results = [(*net.loss_and_grad(X[rows], y[rows], sample_weight=w[rows]), share) for rows, share in parts]
    tolerance = 20 * np.finfo(dtype).eps  # a long float32 sum whose terms have either sign
    assert abs(value - sum(v * share for v, _, share in results)) <= tolerance
    np.testing.assert_allclose(
        grad, sum(g.astype(float) * share for _, g, share in results), rtol=0, atol=tolerance
    )


@dtypes
@pytest.mark.parametrize("sizes", [(5, 3), (5, 1, 3), (5, 33, 3), (5, 17, 16, 15, 3)], ids=str)
def test_any_depth_and_width(dtype, sizes):
    X, y, w = batch("mse", 7)
    net = network("mse", "tanh", dtype, sizes)
    value, grad = net.loss_and_grad(X, y, "mse", w)
    exact, dexact = reference.MLP.from_network(net).loss_and_grad(X, y, "mse", w)
    tolerance = 50 * np.finfo(dtype).eps  # 33 terms
    assert abs(value - exact) <= tolerance * exact
    np.testing.assert_allclose(grad, dexact, rtol=0, atol=tolerance * np.abs(dexact).max())


@dtypes
def test_loss_of_ones_own(dtype):
    X, y, _ = batch("mse", 7)
    net = network("mse", "tanh", dtype)
    value, grad = net.loss_and_grad(X, y, lambda scores, y: reference.mse(scores, y))
    named_value, named_grad = net.loss_and_grad(X, y, "mse")
    assert value == pytest.approx(named_value, rel=4 * float(np.finfo(dtype).eps))
    np.testing.assert_allclose(grad, named_grad, rtol=0, atol=8 * np.finfo(dtype).eps * np.abs(grad).max())


# ------------------------------------------------------------------------------------------------------ kinks

ABOVE, BELOW = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(1), np.float32(0))


@dtypes
@pytest.mark.parametrize(
    ("loss", "scores", "y", "dscores"),
    [
        ("hinge", [[1.0, 2.0, 0.5]], [1], [[0, 0, 0]]),  # s_0 - s_y + 1 = 0
        ("hinge", [[ABOVE, 2.0, 0.5]], [1], [[1, -1, 0]]),
        ("hinge", [[BELOW, 2.0, 0.5]], [1], [[0, 0, 0]]),
        ("hinge", [[1.0, 1.0, 1.0]], [2], [[1, 1, -2]]),
        ("hinge", [[2.0, 2.0, 2.0, 3.0, 2.0]] * 3, [3, 3, 3], np.zeros((3, 5))),
        ("hinge", [1.0, -1.0, ABOVE, BELOW, 0.0], [1, -1, 1, 1, 1], [0, 0, 0, -1, -1]),  # 1 - y s = 0
        ("hinge", [[1.0], [-1.0]], [1, -1], [[0], [0]]),
        ("squared_hinge", [[1.0, 2.0, 0.5]], [1], [[0, 0, 0]]),
        ("squared_hinge", [1.0, -1.0], [1, -1], [0, 0]),
        ("mae", [1.0, 2.0, 0.0, -0.0, ABOVE], [1.0, 1.0, -0.0, 0.0, 1.0], [0, 1, 0, 0, 1]),
        ("mae", [[1.0, 0.5], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [[0, -0.5], [0, 0]]),
    ],
)
def test_subgradient_at_a_kink(dtype, loss, scores, y, dscores):
    scores = np.array(scores, dtype)
    assert np.array_equal(getattr(fo, loss)(scores, y, reduction="none")[1], dscores)
    assert np.array_equal(getattr(reference, loss)(scores, y, reduction="none")[1], dscores)


@dtypes
@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_relu_has_subgradient_0_at_0(dtype, width):
    for zero in (0.0, -0.0):
        ones, output = np.ones((2, width), dtype), np.full((2, width), zero, dtype)
        for grad in fo.dense_backward(
            ones, ones, np.eye(width, dtype=dtype), output=output, activation="relu"
        ):
            assert not grad.any()


@dtypes
def test_relu_network_at_its_kink(dtype):
    """All weights of the first layer are 0: hidden units stand at the kink, and only the last bias moves."""
    net = fo.MLP([2, 3, 1], dtype=dtype)
    net.weights[0][...] = 0.0
    _, grad = net.loss_and_grad(np.ones((4, 2)), np.ones(4), loss="mse")
    assert not grad[:-1].any()
    assert grad[-1] == -2.0


# ----------------------------------------------------------------------------------------- the checker itself


def rosenbrock(x):
    a, b = 1 - x[:-1], x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -2 * a - 400 * x[:-1] * b
    gradient[1:] += 200 * b
    return float(np.sum(a**2 + 100 * b**2)), gradient


SCALES = 10.0 ** np.arange(-3, 3)
POINT = np.array([0.7, -1.3, 2.1, -0.4, 1.7])
# name: value and gradient, a point; every component of the gradient is far above the rounding of the value
RIGHT = {
    "quadratic": (lambda x: (np.sum(x**2), 2 * x), POINT),
    "exponential": (lambda x: (np.sum(np.exp(x)), np.exp(x)), POINT),
    "coupled": (lambda x: (np.sin(np.sum(x**2)), 2 * x * np.cos(np.sum(x**2))), POINT),
    "rosenbrock": (rosenbrock, POINT),
    "matrix": (lambda x: (np.sum(x**3), 3 * x**2), POINT.repeat(2).reshape(5, 2)),
    "one number": (lambda x: (np.cosh(x[0]), np.sinh(x)), [0.5]),
    "a value of shape (1,)": (lambda x: (x**4, 4 * x**3), [1.5]),
    "badly scaled gradient": (lambda x: (np.sum(SCALES * x**2), 2 * SCALES * x), np.linspace(0.5, 2, 6)),
    "badly scaled point": (lambda x: (np.sum(x**2), 2 * x), 10.0 ** np.arange(-1, 3)),
    "huge": (lambda x: (1e200 * np.sum(x**2), 2e200 * x), POINT),
    "tiny": (lambda x: (1e-200 * np.sum(x**2), 2e-200 * x), POINT),
    "beside a large constant": (lambda x: (1e3 + np.sum(x**2), 2 * x), POINT),
}
rights = pytest.mark.parametrize(("fun", "x"), RIGHT.values(), ids=RIGHT)


@rights
def test_checker_passes_what_is_right(fun, x):
    report = fo.check_gradient(fun, x)
    assert report.ok, report
    assert report.max_error <= 1e-6
    assert report.analytic.shape == report.numeric.shape == np.shape(x)
    assert np.array_equal(report.analytic, fun(np.array(x))[1])


WRONG = {
    "0.1 % too large": lambda g: 1.001 * g,
    "0.1 % too small": lambda g: 0.999 * g,
    "of the wrong sign": lambda g: -g,
    "zero": lambda g: 0.0,
    "twice as large": lambda g: 2 * g,
    "a million times too large": lambda g: 1e6 * g,
}


@rights
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_checker_fails_what_is_wrong(fun, x, wrong):
    """In one component at a time, and names it; and in all of them."""
    for index in np.ndindex(np.shape(x)):

        def with_error(x, index=index):
            value, gradient = fun(x)
            gradient[index] = wrong(gradient[index])
            return value, gradient

        report = fo.check_gradient(with_error, x)
        assert not report.ok
        assert report.worst_index == index
        assert report.max_error > 1e-6
    assert not fo.check_gradient(lambda x: (fun(x)[0], wrong(fun(x)[1]) + 0 * x), x).ok


@rights
def test_checker_fails_components_in_the_wrong_place(fun, x):
    if np.size(x) > 1:
        report = fo.check_gradient(lambda x: (fun(x)[0], np.roll(fun(x)[1], 1)), x)
        assert not report.ok


@pytest.mark.parametrize(
    ("fun", "x"),
    [
        # a component of 1e-12 beside a value of 1e6, whose rounding alone moves the difference by 1e-5
        (lambda x: (1e6 + 1e-12 * x[0] + x[1], np.array([1e-12, 1.0])), [0.3, 0.4]),
        (lambda x: (1e8 * x[0] ** 2 + 1e-8 * x[1] ** 2, np.array([2e8 * x[0], 2e-8 * x[1]])), [0.3, 0.4]),
        (lambda x: (np.sum(x**2), 2 * x), 10.0 ** np.arange(-8, 8)),
    ],
)
def test_checker_passes_components_that_differences_cannot_resolve(fun, x):
    assert fo.check_gradient(fun, x).ok


def test_checker_at_the_tolerance():
    def off_by(error):
        return fo.check_gradient(lambda x: (3 * x[0], np.array([3 * (1 + error)])), [0.5], rtol=1e-3)

    assert off_by(0.999e-3).ok
    assert not off_by(1.002e-3).ok
    assert off_by(0.0).max_error < 1e-9
    assert off_by(0.5).max_error == pytest.approx(1 / 3, rel=1e-9)  # of the larger of the two
    assert not fo.check_gradient(lambda x: (3 * x[0], np.array([3 * (1 + 1e-8)])), [0.5], rtol=1e-9).ok


def test_checker_works_in_float32():
    """The step and the rounding allowed are float32's; the point keeps its dtype."""
    seen = []

    def square(factor):
        def fun(x):
            seen.append(x.dtype)
            return float(np.sum(x * x)), factor * x

        return fo.check_gradient(fun, POINT.astype("float32"), rtol=1e-2)

    assert square(2).ok
    assert not square(2.1).ok
    assert not square(-2).ok
    assert set(seen) == {np.dtype("float32")}


def test_checker_leaves_the_point_alone():
    """Even where a function breaks its promise not to change its argument."""
    x = POINT.copy()

    def spoils(x):
        value, gradient = np.sum(x**2), 2 * x
        x *= 2
        return value, gradient

    fo.check_gradient(spoils, x)
    assert np.array_equal(x, POINT)


@pytest.mark.parametrize("step", [1e-7, 1e-5, 1e-3])
def test_checker_takes_the_step_given(step):
    seen = []

    def quadratic(x):
        seen.append(x.copy())
        return np.sum(x**2), 2 * x

    assert fo.check_gradient(quadratic, [1.0, 8.0], step=step).ok
    moves = {float(v) for x in seen for v in np.abs(x - [1.0, 8.0])} - {0.0}
    assert moves
    assert all(v == pytest.approx(step, rel=1e-7) for v in moves)  # to the rounding of 8 + step
