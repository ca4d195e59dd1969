"""The core's buffers: memory that runs out, that holds anything before its first use, that ends where it should."""

import contextlib
import copy
import ctypes
import gc
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from pages import between, bytes_between

import fastopt as fo
from fastopt._dispatch import core

HERE = Path(__file__).parent
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
OPTIMIZERS = {
    "sgd": fo.SGD(0.1),
    "momentum": fo.SGD(0.05, momentum=0.9, weight_decay=0.01),
    "nesterov, l1": fo.SGD(0.05, momentum=0.9, nesterov=True, l1=0.01),
    "adam, clipped": fo.Adam(0.01, clip_norm=1.0),
}


def samples(loss, n, n_in, n_out, dtype="float32"):
    rng = np.random.default_rng(n + n_in)
    X = rng.standard_normal((n, n_in)).astype(dtype)
    if loss in ("softmax_cross_entropy", "hinge"):
        return X, rng.integers(0, n_out, n) if n_out > 1 else rng.choice([-1, 1], n)
    return X, rng.random((n, n_out)).astype(dtype)


def trained(sizes, loss, optimizer, data, dtype="float32", batch_size=8, dropout=0.0, n_threads=2, epochs=2):
    net = fo.MLP(sizes, dtype=dtype, dropout=dropout, seed=1)
    trainer = fo.Trainer(net, loss=loss, optimizer=OPTIMIZERS[optimizer], batch_size=batch_size, seed=3,
                         n_threads=n_threads)
    trainer.fit(*data, epochs=epochs)
    return trainer


def state(trainer):
    """All of a training but the seconds."""
    held = {name: value for name, value in trainer.__getstate__().items() if name not in ("_history", "_stopping")}
    history = {name: column for name, column in vars(trainer.history).items() if name != "seconds"}
    return pickle.dumps((held, trainer.net.flat)), repr(history), len(trainer.history.seconds)


@contextlib.contextmanager
def memory_from(hook, dtype):
    """The core's buffers come from the hook."""
    core(dtype).memory_hook = hook
    try:
        yield
    finally:
        core(dtype).memory_hook = None


# --------------------------------------------------------------------------------------- memory that runs out


def failing_at(n, for_ever):
    """A hook whose n-th answer, and every later one, is that there is no memory."""
    calls = itertools.count(1)

    def hook(size):
        call = next(calls)
        if call == n or for_ever and call > n:
            raise MemoryError(f"{size} bytes")
        return np.empty(max(size, 1), np.uint8)

    return hook, calls


@dtypes
@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["C", "float16", "a page apart"])
def test_the_nth_buffer_cannot_be_had(dtype, for_ever, optimizer, layout):
    """MemoryError, the trainer as it was, and the next fit works; for every buffer of fit and of forward."""
    n_in = 4096 // np.dtype(dtype).itemsize if layout == "a page apart" else 20
    X, y = samples("softmax_cross_entropy", 30, n_in, 3, dtype)
    X = X.astype("float16" if layout == "float16" else dtype)
    trainer = trained([n_in, 9, 3], "softmax_cross_entropy", optimizer, (X, y), dtype, dropout=0.1)
    before = state(trainer)
    whole = copy.deepcopy(trainer)
    whole.fit(X, y, epochs=1)
    scores = trainer.net.forward(X).tobytes()
    for n in itertools.count(1):
        hook, calls = failing_at(n, for_ever)
        with memory_from(hook, dtype):
            try:
                trainer.fit(X, y, epochs=1)
            except MemoryError:
                assert state(trainer) == before
                with contextlib.suppress(MemoryError):
                    assert trainer.net.forward(X).tobytes() == scores
                continue
        break
    assert n > 10 and next(calls) <= n  # every buffer had its turn
    assert state(trainer) == state(whole)


