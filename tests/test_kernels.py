"""Every kernel against the reference: sizes around every tile edge, dtypes, layouts, extreme values.

Where the data are small integers nothing rounds and the kernel must be exact; elsewhere the bound is that of
a sum of so many terms, each rounded once, in the kernel's epsilon (which is twice the unit roundoff: room for
the reference's own rounding in float64 and for the paths that multiply and add in two roundings).
"""

import operator
from decimal import Decimal, localcontext
from functools import partial
from itertools import product

import numpy as np
import pytest

import fastopt as fo
from fastopt import boundary, reference

pytestmark = pytest.mark.filterwarnings("error")

SIZES = [*range(1, 71), 127, 128, 129, 255, 256, 257, 511, 512, 513]
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
activations = pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
REDUCTIONS = ("mean", "sum", "none")


def rng_for(*words):
    return np.random.default_rng(list(repr(words).encode()))


def same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def within(ours, exact, bound):
    """|ours - exact| <= bound, element by element."""
    error = np.abs(np.asarray(ours, np.float64) - exact)
    assert np.shape(ours) == np.shape(exact)
    assert np.all(error <= bound), f"{np.max(error - bound)} above the bound"


def guarded(values):
    """A copy of values between sentinels, and a check that they still stand."""
    buffer = np.full(values.size + 128, -77, values.dtype)
    inside = buffer[64:-64].reshape(values.shape)
    inside[...] = values

    def check():
        assert (buffer[:64] == -77).all()
        assert (buffer[-64:] == -77).all()

    return inside, check


# ----------------------------------------------------------------------------------------------- dense layers

SHAPES = [shape for s in SIZES for shape in ((s, 5, 7), (5, s, 7), (5, 7, s))]  # samples, inputs, outputs
SHAPES += product((1, 13, 14, 15), (255, 256, 257), (15, 17, 31, 32, 33))
shapes = pytest.mark.parametrize(("n", "n_in", "n_out"), SHAPES)


@dtypes
@shapes
def test_dense_is_exact_on_integers(dtype, n, n_in, n_out):
    """Sums stay below 2**24; `out` is written in full and nothing beside it."""
    rng = rng_for("integers", n, n_in, n_out)
    x, weight, bias, dout = (
        rng.integers(-4, 5, shape).astype(dtype) for shape in ((n, n_in), (n_out, n_in), n_out, (n, n_out))
    )
    for b, activation in product((None, bias), (None, "relu")):
        exact = reference.dense_forward(x, weight, b, activation=activation)
        out, check = guarded(np.full((n, n_out), np.nan, dtype))
        assert fo.dense_forward(x, weight, b, activation=activation, out=out) is out
        check()
        assert np.array_equal(out, exact)
        same_bits([fo.dense_forward(x, weight, b, activation=activation)], [out])
        grads = fo.dense_backward(dout, x, weight, output=out, activation=activation)
        expected = reference.dense_backward(dout, x, weight, output=exact, activation=activation)
        for grad, e in zip(grads, expected, strict=True):
            assert grad.dtype == dtype
            assert np.array_equal(grad, e)


@dtypes
@shapes
def test_dense_to_the_rounding(dtype, n, n_in, n_out):
    """A chain of k terms is good to k + 1 roundings of the sum of their sizes; slopes are at most 1."""
    rng, eps = rng_for("normal", n, n_in, n_out), np.finfo(dtype).eps
    x, weight, bias, dout = (
        rng.standard_normal(shape).astype(dtype) for shape in ((n, n_in), (n_out, n_in), n_out, (n, n_out))
    )
    terms = np.abs(x).astype(float) @ np.abs(weight).T + np.abs(bias)
    sums = (
        (n_out, np.abs(dout).astype(float) @ np.abs(weight)),
        (n, np.abs(dout).T.astype(float) @ np.abs(x)),
        (n, np.abs(dout).sum(axis=0, dtype=float)),
    )
    for activation in (None, "relu", "sigmoid", "tanh"):
        exact = reference.dense_forward(x, weight, bias, activation=activation)
        out = fo.dense_forward(x, weight, bias, activation=activation)
        within(out, exact, (n_in + 1) * eps * terms + 4 * eps * np.abs(exact))
        grads = fo.dense_backward(dout, x, weight, output=out, activation=activation)
        exact = reference.dense_backward(dout, x, weight, output=out, activation=activation)
        for grad, e, (k, total) in zip(grads, exact, sums, strict=True):
            within(grad, e, (k + 4) * eps * total)  # the slope and its product round three times


@dtypes
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_activations_over_their_range(dtype, activation):
    """Relative to a few units in the last place, down to the smallest normal number; slopes absolutely."""
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).tiny
    size = np.concatenate([np.logspace(-300, 4, 3000), [0.0, 0.5, 1e4, 1e30, np.log(2) / 2]])
    with np.errstate(under="ignore"):
        s = np.concatenate([size, -size]).astype(dtype)[:, None]
    one = np.ones((1, 1), dtype)
    out = fo.dense_forward(s, one, activation=activation)
    exact = reference.dense_forward(s, one, activation=activation)
    within(out, exact, 4 * eps * np.abs(exact) + 4 * tiny * eps)  # 4 subnormal units at the very end
    dx, _, _ = fo.dense_backward(np.ones_like(s), s, one, output=out, activation=activation)
    exact, _, _ = reference.dense_backward(np.ones_like(s), s, one, output=out, activation=activation)
    within(dx, exact, 4 * eps)


