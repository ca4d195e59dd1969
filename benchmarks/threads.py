"""python -m benchmarks.threads: what two threads cost and gain when they are not alone.

First each workload's epoch on one thread and on two, on an idle machine and beside a process that keeps the second
processor busy. Promised is at most 1.25 of "2, beside / 1, alone"; the trained bits must be equal.

Then a float32 product of 128 x 128 matrices in NumPy and PyTorch: right after another one, and right after a fit on
one thread and on two. Late is what takes 0.2 ms more than the median alone; after two threads there should be no more
of it than after one.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time

import numpy as np

from . import common
from .common import WARM_UP, both, check_losses, duration, machine, n_processors
from .libraries import Fastopt
from .worker import Failed, Worker

LATE = 2e-4


@contextlib.contextmanager
def busy_neighbour():
    """A function that sets whether the second processor is kept busy."""
    # which ends with this process, however that ends
    spin = (f"import os\nos.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[1:2])\n"
            f"while os.getppid() == {os.getpid()}: pass")
    process = subprocess.Popen([sys.executable, "-c", spin])

    def busy(wanted):
        process.send_signal(signal.SIGCONT if wanted else signal.SIGSTOP)
        time.sleep(0.05)

    try:
        busy(False)
        yield busy
    finally:
        process.kill()
        process.wait()


def contention(workload, repeats, busy):
    """{(threads, whether beside the busy process): seconds of each repeat}"""
    with contextlib.ExitStack() as stack:
        workers = {n: stack.enter_context(Worker("libraries.Fastopt", workload, n, threads=n)) for n in (1, 2)}
        for _ in range(WARM_UP):
            check_losses({n: worker("next_epoch") for n, worker in workers.items()})
        if workers[1]("bits") != workers[2]("bits"):
            raise ValueError(f"{workload}: one thread and two have trained different bits")
        seconds = {(n, beside): [] for beside in (False, True) for n in workers}
        for _ in range(repeats):
            for beside in (False, True):
                busy(beside)
                for n, worker in workers.items():
                    seconds[n, beside].append(worker("turn"))
            busy(False)
        return seconds


class Stall:
    """Served by a worker: products of a library after nothing and after a fit."""

    def __init__(self, library):
        a = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
        if library == "PyTorch":
            import torch

            tensor = torch.from_numpy(a)
            self.product = lambda: torch.mm(tensor, tensor)
        else:
            self.product = lambda: a @ a
        if not np.allclose(np.asarray(self.product()), a.astype(np.float64) @ a, atol=1e-3):
            raise ValueError("the product is wrong")
        self.fits = {f"after a fit, n_threads={n}": Fastopt("W6", n).next_epoch for n in (1, 2)}

    def seconds(self, repeats):
        before = {"alone": self.product} | self.fits
        seconds = {name: [] for name in before}
        for _ in range(repeats):
            for name, run in before.items():
                run()
                start = time.perf_counter()
                self.product()
                seconds[name].append(time.perf_counter() - start)
        return seconds


def ratio(a, b):
    """Of the minima, and of the medians."""
    return f"{min(a) / min(b):>7.2f} {statistics.median(a) / statistics.median(b):>5.2f}"


def print_contention(workloads, repeats):
    titles = ["1, alone", "1, beside", "2, alone", "2, beside"]
    print("One epoch, threads and company: minimum and median; ratios of minima and of medians\n")
    print(f"{'':4}" + "".join(f"{title:>26}" for title in titles)
          + f"{'1, alone / 2, alone':>22}{'2, beside / 1, alone':>22}")
    with busy_neighbour() as busy:
        for workload in workloads:
            seconds = contention(workload, repeats, busy)
            one, two, beside = seconds[1, False], seconds[2, False], seconds[2, True]
            columns = "".join(both(times) for times in (one, seconds[1, True], two, beside))
            print(f"{workload:4}{columns}{ratio(one, two):>22}{ratio(beside, one):>22}", flush=True)


def print_stalls(repeats):
    print(f"\nA float32 product of 128 x 128 matrices, {repeats} times\n")
    print(f"{'':9}{'':30}{'minimum':>13}{'median':>13}{'maximum':>13}{'late':>6}")
    for library in ("NumPy", "PyTorch"):
        try:
            with Worker("threads.Stall", library, threads=2) as worker:
                seconds = worker("seconds", repeats)
        except Failed as error:
            print(f"{library} is left out: {error}")
            continue
        usual = statistics.median(seconds["alone"])
        for name, times in seconds.items():
            late = sum(t > usual + LATE for t in times)
            print(f"{library:9}{name:30}{both(times)}{duration(max(times)):>13}{late:>6}")


def main(argv=None):
    parser = common.parser("benchmarks.threads", __doc__)
    parser.add_argument("--products", type=int, default=100)
    options = parser.parse_args(argv)
    if not hasattr(os, "sched_setaffinity") or n_processors() < 2:
        return "needs two processors, and a system that pins processes to them"
    print(machine())
    print_contention(options.only, options.repeats)
    print_stalls(options.products)


if __name__ == "__main__":
    sys.exit(main())
