// Registers of the GEMM tile on AVX-512: 6 x 4 of 32 hold sums.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operands inside its own intrinsics for a mistake (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace analogc {
namespace {

struct Vector {
    using Float = __m512;
    using Int = __m512i;
    static constexpr int kLanes = 16, kStripRegs = 4, kStripRows = 6;
    static Float zero_float() { return _mm512_setzero_ps(); }
    static Float load_float(const float *p) { return _mm512_loadu_ps(p); }
    static Float broadcast_float(const float *p) { return _mm512_set1_ps(*p); }
    static Float fma(Float acc, Float a, Float b) { return _mm512_fmadd_ps(a, b, acc); }
    static void store_float(float *p, Float v) { _mm512_storeu_ps(p, v); }
    static Int zero_int() { return _mm512_setzero_si512(); }
    static Int load_int(const int16_t *p) { return _mm512_loadu_si512(p); }
    static Int broadcast_pair(const int16_t *p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, 4);
        return _mm512_set1_epi32(pair);
    }
    static Int dot_pairs(Int acc, Int a, Int b) {
#if ANALOGC_VNNI
        // GCC 12 spills every sum of the intrinsic; this it keeps in registers.
        asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
        return acc;
#else
        return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
    }
    static void store_int(int32_t *p, Int v) { _mm512_storeu_si512(p, v); }

    // 64-bit lanes.
    using Wide = __m512i;
    static constexpr int kWideLanes = 8;
    static Wide set_wide(uint64_t value) { return _mm512_set1_epi64(static_cast<int64_t>(value)); }
    static Wide load_wide(const void *p) { return _mm512_loadu_si512(p); }
    static void store_wide(void *p, Wide v) { _mm512_storeu_si512(p, v); }
    static Wide add_wide(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
    static Wide xor_wide(Wide a, Wide b) { return _mm512_xor_si512(a, b); }
    static Wide mul_low_halves(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
    template <int kBits>
    static Wide shift_right(Wide a) {
        return _mm512_srli_epi64(a, kBits);
    }
    // 32-bit words: low halves of `even` at even places, of `odd` at odd ones.
    static Wide interleave(Wide even, Wide odd) {
        return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    }
    static Wide raise_halves(Wide a) { return _mm512_slli_epi64(a, 32); }
};

}  // namespace
}  // namespace analogc
