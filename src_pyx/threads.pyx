# Threads for jobs of many short phases. One word holds a phase's number and which of its units are unclaimed. A thread
# claims a share of them by compare-and-swap and reads nothing of the job before that succeeds; a phase ends when all
# claimed units are done, not when all threads have come. So nothing ever waits for a thread that has not started,
# neither a step nor the end of a job: a late helper finds another number in the word and claims nothing. The word is
# not reset between jobs. Every second thread claims from the other end: what a thread wrote in one phase, it is the
# likelier to read in the next.
#
# Helpers sleep while no job wants them: none spins when a job has ended. OpenMP has neither property, and its pool is
# dead in a forked child, where this one starts anew.

from libc.stdlib cimport malloc

from fastopt import _cpu

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t*)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    int pthread_attr_init(pthread_attr_t*)
    int pthread_attr_setstacksize(pthread_attr_t*, size_t)
    int pthread_attr_setdetachstate(pthread_attr_t*, int)
    int pthread_attr_destroy(pthread_attr_t*)
    int PTHREAD_CREATE_DETACHED
    int pthread_create(pthread_t*, pthread_attr_t*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    ctypedef unsigned int pthread_key_t
    int pthread_key_create(pthread_key_t*, void*)
    void* pthread_getspecific(pthread_key_t)
    int pthread_setspecific(pthread_key_t, const void*)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil, void (*)() noexcept nogil)

cdef enum:
    UNIT_BITS = 18                  # the first unclaimed unit and the first claimed after it, in the word's low bits
    UNIT_MASK = (1 << UNIT_BITS) - 1
    MAX_HELPERS = 63
    HELPER_STACK = 1 << 20          # bytes; a unit's blocks and tiles take 50 KiB, and sanitizers some times that
    OPENMP_MEMORY = 1 << 16         # bytes; libgomp's own, for a team of MAX_HELPERS + 1

cdef struct Job:
    void (*run_unit)(void* self, Py_ssize_t unit, int thread) noexcept nogil
    Py_ssize_t (*next_phase)(void* self) noexcept nogil     # how many units follow; 0 ends the job
    void (*watch)(void* self) noexcept nogil                # by the calling thread between its claims; may be NULL
    void* self

cdef struct Pool:
    int64_t word
    int64_t pad0[7]
    int64_t remaining               # units of the phase that are not done
    int64_t pad1[7]
    int64_t wanted                  # helpers that may claim; the others sleep
    int64_t ended                   # the job is
    int64_t taken                   # a job is running: another one does without helpers
    int64_t started                 # helpers
    Job* job
    int64_t count                   # units of the phase
    int64_t grain                   # how many are claimed as one
    pthread_mutex_t mutex
    pthread_cond_t wake

cdef Pool pool


cdef void init_pool() noexcept nogil:
    memset(&pool, 0, sizeof(pool))
    # a signal handler that forked inside a job comes back to run_job, where nothing will end it
    pool.ended = 1
    pthread_mutex_init(&pool.mutex, NULL)
    pthread_cond_init(&pool.wake, NULL)


cdef bint forked = False
cdef pthread_key_t team_key         # how many threads the calling thread's last OpenMP region had


cdef void after_fork() noexcept nogil:
    global forked
    forked = True
    init_pool()


init_pool()
pthread_atfork(NULL, NULL, after_fork)
# one key for the modules of both dtypes, whose regions share libgomp's pool
if not hasattr(_cpu, "team_key"):
    if pthread_key_create(&team_key, NULL) != 0:
        raise ImportError("fastopt needs a key for thread-specific data, and this process has none left")
    _cpu.team_key = team_key
team_key = _cpu.team_key


cdef void open_phase(int64_t count) noexcept nogil:
    # a phase of very many units is handed out by the handful
    pool.count, pool.grain = count, (count >> (UNIT_BITS - 1)) + 1
    count = (count + pool.grain - 1) // pool.grain
    atomic_write(&pool.remaining, count)
    cdef uint64_t phase = (<uint64_t> atomic_read(&pool.word) >> 2 * UNIT_BITS) + 1
    atomic_write(&pool.word, <int64_t> (phase << 2 * UNIT_BITS | <uint64_t> count))


