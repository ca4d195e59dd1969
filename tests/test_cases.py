"""The worked cases and formulas of the course material, each with its literal numbers.

Tests run on the compiled package and on the reference. `printed` compares at the precision of the printed
number; other tolerances say where they come from.
"""

import re
from decimal import Decimal
from itertools import pairwise, product
from math import ceil

import numpy as np
import pytest
from scipy.special import expit

import fastopt as fo
from fastopt import reference

both = pytest.mark.parametrize(
    "impl", [pytest.param(fo, id="fastopt"), pytest.param(reference, id="reference")]
)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

RULES = {
    "sgd": {},
    "momentum": {"momentum": 0.5},
    "nesterov": {"momentum": 0.5, "nesterov": True},
}
rules = pytest.mark.parametrize("rule", RULES)


def printed(value, *texts):
    """value equals the printed number(s): within half a unit of the last digit shown."""
    for v, text in zip(np.ravel(value), texts, strict=True):
        half_unit = 0.5 * 10.0 ** Decimal(text).as_tuple().exponent
        assert abs(float(v) - float(text)) <= half_unit * (1 + 1e-6), f"{v} is not {text}"


def network(impl, sizes, weight=None, bias=None, **options):
    """A float64 network; the first layer takes the given parameters."""
    net = impl.MLP(sizes, **{"dtype": "float64", **options})
    if weight is not None:
        net.weights[0][...] = weight
    if bias is not None:
        net.biases[0][...] = bias
    return net


def full_batch(impl, net, loss, X, **options):
    optimizer = fo.SGD(**options)
    return impl.Trainer(net, loss=loss, optimizer=optimizer, batch_size=len(X), shuffle=False, seed=0)


def no_loss(scores, y):
    """A loss that is 0 everywhere: what is left of a step is the penalty and the velocity."""
    return 0.0, np.zeros_like(scores)


# ----------------------------------------------------------------------------------------- scoring and losses

ANIMALS = [[4.26, 1.33, -1.01], [3.76, -1.20, -3.81], [-2.37, 1.03, -2.27]]  # dog, cat, panda
PANDA = [[-3.44, 1.16, 3.91]]


@both
@dtypes
@pytest.mark.parametrize(
    ("loss", "per_sample", "mean"),
    [("hinge", ["0.00", "5.96", "5.20"], "3.72"), ("squared_hinge", ["0.0000", "35.5216", "19.30"], "18.27")],
)
def test_rows_1_and_2_multiclass_hinge(impl, dtype, loss, per_sample, mean):
    scores, y = np.array(ANIMALS, dtype), np.arange(3)
    printed(getattr(impl, loss)(scores, y, reduction="none")[0], *per_sample)
    printed(getattr(impl, loss)(scores, y)[0], mean)


@both
@dtypes
def test_row_3_softmax_cross_entropy(impl, dtype):
    scores = np.array(PANDA, dtype)
    printed(np.exp(scores), "0.0321", "3.1899", "49.8990")
    printed(impl.softmax(scores), "0.0006", "0.0601", "0.9393")
    printed(impl.softmax_cross_entropy(scores, np.array([2]))[0], "0.0626")


@both
@dtypes
@pytest.mark.parametrize("as_row", [False, True])
@pytest.mark.parametrize(
    ("loss", "pred", "target", "value"),
    [
        pytest.param("mse", [0.7, 0.9, 1.2], [0.8, 0.8, 1.1], "0.01", id="row 4"),
        pytest.param("mae", [0.7, 0.9, 1.2], [0.8, 0.8, 1.1], "0.1", id="row 5"),
        pytest.param("msle", [0.7, 0.9], [0.8, 0.8], "0.003095", id="row 6"),
    ],
)
def test_rows_4_to_6_regression(impl, dtype, as_row, loss, pred, target, value):
    """The mean over samples of one output is the mean over the outputs of one sample."""
    pred, target = np.array(pred, dtype), np.array(target, dtype)
    if as_row:
        pred, target = pred[np.newaxis], target[np.newaxis]
    printed(getattr(impl, loss)(pred, target)[0], value)


@both
@dtypes
def test_row_6_is_the_natural_logarithm(impl, dtype):
    value = impl.msle(np.array([0.7, 0.9], dtype), np.array([0.8, 0.8], dtype))[0]
    printed(value / np.log(10.0) ** 2, "0.000584")  # what log10 gives


@both
@dtypes
def test_row_7_quadratic_cost(impl, dtype):
    y, a = [1, 1, 1, 1, 1, 0], [1, 0.9997, 0.9, 0.6, 0.1192, 0.1192]
    losses = impl.mse(np.array(a, dtype), np.array(y, dtype), reduction="none")[0]
    printed(losses, "0", "9.0e-8", "0.01", "0.16", "0.78", "0.0142")