@dtypes
@pytest.mark.parametrize("size", [1, 2, 17, 33])
def test_denormals_are_kept(dtype, size):
    small = np.finfo(dtype).smallest_subnormal
    out = fo.dense_forward(np.ones((3, size), dtype), np.full((2, size), small), [small, 0.0])
    assert np.array_equal(out, np.array([[(size + 1) * small, size * small]] * 3))
    dx, dweight, dbias = fo.dense_backward(out, np.ones((3, size), dtype), np.ones((2, size), dtype))
    assert np.array_equal(dx, np.full((3, size), (2 * size + 1) * small))
    assert np.array_equal(dweight, np.repeat(3 * out[:1].T, size, axis=1))
    assert np.array_equal(dbias, 3 * out[0])
    param = np.full(size, 3 * small)
    fo.sgd_step(param, np.full(size, small), lr=1.0)
    assert np.array_equal(param, np.full(size, 2 * small))


# ------------------------------------------------------------------------ a row alone, threads: the same bits

ROW_SIZES = [(1, 1), (3, 10), (17, 33), (40, 257), (300, 70)]
BATCHES = [slice(i, i + 1) for i in range(0, 300, 37)]
BATCHES += [slice(0, 2), slice(1, 14), slice(3, 18), slice(7, 136), slice(0, 257)]


@dtypes
@activations
@pytest.mark.parametrize(("n_in", "n_out"), ROW_SIZES)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(dtype, activation, n_in, n_out):
    rng = rng_for("rows", n_in, n_out)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((300, n_in), (n_out, n_in), n_out))
    net = fo.MLP([n_in, n_out, 9, 3], activation=activation, dtype=dtype)
    net.flat[:] = rng.standard_normal(net.flat.size)
    order = rng.permutation(300)
    for forward in (
        lambda x: fo.dense_forward(x, weight.astype(dtype), bias, activation=activation),
        net.forward,
    ):
        whole = forward(x)
        same_bits([forward(x[order])], [whole[order]])
        for batch in BATCHES:
            same_bits([forward(x[batch])], [whole[batch]])


@dtypes
@activations
def test_network_is_its_layers(dtype, activation):
    rng = rng_for("layers")
    net = fo.MLP([20, 33, 5, 4], activation=activation, dtype=dtype)
    net.flat[:] = rng.standard_normal(net.flat.size)
    x = rng.standard_normal((150, 20)).astype(dtype)
    h = x
    for weight, bias, f in zip(net.weights, net.biases, [activation, activation, None], strict=True):
        h = fo.dense_forward(h, weight, bias, activation=f)
    same_bits([net.forward(x)], [h])
    exact = reference.MLP.from_network(net).forward(x)
    within(h, exact, 100 * np.finfo(dtype).eps * np.abs(h).max())  # 58 terms


@dtypes
@activations
@pytest.mark.parametrize(("n", "n_in", "n_out"), [(1, 300, 40), (2, 3, 5), (300, 70, 130), (129, 33, 1)])
def test_threads_change_no_bit(dtype, activation, n, n_in, n_out):
    rng = rng_for("threads", n)
    x, weight, bias, dout = (
        rng.standard_normal(shape).astype(dtype) for shape in ((n, n_in), (n_out, n_in), n_out, (n, n_out))
    )
    net = fo.MLP([n_in, 8, n_out], activation=activation, dtype=dtype)

    def results(n_threads):
        out = fo.dense_forward(x, weight, bias, activation=activation, n_threads=n_threads)
        options = {"output": out, "activation": activation, "n_threads": n_threads}
        return [out, *fo.dense_backward(dout, x, weight, **options), net.forward(x, n_threads=n_threads)]

    one = results(1)
    for n_threads in (2, 3, 5, 17, None):
        same_bits(results(n_threads), one)


# ----------------------------------------------------------------------------------------------------- losses

# name, what y holds, options; the forms (n,), (n, 1) and (n, K) are columns below
LOSSES = [
    pytest.param("softmax_cross_entropy", "labels", {}, id="softmax_cross_entropy"),
    pytest.param("softmax_cross_entropy", "labels", {"label_smoothing": 0.1}, id="smoothing 0.1"),
    pytest.param("softmax_cross_entropy", "labels", {"label_smoothing": 1.0}, id="smoothing 1"),
    pytest.param("hinge", "labels", {}, id="hinge"),
    pytest.param("squared_hinge", "labels", {}, id="squared_hinge"),
    pytest.param("hinge", "signs", {}, id="hinge binary"),
    pytest.param("squared_hinge", "signs", {}, id="squared_hinge binary"),
    pytest.param("binary_cross_entropy", "unit", {}, id="binary_cross_entropy"),
    *(pytest.param(name, "positive", {}, id=name) for name in ("mse", "mae", "msle")),
    pytest.param("binary_cross_entropy", "unit", {"label_smoothing": 0.25}, id="binary smoothing"),
    pytest.param("huber", "positive", {}, id="huber"),
    pytest.param("huber", "positive", {"delta": 0.1}, id="huber 0.1"),
    pytest.param("hinge", "signs", {"class_weight": [0.5, 2.0]}, id="hinge class_weight"),
    pytest.param("squared_hinge", "signs", {"class_weight": [0.5, 2.0]}, id="squared_hinge class_weight"),
]
losses = pytest.mark.parametrize(("name", "kind", "options"), LOSSES)


