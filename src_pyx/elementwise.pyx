# Functions of one vector, activations, and rows of any dtype: the same operations in the same order on every path.

cdef enum Activation:
    IDENTITY = 0
    RELU = 1
    SIGMOID = 2
    TANH = 3

cdef inline INLINED_VEC exp_reduced(vec x, vec* n) noexcept nogil:
    """e**r - 1 for x = n ln 2 + r, |r| <= ln 2 / 2, by Horner's rule on r + r**2/2! + ..."""
    cdef vec magic = vround_magic()
    cdef vec r, p
    cdef int k
    n[0] = vfma(x, vset(LOG2_E), magic) - magic
    r = vfma(n[0], vset(-LN2_LOW), vfma(n[0], vset(-LN2_HIGH), x))
    p = vset(EXP_SERIES[EXP_TERMS])
    for k in range(EXP_TERMS - 1, 0, -1):
        p = vfma(p, r, vset(EXP_SERIES[k]))
    return p * r


cdef inline INLINED_VEC vexp(vec x) noexcept nogil:
    cdef vec n, half, magic = vround_magic()
    cdef vec bounded = vselect_less(x, vset(EXP_LOWEST), vset(EXP_LOWEST), x)
    bounded = vselect_less(vset(EXP_HIGHEST), bounded, vset(EXP_HIGHEST), bounded)
    cdef vec value = 1 + exp_reduced(bounded, &n)
    # in two factors, so that the ends of the range neither overflow on the way nor round twice
    half = vfma(n, vset(0.5), magic) - magic
    return value * vpow2(half) * vpow2(n - half)


cdef inline INLINED_VEC vlog1p_split(vec f, vec e) noexcept nogil:
    """log(1 + f) + e ln 2 for sqrt(1/2) <= 1 + f < sqrt(2): f - f**2/2 + s (f**2/2 + R), s = f / (2 + f)."""
    cdef vec s = f / (2 + f)
    cdef vec z = s * s
    cdef vec p = vset(LOG_SERIES[LOG_TERMS])
    cdef vec half_square = vset(0.5) * f * f
    cdef int k
    for k in range(LOG_TERMS - 1, 0, -1):
        p = vfma(p, z, vset(LOG_SERIES[k]))
    return vfma(e, vset(LN2_HIGH), f - (half_square - vfma(s, vfma(p, z, half_square), e * vset(LN2_LOW))))


cdef inline INLINED_VEC vlog(vec x) noexcept nogil:
    """log of positive, normal, finite x; other x give some number."""
    cdef vec e
    cdef vec m = vsplit(x, &e)
    return vlog1p_split(m - 1, e)


cdef inline INLINED_VEC vlog1p(vec x) noexcept nogil:
    """log(1 + x) for finite x > -1; the rounding of 1 + x is added back to first order."""
    cdef vec u = 1 + x
    return vlog(u) + (x - (u - 1)) / u


cdef inline INLINED_VEC vsigmoid(vec x) noexcept nogil:
    """1 / (1 + e**-x), from e**-|x| so that neither tail loses digits."""
    cdef vec e = vexp(-vabs(x))
    cdef vec upper = 1 / (1 + e)
    return vselect_less(x, vset(0), e * upper, upper)


cdef inline INLINED_VEC vtanh(vec x) noexcept nogil:
    """-m / (m + 2) with m = e**(-2|x|) - 1, which keeps its digits near 0; the sign is put back."""
    cdef vec n, y = vset(-2) * vabs(x)
    y = vselect_less(y, vset(-45), vset(-45), y)
    cdef vec q = exp_reduced(y, &n)
    cdef vec power = vpow2(n)
    cdef vec m = vfma(power, q, power - 1)
    cdef vec value = -m / (m + 2)
    return vselect_less(x, vset(0), -value, value)


cdef inline INLINED_VEC activation_of(int activation, vec x) noexcept nogil:
    if activation == RELU:
        return vselect_less(x, vset(0), vset(0), x)  # NaN stays NaN
    if activation == SIGMOID:
        return vsigmoid(x)
    if activation == TANH:
        return vtanh(x)
    return x