@both
@dtypes
def test_row_8_binary_cross_entropy(impl, dtype):
    y, a = [1, 1, 1, 1, 0, 1], np.array([0.9997, 0.9, 0.6, 0.1192, 0.1192, 1 - 0.1192])
    scores = np.log(a / (1 - a)).astype(dtype)
    losses, dscores = impl.binary_cross_entropy(scores, np.array(y, dtype), reduction="none")
    printed(losses, "0.0003", "0.1", "0.5", "2.1", "0.1269", "0.1269")
    np.testing.assert_allclose(dscores, a - y, rtol=0, atol=1e-6)  # float32 scores


SHIFT_INVARIANT = ["softmax_cross_entropy", "hinge", "squared_hinge"]


def shifts(dtype, scale=1.0):
    rng = np.random.default_rng(9)
    scores = scale * (rng.integers(-(2**13), 2**13, (50, 7)) / 2**10)  # ±8 in steps of 2**-10
    return scores.astype(dtype), rng.integers(0, 7, 50)


@both
@dtypes
@pytest.mark.parametrize("scale", [1.0, 2.0**-50])  # at the second, 1 − s_y is not exact
@pytest.mark.parametrize("c", [1.0, -64.0, 1000.0, 8191.0])
@pytest.mark.parametrize("loss", SHIFT_INVARIANT)
def test_row_9_exact_shift_changes_no_bit(impl, dtype, scale, c, loss):
    scores, y = shifts(dtype, scale)
    c = c * scale
    shifted = scores + scores.dtype.type(c)
    assert np.array_equal(shifted.astype("float64"), scores.astype("float64") + c)  # the shift is exact
    for reduction in ("mean", "sum", "none"):
        value, dscores = getattr(impl, loss)(scores, y, reduction=reduction)
        shifted_value, shifted_dscores = getattr(impl, loss)(shifted, y, reduction=reduction)
        assert np.array_equal(value, shifted_value)
        assert np.array_equal(dscores, shifted_dscores)
    assert np.array_equal(impl.softmax(scores), impl.softmax(shifted))


@both
@dtypes
@pytest.mark.parametrize("c", [0.1, 1.0 / 3.0, -77.7])
@pytest.mark.parametrize("loss", SHIFT_INVARIANT)
def test_row_9_other_shifts_to_the_rounding(impl, dtype, c, loss):
    scores, y = shifts(dtype)
    shifted = scores + scores.dtype.type(c)
    rounding = np.finfo(dtype).eps * (8 + abs(c))  # of one shifted score
    losses, dscores = getattr(impl, loss)(scores, y, reduction="none")
    shifted_losses, shifted_dscores = getattr(impl, loss)(shifted, y, reduction="none")
    # two scores in each of 6 margins; a squared margin, at most 17, doubles its own error
    np.testing.assert_allclose(shifted_losses, losses, rtol=0, atol=6 * 2 * 2 * 17 * rounding)
    if loss != "hinge":  # whose gradient jumps where a margin is just met
        np.testing.assert_allclose(shifted_dscores, dscores, rtol=0, atol=6 * 2 * 2 * rounding)


@both
@dtypes
@pytest.mark.parametrize("loss", SHIFT_INVARIANT)
def test_row_9_finite_up_to_1e4(impl, dtype, loss):
    scores = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype)
    losses, dscores = getattr(impl, loss)(scores, np.array([1, 0, 2, 0]), reduction="none")
    expected = {
        "softmax_cross_entropy": [2e4, 2e4 + np.log(2.0), np.log(3.0), np.log(3.0)],
        "hinge": [30002, 40002, 2, 2],
        "squared_hinge": [20001**2 + 10001**2, 2 * 20001**2, 2, 2],
    }
    np.testing.assert_allclose(losses, expected[loss], rtol=4 * np.finfo(dtype).eps)
    assert np.isfinite(dscores).all()
    assert np.isfinite(impl.softmax(scores)).all()


# --------------------------------------------------------------------------------------------- regularisation

LAMBDA, BETA, LR = 0.125, 0.75, 0.25
W0 = np.array([[1.5, -2.0, 0.0], [0.5, 3.0, -0.25]])
B0 = np.array([4.0, -1.0])
# options, R(W) by hand, gradient of λ R(W), which away from 0 is what the proximal step of L1 takes
PENALTIES = [
    pytest.param({"l2": LAMBDA}, 15.5625, 2 * LAMBDA * W0, id="L2"),
    pytest.param({"l1": LAMBDA}, 7.25, LAMBDA * np.sign(W0), id="L1"),
    pytest.param(
        {"l1": LAMBDA, "l2": LAMBDA * BETA},
        0.75 * 15.5625 + 7.25,
        LAMBDA * (2 * BETA * W0 + np.sign(W0)),
        id="elastic net",
    ),
    pytest.param({"weight_decay": LAMBDA}, 0.0, LAMBDA * W0, id="weight decay"),
]


