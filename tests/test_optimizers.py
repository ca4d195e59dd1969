"""Flags, penalties and schedules of the optimizers: what is refused, what is reached, what a resumed run repeats."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize

import fastopt as fo
from fastopt import penalties, reference, schedules

RULES = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}

# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (fo.SGD, {"nesterov": True}, "nesterov=True needs momentum > 0"),
        (fo.SGD, {"convention": "pytorch"}, "convention must be one of"),
        (fo.SGD, {"convention": "torch", "lr_in_velocity": True}, "'torch' means lr_in_velocity=False, got True"),
        (fo.SGD, {"convention": "keras", "decay": "coupled"}, "'keras' means decay='decoupled', got 'coupled'"),
        (fo.SGD, {"convention": "optax", "decay_bias": False}, "convention='optax' means decay_bias=True, got False"),
        (fo.SGD, {"convention": "sklearn_mlp", "penalty_scale": "loss"}, "means penalty_scale='batch'"),
        (fo.SGD, {"convention": "sklearn_sgd", "momentum": 0.9}, "means momentum=0.0, got 0.9"),
        (fo.SGD, {"convention": "sklearn_sgd", "l1_mode": "prox"}, "means l1_mode='cumulative'"),
        (fo.SGD, {"dampening": 0.5}, "dampening needs momentum > 0"),
        (fo.SGD, {"dampening": 0.5, "momentum": 0.9}, "dampening needs momentum > 0, lr_in_velocity=False"),
        (fo.SGD, {"dampening": 0.5, "momentum": 0.9, "nesterov": True, "convention": "torch"}, "nesterov=False"),
        (fo.SGD, {"dampening": -0.5, "convention": "torch"}, "dampening must be"),
        (fo.SGD, {"dampen_first": False}, "dampen_first=False needs momentum > 0"),
        (fo.SGD, {"decay": "l2"}, "decay must be one of"),
        (fo.SGD, {"decay_order": "after"}, "decay_order needs decay="),
        (fo.SGD, {"l1": 0.1, "l1_mode": "cumulative", "momentum": 0.9}, "it needs momentum=0"),
        (fo.SGD, {"l1": 0.1, "momentum": 0.9, "convention": "torch"}, "needs lr_in_velocity=True"),
        (fo.SGD, {"l1": 0.1, "weight_decay": 0.1, "decay": "decoupled"}, "needs decay="),
        (fo.SGD, {"clip_norm": 1.0, "clip_value": 1.0}, "exclude each other"),
        (fo.SGD, {"momentum": schedules.ReduceOnPlateau(0.9)}, "ReduceOnPlateau is for lr"),
        *[(fo.SGD, {name: -0.1}, f"{name} must be") for name in ("l1", "l2", "weight_decay", "momentum")],
        *[(fo.SGD, {name: math.nan}, f"{name} must be") for name in ("lr", "l1", "l2", "weight_decay", "momentum")],
        *[(make, {"eps": 0.0}, "eps must be") for make in (fo.AdaGrad, fo.RMSProp, fo.AdaDelta, fo.Adam, fo.AdamW)],
        *[(make, {"lr": 0.0}, "lr must be") for make in (fo.AdaGrad, fo.RMSProp, fo.AdaDelta, fo.Adam, fo.AdamW)],
        (fo.SGD, {"clip_value": 0.0}, "clip_value must be"),
        (fo.Adam, {"clip_norm": -1.0}, "clip_norm must be"),
        (fo.Adam, {"clip_norm": 1.0, "clip_value": 1.0}, "exclude each other"),
        (fo.AdaGrad, {"initial": -1.0}, "initial must be"),
        (fo.RMSProp, {"rho": 1.0}, "rho must be"),
        (fo.RMSProp, {"momentum": 0.9, "l1": 0.1, "l1_mode": "prox"}, "needs l1_mode="),
        (fo.AdaDelta, {"eps_inside": False}, "eps_inside must be True"),
        (fo.Adam, {"beta1": -0.1}, "beta1 must be"),
        (fo.Adam, {"beta2": 1.0}, "beta2 must be"),
        (fo.Adam, {"decay": "both"}, "decay must be one of"),
        (fo.Adam, {"l1_mode": "cumulative"}, "l1_mode must be one of"),
        (schedules.Constant, {"value": math.nan}, "value must be"),
        (schedules.Constant, {"value": -1.0}, "value must be"),
        (schedules.Constant, {"value": 1.0, "per": "batch"}, "per must be one of"),
        (schedules.StepDecay, {"value": 1.0, "every": 0, "factor": 0.5}, "every must be"),
        (schedules.Exponential, {"value": 1.0, "factor": 1.5}, "factor must be at most 1.0, got 1.5"),
        (schedules.Cosine, {"value": 1.0, "length": 5, "warmup": 5}, "warmup must be below length=5, got 5"),
        (schedules.Piecewise, {"value": 1.0, "starts": (3, 2), "values": (1, 1)}, "starts must rise"),
        (schedules.Piecewise, {"value": 1.0, "starts": (3,), "values": ()}, "of one length"),
        (schedules.Piecewise, {"value": 1.0, "starts": (3,), "values": (math.nan,)}, "values.0. must be"),
        (schedules.ReduceOnPlateau, {"value": 1.0, "least": 2.0}, "least must be at most value=1.0, got 2.0"),
        (fo.SGD, {"weight_decay": 1.5, "decay": "independent"}, "weight_decay must be at most 1"),
        (penalties.to_sklearn, {"l1": 1e308, "l2": 1e308}, "alpha must be finite"),
        (schedules.ReduceOnPlateau, {"value": 1.0, "monitor": "accuracy"}, "monitor must be one of"),
        (penalties.from_sklearn, {"alpha": 1.0, "l1_ratio": 1.5}, "l1_ratio must be at most 1"),
        (penalties.from_liblinear, {"C": 0.0, "n_samples": 5}, "C must be"),
        (penalties.to_liblinear, {"l1": 0.1, "l2": 0.1, "n_samples": 5}, "exactly one of l1 and l2"),
    ],
)  # fmt: skip
def test_refused(make, options, message):
    needs_lr = isinstance(make, type) and issubclass(make, fo.optim.Optimizer)
    with pytest.raises(ValueError, match=message):
        make(**({"lr": 0.1} if needs_lr else {}) | options)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (schedules.Constant, ("0.1",), "value must be a real number"),
        (schedules.StepDecay, ((1, 2), 3, 0.5), "value must be a real number"),
        (schedules.Cosine, (0.1, "10"), "length must be"),
        (schedules.Piecewise, (0.5, 10, 0.9), "starts must be a tuple"),
        (schedules.Cosine, (0.1,), "length"),
        (schedules.OneCycle, (0.1, 10), "first"),
        (schedules.StepDecay, (0.1,), "every"),
    ],
)
def test_schedules_of_other_types(make, arguments, message):
    with pytest.raises(TypeError, match=message):
        make(*arguments)


def test_a_loop_refuses_what_only_a_trainer_knows():
    weight = np.ones((2, 2))
    for make, message in [
        (lambda: fo.SGD(schedules.Constant(0.1, per="epoch")), "a schedule per epoch needs a Trainer"),
        (lambda: fo.SGD(schedules.ReduceOnPlateau(0.1)), "needs the history of a Trainer"),
        (lambda: fo.SGD(0.1, weight_decay=0.1, convention="sklearn_mlp"), "needs the number of samples"),
        (lambda: fo.SGD(lambda step: math.nan), r"lr\(0\) must be"),
        (lambda: fo.SGD(0.1, momentum=lambda step: 1.0), r"momentum\(0\) must be"),
    ]:
        optimizer = make()
        state = optimizer.init(weight)
        with pytest.raises(ValueError, match=message):
            optimizer.update(weight, weight.copy(), state)
        assert (weight == 1).all()
        assert state.step == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eps_that_vanishes_in_the_dtype(dtype):
    net, optimizer = fo.MLP([2, 1], dtype=dtype), fo.Adam(0.1, eps=1e-60)
    if dtype == "float64":
        fo.Trainer(net, loss="mse", optimizer=optimizer)
    else:
        with pytest.raises(ValueError, match="eps must be at least 1.2e-32 in float32, got 1e-60"):
            fo.Trainer(net, loss="mse", optimizer=optimizer)


@pytest.mark.parametrize("n_threads", [1, 2, 5, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [{"clip_norm": 0.05}, {"clip_norm": 1e9}, {"clip_value": 0.01}])
def test_clipping_acts_before_decay_and_on_any_number_of_threads(clip, dtype, n_threads):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((61, 70)), rng.integers(0, 3, 61)

    def run(impl, threads):
        net = fo.MLP([70, 33, 3], "tanh", dtype=dtype, seed=1)
        optimizer = fo.SGD(0.1, momentum=0.9, weight_decay=0.01, **clip)
        trainer = impl.Trainer(net, loss="softmax_cross_entropy", optimizer=optimizer, batch_size=17, seed=2,
                               n_threads=threads)
        trainer.fit(X, y, epochs=3)
        return trainer.net.flat

    ours = run(fo, n_threads)
    assert ours.tobytes() == run(fo, 1).tobytes()
    np.testing.assert_allclose(ours, run(reference, 1), rtol=0, atol=1e-12 if dtype == "float64" else 1e-5)
    if clip.get("clip_norm") == 1e9:
        clip = {}
        assert run(fo, 1).tobytes() == ours.tobytes()


# -- what goes wrong in training --------------------------------------------------------------------------------


def test_a_plateau_needs_what_it_monitors():
    trainer = fo.Trainer(fo.MLP([2, 1]), loss="mse", optimizer=fo.SGD(schedules.ReduceOnPlateau(0.1)), seed=0)
    with pytest.raises(ValueError, match="ReduceOnPlateau monitors val_loss, but there is no validation_data"):
        trainer.fit(np.ones((4, 2)), np.ones(4), epochs=1)


@pytest.mark.parametrize(
    ("optimizer", "value"),
    [(fo.AdaGrad(0.1), 1e20), (fo.RMSProp(0.1), 1e20), (fo.Adam(0.1), 1e25)],
)
def test_what_the_rule_keeps_must_stay_finite(optimizer, value):
    """Squares of 1e40 are infinite in float32, and steps by their root 0: the parameters alone would look well."""
    net = fo.MLP([2, 1], seed=0)
    before = net.flat.copy()
    trainer = fo.Trainer(net, loss="mae", optimizer=optimizer, batch_size=4, shuffle=False)
    with pytest.raises(fo.DivergenceError):
        trainer.fit(np.full((8, 2), value), np.ones(8), epochs=3)
    assert (net.flat == before).all()


def test_a_norm_that_overflows_under_a_loss_of_ones_own():
    X = np.ones((24, 2))
    net = fo.MLP([2, 1], dtype="float64", seed=0)
    optimizer = fo.SGD(0.1, clip_norm=1.0)
    trainer = fo.Trainer(net, loss=lambda s, y: (1.0, np.full_like(s, 1e200)), optimizer=optimizer, seed=0)
    with pytest.raises(fo.DivergenceError, match="its gradient's norm"):
        trainer.fit(X, X[:, 0], epochs=1)


def test_a_large_gradient_is_what_clipping_is_for():
    """Its squares leave float32, its norm does not leave float64."""
    net = fo.MLP([2, 1], seed=0)
    before = net.flat.copy()
    trainer = fo.Trainer(net, loss="mae", optimizer=fo.SGD(1.0, clip_norm=1.0), batch_size=8, shuffle=False)
    trainer.fit(np.full((8, 2), 1e20), np.full(8, -1e25), epochs=1)
    assert np.linalg.norm(net.flat.astype(float) - before) == pytest.approx(1, rel=1e-5)


def test_a_loop_refuses_a_norm_that_overflows():
    weight, optimizer = np.ones((2, 2)), fo.SGD(0.1, clip_norm=1.0)
    with pytest.raises(OverflowError, match="the norm of grads overflows"):
        optimizer.update(weight, np.full((2, 2), 1e200), optimizer.init(weight))
    assert (weight == 1).all()


def test_classes_of_ones_own_are_refused():
    """They would be trained by the parent's rule and could not be stored."""

    class Mine(fo.Adam):
        pass

    with pytest.raises(TypeError, match="optimizer must be an SGD or another of fastopt's, got Mine"):
        fo.Trainer(fo.MLP([2, 1]), loss="mse", optimizer=Mine(0.1))


