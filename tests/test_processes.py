"""Forks, limits, and other threads: the same bits or a clear error, and never a wait without end.

Each scenario is a function below that a process of its own runs, `python test_processes.py SCENARIO`: what it breaks
is not the suite's, and a process that hangs is killed.
"""

import collections
import contextlib
import ctypes
import hashlib
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings

import numpy as np
import pytest
from pages import between

import fastopt as fo
from fastopt import boundary

THREADS = (1, 2, 3, 4, 8, 17)
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def run(name, *arguments, timeout=600, **environment):
    """What a scenario prints, in a process of its own; what is left of it and of its children is killed."""
    command = [sys.executable, __file__, name, *map(str, arguments)]
    # not pipes: a child that hangs would keep them open
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            code = child.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        output.seek(0)
        errors.seek(0)
        assert code == 0, f"exit {code}: {errors.read()[-2000:]}"
        return output.read()


def numbers(*shape):
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape)


TRAININGS = [
    {"sizes": [37, 41, 5], "loss": "softmax_cross_entropy", "optimizer": fo.SGD(0.1, momentum=0.9)},
    {"sizes": [131, 1], "loss": "hinge", "optimizer": fo.SGD(0.1, l1=0.01)},
    {"sizes": [19, 67, 33, 2], "loss": "mse", "optimizer": fo.Adam(0.01, clip_norm=0.5), "dropout": 0.25},
]


def bits(n_threads):
    """A hash of what some trainings, forward passes and dense kernels give."""
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    digest = hashlib.sha256()
    for training in TRAININGS:
        options = training.copy()
        sizes, dropout = options.pop("sizes"), options.pop("dropout", 0.0)
        for dtype in ("float32", "float64"):
            X, net = numbers(301, sizes[0]).astype(dtype), fo.MLP(sizes, dropout=dropout, dtype=dtype, seed=0)
            y = X[:, : sizes[-1]] if options["loss"] == "mse" else X[:, 0] > 0
            y = y * 2 - 1 if options["loss"] == "hinge" else y * 1
            fo.Trainer(net, batch_size=97, seed=0, n_threads=n_threads, **options).fit(X, y, epochs=2)
            out = fo.dense_forward(X, net.weights[0], net.biases[0], n_threads=n_threads)
            gradients = fo.dense_backward(out, X, net.weights[0], n_threads=n_threads)
            for array in (net.flat, net.forward(X, n_threads=n_threads), out, *gradients):
                digest.update(array.tobytes())
    return digest.hexdigest()


def in_a_child(call):
    """Whether `call` is true in a forked child, which an alarm ends if it waits for ever."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)
        good = False
        with contextlib.suppress(BaseException):
            good = call()
        os._exit(not good)
    return os.waitpid(child, 0)[1] == 0


def in_threads(calls):
    """What the calls return, each in a thread, all at once."""
    results, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def call(k):
        barrier.wait()
        results[k] = calls[k]()

    threads = [threading.Thread(target=call, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def neighbours(request):
    """So many processes beside this one on every processor, that never sleep."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(request.param * os.cpu_count())
    ]
    yield
    for process in processes:
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------------------------------ processes


@scenario
def fork(count):
    """Parent, child, grandchild and parent again, before and after each has threads."""
    expected = bits(1)
    for k in range(int(count)):
        n_threads = THREADS[k % len(THREADS)]

        def same(n=n_threads):
            return bits(n) == expected

        assert in_a_child(lambda same=same: same() and in_a_child(same)), n_threads
        assert same(), n_threads


