"""python -m benchmarks.commits BASE HEAD: did a change cost anything?

BASE and HEAD are revisions of this repository or folders with checkouts. Each is built with pip into a temporary
folder, then both train the workloads in processes of their own, in turns, and in fresh processes several times, for
where memory lies differs from process to process. Printed are minimum and median of each, and head by base: the ratio
of the minima and the median ratio of neighbouring epochs. The verdict is "slower" or "faster" where both say so by more
than 3 %; try it with the same revision twice to see the noise. Bits are equal if both have trained the same parameters.
The exit status is 1 if a workload is slower.

    python -m benchmarks.commits HEAD~1 HEAD --only W1,L2
"""

import contextlib
import io
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from . import common
from .common import WARM_UP, both, check_losses, machine
from .worker import Worker

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 4
NOISE = 0.03


def build(what, folder):
    """Installs a revision or a checkout into folder / "installed"; returns that."""
    source, target = folder / "source", folder / "installed"
    if Path(what).is_dir():
        # what is built there must not be taken for what its source says
        shutil.copytree(what, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info"))
    else:
        archive = subprocess.run(["git", "-C", ROOT, "archive", what], check=True, capture_output=True).stdout
        tarfile.open(fileobj=io.BytesIO(archive)).extractall(source, filter="data")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, source],
                   check=True)
    return target


def compare(workload, paths, threads, repeats):
    """([base's seconds], [head's seconds]) of the same repeats, and whether the bits are equal."""
    seconds = [], []
    for process in range(PROCESSES):
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker("libraries.Fastopt", workload, threads, threads=threads, path=path))
                       for path in paths]
            for path, worker in zip(paths, workers, strict=True):
                if not worker("folder").startswith(str(path)):
                    raise ImportError(f"another fastopt comes before the one built: {worker('folder')}")
            for _ in range(WARM_UP):
                check_losses({which: worker("next_epoch") for which, worker in enumerate(workers)})
            equal = workers[0]("bits") == workers[1]("bits")
            for turn, _ in enumerate(range(process, repeats, PROCESSES)):
                first = (process + turn) % 2
                for which in first, 1 - first:
                    seconds[which].append(workers[which]("turn"))
    return *seconds, equal


def verdict(*ratios):
    return "slower" if min(ratios) > 1 + NOISE else "faster" if max(ratios) < 1 / (1 + NOISE) else "same"


def main(argv=None):
    parser = common.parser("benchmarks.commits", __doc__)
    parser.add_argument("base")
    parser.add_argument("head")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    slower = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"building {options.base} and {options.head}", flush=True)
        paths = [build(what, Path(folder, name)) for name, what in (("base", options.base), ("head", options.head))]
        print(f"{machine()}; {options.threads} thread(s), {options.repeats} repeats\n")
        print(f"{'':4}{'base: min':>13}{'median':>13}{'head: min':>13}{'median':>13}{'by minima':>11}{'in turn':>9}")
        for workload in options.only:
            base, head, equal = compare(workload, paths, options.threads, options.repeats)
            ratios = min(head) / min(base), statistics.median(h / b for b, h in zip(base, head, strict=True))
            answer = verdict(*ratios)
            if answer == "slower":
                slower.append(workload)
            print(f"{workload:4}{both(base)}{both(head)}{ratios[0]:>11.3f}{ratios[1]:>9.3f}   {answer}, "
                  f"{'equal' if equal else 'other'} bits", flush=True)
    return f"slower: {', '.join(slower)}" if slower else None


if __name__ == "__main__":
    sys.exit(main())
