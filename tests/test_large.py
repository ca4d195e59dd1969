"""More than 2**31 elements, and sizes that no machine has: the bits of smaller pieces, or a MemoryError or ValueError.

The thorough ones need up to 19 GiB; where there is less they are skipped and say so.
"""

import itertools
import resource

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import fastopt as fo
from fastopt import reference

thorough = pytest.mark.thorough
MANY = 2**31


def needs(gib):
    """Skips a test that would have the system kill the process for lack of memory."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) / 2**20
    if available < gib:
        pytest.skip(f"needs {gib} GiB of memory, {available:.1f} are available")


def pieces(n, size):
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def random(shape, dtype="f4"):
    """Small whole numbers of a repeated random row, so that this takes no second array of the size."""
    row = np.random.default_rng(0).integers(0, 7, 65_521).astype(dtype)
    array = np.empty(shape, dtype)
    flat = array.reshape(-1)
    for piece in pieces(flat.size, len(row)):
        flat[piece] = row[: flat[piece].size]
    return array


def no_copy(shape, rng):
    """Initial weights without a temporary of their size."""
    return np.broadcast_to(np.float32(0), shape)


def network(sizes, **options):
    net = fo.MLP(sizes, init=no_copy, **options)
    flat, rng = net.flat, np.random.default_rng(1)
    for piece in pieces(flat.size, 2**24):
        rng.standard_normal(dtype=np.float32, out=flat[piece])
        flat[piece] *= 0.05
    return net


def difference(scores, y):
    """A loss whose gradient at an output depends on that output alone."""
    return 0.0, scores


# ----------------------------------------------------------------------------------------- more than there can be


def virtual(*shape, dtype="u1"):
    """An array of that shape in one element's memory."""
    return as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


def fit(n, loss=difference, features=1, outputs=4, batch_size=2**70, dtype="u1"):
    trainer = fo.Trainer(fo.MLP([features, outputs]), loss=loss, optimizer=fo.SGD(0.1), batch_size=batch_size, seed=0)
    trainer.fit(virtual(n, features, dtype=dtype), virtual(n), epochs=1)


TOO_LARGE = {
    **{f"MLP {sizes}": lambda sizes=sizes: fo.MLP(sizes) for sizes in (
        [2**40, 2**40], [2**62, 2], [2**70, 2], [2**42, 1], [1, 2**42], [2**31] * 3, [2**32, 2**32])},
    # their sizes in bytes come to 2**64 and more, one after another
    **{f"a batch of 2**{k}": lambda k=k: fit(2**k) for k in range(40, 63)},
    "a batch of 2**63 - 1": lambda: fit(2**63 - 1),
    "a batch of 2**55 by 2**7": lambda: fit(2**55, outputs=2**7),
    "rows": lambda: fit(2**62, batch_size=8),
    "rows of float32": lambda: fit(2**42, batch_size=8, dtype="f4"),
    "labels": lambda: fit(2**42, "hinge", batch_size=8),
    "targets": lambda: fit(2**42, "mse", outputs=1, batch_size=8),
    "forward of rows": lambda: fo.MLP([1, 4]).forward(virtual(2**42, 1)),
    "forward of more rows": lambda: fo.MLP([1, 4]).forward(virtual(2**62, 1)),
    "forward of another width": lambda: fo.MLP([1, 4]).forward(virtual(2, 2**62)),
    "loss_and_grad": lambda: fo.MLP([1, 4]).loss_and_grad(virtual(2**50, 1), virtual(2**50)),
    "dense_forward, x": lambda: fo.dense_forward(virtual(2**42, 1, dtype="f4"), np.ones((4, 1), "f4")),
    "dense_forward, weight": lambda: fo.dense_forward(np.ones((4, 1), "f4"), virtual(2**42, 1, dtype="f4")),
    "dense_forward, out": lambda: fo.dense_forward(np.ones((2**22, 1), "f4"), np.ones((2**22, 1), "f4")),
    "dense_backward": lambda: fo.dense_backward(np.ones((1, 2**22)), np.ones((1, 2**22)), virtual(2**22, 2**22)),
    "softmax": lambda: fo.softmax(virtual(2**42, 2, dtype="f4")),
    "hinge": lambda: fo.hinge(virtual(2**42, 2, dtype="f4"), virtual(2**42)),
    "mse": lambda: fo.mse(virtual(2**42, 2, dtype="f4"), virtual(2**42, 2)),
    "accuracy": lambda: fo.accuracy(virtual(2**42, 2, dtype="f4"), virtual(2**42)),
    "sgd_step": lambda: fo.sgd_step(np.ones(1), virtual(2**62), lr=0.1),
    "lr_range_test": lambda: fo.lr_range_test(
        fo.MLP([1, 2]), np.ones((2, 1)), [0, 1], loss="hinge", optimizer=fo.SGD(0.1), steps=2**62),
}  # fmt: skip


