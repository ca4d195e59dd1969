"""python -m benchmarks: one epoch of each workload in every library installed, interleaved.

Each library runs in a process of its own, pinned to as many processors as it has threads; with --threads 2 the others
run with one and with two, and the better one counts. The first two epochs are a warm-up, in which the losses of all
must agree; then the libraries take turns, and after each epoch of fastopt comes a loop of independent fused
multiply-adds on one processor, whose best rate is the peak (on two threads, twice that).

The ratio is the best other library's minimum divided by fastopt's. GFLOP/s count the operations of the products alone;
"~" marks a time extrapolated from a slice of the epoch.
"""

import contextlib
import importlib.util
import json
import sys
import time

from . import common
from .common import WARM_UP, both, check_losses, duration, machine, names_of
from .libraries import LIBRARIES
from .worker import Failed, Worker
from .workloads import WORKLOADS

PAUSE = 0.03  # seconds


def compare(workload, libraries, threads, repeats):
    """[{library, threads, version, extrapolated, seconds, peak}]; an error where the libraries' losses differ."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for library in libraries:
            for n in LIBRARIES[library].thread_counts(threads):
                try:
                    worker = Worker(f"libraries.{LIBRARIES[library].__name__}", workload, n, threads=n)
                    workers[f"{library} ({n})"] = library, n, stack.enter_context(worker)
                except Failed as error:
                    print(f"   {library} ({n}) is left out: {error}")
        for _ in range(WARM_UP):
            answers = {}
            for who, (_, _, worker) in list(workers.items()):
                try:
                    answers[who] = worker("next_epoch")
                except Failed as error:
                    print(f"   {who} is left out: {error}")
                    del workers[who]
            check_losses(answers)
        rows = {
            who: {"library": library, "threads": n, "version": worker("about"), "seconds": [], "peak": None,
                  "extrapolated": LIBRARIES[library].extrapolated}
            for who, (library, n, worker) in workers.items()
        }
        for _ in range(repeats):
            for who, (library, _, worker) in workers.items():
                # the threads of the library before may still look for work
                time.sleep(PAUSE)
                rows[who]["seconds"].append(worker("turn"))
                if hasattr(LIBRARIES[library], "peak"):
                    rows[who]["peak"] = max(rows[who]["peak"] or 0, worker("peak"))
        return list(rows.values())


def summary(rows, operations):
    """fastopt's row, the best other's, and: ratio, fraction of the peak; None for what was not run."""
    ours = next((row for row in rows if row["library"] == "fastopt"), None)
    others = [row for row in rows if not row["library"].startswith("fastopt")]
    best = min(others, key=lambda row: min(row["seconds"]), default=None)
    ratio = min(best["seconds"]) / min(ours["seconds"]) if ours and best else None
    return ours, best, ratio, fraction_of_peak(ours, operations) if ours else None


def fraction_of_peak(row, operations):
    return operations / min(row["seconds"]) / (row["peak"] * row["threads"]) if row["peak"] else None


def percent(fraction):
    return "" if fraction is None else f"{fraction:.0%}"


def print_rows(rows, operations):
    ours = summary(rows, operations)[0]
    print(f"   {'library':17}{'threads':>8}{'minimum':>14}{'median':>13}{'/ fastopt':>12}{'GFLOP/s':>9}{'of peak':>9}")
    for row in rows:
        least = min(row["seconds"])
        mark = "~" if row["extrapolated"] else " "
        by_ours = f"{least / min(ours['seconds']):,.2f}" if ours else ""
        print(f"   {row['library']:17}{row['threads']:>8}{mark}{both(row['seconds'])}{by_ours:>12}"
              f"{operations / least / 1e9:>9.2f}{percent(fraction_of_peak(row, operations)):>9}   {row['version']}")


def print_summary(results, threads):
    print(f"\n{'':9}{'fastopt':>13}   {'best other':22}{'':>13}{'ratio':>8}{'of peak':>9}{'peak':>16}")
    for workload, result in results.items():
        ours, best, ratio, fraction = summary(result["rows"], result["operations"])
        if ours and best:
            print(f"{workload:9}{duration(min(ours['seconds'])):>13}   {best['library']} ({best['threads']})".ljust(47)
                  + f"{duration(min(best['seconds'])):>13}{ratio:>8.2f}{percent(fraction):>9}"
                  f"{ours['peak'] * threads / 1e9:>8.1f} GFLOP/s")


def plot(results, path):
    """Bars of GFLOP/s, a group a workload."""
    from matplotlib.figure import Figure

    best = {workload: {} for workload in results}
    for workload, result in results.items():
        for row in result["rows"]:
            rate = result["operations"] / min(row["seconds"]) / 1e9
            best[workload][row["library"]] = max(rate, best[workload].get(row["library"], 0))
    libraries = [library for library in LIBRARIES if any(library in rates for rates in best.values())]
    figure = Figure(figsize=(6 + 1.2 * len(results), 4.5), layout="constrained")
    axes = figure.subplots()
    for i, library in enumerate(libraries):
        at = [k + 0.8 * ((i + 0.5) / len(libraries) - 0.5) for k, rates in enumerate(best.values()) if library in rates]
        rates = [rates[library] for rates in best.values() if library in rates]
        extrapolated = LIBRARIES[library].extrapolated
        axes.bar(at, rates, 0.8 / len(libraries), label=library + (" (extrapolated)" if extrapolated else ""))
    for k, result in enumerate(results.values()):
        ours = summary(result["rows"], result["operations"])[0]
        if ours:
            peak = ours["peak"] * ours["threads"] / 1e9
            axes.plot([k - 0.4, k + 0.4], [peak, peak], "k:", label="peak, float32" if k == 0 else None)
    axes.set(yscale="log", ylabel="GFLOP/s of the products")
    axes.set_xticks(range(len(results)), results)
    figure.suptitle(machine(), fontsize="small")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)


def main(argv=None):
    parser = common.parser("benchmarks", __doc__)
    parser.add_argument("--libraries", type=names_of(LIBRARIES), default=list(LIBRARIES),
                        help=f"some of {','.join(LIBRARIES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file for all times")
    parser.add_argument("--plot", help="file for a picture with bars")
    options = parser.parse_args(argv)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    print(f"{machine()}; {options.threads} thread(s), {options.repeats} repeats")
    results, failed = {}, []
    for workload in options.only:
        work = WORKLOADS[workload]
        print(f"\n{workload}: {work}", flush=True)
        try:
            rows = compare(workload, options.libraries, options.threads, options.repeats)
        except (ValueError, Failed) as error:
            failed.append(workload)
            print(f"   left out: {error}")
            continue
        print_rows(rows, work.operations)
        results[workload] = {"work": str(work), "operations": work.operations, "rows": rows}
    print_summary(results, options.threads)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine(), "threads": options.threads, "workloads": results}, file, indent=1)
    if options.plot:
        plot(results, options.plot)
    return f"left out: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main())