@pytest.fixture(scope="module")
def nomemory(tmp_path_factory):
    """The library that stands before the C library's malloc, built here."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no C compiler {compiler[0]!r} to build the failing malloc with")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("another library already stands before the C library's malloc")
    if "linux" not in sys.platform:
        pytest.skip("malloc is replaced by names of the GNU C library")
    library = tmp_path_factory.mktemp("nomemory") / "nomemory.so"
    include = sysconfig.get_path("include")
    command = [*compiler, "-shared", "-fPIC", "-O1", f"-I{include}", HERE / "nomemory.c", "-o", library]
    subprocess.run(command, check=True)
    return library


ACTIONS = ("fit", "stopping fit", "own loss", "interrupted fit", "forward", "save", "load", "save a run", "load a run")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("for_ever", [False, True])
def test_the_nth_allocation_fails(nomemory, action, for_ever, tmp_path):
    """Of Python, NumPy, the C library and the core: MemoryError, nothing changed, nothing leaked; the next call works.

    Once: every single allocation. For ever: those of more than 512 bytes, for without smaller ones the interpreter
    itself turns in a circle.
    """
    environment = os.environ | {"LD_PRELOAD": str(nomemory), "PYTHONMALLOC": "pymalloc" if for_ever else "malloc"}
    command = [sys.executable, __file__, str(nomemory.parent), action, str(int(for_ever)), str(tmp_path)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-4000:]
    found = json.loads(child.stdout)
    print(action, found)
    # An array of parameters is 17 KB, an engine some times that. CPython 3.11 itself loses the arguments of a call,
    # here a trainer with all it has, where it has no memory for the frame: four times in 400 failures.
    assert found["allocations"] > (1 if for_ever else 20) and found["leaked"] < 3400 * found["allocations"]


def run_out_of_memory(folder, action, for_ever, files):
    """What `test_the_nth_allocation_fails` runs in a child."""
    sys.path.insert(0, folder)
    import nomemory

    path = os.path.join(files, "file")
    X, y = samples("softmax_cross_entropy", 40, 64, 3)
    rule = fo.EarlyStopping(patience=9)
    loss = own_loss if action in ("own loss", "interrupted fit") else "softmax_cross_entropy"
    base = trained([64, 64, 3], loss, "nesterov, l1", (X, y), dropout=0.1)
    base.fit(X, y, epochs=1, validation_data=(X, y), early_stopping=rule)
    scores = base.net.forward(X).tobytes()

    def fit(trainer):
        options = {"validation_data": (X, y), "early_stopping": rule} if action == "stopping fit" else {}
        trainer.fit(X, y, epochs=1, **options)

    thing = base.net if action in ("save", "load") else base
    thing.save(path)
    content = Path(path).read_bytes()
    load = fo.MLP.load if action == "load" else fo.Trainer.load
    act = {
        "forward": lambda trainer: trainer.net.forward(X).tobytes() == scores or 1 / 0,
        "save": lambda trainer: trainer.net.save(path), "save a run": lambda trainer: trainer.save(path),
        "load": lambda trainer: load(path), "load a run": lambda trainer: load(path),
    }.get(action, fit)
    whole = copy.deepcopy(base)
    act(whole)
    before, after = state(base), state(whole)
    act(whole)
    afterwards = state(whole)
    used = []
    for step in (5, 5, 1):  # first to fill the interpreter's caches
        for n in itertools.count(0, step):
            trainer = copy.deepcopy(base)
            interrupts[:] = [3] if action == "interrupted fit" else []
            error, failed = nomemory.run(lambda trainer=trainer: act(trainer), n, for_ever)
            if action == "interrupted fit":
                # two faults at once: whichever of them is told, the epoch is as before or cut after two batches
                # (CPython itself may lose an exception on its way when memory fails there)
                lost = isinstance(error, SystemError) and "without" in str(error)
                assert lost or isinstance(error, (KeyboardInterrupt, MemoryError)), (n, repr(error))
                interrupts.clear()
                act(trainer)
                error = None
            assert error is None or isinstance(error, MemoryError), (n, repr(error))
            done = trainer.epoch > base.epoch
            restored = action != "stopping fit" or error is None
            assert state(trainer) == (after if done or error is None else before) or done and not restored, n
            if "save" in action or "load" in action:
                assert Path(path).read_bytes() == content and os.listdir(files) == ["file"], n
            # without memory for a copy of the best parameters the network shows the last ones, from which it goes on
            act(trainer)
            assert state(trainer) == (afterwards if done else after), n
            if not failed:
                break
        del trainer, error
        gc.collect()
        used.append(bytes_in_use())
    print(json.dumps({"allocations": n, "leaked": used[2] - used[1]}))


class Mallinfo(ctypes.Structure):
    """What the C library knows of its memory; the eighth is the bytes in use."""

    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]


def bytes_in_use():
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    return mallinfo().h


interrupts = []


def own_loss(scores, y):
    """A loss that Ctrl-C strikes in a call that can be set."""
    if interrupts:
        interrupts[0] -= 1
        if interrupts[0] == 0:
            interrupts.clear()
            raise KeyboardInterrupt
    return fo.softmax_cross_entropy(scores, y)


# ------------------------------------------------------------------- memory that holds anything, ends anywhere

SIGNALLING = {"float32": np.uint32(0x7FA00000), "float64": np.uint64(0x7FF4000000000000)}
SIZES = [*range(1, 66)]


def poisoned(dtype):
    """A hook: buffers full of signalling NaNs."""
    return lambda size: np.resize(SIGNALLING[dtype], size // 4 + 1).view(np.uint8)[: max(size, 1)]


def configurations(sizes):
    """Trainings whose sizes divide nothing: batch, samples, layers, outputs, losses, rules by turns."""
    losses = itertools.cycle(["softmax_cross_entropy", "hinge", "mse", "binary_cross_entropy", "msle", "huber"])
    rules, outputs = itertools.cycle(OPTIMIZERS), itertools.cycle([1, 2, 3, 10, 17, 33])
    hidden = itertools.cycle([None, 1, 5, 16, 33, 65, 13])
    for i, size in enumerate(sizes):
        for _ in range(6):
            loss, n_out, width = next(losses), next(outputs), next(hidden)
            n_out += loss == "softmax_cross_entropy" and n_out == 1
            layers = [size, n_out] if width is None else [size, width, n_out]
            yield layers, loss, next(rules), 1 + (i * 7 + size) % 67, 1 + (i * 5) % 40


def result(layers, loss, rule, n, batch_size, dtype, place=lambda array: array):
    X, y = samples(loss, n, layers[0], layers[-1], dtype)
    data = place(X / layers[0]), place(y)
    weight = place(np.linspace(0.5, 1, n).astype(dtype))
    net = fo.MLP(layers, activation="sigmoid", dtype=dtype, dropout=0.2, seed=1)
    net.biases[-1][...] += 4 * (loss == "msle")  # whose predictions must stay above -1
    trainer = fo.Trainer(net, loss=loss, optimizer=OPTIMIZERS[rule], batch_size=batch_size, seed=3,
                         n_threads=1 + n % 3)
    trainer.fit(*data, epochs=2, sample_weight=weight)
    value, gradient = trainer.net.loss_and_grad(*data, loss=loss, sample_weight=weight)
    return state(trainer), trainer.net.forward(data[0]).tobytes(), value, gradient.tobytes()


@dtypes
def test_buffers_hold_anything_before_they_are_used(dtype):
    """Signalling NaNs in every buffer of the core change no bit of a training, a gradient, a forward pass."""
    for configuration in configurations(SIZES[::3]):
        expected = result(*configuration, dtype)
        with memory_from(poisoned(dtype), dtype):
            assert result(*configuration, dtype) == expected, configuration


KERNEL_LOSSES = {"softmax_cross_entropy": "labels", "hinge": "labels", "squared_hinge": "labels", "mse": "targets",
                 "binary_cross_entropy": "targets", "mae": "targets", "msle": "targets", "huber": "targets"}


def call_kernels(size, dtype, place):
    """Every kernel, with arrays of the user's between the pages."""
    rng = np.random.default_rng(size)

    def array(*shape):
        return place(rng.random(shape).astype(dtype))

    x, weight, bias, out = array(5, size), array(7, size), array(7), array(5, 7)
    for activation in (None, "relu", "sigmoid", "tanh"):
        fo.dense_forward(x, weight, bias, activation=activation, out=out)
        fo.dense_backward(array(5, 7), x, weight, output=out if activation else None, activation=activation)
    fo.dense_forward(array(size, 5), array(size, 5), array(size), out=array(size, size))
    scores = array(4, size)
    for loss, kind in KERNEL_LOSSES.items():
        if kind == "labels" and size > 1:
            getattr(fo, loss)(scores, place(rng.integers(0, size, 4)), sample_weight=array(4), reduction="none")
        elif kind == "targets":
            getattr(fo, loss)(scores, array(4, size), sample_weight=array(4))
            getattr(fo, loss)(array(size), array(size))
        else:
            fo.hinge(scores, place(rng.choice([-1, 1], 4)))
    fo.softmax(scores)
    fo.accuracy(scores, place(rng.integers(0, size, 4) if size > 1 else np.ones(4, int)))
    fo.sgd_step(array(size), array(size), lr=0.1, l1=0.1)
    fo.momentum_step(array(size), array(size), array(size), lr=0.1, weight_decay=0.1)
    fo.nesterov_step(array(size), array(size), array(size), lr=0.1, l1=0.1)
    for optimizer in OPTIMIZERS.values():
        params = [array(size)]
        optimizer.update(params, [array(size)], optimizer.init(params, decay=True))


