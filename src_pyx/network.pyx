# A network's forward pass from its public parameters: weights[0] (out, in), biases[0], weights[1], ... in one buffer.

cdef enum:
    CHUNK = 128  # rows taken through all layers at a time


cdef struct Network:
    int n_layers
    const Py_ssize_t* sizes
    const int* activations
    const real* flat
    Py_ssize_t widest


cdef bint forward_chunk(const Network* network, Features features, Py_ssize_t start, Py_ssize_t n,
                        real* workspace, real* out) noexcept nogil:
    """out = the scores of rows start .. start+n-1; whether those rows are finite. Workspace: 2 n of the widest."""
    cdef real* x = workspace
    cdef real* h = workspace + n * network.widest
    cdef const real* flat = network.flat
    cdef Py_ssize_t n_in, n_out
    cdef int i
    cdef bint finite = features.copy_finite(start, start + n, x)
    for i in range(network.n_layers):
        n_in = network.sizes[i]
        n_out = network.sizes[i + 1]
        if i + 1 == network.n_layers:
            h = out
        dense_forward(x, flat, flat + n_in * n_out, h, n, n_in, n_out, network.activations[i], 1)
        flat += (n_in + 1) * n_out
        x, h = h, x
    return finite


def call_forward(Features features, const Py_ssize_t[::1] sizes, const int[::1] activations, const real[::1] flat,
                 real[:, ::1] out, int n_threads):
    """out = the scores of all rows; whether the rows are finite"""
    cdef Network network
    cdef Py_ssize_t n_chunks = (features.n + CHUNK - 1) // CHUNK
    cdef Py_ssize_t chunk, size, rows = min(features.n, <Py_ssize_t> CHUNK)
    cdef int n_nonfinite = 0
    cdef Memory workspace
    network.n_layers = <int> activations.shape[0]
    network.sizes, network.activations, network.flat = &sizes[0], &activations[0], &flat[0]
    network.widest = max(sizes)
    n_threads = <int> min(<Py_ssize_t> n_threads, n_chunks)
    size = 2 * rows * network.widest
    workspace = Memory(n_threads * size * sizeof(real))
    for chunk in prange(n_chunks, nogil=True, num_threads=n_threads, schedule="dynamic", use_threads_if=n_threads > 1):
        n_nonfinite += not forward_chunk(
            &network, features, chunk * CHUNK, min(features.n - chunk * CHUNK, <Py_ssize_t> CHUNK),
            workspace.reals() + threadid() * size, &out[chunk * CHUNK, 0])
    return n_nonfinite == 0


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