@pytest.mark.parametrize("call", TOO_LARGE.values(), ids=TOO_LARGE)
def test_sizes_that_no_machine_has(call):
    """No product of sizes wraps around: an exception that a caller can catch, and no crash."""
    with pytest.raises((MemoryError, ValueError)):
        call()


@pytest.mark.parametrize("sizes", [[2**40, 2**40], [2**62, 2], [2**70, 2], [10**30, 2]])
def test_parameters_that_cannot_be_counted(sizes):
    with pytest.raises(MemoryError, match=r"sizes \[\d+, \d+\] have \d+ parameters"):
        fo.MLP(sizes)


def test_counts_that_are_only_counts():
    """Numbers that allocate nothing may be as large as they like, and mean what they say."""
    X, y = np.random.default_rng(0).standard_normal((9, 3)), [0, 1, 2] * 3

    def trained(huge):
        trainer = fo.Trainer(fo.MLP([3, 5, 3], seed=0), loss="hinge", optimizer=fo.SGD(0.1), seed=0,
                             batch_size=huge or 9, n_threads=huge or 1)
        rule = fo.EarlyStopping("loss", patience=huge or 9)
        trainer.fit(X, y, epochs=huge or 3, early_stopping=rule, callbacks=[lambda t: t.epoch == 3 or None])
        return trainer.net.flat.tobytes()

    assert trained(2**62) == trained(2**70) == trained(None)


