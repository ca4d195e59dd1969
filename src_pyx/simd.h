/* The vector type of one instruction-set path and one dtype, and what Cython cannot say itself.

   Every core module is compiled with its own flags; FASTOPT_DOUBLE picks the dtype, the compiler's macros
   the path. A fusion is always written as vfma or rfma: -ffp-contract=off keeps the compiler from adding
   its own, so that every path, and every build, rounds at the same places. */
#ifndef FASTOPT_SIMD_H
#define FASTOPT_SIMD_H

#include <sched.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef FASTOPT_DOUBLE
typedef double real;
typedef int64_t rint_t;
typedef uint64_t ruint_t;
#define FASTOPT_MANTISSA 52
#define FASTOPT_SQRT_HALF UINT64_C(0x3fe6a09e667f3bcd)
#define FASTOPT_SUFFIX(name) name##_pd
#define FASTOPT_FMA __builtin_fma
#else
typedef float real;
typedef int32_t rint_t;
typedef uint32_t ruint_t;
#define FASTOPT_MANTISSA 23
#define FASTOPT_SQRT_HALF 0x3f3504f3u
#define FASTOPT_SUFFIX(name) name##_ps
#define FASTOPT_FMA __builtin_fmaf
#endif

/* MR rows by two vectors of accumulators are the largest tile that leaves registers for the operands. */
#if defined(__AVX512F__)
#define FASTOPT_BYTES 64
#define FASTOPT_MR 14
#define FASTOPT_OP(name) FASTOPT_SUFFIX(_mm512_##name)
#elif defined(__AVX2__) && defined(__FMA__)
#define FASTOPT_BYTES 32
#define FASTOPT_MR 6
#define FASTOPT_OP(name) FASTOPT_SUFFIX(_mm256_##name)
#else
#define FASTOPT_BYTES 16
#define FASTOPT_MR 4
#endif
enum { VL = FASTOPT_BYTES / sizeof(real), LANES = 2 * VL, MR = FASTOPT_MR, SUM_LANES = 16, MANTISSA = FASTOPT_MANTISSA };

/* BLOCK steps of a contraction at a time: what two operands of a tile need stays in the first-level cache. A unit of the
   engine has ROWS_A_UNIT rows, two vectors on the widest path, or twice as many. */
enum { BLOCK = 128, ROWS_A_UNIT = 32, BLOCK_VECTORS = BLOCK * 2 * ROWS_A_UNIT / VL };

/* Series of exp and log, as long as the dtype needs: the first term left out is below a tenth of its epsilon. */
enum { EXP_TERMS = sizeof(real) == 8 ? 13 : 7, LOG_TERMS = sizeof(real) == 8 ? 10 : 4 };
static const real EXP_SERIES[] = {1, 1, 1 / 2., 1 / 6., 1 / 24., 1 / 120., 1 / 720., 1 / 5040., 1 / 40320., 1 / 362880.,
                                  1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.};
static const real LOG_SERIES[] = {2, 2 / 3., 2 / 5., 2 / 7., 2 / 9., 2 / 11., 2 / 13., 2 / 15., 2 / 17., 2 / 19., 2 / 21.};
/* ln 2 = high + low, high so short that n * high is exact for every exponent n. Outside [lowest, highest] exp is 0 or inf. */
static const real LOG2_E = 1.4426950408889634, NOT_A_NUMBER = __builtin_nan("");
#ifdef FASTOPT_DOUBLE
static const real LN2_HIGH = 0.6931471803691238, LN2_LOW = 1.9082149292705877e-10, EXP_LOWEST = -746, EXP_HIGHEST = 710;
#else
static const real LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440054690583e-4f, EXP_LOWEST = -104, EXP_HIGHEST = 89;
#endif

typedef real vec __attribute__((vector_size(FASTOPT_BYTES)));
typedef real vec_unaligned __attribute__((vector_size(FASTOPT_BYTES), aligned(sizeof(real)), may_alias));
typedef rint_t ivec __attribute__((vector_size(FASTOPT_BYTES)));
typedef ruint_t uvec __attribute__((vector_size(FASTOPT_BYTES)));
typedef rint_t ivec_unaligned __attribute__((vector_size(FASTOPT_BYTES), aligned(sizeof(rint_t)), may_alias));