@both
@pytest.mark.parametrize(("options", "r", "gradient"), PENALTIES)
@rules
def test_penalty_moves_the_weights_only(impl, options, r, gradient, rule):
    """One step without a loss from zero velocity: W − α λ ∂R/∂W, the bias unmoved. Nesterov goes 1 + γ times
    as far, save with l1, where the network shows θ⁺."""
    far = 1.5 if rule == "nesterov" and "l1" not in options else 1.0
    X, y = np.ones((4, 3)), np.zeros(4)
    trainer = full_batch(impl, network(impl, [3, 2], W0, B0), no_loss, X, lr=LR, **RULES[rule], **options)
    trainer.fit(X, y, epochs=1)
    np.testing.assert_allclose(trainer.net.weights[0], W0 - far * LR * gradient, rtol=1e-14)  # float64
    assert np.array_equal(trainer.net.biases[0], B0)


@both
@pytest.mark.parametrize(("options", "r", "gradient"), PENALTIES)
def test_penalty_is_reported(impl, options, r, gradient):
    """A schedule of 0 leaves the weights alone: what is reported is λ R(W)."""
    X, y = np.ones((4, 3)), np.zeros(4)
    net = network(impl, [3, 2], W0, B0)
    history = full_batch(impl, net, no_loss, X, lr=lambda step: 0.0, **options).fit(X, y, epochs=1)
    assert history.loss == pytest.approx([LAMBDA * r], rel=1e-14)  # float64
    with_bias = full_batch(impl, net, no_loss, X, lr=lambda step: 0.0, decay_bias=True, **options)
    r_bias = options.get("l1", 0.0) * 5.0 + options.get("l2", 0.0) * 17.0
    assert with_bias.fit(X, y, epochs=1).loss == pytest.approx([LAMBDA * r + r_bias], rel=1e-14)


@both
def test_l1_gives_exact_zeros(impl):
    """Σ|w| pulls a weight to 0 and no further."""
    X, y = np.ones((4, 3)), np.zeros(4)
    trainer = full_batch(impl, network(impl, [3, 2], W0, B0), no_loss, X, lr=LR, l1=LAMBDA)
    trainer.fit(X, y, epochs=20)  # 20 α λ = 0.625
    expected = [[0.875, -1.375, 0.0], [0.0, 2.375, 0.0]]
    assert np.array_equal(trainer.net.weights[0], expected)