cdef inline INLINED_VEC activation_derivative(int activation, vec output) noexcept nogil:
    """The derivative by the pre-activation, from the activation's output; 0 at ReLU's kink."""
    if activation == RELU:
        return vselect_less(vset(0), output, vset(1), vset(0))
    if activation == SIGMOID:
        return vfma(-output, output, output)
    if activation == TANH:
        return vfma(-output, output, vset(1))
    return vset(1)


cdef void activation_forward(int activation, real* values, Py_ssize_t n) noexcept nogil:
    """values <- activation(values)"""
    cdef Py_ssize_t i = 0
    if activation == IDENTITY:
        return
    while i + VL <= n:
        vstore(values + i, activation_of(activation, vload(values + i)))
        i += VL
    if i < n:
        vstore_part(values + i, activation_of(activation, vload_part(values + i, n - i, 0)), n - i)


cdef api void activation_backward(int activation, const real* output, const real* doutput, real* dscores,
                                  Py_ssize_t n) noexcept nogil:
    """dscores = doutput * activation'(scores); doutput and dscores may be the same memory."""
    cdef Py_ssize_t i = 0, part
    cdef vec derivative
    while i < n:
        part = n - i
        if part >= VL:
            derivative = activation_derivative(activation, vload(output + i))
            vstore(dscores + i, vload(doutput + i) * derivative)
        else:
            derivative = activation_derivative(activation, vload_part(output + i, part, 0))
            vstore_part(dscores + i, vload_part(doutput + i, part, 0) * derivative, part)
        i += VL


cdef inline void multiply(const real* a, const real* b, real* out, Py_ssize_t n) noexcept nogil:
    """out = a * b; out may be one of them"""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = a[i] * b[i]


cdef bint all_finite(const real* values, Py_ssize_t n) noexcept nogil:
    """Whether 0 * v is 0 for every v."""
    cdef vec zero = vset(0), a = vset(0), b = vset(0)
    cdef Py_ssize_t i = 0
    cdef int lane
    while i + 2 * VL <= n:
        a = vfma(vload(values + i), zero, a)
        b = vfma(vload(values + i + VL), zero, b)
        i += 2 * VL
    while i < n:
        a = vfma(vload_part(values + i, n - i, 0) if n - i < VL else vload(values + i), zero, a)
        i += VL
    a = a + b
    for lane in range(VL):
        if vlane(a, lane) != 0:
            return False
    return True


ctypedef fused Source:
    float
    double
    int8_t
    uint8_t
    int16_t
    uint16_t
    int32_t
    uint32_t
    int64_t
    uint64_t