def loss_data(name, kind, shape, dtype):
    """Multiples of 2**-6, so that margins, and with them the gradients' jumps, are exact in either dtype."""
    rng = rng_for(name, *shape)
    scores = rng.integers(-256, 257, shape) / 64
    n, k = shape[0], shape[-1]
    if name == "msle":
        scores = np.abs(scores) - 0.75
    y = {
        "labels": lambda: rng.integers(0, k, n),
        "signs": lambda: rng.choice([-1, 1], n),
        "unit": lambda: rng.integers(0, 65, shape) / 64,
        "positive": lambda: rng.integers(-48, 193, shape) / 64,
    }[kind]()
    return scores.astype(dtype), y


def check_loss(name, kind, options, shape, dtype):
    scores, y = loss_data(name, kind, shape, dtype)
    n, m = len(scores), 1 if scores.ndim == 1 or kind == "labels" else shape[1]
    weight = rng_for("weight", n).integers(0, 9, n) / 4
    weight[0] = 1.5
    eps = np.finfo(dtype).eps
    rounding = (scores.size // n + 16) * eps  # a sum over K scores, and the function's own steps
    for w, reduction in product((None, weight), REDUCTIONS):
        call = {"sample_weight": w, "reduction": reduction, **options}
        loss, dscores = getattr(fo, name)(scores, y, **call)
        exact, dexact = getattr(reference, name)(scores, y, **call)
        assert dscores.dtype == dtype
        if reduction == "none":
            assert loss.dtype == dtype
        else:
            assert type(loss) is float
        within(loss, exact, rounding * np.maximum(1.0 if reduction != "sum" else n, np.abs(exact)))
        v = np.ones(n) if w is None or reduction == "none" else w
        largest_factor = v.max() / (v.sum() if reduction == "mean" else 1.0) / m
        within(dscores, dexact, rounding * max(largest_factor, np.abs(dexact).max()))


@dtypes
@losses
@pytest.mark.parametrize("k", SIZES)
def test_losses_over_widths(dtype, name, kind, options, k):
    least = 2 if kind == "labels" else 1  # one score a sample is the binary form
    check_loss(name, kind, options, (5, 1 if kind == "signs" else max(k, least)), dtype)


@dtypes
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_over_one_class_is_certain(dtype, smoothing):
    scores = np.array([[7.0], [-1e4]], dtype)
    loss, dscores = fo.softmax_cross_entropy(scores, [0, 0], label_smoothing=smoothing)
    assert loss == 0.0
    assert not dscores.any()


@dtypes
@losses
@pytest.mark.parametrize("n", SIZES)
def test_losses_over_samples(dtype, name, kind, options, n):
    binary, wide = [(n,), (n, 1)], [(n, 3)]
    for shape in {"labels": wide, "signs": binary}.get(kind, binary + wide):
        check_loss(name, kind, options, shape, dtype)


@dtypes
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "hinge", "squared_hinge"])
@pytest.mark.parametrize("k", [2, 3, 16, 17, 33])
def test_every_class_can_be_the_label(dtype, name, k):
    """Against the same scores with the label's class swapped to the front."""
    scores = np.tile(loss_data(name, "labels", (1, k), dtype)[0], (k, 1))
    swapped, y = scores.copy(), np.arange(k)
    swapped[y, 0], swapped[y, y] = scores[y, y], scores[y, 0]
    loss, dscores = getattr(fo, name)(scores, y, reduction="none")
    swapped_loss, dswapped = getattr(reference, name)(swapped, np.zeros(k, int), reduction="none")
    expected = dswapped.copy()
    expected[y, 0], expected[y, y] = dswapped[y, y], dswapped[y, 0]
    eps = np.finfo(dtype).eps
    within(loss, swapped_loss, (k + 16) * eps * np.maximum(1.0, swapped_loss))
    within(dscores, expected, (k + 16) * eps * max(1.0, np.abs(expected).max()))


@dtypes
@losses
def test_a_zero_weight_leaves_the_sample_out(dtype, name, kind, options):
    scores, y = loss_data(name, kind, (6, 1) if kind == "signs" else (6, 5), dtype)
    kept = np.array([0, 2, 3, 5])
    weight = np.zeros(6)
    weight[kept] = 1.0
    for reduction in ("mean", "sum"):
        loss, dscores = getattr(fo, name)(scores, y, sample_weight=weight, reduction=reduction, **options)
        alone, dalone = getattr(fo, name)(scores[kept], y[kept], reduction=reduction, **options)
        same_bits([loss, dscores[kept]], [alone, dalone])
        assert not dscores[[1, 4]].any()