def test_a_state_is_of_one_rule():
    weight = np.ones((2, 2))
    with pytest.raises(ValueError, match="state was made for another rule: adadelta, not adam"):
        fo.Adam(0.1).update(weight, weight, fo.AdaDelta().init(weight))


@pytest.mark.parametrize(
    ("optimizer", "decay"),
    [(fo.SGD(0.1, weight_decay=0.1, convention="torch"), [True]), (fo.Adam(0.1, decay_bias=False, l2=0.1), [False])],
)
def test_a_bare_vector_whose_decay_is_said(optimizer, decay):
    assert optimizer.init(np.ones(3)).decay == decay
    with pytest.raises(ValueError, match="decay must be given for a bare 1-D array"):
        fo.Adam(0.1, l2=0.1).init(np.ones(3))


def test_a_momentum_from_a_table_is_not_asked_past_its_end():
    table = [0.5] * 8
    trainer = fo.Trainer(fo.MLP([2, 1], seed=0), loss="mse", optimizer=fo.SGD(0.1, momentum=lambda s: table[s]), seed=0)
    trainer.fit(np.ones((32, 2)), np.ones(32), epochs=8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1, "momentum": 0.5}, ValueError, "lr must be"),
        ({"lr": "x", "momentum": 0.5}, TypeError, "lr must be"),
        ({"lr": 0.1, "momentum": 1.5}, ValueError, "momentum must be"),
    ],
)
def test_load_names_a_wrong_argument(arguments, error, message, tmp_path):
    optimizer = fo.SGD(lambda step: 0.1, momentum=lambda step: 0.5)
    fo.Trainer(fo.MLP([2, 1]), loss="mse", optimizer=optimizer).save(tmp_path / "run.ckpt")
    with pytest.raises(error, match=message) as info:
        fo.Trainer.load(tmp_path / "run.ckpt", **arguments)
    assert not isinstance(info.value, fo.ModelFormatError)


