"""An object in a process of its own, pinned to as many processors as it may have threads.

`Worker("module.Class", *arguments, threads=n)` makes benchmarks.module.Class(*arguments) there, `worker(method,
*arguments)` answers what its method returns; questions and answers are lines of JSON.
"""

import importlib
import json
import os
import subprocess
import sys


class Failed(Exception):
    """What went wrong in a worker, in a line."""


class Worker:
    def __init__(self, maker, *arguments, threads, path=None):
        """`path` is a folder with the fastopt to use in place of the one that this process imports."""
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads)) | ({"PYTHONPATH": str(path)} if path else {})
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.worker", str(threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        try:
            self(maker, *arguments)
        except BaseException:
            self.__exit__()
            raise

    def __call__(self, method, *arguments):
        try:
            print(json.dumps([method, *arguments]), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise Failed("its process ended") from None
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # it has nothing to save
        self.process.kill()
        self.process.wait()


def serve(threads):
    if hasattr(os, "sched_setaffinity"):
        # JAX heeds nothing else
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # what a library prints is no answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served = None
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        value = None
        try:
            if served is None:
                module, name = name.split(".")
                served = getattr(importlib.import_module(f"benchmarks.{module}"), name)(*arguments)
            else:
                value = getattr(served, name)(*arguments)
            answer = {"value": value}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
