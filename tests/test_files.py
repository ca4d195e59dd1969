"""Model and checkpoint files: damaged, hostile, cut short, killed while they are written, of earlier versions."""

import collections
import errno
import hashlib
import json
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import fastopt as fo
from fastopt import files

NAN = math.nan
X = np.random.default_rng(0).standard_normal((9, 2))
Y = np.random.default_rng(1).random((9, 1))
NESTEROV_L1 = fo.SGD(0.05, momentum=0.9, nesterov=True, l1=0.01)
kinds = pytest.mark.parametrize("kind", ["model", "checkpoint"])
LOAD = {"model": fo.MLP.load, "checkpoint": fo.Trainer.load}


def made(kind, seed=3):
    """Something to save."""
    net = fo.MLP([2, 2, 1], activation="tanh", dropout=0.5, dtype="float64", seed=seed)
    if kind == "model":
        return net
    trainer = fo.Trainer(net, loss="mse", optimizer=NESTEROV_L1, batch_size=4, seed=seed)
    trainer.fit(X, Y, epochs=2, validation_data=(X, Y), early_stopping=fo.EarlyStopping(patience=9))
    return trainer


def content_of(kind, path, seed=3):
    made(kind, seed).save(path)
    return path.read_bytes()


def taken_apart(content):
    """(tensors, metadata, description)"""
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return safetensors.numpy.load(content), metadata, json.loads(metadata["fastopt"])


def put_together(tensors, metadata, description):
    """With a checksum that is right."""
    return b"".join(files.signed(tensors, metadata | {"fastopt": json.dumps(description)}))


def outcome(load, path, content):
    """What loading a file of that content comes to: an error's type, None for silence."""
    path.write_bytes(content)
    try:
        load(path)
    except Exception as error:
        return type(error)
    return None


def outcomes(kind, path, contents):
    return collections.Counter(outcome(LOAD[kind], path, content) for content in contents)


# ----------------------------------------------------------------------------------------------------- damage


def flipped(content, bits):
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield damaged


def spliced(content, other, n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        a, b, c = np.sort(rng.integers(0, len(content), 3))
        for damaged in (content[:a] + content[b:], content[:b] + content[a:], content[:a] + content[b:c],
                        content[:a] + other[a:], content[:a] + rng.bytes(b - a) + content[b:]):
            if damaged not in (content, other):
                yield damaged


@kinds
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.thorough), 7])
def test_flipped_bits_are_found(kind, every, tmp_path):
    """Each is a ModelFormatError; 7 is prime to a byte's 8 bits, so that each place of a bit comes."""
    content = content_of(kind, tmp_path / "good")
    found = outcomes(kind, tmp_path / "damaged", flipped(content, range(0, 8 * len(content), every)))
    print(found)
    assert set(found) == {fo.ModelFormatError}, found


@kinds
@pytest.mark.parametrize("n", [pytest.param(20_000, marks=pytest.mark.thorough), 100])
def test_truncations_and_splices_are_found(kind, n, tmp_path):
    """Every truncation, bytes behind the end, pieces left out, doubled, taken from another file or at random."""
    content, other = content_of(kind, tmp_path / "good"), content_of(kind, tmp_path / "other", seed=4)
    damaged = [content[:size] for size in range(len(content))]
    damaged += [content + b"\0", content + content, b"\0" + content]
    found = outcomes(kind, tmp_path / "damaged", damaged)
    found += outcomes(kind, tmp_path / "damaged", spliced(content, other, n))
    print(found)
    assert set(found) == {fo.ModelFormatError}, found


def foreign(path):
    """Files of other kinds."""
    net = fo.MLP([2, 1])
    yield b""
    yield b"\0" * 64
    yield b"\xff" * 64
    yield b"{}"
    yield pickle.dumps(net)
    yield (2**63).to_bytes(8, "little") + b"{}"
    yield (2).to_bytes(8, "little") + b"{}"
    yield json.dumps({"flat": [1, 2, 3]}).encode()
    yield safetensors.numpy.save({"flat": net.flat})
    yield safetensors.numpy.save({"flat": net.flat}, {"format": "pt"})
    yield safetensors.numpy.save({"flat": net.flat}, {"format": "1", "fastopt": "[]"})
    np.savez(path, flat=net.flat)
    yield path.read_bytes()