@dtypes
@pytest.mark.parametrize("weight", [1e-30, 1e38, 3e38])
def test_mean_does_not_depend_on_the_scale_of_the_weights(dtype, weight):
    """Also where their sum does not fit float32."""
    pred, target = np.array([1.0, 2.0, -0.5, 3.0], dtype), np.zeros(4)
    loss, dpred = fo.mse(pred, target, sample_weight=np.full(4, weight))
    exact, dexact = fo.mse(pred, target)
    np.testing.assert_allclose(loss, exact, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(dpred, dexact, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_near_the_largest_number(reduction):
    """Each loss, and the mean, is in range though the sum is not."""
    pred = np.array([1.5e308, 1.5e308, -1.5e308])
    loss, dpred = fo.mae(pred, np.zeros(3), reduction=reduction)
    np.testing.assert_allclose(loss, 1.5e308, rtol=1e-15)  # four roundings of the mean at most
    np.testing.assert_allclose(dpred, np.sign(pred) / (3 if reduction == "mean" else 1), rtol=1e-15)


# ----------------------------------------------------------------------------------------------- fifty digits


def exact_loss(name, scores, y, smoothing=0.0):
    """One sample's loss and gradient by its definition, in decimals of 60 digits."""
    s, y = [Decimal(float(v)) for v in scores], y if isinstance(y, int) else Decimal(y)
    if name == "softmax_cross_entropy":
        K, e = len(s), Decimal(smoothing)
        t = [(1 - e) * (j == y) + e / K for j in range(K)]
        powers = [(v - max(s)).exp() for v in s]
        log_total = sum(powers).ln()
        losses = [log_total + (max(s) - v) for v in s]
        return sum(map(operator.mul, t, losses)), [p / sum(powers) - t[j] for j, p in enumerate(powers)]
    if name.endswith("hinge"):
        binary = len(s) == 1
        h = [max(Decimal(0), (1 - y * v) if binary else (v - s[y] + 1)) for v in s]
        if not binary:
            h[y] = Decimal(0)
        d = [2 * v if name == "squared_hinge" else Decimal(int(v > 0)) for v in h]
        if binary:
            d = [-y * d[0]]
        else:
            d[y] = -sum(d)
        return sum(v * v if name == "squared_hinge" else v for v in h), d
    (s,) = s
    if name == "binary_cross_entropy":
        small = (-abs(s)).exp()
        a, one_minus_a = (v / (1 + small) for v in ((1, small) if s > 0 else (small, 1)))
        log_a, log_one_minus_a = (min(v, Decimal(0)) - (1 + small).ln() for v in (s, -s))
        return -y * log_a - (1 - y) * log_one_minus_a, [(1 - y) * a - y * one_minus_a]
    if name == "msle":
        difference = (1 + s).ln() - (1 + y).ln()
        return difference**2, [2 * difference / (1 + s)]
    difference = s - y
    if name == "mse":
        return difference**2, [2 * difference]
    return abs(difference), [Decimal((difference > 0) - (difference < 0))]


ROWS_OF_LOGITS = [
    [1e4, -1e4, 0.0],
    [1e-40, -1e-40, 0.0],
    [7.0, 7.0, 7.0],
    [0.3, 1e8, -2.0],
    [30.0, -30.0, 37.5],
    [-90.0, 14.0, 0.1],
    [1e30, 0.0, -1e30],
    [-1e4, -1e4, -9990.0],
    [2.5, np.inf, 0.1],  # inf stands for 0.9 of the largest number
    [np.inf, -np.inf, 0.0],
]
SINGLES = sorted({abs(v) for row in ROWS_OF_LOGITS for v in row} | {1.0, 1e-3, 88.0, 103.0, 709.0, 745.0})


def logits(row, dtype):
    largest = 0.9 * float(np.finfo(dtype).max)
    return np.clip([row], -largest, largest).astype(dtype)


@dtypes
@pytest.mark.parametrize(
    ("name", "smoothing"),
    [*(("softmax_cross_entropy", e) for e in (0.0, 0.1, 0.9, 1.0)), ("hinge", 0.0), ("squared_hinge", 0.0)],
)
@pytest.mark.parametrize("row", ROWS_OF_LOGITS, ids=str)
def test_rows_of_extreme_logits(dtype, name, smoothing, row):
    options = {"label_smoothing": smoothing} if smoothing else {}
    for y in range(3):
        against_fifty_digits(name, logits(row, dtype), y, smoothing, options)


@dtypes
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("hinge", [-1, 1]),
        ("squared_hinge", [-1, 1]),
        ("binary_cross_entropy", [0.0, 1.0, 0.5, 0.999, 0.001]),
        ("mse", [0.0, -3.0, 7.0]),
        ("mae", [0.0, -3.0, 7.0]),
        ("msle", [0.0, -0.875, 7.0]),
    ],
)
@pytest.mark.parametrize("size", SINGLES)
def test_extreme_singles(dtype, name, targets, size):
    for y, s in product(targets, (size, -size)):
        if name != "msle" or s > -1:
            against_fifty_digits(name, logits([s], dtype), y)