@pytest.mark.parametrize(
    "options",
    [
        {"decay": "independent", "weight_decay": 0.01},
        {"decay": "independent", "weight_decay": 0.01, "decay_order": "after", "momentum": 0.9},
        {"decay": "decoupled", "weight_decay": 0.5, "decay_order": "after", "decay_bias": True},
        {"decay": "decoupled", "weight_decay": 50.0, "convention": "sklearn_sgd"},
        {"lr_in_velocity": False, "momentum": 0.5, "dampening": 0.25, "penalty_scale": "batch", "l2": 0.5},
        {"momentum": 0.5, "l1": 0.1, "l1_mode": "subgradient", "penalty_scale": "batch"},
    ],
)
def test_flags_as_the_reference(options):
    X, t = regression()
    runs = []
    for impl in (fo, reference):
        net = fo.MLP([8, 3, 1], "tanh", dtype="float64", seed=1)
        trainer = impl.Trainer(net, loss="mse", optimizer=fo.SGD(0.05, **options), batch_size=16, seed=3)
        history = trainer.fit(X, t, epochs=5)
        runs.append((trainer.net.flat, history.loss))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-12)


PENALISED = {
    f"{name}, {mode}": lambda make=make, mode=mode: make(l1=0.05, l1_mode=mode)
    for mode in ("prox", "subgradient")
    for name, make in {
        "sgd": lambda **p: fo.SGD(0.05, **p), "adagrad": lambda **p: fo.AdaGrad(0.05, **p),
        "rmsprop": lambda **p: fo.RMSProp(0.02, **p), "adadelta": lambda **p: fo.AdaDelta(0.5, eps=0.01, **p),
        "adam": lambda **p: fo.Adam(0.02, **p),
    }.items()
}