#ifdef __clang__
static inline vec vshuffle(vec a, vec b, ivec from) {
    vec c;
    for (int i = 0; i < VL; i++) c[i] = from[i] < VL ? a[from[i]] : b[from[i] - VL];
    return c;
}
#define FASTOPT_SHUFFLE vshuffle
#else
#define FASTOPT_SHUFFLE __builtin_shuffle
#endif

#define INLINED __attribute__((always_inline)) void
#define INLINED_VEC __attribute__((always_inline)) vec
#define NOT_INLINED __attribute__((noinline)) void

static inline vec vset(real a) { return a - (vec){0}; }
static inline vec vload(const real *p) { return *(const vec_unaligned *)p; }
static inline void vstore(real *p, vec a) { *(vec_unaligned *)p = a; }

/* The fused chain that every sum of products is made of. Without the instruction (baseline) it is two roundings. */
#if defined(FASTOPT_OP)
static inline vec vfma(vec a, vec b, vec c) { return FASTOPT_OP(fmadd)(a, b, c); }
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
static inline vec vfma(vec a, vec b, vec c) { for (int i = 0; i < VL; i++) c[i] = FASTOPT_FMA(a[i], b[i], c[i]); return c; }
#else
static inline vec vfma(vec a, vec b, vec c) { return a * b + c; }
#endif

static inline vec vsqrt(vec a) {
#if defined(FASTOPT_OP)
    return FASTOPT_OP(sqrt)(a);
#else
    for (int i = 0; i < VL; i++) a[i] = sizeof(real) == 8 ? __builtin_sqrt(a[i]) : __builtin_sqrtf(a[i]);
    return a;
#endif
}

/* a < b ? x : y in each lane; false where a or b is NaN. */
static inline vec vselect_less(vec a, vec b, vec x, vec y) {
#if FASTOPT_BYTES == 64 && defined(FASTOPT_DOUBLE)
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x);
#elif FASTOPT_BYTES == 64
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
#elif FASTOPT_BYTES == 32
    return FASTOPT_OP(blendv)(y, x, FASTOPT_OP(cmp)(a, b, _CMP_LT_OQ));
#else
    ivec m = (ivec)(a < b);
    return (vec)(((ivec)x & m) | ((ivec)y & ~m));
#endif
}

#if FASTOPT_BYTES == 32
static inline ivec vfirst(Py_ssize_t n) {
    static const rint_t ones_and_zeros[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return *(const ivec_unaligned *)(ones_and_zeros + 8 - n);
}
#endif

/* The first n <= VL lanes from memory, the others `pad`; nothing past p + n is touched. */
static inline vec vload_part(const real *p, Py_ssize_t n, real pad) {
#if FASTOPT_BYTES == 64 && defined(FASTOPT_DOUBLE)
    return _mm512_mask_loadu_pd(vset(pad), (__mmask8)((1u << n) - 1), p);
#elif FASTOPT_BYTES == 64
    return _mm512_mask_loadu_ps(vset(pad), (__mmask16)((1u << n) - 1), p);
#elif FASTOPT_BYTES == 32
    const ivec first = vfirst(n);
    return (vec)((ivec)FASTOPT_OP(maskload)(p, (__m256i)first) | ((ivec)vset(pad) & ~first));
#else
    vec a = vset(pad);
    memcpy(&a, p, (size_t)n * sizeof(real));
    return a;
#endif
}
static inline void vstore_part(real *p, vec a, Py_ssize_t n) {
#if FASTOPT_BYTES == 64 && defined(FASTOPT_DOUBLE)
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), a);
#elif FASTOPT_BYTES == 64
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
#elif FASTOPT_BYTES == 32
    FASTOPT_OP(maskstore)(p, (__m256i)vfirst(n), a);
#else
    memcpy(p, &a, (size_t)n * sizeof(real));