cdef bint claim_and_run(int thread) noexcept nogil:
    """Claims some units and runs them; whether there were any."""
    cdef int64_t word = atomic_read(&pool.word), first = word >> UNIT_BITS & UNIT_MASK, last = word & UNIT_MASK
    cdef int64_t threads = atomic_read(&pool.wanted) + 1, unit
    cdef int64_t share = (last - first + 4 * threads - 1) // (4 * threads)
    # a helper of an earlier, larger job may come here late: after the word, what it reads is this job's
    if thread >= threads or share == 0:
        return False
    if not atomic_swap_if(&pool.word, word, word - share if thread & 1 else word + (share << UNIT_BITS)):
        return False
    if thread & 1:
        first = last - share
    for unit in range(first * pool.grain, min((first + share) * pool.grain, pool.count)):
        pool.job.run_unit(pool.job.self, unit, thread)
    if atomic_subtract(&pool.remaining, share) == 0:
        unit = pool.job.next_phase(pool.job.self)
        if unit > 0:
            open_phase(unit)
        else:
            atomic_write(&pool.ended, 1)
    return True


cdef void* help(void* number) noexcept nogil:
    """A helper's life."""
    cdef int64_t me = <int64_t> number
    cdef Py_ssize_t waits = 0
    while True:
        if atomic_read(&pool.wanted) <= me:
            pthread_mutex_lock(&pool.mutex)
            while pool.wanted <= me:
                pthread_cond_wait(&pool.wake, &pool.mutex)
            pthread_mutex_unlock(&pool.mutex)
        waits = 0 if claim_and_run(<int> me + 1) else waits + 1
        if waits > 0:
            spin(waits)
    return NULL


cdef void want(int64_t helpers) noexcept nogil:
    """Lets so many helpers claim, starting those that are missing; fewer where the system has no threads left."""
    cdef pthread_t thread
    cdef pthread_attr_t attributes
    cdef sigset_t every, before
    helpers = min(helpers, <int64_t> MAX_HELPERS)
    if helpers == pool.wanted:
        return
    pthread_mutex_lock(&pool.mutex)
    if pool.started < helpers:
        pthread_attr_init(&attributes)
        pthread_attr_setstacksize(&attributes, HELPER_STACK)
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED)
        # the process's signals are for the threads it knows
        sigfillset(&every)
        pthread_sigmask(SIG_SETMASK, &every, &before)
        while pool.started < helpers and pthread_create(&thread, &attributes, help, <void*> pool.started) == 0:
            pool.started += 1
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        pthread_attr_destroy(&attributes)
    atomic_write(&pool.wanted, min(helpers, pool.started))
    pthread_cond_broadcast(&pool.wake)
    pthread_mutex_unlock(&pool.mutex)


cdef void run_alone(Job* job, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t unit
    while count > 0:
        for unit in range(count):
            job.run_unit(job.self, unit, 0)
        if job.watch != NULL:
            job.watch(job.self)
        count = job.next_phase(job.self)


cdef void run_job(Job* job, Py_ssize_t count, int n_threads) noexcept nogil:
    """All phases of the job, the first of `count` units, on at most n_threads threads, one of them the caller"""
    cdef Py_ssize_t waits = 0
    if n_threads == 1 or not atomic_swap_if(&pool.taken, 0, 1):
        run_alone(job, count)
        return
    pool.job = job
    atomic_write(&pool.ended, 0)
    open_phase(count)
    want(n_threads - 1)
    while not atomic_read(&pool.ended):
        if claim_and_run(0):
            waits = 0
            if job.watch != NULL:
                job.watch(job.self)
        else:
            waits += 1
            spin(waits)
    want(0)
    atomic_write(&pool.taken, 0)


cdef void* pass_gate(void* gate) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t*> gate)
    pthread_mutex_unlock(<pthread_mutex_t*> gate)
    return NULL


cdef int openmp_threads(int n_threads) noexcept nogil:
    """How many of n_threads an OpenMP region may have, which must follow.

    libgomp ends the process where it cannot create a thread: those that it has not yet are tried before. Its pool is
    the calling thread's, and each team leaves as many there as it had. In a forked child it is dead: waiting for it
    would never end.
    """
    cdef pthread_t tried[MAX_HELPERS]
    cdef pthread_mutex_t gate
    cdef void* memory
    cdef int team, i, n = 0
    if forked or n_threads == 1:
        return 1
    team = max(1, <int> <Py_ssize_t> pthread_getspecific(team_key))
    n_threads = min(n_threads, MAX_HELPERS + 1)
    if n_threads > team:
        memory = malloc(OPENMP_MEMORY)
        pthread_mutex_init(&gate, NULL)
        pthread_mutex_lock(&gate)
        while team + n < n_threads and memory != NULL and pthread_create(&tried[n], NULL, pass_gate, &gate) == 0:
            n += 1
        pthread_mutex_unlock(&gate)
        for i in range(n):
            pthread_join(tried[i], NULL)
        free(memory)
        n_threads = team + n
    pthread_setspecific(team_key, <void*> <Py_ssize_t> n_threads)
    return n_threads
