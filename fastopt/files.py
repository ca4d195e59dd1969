"""Model and checkpoint files: the safetensors format, the description as JSON in the metadata, no pickle.

The format is read and written here, and the library compared with in the tests: it ends the process where memory is
short, also for a byte, and it holds the file in memory twice.

A file is written beside its final name, flushed to the disk and renamed, so that a reader sees the old file or the
new one. Its metadata hold a checksum over every byte, which is looked at before anything else.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import re
import stat

import numpy as np

from . import boundary
from .errors import ModelFormatError

FORMAT = 2  # 2: checkpoints name their optimizer, and may hold schedules and the options of the loss
DTYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
CHECKSUM = b'"sha256":"'
BLANK = b"0" * 64
MOST_DIMENSIONS = 8
LARGEST_HEADER = 1 << 24  # bytes: what is parsed costs many times its length

# -- writing ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _memory_errors():
    """A MemoryError where the system says it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise


@_memory_errors()
def write(path, tensors, description):
    """Tensors and a description of JSON values, atomically."""
    named = os.fsdecode(path)
    path = os.path.realpath(named)
    if os.path.isdir(path) or not os.path.basename(named):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), named)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file", named)
    pieces = signed(tensors, {"format": str(FORMAT), "fastopt": json.dumps(description)})
    folder = os.path.dirname(path)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _remove_leftovers(folder)
        while not _replaced(path, folder, pieces):
            pass
        os.fsync(directory)
    finally:
        os.close(directory)


def _replaced(path, folder, pieces):
    """Writes the file; False where another one's clearing took it for a leftover, before it was locked."""
    temporary = os.path.join(folder, f".fastopt-{os.urandom(8).hex()}.part")
    try:
        with open(temporary, "xb", buffering=0) as file:
            _lock(file, 0)
            if not os.fstat(file.fileno()).st_nlink:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
            for piece in pieces:
                _write_all(file, memoryview(piece))
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return True


def _write_all(file, view):
    while view:
        written = os.write(file.fileno(), view)
        if written == 0:
            raise OSError(errno.EIO, "nothing more can be written")
        view = view[written:]


def _lock(file, how):
    """Whether the lock is ours; never on file systems that have none."""
    import fcntl

    try:
        fcntl.flock(file, how | fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _open_at_once(path, flags):
    """Not a link, and without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _remove_leftovers(folder):
    """Files that a killed process was writing."""
    import fcntl

    for name in os.listdir(folder):
        if re.fullmatch(r"\.fastopt-[0-9a-f]{16}\.part", name):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), open(path, "rb", buffering=0, opener=_open_at_once) as file:
                if _lock(file, fcntl.LOCK_NB):
                    os.unlink(path)


def signed(tensors, metadata):
    """The file's pieces, with the SHA-256 of all of them, taken over a blank one, in the metadata."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    header, at = {"__metadata__": metadata | {"sha256": BLANK.decode()}}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # so that each is aligned
        tensor, begin = tensors[name], at
        at += tensor.nbytes
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, at]}
    head = json.dumps(header, separators=(",", ":")).encode()
    if len(head) > LARGEST_HEADER:
        raise ValueError(f"the description takes {len(head)} bytes, more than the {LARGEST_HEADER} of a file's header")
    head = bytearray(head + b" " * (-len(head) % 8))
    data = [tensors[name].reshape(-1).view(np.uint8) for name in header if name in tensors]
    pieces = [len(head).to_bytes(8, "little"), head, *data]
    at = head.index(CHECKSUM) + len(CHECKSUM)
    head[at : at + len(BLANK)] = _sha256(pieces, at).encode()
    return pieces


def _sha256(pieces, at):
    """Of (length, header, data ...), the header's checksum from `at` on left blank."""
    import hashlib  # slow to import, and few programs read or write a file

    length, head, *data = pieces
    view = memoryview(head)
    try:
        digest = hashlib.sha256(length, usedforsecurity=False)
        for piece in (view[:at], BLANK, view[at + len(BLANK) :], *data):
            digest.update(piece)
        return digest.hexdigest()
    except ValueError as error:
        raise MemoryError(f"for a checksum: {error}") from None  # all that OpenSSL says of it


# -- reading ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refusing(path):
    """Whatever a description or its tensors lack or hold too much of becomes a ModelFormatError."""
    try:
        yield
    except ModelFormatError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not a fastopt file: {type(error).__name__}: {error}") from None


@_memory_errors()
def read(path, kind):
    """(tensors, description) of a file of that kind."""
    path = os.fsdecode(path)
    # a pipe would wait for its other end
    with (open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file,
          refusing(path)):
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        length = _read_exactly(file, 8).tobytes()
        size = int.from_bytes(length, "little")
        if size > min(status.st_size - 8, LARGEST_HEADER):
            raise ValueError(f"a header of {size} bytes")
        head = _read_exactly(file, size).tobytes()
        found = re.search(rb'"format":"(\d{1,9})"', head)
        if found is None or CHECKSUM not in head:
            raise ValueError("no format or checksum in the header")
        if int(found[1]) > FORMAT:
            raise ModelFormatError(f"{path} has format {int(found[1])}, of a newer fastopt; this one reads up to "
                                   f"{FORMAT}")
        data = _read_exactly(file, status.st_size - 8 - size)
        at = head.index(CHECKSUM) + len(CHECKSUM)
        if head[at : at + len(BLANK)] != _sha256((length, head, data), at).encode():
            raise ModelFormatError(f"{path} is damaged: its checksum is not that of its content")
        header = json.loads(head)
        description = json.loads(header.pop("__metadata__")["fastopt"])
        if description["kind"] != kind:
            raise ModelFormatError(f"{path} holds a {description['kind']}, not a {kind}")
        return _tensors(header, data), description


def _read_exactly(file, size):
    """An array of the next bytes, which must be there."""
    content = np.empty(size, np.uint8)
    view = memoryview(content)
    while view:
        got = file.readinto(view)
        if not got:
            raise ValueError("the file ends early")
        view = view[got:]
    return content


def _tensors(header, data):
    """The header's tensors, which must lie in the data side by side and fill them."""
    tensors, at = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = DTYPES[entry["dtype"]]
        # none can be larger than all data: what comes from a header is not multiplied unbounded
        shape = [boundary.integer("size", size, 0, len(data)) for size in entry["shape"][:MOST_DIMENSIONS + 1]]
        begin, end = entry["data_offsets"]
        if len(shape) > MOST_DIMENSIONS or begin != at or end > len(data) or (
                end - begin != math.prod(shape) * dtype.itemsize):
            raise ValueError(f"a tensor does not lie where it should, at {at}")
        tensors[name] = data[begin:end].view(dtype).reshape(shape)
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes belong to no tensor")
    return tensors


# -- networks ---------------------------------------------------------------------------------------------------


def network_description(net):
    return {
        "sizes": list(net.sizes), "activation": net.activation, "dropout": net.dropout, "dtype": net.dtype.name,
    }


def network_from(cls, description, flat):
    """The network of a description with those parameters; what does not fit together is a ValueError."""
    sizes = [boundary.integer("size", size, 1) for size in description["sizes"]]
    expected = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    if flat.shape != (expected,) or flat.dtype.name != description["dtype"]:
        raise ValueError(f"{flat.size} parameters of {flat.dtype} for sizes {sizes} of {description['dtype']}")
    if not np.isfinite(flat).all():
        raise ValueError("the parameters are not finite")
    net = cls(sizes, description["activation"], "zeros", description["dropout"], description["dtype"])
    net.flat[...] = flat
    return net
