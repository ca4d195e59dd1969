# A network's forward pass from its public parameters: weights[0] (out, in), biases[0], weights[1], ... in one buffer.

cdef enum:
    CHUNK = 128         # rows taken through all layers at a time, fewer of them
    WIDE = 1 << 19      # where they have more values than this
    SMALL = 256         # vectors of workspace that need no allocation


cdef struct Network:
    int n_layers
    const Py_ssize_t* sizes
    const int* activations
    const real* flat
    Py_ssize_t widest
    void* features      # a Features
    real* workspace     # of each thread
    Py_ssize_t size
    Py_ssize_t chunk    # rows
    real* out           # (rows, scores)
    int64_t n_nonfinite


cdef void forward_chunk(void* job, Py_ssize_t chunk, int thread) noexcept nogil:
    """out = the scores of a chunk's rows"""
    cdef Network* network = <Network*> job
    cdef Py_ssize_t start = chunk * network.chunk, n = min((<Features> network.features).n - start, network.chunk)
    cdef real* x = network.workspace + thread * network.size
    cdef real* h = x + n * network.widest
    cdef const real* flat = network.flat
    cdef Py_ssize_t n_in, n_out
    cdef int i
    if not (<Features> network.features).copy_finite(start, start + n, x):
        atomic_write(&network.n_nonfinite, 1)
    for i in range(network.n_layers):
        n_in = network.sizes[i]
        n_out = network.sizes[i + 1]
        if i + 1 == network.n_layers:
            h = network.out + start * n_out
        dense_forward(x, flat, flat + n_in * n_out, h, n, n_in, n_out, network.activations[i], 1)
        flat += (n_in + 1) * n_out
        x, h = h, x


cdef Py_ssize_t no_more(void* job) noexcept nogil:
    return 0


def call_forward(Features features, const Py_ssize_t[::1] sizes, const int[::1] activations, const real[::1] flat,
                 real[:, ::1] out, int n_threads):
    """out = the scores of all rows; whether the rows and they are finite"""
    cdef Network network
    cdef Job job
    cdef vec small[SMALL]
    cdef Py_ssize_t n_chunks, i
    cdef Memory workspace
    network.widest = 0
    for i in range(sizes.shape[0]):
        network.widest = max(network.widest, sizes[i])
    network.chunk = min(features.n, <Py_ssize_t> CHUNK, max(<Py_ssize_t> 1, WIDE // network.widest))
    network.size = 2 * network.chunk * network.widest
    n_chunks = (features.n + network.chunk - 1) // network.chunk
    n_threads = <int> min(<Py_ssize_t> n_threads, n_chunks)
    network.n_layers = <int> activations.shape[0]
    network.sizes, network.activations, network.flat = &sizes[0], &activations[0], &flat[0]
    network.features, network.n_nonfinite = <void*> features, 0
    network.workspace, network.out = <real*> small, &out[0, 0]
    if n_threads * network.size > SMALL * VL:
        workspace = Memory(n_threads * network.size * sizeof(real))
        network.workspace = workspace.reals()
    job.run_unit, job.next_phase, job.watch, job.self = forward_chunk, no_more, NULL, &network
    with nogil:
        run_job(&job, n_chunks, n_threads)
        if not all_finite(&out[0, 0], out.shape[0] * out.shape[1]):
            network.n_nonfinite = 1
    return network.n_nonfinite == 0


def call_penalty(const real[::1] values):
    """(sum of |v|, sum of v**2) in double precision, element after element"""
    cdef double absolute = 0, squares = 0, value
    cdef Py_ssize_t i
    with nogil:
        for i in range(values.shape[0]):
            value = <double> values[i]
            absolute += -value if value < 0 else value
            squares += value * value
    return absolute, squares
