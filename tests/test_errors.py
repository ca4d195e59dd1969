"""Bad input: what is raised, what the message says, and that nothing has changed after it.

A call starts from arguments that work (CALLS makes them afresh), of which one or a few are replaced. Messages
are regular expressions; `fails` compares the arrays' bytes and the objects' state before and after.
"""

import copy
import re
import subprocess
import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import fastopt as fo
from fastopt import files

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(0)
X, WEIGHT, BIAS = RNG.standard_normal((6, 5)), RNG.standard_normal((3, 5)), RNG.standard_normal(3)
SCORES, LABELS = RNG.standard_normal((6, 3)), np.array([0, 2, 1, 1, 0, 2])
UNIT, SIGNS = RNG.random((6, 3)), np.array([1, -1, -1, 1, 1, -1])
W = np.array([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])
LABEL_LOSSES = ("softmax_cross_entropy", "hinge", "squared_hinge")
TARGET_LOSSES = ("binary_cross_entropy", "mse", "mae", "msle", "huber")


def network(**options):
    return fo.MLP(
        **{"sizes": [5, 4, 3], "activation": "tanh", "dtype": "float64", "dropout": 0.25, **options}
    )


def optimizer(**options):
    return fo.SGD(**{"lr": 0.1, "momentum": 0.9, "nesterov": True, "l1": 1e-3, **options})


def trainer(loss="softmax_cross_entropy", epochs=0, dtype="float64", **options):
    options = {"net": network(dtype=dtype), "optimizer": optimizer(), "batch_size": 4, "seed": 1} | options
    made = fo.Trainer(loss=loss, **options)
    if epochs:
        made.fit(X, LABELS, epochs=epochs, **WATCHED)
    return made


WATCHED = {"validation_data": (X, LABELS), "early_stopping": fo.EarlyStopping(patience=4, min_delta=0.05)}


def method(name):
    return lambda self, **arguments: getattr(self, name)(**arguments)


def loss_call(name, y):
    first, second = ("pred", "target") if name in ("mse", "mae", "msle", "huber") else ("scores", "y")
    scores = SCORES[:, 0] if y is SIGNS else np.abs(SCORES) if name == "msle" else SCORES
    arguments = {first: scores, second: y, "sample_weight": W, "reduction": "mean"}
    return getattr(fo, name), partial(copy.deepcopy, arguments)


def step_call(name):
    arguments = {"param": WEIGHT, "grad": WEIGHT / 3, "lr": 0.1, "weight_decay": 0.1, "l1": 0.1}
    if name != "sgd_step":
        arguments |= {"velocity": WEIGHT * 0.1, "momentum": 0.9}
    return getattr(fo, name), partial(copy.deepcopy, arguments)


def updating(params, grads, **options):
    """Arguments of SGD.update."""
    self = optimizer(**options)
    return {"self": self, "params": params, "grads": grads, "state": self.init(params)}


# name: the callable, its arguments
CALLS = {
    "dense_forward": (
        fo.dense_forward,
        lambda: {
            "x": X.copy(), "weight": WEIGHT.copy(), "bias": BIAS.copy(), "activation": "relu",
            "out": np.full((6, 3), 7.0), "n_threads": 1,
        },
    ),
    "dense_backward": (
        fo.dense_backward,
        lambda: {
            "dout": SCORES.copy(), "x": X.copy(), "weight": WEIGHT.copy(), "output": UNIT.copy(),
            "activation": "sigmoid", "n_threads": 1,
        },
    ),
    **{name: loss_call(name, LABELS) for name in LABEL_LOSSES},
    **{name: loss_call(name, UNIT) for name in TARGET_LOSSES},
    "hinge binary": loss_call("hinge", SIGNS),
    "squared_hinge binary": loss_call("squared_hinge", SIGNS),
    "softmax": (fo.softmax, lambda: {"scores": SCORES.copy()}),
    "accuracy": (fo.accuracy, lambda: {"scores": SCORES.copy(), "y": LABELS.copy()}),
    **{name: step_call(name) for name in ("sgd_step", "momentum_step", "nesterov_step")},
    "check_gradient": (
        fo.check_gradient,
        lambda: {"fun": lambda x: (np.sum(x**2), 2 * x), "x": BIAS.copy(), "step": 1e-5, "rtol": 1e-6},
    ),
    "MLP": (
        fo.MLP,
        lambda: {
            "sizes": [5, 4, 3], "activation": "relu", "init": "he_normal", "dropout": 0.5, "dtype": "float64",
            "seed": 0,
        },
    ),
    "MLP.forward": (method("forward"), lambda: {"self": network(), "X": X.copy(), "n_threads": 1}),
    "MLP.loss_and_grad": (
        method("loss_and_grad"),
        lambda: {
            "self": network(), "X": X.copy(), "y": LABELS.copy(), "loss": "hinge", "sample_weight": W.copy()
        },
    ),
    "MLP.loss_and_grad own": (
        method("loss_and_grad"),
        lambda: {"self": network(), "X": X.copy(), "y": UNIT.copy(), "loss": lambda s, y: (0.5, 0 * s)},
    ),
    "SGD": (
        fo.SGD,
        lambda: {
            "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "l1": 0.1, "l2": 0.1,
            "decay_bias": None,
        },
    ),
    "SGD.init": (
        method("init"),
        lambda: {"self": optimizer(), "params": [WEIGHT.copy(), BIAS.copy()], "decay": [True, False]},
    ),
    "SGD.update": (
        method("update"), lambda: updating([WEIGHT.copy(), BIAS.copy()], [WEIGHT.copy(), BIAS.copy()])
    ),
    "SGD.update array": (method("update"), lambda: updating(WEIGHT.copy(), WEIGHT.copy())),
    "SGD.update MLP": (method("update"), lambda: updating(network(), np.ones(39))),
    "Trainer": (
        fo.Trainer,
        lambda: {
            "net": network(), "loss": "hinge", "optimizer": optimizer(), "batch_size": 4, "shuffle": True,
            "seed": 1, "n_threads": 1,
        },
    ),
    "Trainer.fit": (
        method("fit"),
        lambda: {
            "self": trainer(epochs=2), "X": X.copy(), "y": LABELS.copy(), "epochs": 2,
            "sample_weight": W.copy(), "validation_data": (X.copy(), LABELS.copy()),
            "early_stopping": fo.EarlyStopping(patience=2), "target_loss": 0.01, "callbacks": (),
            "progress": False,
        },
    ),
    "Trainer.fit mse": (
        method("fit"), lambda: {"self": trainer("mse"), "X": X.copy(), "y": UNIT.copy(), "epochs": 2}
    ),
    "Trainer.fit own": (
        method("fit"),
        lambda: {"self": trainer(lambda s, y: (0.5, 0 * s)), "X": X.copy(), "y": UNIT.copy(), "epochs": 2},
    ),
    "EarlyStopping": (
        fo.EarlyStopping, lambda: {"monitor": "loss", "patience": 2, "min_delta": 0.0, "restore_best": True}
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_calls_work_as_they_stand(call):
    function, arguments = CALLS[call]
    function(**arguments())


def state_of(value, path):
    """What must be the same after a failed call, comparable with ==."""
    if isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        return value.dtype, value.shape, value.strides, base.tobytes()
    if isinstance(value, (list, tuple)):
        return type(value), [state_of(v, path) for v in value]
    if isinstance(value, fo.MLP):
        return value.flat.tobytes(), repr(value)
    if isinstance(value, fo.Trainer):
        value.save(path)  # all that the next fit depends on
        tensors, description = files.read(path, "checkpoint")
        history = {name: list(series) for name, series in vars(value.history).items()}
        return (
            description,
            {k: t.tobytes() for k, t in tensors.items()},
            repr(history),
            state_of(value.net, path),
        )
    if hasattr(value, "velocity"):
        return value.step, state_of(value.velocity, path), list(value.decay)
    return repr(value) if isinstance(value, float) else value


def fails(tmp_path, call, replaced, error, message):
    """The call raises that very error, and what was passed is as it was; a callable `self` is made first."""
    function, arguments = CALLS[call][0], CALLS[call][1]() | replaced
    if callable(arguments.get("self")):
        arguments["self"] = arguments["self"]()
    before = {name: state_of(value, tmp_path / "state") for name, value in arguments.items()}
    with pytest.raises(error) as info:
        function(**arguments)
    assert re.search(message, str(info.value)), f"{info.value!r} does not say {message}"
    assert type(info.value) is error, repr(info.value)
    assert {name: state_of(value, tmp_path / "state") for name, value in arguments.items()} == before


# ------------------------------------------------------------------------------------------------ every array

ARRAYS = [
    *(("dense_forward", name) for name in ("x", "weight", "bias")),
    *(("dense_backward", name) for name in ("dout", "x", "weight", "output")),
    *((name, a) for name in LABEL_LOSSES for a in ("scores", "y", "sample_weight")),
    *((name, a) for name in ("hinge binary", "squared_hinge binary", "binary_cross_entropy")
      for a in ("scores", "y", "sample_weight")),
    *((name, a) for name in ("mse", "mae", "msle", "huber") for a in ("pred", "target", "sample_weight")),
    ("softmax", "scores"), ("accuracy", "scores"), ("accuracy", "y"),
    *((name, "grad") for name in ("sgd_step", "momentum_step", "nesterov_step")),
    ("check_gradient", "x"),
    ("MLP.forward", "X"),
    *(("MLP.loss_and_grad", a) for a in ("X", "y", "sample_weight")),
    *(("Trainer.fit", a) for a in ("X", "y", "sample_weight")),
    *(("Trainer.fit mse", a) for a in ("X", "y")),
    ("Trainer.fit own", "X"),
]  # fmt: skip
arrays = pytest.mark.parametrize(("call", "argument"), ARRAYS)


def is_labels(call, argument):
    return argument == "y" and call not in ("binary_cross_entropy", "Trainer.fit mse")


def given(call, argument):
    return CALLS[call][1]()[argument]


NOT_REAL = {
    "complex": (lambda a: a.astype(complex), "must hold real numbers, got dtype complex128"),
    "object": (lambda a: a.astype(object), "must hold real numbers, got dtype object"),
    "strings": (lambda a: a.astype(str), "must hold real numbers, got dtype <U"),
    "bytes": (lambda a: a.astype("S8"), r"must hold real numbers, got dtype \|S8"),
    "dates": (lambda a: a.astype("i8").astype("M8[s]"), r"must hold real numbers, got dtype datetime64"),
    "times": (lambda a: a.astype("i8").astype("m8[s]"), "must hold real numbers, got dtype timedelta64"),
    "records": (lambda a: np.zeros(a.shape, [("a", "f8")]), "must hold real numbers"),
    "a dict": (lambda a: {}, "must hold real numbers, got dtype object"),
    "a list of None": (lambda a: [None] * len(a), "must hold real numbers, got dtype object"),
    "masked": (lambda a: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) == 0), "is a masked array"),
    "masked, nothing hidden": (np.ma.masked_array, "is a masked array"),
}


