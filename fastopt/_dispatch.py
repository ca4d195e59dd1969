"""Which compiled core runs here: one instruction set, chosen at import, one module a dtype."""

import importlib
import os

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
_cores = {
    dtype: importlib.import_module(f"fastopt._core_{ISA}_{dtype}") for dtype in ("float32", "float64")
}


def core(dtype):
    """The core module of a dtype."""
    return _cores[str(dtype)]


def show_config():
    """Prints the version, the instruction set in use, those this machine has, and the threads available.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.show_config()  # doctest: +SKIP
    fastopt 0.1.0
    instruction set: avx512 (supported: baseline, avx2, avx512)
    ...
    """
    from . import __version__
    from .boundary import available_threads

    print(f"fastopt {__version__}")
    print(f"instruction set: {ISA} (supported: {', '.join(_cpu.SUPPORTED)})")
    print(f"OpenMP: {'yes' if _cpu.OPENMP else 'no: one thread only'}")
    print(f"threads available: {available_threads()}")
    if ISA == "baseline":
        print("the baseline path has no fused multiply-add: its results may differ from those of the other paths")