@both
@rules
def test_l2_is_half_a_weight_decay(impl, rule):
    """l2 = λ equals wd = 2λ under every rule; only the reported loss differs, by λ R(W)."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((30, 3)), rng.integers(0, 2, 30)
    weights = {}
    for options in ({"l2": LAMBDA}, {"weight_decay": 2 * LAMBDA}):
        trainer = full_batch(
            impl, network(impl, [3, 2], W0, B0), "hinge", X, lr=0.1, **RULES[rule], **options
        )
        loss = trainer.fit(X, y, epochs=5).loss[-1]
        weights[next(iter(options))] = trainer.net.flat.copy(), loss
    (l2, l2_loss), (wd, wd_loss) = weights["l2"], weights["weight_decay"]
    np.testing.assert_allclose(l2, wd, rtol=1e-13)  # float64
    assert l2_loss - wd_loss == pytest.approx(LAMBDA * np.sum(l2[:6] ** 2), rel=1e-12)


@both
def test_dropout_acts_inside_fit_only_and_keeps_the_mean(impl):
    """Hidden outputs are 1, the score is their mean: 1 outside fit, 1 on average inside, row by row anew."""
    p, width, X = 0.25, 1000, np.ones((64, 1))
    net = network(impl, [1, width, 1], weight=1.0, dropout=p)
    net.weights[1][...] = 1.0 / width
    seen = []

    def record(scores, y):
        seen.append(np.array(scores))
        return no_loss(scores, y)

    trainer = full_batch(impl, net, record, X, lr=0.1)
    trainer.fit(X, np.zeros(64), epochs=1)
    np.testing.assert_allclose(trainer.net.forward(X), 1.0, rtol=1e-12)  # a float64 sum
    kept = seen[0] * width * (1 - p)
    np.testing.assert_allclose(kept, np.round(kept), rtol=0, atol=1e-9)
    assert len(np.unique(np.round(kept))) > 10
    standard_error = np.sqrt(p / (1 - p) / seen[0].size / width)
    assert abs(seen[0].mean() - 1.0) < 4 * standard_error


# ---------------------------------------------------------------------------------------------------- updates

# α = γ = 0.5, V = 0, W = 1, gradients 0.5, 0.25, −0.5: every number is exact in binary
GRADIENTS = [0.5, 0.25, -0.5]
UPDATES = {
    # W: 1 − 0.25, − 0.125, + 0.25
    "sgd": [0.75, 0.625, 0.875],
    # V = 0.25, 0.125 + 0.125 = 0.25, 0.125 − 0.25 = −0.125
    "momentum": [0.75, 0.5, 0.625],
    # the same V; W: − (0.125 + 0.25), − (0.125 + 0.125), − (−0.0625 − 0.25)
    "nesterov": [0.625, 0.375, 0.6875],
}


def kernel_step(impl, rule, param, grad, velocity, momentum=0.5, **options):
    if rule == "sgd":
        assert impl.sgd_step(param, grad, **options) is None
    else:
        step = getattr(impl, rule + "_step")
        assert step(param, grad, velocity, momentum=momentum, **options) is None


@both
@dtypes
@rules
def test_updates_by_kernel(impl, dtype, rule):
    param, velocity = np.ones((2, 3), dtype), np.zeros((2, 3), dtype)
    for g, w in zip(GRADIENTS, UPDATES[rule], strict=True):
        kernel_step(impl, rule, param, np.full((2, 3), g, dtype), velocity, lr=0.5)
        assert np.array_equal(param, np.full((2, 3), w))
    if rule != "sgd":
        assert np.array_equal(velocity, np.full((2, 3), -0.125))


PROXIMAL_UPDATES = {  # the same with l1 = 0.25, a threshold of 0.125; a fourth gradient leads to 0
    "sgd": [0.625, 0.375, 0.5, 0.25],
    # V = 0.375, 0.4375, 0.09375, 0.09375
    "momentum": [0.625, 0.1875, 0.09375, 0.0],
    # the same V, since θ⁺ is what W⁺ is above; W = θ⁺ − V / 2
    "nesterov": [0.4375, -0.03125, 0.046875, -0.046875],
}


@both
@dtypes
@rules
def test_proximal_updates_by_kernel(impl, dtype, rule):
    param, velocity = np.ones((2, 3), dtype), np.zeros((2, 3), dtype)
    for g, w in zip([*GRADIENTS, 0.25], PROXIMAL_UPDATES[rule], strict=True):
        kernel_step(impl, rule, param, np.full((2, 3), g, dtype), velocity, lr=0.5, l1=0.25)
        assert np.array_equal(param, np.full((2, 3), w))
    if rule != "sgd":
        assert np.array_equal(velocity, np.full((2, 3), 0.09375))


@both
@dtypes
@rules
@pytest.mark.parametrize("l1", [0.0, 0.25])
def test_weight_decay_by_kernel(impl, dtype, rule, l1):
    """g ← g + wd · W: two steps with the gradient given and with the decay taken into it by hand."""
    decayed, by_hand = np.array([1.0, -0.5, 4.0], dtype), np.array([1.0, -0.5, 4.0], dtype)
    velocities = np.zeros(3, dtype), np.zeros(3, dtype)
    for grad in np.array([[0.5, 0.25, -1.0], [0.25, -0.5, 0.5]], dtype):
        kernel_step(impl, rule, decayed, grad, velocities[0], lr=0.5, weight_decay=0.125, l1=l1)
        with_decay = grad + grad.dtype.type(0.125) * by_hand
        kernel_step(impl, rule, by_hand, with_decay, velocities[1], lr=0.5, l1=l1)
    assert np.array_equal(decayed, by_hand)


@dtypes
@rules
def test_updates_by_optimizer(dtype, rule):
    optimizer = fo.SGD(0.5, **RULES[rule])
    params = [np.ones((2, 3), dtype), np.ones(2, dtype)]
    state = optimizer.init(params)
    for g, w in zip(GRADIENTS, UPDATES[rule], strict=True):
        optimizer.update(params, [np.full_like(p, g) for p in params], state)
        assert all(np.array_equal(p, np.full_like(p, w)) for p in params)


@both
@dtypes
@rules
def test_updates_by_trainer(impl, dtype, rule):
    """x = 1 makes both gradients dscores: w and b = w − 1 move alike, and the score 2w − 1 tells the step."""
    gradient_at = {2 * w - 1: g for w, g in zip([1.0, *UPDATES[rule]], GRADIENTS, strict=False)}
    X = np.ones((1, 1), dtype)
    trainer = full_batch(
        impl,
        network(impl, [1, 1], 1.0, 0.0, dtype=dtype),
        lambda scores, y: (0.0, np.full_like(scores, gradient_at[float(scores[0, 0])])),
        X,
        lr=0.5,
        **RULES[rule],
    )
    for w in UPDATES[rule]:
        trainer.fit(X, np.zeros(1), epochs=1)
        assert (trainer.net.weights[0][0, 0], trainer.net.biases[0][0]) == (w, w - 1)


@both
def test_momentum_step_with_a_schedule_from_a_half_to_nine_tenths(impl):
    param, velocity = np.ones(1), np.zeros(1)
    # V = γ V + 0.1, with 0.9 the default γ
    for options, v in [({"momentum": 0.5}, 0.1), ({}, 0.19), ({}, 0.271)]:
        impl.momentum_step(param, np.ones(1), velocity, lr=0.1, **options)
        assert velocity[0] == pytest.approx(v, rel=1e-14)  # float64
    assert param[0] == pytest.approx(1 - 0.1 - 0.19 - 0.271, rel=1e-14)


def lasso(X, t, l1):
    """The minimiser of 1/n Σ (X w + b − t)² + l1 Σ|w|: solve for every sign pattern, keep the optimal one."""
    n, d = X.shape
    Xc, tc = X - X.mean(axis=0), t - t.mean()
    for signs in product((-1.0, 0.0, 1.0), repeat=d):
        signs, w = np.array(signs), np.zeros(d)
        on = signs != 0
        w[on] = np.linalg.solve(2 / n * Xc[:, on].T @ Xc[:, on], 2 / n * Xc[:, on].T @ tc - l1 * signs[on])
        slope = 2 / n * Xc.T @ (tc - Xc @ w)
        if np.array_equal(np.sign(w), signs) and np.all(np.abs(slope[~on]) <= l1):
            return w, t.mean() - X.mean(axis=0) @ w
    raise AssertionError("no sign pattern is optimal")


def lasso_problem():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((40, 4)) @ (np.eye(4) + 0.3)  # correlated
    return X, X @ [1.0, -0.6, 0.15, 0.0] + 0.5 + 0.1 * rng.standard_normal(40), 0.25


def objective(X, t, w, b, l1):
    return np.mean((X @ w + b - t) ** 2) + l1 * np.abs(w).sum()


@both
@rules
def test_l1_trainer_reaches_the_lasso(impl, rule):
    X, t, l1 = lasso_problem()
    w, b = lasso(X, t, l1)
    assert 0 < np.count_nonzero(w) < len(w)
    trainer = full_batch(impl, network(impl, [4, 1], init="zeros"), "mse", X, lr=0.05, l1=l1, **RULES[rule])
    history = trainer.fit(X, t, epochs=1500)
    np.testing.assert_allclose(
        trainer.net.weights[0][0], w, rtol=0, atol=1e-12
    )  # the iteration has converged
    np.testing.assert_allclose(trainer.net.biases[0], b, rtol=0, atol=1e-12)
    assert np.array_equal(trainer.net.weights[0][0] == 0, w == 0)  # the zeros are exact
    assert history.loss[-1] == pytest.approx(objective(X, t, w, b, l1), rel=1e-12)


def descend(impl, X, t, step, epochs=1500):
    """Full-batch descent on the squared error with a step(param, dparam, velocity, penalised)."""
    weight, bias = np.zeros((1, X.shape[1])), np.zeros(1)
    dweight_velocity, dbias_velocity = np.zeros_like(weight), np.zeros_like(bias)
    for _ in range(epochs):
        _, dscores = impl.mse(impl.dense_forward(X, weight, bias), t)
        _, dweight, dbias = impl.dense_backward(dscores, X, weight)
        step(weight, dweight, dweight_velocity, True)
        step(bias, dbias, dbias_velocity, False)
    return weight[0], bias[0]


@both
@rules
def test_l1_kernels_reach_the_lasso(impl, rule):
    X, t, l1 = lasso_problem()

    def step(param, grad, velocity, penalised):
        kernel_step(impl, rule, param, grad, velocity, lr=0.05, l1=l1 if penalised else 0.0)

    w, b = descend(impl, X, t, step)
    exact_w, exact_b = lasso(X, t, l1)
    np.testing.assert_allclose(w, exact_w, rtol=0, atol=1e-12)  # the velocity has died out, W = θ
    np.testing.assert_allclose(b, exact_b, rtol=0, atol=1e-12)


def soft_threshold(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)


@both
@pytest.mark.parametrize(("rule", "strength"), [("momentum", 1 - 0.5), ("nesterov", 1 / (1 + 0.5))])
def test_l1_outside_the_rule_reaches_another_lasso(impl, rule, strength):
    """Thresholding after an ordinary momentum step minimises for l1 (1 − γ), the literal Nesterov step with
    the displacement as velocity for l1 / (1 + γ)."""
    X, t, l1 = lasso_problem()

    def step(param, grad, velocity, penalised):
        before = param.copy()
        kernel_step(impl, rule, param, grad, velocity, lr=0.05)
        if penalised:
            param[...] = soft_threshold(param, 0.05 * l1)
            if rule == "nesterov":
                velocity[...] = before - param

    w, b = descend(impl, X, t, step)
    np.testing.assert_allclose(w, lasso(X, t, l1 * strength)[0], rtol=0, atol=1e-12)
    exact = lasso(X, t, l1)
    assert objective(X, t, w, b, l1) > objective(X, t, *exact, l1) + 1e-4


# ---------------------------------------------------------------------------------------------- training loop


@both
@pytest.mark.parametrize(("n", "batch_size", "updates", "last"), [(60_000, 128, 469, 96), (1000, 50, 20, 50)])
def test_row_10_batches_without_replacement(impl, n, batch_size, updates, last):
    """The network is the identity and every target its own row: a batch's scores are its targets."""
    y, batches, steps = np.arange(n, dtype="float64"), [], []
    X = y[:, np.newaxis]

    def record(scores, y):
        assert np.array_equal(scores[:, 0], np.ravel(y))
        batches.append(np.array(y).ravel())
        return no_loss(scores, y)

    def schedule(step):
        steps.append(step)
        return 0.1

    optimizer = fo.SGD(schedule)
    trainer = impl.Trainer(
        network(impl, [1, 1], 1.0, 0.0), loss=record, optimizer=optimizer, batch_size=batch_size, seed=0
    )
    for epoch in range(2):
        batches.clear()
        trainer.fit(X, y, epochs=1)
        assert [len(b) for b in batches] == [batch_size] * (updates - 1) + [last]
        assert np.array_equal(np.sort(np.concatenate(batches)), y)
        assert set(steps) == set(range((epoch + 1) * updates))
    assert not np.array_equal(np.concatenate(batches), y)