@arrays
@pytest.mark.parametrize(("corrupt", "message"), NOT_REAL.values(), ids=NOT_REAL)
def test_not_real_numbers(tmp_path, call, argument, corrupt, message):
    fails(tmp_path, call, {argument: corrupt(given(call, argument))}, TypeError, f"^{argument} {message}")


WRONG_SHAPE = {
    "one more axis in front": lambda a: a[None, None],
    "one more axis behind": lambda a: a[..., None, None],
    "no axis": lambda a: a.ravel()[0],
    "no entry": lambda a: a[:0],
    "no column": lambda a: a[..., :0],
    "a ragged list": lambda a: [[1.0], [1.0, 2.0]],
    "an empty list": lambda a: [],
}


@arrays
@pytest.mark.parametrize("shape", WRONG_SHAPE)
def test_wrong_shape(tmp_path, call, argument, shape):
    bad = WRONG_SHAPE[shape](given(call, argument))
    message = f"^{argument} (is empty|must have shape|must be a rectangular array|must have 6 entries)"
    if call == "check_gradient" and "axis" in shape:
        assert fo.check_gradient(given(call, "fun"), bad).ok  # it takes any
    elif call == "MLP.forward" and shape == "no entry":
        assert network().forward(bad).shape == (0, 3)
    else:
        fails(tmp_path, call, {argument: bad}, ValueError, message)


def test_check_gradient_takes_a_number():
    """The gradient is of the shape of x, here a number too."""
    report = fo.check_gradient(lambda x: (float(x) ** 2, 2 * float(x)), 3.0)
    assert report.ok
    assert report.worst_index == report.analytic.shape == report.numeric.shape == ()


