// Per-element arithmetic of an analog layer: random numbers, DAC and ADC. C++17 and CUDA.
//
// One definition for every processor: each operation is an IEEE float32 mul, add, fma, sqrt or
// conversion, in a fixed order, so the bits are the same on AVX-512, AVX2, SSE2 and CUDA. Compile
// with -ffp-contract=off and without -ffast-math. Functions have no branches and call nothing, so a
// plain loop over 16 lanes of them vectorises.
//
// normal_pair has no fma on purpose: runtime/philox.py repeats it operation by operation in NumPy,
// which has none, and gets the same bits.
#pragma once

#if defined(__CUDACC__) || defined(ANALOGC_CUDA_HOST)  // the latter: tests run CUDA code as C++
#define ANALOGC_FN __device__ __forceinline__
#define ANALOGC_FMA(a, b, c) __fmaf_rn(a, b, c)
#define ANALOGC_MUL(a, b) __fmul_rn(a, b)
#define ANALOGC_ADD(a, b) __fadd_rn(a, b)
#define ANALOGC_SQRT(a) __fsqrt_rn(a)
#define ANALOGC_BITS(f) __float_as_int(f)
#define ANALOGC_FLOAT(i) __int_as_float(i)
#define ANALOGC_UMULHI(a, b) __umulhi(a, b)
#define ANALOGC_UNROLL _Pragma("unroll")
#else
#include <cstring>
#define ANALOGC_FN static inline __attribute__((always_inline))
#define ANALOGC_FMA(a, b, c) __builtin_fmaf(a, b, c)
#define ANALOGC_MUL(a, b) ((a) * (b))
#define ANALOGC_ADD(a, b) ((a) + (b))
#define ANALOGC_SQRT(a) __builtin_sqrtf(a)
#define ANALOGC_BITS(f) analogc::bits_of(f)
#define ANALOGC_FLOAT(i) analogc::float_of(i)
#define ANALOGC_UMULHI(a, b) ((unsigned)(((unsigned long long)(a) * (b)) >> 32))
#define ANALOGC_UNROLL _Pragma("GCC unroll 16")
namespace analogc {
ANALOGC_FN int bits_of(float value) {
    int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
ANALOGC_FN float float_of(int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
}  // namespace analogc
#endif

namespace analogc {

// Philox4x32-10 (Salmon et al., SC 2011; Random123): four random words from a counter and a key.
// The words replace the counter.
ANALOGC_FN void philox4x32_10(unsigned &c0, unsigned &c1, unsigned &c2, unsigned &c3, unsigned k0,
                              unsigned k1) {
    ANALOGC_UNROLL
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = ANALOGC_UMULHI(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        const unsigned high2 = ANALOGC_UMULHI(c2, 0xCD9E8D57u), low2 = c2 * 0xCD9E8D57u;
        c0 = high2 ^ c1 ^ k0;
        c1 = low2;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

// Two independent standard normal numbers from two random words (Box-Muller on their top 24 bits):
//   sqrt(-2 ln u) cos(2 pi v), sqrt(-2 ln u) sin(2 pi v),  u in (0, 1], so at most 5.77 sigma.
ANALOGC_FN void normal_pair(unsigned radius_word, unsigned angle_word, float &z0, float &z1) {
    // ln u, where u = n / 2^24 = 2^e (1 + f) with f in [sqrt(1/2) - 1, sqrt(2) - 1).
    const float n = (float)((int)(radius_word >> 8) + 1);
    const int shifted = ANALOGC_BITS(n) - 0x4B3504F3;
    const float e = (float)(shifted >> 23);
    const float f = ANALOGC_ADD(ANALOGC_FLOAT((shifted & 0x007FFFFF) + 0x3F3504F3), -1.0f);
    const float ff = ANALOGC_MUL(f, f);
    float p = -0.07634493f;
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), 0.12761575f);
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), -0.13160183f);
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), 0.14201759f);
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), -0.16623357f);
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), 0.20001227f);
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), -0.2500082f);
    p = ANALOGC_ADD(ANALOGC_MUL(p, f), 0.33333331f);
    // ln 2 in two parts: e times the first is exact.
    p = ANALOGC_ADD(ANALOGC_MUL(ANALOGC_MUL(p, f), ff), ANALOGC_MUL(e, -2.12194440e-4f));
    p = ANALOGC_ADD(p, ANALOGC_MUL(ff, -0.5f));
    const float ln = ANALOGC_ADD(ANALOGC_ADD(p, f), ANALOGC_MUL(e, 0.693359375f));
    const float radius = ANALOGC_SQRT(ANALOGC_MUL(ln, -2.0f));
    // Angle: the nearest quarter turn, and t in [-1/8, 1/8) turns from there.
    const int turns = (int)(angle_word >> 8) + 0x200000;
    const float t = ANALOGC_MUL((float)((turns & 0x3FFFFF) - 0x200000), 5.9604644775390625e-8f);
    const float tt = ANALOGC_MUL(t, t);
    float s = -75.4534f;
    s = ANALOGC_ADD(ANALOGC_MUL(s, tt), 81.593941f);
    s = ANALOGC_ADD(ANALOGC_MUL(s, tt), -41.341675f);
    // 2 pi in two parts.
    s = ANALOGC_ADD(ANALOGC_MUL(s, tt), -1.7484555e-7f);
    s = ANALOGC_MUL(ANALOGC_ADD(s, 6.2831855f), t);
    float c = 59.245964f;
    c = ANALOGC_ADD(ANALOGC_MUL(c, tt), -85.443741f);
    c = ANALOGC_ADD(ANALOGC_MUL(c, tt), 64.939323f);
    c = ANALOGC_ADD(ANALOGC_MUL(c, tt), -19.739208f);
    c = ANALOGC_ADD(ANALOGC_MUL(c, tt), 1.0f);
    // Quarter q of the turn: (c, s), (-s, c), (-c, -s), (s, -c).
    const int odd = -((turns >> 22) & 1);
    const int c_bits = ANALOGC_BITS(c), s_bits = ANALOGC_BITS(s);
    const int cos_sign = (int)((unsigned)(turns + 0x400000) << 8) & (int)0x80000000u;
    const int sin_sign = (int)((unsigned)turns << 8) & (int)0x80000000u;
    const int cos_bits = (s_bits & odd) | (c_bits & ~odd);
    const int sin_bits = (c_bits & odd) | (s_bits & ~odd);
    z0 = ANALOGC_MUL(radius, ANALOGC_FLOAT(cos_bits ^ cos_sign));
    z1 = ANALOGC_MUL(radius, ANALOGC_FLOAT(sin_bits ^ sin_sign));
}

