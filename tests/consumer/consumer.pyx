"""A softmax regression trained by the kernels alone, without the GIL and without Python objects."""
from fastopt.kernels cimport dense_backward, dense_forward, nesterov_step, real, softmax_cross_entropy
from libc.stdint cimport int64_t


def train(const real[:, ::1] x, const int64_t[::1] y, const real[::1] factor, real[:, ::1] weight, real[::1] bias,
          real[::1] velocity, real[::1] workspace, int steps, int n_threads):
    """Full-batch steps in place; the workspace holds scores and dscores, losses, dweight and dbias."""
    cdef Py_ssize_t n = x.shape[0], d = x.shape[1], k = weight.shape[0]
    cdef real* scores = &workspace[0]
    cdef real* dscores = scores + n * k
    cdef real* losses = dscores + n * k
    cdef real* dweight = losses + n
    cdef real* dbias = dweight + k * d
    cdef real* no_dx = NULL
    cdef double lr = 0.1, momentum = 0.9
    cdef int _step
    with nogil:
        for _step in range(steps):
            dense_forward(&x[0, 0], &weight[0, 0], &bias[0], scores, n, d, k, 0, n_threads)
            softmax_cross_entropy(scores, &y[0], &factor[0], losses, dscores, n, k, 0.0)
            dense_backward(dscores, &x[0, 0], &weight[0, 0], no_dx, dweight, dbias, n, d, k, False, n_threads)
            nesterov_step(&weight[0, 0], dweight, &velocity[0], k * d, lr, momentum, 0.0, 0.0)
            nesterov_step(&bias[0], dbias, &velocity[k * d], k, lr, momentum, 0.0, 0.0)


def forward(const real[:, ::1] x, Py_ssize_t n, const real[:, ::1] weight, real[:, ::1] out, int n_threads):
    """The first n rows of out; n may be 0."""
    with nogil:
        dense_forward(&x[0, 0], &weight[0, 0], NULL, &out[0, 0], n, x.shape[1], weight.shape[0], 0, n_threads)