@dtypes
def test_msle_beside_its_pole(dtype):
    for s in (np.nextafter(np.array(-1, dtype), 0), -0.999, -0.5):
        against_fifty_digits("msle", logits([s], dtype), -0.875)


@dtypes
@pytest.mark.parametrize("sign", [-1, 1])
def test_small_losses_keep_their_digits(dtype, sign):
    """log(1 + x) is good to its own last places, however small x is, and so are losses made of it."""
    rounding = 8 * np.finfo(dtype).eps  # exp and log1p to a unit or two, their square, the division
    small = sign * np.logspace(-15, -0.5, 200).astype(dtype)
    s, y = sign * np.linspace(1, 80, 200).astype(dtype), np.full(200, sign > 0)
    for loss, pred, target in (("msle", small, np.zeros(200)), ("binary_cross_entropy", s, y)):
        ours, theirs = (getattr(impl, loss)(pred, target, reduction="none") for impl in (fo, reference))
        within(ours[0], theirs[0], rounding * theirs[0])
        if loss == "msle" or sign < 0:  # the gradient at y = 1 is 1 - a taken from the rounded a
            within(ours[1], theirs[1], rounding * np.abs(theirs[1]))


def against_fifty_digits(name, scores, y, smoothing=0.0, options=None):
    """Within 4 eps max(1, |exact|) wherever the exact value is in range; out of range it is an error."""
    eps, largest = np.finfo(scores.dtype).eps, float(np.finfo(scores.dtype).max)
    target = [y]
    if not isinstance(y, int):
        y = float(scores.dtype.type(y))  # a target is taken in the dtype of the scores
        target = [[y]]
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**9), 10**9
        exact, dexact = exact_loss(name, scores[0], y, smoothing)
        if not all(abs(v) <= largest for v in (exact, *dexact)):
            with pytest.raises(OverflowError, match=f"the {name} loss of finite .* overflows {scores.dtype}"):
                getattr(fo, name)(scores, target, **options or {})
            return
        for reduction in REDUCTIONS:
            loss, dscores = getattr(fo, name)(scores, target, reduction=reduction, **options or {})
            for ours, theirs in zip([*np.ravel(loss), *dscores[0]], [exact, *dexact], strict=True):
                error = abs(Decimal(float(ours)) - theirs) / max(1, abs(theirs))
                assert error <= 4 * Decimal(float(eps)), f"{ours} is not {theirs:.17g} ({reduction}, y = {y})"


# --------------------------------------------------------------------------------------- softmax and accuracy


@dtypes
@pytest.mark.parametrize("k", SIZES)
def test_softmax(dtype, k):
    scores, _ = loss_data("softmax", "labels", (6, k), dtype)
    p = fo.softmax(scores)
    assert p.dtype == dtype
    exact = reference.softmax(scores)
    within(p, exact, (k + 16) * np.finfo(dtype).eps * exact)
    same_bits([fo.softmax(scores[3:4])], [p[3:4]])


@dtypes
@pytest.mark.parametrize("row", ROWS_OF_LOGITS, ids=str)
def test_softmax_of_extreme_logits(dtype, row):
    scores = logits(row, dtype)
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**9), 10**9
        powers = [(Decimal(float(v)) - Decimal(float(scores.max()))).exp() for v in scores[0]]
        exact = [float(v / sum(powers)) for v in powers]
    within(fo.softmax(scores)[0], exact, 4 * np.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize(
    ("scores", "y", "value"),
    [
        ([[1, 2, 3], [3, 2, 1], [1, 3, 2], [0, 1, 0]], [2, 0, 2, 1], 0.75),
        ([[2, 2, 1], [1, 2, 2]], [0, 2], 0.5),  # the first maximum
        ([0.5, -0.5, 0.0, 2.0], [1, -1, -1, -1], 0.75),
        ([[0.5], [-0.5], [0.0], [2.0]], [1, -1, 1, 1], 0.75),
    ],
)
def test_accuracy(dtype, scores, y, value):
    assert fo.accuracy(np.array(scores, dtype), y) == reference.accuracy(scores, y) == value
    assert type(fo.accuracy(scores, y)) is float


# ----------------------------------------------------------------------------------------------- update rules

STEPS = {
    "sgd": lambda impl, p, g, v, momentum, **o: impl.sgd_step(p, g, **o),
    "momentum": lambda impl, p, g, v, **o: impl.momentum_step(p, g, v, **o),
    "nesterov": lambda impl, p, g, v, **o: impl.nesterov_step(p, g, v, **o),
}
rules = pytest.mark.parametrize("rule", STEPS)
STEP_OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.0},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "l1": 2.0},
    {"lr": 0.1, "l1": 2.0, "weight_decay": 0.3},
]


