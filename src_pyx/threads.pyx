# Threads for jobs of many short phases. One word holds a phase's number and how many of its units are unclaimed. A
# thread claims a share of them by compare-and-swap and reads nothing of the job before that succeeds; a phase ends when
# all claimed units are done, not when all threads have come. So nothing ever waits for a thread that has not started,
# neither a step nor the end of a job: a late helper finds another number in the word and claims nothing. The word is
# not reset between jobs.
#
# Helpers sleep while no job wants them: none spins when a job has ended. OpenMP has neither property, and its pool is
# dead in a forked child, where this one starts anew.

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t*, void*, void* (*)(void*) noexcept nogil, void*)
    int pthread_detach(pthread_t)
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil, void (*)() noexcept nogil)

cdef enum:
    PHASE_SHIFT = 28                # units left are counted in the low bits of the shared word
    UNITS_MASK = (1 << 28) - 1
    MAX_HELPERS = 63

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
    pthread_mutex_t mutex
    pthread_cond_t wake

cdef Pool pool


cdef void init_pool() noexcept nogil:
    memset(&pool, 0, sizeof(pool))
    pthread_mutex_init(&pool.mutex, NULL)
    pthread_cond_init(&pool.wake, NULL)


init_pool()
pthread_atfork(NULL, NULL, init_pool)


cdef void finish(int64_t word, int64_t share) noexcept nogil:
    """Units are done; whoever does the last of a phase opens the next."""
    cdef int64_t count
    if atomic_subtract(&pool.remaining, share) > 0:
        return
    count = pool.job.next_phase(pool.job.self)
    if count == 0:
        atomic_write(&pool.ended, 1)
    else:
        pool.count = count
        atomic_write(&pool.remaining, count)
        atomic_write(&pool.word, ((word >> PHASE_SHIFT) + 1) << PHASE_SHIFT | count)


cdef bint claim_and_run(int thread) noexcept nogil:
    """Claims some units and runs them; whether there were any."""
    cdef int64_t word = atomic_read(&pool.word), left = word & UNITS_MASK, unit
    cdef int64_t threads = atomic_read(&pool.wanted) + 1
    cdef int64_t share = (left + 4 * threads - 1) // (4 * threads)
    if left == 0 or not atomic_swap_if(&pool.word, word, word - share):
        return False
    for unit in range(pool.count - left, pool.count - left + share):
        pool.job.run_unit(pool.job.self, unit, thread)
    finish(word, share)
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
    helpers = min(helpers, <int64_t> MAX_HELPERS)
    if helpers == pool.wanted:
        return
    pthread_mutex_lock(&pool.mutex)
    while pool.started < helpers and pthread_create(&thread, NULL, help, <void*> pool.started) == 0:
        pthread_detach(thread)
        pool.started += 1
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
    cdef int64_t word
    cdef Py_ssize_t waits = 0
    if n_threads == 1 or not atomic_swap_if(&pool.taken, 0, 1):
        run_alone(job, count)
        return
    word = ((atomic_read(&pool.word) >> PHASE_SHIFT) + 1) << PHASE_SHIFT
    pool.job, pool.count = job, count
    atomic_write(&pool.ended, 0)
    atomic_write(&pool.remaining, count)
    atomic_write(&pool.word, word | count)
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
