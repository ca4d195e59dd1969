"""Ctrl-C and stop at random moments of long fits: where they end and what comes after."""

import itertools
import os
import signal
import statistics
import threading
import time

import numpy as np
import pytest

import fastopt as fo

RUNS = {  # sizes, batch, samples: batches of microseconds and of milliseconds
    "tiny": ([20, 16, 2], 8, 20_000),
    "wide": ([256, 512, 512, 10], 256, 1_500),
}


def start(run, n_threads):
    sizes, batch_size, n = RUNS[run]
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, sizes[0])).astype(np.float32), rng.integers(0, sizes[-1], n)
    trainer = fo.Trainer(
        fo.MLP(sizes, dropout=0.1, seed=1), loss="softmax_cross_entropy", batch_size=batch_size, seed=2,
        optimizer=fo.SGD(fo.schedules.InverseScaling(0.01), momentum=0.9, nesterov=True, l1=1e-6), n_threads=n_threads)

    def fit(epochs):
        trainer.fit(X, y, epochs=epochs, early_stopping=fo.EarlyStopping("loss", patience=10**6, restore_best=False))

    return trainer, fit


def bits(trainer):
    return trainer.net.flat.tobytes(), trainer._moments.tobytes(), trainer.history.loss, trainer.history.accuracy


class Busy:
    """A Python thread that never gives the lock away by itself."""

    def __enter__(self):
        self.on = True
        self.thread = threading.Thread(target=self.count)
        self.thread.start()

    def count(self):
        for _ in itertools.takewhile(lambda _: self.on, itertools.count()):
            pass

    def __exit__(self, *_):
        self.on = False
        self.thread.join()


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("how", ["SIGINT", "stop"])
@pytest.mark.parametrize("times", [pytest.param(100, marks=pytest.mark.thorough), 3])
def test_cut_at_random_moments(run, n_threads, busy, how, times):
    """Every one ends the fit at a whole batch; together the pieces have the bits of the fit that nobody cut.

    Prints how long each took.
    """
    trainer, fit = start(run, n_threads)
    moments = np.random.default_rng(3).uniform(0, 0.1, times)
    took, sent = [], None

    def cut(after):
        nonlocal sent
        while trainer._engine is None:  # what comes before a fit is not kept for it
            time.sleep(1e-4)
        time.sleep(after)
        sent = time.monotonic()
        if how == "stop":
            trainer.stop()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    with Busy() if busy else threading.Lock():
        for moment in moments:
            thread = threading.Thread(target=cut, args=(moment,))
            try:
                thread.start()
                fit(10**6)
            except KeyboardInterrupt:
                assert how == "SIGINT"
            took.append(time.monotonic() - sent)
            thread.join()
            assert len(trainer.history.loss) == trainer.epoch
    fit(1)
    whole, fit = start(run, 1)
    fit(trainer.epoch)
    assert bits(trainer) == bits(whole)
    print(f"{how}, {run}, {n_threads} threads{', busy' if busy else ''}: {times} times, ms: median "
          f"{1e3 * statistics.median(took):.1f}, most {1e3 * max(took):.1f}; a batch "
          f"{1e3 * min(whole.history.seconds) * RUNS[run][1] / RUNS[run][2]:.3f}; {trainer.epoch} epochs")