@both
def test_row_11_number_of_parameters(impl):
    net = impl.MLP([784, 64, 10])
    assert net.n_parameters == net.flat.size == 50890


def staircase(values):
    """A loss that is values[k] in epoch k: x = 1 and a constant gradient move the score from k to k + 1."""
    return lambda scores, y: (float(values[round(float(scores[0, 0]))]), np.full_like(scores, -1.0))


def climb(impl, values, **options):
    X, weights = np.ones((1, 1)), []
    trainer = full_batch(impl, network(impl, [1, 1], 0.0, 0.0), staircase(values), X, lr=0.5)
    callbacks = [lambda trainer: weights.append(trainer.net.flat.copy()), *options.pop("callbacks", [])]
    history = trainer.fit(X, np.zeros(1), callbacks=callbacks, **options)
    return trainer, list(history.loss), weights


STAIRS = [5.0, 4.0, 3.0, 3.5, 3.25, 3.0, 2.0, 1.0]


@both
@pytest.mark.parametrize(
    ("options", "epochs_done"),
    [
        pytest.param({"epochs": 3}, 3, id="the given number of epochs"),
        pytest.param({"epochs": 0}, 0, id="no epoch"),
        pytest.param({"epochs": 8, "target_loss": 3.75}, 3, id="loss below a target"),
        pytest.param({"epochs": 8, "target_loss": 3.0}, 7, id="equal is not below"),
        pytest.param({"epochs": 8, "early_stopping": (3, 0.0)}, 6, id="3 epochs without improvement"),
        pytest.param({"epochs": 8, "early_stopping": (4, 0.0)}, 8, id="improvement in time"),
        pytest.param({"epochs": 8, "early_stopping": (1, 1.0)}, 2, id="1 is not above min_delta 1"),
        pytest.param({"epochs": 8, "early_stopping": (2, 1.0)}, 5, id="2 in two epochs is"),
        pytest.param({"epochs": 5, "target_loss": 3.0, "early_stopping": (3, 0.0)}, 5, id="epochs first"),
        pytest.param({"epochs": 8, "target_loss": 4.5, "early_stopping": (3, 0.0)}, 2, id="target first"),
        pytest.param({"epochs": 8, "target_loss": 2.5, "early_stopping": (3, 0.0)}, 6, id="patience first"),
        pytest.param(
            {"epochs": 8, "callbacks": [lambda t: True if t.epoch == 4 else None]}, 4, id="a callback"
        ),
    ],
)
def test_row_12_stopping(impl, options, epochs_done):
    if "early_stopping" in options:
        patience, min_delta = options["early_stopping"]
        options = options | {"early_stopping": fo.EarlyStopping("loss", patience, min_delta)}
    trainer, losses, weights = climb(impl, STAIRS, **options)
    assert losses == STAIRS[:epochs_done]
    assert trainer.epoch == len(weights) == epochs_done


