"""The same bits: for every number of threads, on AVX2 and AVX-512, and as when the hashes below were taken.

What is compared is made from whole numbers alone: no function of NumPy takes part whose bits depend on the
machine. `python test_bits.py FILE` writes every result to FILE; without FILE it prints the hashes.
"""

import functools
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from fastopt import _cpu, _dispatch, boundary

DTYPES = ("float32", "float64")
LABELLED = ("softmax_cross_entropy", "hinge", "squared_hinge")
LOSSES = (*LABELLED, "binary_cross_entropy", "mse", "mae", "msle")
ACTIVATIONS = ("relu", "sigmoid", "tanh", None)
RULES = (
    {"lr": lambda step: 0.0625 / (1 + step % 2)},
    {"lr": 0.015625, "momentum": 0.875, "weight_decay": 0.125},
    {"lr": 0.015625, "momentum": 0.875, "nesterov": True, "l2": 0.03125, "decay_bias": True},
    {"lr": 0.015625, "momentum": 0.875, "nesterov": True, "l1": 0.015625},
)


def whole(shape, stream):
    """24-bit numbers, hashes of their position and of the stream (xor-shift and multiply)."""
    z = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64((stream + 1) << 32)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return (z >> np.uint64(40)).astype(np.int64).reshape(shape)


def numbers(shape, stream, dtype, scale=1.0):
    """In [-scale, scale), exact in float32; scale is a power of two."""
    return ((whole(shape, stream) - 2**23) * (scale / 2**23)).astype(dtype)


def targets(loss, n, n_outputs):
    if loss in LABELLED:
        return whole(n, 1) % 2 * 2 - 1 if n_outputs == 1 else whole(n, 1) % n_outputs
    return whole((n, n_outputs), 1) / 2**24


