"""The kernels, for Cython code: pointers and sizes, no Python objects, callable without the GIL.

Arrays are C-contiguous; arrays of one call have one dtype. A loss kernel writes losses[i] and
dscores[i] = factor[i] * d losses[i] / d scores[i]; factor may be NULL and then is 1 (for the mean: 1 / n).
Activations are numbered 0 identity, 1 relu, 2 sigmoid, 3 tanh. n_threads is at least 1, and an upper bound: a region
has those that can be created, in a forked process one.
"""
from libc.stdint cimport int64_t

ctypedef fused real:
    float
    double

cdef void dense_forward(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t n,
                        Py_ssize_t n_in, Py_ssize_t n_out, int activation, int n_threads) noexcept nogil
cdef void dense_backward(const real* dscores, const real* x, const real* weight, real* dx, real* dweight,
                         real* dbias, Py_ssize_t n, Py_ssize_t n_in, Py_ssize_t n_out, bint add,
                         int n_threads) noexcept nogil
cdef void activation_backward(int activation, const real* output, const real* doutput, real* dscores,
                              Py_ssize_t n) noexcept nogil

cdef void softmax(const real* scores, real* out, Py_ssize_t n, Py_ssize_t k) noexcept nogil
cdef void softmax_cross_entropy(const real* scores, const int64_t* y, const real* factor, real* losses,
                                real* dscores, Py_ssize_t n, Py_ssize_t k, double label_smoothing) noexcept nogil
cdef void hinge(const real* scores, const int64_t* y, const real* factor, real* losses, real* dscores,
                Py_ssize_t n, Py_ssize_t k) noexcept nogil
cdef void squared_hinge(const real* scores, const int64_t* y, const real* factor, real* losses, real* dscores,
                        Py_ssize_t n, Py_ssize_t k) noexcept nogil
cdef void binary_cross_entropy(const real* scores, const real* y, const real* factor, real* losses,
                               real* dscores, Py_ssize_t n, Py_ssize_t m) noexcept nogil
cdef void mse(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
              Py_ssize_t n, Py_ssize_t m) noexcept nogil
cdef void mae(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
              Py_ssize_t n, Py_ssize_t m) noexcept nogil
cdef void msle(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
               Py_ssize_t n, Py_ssize_t m) noexcept nogil
cdef void huber(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
                Py_ssize_t n, Py_ssize_t m, double delta) noexcept nogil

cdef void sgd_step(real* param, const real* grad, Py_ssize_t n, double lr, double weight_decay,
                   double l1) noexcept nogil
cdef void momentum_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                        double weight_decay, double l1) noexcept nogil
cdef void nesterov_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                        double weight_decay, double l1) noexcept nogil
