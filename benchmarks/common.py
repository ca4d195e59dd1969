"""What the commands of this folder share."""

import argparse
import os
import platform
import statistics
import time

from .workloads import WORKLOADS

WARM_UP = 2  # epochs


def parser(prog, doc, *, only=WORKLOADS, repeats=20):
    """A command's parser; --only and --repeats unless they are None."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}", description=doc,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    if only is not None:
        made.add_argument("--only", type=names_of(only), default=list(only), help=f"some of {','.join(only)}")
    if repeats is not None:
        made.add_argument("--repeats", type=int, default=repeats)
    return made


def names_of(known):
    def parse(text):
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; expected some of {', '.join(known)}")
        return text.split(",")
    return parse


def check_losses(answers):
    """An error where the losses of an epoch differ by more than float32 in another order of summation lets them."""
    groups = [{who: answer["loss"] for who, answer in answers.items() if "expected" not in answer}]
    groups += [{who: answer["loss"], "expected": answer["expected"]}
               for who, answer in answers.items() if "expected" in answer]
    for losses in groups:
        values = list(losses.values())
        # written so that nan differs
        if not all(abs(value - values[0]) <= 1e-3 * values[0] for value in values):
            raise ValueError(f"the losses differ, so the work does: {losses}")


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def n_processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine():
    return f"{processor()}, {n_processors()} processor(s), {platform.system()}, Python {platform.python_version()}"


def interleaved(runs, repeats, least=1e-3):
    """{name: seconds of each repeat} of runs that take turns; one shorter than `least` is repeated in a loop."""
    loops = {}
    for name, run in runs.items():
        run()
        loops[name] = max(1, int(least / seconds_of(run)))
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, loops[name]))
    return seconds


def seconds_of(run, loops=1):
    start = time.perf_counter()
    for _ in range(loops):
        run()
    return (time.perf_counter() - start) / loops


def duration(seconds):
    unit, factor = ("s ", 1) if seconds >= 10 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * factor:,.2f} {unit}"


def both(seconds):
    """Minimum and median."""
    return f"{duration(min(seconds)):>13}{duration(statistics.median(seconds)):>13}"
