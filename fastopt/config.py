"""What fastopt found on this machine."""

from ._dispatch import ISA, _cpu
from .boundary import available_threads

__version__ = "0.1.0"


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
    print(f"fastopt {__version__}")
    print(f"instruction set: {ISA} (supported: {', '.join(_cpu.SUPPORTED)})")
    print(f"OpenMP: {'yes' if _cpu.OPENMP else 'no: dense_forward and dense_backward run on one thread'}")
    print(f"threads available: {available_threads()}")
    if ISA == "baseline":
        print("the baseline path has no fused multiply-add: its results may differ from those of the other paths")