@kinds
def test_other_files_are_refused(kind, tmp_path):
    content_of(kind, tmp_path / "good")
    with pytest.raises(fo.ModelFormatError, match=kind):
        LOAD[{"model": "checkpoint", "checkpoint": "model"}[kind]](tmp_path / "good")
    for content in foreign(tmp_path / "other.npz"):
        assert outcome(LOAD[kind], tmp_path / "foreign", content) is fo.ModelFormatError, content
    with pytest.raises(FileNotFoundError):
        LOAD[kind](tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        LOAD[kind](tmp_path)


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
@kinds
def test_what_never_ends_is_no_file(kind, path, tmp_path):
    """A pipe that nobody writes, a device: no waiting, no endless reading."""
    if path == "pipe":
        path = tmp_path / path
        os.mkfifo(path)
    with pytest.raises(fo.ModelFormatError, match="not a regular file"):
        LOAD[kind](path)


# --------------------------------------------------------------------------------------------------- hostility

TAMPERED = {  # what a hand that knows the format may write: tensors, metadata and description, from good ones
    "newer format": lambda t, m, d: m.update(format=str(files.FORMAT + 1)),
    "no tensors": lambda t, m, d: t.clear(),
    "too few parameters": lambda t, m, d: t.update(flat=t["flat"][:8]),
    "another dtype": lambda t, m, d: t.update(flat=t["flat"].astype("float32")),
    "nan": lambda t, m, d: t.update(flat=t["flat"] * NAN),
    "no network": lambda t, m, d: d.pop("network"),
    "network is a list": lambda t, m, d: d.update(network=[2, 2, 1]),
    "huge sizes": lambda t, m, d: d["network"].update(sizes=[2**62, 2**62, 1]),
    "negative sizes": lambda t, m, d: d["network"].update(sizes=[-2, -2, 1]),
    "sizes are text": lambda t, m, d: d["network"].update(sizes="221"),
    "one size": lambda t, m, d: d["network"].update(sizes=[2]),
    "unknown activation": lambda t, m, d: d["network"].update(activation="gelu"),
    "dropout 1": lambda t, m, d: d["network"].update(dropout=1.0),
    "deep": lambda t, m, d: d.update(network=json.loads("[" * 900 + "]" * 900)),
}
TAMPERED_CHECKPOINT = {
    "no velocity": lambda t, m, d: t.pop("velocity"),
    "velocity of another size": lambda t, m, d: t.update(velocity=t["velocity"][:8]),
    "velocity nan": lambda t, m, d: t.update(velocity=t["velocity"] * NAN),
    "no history": lambda t, m, d: t.pop("loss"),
    "history of another length": lambda t, m, d: t.update(loss=np.zeros(7)),
    "optimizer is a list": lambda t, m, d: d.update(optimizer=[]),
    "no optimizer": lambda t, m, d: d.pop("optimizer"),
    "unknown option": lambda t, m, d: d["optimizer"].update(beta=0.9),
    "momentum 2": lambda t, m, d: d["optimizer"].update(momentum=2.0),
    "unknown loss": lambda t, m, d: d.update(loss="focal"),
    "loss is a number": lambda t, m, d: d.update(loss=3),
    "epoch is text": lambda t, m, d: d.update(epoch="two"),
    "epoch < 0": lambda t, m, d: d.update(epoch=-1),
    "epoch 2**62": lambda t, m, d: d.update(epoch=2**62),
    "epoch 2**62 of an early file": lambda t, m, d: (d.update(epoch=2**62), t.pop("accuracy"), t.pop("val_accuracy")),
    "updates < 0": lambda t, m, d: d.update(updates=-1),
    "updates 2**64": lambda t, m, d: d.update(updates=2**64),
    "seed < 0": lambda t, m, d: d.update(seed=-1),
    "batch 0": lambda t, m, d: d.update(batch_size=0),
    "partial is text": lambda t, m, d: d.update(partial="half"),
    "partial is short": lambda t, m, d: d.update(partial=[1]),
    "partial < 0": lambda t, m, d: d.update(partial=[-1, 0.0, 0.0, 9]),
    "watch is text": lambda t, m, d: d.update(watch="best"),
    "patience 0": lambda t, m, d: d["watch"].update(patience=0),
    "waited is text": lambda t, m, d: d["watch"].update(waited="long"),
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *(pytest.param(kind, f, id=f"{kind}, {n}") for kind in LOAD for n, f in TAMPERED.items()),
        *(pytest.param("checkpoint", f, id=name) for name, f in TAMPERED_CHECKPOINT.items()),
    ],
)
def test_tampered_files_are_refused(kind, change, tmp_path):
    tensors, metadata, description = taken_apart(content_of(kind, tmp_path / "file"))
    change(tensors, metadata, description)
    content = put_together(tensors, metadata, description)
    assert outcome(LOAD[kind], tmp_path / "file", content) is fo.ModelFormatError