@dtypes
@rules
@pytest.mark.parametrize("options", STEP_OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_steps(dtype, rule, options, size):
    """Each of two steps is good to a few roundings of the terms it adds; a soft threshold magnifies none."""
    rng, eps = rng_for("step", size), np.finfo(dtype).eps
    param, check_param = guarded((0.4 * rng.standard_normal(size)).astype(dtype))
    velocity, check_velocity = guarded((0.1 * rng.standard_normal(size)).astype(dtype))
    exact, exact_velocity = param.astype(float), velocity.astype(float)
    for grad in rng.standard_normal((2, size)).astype(dtype):
        assert STEPS[rule](fo, param, grad, velocity, momentum=0.9, **options) is None
        STEPS[rule](reference, exact, grad.astype(float), exact_velocity, momentum=0.9, **options)
        check_param()
        check_velocity()
        bound = 16 * eps * (2 + np.abs(grad).max() + np.abs(exact).max() + np.abs(exact_velocity).max())
        within(param, exact, bound)
        within(velocity, exact_velocity, bound)


@dtypes
@rules
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4), (1, 1, 1, 17)])
@pytest.mark.parametrize("options", STEP_OPTIONS[2:4], ids=str)
def test_steps_take_any_shape(dtype, rule, shape, options):
    rng = rng_for("shape", *shape)
    param, grad, velocity = (rng.standard_normal(shape) + np.zeros(shape, dtype) for _ in range(3))
    param, grad, velocity = (np.asarray(a, dtype) for a in (param, grad, velocity))
    flat = [a.reshape(-1).copy() for a in (param, grad, velocity)]
    STEPS[rule](fo, param, grad, velocity, momentum=0.5, **options)
    STEPS[rule](fo, *flat, momentum=0.5, **options)
    same_bits([param.reshape(-1), velocity.reshape(-1)], [flat[0], flat[2]])


@dtypes
@rules
@pytest.mark.parametrize("size", [1, 3, 4, 15, 16, 17, 40])
def test_l1_gives_positive_zeros(dtype, rule, size):
    """|W - α g| up to and including the threshold α l1 = 0.5 becomes +0; beyond it, what is left."""
    z = np.resize(np.array([0.5, -0.5, 0.25, -0.25, 0.0, -0.0, 0.75, -0.625], dtype), size)
    param, velocity = z + np.array(0.25, dtype), np.zeros(size, dtype)
    STEPS[rule](fo, param, np.full(size, 0.5, dtype), velocity, momentum=0.5, lr=0.5, l1=1.0)
    # under Nesterov the sparse iterate is one velocity further on
    iterate = param + np.array(0.5, dtype) * velocity if rule == "nesterov" else param
    expected = np.resize(np.array([0, 0, 0, 0, 0, 0, 0.25, -0.125]), size)
    assert np.array_equal(iterate, expected)
    assert np.array_equal(np.signbit(iterate), expected < 0)


@dtypes
def test_nesterov_iterate_is_exactly_zero_under_l1(dtype):
    """W = θ⁺ - γV is rounded such that adding γV back gives the zeros of θ⁺, whatever γ and V are."""
    rng = rng_for("iterate")
    param, velocity = (rng.standard_normal(1000).astype(dtype) for _ in range(2))
    fo.nesterov_step(param, rng.standard_normal(1000), velocity, lr=0.1, momentum=0.9, l1=3.0)
    iterate = param + np.array(0.9, dtype) * velocity
    assert 100 < np.count_nonzero(iterate == 0) < 900


# -------------------------------------------------------------------------- layouts and dtypes: the same bits


def every_second(a):
    spread = np.full([2 * size for size in a.shape], 99, a.dtype)
    spread[(slice(None, None, 2),) * a.ndim] = a
    return spread[(slice(None, None, 2),) * a.ndim]


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


class Subclass(np.ndarray):
    """Whose products are not NumPy's."""

    def __mul__(self, other):
        return self

    __rmul__ = __matmul__ = __mul__


LAYOUTS = {
    "C": lambda a: a.copy(),
    "Fortran": np.asfortranarray,
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "every second": every_second,
    "zero strides": lambda a: np.broadcast_to(a[:1], a.shape),
    "read-only": read_only,
    "unaligned": unaligned,
    "unaligned strided": lambda a: every_second(np.stack([a, a]))[0] if a.ndim > 1 else unaligned(a),
    "memmap": None,  # needs a file
    "subclass": lambda a: a.view(Subclass),
    "list": lambda a: a.tolist(),
    **{
        dtype: partial(np.ndarray.astype, dtype=dtype) for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8")
    },
    **{dtype: partial(np.ndarray.astype, dtype=dtype) for dtype in ("u1", "u2", "u4", "u8")},
    "longdouble": partial(np.ndarray.astype, dtype="g"),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian half": partial(np.ndarray.astype, dtype=">f2"),
    "big-endian strided": lambda a: every_second(a.astype(a.dtype.newbyteorder(">"))),
}
FOREIGN = (
    "longdouble",
    "big-endian",
    "big-endian half",
    "big-endian strided",
)  # refused where rows are read in place


def data(*shape, least=0):
    """Small integers: the same numbers in every dtype of LAYOUTS."""
    return rng_for("data", *shape).integers(least, 3, shape)


def step_with(rule, dtype, grad):
    param, velocity = data(6, 5).astype(dtype), data(5, 6).astype(dtype).T.copy()
    STEPS[rule](fo, param, grad, velocity, momentum=0.9, lr=0.1, weight_decay=0.1, l1=0.5)
    return param, velocity


