"""Model and checkpoint files: safetensors, the description as JSON in the metadata, no pickle.

A file is written beside its final name, flushed to the disk and renamed, so that a reader sees the old file or the
new one. Its metadata hold a checksum over every byte.
"""

import contextlib
import itertools
import json
import os

import numpy as np
import safetensors
import safetensors.numpy

from . import boundary
from .errors import ModelFormatError

FORMAT = 2  # 2: checkpoints name their optimizer, and may hold schedules and the options of the loss
CHECKSUM = b'"sha256":"'
BLANK = "0" * 64


def write(path, tensors, description):
    """Tensors and a description of JSON values, atomically."""
    path = os.path.realpath(os.fsdecode(path))
    content = signed(tensors, {"format": str(FORMAT), "fastopt": json.dumps(description)})
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".fastopt-{os.urandom(8).hex()}.part")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, os.stat(path).st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def signed(tensors, metadata):
    """The file's bytes, with the SHA-256 of all of them, taken over a blank one, in the metadata."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    content = bytearray(safetensors.numpy.save(tensors, metadata | {"sha256": BLANK}))
    at = content.index(CHECKSUM) + len(CHECKSUM)
    content[at : at + len(BLANK)] = _sha256(content, at).encode()
    return bytes(content)


def _sha256(content, at):
    import hashlib  # slow to import, and few programs read or write a file

    view = memoryview(content)
    digest = hashlib.sha256(view[:at])
    digest.update(BLANK.encode())
    digest.update(view[at + len(BLANK) :])
    return digest.hexdigest()


@contextlib.contextmanager
def refusing(path):
    """Whatever a description or its tensors lack or hold too much of becomes a ModelFormatError."""
    try:
        yield
    except ModelFormatError:
        raise
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not a fastopt file: {type(error).__name__}: {error}") from None


def read(path, kind):
    """(tensors, description) of a file of that kind."""
    with open(path, "rb") as file:
        content = file.read()
    with refusing(path):
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        found = int(metadata["format"])
        if found > FORMAT:
            raise ModelFormatError(f"{path} has format {found}, of a newer fastopt; this one reads up to {FORMAT}")
        at = content.index(CHECKSUM) + len(CHECKSUM)
        if metadata["sha256"] != _sha256(content, at):
            raise ModelFormatError(f"{path} is damaged: its checksum is not that of its content")
        description = json.loads(metadata["fastopt"])
        if description["kind"] != kind:
            raise ModelFormatError(f"{path} holds a {description['kind']}, not a {kind}")
        return safetensors.numpy.load(content), description


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
