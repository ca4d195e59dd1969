"""python -m benchmarks: one epoch of each workload in every library installed, interleaved.

Each library runs in a process of its own, pinned to as many processors as it has threads; the first two epochs are a
warm-up, in which the losses of all libraries must agree, then the libraries take turns. Printed are minimum and
median, and the ratio of the best other library's minimum to fastopt's.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys

from .libraries import LIBRARIES
from .workloads import WORKLOADS

WARM_UP = 2


class Worker:
    def __init__(self, library, workload, threads):
        command = [sys.executable, "-m", "benchmarks.worker", library, workload, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline() or '{"missing": "its process ended"}')

    def epoch(self):
        print(file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(workload, libraries, threads, repeats):
    """{library: seconds of each epoch}; an error where the libraries' losses differ."""
    workers = {library: Worker(library, workload, threads) for library in libraries}
    try:
        for library in [library for library, worker in workers.items() if "missing" in worker.about]:
            print(f"   {library} is left out: {workers.pop(library).about['missing']}")
        for _ in range(WARM_UP):
            losses = {library: worker.epoch()["loss"] for library, worker in workers.items()}
            spread = max(losses.values()) - min(losses.values())
            # float32 in another order of summation
            if spread > 1e-3 * max(losses.values()):
                raise ValueError(f"the losses differ, so the work does: {losses}")
        seconds = {library: [] for library in workers}
        for _ in range(repeats):
            for library, worker in workers.items():
                seconds[library].append(worker.epoch()["seconds"])
        return seconds, {library: worker.about["version"] for library, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, comma-separated")
    parser.add_argument("--libraries", default=",".join(LIBRARIES), help="libraries, comma-separated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", help="file for the times")
    options = parser.parse_args(argv)
    print(f"{processor()}, {options.threads} thread(s), Python {platform.python_version()}")
    results, failed = {}, []
    for workload in options.only.split(","):
        work = WORKLOADS[workload]
        print(f"\n{workload}: {work}")
        try:
            seconds, versions = compare(workload, options.libraries.split(","), options.threads, options.repeats)
        except ValueError as error:
            failed.append(workload)
            print(f"   left out: {error}")
            continue
        best_peer = min((min(t) for library, t in seconds.items() if library != "fastopt"), default=None)
        for library, times in seconds.items():
            ratio = f"   x {best_peer / min(times):.2f} of the best other" if library == "fastopt" and best_peer else ""
            print(f"   {library:17} min {min(times) * 1e3:9.2f} ms   median {statistics.median(times) * 1e3:9.2f} ms"
                  f"   {work.operations / min(times) / 1e9:6.1f} GFLOP/s{ratio}   [{versions[library]}]")
        results[workload] = {"work": str(work), "seconds": seconds, "versions": versions}
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"processor": processor(), "threads": options.threads, "workloads": results}, file, indent=1)
    return f"the losses differ: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main())