SHAPES_THAT_DISAGREE = [
    ("dense_forward", {"x": X[:, :4]}, r"x must have shape \(n, 5\), got \(6, 4\)"),
    ("dense_forward", {"weight": WEIGHT[:, :4]}, r"(x|bias) must have shape .*, got"),
    ("dense_forward", {"bias": BIAS[:2]}, r"bias must have shape \(3,\), got \(2,\)"),
    ("dense_forward", {"bias": BIAS[:, None]}, r"bias must have shape \(3,\), got \(3, 1\)"),
    ("dense_forward", {"out": np.empty((5, 3))}, r"out must have shape \(6, 3\), got \(5, 3\)"),
    ("dense_forward", {"out": np.empty(18)}, r"out must have shape \(6, 3\), got \(18,\)"),
    ("dense_backward", {"dout": SCORES[:5]}, r"dout must have shape \(6, 3\), got \(5, 3\)"),
    ("dense_backward", {"dout": SCORES[:, :2]}, r"dout must have shape \(6, 3\), got \(6, 2\)"),
    ("dense_backward", {"output": UNIT[:5]}, r"output must have shape \(6, 3\), got \(5, 3\)"),
    ("dense_backward", {"output": None}, "output must be given with activation='sigmoid'"),
    *(
        (name, {"y": LABELS[:5]}, r"y must have shape \(6,\), got \(5,\)")
        for name in (*LABEL_LOSSES, "accuracy")
    ),
    *((name, {"y": LABELS[:, None]}, r"y must have shape \(6,\), got \(6, 1\)") for name in LABEL_LOSSES),
    ("softmax_cross_entropy", {"scores": SCORES[:, 0]}, r"scores must have shape \(n, K\), got \(6,\)"),
    *(
        (name, {"sample_weight": W[:5]}, r"sample_weight must have shape \(6,\), got \(5,\)")
        for name in (*LABEL_LOSSES, *TARGET_LOSSES, "MLP.loss_and_grad", "Trainer.fit")
    ),
    # nothing broadcasts but a target (n,) to (n, 1)
    ("mse", {"target": UNIT[:, 0]}, r"target must have shape \(6, 3\), got \(6,\)"),
    ("mse", {"target": UNIT[:, :1]}, r"target must have shape \(6, 3\), got \(6, 1\)"),
    ("mse", {"target": UNIT[:1]}, r"target must have shape \(6, 3\), got \(1, 3\)"),
    ("mse", {"pred": SCORES[:, 0], "target": UNIT[:, :1]}, r"target must have shape \(6,\), got \(6, 1\)"),
    ("mse", {"pred": SCORES[:, :1], "target": UNIT[:5, 0]}, r"target must have shape \(6, 1\), got \(5"),
    ("mse", {"pred": 1.0, "target": 1.0}, r"pred must have shape \(n,\) or \(n, m\), got \(\)"),
    (
        "mse",
        {"pred": X[None], "target": X[None]},
        r"pred must have shape \(n,\) or \(n, m\), got \(1, 6, 5\)",
    ),
    ("sgd_step", {"grad": WEIGHT.ravel()}, r"grad must have shape \(3, 5\), got \(15,\)"),
    ("momentum_step", {"velocity": BIAS.copy()}, r"velocity must have shape \(3, 5\), got \(3,\)"),
    ("nesterov_step", {"velocity": WEIGHT.T.copy()}, r"velocity must have shape \(3, 5\), got \(5, 3\)"),
    ("MLP.forward", {"X": X[:, :4]}, r"X must have shape \(n, 5\), got \(6, 4\)"),
    ("MLP.forward", {"X": X[:0, :4]}, r"X must have shape \(n, 5\), got \(0, 4\)"),
    ("MLP.forward", {"X": X[0]}, r"X must have shape \(n, 5\), got \(5,\)"),
    ("MLP.loss_and_grad", {"X": X[:5]}, r"y must have shape \(5,\), got \(6,\)"),
    ("SGD.update", {"grads": [WEIGHT]}, "grads and state must have 2 arrays, got 1"),
    ("SGD.update", {"grads": [BIAS, WEIGHT]}, r"grads\[0\] must have shape \(3, 5\), got \(3,\)"),
    ("SGD.update array", {"grads": BIAS}, r"grads must have shape \(3, 5\), got \(3,\)"),
    ("SGD.update MLP", {"grads": np.ones(38)}, r"grads must have shape \(39,\), got \(38,\)"),
    ("Trainer.fit", {"X": X[:, :4]}, r"X must have shape \(n, 5\), got \(6, 4\)"),
    ("Trainer.fit", {"X": X[:5]}, r"y must have shape \(5,\), got \(6,\)"),
    (
        "Trainer.fit",
        {"validation_data": (X[:, :4], LABELS)},
        r"validation X must have shape \(n, 5\), got \(6, 4\)",
    ),
    ("Trainer.fit", {"validation_data": (X, LABELS[:5])}, r"validation y must have shape \(6,\), got \(5,\)"),
    ("Trainer.fit", {"validation_data": (X[:0], LABELS[:0])}, "validation X is empty"),
    ("Trainer.fit mse", {"y": UNIT[:, 0]}, r"y must have shape \(6, 3\), got \(6,\)"),
    ("Trainer.fit own", {"y": UNIT[:5]}, r"y must have 6 entries, got shape \(5, 3\)"),
    ("Trainer.fit own", {"X": X[:1], "y": 1.0}, r"y must have 1 entries, got shape \(\)"),
    ("Trainer.fit own", {"y": [[1.0], [1.0, 2.0]]}, "y must be a rectangular array"),
    ("Trainer.fit own", {"sample_weight": W}, "sample_weight cannot be used with a loss of your own"),
    ("MLP.loss_and_grad own", {"sample_weight": W}, "sample_weight cannot be used with a loss of your own"),
]


@pytest.mark.parametrize(("call", "replaced", "message"), SHAPES_THAT_DISAGREE)
def test_shapes_that_disagree(tmp_path, call, replaced, message):
    fails(tmp_path, call, replaced, ValueError, f"^{message}")


# --------------------------------------------------------------------------------------- numbers out of range

NOT_FINITE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
FLOATS = [(call, argument) for call, argument in ARRAYS if not is_labels(call, argument)]


