"""Which compiled core runs here: one instruction set, chosen at import, one module a dtype."""

import importlib
import os

import numpy as np

try:
    from . import _cpu
except ImportError as error:
    raise ImportError(
        "fastopt's compiled modules are not here: this is its source tree. Install it with `pip install -e .`, or "
        "import the installed package from another folder"
    ) from error

#: The paths, best last; a wheel for another architecture than x86-64 has the baseline alone.
PATHS = ("baseline", "avx2", "avx512")


def _choose():
    supported = [path for path in PATHS if path in _cpu.SUPPORTED]
    forced = os.environ.get("FASTOPT_ISA")
    if not forced:
        return supported[-1]
    if forced not in supported:
        raise ImportError(f"FASTOPT_ISA={forced!r} cannot run here: expected one of {', '.join(supported)}")
    return forced


ISA = _choose()
_cores = {}
for _name in ("float32", "float64"):
    _cores[_name] = _cores[np.dtype(_name)] = importlib.import_module(f"fastopt._core_{ISA}_{_name}")


def core(dtype):
    """The core module of a dtype."""
    return _cores[dtype]