@scenario
def fork_beside_threads(count):
    """While two other threads are in a fit and in a dense kernel."""
    expected, done = bits(1), threading.Event()
    X, net = numbers(4000, 50), fo.MLP([50, 64, 2], dtype="float64")
    trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.01), n_threads=4, seed=0)

    def fit():
        return trainer.fit(X, X[:, :2], epochs=1)

    def child():
        fit()  # which the thread that is in it, and not here, does not keep from beginning
        return bits(3) == expected

    def until_done(call):
        while not done.is_set():
            call()

    def forks():
        assert bits(3) == expected  # the thread that forks has a team, which its children have not
        try:
            return [k for k in range(int(count)) if not in_a_child(child)]
        finally:
            done.set()

    dense = lambda: fo.dense_forward(X, net.weights[0], n_threads=4)  # noqa: E731
    lost = in_threads([forks, lambda: until_done(fit), lambda: until_done(dense)])[0]
    assert lost == []
    assert bits(3) == expected


@scenario
def fork_in_a_signal_handler(count):
    """The child comes back into a step whose other threads it does not have: an error, not a wait for ever."""
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    X, net, children = numbers(4000, 50), fo.MLP([50, 64, 2], dtype="float64", seed=0), []

    def fork_here(*_):
        children.append(os.fork())
        if children[-1] == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)

    def trained(handler=signal.SIG_IGN):
        trainer = fo.Trainer(net.copy(), loss="mse", optimizer=fo.SGD(0.01), batch_size=400, seed=0, n_threads=4)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        trainer.fit(X, X[:, :2], epochs=100)
        return trainer.net.flat.tobytes()

    expected = trained()
    for _ in range(int(count)):
        try:
            same = trained(fork_here) == expected
        except RuntimeError as error:
            assert 0 in children and "forked" in str(error), error
            same = trained() == expected
        if 0 in children:  # this is the child
            os._exit(not same)
        assert same
    assert len(children) == int(count)
    assert [child for child in children if os.waitpid(child, 0)[1] != 0] == []


@scenario
def workers(kind, count):
    """multiprocessing's pools and joblib's, from a parent that has threads."""
    expected = bits(1)
    assert bits(4) == expected
    jobs = THREADS * int(count)
    if kind == "loky":
        from joblib import Parallel, delayed

        results = Parallel(n_jobs=2, backend="loky")(delayed(bits)(n) for n in jobs)
    else:
        with multiprocessing.get_context(kind).Pool(2) as pool:
            results = pool.map(bits, jobs)
    assert set(results) == {expected}
    assert bits(4) == expected


PROCESSES = {
    "fork": (12, 500),
    "fork_beside_threads": (20, 500),
    "fork_in_a_signal_handler": (5, 100),
    "workers fork": (1, 20),
    "workers spawn": (1, 20),
    "workers loky": (1, 20),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_other_processes(name):
    """A child process, whichever way it began, trains and computes the parent's bits, and the parent goes on."""
    run(*name.split(), PROCESSES[name][0])


@pytest.mark.thorough
@pytest.mark.parametrize("name", PROCESSES)
def test_many_other_processes(name):
    """The same, some hundred times."""
    run(*name.split(), PROCESSES[name][1], timeout=7200)


@pytest.mark.parametrize("neighbours", [2], indirect=True)
def test_forked_children_on_a_loaded_machine(neighbours):
    """The single thread's bits on 1, 2, 3, 4, 8 and 17 threads, where a thread may wait long for a processor."""
    run("fork", len(THREADS))


# ---------------------------------------------------------------------------------------- threads that do not come

# pthread_create as on a system that has room for `thread_limit` more threads, but for those already there
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
int thread_limit = 1 << 30, threads_alive = 0, threads_refused = 0;
struct start { void *(*function)(void *); void *argument; };
static void ended(void *unused) { __atomic_sub_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST); }
static void *run(void *argument) {
    struct start start = *(struct start *) argument;
    void *result;
    free(argument);
    pthread_cleanup_push(ended, NULL);
    result = start.function(start.argument);
    pthread_cleanup_pop(1);
    return result;
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*function)(void *), void *argument) {
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    struct start *start = malloc(sizeof *start);
    *start = (struct start) {function, argument};
    if (__atomic_add_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST) > thread_limit || create(thread, attr, run, start)) {
        __atomic_sub_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&threads_refused, 1, __ATOMIC_SEQ_CST);
        free(start);
        return EAGAIN;
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"there is no C compiler {compiler!r}: no pthread_create that fails can be built")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("another library already stands before the C library's pthread_create")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return str(folder / "shim.so")


