// Noise, ADC and digital accumulation, compiled once for each instruction set: plain loops over
// lanes, which vectorise and give the same bits everywhere.
#pragma once
#include "isa.h"
#include "scalar.h"

namespace analogc {
namespace {

constexpr int kGroup = 64;  // elements of the noise matrix that share 16 Philox blocks

// What the noise of one row block shares: the keys of all ten rounds and the upper counter words.
struct NoiseStream {
    Vector::Wide key0[10], key1[10], block, call;

    NoiseStream(uint64_t key, uint32_t row_block, uint32_t call_number)
        : block(Vector::set_wide(row_block)), call(Vector::set_wide(call_number)) {
        uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
        for (int round = 0; round < 10; ++round) {
            key0[round] = Vector::set_wide(k0);
            key1[round] = Vector::set_wide(k1);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
    }
};

// philox4x32_10 for 16 counters (low + lane, high, block, call), the words of each lane into
// word[0..3][lane]. The same numbers as scalar.h in 64-bit lanes, even and odd counters apart: one
// instruction then gives both halves of a product, which compilers do not find by themselves.
inline void philox_group(const NoiseStream &s, uint32_t low, uint32_t high, uint32_t (*word)[16]) {
    using V = Vector;
    using Wide = V::Wide;
    constexpr int kStep = 2 * V::kWideLanes;
    const Wide m0 = V::set_wide(0xD2511F53u), m1 = V::set_wide(0xCD9E8D57u);
    uint64_t even_lane[V::kWideLanes];
    for (int l = 0; l < V::kWideLanes; ++l) even_lane[l] = 2 * static_cast<uint64_t>(l);
    const Wide lanes = V::load_wide(even_lane);
    for (int at = 0; at < 16; at += kStep) {
        Wide c0[2], c1[2], c2[2], c3[2];
        for (int odd = 0; odd < 2; ++odd) {
            // 16 lanes never carry out of `low`: it is a multiple of 16.
            c0[odd] = V::add_wide(V::set_wide(low + static_cast<uint32_t>(at + odd)), lanes);
            c1[odd] = V::set_wide(high);
            c2[odd] = s.block;
            c3[odd] = s.call;
        }
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; ++odd) {
                // Upper halves of c1 and c3 hold remains of products; nothing looks at them.
                const Wide p0 = V::mul_low_halves(c0[odd], m0);
                const Wide p1 = V::mul_low_halves(c2[odd], m1);
                c0[odd] = V::xor_wide(V::xor_wide(V::shift_right<32>(p1), c1[odd]), s.key0[round]);
                c2[odd] = V::xor_wide(V::xor_wide(V::shift_right<32>(p0), c3[odd]), s.key1[round]);
                c1[odd] = p1;
                c3[odd] = p0;
            }
        }
        V::store_wide(word[0] + at, V::interleave(c0[0], c0[1]));
        V::store_wide(word[1] + at, V::interleave(c1[0], c1[1]));
        V::store_wide(word[2] + at, V::interleave(c2[0], c2[1]));
        V::store_wide(word[3] + at, V::interleave(c3[0], c3[1]));
    }
}

// The 64 normal numbers of one group: block 16 * group + lane gives elements lane + 16 * word.
inline void group_normals(const NoiseStream &s, uint64_t group, float *z) {
    uint32_t word[4][16];
    philox_group(s, static_cast<uint32_t>(group << 4), static_cast<uint32_t>(group >> 28), word);
    for (int l = 0; l < 16; ++l) normal_pair(word[0][l], word[1][l], z[l], z[16 + l]);
    for (int l = 0; l < 16; ++l) normal_pair(word[2][l], word[3][l], z[32 + l], z[48 + l]);
}

alignas(64) const float kZeros[kGroup] = {};

// Of one group: sums, where they are in the task, and what they are added to.
template <class Acc>
struct Group {
    const Acc *acc;
    const float *p_steps, *z_steps, *gain, *bias, *base, *z;
};

// The common case in one loop: an ADC, one input range for all, no mask.
template <bool kNoise, class Acc>
inline void finish_group(const Group<Acc> &g, float levels, float *y) {
    for (int l = 0; l < kGroup; ++l) {
        const float p = static_cast<float>(g.acc[l]);
        const float t =
            kNoise ? adc_input(p, g.p_steps[l], g.z[l], g.z_steps[l]) : p * g.p_steps[l];
        y[l] = __builtin_fmaf(adc_step(t, levels), g.gain[l], g.base[l]) + g.bias[l];
    }
}

// Every case.
template <class Acc>
inline void finish_any_group(const Group<Acc> &g, const Epilogue &e, int64_t at, float *y) {
    float t[kGroup];
    for (int l = 0; l < kGroup; ++l) t[l] = static_cast<float>(g.acc[l]);
    if (e.noise) {
        for (int l = 0; l < kGroup; ++l) t[l] = adc_input(t[l], g.p_steps[l], g.z[l], g.z_steps[l]);
    } else {
        for (int l = 0; l < kGroup; ++l) t[l] *= g.p_steps[l];
    }
    const float *unit = e.unit ? e.unit + at : nullptr;
    if (unit) {
        // A range that is no number makes the output none; otherwise this adds zero.
        for (int l = 0; l < kGroup; ++l) t[l] += unit[l] - unit[l];
    }
    if (e.mask) {
        uint8_t *mask = e.mask + at;
        for (int l = 0; l < kGroup; ++l) mask[l] = adc_inside(t[l], e.adc_levels);
    }
    if (e.adc_levels > 0) {
        for (int l = 0; l < kGroup; ++l) t[l] = adc_step(t[l], e.adc_levels);
    }
    if (unit) {
        for (int l = 0; l < kGroup; ++l) t[l] *= unit[l];
    }
    for (int l = 0; l < kGroup; ++l) {
        y[l] = __builtin_fmaf(t[l], g.gain[l], g.base[l]) + g.bias[l];
    }
}

template <class Acc>
void epilogue_of(const Epilogue &e) {
    const bool common = e.adc_levels > 0 && !e.unit && !e.mask;
    const NoiseStream stream(e.key, e.block, e.call);
    float z[kGroup];
    for (int64_t row = 0; row < e.rows; ++row) {
        const uint64_t group = e.first_group + static_cast<uint64_t>(row) * e.group_stride;
        for (int64_t column = 0; column < e.columns; column += kGroup) {
            const int64_t at = row * e.columns + column;
            float *y = e.y + row * e.y_stride + column;
            const Group<Acc> g{static_cast<const Acc *>(e.acc) + at,
                               e.p_steps + column,
                               e.z_steps + column,
                               e.gain + column,
                               e.bias ? e.bias + column : kZeros,
                               e.first ? kZeros : y,
                               z};
            if (e.noise) {
                group_normals(stream, group + static_cast<uint64_t>(column / kGroup), z);
            }
            float sum[kGroup];  // not y itself, which g may read
            if (!common) {
                finish_any_group(g, e, at, sum);
            } else if (e.noise) {
                finish_group<true>(g, e.adc_levels, sum);
            } else {
                finish_group<false>(g, e.adc_levels, sum);
            }
            __builtin_memcpy(y, sum, sizeof sum);
        }
    }
}

void epilogue(const Epilogue &e) {
    e.integer ? epilogue_of<int32_t>(e) : epilogue_of<float>(e);
}

void normals(float *out, uint64_t first_group, int64_t groups, uint64_t key, uint32_t block,
             uint32_t call) {
    const NoiseStream stream(key, block, call);
    for (int64_t i = 0; i < groups; ++i) {
        group_normals(stream, first_group + static_cast<uint64_t>(i), out + i * kGroup);
    }
}

}  // namespace
}  // namespace analogc
