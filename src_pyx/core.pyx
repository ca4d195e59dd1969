"""Every kernel of one instruction-set path and one dtype.

Compiled once per path and dtype under a name of its own (fastopt._core_avx2_float32, ...); the body is the
same for all, simd.h says what `real` and `vec` are. The parts are textual: a call between them can be inlined.
"""
from cpython.buffer cimport Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.math cimport INFINITY, sqrt
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign
from posix.unistd cimport getpid
from threading import get_ident
from weakref import ref

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "simd.h" nogil:
    # float or double: FASTOPT_DOUBLE says which. Beside a real a double is rounded to one: in sums of double
    # precision every operand must be cast.
    ctypedef double real
    ctypedef double vec             # VL of them; arithmetic operators act on lanes, comparisons do not
    ctypedef void INLINED           # always inlined: constant arguments unroll the loops over a tile
    ctypedef double INLINED_VEC
    ctypedef void NOT_INLINED       # a tile's accumulators need all registers: nothing around it may hold one
    enum: VL
    enum: LANES
    enum: MR
    enum: SUM_LANES
    enum: BLOCK
    enum: ROWS_A_UNIT
    enum: BLOCK_VECTORS
    enum: MANTISSA
    enum: EXP_TERMS
    enum: LOG_TERMS
    const real* EXP_SERIES
    const real* LOG_SERIES
    const real LOG2_E
    const real NOT_A_NUMBER
    const real LN2_HIGH
    const real LN2_LOW
    const real EXP_LOWEST
    const real EXP_HIGHEST
    vec vset(real a)
    vec vload(const real* p)
    void vstore(real* p, vec a)
    vec vload_part(const real* p, Py_ssize_t n, real pad)
    void vstore_part(real* p, vec a, Py_ssize_t n)
    vec vfma(vec a, vec b, vec c)
    vec vsqrt(vec a)
    vec vselect_less(vec a, vec b, vec x, vec y)
    vec vset_lane(vec a, Py_ssize_t lane, real value)
    real vlane(vec a, Py_ssize_t lane)
    vec vabs(vec a)
    vec vround_magic()
    vec vpow2(vec n)
    vec vsplit(vec x, vec* e)
    void vtranspose(vec* rows, int h)
    vec vload_halves(const real* low, const real* high)
    float half_to_float(uint16_t h)
    uint64_t multiply_high(uint64_t a, uint64_t b)
    void prefetch(const char* p)
    void prefetch_close(const char* p)
    int64_t atomic_read(const int64_t* p)
    void atomic_write(int64_t* p, int64_t value)
    int64_t atomic_subtract(int64_t* p, int64_t value)
    int atomic_swap_if(int64_t* p, int64_t expected, int64_t value)
    void spin(Py_ssize_t waits)

include "elementwise.pyx"
include "random.pyx"
include "threads.pyx"
include "dense.pyx"
include "losses.pyx"
include "optim.pyx"
include "network.pyx"
include "engine.pyx"
