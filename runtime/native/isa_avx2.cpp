// Kernels for AVX2 with FMA (Haswell, Zen and later).
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace analogc {
namespace {

// Registers of the GEMM tile: 4 x 2 of 16 hold sums.
struct Vector {
    using Float = __m256;
    using Int = __m256i;
    static constexpr int kLanes = 8, kStripRegs = 2, kStripRows = 4;
    static Float zero_float() { return _mm256_setzero_ps(); }
    static Float load_float(const float *p) { return _mm256_loadu_ps(p); }
    static Float broadcast_float(const float *p) { return _mm256_broadcast_ss(p); }
    static Float fma(Float acc, Float a, Float b) { return _mm256_fmadd_ps(a, b, acc); }
    static void store_float(float *p, Float v) { _mm256_storeu_ps(p, v); }
    static Int zero_int() { return _mm256_setzero_si256(); }
    static Int load_int(const int16_t *p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    }
    static Int broadcast_pair(const int16_t *p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, 4);
        return _mm256_set1_epi32(pair);
    }
    static Int dot_pairs(Int acc, Int a, Int b) {
        return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
    }
    static void store_int(int32_t *p, Int v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), v);
    }

    // 64-bit lanes.
    using Wide = __m256i;
    static constexpr int kWideLanes = 4;
    static Wide set_wide(uint64_t value) { return _mm256_set1_epi64x(static_cast<int64_t>(value)); }
    static Wide load_wide(const void *p) {
        return _mm256_loadu_si256(static_cast<const __m256i *>(p));
    }
    static void store_wide(void *p, Wide v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }
    static Wide add_wide(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
    static Wide xor_wide(Wide a, Wide b) { return _mm256_xor_si256(a, b); }
    static Wide mul_low_halves(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
    template <int kBits>
    static Wide shift_right(Wide a) {
        return _mm256_srli_epi64(a, kBits);
    }
    static Wide raise_halves(Wide a) { return _mm256_slli_epi64(a, 32); }
    // 32-bit words: low halves of `even` at even places, of `odd` at odd ones.
    static Wide interleave(Wide even, Wide odd) {
        return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    }
};

}  // namespace
}  // namespace analogc

#include "table.h"
namespace analogc {
const Isa kAvx2 = ANALOGC_TABLE("avx2");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