def dense_bits(n_threads):
    """Of dense_forward, then of dense_backward on more threads, and of dense_forward in the other dtype on as many."""
    x, weight = numbers(64, 150), numbers(300, 150)
    results = [fo.dense_forward(x, weight, n_threads=n_threads)]
    results += fo.dense_backward(results[0], x, weight, n_threads=n_threads + 2)
    fo.dense_forward(x, weight, n_threads=2)
    results.append(fo.dense_forward(x.astype("float32"), weight.astype("float32"), n_threads=n_threads + 2))
    return b"".join(array.tobytes() for array in results)


@scenario
def refused_threads(kind):
    """In a thread that has no team yet, or in a child that has no pool yet, for every number that can be created."""
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    limit, alive, refused = (
        ctypes.c_int.in_dll(ctypes.CDLL(None), name) for name in ("thread_limit", "threads_alive", "threads_refused")
    )
    # 7 threads beside the calling one; two pools, one for each dtype, of 5
    call, needed = (dense_bits, 7) if kind == "openmp" else (bits, 10)
    others = alive.value
    expected = in_threads([lambda: call(1)])[0]

    def limited(room):
        while kind == "openmp" and alive.value > others + 1:  # the team of the thread before ends after it
            time.sleep(0.001)
        before = alive.value
        limit.value, refused.value = before + room, 0
        good = call(6) == expected and (refused.value > 0 or room >= needed)
        limit.value = 1 << 30  # there is room again
        return good and call(6) == expected and alive.value - before >= needed

    for room in range(needed + 1):
        if kind == "pool":
            assert in_a_child(lambda n=room: limited(n)), room
        else:
            assert in_threads([lambda n=room: limited(n)]) == [True], room


@pytest.mark.parametrize("kind", ["openmp", "pool"])
def test_threads_that_cannot_be_created(kind, shim):
    """The first, the second, ... fails: the work is done by those that came, with the same bits, and later by all."""
    run("refused_threads", kind, LD_PRELOAD=shim)


OUTCOMES = {0: "good", 3: "MemoryError", 4: "wrong", 1: "exit", -signal.SIGALRM: "hang"}


@scenario
def address_space(kind, n_threads, count):
    """A child for each of many limits on the address space, from none left to enough for all stacks."""
    n_threads, count, tally = int(n_threads), int(count), collections.Counter()
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    net, X = fo.MLP([50, 64, 2], seed=0), numbers(3000, 50).astype("float32")
    call = {"openmp": dense_bits, "pool": lambda n: net.forward(X, n_threads=n).tobytes()}[kind]
    stack = {"openmp": resource.getrlimit(resource.RLIMIT_STACK)[0], "pool": 1 << 20}[kind]
    stack = min(stack, 1 << 23) if stack > 0 else 1 << 21
    expected = in_threads([lambda: call(1)])[0]  # this thread has no team, for the children's is the parent's
    for k in range(count):
        # without Python's handlers and the C library's: a forked child that knows it is one does not use OpenMP
        child = ctypes.CDLL(None).syscall(57)
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.alarm(30)
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            limit = size + (n_threads + 3) * stack * k // count
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            try:
                os._exit(0 if call(n_threads) == expected else 4)
            except MemoryError:
                os._exit(3)
            finally:
                os._exit(5)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tally[OUTCOMES.get(code, code)] += 1
        if tally["hang"]:
            break
    print(dict(+tally))
    assert set(+tally) <= {"good", "MemoryError"} and tally["good"] > count / 2, tally


