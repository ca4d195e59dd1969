"""python -m benchmarks.memory: the memory that a fit adds at its peak.

Each case is a process of its own, in which a first fit has brought up the threads and touched the velocity; added is
the highest resident memory of a second one, less what was resident before. Promised is one copy of the parameters and
of the velocity, one more of the parameters with restore_best, the order of the samples, and a few batches of the widest
layer per thread; never a copy of X. The last column is what remains of "added" in such batches. The kernel counts
pages in bundles, so a megabyte more or less says nothing.
"""

import ctypes
import sys

import numpy as np

from . import common
from .common import machine
from .libraries import Fastopt
from .worker import Failed, Worker

LAYOUTS = {
    "float32": lambda X: X, "float64": lambda X: X.astype(np.float64), "uint8": lambda X: (X * 255).astype(np.uint8),
    "float16": lambda X: X.astype(np.float16), "float32, Fortran order": np.asfortranarray,
    "float32, every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
}
CASES = [
    ("W4", "float32", False), ("W4", "float32", True),
    *(("W1", layout, False) for layout in LAYOUTS), ("W1", "float32", True),
]


def resident(name):
    """VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


class Memory(Fastopt):
    """Served by a worker."""

    def __init__(self, workload, threads, layout, restore_best):
        super().__init__(workload, threads)
        self.X, self.restore_best = LAYOUTS[layout](self.X), restore_best

    def measure(self):
        import fastopt as fo

        rule = fo.EarlyStopping(monitor="loss", restore_best=True) if self.restore_best else None
        batch = self.work.batch
        self.trainer.fit(self.X[:batch], self.y[:batch], epochs=1)
        # what the heap keeps for later would hide what the fit takes
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM
        before = resident("VmRSS")
        self.trainer.fit(self.X, self.y, epochs=3, early_stopping=rule)
        parameters = self.trainer.net.flat.nbytes
        sizes = {
            "added": resident("VmHWM") - before,
            "X": self.X.size * self.X.itemsize,
            "parameters": parameters,
            "velocity": parameters if self.work.momentum else 0,
            "order": 8 * self.work.n,
            "batch": self.work.batch * max(self.work.sizes) * self.trainer.net.dtype.itemsize,
        }
        promised = parameters * (1 + self.restore_best) + sizes["velocity"] + sizes["order"]
        return sizes | {"batches": (sizes["added"] - promised) / sizes["batch"]}


def main(argv=None):
    parser = common.parser("benchmarks.memory", __doc__, only=dict.fromkeys(case[0] for case in CASES), repeats=None)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    print(f"{machine()}; {options.threads} thread(s), sizes in MB\n")
    names = ("added", "X", "parameters", "velocity", "order", "batch", "batches")
    print(f"{'':45}" + "".join(f"{name:>11}" for name in names))
    for workload, layout, restore_best in CASES:
        if workload not in options.only:
            continue
        what = f"{workload}, X {layout}" + (", restore_best" if restore_best else "")
        try:
            with Worker("memory.Memory", workload, options.threads, layout, restore_best,
                        threads=options.threads) as worker:
                sizes = worker("measure")
        except Failed as error:
            print(f"{what:45} is left out: {error}")
            continue
        batches = sizes.pop("batches")
        print(f"{what:45}" + "".join(f"{size / 1e6:>11.2f}" for size in sizes.values()) + f"{batches:>11.1f}",
              flush=True)


if __name__ == "__main__":
    sys.exit(main())
