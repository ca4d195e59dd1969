"""What the reference must meet by itself, before anything is measured against it."""

import ast
import inspect
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import fastopt as fo
from fastopt import reference

FUNCTIONS = {
    name: f
    for name, f in inspect.getmembers(reference, inspect.isfunction)
    if f.__module__ == reference.__name__ and not name.startswith("_")
}


# ------------------------------------------------------------------------------------------ names and imports


def test_names():
    losses = "softmax_cross_entropy hinge squared_hinge binary_cross_entropy mse mae msle huber"
    others = "dense_forward dense_backward softmax accuracy top_k_accuracy sgd_step momentum_step nesterov_step"
    assert set(FUNCTIONS) == {*losses.split(), *others.split()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_the_kernels(name):
    def parameters(f):
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    kernel = [p for p in parameters(getattr(fo, name)) if p[0] not in ("out", "n_threads")]
    assert parameters(FUNCTIONS[name]) == kernel


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def test_stands_alone():
    path = Path(reference.__file__)
    ours = {name for name in imported_by(path) if name.startswith((".", "fastopt"))}
    assert not ours
    for module in path.parent.glob("*.py"):
        assert not [name for name in imported_by(module) if "reference" in name], module


# ----------------------------------------------------------------------------------------------------- losses

RNG = np.random.default_rng(0)
N, K = 6, 4
S, LABELS = 2.0 * RNG.standard_normal((N, K)), RNG.integers(0, K, N)
SIGNS, UNIT, POSITIVE = RNG.choice([-1, 1], N), RNG.random((N, K)), 3.0 * RNG.random((N, K)) - 0.9

LOSSES = [  # every loss in every shape it takes: name, scores, y, options
    pytest.param("softmax_cross_entropy", S, LABELS, {}, id="softmax_cross_entropy"),
    pytest.param("softmax_cross_entropy", S, LABELS, {"label_smoothing": 0.1}, id="label_smoothing"),
    pytest.param("hinge", S, LABELS, {}, id="hinge"),
    pytest.param("hinge", S[:, 0], SIGNS, {}, id="hinge binary (n,)"),
    pytest.param("hinge", S[:, :1], SIGNS, {}, id="hinge binary (n, 1)"),
    pytest.param("squared_hinge", S, LABELS, {}, id="squared_hinge"),
    pytest.param("squared_hinge", S[:, 0], SIGNS, {}, id="squared_hinge binary (n,)"),
    pytest.param("squared_hinge", S[:, :1], SIGNS[:, None], {}, id="squared_hinge binary (n, 1)"),
    pytest.param("binary_cross_entropy", S[:, 0], UNIT[:, 0], {}, id="binary_cross_entropy (n,)"),
    pytest.param("binary_cross_entropy", S[:, :1], UNIT[:, 0], {}, id="binary_cross_entropy (n, 1)"),
    pytest.param("binary_cross_entropy", S, UNIT, {}, id="binary_cross_entropy (n, m)"),
    pytest.param("binary_cross_entropy", S, UNIT, {"label_smoothing": 0.2}, id="binary label_smoothing"),
    pytest.param("huber", POSITIVE, UNIT, {"delta": 0.5}, id="huber 0.5"),
    *(
        pytest.param(name, pred, target, {}, id=f"{name} {shape}")
        for name in ("mse", "mae", "msle", "huber")
        for shape, pred, target in [
            ("(n,)", POSITIVE[:, 0], UNIT[:, 0]),
            ("(n, 1)", POSITIVE[:, :1], UNIT[:, 0]),
            ("(n, m)", POSITIVE, UNIT),
        ]
    ),
]
losses = pytest.mark.parametrize(("name", "scores", "y", "options"), LOSSES)
weights = pytest.mark.parametrize("w", [None, [0.5, 2.0, 0.0, 1.0, 3.0, 0.25]], ids=["", "weighted"])


@weights
@pytest.mark.parametrize("module", [fo, reference])
@pytest.mark.parametrize(
    ("name", "scores", "y", "by_class"),
    [
        ("softmax_cross_entropy", S, LABELS, [0.5, 2.0, 0.0, 1.0]),
        ("hinge", S, LABELS, [0.5, 2.0, 0.0, 1.0]),
        ("squared_hinge", S, LABELS, [0.5, 2.0, 0.0, 1.0]),
        ("hinge", S[:, 0], SIGNS, [0.5, 2.0]),
        ("squared_hinge", S[:, :1], SIGNS, [0.5, 2.0]),
    ],
)
def test_class_weights_multiply_sample_weights(name, scores, y, by_class, module, w):
    loss = getattr(module, name)
    both = np.array(by_class)[y if scores.ndim > 1 and scores.shape[1] > 1 else (y + 1) // 2] * (1 if w is None else w)
    for reduction in ("mean", "sum", "none"):
        value, dscores = loss(scores, y, sample_weight=w, class_weight=by_class, reduction=reduction)
        expected, dexpected = loss(scores, y, sample_weight=both, reduction=reduction)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(dscores, dexpected)


def differences(f, x, h=1e-6):
    """Central differences of a scalar f at every element of x."""
    grad = np.empty_like(x)
    for k in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[k] += sign * h
            ends.append(f(moved))
        grad[k] = (ends[0] - ends[1]) / (2 * h)
    return grad


@losses
@weights
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_is_numeric(name, scores, y, options, w, reduction):
    """For "none" the gradient is that of the plain sum: samples do not mix, weights do not act."""
    loss = getattr(reference, name)
    options = options | {"sample_weight": w, "reduction": reduction}
    _, dscores = loss(scores, y, **options)
    assert dscores.shape == scores.shape
    numeric = differences(lambda s: np.sum(loss(s, y, **options)[0]), scores)
    np.testing.assert_allclose(dscores, numeric, rtol=1e-7, atol=1e-8)  # h² and rounding / h


@losses
@weights
def test_reductions(name, scores, y, options, w):
    loss, before = getattr(reference, name), scores.copy()
    per_sample, dper_sample = loss(scores, y, sample_weight=w, reduction="none", **options)
    assert per_sample.shape == (N,)
    assert np.array_equal(per_sample, loss(scores, y, reduction="none", **options)[0])
    alone = [loss(scores[i : i + 1], y[i : i + 1], **options)[0] for i in range(N)]
    np.testing.assert_allclose(per_sample, alone, rtol=1e-14)  # float64
    v = np.ones(N) if w is None else np.array(w)
    for reduction, scale in (("mean", v / v.sum()), ("sum", v)):
        value, dscores = loss(scores, y, sample_weight=w, reduction=reduction, **options)
        assert isinstance(value, float)
        assert value == pytest.approx(scale @ per_sample, rel=1e-14)
        np.testing.assert_allclose(dscores, (scale * dper_sample.T).T, rtol=1e-14)
    assert np.array_equal(scores, before)


@pytest.mark.parametrize(
    ("name", "scores", "y", "value", "dscores"),
    [
        ("hinge", [[1.0, 2.0, 0.5]], [1], 0.0, [[0, 0, 0]]),  # s_0 − s_y + 1 = 0
        ("hinge", [[1.0, 1.0, 1.0]], [2], 2.0, [[1, 1, -2]]),
        ("hinge", [1.0, -1.0, 0.0], [1, -1, 1], 1 / 3, [0, 0, -1 / 3]),  # 1 − y s = 0
        ("squared_hinge", [[1.0, 1.0, 1.0]], [2], 2.0, [[2, 2, -4]]),
        ("squared_hinge", [-1.0], [1], 4.0, [-4]),
        ("mae", [1.0, 2.0], [1.0, 1.0], 0.5, [0, 0.5]),
        ("softmax_cross_entropy", [[7.0]], [0], 0.0, [[0]]),  # K = 1
        ("softmax_cross_entropy", [[3.0, 3.0]], [0], np.log(2), [[-0.5, 0.5]]),
        ("binary_cross_entropy", [[0.0, 0.0]], [[0.5, 1.0]], np.log(2), [[0, -0.25]]),
    ],
)
def test_by_hand(name, scores, y, value, dscores):
    result = getattr(reference, name)(scores, y)
    assert result[0] == pytest.approx(value, rel=1e-15)
    np.testing.assert_allclose(result[1], dscores, rtol=1e-15)


def test_relu_has_subgradient_0_at_0():
    dx, _, _ = reference.dense_backward([[1.0]], [[0.0]], [[1.0]], output=[[0.0]], activation="relu")
    assert dx[0, 0] == 0.0


@pytest.mark.parametrize(
    ("scores", "y", "value"),
    [
        ([[1, 2, 3], [3, 2, 1], [1, 3, 2], [0, 1, 0]], [2, 0, 2, 1], 0.75),
        ([[2, 2, 1], [1, 2, 2]], [0, 2], 0.5),  # the first maximum
        ([0.5, -0.5, 0.0, 2.0], [1, -1, -1, -1], 0.75),
        ([[0.5], [-0.5], [0.0], [2.0]], [1, 0, 1, 1], 0.75),
    ],
)
def test_accuracy(scores, y, value):
    assert reference.accuracy(scores, y) == value


def exact_losses(name, s, y):
    """One sample to 50 digits: loss and gradient."""
    with localcontext() as context:
        context.prec = 60
        context.Emin, context.Emax = -(10**9), 10**9
        if name == "binary_cross_entropy":
            s, y = Decimal(s[0]), Decimal(y)
            a = 1 / (1 + (-s).exp())
            one_minus_a = 1 / (1 + s.exp())
            return float(-y * a.ln() - (1 - y) * one_minus_a.ln()), [float(a - y)]
        if name == "softmax_cross_entropy":
            e = [(Decimal(v) - Decimal(max(s))).exp() for v in s]
            p = [v / sum(e) for v in e]
            return float(-p[y].ln()), [float(v - (j == y)) for j, v in enumerate(p)]
        h = [
            max(Fraction(0), Fraction(v) - Fraction(s[y]) + 1) if j != y else Fraction(0)
            for j, v in enumerate(s)
        ]
        d = [2 * v if name == "squared_hinge" else Fraction(int(v > 0)) for v in h]
        d[y] = -sum(d)
        return float(sum(v * v if name == "squared_hinge" else v for v in h)), [float(v) for v in d]


EXTREMES = [
    [1e4, -1e4, 0.0],
    [1e-40, -1e-40, 0.0],
    [7.0, 7.0, 7.0],
    [0.3, 1e8, -2.0],
    [30.0, -30.0, 37.5],
    [0.1, 0.2, 0.3],
]


@pytest.mark.parametrize("s", EXTREMES, ids=str)
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "hinge", "squared_hinge", "binary_cross_entropy"])
def test_against_fifty_digits(name, s):
    """Within 4 eps max(1, |exact|), also where a naive formula overflows or cancels."""
    rows = (
        [([v], y) for v in s for y in (0.0, 1.0, 0.999)]
        if name == "binary_cross_entropy"
        else [(s, y) for y in range(3)]
    )
    for scores, y in rows:
        value, dscores = getattr(reference, name)([scores], [[y]] if name == "binary_cross_entropy" else [y])
        exact, dexact = exact_losses(name, scores, y)
        for ours, theirs in zip([value, *dscores[0]], [exact, *dexact], strict=True):
            assert abs(ours - theirs) <= 4 * np.finfo(float).eps * max(1.0, abs(theirs))