LIMITS = [("openmp", 4), ("openmp", 17), ("pool", 4), ("pool", 17)]
limited = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="the address sanitizer itself needs more address space than these limits leave",
)


@limited
@pytest.mark.parametrize(("kind", "n_threads"), LIMITS)
def test_address_space_limits(kind, n_threads):
    """Wherever the limit is, the same bits or a MemoryError; no libgomp that ends the process."""
    run("address_space", kind, n_threads, 100)


@limited
@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "n_threads"), LIMITS)
def test_many_address_space_limits(kind, n_threads):
    """The same in steps of some KiB."""
    run("address_space", kind, n_threads, 3000, timeout=7200)


# ------------------------------------------------------------------------------------------------- other threads


def guarded(shape, dtype="float64"):
    """Zeros, behind which memory begins that ends the process when it is touched."""
    return between(np.zeros(shape, dtype), at_end=True)


@scenario
def overwritten_data(count):
    """A thread overwrites what another one trains on."""
    sys.setswitchinterval(1e-6)
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    sets, done, outcomes = [], threading.Event(), collections.Counter()
    for loss, dtype in itertools.product(("softmax_cross_entropy", "hinge", "mse"), ("float32", "float64", "int16")):
        y = guarded((1201, 3)) if loss == "mse" else guarded((1201,), "int64")
        sets.append((loss, guarded((1201, 7), dtype), y, guarded((1201,))))

    def overwrite():
        values = random.Random(0)
        while not done.is_set():
            for array in values.choice(sets)[1:]:
                for value in (values.choice([-1, 2.0**40, -(2.0**40), np.nan, np.inf, 1e300]), 1):
                    with np.errstate(all="ignore"):
                        array[...] = np.float64(value).astype(array.dtype)
                    time.sleep(1e-4)

    def call(work, *arguments, **options):
        try:
            work(*arguments, **options)
            outcomes["good"] += 1
        except (ValueError, ArithmeticError, fo.DivergenceError) as error:
            outcomes[type(error).__name__] += 1

    def train():
        try:
            for n_threads in (1, 3) * int(count):
                for loss, X, y, w in sets:
                    net = fo.MLP([7, 5, 3], seed=0)
                    trainer = fo.Trainer(net, loss=loss, optimizer=fo.SGD(0.1), batch_size=64, n_threads=n_threads)
                    for _ in range(20):
                        call(trainer.fit, X, y, epochs=3, sample_weight=w, validation_data=(X, y))
                        call(net.forward, X, n_threads=n_threads)
                        call(getattr(fo, loss), X[:, :3], y, sample_weight=w)
                        call(fo.dense_forward, X, net.weights[0], n_threads=n_threads)
                        call(fo.dense_backward, X, X, np.eye(7), n_threads=n_threads)
        finally:
            done.set()

    in_threads([train, overwrite])
    print(dict(outcomes))
    assert outcomes.total() == 200 * len(sets) * int(count), outcomes


@scenario
def turned_data(count):
    """Arrays get another shape between the checks and the kernels: where the number of threads is read."""
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    arrays = X, weight, dout = [between(numbers(*shape), at_end=True) for shape in ((1201, 7), (5, 7), (1201, 5))]
    net = fo.MLP([7, 5], seed=0, dtype="float64")

    def turn(*_):
        for array in arrays:
            array.shape = array.shape[::-1]

    class Threads(int):
        def __int__(self):
            turn()
            return 3

    def fit(callbacks):
        trained = net.copy()
        trainer = fo.Trainer(trained, loss="mse", optimizer=fo.SGD(0.1), batch_size=64, seed=0, n_threads=3)
        trainer.fit(X, dout, epochs=5, sample_weight=np.ones(1201), validation_data=(X, dout), callbacks=callbacks)
        return trained.flat

    calls = [
        lambda n: fo.dense_forward(X, weight, n_threads=n),
        lambda n: np.concatenate([g.ravel() for g in fo.dense_backward(dout, X, weight, n_threads=n)]),
        lambda n: net.forward(X, n_threads=n),
        lambda n: fit([turn] if isinstance(n, Threads) else []),
    ]
    for call in calls * int(count):
        expected = call(3)
        got = call(Threads(3))
        assert X.shape == (7, 1201)
        turn()
        assert got.tobytes() == expected.tobytes()