@pytest.mark.parametrize("name", PENALISED)
def test_l1_as_the_reference(name):
    X, t = regression()
    runs = []
    for impl in (fo, reference):
        net = fo.MLP([8, 3, 1], "tanh", dtype="float64", seed=1)
        trainer = impl.Trainer(net, loss="mse", optimizer=PENALISED[name](), batch_size=16, seed=3)
        history = trainer.fit(X, t, epochs=5)
        runs.append((trainer.net.flat, history.loss))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-12)


# -- what is reached --------------------------------------------------------------------------------------------


def regression():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((40, 8))
    return X, X @ np.array([2.0, -1.0, 0.5, 0, 0, 0, 0.1, -0.05]) + 0.3 + 0.1 * rng.standard_normal(40)


def objective(weight, bias, X, t, l1, l2):
    return np.mean((X @ weight + bias - t) ** 2) + l1 * np.abs(weight).sum() + l2 * (weight**2).sum()


def minimum(X, t, l1, l2):
    """By SciPy, on positive and negative parts, where the objective is smooth; scaled so that its tolerances bite."""
    d = X.shape[1]

    def smooth(z):
        weight, r = z[:d] - z[d : 2 * d], X @ (z[:d] - z[d : 2 * d]) + z[-1] - t
        g = 2 * X.T @ r / len(X) + 2 * l2 * weight
        return np.mean(r**2) + l1 * z[:-1].sum() + l2 * weight @ weight, np.r_[g + l1, l1 - g, 2 * r.mean()]

    bounds = [(0, None)] * 2 * d + [(None, None)]
    found = optimize.minimize(smooth, np.zeros(2 * d + 1), jac=True, bounds=bounds, method="L-BFGS-B",
                              options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 10_000, "maxcor": 30})
    return found.fun


