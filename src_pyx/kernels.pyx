"""The kernels for `cimport`: each calls its namesake in the core modules of the instruction set in use."""
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport int64_t

from fastopt._dispatch import core

cdef enum:
    DENSE_FORWARD
    DENSE_BACKWARD
    ACTIVATION_BACKWARD
    SOFTMAX
    SOFTMAX_CROSS_ENTROPY
    HINGE
    SQUARED_HINGE
    BINARY_CROSS_ENTROPY
    MSE
    MAE
    MSLE
    HUBER
    SGD_STEP
    MOMENTUM_STEP
    NESTEROV_STEP
    N_KERNELS

cdef void* table[2][N_KERNELS]  # float32, float64


def _fill_table():
    names = ("dense_forward dense_backward activation_backward softmax softmax_cross_entropy hinge squared_hinge "
             "binary_cross_entropy mse mae msle huber sgd_step momentum_step nesterov_step").split()
    for row, dtype in enumerate(("float32", "float64")):
        for column, name in enumerate(names):
            capsule = core(dtype).__pyx_capi__[name]
            table[row][column] = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))


_fill_table()


cdef inline void* kernel(int number, real* tag) noexcept nogil:
    return table[real is double][number]


cdef void dense_forward(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t n,
                        Py_ssize_t n_in, Py_ssize_t n_out, int activation, int n_threads) noexcept nogil:
    (<void (*)(const real*, const real*, const real*, real*, Py_ssize_t, Py_ssize_t, Py_ssize_t, int,
               int) noexcept nogil> kernel(DENSE_FORWARD, out))(
        x, weight, bias, out, n, n_in, n_out, activation, n_threads)


cdef void dense_backward(const real* dscores, const real* x, const real* weight, real* dx, real* dweight,
                         real* dbias, Py_ssize_t n, Py_ssize_t n_in, Py_ssize_t n_out, bint add,
                         int n_threads) noexcept nogil:
    (<void (*)(const real*, const real*, const real*, real*, real*, real*, Py_ssize_t, Py_ssize_t, Py_ssize_t, bint,
               int) noexcept nogil> kernel(DENSE_BACKWARD, dx))(
        dscores, x, weight, dx, dweight, dbias, n, n_in, n_out, add, n_threads)


cdef void activation_backward(int activation, const real* output, const real* doutput, real* dscores,
                              Py_ssize_t n) noexcept nogil:
    (<void (*)(int, const real*, const real*, real*, Py_ssize_t) noexcept nogil>
     kernel(ACTIVATION_BACKWARD, dscores))(activation, output, doutput, dscores, n)


cdef void softmax(const real* scores, real* out, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    (<void (*)(const real*, real*, Py_ssize_t, Py_ssize_t) noexcept nogil> kernel(SOFTMAX, out))(scores, out, n, k)


cdef void softmax_cross_entropy(const real* scores, const int64_t* y, const real* factor, real* losses,
                                real* dscores, Py_ssize_t n, Py_ssize_t k, double label_smoothing) noexcept nogil:
    (<void (*)(const real*, const int64_t*, const real*, real*, real*, Py_ssize_t, Py_ssize_t,
               double) noexcept nogil> kernel(SOFTMAX_CROSS_ENTROPY, dscores))(
        scores, y, factor, losses, dscores, n, k, label_smoothing)


cdef inline void label_loss(int number, const real* scores, const int64_t* y, const real* factor, real* losses,
                            real* dscores, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    (<void (*)(const real*, const int64_t*, const real*, real*, real*, Py_ssize_t, Py_ssize_t) noexcept nogil>
     kernel(number, dscores))(scores, y, factor, losses, dscores, n, k)


cdef inline void target_loss(int number, const real* pred, const real* target, const real* factor, real* losses,
                             real* dpred, Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    (<void (*)(const real*, const real*, const real*, real*, real*, Py_ssize_t, Py_ssize_t) noexcept nogil>
     kernel(number, dpred))(pred, target, factor, losses, dpred, n, m)


cdef void hinge(const real* scores, const int64_t* y, const real* factor, real* losses, real* dscores,
                Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    label_loss(HINGE, scores, y, factor, losses, dscores, n, k)


cdef void squared_hinge(const real* scores, const int64_t* y, const real* factor, real* losses, real* dscores,
                        Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    label_loss(SQUARED_HINGE, scores, y, factor, losses, dscores, n, k)


cdef void binary_cross_entropy(const real* scores, const real* y, const real* factor, real* losses,
                               real* dscores, Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    target_loss(BINARY_CROSS_ENTROPY, scores, y, factor, losses, dscores, n, m)


cdef void mse(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
              Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    target_loss(MSE, pred, target, factor, losses, dpred, n, m)


cdef void mae(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
              Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    target_loss(MAE, pred, target, factor, losses, dpred, n, m)


cdef void msle(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
               Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    target_loss(MSLE, pred, target, factor, losses, dpred, n, m)


cdef void huber(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
                Py_ssize_t n, Py_ssize_t m, double delta) noexcept nogil:
    (<void (*)(const real*, const real*, const real*, real*, real*, Py_ssize_t, Py_ssize_t, double) noexcept nogil>
     kernel(HUBER, dpred))(pred, target, factor, losses, dpred, n, m, delta)


cdef void sgd_step(real* param, const real* grad, Py_ssize_t n, double lr, double weight_decay,
                   double l1) noexcept nogil:
    (<void (*)(real*, const real*, Py_ssize_t, double, double, double) noexcept nogil> kernel(SGD_STEP, param))(
        param, grad, n, lr, weight_decay, l1)


cdef inline void velocity_step(int number, real* param, const real* grad, real* velocity, Py_ssize_t n, double lr,
                               double momentum, double weight_decay, double l1) noexcept nogil:
    (<void (*)(real*, const real*, real*, Py_ssize_t, double, double, double, double) noexcept nogil>
     kernel(number, param))(param, grad, velocity, n, lr, momentum, weight_decay, l1)


cdef void momentum_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                        double weight_decay, double l1) noexcept nogil:
    velocity_step(MOMENTUM_STEP, param, grad, velocity, n, lr, momentum, weight_decay, l1)


cdef void nesterov_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                        double weight_decay, double l1) noexcept nogil:
    velocity_step(NESTEROV_STEP, param, grad, velocity, n, lr, momentum, weight_decay, l1)
