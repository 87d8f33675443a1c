// Philox for 16 counters at a time, and the 64 normal numbers that they give. C++17, any CPU.
//
// The same words as philox4x32_10 of scalar.h, twice as fast: compilers do not find the 32 x 32 -> 64
// bit multiplication of x86 in a loop over its lanes. The arithmetic is all integer, so exact.
// Everything has internal linkage: files built for different ISAs must not share a function.
#pragma once

#include <cstdint>
#include <cstring>

#include "scalar.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace analogc {

#if defined(__AVX512F__)
constexpr int PHILOX_LANES = 8;
#elif defined(__AVX2__)
constexpr int PHILOX_LANES = 4;
#else
constexpr int PHILOX_LANES = 2;
#endif
typedef std::uint64_t Lanes __attribute__((vector_size(PHILOX_LANES * 8)));
typedef std::uint32_t HalfLanes __attribute__((vector_size(PHILOX_LANES * 4)));

// Products of the low 32 bits of each lane.
ANALOGC_FN Lanes multiply_low(Lanes a, Lanes b) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// The keys of the ten rounds, made once per call of a layer.
struct PhiloxKeys {
    std::uint64_t round[20];
};

ANALOGC_FN PhiloxKeys philox_keys(std::uint64_t key) {
    PhiloxKeys keys;
    std::uint32_t k0 = (std::uint32_t)key, k1 = (std::uint32_t)(key >> 32);
    for (int i = 0; i < 10; ++i) {
        keys.round[2 * i] = k0;
        keys.round[2 * i + 1] = k1;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return keys;
}

// words[w][l] = word w of counter (16 * group + l, row_block, call), l = 0..15.
ANALOGC_FN void philox_16(std::uint64_t group, std::uint32_t row_block, std::uint32_t call,
                          const PhiloxKeys &keys, std::uint32_t words[4][16]) {
    const Lanes zero = {};
    const Lanes factor0 = zero + 0xD2511F53u, factor2 = zero + 0xCD9E8D57u;
    Lanes lane;
    for (int l = 0; l < PHILOX_LANES; ++l) lane[l] = (std::uint64_t)l;
    // Two vectors at a time hide the latency of the multiplication. Upper halves of lanes are dirt.
    for (int first = 0; first < 16; first += 2 * PHILOX_LANES) {
        Lanes c[4][2];
        for (int h = 0; h < 2; ++h) {
            c[0][h] = lane + (group * 16 + (std::uint64_t)(first + h * PHILOX_LANES));
            c[1][h] = zero + (group >> 28);
            c[2][h] = zero + row_block;
            c[3][h] = zero + call;
        }
        ANALOGC_UNROLL
        for (int i = 0; i < 10; ++i) {
            ANALOGC_UNROLL
            for (int h = 0; h < 2; ++h) {
                const Lanes product0 = multiply_low(c[0][h], factor0);
                const Lanes product2 = multiply_low(c[2][h], factor2);
                c[0][h] = (product2 >> 32) ^ c[1][h] ^ keys.round[2 * i];
                c[2][h] = (product0 >> 32) ^ c[3][h] ^ keys.round[2 * i + 1];
                c[1][h] = product2;
                c[3][h] = product0;
            }
        }
        for (int w = 0; w < 4; ++w) {
            for (int h = 0; h < 2; ++h) {
                const HalfLanes low = __builtin_convertvector(c[w][h], HalfLanes);
                std::memcpy(&words[w][first + h * PHILOX_LANES], &low, sizeof low);
            }
        }
    }
}

// normals[0..63] = elements 64 * group .. 64 * group + 63 of the noise matrix of a row block.
ANALOGC_FN void normals_64(std::uint64_t group, std::uint32_t row_block, std::uint32_t call,
                           const PhiloxKeys &keys, float *normals) {
    alignas(64) std::uint32_t words[4][16];
    philox_16(group, row_block, call, keys, words);
    for (int pair = 0; pair < 4; pair += 2) {
        const std::uint32_t *radius = words[pair], *angle = words[pair + 1];
        float *z = normals + 16 * pair;
#pragma omp simd
        for (int l = 0; l < 16; ++l) normal_pair(radius[l], angle[l], z[l], z[16 + l]);
    }
}

// Width of a row of the noise matrix of `columns` columns: no group of 64 crosses rows in the wide.
ANALOGC_FN std::int64_t noise_width(std::int64_t columns) {
    return columns <= 16 ? 16 : columns <= 32 ? 32 : (columns + 63) / 64 * 64;
}

}  // namespace analogc