def forward_with(dtype, X):
    return (fo.MLP([5, 4, 3], dtype=dtype).forward(X),)


def loss_and_grad_with(loss, dtype, X, y, sample_weight):
    return fo.MLP([5, 4, 3], activation="tanh", dtype=dtype).loss_and_grad(X, y, loss, sample_weight)


def fit_with(loss, dtype, X, y, sample_weight):
    net = fo.MLP([5, 4, 3], activation="tanh", dtype=dtype)
    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.1, momentum=0.5), batch_size=2, seed=1)
    history = trainer.fit(X, y, sample_weight=sample_weight, epochs=2, validation_data=(X, y, sample_weight))
    return net.flat, history.loss, history.val_loss


W = {"sample_weight": 1 + data(6)}
LABELS, SIGNS, BITS = {"y": data(6)}, {"y": 1 + 0 * data(6)}, {"y": data(6, 3) % 2}
# a call, its arrays, and the one whose dtype decides (None: the network or parameter, in `dtype`)
CALLS = {
    "dense_forward": (
        lambda dtype, **a: (fo.dense_forward(**a, activation="sigmoid"),),
        {"x": data(6, 5), "weight": data(3, 5), "bias": data(3)},
        "weight",
    ),
    "dense_backward": (
        lambda dtype, **a: fo.dense_backward(**a, activation="tanh"),
        {"dout": data(6, 3), "x": data(6, 5), "weight": data(3, 5), "output": data(6, 3) % 2},
        "weight",
    ),
    "softmax": (lambda dtype, scores: (fo.softmax(scores),), {"scores": data(6, 3)}, "scores"),
    "accuracy": (
        lambda dtype, scores, y: (fo.accuracy(scores, y),),
        {"scores": data(6, 3), **LABELS},
        "scores",
    ),
    **{
        f"{name} {form}".strip(): (
            lambda dtype, name=name, **a: getattr(fo, name)(**a),
            {"scores": scores, **y, **W},
            "scores",
        )
        for name, form, scores, y in [
            ("softmax_cross_entropy", "", data(6, 3), LABELS),
            ("hinge", "", data(6, 3), LABELS),
            ("squared_hinge", "", data(6, 3), LABELS),
            ("hinge", "binary", data(6), SIGNS),
            ("squared_hinge", "binary", data(6, 1), SIGNS),
            ("binary_cross_entropy", "", data(6, 3), BITS),
        ]
    },
    **{
        name: (
            lambda dtype, name=name, **a: getattr(fo, name)(**a),
            {"pred": data(6, 3), "target": data(6, 3), **W},
            "pred",
        )
        for name in ("mse", "mae", "msle")
    },
    **{f"{rule}_step": (partial(step_with, rule), {"grad": data(6, 5)}, None) for rule in STEPS},
    "MLP.forward": (forward_with, {"X": data(6, 5)}, None),
    "MLP.loss_and_grad": (partial(loss_and_grad_with, "hinge"), {"X": data(6, 5), **LABELS, **W}, None),
    "MLP.loss_and_grad mse": (partial(loss_and_grad_with, "mse"), {"X": data(6, 5), **BITS, **W}, None),
    "Trainer.fit": (partial(fit_with, "softmax_cross_entropy"), {"X": data(6, 5), **LABELS, **W}, None),
    "Trainer.fit bce": (partial(fit_with, "binary_cross_entropy"), {"X": data(6, 5), **BITS, **W}, None),
}


def is_label(call, argument):
    return argument == "y" and "bce" not in call and "binary_cross" not in call and "mse" not in call


def in_layout(layout, array, tmp_path):
    if layout != "memmap":
        return LAYOUTS[layout](array)
    array.tofile(tmp_path / "data")
    return np.memmap(tmp_path / "data", array.dtype, "r", shape=array.shape)


def root_bytes(a):
    """The bytes of the whole block of memory an array is a view of."""
    while isinstance(getattr(a, "base", None), np.ndarray):
        a = a.base
    return np.asarray(a).tobytes()


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("call", "argument"), [(call, argument) for call in CALLS for argument in CALLS[call][1]]
)
def test_layout_and_dtype_change_no_bit(dtype, layout, call, argument, tmp_path):
    function, arrays, decider = CALLS[call]
    arrays = {name: a.astype("int64" if is_label(call, name) else dtype) for name, a in arrays.items()}
    given = in_layout(layout, arrays[argument], tmp_path)
    if argument == "X" and layout in FOREIGN:
        with pytest.raises(TypeError, match="X has dtype .* convert it to a native float"):
            function(dtype, **arrays | {"X": given})
        return
    decided = dtype
    if argument == decider:
        decided = "float32" if np.asarray(given).dtype.newbyteorder("=") == np.float32 else "float64"
    plain = {
        name: np.array(
            given if name == argument else a, "int64" if is_label(call, name) else decided, order="C"
        )
        for name, a in arrays.items()
    }
    before = root_bytes(given)
    result = function(dtype, **arrays | {argument: given})
    assert root_bytes(given) == before
    same_bits(result, function(dtype, **plain))