@both
@pytest.mark.parametrize("epochs", [8, 5])
@pytest.mark.parametrize("restore_best", [True, False])
def test_row_12_best_weights_come_back_whatever_ended_the_run(impl, epochs, restore_best):
    early_stopping = fo.EarlyStopping("loss", patience=3, restore_best=restore_best)
    trainer, losses, weights = climb(impl, STAIRS, epochs=epochs, early_stopping=early_stopping)
    assert np.array_equal(trainer.net.flat, weights[2 if restore_best else -1])


@both
def test_row_12_early_stopping_on_validation_loss(impl):
    """Validation targets of the opposite sign: val_loss rises from the first epoch on."""
    X = np.linspace(-1, 1, 20)[:, np.newaxis]
    y, validation = X[:, 0], (X[::2], -X[::2, 0])
    weights = []
    trainer = full_batch(impl, network(impl, [1, 1], init="zeros"), "mse", X, lr=0.1)
    history = trainer.fit(
        X,
        y,
        epochs=50,
        validation_data=validation,
        early_stopping=fo.EarlyStopping(patience=4),
        callbacks=[lambda trainer: weights.append(trainer.net.flat.copy())],
    )
    assert len(history.loss) == len(history.val_loss) == 5
    assert all(a < b for a, b in pairwise(history.val_loss))
    assert np.array_equal(trainer.net.flat, weights[0])
    expected = impl.mse(trainer.net.forward(validation[0]), validation[1])[0]
    assert history.val_loss[0] == pytest.approx(expected, rel=1e-14)  # float64


def test_row_13_forward_differences():
    """1.25347 at W, 1.25322 at W₀ + 0.0001, 1.25353 at W₁ + 0.0001 → (−2.5, 0.6)."""

    def plane(gradient):
        return lambda w: (1.25347 + float(np.dot([-2.5, 0.6], w - W)), np.array(gradient))

    W, h = np.array([0.34, -1.11]), 0.0001
    loss = plane([-2.5, 0.6])
    printed([loss(W)[0], loss(W + [h, 0])[0], loss(W + [0, h])[0]], "1.25347", "1.25322", "1.25353")
    printed([(1.25322 - 1.25347) / h, (1.25353 - 1.25347) / h], "-2.5", "0.6")
    assert fo.check_gradient(loss, W).ok
    assert not fo.check_gradient(plane([-2.5, -0.6]), W).ok


