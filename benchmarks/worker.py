"""A process of its own for one library and one workload: reads a line an epoch, answers seconds and loss as JSON."""

import json
import os
import sys
import time

library, workload, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(threads)
if hasattr(os, "sched_setaffinity"):
    # JAX heeds nothing else
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

from .libraries import LIBRARIES  # noqa: E402  the variables above are read at import
from .workloads import WORKLOADS  # noqa: E402

work = WORKLOADS[workload]
try:
    trainer = LIBRARIES[library](work, threads)
except ImportError as error:
    print(json.dumps({"missing": str(error)}), flush=True)
    sys.exit()
print(json.dumps({"version": trainer.version}), flush=True)
for epoch, _ in enumerate(sys.stdin):
    order = work.order(epoch)
    start = time.perf_counter()
    loss = trainer.epoch(order)
    print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss}), flush=True)
