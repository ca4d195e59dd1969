"""Model and checkpoint files: safetensors, the description as JSON in the metadata, no pickle.

A file is written beside its final name, flushed to the disk and renamed, so that a reader sees the old file or the
new one.
"""

import json
import os
import tempfile

import numpy as np
import safetensors
import safetensors.numpy

from . import boundary
from .errors import ModelFormatError

FORMAT = 1


def write(path, tensors, description):
    """Tensors and a description of JSON values, atomically."""
    path = os.path.abspath(os.fspath(path))
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        {"format": str(FORMAT), "fastopt": json.dumps(description)},
    )
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(path, kind):
    """(tensors, description) of a file of that kind."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        description = json.loads(metadata.get("fastopt", "null"))
        found = int(metadata.get("format", "0"))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"{path} is not a fastopt file: {error}") from None
    if not isinstance(description, dict) or found < 1:
        raise ModelFormatError(f"{path} is not a fastopt file: its metadata has no description")
    if found > FORMAT:
        raise ModelFormatError(f"{path} has format {found}: a newer fastopt is needed, this one reads up to {FORMAT}")
    if description.get("kind") != kind:
        raise ModelFormatError(f"{path} holds a {description.get('kind')}, not a {kind}")
    return tensors, description


def network_description(net):
    return {
        "sizes": list(net.sizes), "activation": net.activation, "dropout": net.dropout, "dtype": net.dtype.name,
    }


def network_from(cls, description, flat):
    """The network of a description with those parameters; what does not fit together is a ModelFormatError."""
    try:
        sizes = [boundary.integer("size", size, 1) for size in description["sizes"]]
        expected = sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))
        if flat.shape != (expected,) or flat.dtype.name != description["dtype"]:
            raise ValueError(f"{flat.size} parameters of {flat.dtype} for sizes {sizes} of {description['dtype']}")
        if not np.isfinite(flat).all():
            raise ValueError("the parameters are not finite")
        net = cls(sizes, description["activation"], "zeros", description["dropout"], description["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFormatError(f"the network in the file cannot be made: {error}") from None
    net.flat[...] = flat
    return net