@pytest.mark.parametrize(("call", "argument"), FLOATS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("position", ["first", "middle", "last", "two"])
def test_not_finite(tmp_path, call, argument, value, position):
    """The message names the first position."""
    bad = given(call, argument).copy()
    at = {"first": 0, "middle": bad.size // 2, "last": bad.size - 1, "two": bad.size // 2 - 1}[position]
    bad.flat[at] = NOT_FINITE[value]
    if position == "two":
        bad.flat[at + 1] = np.nan
    where = ", ".join(str(int(i)) for i in np.unravel_index(at, bad.shape))
    fails(tmp_path, call, {argument: bad}, ValueError, rf"^{argument}\[{where}\] is {value}$")


@pytest.mark.parametrize("layout", ["list", "Fortran", "reversed", "float16", "longdouble"])
@pytest.mark.parametrize("call", ["dense_forward", "MLP.forward", "Trainer.fit"])
def test_not_finite_in_any_layout(tmp_path, call, layout):
    argument = "x" if call == "dense_forward" else "X"
    bad = X.copy()
    bad[4, 3] = np.nan
    bad = {
        "list": bad.tolist,
        "Fortran": lambda: np.asfortranarray(bad),
        "reversed": lambda: np.flip(np.flip(bad).copy()),
        "float16": lambda: bad.astype("f2"),
        "longdouble": lambda: bad.astype("g"),
    }[layout]()  # fmt: skip
    if layout == "longdouble" and argument == "X":
        fails(tmp_path, call, {argument: bad}, TypeError, "^X has dtype .* convert it to a native float")
    else:
        fails(tmp_path, call, {argument: bad}, ValueError, rf"^{argument}\[4, 3\] is nan$")


NARROWED = [  # what decides, in float32; what is narrowed to it
    ("dense_forward", {"weight": WEIGHT.astype("f4"), "out": None}, ("x", "bias")),
    ("dense_backward", {"weight": WEIGHT.astype("f4")}, ("x", "dout", "output")),
    ("softmax_cross_entropy", {"scores": SCORES.astype("f4")}, ("sample_weight",)),
    ("binary_cross_entropy", {"scores": SCORES.astype("f4")}, ("sample_weight",)),
    ("mse", {"pred": SCORES.astype("f4")}, ("target", "sample_weight")),
    ("sgd_step", {"param": WEIGHT.astype("f4")}, ("grad",)),
    ("MLP.forward", {"self": partial(network, dtype="float32")}, ("X",)),
    ("MLP.loss_and_grad", {"self": partial(network, dtype="float32")}, ("X", "sample_weight")),
    ("Trainer.fit", {"self": partial(trainer, dtype="float32")}, ("X", "sample_weight")),
    ("Trainer.fit mse", {"self": partial(trainer, "mse", dtype="float32")}, ("X", "y")),
]


@pytest.mark.parametrize(
    ("call", "decider", "argument"), [(c, d, a) for c, d, names in NARROWED for a in names]
)
@pytest.mark.parametrize("value", [1e39, 1e300, 3.5e38])
def test_too_large_for_float32(tmp_path, call, decider, argument, value):
    bad = given(call, argument)
    at = bad.size // 2
    bad.flat[at] = value
    where = ", ".join(str(int(i)) for i in np.unravel_index(at, bad.shape))
    message = rf"^{argument}\[{where}\] = {re.escape(str(value))} does not fit float32$"
    fails(tmp_path, call, decider | {argument: bad}, ValueError, message)


LABEL_ERRORS = [  # an index, the label there, what the message shows
    (0, -1, "-1"), (5, 3, "3"), (2, 2**31, "2147483648"), (3, 2**31 - 1, "2147483647"),
    (5, -(2**31), "-2147483648"), (1, -(2**63), "-9223372036854775808"),
    (4, np.uint64(2**63), "9223372036854775808"), (1, np.uint64(2**64 - 1), "18446744073709551615"),
    (3, 1.5, "1.5"), (4, -0.5, "-0.5"), (0, np.nan, "nan"), (5, np.inf, "inf"), (2, 1e300, "1e[+]300"),
]  # fmt: skip


@pytest.mark.parametrize("call", [call for call, argument in ARRAYS if is_labels(call, argument)])
@pytest.mark.parametrize(("index", "label", "shown"), LABEL_ERRORS)
def test_labels_out_of_range(tmp_path, call, index, label, shown):
    """The value and the index of the first one."""
    y = np.ones(6, np.asarray(label).dtype)  # a label in either form
    y[index] = label
    allowed = r"0\.\.2"
    if "binary" in call:
        allowed = "-1, 1"
        if label == -1:
            y[index], shown = 0, "0"
    fails(tmp_path, call, {"y": y}, ValueError, rf"^y\[{index}\] = {shown} is not in {allowed}$")


@pytest.mark.parametrize("call", [call for call, argument in ARRAYS if is_labels(call, argument)])
def test_labels_must_not_be_bool(tmp_path, call):
    fails(tmp_path, call, {"y": LABELS > 0}, TypeError, "^y must hold integer labels, got dtype bool$")


OUT_OF_DOMAIN = [
    ("binary_cross_entropy", "y", (2, 1), 1.0000001, r"y\[2, 1\] = 1.0000001 is not in \[0, 1\]"),
    ("binary_cross_entropy", "y", (0, 0), -1e-300, r"y\[0, 0\] = -1e-300 is not in \[0, 1\]"),
    ("binary_cross_entropy", "y", (5, 2), 2.0, r"y\[5, 2\] = 2.0 is not in \[0, 1\]"),
    ("msle", "target", (5, 2), -1.0, r"target\[5, 2\] = -1.0 is not > -1"),
    ("msle", "target", (0, 0), -7.5, r"target\[0, 0\] = -7.5 is not > -1"),
    ("msle", "pred", (5, 2), -1.0, r"pred\[5, 2\] = -1.0 is not > -1"),
    ("msle", "pred", (0, 0), -1e300, r"pred\[0, 0\] = -1e\+300 is not > -1"),
    *(
        (name, "sample_weight", (4,), -1e-300, r"sample_weight\[4\] = -1e-300 is negative")
        for name in (*LABEL_LOSSES, *TARGET_LOSSES, "MLP.loss_and_grad", "Trainer.fit")
    ),
]


@pytest.mark.parametrize(("call", "argument", "index", "value", "message"), OUT_OF_DOMAIN)
def test_out_of_the_domain(tmp_path, call, argument, index, value, message):
    bad = given(call, argument)
    bad[index] = value
    fails(tmp_path, call, {argument: bad}, ValueError, f"^{message}$")


@pytest.mark.parametrize("call", [call for call, argument in ARRAYS if argument == "sample_weight"])
def test_weights_that_sum_to_zero(tmp_path, call):
    fails(tmp_path, call, {"sample_weight": np.zeros(6)}, ValueError, "^sample_weight sums to zero$")


@pytest.mark.parametrize("call", [call for call, argument in ARRAYS if argument == "sample_weight"])
def test_weights_whose_sum_overflows(tmp_path, call):
    """The mean would be 0."""
    fails(tmp_path, call, {"sample_weight": np.full(6, 1e308)}, ValueError, "^sample_weight: the sum of the ")


def test_class_weights_out_of_range():
    with pytest.raises(ValueError, match=r"^class_weight\[1\] = 1e\+300 does not fit float32$"):
        fo.hinge(SCORES.astype("float32"), LABELS, class_weight=[1, 1e300, 1])
    for sample_weight in (None, np.full(6, 1e200)):
        with pytest.raises(ValueError, match="^class_weight: the sum of the samples' weights overflows$"):
            fo.hinge(SCORES, LABELS, class_weight=[1e308] * 3, sample_weight=sample_weight)


@pytest.mark.parametrize(("loss", "value", "message"), [
    ("mse", np.nan, r"^y\[4\] is nan$"), ("msle", -1.0, r"^y\[4\] = -1.0 is not > -1$"),
])  # fmt: skip
def test_a_target_of_one_dimension_is_named_by_one_index(loss, value, message):
    y = np.ones(6)
    y[4] = value
    with pytest.raises(ValueError, match=message):
        fo.Trainer(fo.MLP([5, 1]), loss=loss, optimizer=optimizer()).fit(X, y, epochs=1)


@pytest.mark.parametrize(
    ("call", "replaced"),
    [
        ("mse", {"pred": np.full((6, 3), 1e200)}),
        ("squared_hinge", {"scores": SCORES * 1e200}),
        ("mae", {"pred": np.full((6, 3), 1.7e308), "target": np.full((6, 3), -1.7e308)}),
        ("MLP.forward", {"self": network(init=lambda shape, rng: np.full(shape, 1e308))}),
    ],
)
def test_results_too_large(tmp_path, call, replaced):
    fails(tmp_path, call, replaced, OverflowError, "overflows float64|are not finite")


# ------------------------------------------------------------------------------------------- hyper-parameters

# the call, the argument, and values that are numbers of the right type out of range
NUMBERS = [
    *(
        (f"{rule}_step", argument, bad)
        for rule in ("sgd", "momentum", "nesterov")
        for argument, bad in [("lr", [-1e-9]), ("weight_decay", [-1e-9]), ("l1", [-1e-9])]
    ),
    *((f"{rule}_step", "momentum", [1.0, 1.5, -1e-9]) for rule in ("momentum", "nesterov")),
    ("SGD", "lr", [0.0, -0.0, -0.1]),
    ("SGD", "momentum", [1.0, 1.5, -1e-9]),
    *(("SGD", argument, [-1e-9]) for argument in ("weight_decay", "l1", "l2")),
    ("softmax_cross_entropy", "label_smoothing", [-1e-9, 1.0000001, 2]),
    ("check_gradient", "rtol", [0.0, -1e-6]),
    ("check_gradient", "step", [0.0, -1e-6]),
    ("MLP", "dropout", [1.0, 1.5, -1e-9]),
    ("EarlyStopping", "min_delta", [-1e-9]),
    ("Trainer.fit", "target_loss", []),
]
OUT_OF_ANY_RANGE = [np.nan, np.inf, -np.inf, 10**400]
NOT_NUMBERS = [True, np.False_, "0.1", 1j, [0.1], np.array(0.1), b""]
INTEGERS = [  # least, and greatest where there is one
    *((call, "n_threads", 1, None) for call in ("dense_forward", "dense_backward", "MLP.forward", "Trainer")),
    ("MLP", "seed", 0, None),
    ("Trainer", "seed", 0, 2**64 - 1),
    ("Trainer", "batch_size", 1, None),
    ("Trainer.fit", "epochs", 0, None),
    ("EarlyStopping", "patience", 1, None),
]
NOT_INTEGERS = [True, 1.5, 1.0, np.nan, "1", [1], np.array(1)]
FLAGS = [
    ("SGD", "nesterov"), ("SGD", "decay_bias"), ("Trainer", "shuffle"), ("Trainer.fit", "progress"),
    ("EarlyStopping", "restore_best"),
]  # fmt: skip
NAMES = [
    *((call, "reduction") for call in (*LABEL_LOSSES, *TARGET_LOSSES)),
    *((call, "activation") for call in ("dense_forward", "dense_backward", "MLP")),
    ("MLP", "init"), ("MLP", "dtype"), ("MLP.loss_and_grad", "loss"), ("Trainer", "loss"),
    ("EarlyStopping", "monitor"),
]  # fmt: skip
HYPER = [  # call, argument, values, error, what is wanted
    *((call, a, bad, ValueError, "finite and") for call, a, bad in NUMBERS if a != "label_smoothing"),
    *((call, a, bad, ValueError, "(finite and|in)") for call, a, bad in NUMBERS if a == "label_smoothing"),
    *((call, a, OUT_OF_ANY_RANGE, ValueError, "finite") for call, a, _ in NUMBERS),
    *((call, a, NOT_NUMBERS, TypeError, "a real number") for call, a, _ in NUMBERS),
    *((call, a, [least - 1, -(10**30)], ValueError, f"(>=|in) {least}") for call, a, least, _ in INTEGERS),
    *(
        (call, a, [most + 1], ValueError, rf"in {least}\.\.{most}")
        for call, a, least, most in INTEGERS
        if most
    ),
    *((call, a, NOT_INTEGERS, TypeError, "an integer") for call, a, *_ in INTEGERS),
    *((call, a, [1, 0.0, "yes", [True]], TypeError, "True or False") for call, a in FLAGS),
    *((call, a, ["unknown", "", "RELU"], ValueError, "one of") for call, a in NAMES),
    *((call, a, [5, ["relu"], b"mean"], TypeError, "one of") for call, a in NAMES if a != "dtype"),
]


@pytest.mark.parametrize(
    ("call", "argument", "value", "error", "wanted"),
    [
        pytest.param(call, argument, value, error, wanted, id=f"{call}-{argument}-{str(value)[:9]}")
        for call, argument, values, error, wanted in HYPER
        for value in values
    ],
)
def test_hyper_parameters(tmp_path, call, argument, value, error, wanted):
    fails(tmp_path, call, {argument: value}, error, f"^{argument} must be {wanted}.*, got ")


@pytest.mark.parametrize("argument", ["lr", "weight_decay", "l1"])
@pytest.mark.parametrize("call", ["sgd_step", "momentum_step", "nesterov_step"])
def test_hyper_parameters_that_do_not_fit_float32(tmp_path, call, argument):
    narrow = {name: a.astype("f4") for name, a in CALLS[call][1]().items() if name in ("param", "velocity")}
    fails(
        tmp_path, call, narrow | {argument: 1e39}, ValueError, rf"^{argument} = 1e\+39 does not fit float32"
    )


@pytest.mark.parametrize(
    ("number", "flag", "integer"),
    [
        *(
            (number, True, 2)
            for number in (np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2))
        ),
        (0.5, np.True_, 2),
        *((0.5, True, integer) for integer in (np.int64(2), np.uint8(2))),
    ],
)
def test_numbers_of_any_type(tmp_path, number, flag, integer):
    """What is accepted gives the same bits as Python's own numbers, and can be saved."""

    def trained(number, flag, integer):
        net = fo.MLP([5, integer, 3], dropout=number, seed=integer)
        sgd = fo.SGD(number, momentum=number, nesterov=flag, weight_decay=number, decay_bias=flag)
        options = {"batch_size": integer, "shuffle": flag, "seed": integer, "n_threads": integer}
        made = fo.Trainer(net, loss="hinge", optimizer=sgd, **options)
        rule = fo.EarlyStopping("loss", integer, min_delta=number, restore_best=flag)
        made.fit(X, LABELS, epochs=integer, early_stopping=rule, target_loss=number)
        made.save(tmp_path / "run")
        return fo.Trainer.load(tmp_path / "run").net.flat.tobytes()

    assert trained(number, flag, integer) == trained(0.5, True, 2)


NARROW = {"net": network(dtype="float32")}
OTHER_ARGUMENTS = [
    ("SGD", {"momentum": 0.0}, ValueError, "nesterov=True needs momentum > 0"),
    ("SGD", {"lr": None}, TypeError, "lr must be a real number, got None"),
    ("MLP", {"sizes": [5]}, ValueError, r"sizes must name at least the features and the outputs, got \[5\]"),
    ("MLP", {"sizes": []}, ValueError, "sizes must name at least"),
    ("MLP", {"sizes": [5, 0, 3]}, ValueError, r"sizes\[1\] must be >= 1, got 0"),
    ("MLP", {"sizes": [-5, 3]}, ValueError, r"sizes\[0\] must be >= 1, got -5"),
    ("MLP", {"sizes": [5, 4.0]}, TypeError, r"sizes\[1\] must be an integer, got 4.0"),
    ("MLP", {"sizes": [5, True]}, TypeError, r"sizes\[1\] must be an integer, got True"),
    ("MLP", {"sizes": [5, "4"]}, TypeError, r"sizes\[1\] must be an integer, got '4'"),
    ("MLP", {"sizes": 5}, TypeError, "sizes must be a list of integers, got 5"),
    ("MLP", {"sizes": "53"}, TypeError, "sizes must be a list of integers, got '53'"),
    ("MLP", {"sizes": None}, TypeError, "sizes must be a list of integers, got None"),
    ("MLP", {"sizes": np.array(5)}, TypeError, r"sizes must be a list of integers, got array\(5\)"),
    ("MLP", {"dtype": "float16"}, ValueError, "dtype must be one of 'float32', 'float64', got 'float16'"),
    ("MLP", {"dtype": ">f4"}, ValueError, "dtype must be one of 'float32', 'float64', got '>f4'"),
    ("MLP", {"dtype": None}, ValueError, "dtype must be one of 'float32', 'float64', got None"),
    ("MLP", {"dtype": object}, ValueError, "dtype must be one of 'float32', 'float64', got 'object'"),
    ("MLP", {"seed": None}, TypeError, "seed must be an integer, got None"),
    ("MLP", {"init": None}, ValueError, "init must be one of .*, got None"),
    ("MLP", {"init": lambda s, r: np.ones(3)}, ValueError, r"init for weights\[0\] must have shape \(4, 5\)"),
    ("MLP", {"init": lambda s, r: np.full(s, np.nan)}, ValueError, r"init for weights\[0\]\[0, 0\] is nan"),
    ("MLP", {"init": lambda s, r: "ones"}, TypeError, r"init for weights\[0\] must hold real numbers"),
    ("Trainer", {"net": None}, TypeError, "net must be an MLP, got NoneType"),
    ("Trainer", {"net": fo.MLP}, TypeError, "net must be an MLP, got type"),
    ("Trainer", {"optimizer": 0.1}, TypeError, "optimizer must be an SGD or another of fastopt's, got float"),
    ("Trainer", {"optimizer": fo.SGD}, TypeError, "optimizer must be an SGD or another of fastopt's, got type"),
    ("Trainer", {"loss": None}, ValueError, "loss must be one of .*, got None"),
    ("Trainer", {"loss": "softmax_cross_entropy", "net": network(sizes=[5, 1])}, ValueError,
     "softmax_cross_entropy needs at least two outputs"),
    *(("Trainer", NARROW | {"optimizer": optimizer(**{a: 1e39})}, ValueError, rf"{a} = 1e\+39 does not fit")
      for a in ("lr", "weight_decay", "l1", "l2")),
    ("SGD.init", {"params": None}, TypeError, "params must be an MLP, an array or a list of arrays, got"),
    ("SGD.init", {"params": [1.0, BIAS]}, TypeError, r"params\[0\] must be a NumPy array, got float"),
    ("SGD.init", {"params": [WEIGHT, BIAS.astype("f2")]}, ValueError, r"params\[1\] must be float32 or"),
    ("SGD.init", {"params": [WEIGHT.T, BIAS]}, ValueError, r"params\[0\] must be C-contiguous"),
    ("SGD.init", {"decay": [True]}, ValueError, "decay must have 2 entries, got 1"),
    ("SGD.init", {"decay": [True, 1]}, TypeError, r"decay\[1\] must be True or False, got 1"),
    ("SGD.init", {"decay": 5}, TypeError, "decay"),
    ("SGD.init", {"params": BIAS.copy(), "decay": None}, ValueError, "decay must be given for a bare 1-D"),
    ("SGD.update", {"params": None}, TypeError, "params must be an MLP, an array or a list of arrays, got"),
    ("SGD.update", {"grads": None}, TypeError, "grads must be an MLP, an array or a list of arrays, got"),
    ("SGD.update", {"state": None}, TypeError, "state"),
    ("SGD.update", {"state": optimizer().init(WEIGHT.copy())}, ValueError,
     "grads and state must have 2 arrays, got 2 and 1"),
    ("SGD.update MLP", {"grads": np.ones(39, complex)}, TypeError, "grads must hold real numbers"),
    ("SGD.update MLP", {"grads": np.ma.ones(39)}, TypeError, "grads is a masked array"),
    ("SGD.update MLP", {"grads": np.r_[np.ones(38), np.nan]}, ValueError, r"grads\[38\] is nan"),
    ("SGD.update array", {"grads": WEIGHT * np.inf}, ValueError, r"grads\[0, 0\] is -?inf"),
    ("SGD.update", {"grads": [WEIGHT * np.nan, BIAS]}, ValueError, r"grads\[0\]\[0, 0\] is nan"),
    ("SGD.update", {"grads": [WEIGHT, np.array([1.0, 2.0, np.inf])]}, ValueError, r"grads\[1\]\[2\] is inf"),
    *(("SGD.update", {"self": optimizer(lr=lambda step, lr=lr: lr)}, error, rf"lr\(0\) must .*, got {lr!r}")
      for lr, error in [(-1.0, ValueError), (np.nan, ValueError), ("0.1", TypeError), (True, TypeError)]),
    *(("check_gradient", {"fun": fun}, error, message) for fun, error, message in [
        (lambda x: (np.nan, x), ValueError, "the value of fun must be finite, got nan"),
        (lambda x: (np.sum(x), x * np.nan), ValueError, r"the gradient of fun\[0\] is nan"),
        (lambda x: (np.sum(x), x[:2]), ValueError, r"the gradient of fun must have shape \(3,\), got \(2,\)"),
        (lambda x: (np.sum(x), None), TypeError, "the gradient of fun must hold real numbers"),
        (lambda x: (x, x), ValueError, "the value of fun must be one number"),
        (lambda x: ("1", x), TypeError, "the value of fun must be a real number, got '1'"),
        (lambda x: (1j, x), TypeError, "the value of fun must be a real number"),
        (lambda x: 1.0, TypeError, r"fun must return \(value, gradient\), got 1.0"),
        (lambda x: None, TypeError, r"fun must return \(value, gradient\), got None"),
        (lambda x: (np.sum(x**2), 2 * x, 0), TypeError, r"fun must return \(value, gradient\), got"),
        (5, TypeError, "fun must be callable, got 5"),
    ]),
    ("check_gradient", {"x": np.full(3, 1e20)}, ValueError, "step = 1e-05 is lost in the rounding of x"),
    ("Trainer.fit", {"validation_data": (X,)}, TypeError, r"validation_data must be \(X, y\)"),
    ("Trainer.fit", {"validation_data": X}, TypeError, r"validation_data must be \(X, y\)"),
    ("Trainer.fit", {"validation_data": (X, LABELS, W, W)}, TypeError, r"validation_data must be \(X, y\)"),
    ("Trainer.fit", {"validation_data": (X, LABELS + 1)}, ValueError, r"validation y\[1\] = 3 is not in"),
    ("Trainer.fit", {"validation_data": (X * np.nan, LABELS)}, ValueError, r"validation X\[0, 0\] is nan"),
    ("Trainer.fit", {"validation_data": (X, LABELS, -W)}, ValueError, r"^validation sample_weight\[0\] = -1.0 is"),
    ("Trainer.fit", {"early_stopping": type("Own", (fo.EarlyStopping,), {})()}, TypeError,
     "early_stopping must be an EarlyStopping, got Own"),
    ("Trainer.fit own", {"y": np.ma.ones(6)}, TypeError, "y is a masked array"),
    ("Trainer.fit", {"early_stopping": 5}, TypeError, "early_stopping must be an EarlyStopping, got int"),
    ("Trainer.fit", {"early_stopping": fo.EarlyStopping}, TypeError, "early_stopping must be an Early"),
    ("Trainer.fit", {"early_stopping": fo.EarlyStopping(), "validation_data": None}, ValueError,
     "early_stopping monitors val_loss, but there is no validation_data"),
    ("Trainer.fit", {"callbacks": [None]}, TypeError, r"callbacks\[0\] must be callable, got None"),
    ("Trainer.fit", {"callbacks": 5}, TypeError, "callbacks"),
    ("Trainer.fit mse", {"self": partial(trainer, "mse", optimizer=optimizer(lr=lambda step: 0.1 - step))},
     ValueError, r"lr\(1\) must be finite and >= 0, got -0.9"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "replaced", "error", "message"), OTHER_ARGUMENTS)
def test_other_arguments(tmp_path, call, replaced, error, message):
    fails(tmp_path, call, replaced, error, f"^{message}")


@pytest.mark.parametrize("call", ["MLP.loss_and_grad own", "Trainer.fit own"])
@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda s, y: 0.5, TypeError, r"loss must return \(value, dscores\), got 0.5"),
        (lambda s, y: None, TypeError, r"loss must return \(value, dscores\), got None"),
        (lambda s, y: (0.5, s, s), TypeError, r"loss must return \(value, dscores\), got"),
        (lambda s, y: (s[:, 0], s), ValueError, "the value of loss must be one number, got shape"),
        (lambda s, y: (None, s), TypeError, "the value of loss must be a real number, got None"),
        (lambda s, y: ("0.5", s), TypeError, "the value of loss must be a real number, got '0.5'"),
        (
            lambda s, y: (0.5, s[:, :2]),
            ValueError,
            r"dscores of loss must have shape \(\d, 3\), got \(\d, 2\)",
        ),
        (lambda s, y: (0.5, None), TypeError, "dscores of loss must hold real numbers, got dtype object"),
        (
            lambda s, y: (0.5, s * 1j),
            TypeError,
            "dscores of loss must hold real numbers, got dtype complex128",
        ),
    ],
)
def test_answers_of_ones_own_loss(tmp_path, call, loss, error, message):
    replaced = {"loss": loss} if call.startswith("MLP") else {"self": partial(trainer, loss)}
    fails(tmp_path, call, replaced, error, f"^{message}")