OPTIMIZERS = {rule: lambda rule=rule, **p: fo.SGD(0.05, **RULES[rule], **p) for rule in RULES} | {
    "adagrad": lambda **p: fo.AdaGrad(0.5, **p, l1_mode="prox"),
    "rmsprop": lambda **p: fo.RMSProp(schedules.Exponential(0.02, 0.997), **p, l1_mode="prox"),
    "adam": lambda **p: fo.Adam(schedules.Exponential(0.1, 0.995), **p, l1_mode="prox"),
    "after, momentum": lambda **p: fo.SGD(0.05, momentum=schedules.Piecewise(0.5, (300,), (0.9,)), **p),
    "after, nesterov": lambda **p: fo.SGD(
        0.05, momentum=schedules.Piecewise(0.5, (300,), (0.9,)), nesterov=True, **p
    ),
}


@pytest.mark.parametrize(("l1", "l2"), [(0.2, 0.0), (0.0, 0.1), (0.2, 0.1)])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_the_minimum_as_written(rule, l1, l2):
    X, t = regression()
    net = fo.MLP([8, 1], dtype="float64", seed=0)
    trainer = fo.Trainer(net, loss="mse", optimizer=OPTIMIZERS[rule](l1=l1, l2=l2), batch_size=40, shuffle=False)
    trainer.fit(X, t, epochs=4000)
    found, best = objective(net.weights[0][0], net.biases[0], X, t, l1, l2), minimum(X, t, l1, l2)
    assert abs(found - best) < 1e-8
    assert (net.weights[0] == 0).any() == (l1 > 0)
    sklearn = pytest.importorskip("sklearn.linear_model")
    theirs = penalties.to_sklearn(l1, l2, loss_scale=2)
    by_descent = sklearn.ElasticNet(**theirs, tol=1e-14, max_iter=10**6).fit(X, t)
    assert abs(found - objective(by_descent.coef_, by_descent.intercept_, X, t, l1, l2)) < 1e-8


@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
def test_a_subgradient_has_no_exact_zeros(rule):
    X, t = regression()
    net = fo.MLP([8, 1], dtype="float64", seed=0)
    optimizer = fo.SGD(0.05, **RULES[rule], l1=0.2, l1_mode="subgradient")
    fo.Trainer(net, loss="mse", optimizer=optimizer, batch_size=40, shuffle=False).fit(X, t, epochs=500)
    assert (net.weights[0] != 0).all()


@pytest.mark.parametrize(
    ("there", "back", "values"),
    [
        (penalties.from_sklearn, penalties.to_sklearn, {"alpha": 0.75, "l1_ratio": 0.25}),
        (penalties.from_sklearn, penalties.to_sklearn, {"alpha": 0.0, "l1_ratio": 0.0}),
        (penalties.from_keras, penalties.to_keras, {"l1": 0.5, "l2": 0.125}),
    ],
)
@pytest.mark.parametrize("loss_scale", [1.0, 2.0])
def test_penalties_there_and_back(there, back, values, loss_scale):
    assert back(**there(**values, loss_scale=loss_scale), loss_scale=loss_scale) == values


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_liblinear_there_and_back(penalty):
    ours = penalties.from_liblinear(4.0, 8, penalty)
    assert penalties.to_liblinear(**ours, n_samples=8) == {"C": 4.0, "penalty": penalty}


# -- schedules --------------------------------------------------------------------------------------------------