@scenario
def freed_data(count):
    """The last names of X, y and the weights go while a fit runs, and their memory is used again; also that of lists,
    of which the fit has the only array."""
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    shapes = {"X": (500, 20), "y": (500, 2), "sample_weight": (500,)}
    for kind, n_threads in itertools.product((np.array, np.ndarray.tolist), (1, 3)):
        results = set()
        for k in range(int(count)):
            data = {name: kind(np.abs(numbers(*shape))) for name, shape in shapes.items()}

            def free(trainer, data=data, k=k):
                for name in random.Random(k).sample(sorted(data), len(data)):
                    del data[name]
                [np.full(shape, np.nan) for shape in shapes.values() for _ in range(20)]

            net = fo.MLP([20, 9, 2], seed=0, dtype="float64")
            trainer = fo.Trainer(net, loss="mse", optimizer=fo.SGD(0.1), seed=0, n_threads=n_threads)
            trainer.fit(data["X"], data["y"], sample_weight=data["sample_weight"], epochs=3, callbacks=[free])
            results.add(trainer.net.flat.tobytes())
        assert len(results) == 1, len(results)


CHANGES = {"overwritten_data": (1, 200), "turned_data": (1, 100), "freed_data": (5, 500)}


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changes_during_a_fit(name):
    """No access outside of an array: at worst wrong numbers, or an error about them."""
    run(name, CHANGES[name][0])


@pytest.mark.thorough
@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changes_during_many_fits(name):
    """The same, more often."""
    run(name, CHANGES[name][1], timeout=7200)


@scenario
def kernels_in_threads(count):
    """Dense kernels, losses, forward passes and trainings at once."""
    boundary.WORTH_A_THREAD, boundary.processors = 1, lambda: boundary.MAX_THREADS
    net, X = fo.MLP([20, 65, 7], seed=0, dtype="float64"), numbers(300, 20)
    scores, labels = net.forward(X), np.arange(300) % 7
    calls = [
        lambda n: fo.dense_forward(X, net.weights[0], net.biases[0], activation="tanh", n_threads=n),
        lambda n: np.concatenate(fo.dense_backward(scores, numbers(300, 65), net.weights[1], n_threads=n)[:2]),
        lambda n: fo.softmax_cross_entropy(scores, labels)[1],
        lambda n: fo.mse(scores, np.zeros_like(scores))[1],
        lambda n: net.forward(X, n_threads=n),
        lambda n: np.frombuffer(bytes.fromhex(bits(n))),
    ]
    expected = [call(1).tobytes() for call in calls]

    def repeated(k):
        call, same = calls[k % len(calls)], expected[k % len(calls)]
        return all(call(1 + (k + i) % 5).tobytes() == same for i in range(int(count)))

    assert in_threads([lambda k=k: repeated(k) for k in range(16)]) == [True] * 16


def test_data_in_use_cannot_be_resized():
    """Not even with refcheck=False, which asks for it: NumPy would free the memory."""
    for name in ("X", "y", "sample_weight"):
        data = {"X": np.ones((50, 3)), "y": np.ones((50, 2)), "sample_weight": np.ones(50)}
        trainer = fo.Trainer(fo.MLP([3, 2], dtype="float64"), loss="mse", optimizer=fo.SGD(0.1), seed=0)
        resize = lambda trainer, array=data[name]: array.resize((0,), refcheck=False)  # noqa: E731
        with pytest.raises(ValueError, match="cannot resize"):
            trainer.fit(**data, epochs=2, callbacks=[resize])


def test_kernels_and_trainings_in_sixteen_threads():
    """Each gives what it gives alone."""
    run("kernels_in_threads", 20)