@dtypes
def test_kernels_get_aligned_arrays(dtype):
    """Reading others is undefined, even where the processor does it."""
    a, weight, labels = unaligned(data(6, 3).astype(dtype)), unaligned(W["sample_weight"] * 1.0), unaligned(data(6))
    arrays = [
        boundary.data("x", a, (6, 3)),
        *boundary.loss_inputs("mse", "pred", a, "target", a, weight),
        *boundary.loss_inputs("hinge", "scores", a, "y", labels, weight),
        boundary.loss_result((0.0, a), a)[1],
    ]
    for array in arrays:
        assert array is None or array.flags.aligned and array.flags.c_contiguous


CONVERTED = ["f2", "f4", "f8", "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


def extremes_of(source, dtype):
    """Values of a dtype that are hard to convert: its ends, ties of float32, subnormals."""
    source = np.dtype(source)
    if source.kind == "b":
        return np.array([True, False])
    if source.kind in "iu":
        info = np.iinfo(source)
        near_ties = [v + d for v in (0, 2**24, 2**25, 2**53, 2**54, info.min, info.max) for d in range(-3, 4)]
        return np.array([v for v in near_ties if info.min <= v <= info.max], source)
    if source == "f2":
        halves = np.arange(2**16, dtype="u2").view("f2")
        return halves[np.isfinite(halves)]
    values = np.concatenate([np.logspace(-45, 38, 300), 1 + np.arange(-9, 9) * 2.0**-25, [0.0]])
    with np.errstate(under="ignore"):
        return np.concatenate([values, -values]).astype(source)


@dtypes
@pytest.mark.parametrize("source", CONVERTED)
@pytest.mark.parametrize(
    "layout", ["C", "Fortran", "every second", "negative strides", "unaligned", "read-only"]
)
def test_rows_are_converted_as_numpy_does(dtype, source, layout):
    """The identity as a network: what comes out is what went in, as the network's dtype."""
    values = extremes_of(source, dtype)
    X = LAYOUTS[layout](np.resize(values, (-(-values.size // 7), 7)))
    net = fo.MLP([7, 7], dtype=dtype)
    net.weights[0][...] = np.eye(7)
    with np.errstate(under="ignore"):
        converted = X.astype(dtype)
    assert np.array_equal(net.forward(X), converted)


@pytest.mark.parametrize("source", CONVERTED)
@pytest.mark.parametrize("layout", ["C", "Fortran", "every second", "unaligned"])
@dtypes
def test_training_reads_any_dtype_as_its_converted_copy(dtype, source, layout):
    X = LAYOUTS[layout](rng_for("train").integers(0, 2, (70, 9)).astype(source))
    y = rng_for("labels").integers(0, 3, 70)

    def trained(X):
        net = fo.MLP([9, 20, 3], dtype=dtype)
        trainer = fo.Trainer(net, loss="softmax_cross_entropy", optimizer=fo.SGD(0.1), batch_size=33, seed=3)
        history = trainer.fit(X, y, epochs=2)
        return [net.flat, history.loss, *net.loss_and_grad(X, y)]

    same_bits(trained(X), trained(X.astype(dtype)))


@pytest.mark.parametrize("source", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("k", [2, 100, 300])
def test_labels_of_any_integer_dtype(source, k):
    """Also with more classes than the dtype counts."""
    scores = rng_for("any label").standard_normal((100, k))
    y = np.arange(100) % min(k, 100)
    for loss in (fo.softmax_cross_entropy, fo.hinge, fo.squared_hinge):
        same_bits(loss(scores, y.astype(source)), loss(scores, y))
    assert fo.accuracy(scores, y.astype(source)) == fo.accuracy(scores, y)


# --------------------------------------------------------------------------------- what is written, and where


@dtypes
def test_out_may_be_a_part_of_something(dtype):
    x, weight = rng_for("x").standard_normal((6, 5)), rng_for("w").standard_normal((3, 5)).astype(dtype)
    big = np.full((10, 3), np.nan, dtype)
    assert fo.dense_forward(x, weight, out=big[2:8]).base is big
    same_bits([big[2:8]], [fo.dense_forward(x, weight)])
    assert np.isnan(big[:2]).all()
    assert np.isnan(big[8:]).all()


def test_results_are_new_and_writable():
    """No result shares memory with an input, nor with the next result."""
    scores, y = np.ones((4, 3)), np.ones((4, 3))
    (_, first), (_, second) = fo.mse(scores, y), fo.mse(scores, y)
    x, weight = np.ones((4, 3)), np.ones((2, 3))
    grads = fo.dense_backward(np.ones((4, 2)), x, weight)
    net = fo.MLP([3, 2], dtype="float64")
    results = [
        first,
        second,
        *grads,
        fo.softmax(scores),
        net.forward(x),
        net.loss_and_grad(x, [0, 1, 0, 1])[1],
    ]
    for i, result in enumerate(results):
        assert result.flags.writeable
        for other in (scores, y, x, weight, net.flat, *results[:i]):
            assert not np.shares_memory(result, other)
