"""What the processor and the build offer."""

cdef extern from *:
    """
    #if defined(__x86_64__)
    static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
    static int has_avx512(void) {
        return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int has_avx2(void) { return 0; }
    static int has_avx512(void) { return 0; }
    #endif
    #ifdef _OPENMP
    #define FASTOPT_OPENMP 1
    #else
    #define FASTOPT_OPENMP 0
    #endif
    """
    bint has_avx2()
    bint has_avx512()
    bint FASTOPT_OPENMP

SUPPORTED = ["baseline"] + ["avx2"] * has_avx2() + ["avx512"] * has_avx512()
OPENMP = bool(FASTOPT_OPENMP)