SCHEDULES = {
    "constant": (schedules.Constant(0.1), lambda t: 0.1),
    "piecewise": (schedules.Piecewise(0.5, (2, 5), (0.9, 0.99)), lambda t: 0.5 if t < 2 else 0.9 if t < 5 else 0.99),
    "step": (schedules.StepDecay(0.3, 3, 0.5), lambda t: 0.3 * 0.5 ** (t // 3)),
    "exponential": (schedules.Exponential(0.3, 0.9), lambda t: 0.3 * 0.9**t),
    "inverse scaling": (schedules.InverseScaling(0.3, 0.25), lambda t: 0.3 / (t + 1) ** 0.25),
    "cosine": (
        schedules.Cosine(0.3, 12, warmup=3, least=0.01),
        lambda t: 0.3 * (t + 1) / 3
        if t < 3
        else 0.01 + 0.29 * (1 + math.cos(math.pi * min(1, (t - 3) / 9))) / 2,
    ),
    "one cycle": (
        schedules.OneCycle(0.3, 20, first=0.02, last=0.001, rise=0.25),
        lambda t: 0.3 + (0.02 - 0.3) * (1 + math.cos(math.pi * t / 5)) / 2
        if t < 5
        else 0.001 + 0.299 * (1 + math.cos(math.pi * min(1, (t - 5) / 15))) / 2,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula(name):
    schedule, formula = SCHEDULES[name]
    for t in [*range(30), 1000]:
        assert schedule(t) == pytest.approx(formula(t), rel=1e-13, abs=1e-16)
    with pytest.raises(ValueError, match="step must be"):
        schedule(-1)


def test_reduce_on_plateau():
    rule = schedules.ReduceOnPlateau(1.0, 0.5, patience=2, cooldown=1, least=0.2, min_delta=0.1)
    losses = [5.0, 4.0, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95, 3.95]
    #  three epochs without an improvement above 0.1 halve it; one is then not counted
    assert [rule.after(losses[:i]) for i in range(len(losses))] == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25,
                                                                    0.25, 0.2]  # fmt: skip


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reaches_the_engine(name, per):
    """As the learning rate, and as the momentum, beside the reference."""
    schedule = dataclasses.replace(SCHEDULES[name][0], per=per)
    X, t = regression()
    for options in ({"lr": schedule}, {"lr": 0.01, "momentum": schedule, "nesterov": True, "l1": 0.01}):
        if name == "piecewise" and "momentum" not in options:
            continue  # as a rate it is too large
        runs = []
        for impl in (fo, reference):
            net = fo.MLP([8, 3, 1], "tanh", dtype="float64", seed=1)
            trainer = impl.Trainer(net, loss="mse", optimizer=fo.SGD(**options), batch_size=16, seed=3)
            history = trainer.fit(X, t, epochs=5)
            runs.append((trainer.net.flat, history.lr))
        np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=0, atol=1e-12)
        assert runs[0][1] == runs[1][1]


RESUMED = {
    "plateau": lambda: fo.SGD(schedules.ReduceOnPlateau(0.05, 0.5, patience=0, monitor="loss"), momentum=0.9),
    "cosine, momentum": lambda: fo.SGD(
        schedules.Cosine(0.05, 30, warmup=5), momentum=schedules.Piecewise(0.5, (3,), (0.9,), per="epoch"),
        nesterov=True, l1=0.01,
    ),
    "one cycle": lambda: fo.SGD(
        schedules.OneCycle(0.05, 30, 0.01, 0.0), convention="torch", momentum=0.9, weight_decay=0.1,
    ),
    "cumulative": lambda: fo.SGD(schedules.InverseScaling(0.02), l1=0.1, convention="sklearn_sgd"),
    "clip_norm": lambda: fo.SGD(0.05, momentum=0.9, nesterov=True, clip_norm=0.2, l1=0.01),
    "adagrad": lambda: fo.AdaGrad(0.1, initial=0.5, weight_decay=0.1),
    "rmsprop": lambda: fo.RMSProp(0.01, momentum=0.5),
    "adadelta": lambda: fo.AdaDelta(l1=0.01),
    "adam": lambda: fo.Adam(0.01, l1=0.01),
    "adam, prox": lambda: fo.Adam(0.01, l1=0.01, l1_mode="prox"),
    "adamw": lambda: fo.AdamW(schedules.StepDecay(0.01, 2, 0.5, per="epoch"), eps_inside=True),
}  # fmt: skip


@pytest.mark.parametrize("stop", ["epoch", "batch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RESUMED)
def test_resumed(name, dtype, stop, tmp_path):
    """Saved after two epochs, or in the middle of the third, loaded and continued: the run that never stopped."""
    X, t = regression()

    def trainer():
        net = fo.MLP([8, 5, 1], dtype=dtype, seed=1, dropout=0.25)
        return fo.Trainer(net, loss="mse", optimizer=RESUMED[name](), batch_size=7, seed=3)

    unbroken, broken = trainer(), trainer()
    unbroken.fit(X, t, epochs=6)
    broken.fit(X, t, epochs=2)
    if stop == "batch":
        seen = []

        def stop_in_the_third(scores, y):
            seen.append(1)
            if len(seen) == 3:
                broken.stop()
            return fo.mse(scores, y.reshape(scores.shape))

        broken._loss = stop_in_the_third
        broken.fit(X, t, epochs=1)
        broken._loss = "mse"
        assert broken.epoch == 2
    broken.save(tmp_path / "run.ckpt")
    resumed = fo.Trainer.load(tmp_path / "run.ckpt")
    assert resumed.optimizer == broken.optimizer
    resumed.fit(X, t, epochs=4)
    assert resumed.net.flat.tobytes() == unbroken.net.flat.tobytes()
    assert resumed.history.loss == pytest.approx(unbroken.history.loss, rel=1e-6)
    assert resumed.history.lr == unbroken.history.lr


def test_a_callable_momentum_is_passed_again(tmp_path):
    X, t = regression()
    trainer = fo.Trainer(fo.MLP([8, 1], seed=0), loss="mse", optimizer=fo.SGD(0.01, momentum=lambda s: 0.5), seed=0)
    trainer.fit(X, t, epochs=1)
    trainer.save(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="momentum was a Python callable"):
        fo.Trainer.load(tmp_path / "run.ckpt")
    again = fo.Trainer.load(tmp_path / "run.ckpt", momentum=lambda s: 0.5)
    again.fit(X, t, epochs=1)
    trainer.fit(X, t, epochs=1)
    assert again.net.flat.tobytes() == trainer.net.flat.tobytes()


# -- the range test ---------------------------------------------------------------------------------------------


def test_lr_range():
    X, t = regression()
    net = fo.MLP([8, 1], dtype="float64", seed=0)
    before = net.flat.copy()
    found = fo.lr_range_test(net, X, t, loss="mse", optimizer=fo.SGD(0.1), low=1e-4, high=1e3, steps=60, seed=0)
    assert (net.flat == before).all()
    assert len(found.lr) == len(found.loss) <= 60
    np.testing.assert_allclose(found.lr, np.geomspace(1e-4, 1e3, 60)[: len(found.lr)])
    # squared errors of this curvature fall up to a rate of some tenths, and explode beyond
    assert 1e-3 < found.suggestion < 0.3
    assert found.loss[-1] > 1e3 * found.loss[0] or len(found.lr) < 60
    constant = fo.optim.SGD(0.1)
    flat = fo.lr_range_test(net, X, t, loss=lambda s, y: (1.0, 0 * s), optimizer=constant, steps=5, seed=0)
    assert math.isnan(flat.suggestion)
    plt = pytest.importorskip("matplotlib.pyplot")
    axes = found.plot()
    assert axes.get_xscale() == "log"
    plt.close(axes.figure)


def test_lr_range_uses_nothing_of_the_optimizers_rate():
    X, y = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 3
    found = [
        fo.lr_range_test(fo.MLP([3, 3], seed=0), X, y, loss="hinge", optimizer=fo.SGD(lr), steps=9, seed=0)
        for lr in (0.1, schedules.ReduceOnPlateau(0.1))
    ]
    assert found[0].loss.tolist() == found[1].loss.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "low must be"),
        ({"low": 2.0, "high": 1.0}, "high must be above"),
        ({"steps": 1}, "steps must be"),
        ({"y": np.array([1, 1, 1, 7])}, r"y\[3\] = 7 is not in 0..2"),
        ({"X": np.array([[1, 1], [1, np.nan]])}, r"X\[1, 1\] is nan"),
        ({"loss_options": {"class_weight": [0, 1, 1]}}, "class_weight must be above 0 here"),
        ({"optimizer": fo.SGD(0.1, momentum=schedules.Constant(0.5, per="epoch"))}, "per epoch says nothing"),
    ],
)
def test_lr_range_refuses(options, message):
    X = options.pop("X", np.ones((4, 2)))
    arguments = {"X": X, "y": np.ones(len(X), int), "loss": "hinge", "optimizer": fo.SGD(0.1)} | options
    with pytest.raises(ValueError, match=message):
        fo.lr_range_test(fo.MLP([2, 3]), **arguments)