// Nearest integer in [-levels, levels], halves to even. NaN gives NaN, infinity the last code, as
// torch's round and clamp do; only the sign of a zero may differ. Up to 2^22 levels: adding and
// taking away 1.5 * 2^23 rounds in place, and unlike rintf it is one instruction on every ISA.
ANALOGC_FN float round_clamped(float value, float levels) {
    value = levels < value ? levels : value;
    value = -levels > value ? -levels : value;
    return ANALOGC_ADD(ANALOGC_ADD(value, 12582912.0f), -12582912.0f);
}

// Code of a DAC: x in units of the layer's input, steps = levels / input range.
ANALOGC_FN float dac_code(float x, float steps, float levels) {
    return round_clamped(ANALOGC_MUL(x, steps), levels);
}

// What an ADC is given, in its steps: the partial sum p and the normal number z, each times its
// steps per unit (levels / (A * dac levels); output noise * levels / A).
ANALOGC_FN float adc_input(float p, float p_steps, float z, float z_steps) {
    return ANALOGC_FMA(z, z_steps, ANALOGC_MUL(p, p_steps));
}

// Code of an ADC: t = adc_input(...).
ANALOGC_FN float adc_step(float t, float levels) { return round_clamped(t, levels); }

// 1 where the ADC does not clip (the mask of the backward pass), 0 where it does or t is NaN.
ANALOGC_FN bool adc_inside(float t, float levels) {
    return ANALOGC_FLOAT(ANALOGC_BITS(t) & 0x7FFFFFFF) <= levels;
}

}  // namespace analogc