# --------------------------------------------------------------------------------- arrays that are written to


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def every_second(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


WRITTEN = [
    ("dense_forward", "out"),
    ("sgd_step", "param"),
    *((rule, a) for rule in ("momentum_step", "nesterov_step") for a in ("param", "velocity")),
]
UNUSABLE = {
    "a list": (lambda a: a.tolist(), TypeError, "must be a NumPy array, got list"),
    "float16": (lambda a: a.astype("f2"), ValueError, "must be (float64|float32 or float64), got float16"),
    "integer": (lambda a: a.astype(int), ValueError, "must be (float64|float32 or float64), got int64"),
    "complex": (
        lambda a: a.astype(complex),
        ValueError,
        "must be (float64|float32 or float64), got complex128",
    ),
    "object": (lambda a: a.astype(object), ValueError, "must be (float64|float32 or float64), got object"),
    "big-endian": (lambda a: a.astype(">f8"), ValueError, "must be (float64|float32 or float64), got >f8"),
    "Fortran": (np.asfortranarray, ValueError, "must be C-contiguous and aligned, got strides"),
    "every second": (every_second, ValueError, "must be C-contiguous and aligned, got strides"),
    "reversed": (lambda a: a[::-1], ValueError, "must be C-contiguous and aligned, got strides"),
    "unaligned": (unaligned, ValueError, "must be C-contiguous and aligned, got strides"),
    "read-only": (read_only, ValueError, "must be writable, got a read-only array"),
    "empty": (lambda a: a[:0], ValueError, r"is empty|must have shape \(6, 3\)"),
    "masked": (np.ma.masked_array, TypeError, "is a masked array"),
}


@pytest.mark.parametrize(("call", "argument"), WRITTEN)
@pytest.mark.parametrize(("corrupt", "error", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_outputs_that_cannot_be_written(tmp_path, call, argument, corrupt, error, message):
    bad = corrupt(given(call, argument))
    fails(tmp_path, call, {argument: bad}, error, f"^{argument} ({message})")


@pytest.mark.parametrize("argument", ["param", "velocity"])
@pytest.mark.parametrize("call", ["momentum_step", "nesterov_step"])
def test_velocity_of_another_dtype(tmp_path, call, argument):
    replaced = {argument: given(call, argument).astype("float32")}
    fails(tmp_path, call, replaced, ValueError, "^velocity must be float(32|64), got float(32|64)$")


def overlapping():
    base = np.resize(np.arange(7.0) / 7, 60)
    square = base[:9].reshape(3, 3)
    inputs = {"x": square.copy(), "weight": square.copy(), "bias": None}
    views = {
        "is out": square,
        "shifted": base[4:13].reshape(3, 3),
        "the last element": base[8:17].reshape(3, 3),
        "transposed": square.T,
        "reversed": square[::-1, ::-1],
        "strided": base[8:58:2].reshape(5, 5)[:3, :3],
        "integers": square.view("i8"),
        "a memoryview": memoryview(square),
    }
    rows = [
        pytest.param(
            "dense_forward", inputs | {a: view, "out": square}, f"out must not overlap {a}", id=f"{a} {how}"
        )
        for a in ("x", "weight")
        for how, view in views.items()
    ]
    rows += [
        pytest.param(
            "dense_forward",
            inputs | {"bias": view, "out": square},
            "out must not overlap bias",
            id=f"bias {i}",
        )
        for i, view in enumerate([base[:3], base[8:11], base[8:20:4], base[6:9][::-1], memoryview(base[3:6])])
    ]
    param, other, apart = base[:9].reshape(3, 3), base[6:15].reshape(3, 3), np.ones((3, 3))
    for step in ("sgd_step", "momentum_step", "nesterov_step"):
        velocity = {} if step == "sgd_step" else {"velocity": apart.copy()}
        for how, grad in {"is param": param, "shifted": other, "transposed": param.T}.items():
            call = {"param": param, "grad": grad, **velocity}
            rows.append(pytest.param(step, call, "param must not overlap grad", id=f"{step} grad {how}"))
        call = {"param": param, "grad": memoryview(other), **velocity}
        rows.append(pytest.param(step, call, "param must not overlap grad", id=f"{step} grad a memoryview"))
        if velocity:
            for how, v in {"is param": param, "shifted": other}.items():
                call = {"param": param, "grad": apart.copy(), "velocity": v}
                rows.append(
                    pytest.param(step, call, "velocity must not overlap param", id=f"{step} velocity {how}")
                )
            call = {"param": apart.copy(), "grad": other, "velocity": param}
            rows.append(
                pytest.param(step, call, "velocity must not overlap grad", id=f"{step} velocity grad")
            )
    return rows


@pytest.mark.parametrize(("call", "replaced", "message"), overlapping())
def test_outputs_that_overlap(tmp_path, call, replaced, message):
    fails(tmp_path, call, replaced, ValueError, f"^{message}$")


def test_an_output_may_lie_between_the_rows_of_an_input():
    rows = np.arange(18.0).reshape(3, 6)
    x, weight, out = rows[::2], np.ones((3, 6)), rows[1].reshape(2, 3)
    expected = fo.dense_forward(x.copy(), weight)
    assert np.array_equal(fo.dense_forward(x, weight, out=out), expected)
    assert np.array_equal(rows[1], expected.ravel())


A, B, BUFFER = np.ones((2, 3)), np.ones((2, 3)), np.ones(9)


@pytest.mark.parametrize(
    ("params", "grads"),
    [
        pytest.param([A, B], [A, np.ones((2, 3))], id="a gradient is its parameter"),
        pytest.param([A, B], [np.ones((2, 3)), A], id="a gradient is another parameter, updated before"),
        pytest.param([A, B], [B, np.ones((2, 3))], id="a gradient is another parameter, updated after"),
        pytest.param(
            [A, B], [np.ones((2, 3)), memoryview(A)], id="a gradient is a view of another parameter"
        ),
        pytest.param([A, A], [np.ones((2, 3)), np.ones((2, 3))], id="a parameter is there twice"),
        pytest.param([BUFFER[:6], BUFFER[3:]], [np.ones(6), np.ones(6)], id="parameters share a part"),
    ],
)
def test_optimizer_refuses_arrays_that_overlap(tmp_path, params, grads):
    """What is updated first would be the input of what is updated next."""
    fails(tmp_path, "SGD.update", updating(params, grads), ValueError, "must not overlap")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"lr": lambda step: 1e39}, r"lr\(0\)"), *(({a: 1e39}, a) for a in ("lr", "l1", "l2", "weight_decay"))],
)
def test_optimizer_refuses_what_does_not_fit_float32(tmp_path, options, name):
    replaced = updating([np.ones((2, 3), "f4")], [np.ones((2, 3), "f4")], **options)
    fails(tmp_path, "SGD.update", replaced, ValueError, rf"^{name} = 1e\+39 does not fit float32")