def stay_between_pages(dtype, at_end, step):
    """What `test_nothing_is_touched_outside` runs in a child."""
    for configuration in configurations(SIZES[::step]):
        expected = result(*configuration, dtype)
        with memory_from(lambda size: bytes_between(size, at_end), dtype):
            assert result(*configuration, dtype, lambda array: between(array, at_end)) == expected, configuration
    for size in SIZES:
        call_kernels(size, dtype, lambda array: between(array, at_end))


@dtypes
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.thorough), 4])
def test_nothing_is_touched_outside(dtype, at_end, step):
    """Every buffer of the core and every array of the caller's ends, or starts, at a page that must not be touched."""
    command = [sys.executable, __file__, "pages", dtype, str(int(at_end)), str(step)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, f"{child.returncode}: {child.stdout[-2000:]}{child.stderr[-4000:]}"


def test_the_pages_are_guarded():
    """A byte before or behind the buffer ends the process."""
    environment = os.environ | {"ASAN_OPTIONS": "handle_segv=0"}  # where that sanitizer is, it would report it as well
    for index, at_end in ((-1, False), (9, True)):
        source = (f"import sys; sys.path.insert(0, {str(HERE)!r}); import ctypes, pages\n"
                  f"a = pages.bytes_between(9, {at_end})\na[0] = a[8] = 1\n"
                  f"ctypes.c_char.from_address(a.ctypes.data + {index}).value")
        child = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True)
        assert child.returncode == -11, child.stderr


if __name__ == "__main__":
    if sys.argv[1] == "pages":
        stay_between_pages(sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))
    else:
        run_out_of_memory(sys.argv[1], sys.argv[2], sys.argv[3] == "1", sys.argv[4])