#endif
}
static inline vec vset_lane(vec a, Py_ssize_t lane, real value) { a[lane] = value; return a; }
static inline real vlane(vec a, Py_ssize_t lane) { return a[lane]; }
static inline vec vabs(vec a) { return (vec)((ivec)a & ~(ivec)vset((real)-0.0)); }

/* n + 1.5 * 2**MANTISSA holds the integer n in its low bits: rounding and conversion in one addition. */
static inline vec vround_magic(void) { return vset((real)(INT64_C(3) << (MANTISSA - 1))); }
/* 2**n for an integral n in the exponent's normal range. */
static inline vec vpow2(vec n) {
    const rint_t bias = ((rint_t)1 << (sizeof(real) * 8 - 2 - MANTISSA)) - 1;
    return (vec)((uvec)(n + (vround_magic() + (real)bias)) << MANTISSA);
}
/* x = m * 2**e with m in [sqrt(1/2), sqrt(2)), for positive normal x; unsigned, for other x overflow. */
static inline vec vsplit(vec x, vec *e) {
    const uvec n = (uvec)((ivec)((uvec)x - FASTOPT_SQRT_HALF) >> MANTISSA);
    *e = (vec)(n + (uvec)vround_magic()) - vround_magic();
    return (vec)((uvec)x - (n << MANTISSA));
}

/* Transposes VL vectors in place, swapping off-diagonal blocks of h, h/2, ... 1 lanes; h is VL/2 for all, or less where
   the larger blocks are swapped already. */
static const rint_t LANE_NUMBERS[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static inline __attribute__((always_inline)) void vtranspose(vec *rows, int h) {
    const ivec lane = *(const ivec_unaligned *)LANE_NUMBERS;
#pragma GCC unroll 8
    for (; h > 0; h /= 2) {
        /* a's lanes without h, and b's in the places of the others; then those left over */
        const ivec upper = lane + (lane & h) * (VL / h - 1), lower = upper + h;
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++)
            if (!(i & h)) {
                vec a = rows[i], b = rows[i + h];
                rows[i] = FASTOPT_SHUFFLE(a, b, upper);
                rows[i + h] = FASTOPT_SHUFFLE(a, b, lower);
            }
    }
}
/* Half a vector from one place, half from another: loads do the first and dearest stage of a transposition. */
static inline vec vload_halves(const real *low, const real *high) {
#if FASTOPT_BYTES == 64
    return (vec)_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                                   _mm256_loadu_si256((const __m256i *)high), 1);
#elif FASTOPT_BYTES == 32
    return (vec)_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)low)),
                                        _mm_loadu_si128((const __m128i *)high), 1);
#else
    vec a;
    memcpy(&a, low, sizeof(a) / 2);
    memcpy((real *)&a + VL / 2, high, sizeof(a) / 2);
    return a;
#endif
}

static inline float half_to_float(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float value;
    if (magnitude >= 0x0f800000) magnitude |= 0x70000000; /* inf and NaN keep an exponent of all ones */
    memcpy(&value, &magnitude, 4);
    if (magnitude < 0x0f800000) value *= 0x1p112f;        /* rebias; exact for subnormals too */
    memcpy(&magnitude, &value, 4);
    magnitude |= sign;
    memcpy(&value, &magnitude, 4);
    return value;
}

/* (a * b) >> 64 */
static inline uint64_t multiply_high(uint64_t a, uint64_t b) { return (uint64_t)(((unsigned __int128)a * b) >> 64); }

static inline void prefetch(const char *p) { __builtin_prefetch(p, 0, 2); }
static inline void prefetch_close(const char *p) { __builtin_prefetch(p, 0, 3); }

static inline int64_t atomic_read(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_write(int64_t *p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
static inline int64_t atomic_subtract(int64_t *p, int64_t value) { return __atomic_sub_fetch(p, value, __ATOMIC_ACQ_REL); }
static inline int atomic_swap_if(int64_t *p, int64_t expected, int64_t value) {
    return __atomic_compare_exchange_n(p, &expected, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
/* Waits a moment; after many, lets another thread have the processor. */
static inline void spin(Py_ssize_t waits) {
    if (waits % 256 == 255) sched_yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
}

#endif