def resigned(content, change):
    """Content whose header is changed, with a checksum that is right again."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    changed = change(header) or header
    head = bytearray(json.dumps(changed, separators=(",", ":")).encode())
    at = head.index(files.CHECKSUM) + len(files.CHECKSUM)
    pieces = [len(head).to_bytes(8, "little"), head, content[8 + size :]]
    head[at : at + 64] = files._sha256(pieces, at).encode()
    return b"".join(pieces)


HEADERS = {  # what is written of the tensor `flat`, or beside it
    "size 2**63": lambda h: h["flat"].update(shape=[2**63]),
    "negative sizes": lambda h: h["flat"].update(shape=[-9, -1]),
    "product of 2**64": lambda h: h["flat"].update(shape=[2**32, 2**32]),
    "product of 2**64 and 9": lambda h: h["flat"].update(shape=[2**32, 2**32, 9]),
    "zero times 2**63": lambda h: h["flat"].update(shape=[0, 2**63]),
    "sizes of 4,000 digits": lambda h: h["flat"].update(shape=[10**3999] * 200),
    "sizes of 1": lambda h: h["flat"].update(shape=[9] + [1] * 200_000),
    "size is a float": lambda h: h["flat"].update(shape=[9.0]),
    "size is true": lambda h: h["flat"].update(shape=[True, 9]),
    "no shape": lambda h: h["flat"].pop("shape") and None,
    "past the end": lambda h: h["flat"].update(shape=[10], data_offsets=[0, 80]),
    "before the start": lambda h: h["flat"].update(shape=[10], data_offsets=[-8, 72]),
    "offsets are floats": lambda h: h["flat"].update(data_offsets=[0.0, 72.0]),
    "offsets of 2**64": lambda h: h["flat"].update(data_offsets=[2**64, 2**64 + 72]),
    "three offsets": lambda h: h["flat"].update(data_offsets=[0, 36, 72]),
    "overlapping": lambda h: h.update(more=dict(h["flat"])),
    "a gap": lambda h: h["flat"].update(shape=[8], data_offsets=[8, 72]),
    "bytes left": lambda h: h["flat"].update(shape=[8], data_offsets=[0, 64]),
    "unknown dtype": lambda h: h["flat"].update(dtype="PICKLE"),
    "dtype is a list": lambda h: h["flat"].update(dtype=["F64"]),
    "tensor is a number": lambda h: h.update(flat=9),
    "twice": lambda h: h.update(flat=[h["flat"], h["flat"]]),
    "metadata is text": lambda h: {"format": "1", "sha256": "0" * 64, "__metadata__": "x", "flat": h["flat"]},
    "no description": lambda h: h["__metadata__"].pop("fastopt") and None,
    "description is a pickle": lambda h: h["__metadata__"].update(fastopt=pickle.dumps(9).decode("latin1")),
    "description is deep": lambda h: h["__metadata__"].update(fastopt="[" * 100_000),
    "header is a list": lambda h: [h],
    "many": lambda h: h.update({str(i): {} for i in range(3000)}),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_hostile_headers_are_refused(change, tmp_path):
    content = resigned(content_of("model", tmp_path / "file"), change)
    assert outcome(fo.MLP.load, tmp_path / "file", content) is fo.ModelFormatError


class Planted:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@kinds
def test_nothing_in_a_file_is_executed(kind, tmp_path):
    """Nor is pickle imported for one."""
    payload = pickle.dumps(Planted(tmp_path / "planted")).decode("latin1")
    good = content_of(kind, tmp_path / "good")
    for content in (
        payload.encode("latin1"),
        resigned(good, lambda h: h["__metadata__"].update(fastopt=payload)),
        resigned(good, lambda h: h["__metadata__"].update(pickle=payload) or h.update({payload: h.pop("flat")})),
    ):
        assert outcome(LOAD[kind], tmp_path / "file", content) is fo.ModelFormatError
    assert not (tmp_path / "planted").exists()
    source = Path(files.__file__).read_text()
    assert "import pickle" not in source and "eval(" not in source and "exec(" not in source


def largest_allocation(load, path, content):
    """Bytes that Python and NumPy took at most while the file was refused."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(fo.ModelFormatError):
            load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_damaged_file_takes_no_more_than_its_size(tmp_path):
    """At most twice that, and 64 KiB for Python's own objects, whatever its header says."""
    net = fo.MLP([300, 300, 10])
    net.save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    fo.MLP.load(tmp_path / "good")  # imports what it needs
    size = len(good)
    contents = {
        "as header": (size - 8).to_bytes(8, "little") + b"[[]," * (size // 4 - 2),
        "header larger than the file": (2**40).to_bytes(8, "little") + good[8:],
        "truncated": good[: size // 2],
        "flipped": bytes(next(flipped(good, [8 * (size - 1)]))),
        "sizes": resigned(good, lambda h: h["flat"].update(shape=[2**40])),
        "network": put_together(*(lambda t, m, d: (t, m, d | {"network": d["network"] | {"sizes": [2**20, 2**20]}}))(
            *taken_apart(good))),
    }
    for name, content in contents.items():
        taken = largest_allocation(fo.MLP.load, tmp_path / "bad", content)
        assert taken <= 2 * len(content) + 2**16, (name, taken, len(content))


# ------------------------------------------------------------------------------------------------- the format


@kinds
def test_files_are_safetensors(kind, tmp_path):
    """The library reads ours and finds the same tensors; we read what it writes of them."""
    content = content_of(kind, tmp_path / "ours")
    tensors, metadata, _ = taken_apart(content)
    ours, _ = files.read(tmp_path / "ours", kind)
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in tensors.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in ours.items()}
    theirs = resigned(safetensors.numpy.save(tensors, metadata), lambda header: None)
    assert outcome(LOAD[kind], tmp_path / "theirs", theirs) is None


@kinds
def test_the_same_is_the_same_file(kind, tmp_path):
    """Byte for byte, but for the seconds that training took."""
    first, second = made(kind), made(kind)
    if kind == "checkpoint":
        second.history.seconds[:] = first.history.seconds
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_description_that_no_file_can_hold(tmp_path):
    with pytest.raises(ValueError, match="description takes"):
        files.write(tmp_path / "file", {}, {"text": "x" * files.LARGEST_HEADER})
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- versions and formats

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.model")), ids=lambda path: path.name)
def test_a_model_of_every_version(path):
    """It loads for ever and predicts the same bits."""
    expected = json.loads((GOLDEN / "expected.json").read_text())[path.name]
    net = fo.MLP.load(path)
    samples = np.arange(5 * net.sizes[0], dtype=np.float64).reshape(5, -1) % 7 / 7 - 0.5
    assert hashlib.sha256(net.forward(samples).tobytes()).hexdigest() == expected


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.checkpoint")), ids=lambda path: path.name)
def test_a_checkpoint_of_every_version(path):
    """It loads for ever and goes on with the same bits; one of format 1 named no optimizer and had no accuracy."""
    expected = json.loads((GOLDEN / "expected.json").read_text())[path.name]
    trainer = fo.Trainer.load(path)
    n_in, n_out = trainer.net.sizes[0], trainer.net.sizes[-1]
    samples = np.arange(20 * n_in, dtype=np.float64).reshape(20, -1) % 7 / 7 - 0.5
    trainer.fit(samples, np.arange(20) % n_out, epochs=2)
    assert hashlib.sha256(trainer.net.flat.tobytes()).hexdigest() == expected
    assert len(trainer.history.accuracy) == trainer.epoch


def test_every_format_has_golden_files():
    found = {(taken_apart(path.read_bytes())[1]["format"], path.suffix) for path in GOLDEN.glob("*.*[lt]")}
    assert found == {(str(n), suffix) for n in range(1, files.FORMAT + 1) for suffix in (".model", ".checkpoint")}


def test_a_newer_format_says_which_version_it_needs(tmp_path):
    content = safetensors.numpy.save({"flat": np.zeros(9)}, {"format": "99", "fastopt": "{}", "sha256": "?"})
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(fo.ModelFormatError, match="format 99.*newer"):
        fo.MLP.load(tmp_path / "file")


# ---------------------------------------------------------------------------------------- faults while writing


def other_one(kind, path):
    """Something else to save, and what its file holds."""
    thing = made(kind, seed=4)
    thing.save(path)
    content = path.read_bytes()
    path.unlink()
    return thing, content


def in_a_child(action, *arguments):
    """The wait status of a fork that runs the action and exits with 0, or with 9 where it raises."""
    child = os.fork()
    if child == 0:
        try:
            action(*arguments)
        except BaseException:
            os._exit(9)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(thing, path, at):
    """Saves until `at` bytes are written, or `at` calls to the system made since the last byte, and dies."""
    written, calls, write = 0, 0, os.write

    def short_write(handle, view):
        nonlocal written
        size = min(len(view), at - written) if at >= 0 else len(view)
        if size == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        written += write(handle, view[:size])
        return size

    def counted(call):
        def wrapped(*arguments, **options):
            nonlocal calls
            if calls == -at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return call(*arguments, **options)

        return wrapped

    os.write = short_write
    if at < 0:
        os.fchmod, os.fsync, os.replace = map(counted, (os.fchmod, os.fsync, os.replace))
    thing.save(path)


@kinds
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.thorough), 13])
def test_killed_at_every_offset(kind, step, tmp_path):
    """The old file is whole until the new one is; what is left of a killed save is cleared by the next one."""
    path = tmp_path / "file"
    old = content_of(kind, path)
    thing, new = other_one(kind, tmp_path / "new")
    seen = collections.Counter()
    # after the last byte: chmod, fsync, rename, fsync of the folder
    for at in [*range(0, len(new), step), -1, -2, -3]:
        path.write_bytes(old)
        assert os.waitstatus_to_exitcode(in_a_child(killed_at, thing, path, at)) == -signal.SIGKILL
        content = path.read_bytes()
        assert content in (old, new)
        seen[content == new, len(list(tmp_path.iterdir()))] += 1
        LOAD[kind](path)
    print(f"{sum(seen.values())} kills: {seen}")
    assert set(seen) == {(False, 2), (True, 1)} and seen[True, 1] == 1
    thing.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == new