def in_a_process(program):
    """Runs a program that wrong code could crash; what it prints."""
    header = "import numpy as np, fastopt as fo\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", header + program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stdout


def test_state_of_another_rule():
    """A state without velocities must not reach a rule that writes to them."""
    answer = in_a_process("""
w = [np.ones((4, 4))]
state = fo.SGD(0.1).init(w)
try:
    fo.SGD(0.1, momentum=0.9).update(w, [np.ones((4, 4))], state)
except ValueError as error:
    print(error, (w[0] == 1).all(), state.step)
""")
    assert re.search("state.* True 0", answer), answer


def test_labels_changed_during_a_fit_do_not_index_memory():
    """They were checked when the fit began."""
    answer = in_a_process("""
X, y = np.random.default_rng(0).standard_normal((64, 3)), np.zeros(64, np.int64)
trainer = fo.Trainer(fo.MLP([3, 4, 3]), loss="softmax_cross_entropy", optimizer=fo.SGD(0.1), seed=0)
def spoil(trainer):
    y[:] = 2**40
try:
    trainer.fit(X, y, epochs=3, callbacks=[spoil])
except (ValueError, ArithmeticError) as error:
    print(error)
print("survived", np.isfinite(trainer.net.flat).all())
""")
    assert "survived True" in answer