cdef inline void convert(Source tag, real* to, const char* source, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    cdef Source value
    cdef Py_ssize_t i
    if stride == <Py_ssize_t> sizeof(Source):
        for i in range(n):
            memcpy(&value, source + i * <Py_ssize_t> sizeof(Source), sizeof(Source))
            to[i] = <real> value
    else:
        for i in range(n):
            memcpy(&value, source + i * stride, sizeof(Source))
            to[i] = <real> value


cdef void convert_row(char kind, real* to, const char* source, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    """n values of the dtype with NumPy's character `kind`, `stride` bytes apart, aligned or not, as `real`."""
    cdef uint16_t half
    cdef Py_ssize_t i
    if kind == c'f':
        convert(<float> 0, to, source, stride, n)
    elif kind == c'd':
        convert(<double> 0, to, source, stride, n)
    elif kind == c'e':
        for i in range(n):
            memcpy(&half, source + i * stride, 2)
            to[i] = half_to_float(half)
    elif kind == c'B' or kind == c'?':
        convert(<uint8_t> 0, to, source, stride, n)
    elif kind == c'b':
        convert(<int8_t> 0, to, source, stride, n)
    elif kind == c'h':
        convert(<int16_t> 0, to, source, stride, n)
    elif kind == c'H':
        convert(<uint16_t> 0, to, source, stride, n)
    elif kind == c'i':
        convert(<int32_t> 0, to, source, stride, n)
    elif kind == c'I':
        convert(<uint32_t> 0, to, source, stride, n)
    elif kind == c'l' or kind == c'q':
        convert(<int64_t> 0, to, source, stride, n)
    else:
        convert(<uint64_t> 0, to, source, stride, n)


#: Tests put a function here: of a number of bytes, it returns an array of them, or raises.
memory_hook = None


cdef class Memory:
    """One block on a cache line's boundary, not cleared: the only allocation in the core."""
    cdef void* start
    cdef object lent

    def __cinit__(self, size_t size):
        cdef uint8_t[::1] view
        if memory_hook is not None:
            self.lent = view = memory_hook(size)
            self.start = &view[0]
        elif posix_memalign(&self.start, 64, max(size, <size_t> 64)) != 0:
            self.start = NULL
            raise MemoryError(f"{size} bytes for the core's buffers")

    def __dealloc__(self):
        if self.lent is None:
            free(self.start)

    cdef inline real* reals(self) noexcept nogil:
        return <real*> self.start


def owner(array):
    """The array whose memory an array shows."""
    while isinstance(array.base, type(array)):
        array = array.base
    return array


cdef class Features:
    """The rows of a 2-D array of any real dtype and layout; its memory is held while this lives."""
    cdef Py_buffer buffer
    cdef object owner      # a weak reference, which keeps resize(refcheck=False) from freeing the memory
    cdef readonly Py_ssize_t n
    cdef readonly Py_ssize_t width
    cdef char kind
    cdef bint held
    cdef bint direct       # rows of `real`, side by side and aligned: they are read where they lie
    cdef Py_ssize_t lines  # cache lines of a row; 0 if its values don't lie side by side

    def __cinit__(self, array):
        PyObject_GetBuffer(array, &self.buffer, PyBUF_STRIDES | PyBUF_FORMAT)
        self.held = True
        self.owner = ref(owner(array))
        self.n, self.width = array.shape
        self.kind = ord(array.dtype.char)
        self.direct = (
            self.kind == (c'd' if MANTISSA == 52 else c'f')
            and (self.width == 1 or self.buffer.strides[1] == sizeof(real))
            and array.flags.aligned
        )
        self.lines = 0
        if self.width == 1 or self.buffer.strides[1] == self.buffer.itemsize:
            self.lines = self.width * self.buffer.itemsize // 64 + 1

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)

    cdef inline const char* place(self, Py_ssize_t i) noexcept nogil:
        return <const char*> self.buffer.buf + i * self.buffer.strides[0]

    cdef inline const real* row(self, Py_ssize_t i, real* converted) noexcept nogil:
        """Row i where it lies, or converted into `converted`."""
        cdef const char* source = self.place(i)
        if self.direct:
            return <const real*> source
        convert_row(self.kind, converted, source, self.buffer.strides[1], self.width)
        return converted

    cdef bint copy_finite(self, Py_ssize_t start, Py_ssize_t stop, real* out) noexcept nogil:
        """Rows start .. stop-1 into `out`; whether all are finite."""
        cdef Py_ssize_t i
        cdef bint finite = True
        cdef const real* row
        for i in range(start, stop):
            row = self.row(i, out)
            if row != out:
                memcpy(out, row, self.width * sizeof(real))
            finite = finite and all_finite(out, self.width)
            out += self.width
        return finite

    def copy(self, Py_ssize_t start, real[:, ::1] out):
        """Rows start, start + 1, ... into `out`; whether all are finite."""
        cdef bint finite
        with nogil:
            finite = self.copy_finite(start, start + out.shape[0], &out[0, 0])
        return finite

    def find_nonfinite(self):
        """The first row that holds a value not finite in this dtype, or -1."""
        cdef Py_ssize_t i, found = -1
        cdef Memory converted = Memory(self.width * sizeof(real))
        with nogil:
            for i in range(self.n):
                if not all_finite(self.row(i, converted.reals()), self.width):
                    found = i
                    break
        return found


def call_all_finite(const real[::1] values):
    cdef bint finite
    with nogil:
        finite = all_finite(&values[0], values.shape[0])
    return finite


def call_activation_backward(int activation, const real[::1] output, const real[::1] doutput, real[::1] dscores):
    with nogil:
        activation_backward(activation, &output[0], &doutput[0], &dscores[0], dscores.shape[0])


def call_power(double base, double exponent):
    """base**exponent for base > 0, with the same bits on every path; in the dtype's precision"""
    return <double> vlane(vexp(vset(<real> exponent) * vlog(vset(<real> base))), 0)