def target(loss, rng, n, m):
    if loss in ("softmax_cross_entropy", "hinge", "squared_hinge"):
        return rng.integers(0, m, n)
    return rng.random((n, m))


@both
@dtypes
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", None])
@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", "hinge", "squared_hinge", "binary_cross_entropy", "mse", "mae", "msle"]
)
def test_row_13_analytic_is_numeric(impl, dtype, n, activation, loss):
    """Every parameter of every layer, against central differences of the float64 network; a float32 gradient
    differs from them by its rounding."""
    rng = np.random.default_rng(13)
    X, y, w = rng.standard_normal((n, 5)).astype(dtype), target(loss, rng, n, 3), 0.5 + rng.random(n)
    net = impl.MLP([5, 4, 6, 3], activation=activation, dtype=dtype, seed=3)
    net.flat[:] += rng.uniform(-0.1, 0.1, net.flat.size).astype(net.flat.dtype)
    net.biases[-1][...] += 4.0 if loss == "msle" else 0.0  # predictions above −1
    twin = network(impl, [5, 4, 6, 3], activation=activation)
    numeric, h = np.empty(net.flat.size), 1e-6
    for k in range(net.flat.size):
        ends = []
        for sign in (1, -1):
            twin.flat[:] = net.flat
            twin.flat[k] += sign * h
            ends.append(twin.loss_and_grad(X, y, loss=loss, sample_weight=w)[0])
        numeric[k] = (ends[0] - ends[1]) / (2 * h)
    value, grad = net.loss_and_grad(X, y, loss=loss, sample_weight=w)
    assert isinstance(value, float)
    tolerance = 1e-6 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(
        grad, numeric, rtol=tolerance, atol=tolerance * max(1.0, np.abs(numeric).max())
    )


@both
def test_row_14_bias_trick(impl):
    """[x, 1] [W, b]ᵀ = x Wᵀ + b, along a whole trajectory of plain SGD; equal to float64 rounding."""
    rng = np.random.default_rng(14)
    X, y = rng.standard_normal((60, 3)), rng.integers(0, 4, 60)
    X1 = np.column_stack([X, np.ones(60)])
    W, b = rng.standard_normal((4, 3)), rng.standard_normal(4)
    folded = np.column_stack([W, b])
    for step in range(100):
        rows = slice(step * 20 % 60, step * 20 % 60 + 20)
        scores, folded_scores = impl.dense_forward(X[rows], W, b), impl.dense_forward(X1[rows], folded)
        np.testing.assert_allclose(folded_scores, scores, rtol=1e-12, atol=1e-12)
        _, dW, db = impl.dense_backward(impl.softmax_cross_entropy(scores, y[rows])[1], X[rows], W)
        dscores = impl.softmax_cross_entropy(folded_scores, y[rows])[1]
        _, dfolded, _ = impl.dense_backward(dscores, X1[rows], folded)
        for param, grad in ((W, dW), (b, db), (folded, dfolded)):
            impl.sgd_step(param, grad, lr=0.5)
    np.testing.assert_allclose(folded, np.column_stack([W, b]), rtol=1e-11, atol=1e-11)


def blobs():
    rng = np.random.default_rng(50)
    X = np.concatenate([rng.normal(centre, 1.5, (500, 2)) for centre in [(-10.0, -4.0), (-1.7, 4.4)]])
    return X, np.repeat([1.0, 0.0], 500)


def textbook(scores, y):
    """Sum of squared errors of a sigmoid unit; the gradient is summed too and omits 2 σ′."""
    error = expit(scores) - np.reshape(y, scores.shape)
    return float(np.sum(error**2)), error


@both
def test_row_15_gradient_descent_against_sgd(impl):
    """100 epochs at learning rate 0.01.

    The textbook's reading sets a sum over the set (gradient descent: 0.447 there, 0.523 here) against an
    average of sums over batches of 32 (SGD: 0.006 there, 0.0074 here): 71 times less, 31 of them a matter of
    units. Per sample, 5.2e-4 stands against 2.4e-4. The points are a draw that shows this: the factor varies
    from draw to draw, and in some the per-sample order is the other way round.
    """
    X, y = blobs()
    per_sample, in_textbook_units = {}, {}
    for batch_size in (1000, 32):
        sums = []

        def record(scores, y, sums=sums):
            value, dscores = textbook(scores, y)
            sums.append(value)
            return value, dscores

        net, optimizer = network(impl, [2, 1], init="zeros"), fo.SGD(0.01)
        impl.Trainer(net, loss=record, optimizer=optimizer, batch_size=batch_size, seed=0).fit(
            X, y, epochs=100
        )
        last_epoch = sums[-ceil(1000 / batch_size) :]
        in_textbook_units[batch_size] = np.mean(last_epoch)
        per_sample[batch_size] = np.sum(last_epoch) / 1000
    printed([in_textbook_units[1000], in_textbook_units[32]], "0.523", "0.0074")
    printed([per_sample[1000], per_sample[32]], "5.2e-4", "2.4e-4")
    assert 2 < per_sample[1000] / per_sample[32] < 3