# ----------------------------------------------------------------------------------------- a trainer after it

BAD_FITS = {
    "y too short": {"y": LABELS[:5]},
    "y out of range": {"y": LABELS + 1},
    "nan in the first row": {"X": np.where(np.arange(30).reshape(6, 5) == 0, np.nan, X)},
    "nan in the last row": {"X": np.where(np.arange(30).reshape(6, 5) == 29, np.nan, X)},
    "another number of features": {"X": X[:, :4]},
    "nan in X for validation": {"validation_data": (X * np.nan, LABELS)},
    "weights of zero": {"sample_weight": W * 0},
    "no epochs": {"epochs": -1},
    "an unknown flag": {"progress": "yes"},
    "a callback that is none": {"callbacks": [1]},
    "a target that is none": {"target_loss": "low"},
    "nan, other early stopping": {"X": X * np.nan, "early_stopping": fo.EarlyStopping(patience=1)},
    "nan, no early stopping": {"X": X * np.nan, "early_stopping": None},
    "nan, no early stopping, no epochs": {"X": X * np.nan, "early_stopping": None, "epochs": 0},
    "y out of range, no early stopping": {"y": LABELS - 1, "early_stopping": None},
}


def continued(bad=None, tmp_path=None):
    """Two epochs, the failing call if there is one, and as many more as the early stopping allows."""
    made = trainer(epochs=2)
    if bad is not None:
        before = state_of(made, tmp_path / "state")
        with pytest.raises((ValueError, TypeError)):
            made.fit(**{"X": X, "y": LABELS, "epochs": 5, **WATCHED} | bad)
        assert state_of(made, tmp_path / "state") == before
    made.fit(X, LABELS, epochs=9, **WATCHED)
    return made.net.flat.tobytes(), made.epoch, made.history.loss, made.history.val_loss, made.history.lr