def train(dtype, loss, sizes, activation, rule, n, batch_size, dropout, weighted, n_threads):
    """Parameters, losses and scores of two epochs."""
    stream = iter(range(2, 99))
    net = fo.MLP(
        sizes,
        activation,
        lambda shape, rng: numbers(shape, next(stream), dtype, 2.0 ** -(shape[1].bit_length() // 2)),
        dropout,
        dtype,
    )
    if loss == "msle":
        net.biases[-1][...] = 8.0
    X, y = numbers((n, sizes[0]), 0, dtype, 2.0), targets(loss, n, sizes[-1])
    w = whole(n, 99) % 4 / 4 if weighted else None
    optimizer = getattr(fo, rule.get("name", "SGD"))(**{k: v for k, v in rule.items() if k != "name"})
    trainer = fo.Trainer(
        net, loss=loss, optimizer=optimizer, batch_size=batch_size, seed=11, n_threads=n_threads
    )
    history = trainer.fit(X, y, epochs=2, sample_weight=w, validation_data=(X[:20], y[:20]))
    scores = net.forward(X, n_threads=n_threads)
    return np.concatenate([net.flat, scores.ravel(), history.loss, history.val_loss], dtype=np.float64)


# No size is a whole number of tiles, panels, units or blocks; the last is too large for one block of rows.
TRAININGS = {}
for i, loss in enumerate(LOSSES):
    for j, activation in enumerate(ACTIVATIONS):
        outputs = 1 if loss != "softmax_cross_entropy" and j == 1 else (3, 11, 33)[(i + j) % 3]
        TRAININGS[f"{loss}, {activation}"] = {
            "loss": loss,
            "sizes": [59, 67, 39, outputs],
            "activation": activation,
            "rule": RULES[(i + j) % 4],
            "n": 150,
            "batch_size": 67,
            "dropout": (0.0, 0.25)[(i + j // 2) % 2],
            "weighted": i % 2 == 0,
        }
TRAININGS["linear"] = TRAININGS["hinge, relu"] | {"sizes": [131, 1], "batch_size": 1}
TRAININGS["large"] = TRAININGS["mse, tanh"] | {"sizes": [613, 509, 5], "n": 190, "batch_size": 149}
for name, rule in {
    "torch": {"convention": "torch", "momentum": 0.875, "dampening": 0.25, "weight_decay": 0.125},
    "keras": {"convention": "keras", "momentum": 0.875, "nesterov": True, "weight_decay": 0.125},
    "sklearn_sgd": {"convention": "sklearn_sgd", "l1": 0.015625, "weight_decay": 0.125},
    "adagrad": {"name": "AdaGrad", "l1": 0.015625, "l1_mode": "prox", "initial": 0.125},
    "rmsprop": {"name": "RMSProp", "momentum": 0.5, "eps": 0.0078125},
    "adadelta": {"name": "AdaDelta", "eps": 0.0078125, "l2": 0.03125},
    "adam": {"name": "Adam", "l1": 0.015625, "l1_mode": "prox", "eps_inside": True},
    "clip_norm": {"momentum": 0.875, "clip_norm": 0.0009765625, "decay_bias": True, "l2": 0.03125},
    "clip_value": {"clip_value": 0.0009765625},
    "adamw": {"name": "AdamW", "weight_decay": 0.125, "decay_bias": True},
}.items():
    TRAININGS[name] = TRAININGS["mse, tanh"] | {"rule": {"lr": 0.015625} | rule}
TRAININGS["huber"] = TRAININGS["mse, tanh"] | {"loss": "huber"}

SHAPES = [(1, 1, 1), (1, 37, 5), (7, 3, 33), (67, 259, 3), (97, 131, 67)]  # n, in, out


def kernel_results(dtype, shape, n_threads):
    """Every kernel on one shape, end to end."""
    n, n_in, n_out = shape
    x, weight, bias = (numbers(s, k, dtype, 2.0) for k, s in enumerate([(n, n_in), (n_out, n_in), (n_out,)]))
    results = []
    for activation in ACTIVATIONS:
        out = fo.dense_forward(x, weight, bias, activation=activation, n_threads=n_threads)
        dout = numbers(out.shape, 3, dtype)
        gradients = fo.dense_backward(dout, x, weight, output=out, activation=activation, n_threads=n_threads)
        results += [out, *gradients]
    scores = numbers((n, max(n_out, 2)), 4, dtype, 16.0)
    results.append(fo.softmax(scores))
    for loss in LOSSES:
        for outputs in (scores.shape[1],) + (1,) * (loss != "softmax_cross_entropy"):
            s = np.ascontiguousarray(scores[:, :outputs])
            if loss == "msle":
                s = np.abs(s)
            for weights in (None, whole(n, 5) % 4 + 1.0):
                value, gradient = getattr(fo, loss)(s, targets(loss, n, outputs), sample_weight=weights)
                results += [value, gradient]
    results += fo.softmax_cross_entropy(scores, targets("hinge", n, scores.shape[1]), label_smoothing=0.125)
    for step in (fo.sgd_step, fo.momentum_step, fo.nesterov_step):
        for l1 in (0.0, 0.25):
            param, velocity = weight.copy(), numbers(weight.shape, 6, dtype)
            state = () if step is fo.sgd_step else (velocity,)
            step(param, numbers(weight.shape, 7, dtype), *state, lr=0.3, weight_decay=0.1, l1=l1)
            results += [param, *state]
    return np.concatenate([np.ravel(r) for r in results], dtype=np.float64)


@functools.cache
def result(name, dtype, n_threads):
    if name in TRAININGS:
        return train(dtype, n_threads=n_threads, **TRAININGS[name])
    return np.concatenate([kernel_results(dtype, shape, n_threads) for shape in SHAPES])


NAMES = [(name, dtype) for name in (*TRAININGS, "kernels") for dtype in DTYPES]
names = pytest.mark.parametrize(("name", "dtype"), NAMES)


def assert_same_bits(got, expected):
    differ = got.view(np.int64) != expected.view(np.int64)
    assert not differ.any(), f"{differ.sum()} of {differ.size} numbers, the first at {np.argmax(differ)}"


# --------------------------------------------------------------------------------------- threads, rows, paths


@names
@pytest.mark.parametrize("n_threads", [2, 3, 5, 17, None])
def test_threads(name, dtype, n_threads):
    assert_same_bits(result(name, dtype, n_threads), result(name, dtype, 1))


@names
def test_threads_on_a_loaded_machine(name, dtype, busy_neighbours):
    for n_threads in (2, 4):
        assert_same_bits(result(name, dtype, n_threads), result(name, dtype, 1))


@pytest.fixture(scope="module")
def busy_neighbours():
    """A process beside this one on every processor, that never sleeps."""
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    yield
    for neighbour in neighbours:
        neighbour.kill()
        neighbour.wait()


@pytest.mark.parametrize("dtype", DTYPES)
def test_jobs_of_many_and_of_few_threads_by_turns(dtype):
    """A helper that wakes late in a job with fewer threads than its own finds nothing there that it may do."""
    net = fo.MLP([19, 33, 3], dtype=dtype)
    X = numbers((40 * 128, 19), 0, dtype)
    expected = net.forward(X, n_threads=1)
    for _ in range(100):
        assert net.forward(X, n_threads=40).tobytes() == expected.tobytes()
        assert net.forward(X[:256], n_threads=2).tobytes() == expected[:256].tobytes()


@pytest.mark.parametrize(
    ("n_threads", "operations", "expected"),
    [
        (None, 0, 1),
        (None, 10**7 - 1, 1),
        (None, 10**7, 1),
        (None, 2 * 10**7, 2),
        (None, 10**12, 3),
        (1, 10**12, 1),
        (2, 10**7, 1),
        (2, 10**12, 2),
        (17, 3 * 10**7, 3),
        (17, 10**12, 4),
        (10**9, 10**12, 4),
    ],
)
def test_n_threads_is_an_upper_bound(n_threads, operations, expected, monkeypatch):
    """Work too small for a second thread gets none, and none comes without a processor."""
    monkeypatch.setattr(boundary, "WORTH_A_THREAD", 10**7)
    monkeypatch.setattr(boundary, "processors", lambda: 4)
    monkeypatch.setattr(boundary, "available_threads", lambda: 3)
    assert boundary.threads(n_threads, operations) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [[1, 1], [37, 5], [67, 39, 11], [131, 33, 17, 1]], ids=str)
def test_a_row_alone_in_any_batch_in_any_order(sizes, activation, dtype):
    stream = iter(range(2, 99))
    net = fo.MLP(sizes, activation, lambda shape, rng: numbers(shape, next(stream), dtype), dtype=dtype)
    X = numbers((301, sizes[0]), 0, dtype)
    expected = net.forward(X)
    alone = np.concatenate([net.forward(X[i : i + 1]) for i in range(len(X))])
    assert alone.tobytes() == expected.tobytes()
    i = np.arange(301)
    for order in (i[::-1], np.argsort(whole(301, 1), kind="stable"), i[5:40], i[::7]):
        for rows in (X[order], np.asfortranarray(X[order])):
            assert net.forward(rows).tobytes() == expected[order].tobytes()


def run(arguments, **environment):
    """What a Python process prints."""
    child = subprocess.run(
        [sys.executable, "-P", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.fixture(scope="module")
def on_path(tmp_path_factory):
    """All results of a process in which a path is forced, by the path's name."""
    folder = tmp_path_factory.mktemp("bits")

    @functools.cache
    def results(path):
        if path not in _cpu.SUPPORTED:
            pytest.skip(f"this processor has no {path}")
        file = folder / f"{path}.npz"
        run([__file__, str(file)], FASTOPT_ISA=path)
        with np.load(file) as arrays:
            return dict(arrays)

    return results


@names
def test_avx2_and_avx512(name, dtype, on_path):
    key = f"{name}, {dtype}"
    assert_same_bits(on_path("avx2")[key], on_path("avx512")[key])


@names
def test_a_forced_path_is_the_path_in_use(name, dtype, on_path):
    assert_same_bits(on_path(_dispatch.ISA)[f"{name}, {dtype}"], result(name, dtype, 1))


@names
def test_baseline_agrees(name, dtype, on_path):
    """Without fused multiply-adds each step of a sum rounds twice: some 1e3 roundings of 6e-8 or 1e-16."""
    expected, got = (on_path(path)[f"{name}, {dtype}"] for path in ("avx2", "baseline"))
    bound = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(got, expected, rtol=bound, atol=bound)


def hashes(results):
    """A hash for each loss, over all activations, and for the rest by name."""
    sums = {}
    for name, dtype in NAMES:
        group = f"{name.split(',')[0]}, {dtype}"
        sums.setdefault(group, hashlib.sha256()).update(results[f"{name}, {dtype}"].tobytes())
    return {group: each.hexdigest()[:16] for group, each in sums.items()}


# What AVX2 and AVX-512 gave when these tests were written. A change here changes what users have trained, and
# belongs in the change log; `python test_bits.py` prints the new table.
GOLDEN = {
    "softmax_cross_entropy, float32": "10f434a025fa660a",
    "softmax_cross_entropy, float64": "948398f69292ff87",
    "hinge, float32": "9ca24dfc7ffa0365",
    "hinge, float64": "16313f36d3f4ac13",
    "squared_hinge, float32": "ef6b3dad1fd83f99",
    "squared_hinge, float64": "f54628c05d066e09",
    "binary_cross_entropy, float32": "fa9c4840dc2285f0",
    "binary_cross_entropy, float64": "66ebac35f70dee0f",
    "mse, float32": "5780167ee05340f3",
    "mse, float64": "2e9941831dc9b23b",
    "mae, float32": "33ef7b9359def1a0",
    "mae, float64": "6506d9f0959d911f",
    "msle, float32": "91c80c5f1eac4b66",
    "msle, float64": "5c16cad15f7547a4",
    "linear, float32": "e16b3e3a6f7545e7",
    "linear, float64": "862098c06db8ac37",
    "large, float32": "411fb46e67db2a46",
    "large, float64": "60f9367709639081",
    "torch, float32": "1f5c50ac6cf87b20",
    "torch, float64": "444aa4315c9f9ce9",
    "keras, float32": "ea1da8b74c0e008f",
    "keras, float64": "9aec49921c916064",
    "sklearn_sgd, float32": "270b61ced1361054",
    "sklearn_sgd, float64": "5fea8dd9a3de1e3e",
    "adagrad, float32": "11b238034885a75c",
    "adagrad, float64": "580e2790fd7bd490",
    "rmsprop, float32": "e5798466f9f2b64d",
    "rmsprop, float64": "74db1647662265d5",
    "adadelta, float32": "18c98c35f226f590",
    "adadelta, float64": "cff01ca6648a1d8a",
    "adam, float32": "412a17edb78e793d",
    "adam, float64": "642f0c803dac9cd1",
    "clip_norm, float32": "6a75d9f3c306ea9e",
    "clip_norm, float64": "6d660145a654d8e3",
    "clip_value, float32": "d41e8911ad37312e",
    "clip_value, float64": "cc7cc30c2b52d71d",
    "adamw, float32": "5a8de6cb501e0c51",
    "adamw, float64": "7983a49830f98cb0",
    "huber, float32": "ebdd6a0c231b2f3e",
    "huber, float64": "ea8dbc940c46e7b5",
    "kernels, float32": "2f0f547ff53993ec",
    "kernels, float64": "6ad2fa1495af7b43",
}


def test_golden_hashes(on_path):
    assert hashes(on_path("avx2")) == GOLDEN


# ----------------------------------------------------------------------------------------------------- import


def test_an_unknown_path_is_an_import_error():
    child = subprocess.run(
        [sys.executable, "-P", "-c", "import fastopt"],
        env=os.environ | {"FASTOPT_ISA": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode != 0
    message = child.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: FASTOPT_ISA='nonsense'")
    assert all(path in message for path in _cpu.SUPPORTED)


@pytest.mark.parametrize("path", ["baseline", "avx2", "avx512"])
def test_the_configuration_names_the_path(path):
    if path not in _cpu.SUPPORTED:
        pytest.skip(f"this processor has no {path}")
    assert f"instruction set: {path} " in run(["-m", "fastopt"], FASTOPT_ISA=path)


TRACES = """
import ctypes, gc, os, random, signal, sys, threading, warnings
import numpy as np

def floating_point():
    "x87's control word and MXCSR, without the flags that operations raise."
    environment = (ctypes.c_uint32 * 16)()
    assert ctypes.CDLL("libm.so.6").fegetenv(environment) == 0
    return environment[0] & 0xFFFF, environment[7] & ~0x3F

def openmp():
    try:
        library = ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
    kind, chunk = ctypes.c_int(), ctypes.c_int()
    library.omp_get_schedule(ctypes.byref(kind), ctypes.byref(chunk))
    names = "max_threads dynamic max_active_levels thread_limit cancellation proc_bind num_procs".split()
    return kind.value, chunk.value, [library["omp_get_" + name]() for name in names]

def traces():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    one, tiny, half_ulp = np.float64(1.0), np.float64(5e-324), np.float64(2.0**-53)
    return {
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "numpy errors": np.geterr(),
        "numpy random": repr(np.random.get_state()),
        "python random": random.getstate(),
        "floating point": floating_point(),
        "openmp": openmp(),
        "process": (os.sched_getaffinity(0), os.getcwd(), os.nice(0), gc.get_threshold(), gc.isenabled()),
        "handlers": [signal.getsignal(s) for s in signal.valid_signals() if s not in (9, 19)],
        # but for signals 32 and 33, which the C library takes for itself with the first thread
        "signals": [int(status[name], 16) & ~(3 << 31) for name in ("SigCgt", "SigIgn", "SigBlk")],
        "threads": threading.active_count(),
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.getswitchinterval()),
        "denormals": [float(tiny * one), float(np.float32(1e-45) * np.float32(1.0)), float(tiny + 0.0)],
        "rounding": [float(s * one + s * f * half_ulp) for s in (1, -1) for f in (0.75, 1.0, 1.5)],
    }
"""


def test_import_leaves_no_traces():
    """On the process, and again in threads after a training on two."""
    run(
        [
            "-W",
            "error",
            "-c",
            TRACES
            + """
before = traces()
assert before["denormals"] == [5e-324, 1.401298464324817e-45, 5e-324]
import fastopt as fo
assert traces() == before
X = np.random.default_rng(0).standard_normal((200, 200))
trainer = fo.Trainer(fo.MLP([200, 100, 3]), loss="mse", optimizer=fo.SGD(0.1), n_threads=2, seed=0)
trainer.fit(X, X[:, :3], epochs=2)
inside = []
thread = threading.Thread(target=lambda: inside.append(traces()))
thread.start()
thread.join()
after = traces()
assert after == before
assert inside[0] == before | {"threads": before["threads"] + 1}
tiny = np.full((64, 1), 5e-324)
fo.boundary.WORTH_A_THREAD, fo.boundary.processors = 1, lambda: 64
assert (fo.dense_forward(tiny, np.ones((500, 1)), n_threads=2) == 5e-324).all()
wide = fo.MLP([1, 500], dtype="float64")
wide.weights[0][...], tiny = 1, np.full((20000, 1), 5e-324)
for _ in range(5):
    assert (wide.forward(tiny, n_threads=8) == 5e-324).all()
assert traces() == before
""",
        ]
    )


def test_import_brings_no_other_package():
    """NumPy and safetensors are enough, for a training too; the reference is for tests."""
    unwanted = "scipy sklearn matplotlib tqdm pandas joblib torch hypothesis fastopt.reference".split()
    run(
        [
            "-c",
            "import sys, numpy as np, fastopt as fo\n"
            "X = np.ones((9, 2))\n"
            "t = fo.Trainer(fo.MLP([2, 3, 1]), loss='mse', optimizer=fo.SGD(0.1), seed=0)\n"
            "t.fit(X, X[:, 0], epochs=2, validation_data=(X, X[:, 0]))\n"
            f"found = [name for name in {unwanted} if name in sys.modules]\n"
            "assert not found, found",
        ]
    )


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("sizes", [[1024, 3], [2048, 14], [1024, 15], [1024, 40, 2]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_rows_lie(sizes, dtype, n_threads):
    """A multiple of 4 KiB apart, a little further, turned round, in another dtype: each is read another way."""
    X, y = numbers((75, sizes[0]), 0, "float32", 2.0), whole(75, 1) % sizes[-1]
    wide = np.zeros((75, sizes[0] + 24), dtype)
    wide[:, 8:-16] = X
    other = "float64" if dtype == "float32" else "float32"
    results = set()
    for rows in (X.astype(dtype), wide[:, 8:-16], np.asfortranarray(X.astype(dtype)), X.astype(other)):
        net = fo.MLP(sizes, seed=0, dtype=dtype)
        rule = fo.SGD(0.01, momentum=0.9)
        trainer = fo.Trainer(net, loss="hinge", optimizer=rule, batch_size=37, seed=0, n_threads=n_threads)
        trainer.fit(rows, y, epochs=2)
        results.add(net.flat.tobytes())
    assert len(results) == 1


if __name__ == "__main__":
    everything = {f"{name}, {dtype}": result(name, dtype, 1) for name, dtype in NAMES}
    if len(sys.argv) > 1:
        np.savez(sys.argv[1], **everything)
    else:
        for group, value in hashes(everything).items():
            print(f'    "{group}": "{value}",')
