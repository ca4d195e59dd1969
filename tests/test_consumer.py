"""The kernels from Cython: another package is built against this one, and nothing it relies on has moved."""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import fastopt as fo
from fastopt import kernels

HERE = Path(__file__).parent
SNAPSHOT = HERE / "kernels_abi.json"


def missing_tools():
    for module in ("Cython", "setuptools"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return None if shutil.which(compiler.split()[0]) else f"there is no C compiler {compiler!r}"


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    """The consumer package, built in a folder of its own against the fastopt that is imported here."""
    reason = missing_tools()
    if reason:
        pytest.skip(f"{reason}: no package can be built")
    folder = tmp_path_factory.mktemp("consumer")
    for name in ("setup.py", "consumer.pyx"):
        shutil.copy(HERE / "consumer" / name, folder)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout + child.stderr
    (library,) = folder.glob("consumer.*.so")
    spec = importlib.util.spec_from_file_location("consumer", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 2), (53, 37, 5), (70, 300, 35)])
def test_a_training_in_cython_has_the_bits_of_python(consumer, n, d, k, n_threads, dtype):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, d)).astype(dtype), rng.integers(0, k, n)
    net = fo.MLP([d, k], dtype=dtype, seed=1)
    weight, bias, velocity = net.weights[0].copy(), net.biases[0].copy(), np.zeros(k * d + k, dtype)
    workspace, factor = np.empty(2 * n * k + n + k * d + k, dtype), np.full(n, 1 / n, dtype)
    consumer.train(X, y, factor, weight, bias, velocity, workspace, 5, n_threads)
    losses = workspace[2 * n * k :][:n].astype("float64")

    optimizer = fo.SGD(0.1, momentum=0.9, nesterov=True)
    options = {"loss": "softmax_cross_entropy", "optimizer": optimizer, "batch_size": n, "shuffle": False}
    history = fo.Trainer(net, **options).fit(X, y, epochs=5)
    assert weight.tobytes() == net.weights[0].tobytes()
    assert bias.tobytes() == net.biases[0].tobytes()
    assert sum(losses) / n == history.loss[-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_no_more_rows_than_asked_for(consumer, n, n_threads, dtype):
    x, weight = np.ones((5, 7), dtype), np.ones((19, 7), dtype)
    out = np.full((5, 19), -1, dtype)
    consumer.forward(x, n, weight, out, n_threads)
    assert (out[:n] == 7).all()
    assert (out[n:] == -1).all()


def exported():
    """The exported functions and their C signatures, which are the names of their capsules."""
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.argtypes, name_of.restype = [ctypes.py_object], ctypes.c_char_p
    return {name: name_of(capsule).decode() for name, capsule in sorted(kernels.__pyx_capi__.items())}


def test_exported_names_and_signatures():
    """Packages compiled against an earlier version find each function by both, or fail at import."""
    expected, found = json.loads(SNAPSHOT.read_text(encoding="utf-8")), exported()
    changes = [
        f"{name}: {expected.get(name, 'not there')} -> {found.get(name, 'removed')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    assert not changes, (
        "the C functions that other packages are compiled against changed; if that is meant, say so in the "
        f"change log and run `python {Path(__file__).name}` to take the snapshot anew:\n" + "\n".join(changes)
    )


def test_the_declarations_are_installed():
    """cimport finds them beside the package."""
    folder = Path(fo.__file__).parent
    assert (folder / "kernels.pxd").is_file() and (folder / "__init__.py").is_file()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(exported(), indent=1) + "\n", encoding="utf-8")