def saved_with_room_for(thing, path, size):
    """Files can grow to that size only: writes are cut short, then fail."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with pytest.raises(OSError) as error:
        thing.save(path)
    assert error.value.errno == errno.EFBIG


@kinds
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.thorough), 29])
def test_no_room_at_every_offset(kind, step, tmp_path):
    """An OSError, the old file, nothing else."""
    path = tmp_path / "file"
    old = content_of(kind, path)
    thing, new = other_one(kind, tmp_path / "new")
    for size in range(0, len(new), step):
        assert in_a_child(saved_with_room_for, thing, path, size) == 0, size
        assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


CALLS = ("open", "write", "fstat", "fchmod", "fsync", "replace", "listdir")


@kinds
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_the_nth_call_fails(kind, number, tmp_path, monkeypatch):
    """Whichever call to the system fails: an OSError and, until the new file has the name, the old one alone."""
    path = tmp_path / "file"
    old = content_of(kind, path)
    thing, new = other_one(kind, tmp_path / "new")
    calls, failing, log = 0, None, []

    def rigged(name, call):
        def wrapped(*arguments, **options):
            nonlocal calls
            log.append(name)
            calls += 1
            if calls == failing:
                raise OSError(number, os.strerror(number))
            return call(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, rigged(name, getattr(os, name)))
        thing.save(path)
        path.write_bytes(old)
        n = calls
        assert set(log) == set(CALLS)
        for failing in range(1, n + 1):
            calls = 0
            with pytest.raises(OSError) as error:
                thing.save(path)
            assert error.value.errno == number
            # the last is the folder's fsync: the new file has the name, if not yet for good
            assert path.read_bytes() == (new if failing == n else old), (failing, log[:n])
            path.write_bytes(old)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@kinds
@pytest.mark.parametrize("size", [1, 2, 63])
def test_short_writes_are_continued(kind, size, tmp_path, monkeypatch):
    thing, new = other_one(kind, tmp_path / "new")
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, view: write(handle, view[:size]))
    thing.save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == new


def test_a_write_of_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda handle, view: 0)
    with pytest.raises(OSError, match="nothing more"):
        made("model").save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


@kinds
def test_interrupted_writes_are_continued(kind, tmp_path):
    """By a signal every fifth of a millisecond whose handler returns."""
    net = fo.MLP([1000, 1000, 10], seed=1)
    thing = net if kind == "model" else fo.Trainer(net, loss="hinge", optimizer=fo.SGD(0.1, momentum=0.9), seed=0)
    hits = []
    before = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    try:
        thing.save(tmp_path / "file")
        loaded = LOAD[kind](tmp_path / "file")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits
    assert getattr(loaded, "net", loaded).flat.tobytes() == net.flat.tobytes()


@kinds
def test_ctrl_c_while_writing(kind, tmp_path, monkeypatch):
    """At each call: the old file or the new one, and nothing else."""
    path = tmp_path / "file"
    old = content_of(kind, path)
    thing, new = other_one(kind, tmp_path / "new")
    for name in CALLS:
        for after in (False, True):
            call = getattr(os, name)

            def interrupting(*arguments, call=call, after=after, **options):
                if after:
                    call(*arguments, **options)
                signal.raise_signal(signal.SIGINT)
                return call(*arguments, **options)

            path.write_bytes(old)
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(os, name, interrupting)
                thing.save(path)
            assert path.read_bytes() in (old, new)
    thing.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == new


def save_often(folder, seed):
    net = fo.MLP([2, 2, 1], seed=seed)
    for i in range(60):
        net.save(folder / f"{i % 3}")
        fo.MLP.load(folder / f"{i % 3}")


def test_savers_do_not_clear_each_others_files(tmp_path):
    """Four processes that save under the same names, and load."""
    source = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\n" \
             f"import test_files\ntest_files.save_often(Path({str(tmp_path)!r}), int(sys.argv[1]))"
    children = [subprocess.Popen([sys.executable, "-P", "-c", source, str(i)]) for i in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_link_and_a_mode_are_kept(tmp_path):
    """The file that a link leads to is replaced, with the permissions that it had."""
    net = fo.MLP([2, 1])
    net.save(tmp_path / "file")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    net.flat[...] = 1
    net.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (fo.MLP.load(tmp_path / "file").flat == 1).all()


def test_no_room_after_a_divergence(tmp_path):
    """Two faults at once are as each alone: the last finite epoch in memory, the old file on the disk."""
    trainer, unbroken = (made("checkpoint") for _ in range(2))
    trainer.save(tmp_path / "file")
    old = (tmp_path / "file").read_bytes()
    with pytest.raises(fo.DivergenceError):
        trainer.fit(X, np.full((9, 1), 1e308), epochs=1)
    assert in_a_child(saved_with_room_for, trainer, tmp_path / "file", 100) == 0
    assert (tmp_path / "file").read_bytes() == old and len(list(tmp_path.iterdir())) == 1
    for each in (trainer, unbroken):
        each.fit(X, Y, epochs=2)
    assert trainer.net.flat.tobytes() == unbroken.net.flat.tobytes()


def test_another_ones_clearing_came_before_the_lock(tmp_path, monkeypatch):
    """The file is written anew."""
    lock, taken = files._lock, []

    def clearing(file, how):
        if not taken:
            taken.append(os.unlink(file.name))
        return lock(file, how)

    monkeypatch.setattr(files, "_lock", clearing)
    net = fo.MLP([2, 1])
    net.save(tmp_path / "file")
    assert taken and fo.MLP.load(tmp_path / "file").flat.tobytes() == net.flat.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["pipe", "folder", "folder/", "new/", "."])
def test_only_a_regular_file_is_replaced(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OSError, match="not a regular file" if place == "pipe" else "Is a directory"):
        fo.MLP([2, 1]).save(place)
    assert sorted(p.name for p in tmp_path.iterdir()) == before and (tmp_path / "pipe").is_fifo()


def test_a_file_that_only_its_owner_may_read_is_so_from_its_first_byte(tmp_path, monkeypatch):
    net, modes, write = fo.MLP([2, 1]), [], os.write
    net.save(tmp_path / "file")
    (tmp_path / "file").chmod(0o600)
    monkeypatch.setattr(os, "write", lambda handle, view: modes.append(os.fstat(handle).st_mode & 0o777)
                        or write(handle, view))
    net.save(tmp_path / "file")
    assert set(modes) == {0o600}


@kinds
def test_saved_beside_a_fit(kind, tmp_path):
    """A network saved while another thread trains it is one of its states; a trainer says that it cannot be."""
    data = np.random.default_rng(0).standard_normal((64, 300)), np.arange(64) % 10
    trainer = fo.Trainer(fo.MLP([300, 300, 10], seed=0), loss="hinge", optimizer=fo.SGD(0.01), batch_size=32, seed=0)
    states = {trainer.net.flat.tobytes()}
    thread = threading.Thread(target=trainer.fit, args=data, kwargs={
        "epochs": 100, "callbacks": [lambda trainer: states.add(trainer.net.flat.tobytes()) and None]})
    saved, refused = [], 0
    thread.start()
    while thread.is_alive():
        try:
            (trainer.net if kind == "model" else trainer).save(tmp_path / "file")
        except RuntimeError:
            refused += 1
            continue
        loaded = LOAD[kind](tmp_path / "file")
        saved.append((loaded if kind == "model" else loaded.net).flat.tobytes())
    thread.join()
    assert set(saved) <= states and (saved or refused)


def test_a_fit_does_not_begin_while_a_save_writes(tmp_path, monkeypatch):
    trainer, write = made("checkpoint"), os.write

    def fit_and_write(handle, view):
        with pytest.raises(RuntimeError, match="already running"):
            trainer.fit(X, Y, epochs=1)
        return write(handle, view)

    monkeypatch.setattr(os, "write", fit_and_write)
    trainer.save(tmp_path / "file")
    monkeypatch.undo()
    trainer.fit(X, Y, epochs=1)


def test_a_loaded_run_does_not_hold_its_file(tmp_path):
    """Its arrays are its own, none a view of all that was read."""
    made("checkpoint").save(tmp_path / "file")
    state = fo.Trainer.load(tmp_path / "file")._state
    assert [a.base for a in (*state["continuation"], state["watch"].flat)] == [None] * 3
