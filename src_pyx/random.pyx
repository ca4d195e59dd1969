# Counter-based random numbers: SplitMix64 (Steele, Lea & Flood 2014) read at any position, keyed by what they decide.

cdef enum:
    SHUFFLE_STREAM = 1
    DROPOUT_STREAM = 2
    DROPOUT_BITS = 24
cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15


cdef inline uint64_t mix(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t> 0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline uint64_t extend(uint64_t key, uint64_t word) noexcept nogil:
    return mix((key ^ word) + GOLDEN)


cdef inline uint64_t random_bits(uint64_t key, uint64_t i) noexcept nogil:
    return mix(key + (i + 1) * GOLDEN)


cdef void shuffle(int64_t* order, Py_ssize_t n, uint64_t seed, uint64_t epoch) noexcept nogil:
    """order <- a permutation of 0 .. n-1 (Fisher-Yates)"""
    cdef uint64_t key = extend(extend(mix(seed + GOLDEN), SHUFFLE_STREAM), epoch)
    cdef Py_ssize_t i, j
    for i in range(n):
        order[i] = i
    for i in range(n - 1, 0, -1):
        j = <Py_ssize_t> multiply_high(random_bits(key, i), i + 1)
        order[i], order[j] = order[j], order[i]


cdef void dropout_factors(real* factors, Py_ssize_t lanes, Py_ssize_t width, Py_ssize_t row, double p,
                          uint64_t seed, uint64_t step, uint64_t layer) noexcept nogil:
    """factors (width, lanes) <- 0 with probability p, else 1/(1-p), for `lanes` rows of a batch's hidden outputs"""
    cdef uint64_t key = extend(extend(extend(mix(seed + GOLDEN), DROPOUT_STREAM), step), layer)
    cdef uint64_t bits, threshold = <uint64_t> (p * (1 << DROPOUT_BITS) + 0.5)
    cdef real kept = <real> (1 / (1 - p))
    cdef Py_ssize_t j, r
    for j in range(width):
        for r in range(lanes):
            bits = random_bits(key, (row + r) * width + j) >> (64 - DROPOUT_BITS)
            factors[j * lanes + r] = kept if bits >= threshold else 0
