"""Each update rule and convention against the library it is named after, over trajectories with a change of the rate.

The libraries' numbers are stored in conventions.json; where a library is installed, it is run as well and must still
give them. `python test_conventions.py` in an environment with all of them writes the file anew.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import fastopt as fo
from fastopt import reference

STORED = Path(__file__).parent / "conventions.json"
N, BATCH, EPOCHS = 23, 8, 15  # 45 steps, every third over 7 samples
FEATURES = (1, 7, 16, 35)     # below, at and above the widths of vectors and panels


def rate(step):
    return 0.05 if step < 22 else 0.02


def tenth(step):
    return rate(step) / 10


def inverse(step):
    return 0.02 / (step + 1) ** 0.25


def problem(n_features):
    """A regression with half squared errors, in [-1, 1), the same everywhere."""
    words = reference._mix(np.arange(N * n_features + 2 * N + n_features, dtype=np.uint64) + np.uint64(n_features))
    values = (words >> np.uint64(11)) / 2.0**52 - 1
    X, rest = values[: N * n_features].reshape(N, n_features), values[N * n_features :]
    weight = rest[N:][:n_features][None]
    return X, 2 * rest[:N, None], weight, np.array([0.25])


def half_squares(scores, y):
    d = scores - y.reshape(scores.shape)
    return float((d * d).mean() / 2), d / d.size


def batches(batch=BATCH):
    return [slice(start, min(N, start + batch)) for start in range(0, N, batch)]


def run(step_by, n_features, batch=BATCH, epochs=EPOCHS):
    """Weights and bias after all steps; `step_by(t, params, gradients)` makes one, in place."""
    X, y, weight, bias = problem(n_features)
    t = 0
    for _ in range(epochs):
        for rows in batches(batch):
            d = (X[rows] @ weight.T + bias - y[rows]) / len(X[rows])
            step_by(t, [weight, bias], [d.T @ X[rows], d.sum(axis=0)])
            t += 1
    return np.concatenate([weight.ravel(), bias])


# -- the libraries ----------------------------------------------------------------------------------------------


def torch(name, lr=rate, **options):
    def final(n_features):
        import torch

        state = {}

        def step(t, params, gradients):
            if not state:
                state["p"] = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
                state["o"] = getattr(torch.optim, name)(state["p"], lr=lr(0), **options)
            state["o"].param_groups[0]["lr"] = lr(t)
            for p, g in zip(state["p"], gradients, strict=True):
                p.grad = torch.from_numpy(g.copy())
            state["o"].step()
            for p, value in zip(params, state["p"], strict=True):
                p[...] = value.detach().numpy()

        return run(step, n_features)

    return "torch", final


def optax(make):
    def final(n_features):
        import jax
        import optax

        jax.config.update("jax_enable_x64", True)
        rule, state = make(optax), []

        def step(t, params, gradients):
            if not state:
                state.append(rule.init([p.copy() for p in params]))
            updates, state[0] = rule.update(gradients, state[0], [p.copy() for p in params])
            for p, u in zip(params, updates, strict=True):
                p += np.asarray(u)

        return run(step, n_features)

    return "optax", final


def optax_rate(step):
    import jax.numpy as jnp

    return jnp.where(step < 22, 0.05, 0.02)


def optax_tenth(step):
    return optax_rate(step) / 10


def keras(name, lr=rate, **options):
    def final(n_features):
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        keras.config.set_floatx("float64")
        state = {}

        def step(t, params, gradients):
            if not state:
                state["p"] = [keras.Variable(p.copy(), dtype="float64") for p in params]
                state["o"] = getattr(keras.optimizers, name)(learning_rate=lr(0), **options)
            # its rates are float32
            state["o"].learning_rate = lr(t)
            state["o"].apply([keras.ops.convert_to_tensor(g) for g in gradients], state["p"])
            for p, value in zip(params, state["p"], strict=True):
                p[...] = keras.ops.convert_to_numpy(value)

        return run(step, n_features)

    return "keras", final


def sklearn_mlp(**options):
    def final(n_features):
        from sklearn.neural_network import MLPRegressor

        X, y, weight, bias = problem(n_features)
        # one hidden unit that passes its input on, held there, so that the output layer is the regression's
        model = MLPRegressor(hidden_layer_sizes=(n_features,), activation="identity", solver="sgd", batch_size=BATCH,
                             shuffle=False, learning_rate_init=0.05, **options)
        model.partial_fit(X, y.ravel())
        model.coefs_[0][...], model.intercepts_[0][...] = np.eye(n_features), 0.0
        model.coefs_[1][...], model.intercepts_[1][...] = weight.T, bias
        for velocity in model._optimizer.velocities:
            velocity[...] = 0.0
        for epoch in range(EPOCHS):
            # its rate changes between epochs
            model._optimizer.learning_rate = rate_of_epoch(epoch)
            model.partial_fit(X, y.ravel())
        return np.concatenate([*(c.ravel() for c in (model.coefs_[0].T, model.intercepts_[0])),
                               model.coefs_[1].ravel(), model.intercepts_[1]])

    return "sklearn", final


def rate_of_epoch(epoch):
    return 0.05 if epoch < 7 else 0.02


def sklearn_sgd(alpha, **options):
    def final(n_features):
        from sklearn.linear_model import SGDRegressor

        X, y, weight, bias = problem(n_features)
        model = SGDRegressor(alpha=alpha, learning_rate="invscaling", eta0=0.02, power_t=0.25, shuffle=False, tol=None,
                             max_iter=3, **options)
        model.fit(X, y.ravel(), coef_init=weight.ravel().copy(), intercept_init=bias.copy())
        return np.concatenate([model.coef_, model.intercept_])

    return "sklearn", final


# -- the table --------------------------------------------------------------------------------------------------

D = {"decay_bias": True}
CASES = {
    "torch sgd": (torch("SGD", weight_decay=0.1), lambda: fo.SGD(rate, weight_decay=0.1, convention="torch")),
    "torch momentum": (
        torch("SGD", momentum=0.9, weight_decay=0.1),
        lambda: fo.SGD(rate, momentum=0.9, weight_decay=0.1, convention="torch"),
    ),
    "torch dampening": (
        torch("SGD", momentum=0.8, dampening=0.3, weight_decay=0.1),
        lambda: fo.SGD(rate, momentum=0.8, dampening=0.3, weight_decay=0.1, convention="torch"),
    ),
    "torch nesterov": (
        torch("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda: fo.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.1, convention="torch"),
    ),
    "optax sgd": (
        optax(lambda o: o.chain(o.add_decayed_weights(0.1), o.sgd(optax_rate))),
        lambda: fo.SGD(rate, weight_decay=0.1, convention="optax"),
    ),
    "optax momentum": (
        optax(lambda o: o.chain(o.add_decayed_weights(0.1), o.sgd(optax_rate, momentum=0.9))),
        lambda: fo.SGD(rate, momentum=0.9, weight_decay=0.1, convention="optax"),
    ),
    "optax nesterov": (
        optax(lambda o: o.chain(o.add_decayed_weights(0.1), o.sgd(optax_rate, momentum=0.9, nesterov=True))),
        lambda: fo.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.1, convention="optax"),
    ),
    "optax clip_by_global_norm": (
        optax(lambda o: o.chain(o.clip_by_global_norm(0.5), o.sgd(optax_rate, momentum=0.9))),
        lambda: fo.SGD(rate, momentum=0.9, clip_norm=0.5, convention="optax"),
    ),
    "optax clip": (
        optax(lambda o: o.chain(o.clip(0.1), o.adam(optax_rate))),
        lambda: fo.Adam(rate, clip_value=0.1),
    ),
    "keras sgd": (keras("SGD", weight_decay=0.1), lambda: fo.SGD(rate, weight_decay=0.1, convention="keras")),
    "keras momentum": (
        keras("SGD", momentum=0.9, weight_decay=0.1),
        lambda: fo.SGD(rate, momentum=0.9, weight_decay=0.1, convention="keras"),
    ),
    "keras nesterov": (
        keras("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda: fo.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.1, convention="keras"),
    ),
    "sklearn_mlp momentum": (
        sklearn_mlp(momentum=0.9, nesterovs_momentum=False, alpha=0.5),
        lambda: fo.SGD(lambda step: rate_of_epoch(step // 3), momentum=0.9, weight_decay=0.5, convention="sklearn_mlp"),
    ),
    "sklearn_mlp nesterov": (
        sklearn_mlp(momentum=0.9, nesterovs_momentum=True, alpha=0.5),
        lambda: fo.SGD(lambda step: rate_of_epoch(step // 3), momentum=0.9, nesterov=True, weight_decay=0.5,
                       convention="sklearn_mlp"),
    ),
    "sklearn_sgd l2": (
        sklearn_sgd(0.1, penalty="l2"),
        lambda: fo.SGD(inverse, weight_decay=0.1, convention="sklearn_sgd"),
    ),
    "sklearn_sgd l1": (
        sklearn_sgd(0.1, penalty="l1"),
        lambda: fo.SGD(inverse, l1=0.1, convention="sklearn_sgd"),
    ),
    "sklearn_sgd elastic net": (
        sklearn_sgd(0.2, penalty="elasticnet", l1_ratio=0.25),
        lambda: fo.SGD(inverse, l1=0.05, weight_decay=0.15, convention="sklearn_sgd"),
    ),
    "torch adagrad": (
        torch("Adagrad", weight_decay=0.1, initial_accumulator_value=0.1),
        lambda: fo.AdaGrad(rate, weight_decay=0.1, initial=0.1, **D),
    ),
    "optax adagrad": (
        optax(lambda o: o.adagrad(optax_rate)),
        lambda: fo.AdaGrad(rate, initial=0.1, eps=1e-7, eps_inside=True),
    ),
    "torch rmsprop": (
        torch("RMSprop", tenth, alpha=0.9, weight_decay=0.1),
        lambda: fo.RMSProp(tenth, rho=0.9, weight_decay=0.1, **D),
    ),
    "torch rmsprop momentum": (
        torch("RMSprop", tenth, alpha=0.9, momentum=0.5),
        lambda: fo.RMSProp(tenth, rho=0.9, momentum=0.5),
    ),
    "optax rmsprop": (
        optax(lambda o: o.rmsprop(optax_tenth, decay=0.8, eps=1e-4)),
        lambda: fo.RMSProp(tenth, rho=0.8, eps=1e-4, eps_inside=True),
    ),
    "torch adadelta": (
        torch("Adadelta", lambda step: 20 * rate(step), weight_decay=0.1),
        lambda: fo.AdaDelta(lambda step: 20 * rate(step), weight_decay=0.1, **D),
    ),
    "optax adadelta": (
        optax(lambda o: o.adadelta(lambda step: 20 * optax_rate(step), rho=0.8, eps=1e-4)),
        lambda: fo.AdaDelta(lambda step: 20 * rate(step), rho=0.8, eps=1e-4),
    ),
    "torch adam": (
        torch("Adam", betas=(0.8, 0.99), weight_decay=0.1),
        lambda: fo.Adam(rate, beta1=0.8, beta2=0.99, weight_decay=0.1, **D),
    ),
    "optax adam": (optax(lambda o: o.adam(optax_rate, eps=1e-3)), lambda: fo.Adam(rate, eps=1e-3)),
    "optax adam eps_root": (
        optax(lambda o: o.adam(optax_rate, eps=0.0, eps_root=1e-3)),
        lambda: fo.Adam(rate, eps=1e-3, eps_inside=True),
    ),
    "torch adamw": (torch("AdamW", weight_decay=0.5), lambda: fo.AdamW(rate, weight_decay=0.5, **D)),
    "optax adamw": (
        optax(lambda o: o.adamw(optax_rate, weight_decay=0.5)),
        lambda: fo.AdamW(rate, weight_decay=0.5, **D),
    ),
}
cases = pytest.mark.parametrize("case", CASES)
features = pytest.mark.parametrize("n_features", FEATURES)
# Keras keeps its rate in float32, whatever the variables are.
TOLERANCE = {"keras": 1e-7}


def expected(case, n_features):
    return np.array(json.loads(STORED.read_text(encoding="utf-8"))[case][str(n_features)])


def close(case, found, wanted, dtype="float64"):
    tolerance = 2e-5 if dtype == "float32" else TOLERANCE.get(CASES[case][0][0], 1e-12)
    assert np.abs(found - wanted).max() < tolerance * max(1.0, np.abs(wanted).max())


def trained(impl, case, n_features, dtype="float64", n_threads=1):
    """By a Trainer."""
    X, y, weight, bias = problem(n_features)
    batch, epochs = (1, 3) if case.startswith("sklearn_sgd") else (BATCH, EPOCHS)
    hidden = case.startswith("sklearn_mlp")
    net = fo.MLP([n_features, n_features, 1] if hidden else [n_features, 1], None, dtype=dtype)
    if hidden:
        net.weights[0][...] = np.eye(n_features)
    net.weights[-1][...], net.biases[-1][...] = weight, bias
    trainer = impl.Trainer(net, loss=half_squares, optimizer=CASES[case][1](), batch_size=batch, shuffle=False, seed=0,
                           n_threads=n_threads)
    trainer.fit(X, y, epochs=epochs)
    return trainer.net.flat


@features
@cases
def test_the_installed_library_gives_the_stored_numbers(case, n_features):
    library, final = CASES[case][0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "keras":
        pytest.importorskip("torch", reason="keras has no backend here")
    close(case, final(n_features), expected(case, n_features))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@features
@cases
def test_a_trainer_gives_the_librarys_numbers(case, n_features, dtype):
    one = trained(fo, case, n_features, dtype)
    close(case, one, expected(case, n_features), dtype)
    assert one.tobytes() == trained(fo, case, n_features, dtype, n_threads=3).tobytes()


@features
@cases
def test_the_reference_gives_the_librarys_numbers(case, n_features):
    close(case, trained(reference, case, n_features), expected(case, n_features))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@features
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("sklearn")])
def test_a_loop_with_update_gives_the_librarys_numbers(case, n_features, dtype):
    optimizer, state = CASES[case][1](), []

    def step(t, params, gradients):
        if not state:
            state.extend([[p.astype(dtype) for p in params]])
            state.append(optimizer.init(state[0]))
        optimizer.update(state[0], gradients, state[1])
        for p, value in zip(params, state[0], strict=True):
            p[...] = value

    close(case, run(step, n_features), expected(case, n_features), dtype)


if __name__ == "__main__":
    numbers = {case: {n: final(n).tolist() for n in FEATURES} for case, ((_, final), _) in CASES.items()}
    lines = [f"{json.dumps(case)}: {json.dumps(by_size)}" for case, by_size in numbers.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    sys.exit()