@pytest.mark.parametrize(
    ("name", "scores", "y", "options"),
    [
        ("mse", [], [], {}),
        ("softmax_cross_entropy", np.empty((0, 3)), np.empty(0, int), {}),
        ("mse", [1.0], [1.0], {"reduction": "average"}),
        ("mse", [1.0, 2.0], [1.0, 2.0], {"sample_weight": [0.0, 0.0]}),
        ("mse", [1.0, 2.0], [1.0, 2.0], {"sample_weight": [1.0]}),
        ("mse", [1.0, 2.0], [[1.0], [2.0]], {}),  # only a target (n,) matches (n, 1)
        ("mse", [[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0], {}),
        ("mse", [[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0]], {}),
        ("softmax_cross_entropy", [[1.0, 2.0]], [2], {}),
        ("softmax_cross_entropy", [[1.0, 2.0]], [-1], {}),
        ("hinge", [[1.0, 2.0]], [1.5], {}),
        ("hinge", [1.0], [0], {}),
        ("binary_cross_entropy", [1.0], [1.1], {}),
        ("binary_cross_entropy", [1.0], [np.nan], {}),
        ("msle", [-1.0], [0.0], {}),
        ("msle", [0.0], [-1.0], {}),
    ],
)
def test_value_errors(name, scores, y, options):
    with pytest.raises(ValueError):
        getattr(reference, name)(scores, y, **options)


# ----------------------------------------------------------------------------------------------- dense layers


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
def test_dense_backward_is_numeric(activation):
    rng = np.random.default_rng(1)
    x, weight, bias = rng.standard_normal((5, 3)), rng.standard_normal((2, 3)), rng.standard_normal(2)
    dout = rng.standard_normal((5, 2))

    def value(x=x, weight=weight, bias=bias):
        return np.sum(dout * reference.dense_forward(x, weight, bias, activation=activation))

    output = reference.dense_forward(x, weight, bias, activation=activation)
    grads = reference.dense_backward(dout, x, weight, output=output, activation=activation)
    for name, array, grad in zip(("x", "weight", "bias"), (x, weight, bias), grads, strict=True):
        numeric = differences(lambda moved, name=name: value(**{name: moved}), array)
        np.testing.assert_allclose(grad, numeric, rtol=1e-7, atol=1e-8)


def test_dense_forward_by_hand():
    x, weight = [[1.0, 2.0]], [[3.0, -4.0], [0.5, 0.25], [0.0, 0.0]]
    assert reference.dense_forward(x, weight).tolist() == [[-5.0, 1.0, 0.0]]
    assert reference.dense_forward(x, weight, [1.0, 1.0, -1.0]).tolist() == [[-4.0, 2.0, -1.0]]
    assert reference.dense_forward(x, weight, activation="relu").tolist() == [[0.0, 1.0, 0.0]]
    expected = [[1 / (1 + np.e**5), 1 / (1 + 1 / np.e), 0.5]]
    np.testing.assert_allclose(reference.dense_forward(x, weight, activation="sigmoid"), expected, rtol=1e-15)


# ------------------------------------------------------------------------------------------------- generators


def test_splitmix64():
    """The first outputs for the seed 1234567, as published with the generator."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [reference._bits(1234567, i) for i in range(5)] == published
    assert reference._bits(1234567, np.arange(5, dtype=np.uint64)).tolist() == published


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((0,), 0xE220A8397B1DCDAF),
        ((0, 1, 0), 0x44E5B98100C67FB0),
        ((42, 1, 3), 0x94BD3F8F3AF9CBE4),
        ((42, 2, 7, 1), 0x0DD8CD453CC1FCE5),
        ((2**64 - 1, 1, 0), 0x7548D87B9104C1D5),
    ],
)
def test_streams(words, key):
    assert reference._stream(*words) == key


@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [
        (0, 0, [6, 4, 5, 0, 3, 2, 1, 8, 7, 9]),
        (0, 1, [1, 4, 9, 3, 5, 0, 8, 2, 6, 7]),
        (42, 3, [9, 3, 6, 5, 7, 0, 2, 8, 1, 4]),
    ],
)
def test_shuffle(seed, epoch, order):
    assert reference._shuffle(seed, epoch, 10).tolist() == order


@pytest.mark.parametrize(
    ("seed", "step", "layer", "p", "kept"),
    [
        (0, 0, 0, 0.5, ["00011100", "11011111", "11011111"]),
        (0, 1, 0, 0.5, ["01001111", "11001001", "00111001"]),
        (42, 7, 1, 0.25, ["01001100", "11111001"]),
    ],
)
def test_dropout(seed, step, layer, p, kept):
    kept = np.array([[int(c) for c in row] for row in kept])
    mask = reference._dropout(seed, step, layer, kept.shape, p)
    assert np.array_equal(mask, kept / (1 - p))


def test_dropout_keeps_a_draw_at_the_threshold():
    draw = 3325369  # the first 24 bits of the first draw of (seed, step, layer) = 0
    for threshold, kept in ((draw, True), (draw + 1, False)):
        assert (reference._dropout(0, 0, 0, (1, 1), threshold / 2**24)[0, 0] > 0) == kept


def test_dropout_rate():
    mask = reference._dropout(3, 0, 0, (1000, 100), 0.3)
    assert abs(np.mean(mask == 0) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / mask.size)
    assert np.all(reference._dropout(3, 0, 0, (10, 10), 0.0) == 1.0)


# -------------------------------------------------------------------------------------- networks and training


@pytest.mark.parametrize(
    ("init", "second_moment"),  # of a weight of a layer 400 -> 100
    [
        ("glorot_uniform", 2 / 500),
        ("glorot_normal", 2 / 500),
        ("he_uniform", 2 / 400),
        ("he_normal", 2 / 400),
        ("zeros", 0.0),
        (lambda shape, rng: rng.random(shape) < 0.25, 0.25),
    ],
)
def test_init(init, second_moment):
    net = reference.MLP([400, 100], init=init, seed=1)
    squares = net.weights[0] ** 2
    assert abs(squares.mean() - second_moment) <= 4 * squares.std() / np.sqrt(squares.size)
    assert np.array_equal(net.biases[0], np.zeros(100))
    if str(init).endswith("uniform"):
        assert np.abs(net.weights[0]).max() <= np.sqrt(3 * second_moment)


def test_init_draws_layer_after_layer():
    rng = np.random.default_rng(7)
    net = reference.MLP([3, 4, 2], init="he_normal", seed=7)
    assert np.array_equal(net.weights[0], rng.standard_normal((4, 3)) * np.sqrt(2 / 3))
    assert np.array_equal(net.weights[1], rng.standard_normal((2, 4)) * np.sqrt(2 / 4))


@pytest.mark.parametrize("init", ["glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "zeros"])
def test_init_is_the_packages(init):
    sizes = [5, 4, 3]
    ours, theirs = reference.MLP(sizes, init=init, seed=3), fo.MLP(sizes, init=init, seed=3, dtype="float64")
    np.testing.assert_allclose(ours.flat, theirs.flat, rtol=1e-15)


def problem(n=24):
    rng = np.random.default_rng(4)
    return rng.standard_normal((n, 3)), rng.integers(0, 2, n), 0.25 + rng.random(n)


def trainer(net, loss="softmax_cross_entropy", batch_size=24, seed=5, shuffle=True, **options):
    optimizer = fo.SGD(**{"lr": 0.1, **options})
    return reference.Trainer(
        net, loss=loss, optimizer=optimizer, batch_size=batch_size, seed=seed, shuffle=shuffle
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_follows_the_gradient_of_the_loss_seen(dropout, weighted):
    """history.loss[0] of one full batch is the loss at the initial parameters, dropout mask and all."""
    X, y, w = problem()
    net = reference.MLP([3, 8, 6, 2], activation="tanh", dropout=dropout, seed=2)
    fit = {"sample_weight": w if weighted else None, "epochs": 1}

    def seen(flat):
        moved = net.from_network(net)
        moved.flat[:] = flat
        return trainer(moved).fit(X, y, **fit).loss[0]

    one_step = trainer(net)
    one_step.fit(X, y, **fit)
    gradient = (net.flat - one_step.net.flat) / 0.1
    np.testing.assert_allclose(
        gradient, differences(seen, net.flat), rtol=1e-6, atol=1e-8
    )  # h², rounding / h
    if not dropout:
        value, grad = net.loss_and_grad(X, y, sample_weight=fit["sample_weight"])
        assert value == pytest.approx(seen(net.flat), rel=1e-14)
        np.testing.assert_allclose(gradient, grad, rtol=1e-12, atol=1e-13)


def test_batches_are_slices_of_the_shuffle():
    seen = []

    def record(scores, y):
        seen.append(y.tolist())
        return 0.0, np.zeros_like(scores)

    run = trainer(reference.MLP([1, 1]), record, batch_size=4, seed=0)
    run.fit(np.zeros((10, 1)), np.arange(10), epochs=2)
    assert seen == [[6, 4, 5, 0], [3, 2, 1, 8], [7, 9], [1, 4, 9, 3], [5, 0, 8, 2], [6, 7]]
    seen.clear()
    trainer(reference.MLP([1, 1]), record, batch_size=20, shuffle=False).fit(
        np.zeros((3, 1)), np.arange(3), epochs=1
    )
    assert seen == [[0, 1, 2]]


def test_epoch_loss_is_the_mean_over_samples_of_the_losses_seen():
    """A rate of 0 keeps the network: weights count, a short batch counts less, lr is the last step's."""
    X, y, w = problem()
    net = reference.MLP([3, 2], seed=2)
    rates = trainer(net, batch_size=7, lr=lambda step: 0.0 if step < 3 else 0.5)
    history = rates.fit(X, y, epochs=1, sample_weight=w, validation_data=(X, y, w))
    scores = net.forward(X)
    assert history.loss == pytest.approx(
        [reference.softmax_cross_entropy(scores, y, sample_weight=w)[0]], rel=1e-14
    )
    assert history.lr == [0.5]
    after = rates.net.forward(X)
    assert history.val_loss == pytest.approx(
        [reference.softmax_cross_entropy(after, y, sample_weight=w)[0]], rel=1e-14
    )


def test_a_batch_without_weight_still_decays():
    X, y, _ = problem(4)
    net = reference.MLP([3, 2], seed=2)
    run = trainer(net, batch_size=2, shuffle=False, weight_decay=0.5)
    run.fit(X, y, epochs=1, sample_weight=[0.0, 0.0, 1.0, 1.0])
    decayed = net.from_network(net)
    decayed.weights[0][...] *= 1 - 0.1 * 0.5
    grad = decayed.loss_and_grad(X[2:], y[2:])[1]
    grad[:6] += 0.5 * decayed.flat[:6]
    np.testing.assert_allclose(run.net.flat, decayed.flat - 0.1 * grad, rtol=1e-14)


def test_nesterov_with_l1_shows_theta_and_goes_on_from_w():
    """Epoch by epoch, against the kernel on W; θ = W + γ V is what network, penalty and val_loss see."""
    X, y, _ = problem()
    net = reference.MLP([3, 2], seed=2)
    run = trainer(net, momentum=0.9, nesterov=True, l1=0.1, shuffle=False)
    W, V = net.flat.copy(), np.zeros(8)
    for epoch in range(30):
        at_w = net.from_network(net)
        at_w.flat[:] = W
        loss, grad = at_w.loss_and_grad(X, y)
        for part, l1 in ((slice(0, 6), 0.1), (slice(6, 8), 0.0)):
            reference.nesterov_step(W[part], grad[part], V[part], lr=0.1, l1=l1)
        history = run.fit(X, y, epochs=1, validation_data=(X, y))
        theta = W + 0.9 * V
        np.testing.assert_allclose(run.net.flat, theta, rtol=1e-12, atol=1e-13)
        assert np.array_equal(run.net.flat == 0, theta == 0)
        assert history.loss[epoch] == pytest.approx(loss + 0.1 * np.abs(theta[:6]).sum(), rel=1e-12)
        assert history.val_loss[epoch] == reference.softmax_cross_entropy(run.net.forward(X), y)[0]
    assert 0 < np.count_nonzero(run.net.weights[0] == 0) < 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": True, "l1": 0.01},
    ],
    ids=["sgd", "momentum", "nesterov", "nesterov l1"],
)
def test_fit_again_continues(options):
    """Counters, velocity and generators go on: the bits of one long run, history included."""
    X, y, w = problem()
    net = reference.MLP([3, 5, 2], dropout=0.2, seed=2)
    long, short = trainer(net, batch_size=7, **options), trainer(net, batch_size=7, **options)
    long.fit(X, y, epochs=4, sample_weight=w)
    for _ in range(4):
        short.fit(X, y, epochs=1, sample_weight=w)
    assert np.array_equal(long.net.flat, short.net.flat)
    assert long.history == short.history
    assert long.epoch == short.epoch == 4
    assert np.array_equal(net.flat, reference.MLP([3, 5, 2], seed=2).flat)  # the network given is not touched


def test_a_prediction_outside_the_domain_of_msle_is_a_divergence():
    X = np.ones((4, 1))
    run = trainer(reference.MLP([1, 1], init="zeros"), "msle", batch_size=1, lr=1e3)
    with pytest.raises(reference.DivergenceError, match="epoch 0, batch 1"):
        run.fit(X, np.full(4, -0.5), epochs=1)
    assert np.array_equal(run.net.flat, [0.0, 0.0])


def test_a_callback_answers_true_or_none():
    run = trainer(reference.MLP([3, 2]))
    X, y, _ = problem()
    with pytest.raises(TypeError):
        run.fit(X, y, epochs=1, callbacks=[lambda trainer: 1])
    assert run.fit(X, y, epochs=5, callbacks=[lambda trainer: True]).loss == run.history.loss
    assert run.epoch == 2
