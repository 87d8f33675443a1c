// Kernels for AVX-512 with VNNI (Cascade Lake, Zen 4 and later).
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2,prefer-vector-width=512")
#endif
#define ANALOGC_VNNI 1
#include "vector_avx512.h"
#include "table.h"
namespace analogc {
const Isa kAvx512Vnni = ANALOGC_TABLE("avx512vnni");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