@both
def test_row_15_gradient_of_the_mean(impl):
    """The same with the true gradient of the mean squared error: SGD gains from 32 times as many steps."""
    X, y = blobs()

    def mean_squared_error(scores, y):
        a = expit(scores)
        error = a - np.reshape(y, scores.shape)
        return float(np.mean(error**2)), 2 * error * a * (1 - a) / len(scores)

    losses = {}
    for batch_size in (1000, 32):
        net, optimizer = network(impl, [2, 1], init="zeros"), fo.SGD(0.01)
        trainer = impl.Trainer(
            net, loss=mean_squared_error, optimizer=optimizer, batch_size=batch_size, seed=0
        )
        losses[batch_size] = trainer.fit(X, y, epochs=100).loss[-1]
    printed([losses[1000], losses[32]], "0.0302", "0.0029")


def half_square(scores, y):
    """a²/2 at a = σ(s): the gradient a · a (1 − a) dies where the unit saturates."""
    a = expit(scores)
    return float(np.mean(a * a / 2)), a * a * (1 - a) / len(scores)


@both
@pytest.mark.parametrize(
    ("loss", "end"), [pytest.param(half_square, "0.2045", id="a²/2"), ("binary_cross_entropy", "0.01205")]
)
def test_row_16_saturation(impl, loss, end):
    X, y = np.ones((1, 1)), np.zeros(1)
    net = network(impl, [1, 1], 2.0, 2.0)
    printed(expit(net.forward(X)), "0.9820")
    trainer = full_batch(impl, net, loss, X, lr=0.15)
    trainer.fit(X, y, epochs=299)
    printed(expit(trainer.net.forward(X)), end)


@both
def test_row_17_scaling(impl):
    """A feature of size 1 beside one of size 5000: no learning rate learns in 100 epochs what one does on
    standardised inputs; predictions are inverted back to the original scale."""
    rng = np.random.default_rng(17)
    X = np.column_stack([rng.normal(0, 1, 200), rng.normal(5000, 1000, 200)])
    y = 50 + 20 * X[:, 0] + 0.02 * X[:, 1] + rng.normal(0, 1, 200)

    def unexplained(X, y, lr, mean=0.0, scale=1.0):
        """Fraction of the variance left, of predictions on the original scale."""
        trainer = impl.Trainer(network(impl, [2, 1]), loss="mse", optimizer=fo.SGD(lr), batch_size=50, seed=0)
        try:
            trainer.fit(X, (y - mean) / scale, epochs=100)
        except impl.DivergenceError:
            return np.inf
        pred = mean + scale * trainer.net.forward(X)[:, 0]
        return np.mean((pred - y) ** 2) / y.var()

    standardised = (X - X.mean(axis=0)) / X.std(axis=0)
    assert unexplained(standardised, y, 0.1, y.mean(), y.std()) < 0.005
    assert min(unexplained(X, y, 10.0**-k) for k in range(1, 11)) > 0.3


@both
@dtypes
@pytest.mark.parametrize("hidden", [[], [8]])
def test_row_18_divergence_is_reported(impl, dtype, hidden):
    """The error names epoch and batch; the network keeps the last finite epoch's weights."""
    rng = np.random.default_rng(18)
    X, y = rng.standard_normal((3200, 3)).astype(dtype), rng.standard_normal(3200)
    net = impl.MLP([3, *hidden, 1], dtype=dtype)
    trainer = impl.Trainer(
        net, loss="mse", optimizer=fo.SGD(lambda step: 1e-3 if step < 100 else 1e6), seed=0
    )
    history = trainer.fit(X, y, epochs=1)
    before, losses = trainer.net.flat.copy(), list(history.loss)
    with pytest.raises(impl.DivergenceError) as error:
        trainer.fit(X, y, epochs=3)
    assert re.search(r"epoch \d", str(error.value)), error.value
    assert re.search(r"batch \d", str(error.value)), error.value
    assert np.array_equal(trainer.net.flat, before)
    assert np.isfinite(before).all()
    assert list(trainer.history.loss) == losses
    assert trainer.epoch == 1
    assert issubclass(impl.DivergenceError, ArithmeticError)


@both
def test_row_18_a_jump_shows_in_the_history(impl):
    """Above 2 / curvature the loss grows from epoch to epoch, and is reported as it is."""
    X = np.linspace(-1, 1, 21)[:, np.newaxis]
    trainer = full_batch(impl, network(impl, [1, 1], 0.5, 0.5), "mse", X, lr=1.5)
    history = trainer.fit(X, X[:, 0], epochs=20)
    assert all(a < b for a, b in pairwise(history.loss))
    assert np.isfinite(trainer.net.flat).all()