@pytest.mark.parametrize("bad", BAD_FITS.values(), ids=BAD_FITS)
def test_a_failed_fit_leaves_the_trainer_as_it_was(tmp_path, bad):
    """Bitwise, what is not shown included: the next good fit gives what it would have given."""
    assert continued(bad, tmp_path) == continued()


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_schedule_that_turns_bad(epochs):
    """The epochs completed before it stay; those after are as if they had not begun."""
    rates = [0.1] * (2 * epochs + 1) + [-1.0]  # two batches an epoch

    def trained(lr, epochs):
        made = trainer(optimizer=optimizer(lr=lr))
        try:
            made.fit(X, LABELS, epochs=epochs)
        except ValueError as error:
            assert re.search(rf"^lr\({2 * epochs - 1}\) must be finite and >= 0, got -1.0", str(error))
        return made.net.flat.tobytes(), made.epoch, made.history.loss

    assert trained(rates.__getitem__, epochs + 1) == trained(0.1, epochs)


def test_prediction_that_leaves_the_domain_of_msle_is_a_divergence():
    net = network(dropout=0.0)
    net.biases[-1][...] = 5.0
    made = trainer("msle", net=net, optimizer=fo.SGD(lambda step: 0.0 if step < 2 else 50.0))
    made.fit(X, UNIT, epochs=1)
    before = made.net.flat.copy()
    with pytest.raises(fo.DivergenceError, match=r"epoch \d, batch \d"):
        made.fit(X, UNIT, epochs=20)
    assert np.isfinite(made.net.flat).all()
    assert made.epoch == len(made.history.loss) == 1
    assert np.array_equal(made.net.flat, before)


@pytest.mark.parametrize(
    ("samples", "batch_size"), [(1, 1), (1, 100), (6, 100), (6, 4), (6, 6), (5, 2)], ids="{0}".format
)
@pytest.mark.parametrize("loss", [*LABEL_LOSSES, *TARGET_LOSSES])
def test_odd_sizes_are_not_errors(loss, samples, batch_size):
    """One sample, one feature, one output, a batch larger than the data, a short last batch, no epochs."""
    y = LABELS if loss in LABEL_LOSSES else UNIT
    outputs = 3 if loss == "softmax_cross_entropy" else 1
    if outputs == 1:
        y = SIGNS if loss in LABEL_LOSSES else UNIT[:, :1]
    net = fo.MLP([1, outputs], dtype="float64", seed=2)
    net.biases[0][...] = 3.0
    made = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.01), batch_size=batch_size, seed=0)
    before = net.flat.copy()
    assert made.fit(X[:samples, :1], y[:samples], epochs=0).loss == []
    assert np.array_equal(net.flat, before)
    history = made.fit(X[:samples, :1], y[:samples], epochs=2)
    assert len(history.loss) == 2
    assert np.isfinite(history.loss).all()
    assert np.isfinite(net.flat).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8", "?"])
def test_forward_of_no_rows(dtype):
    for n_threads in (None, 1, 17):
        scores = network().forward(np.empty((0, 5), dtype), n_threads=n_threads)
        assert scores.shape == (0, 3)
        assert scores.dtype == np.float64


# ------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_files_of_the_wrong_kind(tmp_path, kind):
    path = tmp_path / "file"
    made = trainer(epochs=1)
    (made.net if kind == "model" else made).save(path)
    load, other = (fo.Trainer.load, "checkpoint") if kind == "model" else (fo.MLP.load, "model")
    with pytest.raises(fo.ModelFormatError, match=f"holds a {kind}, not a {other}"):
        load(path)
    path.write_bytes(b"not a file of ours")
    for load in (fo.Trainer.load, fo.MLP.load):
        with pytest.raises(fo.ModelFormatError):
            load(path)
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["loss", "lr"])
def test_callables_must_be_passed_again(tmp_path, name):
    given = (
        {"loss": lambda s, y: (0.5, 0 * s)}
        if name == "loss"
        else {"optimizer": optimizer(lr=lambda step: 0.1)}
    )
    trainer(**given).save(tmp_path / "run")
    with pytest.raises(ValueError, match=f"^{name} was a Python callable, .*: pass it again as {name}="):
        fo.Trainer.load(tmp_path / "run")


def test_own_errors_are_of_the_documented_kind():
    assert issubclass(fo.DivergenceError, ArithmeticError)
    assert issubclass(fo.ModelFormatError, ValueError)


@pytest.mark.parametrize(("value", "name"), [(optimizer(), "lr"), (fo.EarlyStopping(), "patience")])
def test_optimizer_and_rules_are_immutable(value, name):
    with pytest.raises(AttributeError):
        setattr(value, name, 5)


def test_an_overflow_leaves_the_output_as_it_was():
    out = np.full((2, 2), 7.0, "f4")
    with pytest.raises(OverflowError, match=r"out\[0, 0\] overflows float32"):
        fo.dense_forward(np.full((2, 2), 1e30, "f4"), np.full((2, 2), 1e30, "f4"), out=out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("kind", ["MLP", "Trainer"])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, kind):
    made = trainer()
    saved = made.net if kind == "MLP" else made
    saved.save(tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    made.net.flat[3] = np.nan
    with pytest.raises(ValueError, match=r"net.flat\[3\] is nan"):
        saved.save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == before