# ------------------------------------------------------------------------------------------- how many threads


QUOTAS = {  # files of the kernel's, and the processors they grant
    "none": ({}, None),
    "one group": ({"list": "0::/", "cpu.max": "100000 100000"}, 1),
    "a part of a processor": ({"list": "0::/", "cpu.max": "1000 100000"}, 1),
    "one and a half": ({"list": "0::/", "cpu.max": "150000 100000"}, 2),
    "without a limit": ({"list": "0::/", "cpu.max": "max 100000"}, None),
    "the inner is less": ({"list": "0::/a/b", "a/cpu.max": "300000 100000", "a/b/cpu.max": "90000 50000"}, 2),
    "the outer is less": ({"list": "0::/a/b", "a/cpu.max": "200000 100000", "a/b/cpu.max": "900000 100000"}, 2),
    "only the outer": ({"list": "0::/a/b", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
    "another's": ({"list": "0::/a", "b/cpu.max": "200000 100000"}, None),
    "a path outside of the container": ({"list": "0::/docker/1f", "cpu.max": "200000 100000"}, 2),
    "a path above the namespace": ({"list": "0::/../b", "cpu.max": "200000 100000"}, 2),
    "a colon in the path": ({"list": "0::/a:b", "a:b/cpu.max": "200000 100000"}, 2),
    "version 1": (
        {
            "list": "5:memory:/a/b\n4:cpu,cpuacct:/a/b\n0::/",
            "cpu/a/b/cpu.cfs_quota_us": "250000",
            "cpu/a/b/cpu.cfs_period_us": "100000",
        },
        3,
    ),
    "version 1 without a limit": (
        {"list": "4:cpu:/a", "cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
        None,
    ),
    "version 1, a path outside of the container": (
        {"list": "4:cpu:/docker/1f", "cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
        4,
    ),
    "not a number": ({"list": "0::/", "cpu.max": "half of it"}, None),
}


def write_groups(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize("name", QUOTAS)
def test_quota(name, tmp_path, monkeypatch):
    """The least of the process's control groups and those above it, wherever the kernel shows them."""
    files, expected = QUOTAS[name]
    write_groups(tmp_path, files)
    monkeypatch.setattr(boundary, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(boundary, "CGROUP_LIST", str(tmp_path / "list"))
    assert boundary._cgroup_quota.__wrapped__() == expected


@scenario
def thread_counts(groups=None):
    """What is available, what a demand for eight becomes, and the warnings on the way; three times."""
    if groups:
        boundary.CGROUPS, boundary.CGROUP_LIST = groups, os.path.join(groups, "list")
    else:
        boundary.processors = lambda: 6
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            print(boundary.available_threads(), boundary.threads(8, 10**12), boundary.threads(None, 10**12))
    print(*(str(warning.message).split("=")[0] for warning in caught))
    assert bits(None) == bits(1)


def test_a_quota_of_one_processor(tmp_path):
    """One thread, whatever is asked for."""
    write_groups(tmp_path, QUOTAS["one group"][0])
    answer = run("thread_counts", tmp_path, OMP_NUM_THREADS="8", FASTOPT_NUM_THREADS="8")
    assert answer.splitlines() == ["1 1 1"] * 3 + [""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3), ("2,1", 2), ("0", 6), ("-1", 6), ("abc", 6), ("1e6", 6), ("", 6)],
)
def test_thread_counts_of_the_environment(text, expected):
    """One that is no number of threads is ignored, with one warning for each variable."""
    answer = run("thread_counts", OMP_NUM_THREADS=text, FASTOPT_NUM_THREADS=text).splitlines()
    assert answer[:3] == [f"{expected} 6 {expected}"] * 3
    assert answer[3] == ("OMP_NUM_THREADS FASTOPT_NUM_THREADS" if expected == 6 else "")


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](*sys.argv[2:])
