"""The example programs run, print the figures they promise and draw their pictures."""

import gzip
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import fastopt as fo

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT.parent / "shared" / "data" / "mnist"


def load(name):
    """The example as a module, by path: examples/ is no package."""
    path = ROOT / "examples" / f"{name}.py"
    if "matplotlib" in path.read_text(encoding="utf-8"):
        pytest.importorskip("matplotlib", reason=f"{name} draws with matplotlib")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, capsys, *arguments):
    load(name).main([str(a) for a in arguments])
    return capsys.readouterr().out


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def accuracies(text):
    """The percentages of the table's rows, in order."""
    return [float(value) for value in re.findall(r"([\d.]+) %", text)]


def test_digits(capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the bundled digits come with scikit-learn")
    pytest.importorskip("tqdm", reason="the progress bar is tqdm's")
    out = run("digits", capsys, "--epochs", 20, "--out", tmp_path / "digits.png")
    network, network_numpy, svm, svm_numpy = accuracies(out)
    assert network > 95 and svm > 93
    assert abs(network - network_numpy) < 2.5 and abs(svm - svm_numpy) < 2.5
    # a fast machine may finish a pure-Python run, which is then not extrapolated
    assert len(re.findall(r"pure Python .* x( +~ from [\d,]+ of 860 mini-batches)?\n", out)) == 2
    assert is_png(tmp_path / "digits.png")


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not beside the repository")
def test_digits_on_mnist(capsys, tmp_path):
    pytest.importorskip("tqdm", reason="the progress bar is tqdm's")
    picture = tmp_path / "mnist.png"
    out = run("digits", capsys, "--data", "mnist", "--data-dir", MNIST, "--no-compare", "--out", picture)
    network, svm = accuracies(out)
    assert network >= 98.0 and svm >= 91.0
    assert is_png(picture)


@pytest.mark.parametrize("zipped", [False, True])
def test_digits_reads_idx(tmp_path, zipped):
    digits, rng = load("digits"), np.random.default_rng(0)
    images = {part: rng.integers(0, 256, (n, 784), np.uint8) for part, n in (("train", 5), ("t10k", 2))}
    for part, pixels in images.items():
        labels = bytes(range(len(pixels)))
        files = {"images-idx3": bytes(16) + pixels.tobytes(), "labels-idx1": bytes(8) + labels}
        for name, content in files.items():
            path = tmp_path / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    X, y, X_test, y_test = digits.mnist(str(tmp_path))
    assert X.dtype == np.float32 and np.array_equal(np.rint(X * 255), images["train"])
    assert np.array_equal(np.rint(X_test * 255), images["t10k"])
    assert y.tolist() == [0, 1, 2, 3, 4] and y_test.tolist() == [0, 1]


@pytest.mark.parametrize("sizes, loss", [([6, 5, 4, 3], "softmax_cross_entropy"), ([6, 3], "hinge")])
def test_digits_compares_like_with_like(sizes, loss):
    """fastopt, NumPy and pure Python take the same steps when they see the samples in the same order."""
    digits, rng = load("digits"), np.random.default_rng(0)
    X, y, start = rng.standard_normal((50, 6)), rng.integers(0, 3, 50), fo.MLP(sizes, dtype="float64", seed=1)
    in_numpy, in_python, compiled = start.copy(), start.copy(), start.copy()
    steps = [np.arange(50)[first : first + 16] for first in range(0, 50, 16)] * 3
    digits.numpy_training(in_numpy, loss, 0.1, X, y, steps)
    assert digits.python_training(in_python, loss, 0.1, X, y, steps) == len(steps)
    nesterov = fo.SGD(0.1, momentum=digits.MOMENTUM, nesterov=True)
    fo.Trainer(compiled, loss=loss, optimizer=nesterov, batch_size=16, shuffle=False).fit(X, y, epochs=3)
    assert np.abs(compiled.flat - start.flat).max() > 0.01
    assert np.abs(compiled.flat - in_numpy.flat).max() < 1e-12
    assert np.abs(compiled.flat - in_python.flat).max() < 1e-12


def test_kernels_in_your_own_loop(capsys):
    out = run("kernels_in_your_own_loop", capsys)
    start, kernels, optimizer = accuracies(out)
    assert start < 80 and kernels == optimizer > 99
    assert "same weights from both loops: True" in out
    assert "gradient check: ok True" in out


def test_gradient_descent_vs_sgd(capsys, tmp_path):
    out = run("gradient_descent_vs_sgd", capsys, "--out", tmp_path / "curves.png")
    rows = re.findall(r"([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    (gd, sgd, _), (gd_mean, sgd_mean, factor), (gd_true, sgd_true, _) = np.array(rows, float)
    # the textbook's 0.447 and 0.006 come from starting weights of its own
    assert 0.3 < gd < 0.6 and 0.005 < sgd < 0.007
    assert 2 < factor < 3 and sgd_mean < gd_mean
    assert gd_mean == pytest.approx(gd / 1000, rel=2e-3)
    assert sgd_mean == pytest.approx(sgd * 32 / 1000, rel=1e-2)  # 32 batches
    assert sgd_true < gd_true and sgd_mean < sgd_true and gd_mean < gd_true
    assert is_png(tmp_path / "curves.png")


def test_saturation(capsys, tmp_path):
    out = run("saturation", capsys, "--out", tmp_path / "saturation.png")
    quadratic, cross_entropy = (
        re.search(rf"^{name} .*", out, re.M)[0].split()[1:] for name in ("quadratic", "cross-entropy")
    )
    assert quadratic[0] == cross_entropy[0] == "0.9820"
    assert round(float(quadratic[1]), 4) == 0.2045
    assert cross_entropy[1] == "0.01205"
    assert is_png(tmp_path / "saturation.png")