def test_buffers_without_memory():
    """A MemoryError in the middle of the engine's buffers leaves the trainer as it was, and gives back what it had."""
    X, y = np.ones((2**15, 8), np.float32), np.zeros(2**15, np.int64)
    trainer = fo.Trainer(fo.MLP([8, 2**12, 2], seed=0), loss="hinge", optimizer=fo.SGD(0.1), batch_size=2**15, seed=0)
    before = trainer.net.flat.copy()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # of the three buffers of 512 MiB the first may fit
    resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(MemoryError):
                trainer.fit(X, y, epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert np.array_equal(trainer.net.flat, before) and trainer.epoch == 0
    assert trainer.fit(X[:64], y[:64], epochs=1).loss


# ------------------------------------------------------------------------------------------- more than 2**31 elements

ROWS_OF = {"many narrow rows": (MANY // 128 + 1000, 128), "wide rows": (MANY // 4096 + 100, 4096)}


@thorough
@pytest.mark.parametrize(("n", "width"), ROWS_OF.values(), ids=ROWS_OF)
@pytest.mark.parametrize(("dtype", "gib"), [("u1", 4), ("f4", 10)])
def test_data_sets(n, width, dtype, gib):
    """`forward`, `fit` and `loss_and_grad` read every row of X where it lies."""
    needs(gib)
    X, net = random((n, width), dtype), network([width, 24, 3], activation="tanh")
    y = np.random.default_rng(2).integers(0, 3, n)
    scores = net.forward(X)
    for rows in pieces(n, n // 7):
        assert np.array_equal(scores[rows], net.forward(X[rows]))
    batch, nets = 64, [net, net.copy()]
    trainers = [fo.Trainer(net, loss="softmax_cross_entropy", optimizer=fo.SGD(1e-3, momentum=0.9), batch_size=batch,
                           shuffle=False) for net in nets]
    trainers[0].fit(X, y, epochs=1)
    for rows in pieces(n, n // 7 // batch * batch):
        trainers[1].fit(X[rows], y[rows], epochs=1)
    assert np.array_equal(nets[0].flat, nets[1].flat)


@thorough
def test_shuffled_rows():
    """Rows past 2**31 elements come in the epoch's order."""
    needs(6)
    n, width = MANY // 4096 + 100, 4096
    X, y = random((n, width), "u1"), np.random.default_rng(2).integers(0, 3, n)
    order = reference._shuffle(5, 0, n)
    results = []
    for data, labels, shuffle in ((X, y, True), (X[order], y[order], False)):
        net = network([width, 24, 3])
        trainer = fo.Trainer(net, loss="hinge", optimizer=fo.SGD(1e-4), batch_size=64, shuffle=shuffle, seed=5)
        trainer.fit(data, labels, epochs=1)
        results.append(net.flat)
    assert np.array_equal(*results)


@thorough
def test_more_than_2_to_the_31_rows():
    """`forward` counts rows in 64 bits."""
    needs(12)
    X, net = random((MANY + 9, 1), "u1"), network([1, 1])
    scores = net.forward(X)
    for rows in pieces(len(X), 2**28 + 1):
        assert np.array_equal(scores[rows], net.forward(X[rows]))


@thorough
def test_a_batch_by_its_width_above_2_to_the_32():
    """One batch of 2**32 values of X is trained as the sums over its rows, one after another, say."""
    needs(4)
    n = 2**22 + 5
    # rows that overlap: 17 GB of them in 17 MB
    X = sliding_window_view(random(n + 1024), 1025)
    assert X.size > 2**32 and n == len(X)
    y, net = np.random.default_rng(2).integers(0, 17, n), network([1025, 17])
    value, grad = net.loss_and_grad(X, y, "softmax_cross_entropy")
    twin = net.copy()
    trainer = fo.Trainer(twin, loss="softmax_cross_entropy", optimizer=fo.SGD(0.5), batch_size=n, shuffle=False)
    history = trainer.fit(X, y, epochs=1)
    fo.sgd_step(net.flat, grad, lr=0.5)
    assert np.array_equal(twin.flat, net.flat) and history.loss[0] == pytest.approx(value, rel=1e-12)


@thorough
def test_a_batch_by_the_outputs_above_2_to_the_32():
    """As many scores as that from `forward`, and from `dense_forward` as inputs."""
    needs(19)
    X, net = random((2**22 + 1, 4), "u1"), network([4, 1025])
    scores = net.forward(X)
    assert scores.size > 2**32
    for rows in pieces(len(X), 2**18):
        assert np.array_equal(scores[rows], net.forward(X[rows]))
    weight = np.random.default_rng(0).standard_normal((3, 1025), np.float32)
    out = fo.dense_forward(scores, weight, activation="tanh")
    for rows in pieces(len(X), 2**18):
        assert np.array_equal(out[rows], fo.dense_forward(scores[rows], weight, activation="tanh"))


@thorough
def test_dense_outputs():
    """`dense_forward` writes, and scans for an overflow, all of n by out."""
    needs(11)
    x, weight = random((2**20 + 1, 5)), random((2**11 + 1, 5))
    out = fo.dense_forward(x, weight)
    assert out.size > MANY
    for rows in pieces(len(x), 2**17):
        assert np.array_equal(out[rows], fo.dense_forward(x[rows], weight))


@thorough
def test_dense_weights():
    """Each output of a layer of that many weights, and each row of its gradient, is that of the row alone."""
    needs(19)
    weight, x = random((2**15 + 1, 2**16)), random((3, 2**16))
    assert weight.size > MANY
    out = fo.dense_forward(x, weight)
    dx, dweight, dbias = fo.dense_backward(out, x, weight)
    for rows in pieces(len(weight), 2**10):
        assert np.array_equal(out[:, rows], fo.dense_forward(x, weight[rows]))
        part = np.ascontiguousarray(out[:, rows])
        _, dweight_of_rows, dbias_of_rows = fo.dense_backward(part, x, weight[rows])
        assert np.array_equal(dweight[rows], dweight_of_rows) and np.array_equal(dbias[rows], dbias_of_rows)
    # columns of dx stand by themselves
    ends = np.r_[0:9, 2**16 - 9 : 2**16]
    x_ends, weight_ends = x[:, ends], np.ascontiguousarray(weight[:, ends])
    assert np.array_equal(dx[:, ends], fo.dense_backward(out, x_ends, weight_ends)[0])


LOSSES = ["softmax_cross_entropy", "hinge", "squared_hinge", "binary_cross_entropy", "mse", "mae", "msle", "huber"]


@thorough
@pytest.mark.parametrize(("loss", "outputs"), [*((loss, 33) for loss in LOSSES), ("softmax_cross_entropy", 16)])
def test_losses(loss, outputs):
    """Every loss and gradient of that many scores is that of its sample alone, and the value is their sum."""
    needs(19 if outputs == 33 else 20)
    n = MANY // outputs + 100
    # targets that are the scores a few elements on, in the same memory: apart they would not fit
    memory = random(n * outputs + 10)
    if loss == "binary_cross_entropy":
        memory *= np.float32(1 / 8)
    scores = memory[: n * outputs].reshape(n, outputs)
    y = memory[10:].reshape(n, outputs)
    if loss in LOSSES[:3]:
        y = np.random.default_rng(2).integers(0, outputs, n, dtype=np.uint16)
    value, dscores = getattr(fo, loss)(scores, y, reduction="sum")
    total = 0.0
    for rows in pieces(n, n // 7):
        part, dscores_of_rows = getattr(fo, loss)(scores[rows], y[rows], reduction="sum")
        total += part
        assert np.array_equal(dscores[rows], dscores_of_rows)
    # double sums of at most 2**26 losses each
    assert value == pytest.approx(total, rel=2.0**-26)


@thorough
def test_networks():
    """`forward` of a network of that many parameters is that of its layers one by one."""
    needs(15)
    net, x = network([2**15, 2**15, 2**15, 5], activation="tanh"), random((9, 2**15))
    assert net.n_parameters > MANY
    scores, h = net.forward(x), x
    for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        h = fo.dense_forward(h, weight, bias, activation="tanh" if i < 2 else None)
    assert np.array_equal(scores, h)


@thorough
def test_training_of_networks():
    """An epoch updates each output's weights as it would if they were the only ones."""
    needs(19)
    width, outputs = 2**15 + 1, 2**16
    net, x = network([width, outputs]), random((5, width))
    assert net.n_parameters > MANY
    y, rows = np.zeros((5, outputs), bool), [*pieces(outputs, 128)[::57], slice(outputs - 9, outputs)]
    before = [(net.weights[0][part].copy(), net.biases[0][part].copy()) for part in rows]
    fo.Trainer(net, loss=difference, optimizer=fo.SGD(1e-5), batch_size=2, shuffle=False).fit(x, y, epochs=1)
    for part, (weight, bias) in zip(rows, before, strict=True):
        small = fo.MLP([width, len(bias)])
        small.weights[0][...], small.biases[0][...] = weight, bias
        fo.Trainer(small, loss=difference, optimizer=fo.SGD(1e-5), batch_size=2, shuffle=False).fit(
            x, y[:, part], epochs=1)
        assert np.array_equal(net.weights[0][part], small.weights[0])
        assert np.array_equal(net.biases[0][part], small.biases[0])
        assert not np.array_equal(weight, small.weights[0])


@thorough
@pytest.mark.parametrize("step", [fo.sgd_step, fo.momentum_step, fo.nesterov_step])
def test_steps(step, tmp_path):
    """Every parameter and velocity becomes what it becomes alone."""
    needs(19)
    n = MANY + 1001
    param, options = random(n), {"lr": 0.1, "weight_decay": 0.01, "l1": 0.001}
    # read from a file full of holes, whose pages the system may drop
    grad = np.memmap(tmp_path / "grad", np.float32, "w+", shape=n)
    for at in (0, 77, MANY - 1, MANY, n - 9):
        grad[at : at + 9] = 3
    velocity = [] if step is fo.sgd_step else [random(n)]
    step(param, grad, *velocity, **options)
    for part in pieces(n, 65_521 * 64):
        expected = [random(part.stop - part.start) for _ in range(1 + len(velocity))]
        step(expected[0], grad[part], *expected[1:], **options)
        assert np.array_equal(param[part], expected[0])
        assert all(np.array_equal(velocity[0][part], v) for v in expected[1:])


@thorough
def test_files(tmp_path):
    """A file of more than 2**31 bytes comes back."""
    needs(13)
    net = network([2**14, 2**15 + 100])
    net.save(tmp_path / "net")
    assert (tmp_path / "net").stat().st_size > MANY
    assert np.array_equal(fo.MLP.load(tmp_path / "net").flat, net.flat)


# --------------------------------------------------------------------------------------------------- one in 10**8

N, WIDTH = 10**6, 100
LAYOUTS = {  # X of 10**8 elements, the dtype of the network
    "float32": (lambda: random((N, WIDTH)), "float32"),
    "every second column": (lambda: random((N, 2 * WIDTH))[:, ::2], "float32"),
    "backwards": (lambda: random((N, WIDTH))[::-1, ::-1], "float32"),
    "Fortran order": (lambda: random((WIDTH, N)).T, "float32"),
    "float64": (lambda: random((N, WIDTH), "f8"), "float64"),
    "float64, narrowed": (lambda: random((N, WIDTH), "f8"), "float32"),
    "float16": (lambda: random((N, WIDTH), "f2"), "float32"),
    "wide": (lambda: random((WIDTH, N)), "float32"),
}


@thorough
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_value_in_10_to_the_8_that_is_not_finite(layout):
    """`fit`, validation and `forward` name its row and column, and the training goes on as if nothing had been."""
    needs(5)
    make, dtype = LAYOUTS[layout]
    X = make()
    n, width = X.shape
    net = fo.MLP([width, 3], dtype=dtype, dropout=0.1, seed=0)
    y, few = np.arange(n) % 3, min(n, 1000)
    trainer = fo.Trainer(net, loss="hinge", optimizer=fo.SGD(1e-3, momentum=0.9, nesterov=True), batch_size=100, seed=0)
    trainer.fit(X[:few], y[:few], epochs=1)
    rng = np.random.default_rng(3)
    places = [(0, 0), (n - 1, width - 1), *zip(rng.integers(0, n, 3), rng.integers(0, width, 3), strict=True)]
    for (row, column), value in zip(places, itertools.cycle([np.nan, np.inf, -np.inf]), strict=False):
        before, kept = everything(trainer), X[row, column]
        X[row, column] = value
        for name, call in (
            ("X", lambda: trainer.fit(X, y, epochs=2)),
            ("X", lambda: net.forward(X)),
            ("validation X", lambda: trainer.fit(X[:few], y[:few], epochs=1, validation_data=(X, y))),
        ):
            with pytest.raises(ValueError, match=rf"^{name}\[{row}, {column}\] is {value}$"):
                call()
            assert everything(trainer) == before
        X[row, column] = kept


def everything(trainer):
    """All that the next fit depends on, as bytes."""
    state = {name: repr(value) for name, value in trainer._state.items()}
    moments = b"" if trainer._moments is None else trainer._moments.tobytes()
    return trainer.net.flat.tobytes(), moments, state, repr(vars(trainer.history))
