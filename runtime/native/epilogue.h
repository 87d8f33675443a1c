// Noise, ADC and digital accumulation, compiled once for each instruction set: plain loops over
// lanes, which vectorise and give the same bits everywhere.
#pragma once
#include "isa.h"
#include "scalar.h"

namespace analogc {
namespace {

constexpr int kGroup = 64;  // elements of the noise matrix that share 16 Philox blocks

// The 64 normal numbers of one group: block 16 * group + lane gives elements lane + 16 * word.
inline void group_normals(float *z, uint64_t group, uint32_t key0, uint32_t key1, uint32_t block,
                          uint32_t call) {
    const uint32_t low = static_cast<uint32_t>(group << 4);  // 16 lanes never carry out of it
    const uint32_t high = static_cast<uint32_t>(group >> 28);
    for (int l = 0; l < 16; ++l) {
        unsigned c0 = low + l, c1 = high, c2 = block, c3 = call;
        philox4x32_10(c0, c1, c2, c3, key0, key1);
        normal_pair(c0, c1, z[l], z[16 + l]);
        normal_pair(c2, c3, z[32 + l], z[48 + l]);
    }
}

inline void epilogue_group(const Epilogue &e, int64_t row, int64_t column, uint64_t group) {
    const int64_t at = row * e.columns + column;
    float p[kGroup];
    if (e.integer) {
        const int32_t *acc = static_cast<const int32_t *>(e.acc) + at;
        for (int l = 0; l < kGroup; ++l) p[l] = static_cast<float>(acc[l]);
    } else {
        const float *acc = static_cast<const float *>(e.acc) + at;
        for (int l = 0; l < kGroup; ++l) p[l] = acc[l];
    }
    const float *p_steps = e.p_steps + column;
    if (e.noise) {
        const float *z_steps = e.z_steps + column;
        float z[kGroup];
        group_normals(z, group, e.key0, e.key1, e.block, e.call);
        for (int l = 0; l < kGroup; ++l) p[l] = adc_input(p[l], p_steps[l], z[l], z_steps[l]);
    } else {
        for (int l = 0; l < kGroup; ++l) p[l] *= p_steps[l];
    }
    const float *unit = e.unit ? e.unit + at : nullptr;
    if (unit) {
        // A range that is no number makes the output none; otherwise this adds zero.
        for (int l = 0; l < kGroup; ++l) p[l] += unit[l] - unit[l];
    }
    if (e.mask) {
        uint8_t *mask = e.mask + at;
        for (int l = 0; l < kGroup; ++l) mask[l] = adc_inside(p[l], e.adc_levels);
    }
    if (e.adc_levels > 0) {
        for (int l = 0; l < kGroup; ++l) p[l] = adc_step(p[l], e.adc_levels);
    }
    if (unit) {
        for (int l = 0; l < kGroup; ++l) p[l] *= unit[l];
    }
    const float *gain = e.gain + column;
    float *y = e.y + row * e.y_stride + column;
    if (e.first) {
        for (int l = 0; l < kGroup; ++l) p[l] *= gain[l];
    } else {
        for (int l = 0; l < kGroup; ++l) p[l] = __builtin_fmaf(p[l], gain[l], y[l]);
    }
    if (e.bias) {
        const float *bias = e.bias + column;
        for (int l = 0; l < kGroup; ++l) p[l] += bias[l];
    }
    __builtin_memcpy(y, p, sizeof p);
}

void epilogue(const Epilogue &e) {
    for (int64_t row = 0; row < e.rows; ++row) {
        const uint64_t group = e.first_group + static_cast<uint64_t>(row) * e.group_stride;
        for (int64_t column = 0; column < e.columns; column += kGroup) {
            epilogue_group(e, row, column, group + static_cast<uint64_t>(column / kGroup));
        }
    }
}

void normals(float *out, uint64_t first_group, int64_t groups, uint32_t key0, uint32_t key1,
             uint32_t block, uint32_t call) {
    for (int64_t i = 0; i < groups; ++i) {
        group_normals(out + i * kGroup, first_group + static_cast<uint64_t>(i), key0, key1, block,
                      call);
    }
}

}  // namespace
}  // namespace analogc
