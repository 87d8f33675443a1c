// GEMM micro-kernels, compiled once for each instruction set. The includer defines `Vector`:
// registers of Vector::kLanes lanes and the largest tile that fits the register file.
#pragma once
#include "isa.h"

namespace analogc {
namespace {

// How one type of code is multiplied; kStep codes at a time.
struct FloatMath {
    using Code = float;
    using Acc = float;
    using Reg = Vector::Float;
    static constexpr int kStep = 1;
    static Reg zero() { return Vector::zero_float(); }
    static Reg load(const float *p) { return Vector::load_float(p); }
    static Reg broadcast(const float *p) { return Vector::broadcast_float(p); }
    static Reg mac(Reg acc, Reg a, Reg b) { return Vector::fma(acc, a, b); }
    static void store(float *p, Reg v) { Vector::store_float(p, v); }
};

struct Int16Math {
    using Code = int16_t;
    using Acc = int32_t;
    using Reg = Vector::Int;
    static constexpr int kStep = 2;
    static Reg zero() { return Vector::zero_int(); }
    static Reg load(const int16_t *p) { return Vector::load_int(p); }
    static Reg broadcast(const int16_t *p) { return Vector::broadcast_pair(p); }
    static Reg mac(Reg acc, Reg a, Reg b) { return Vector::dot_pairs(acc, a, b); }
    static void store(int32_t *p, Reg v) { Vector::store_int(p, v); }
};

// kRows input vectors times kRegs registers of columns, all sums in registers.
template <class Math, int kRows, int kRegs>
void gemm_tile(const Gemm<typename Math::Code, typename Math::Acc> &g, int64_t first_row,
               int64_t first_column) {
    using Reg = typename Math::Reg;
    const typename Math::Code *input[kRows];
    Reg sum[kRows][kRegs];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
        input[i] = g.codes + g.rows[first_row + i];
#pragma GCC unroll 4
        for (int j = 0; j < kRegs; ++j) sum[i][j] = Math::zero();
    }
    const int64_t line = g.panel_columns * Math::kStep;
    const typename Math::Code *weight = g.panel + first_column * Math::kStep;
    for (int64_t s = 0; s < g.segment_count; ++s) {
        const int64_t end = g.segments[s].offset + g.segments[s].length;
        for (int64_t k = g.segments[s].offset; k < end; k += Math::kStep) {
            Reg column[kRegs];
#pragma GCC unroll 4
            for (int j = 0; j < kRegs; ++j) {
                column[j] = Math::load(weight + j * Vector::kLanes * Math::kStep);
            }
            weight += line;
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) {
                const Reg code = Math::broadcast(input[i] + k);
#pragma GCC unroll 4
                for (int j = 0; j < kRegs; ++j) {
                    sum[i][j] = Math::mac(sum[i][j], code, column[j]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kRegs; ++j) {
            Math::store(g.acc + (first_row + i) * g.acc_stride + first_column + j * Vector::kLanes,
                        sum[i][j]);
        }
    }
}

template <class Math, int kRows, int kRegs>
void gemm_strip(const Gemm<typename Math::Code, typename Math::Acc> &g, int64_t column) {
    int64_t row = 0;
    for (; row + kRows <= g.row_count; row += kRows) gemm_tile<Math, kRows, kRegs>(g, row, column);
    if (kRows > 4 && row + 4 <= g.row_count) {
        gemm_tile<Math, 4, kRegs>(g, row, column);
        row += 4;
    }
    for (; row + 2 <= g.row_count; row += 2) gemm_tile<Math, 2, kRegs>(g, row, column);
    if (row < g.row_count) gemm_tile<Math, 1, kRegs>(g, row, column);
}

template <class Math>
void gemm(const Gemm<typename Math::Code, typename Math::Acc> &g) {
    constexpr int kMost = Vector::kStripRegs;
    constexpr int64_t kStrip = kMost * Vector::kLanes;
    int64_t column = 0;
    for (; column + kStrip <= g.panel_columns; column += kStrip) {
        gemm_strip<Math, Vector::kStripRows, kMost>(g, column);
    }
    // Panels are multiples of 16 columns, so only strips wider than that leave a remainder.
    const int64_t left = (g.panel_columns - column) / Vector::kLanes;
    if (kMost > 3 && left == 3) gemm_strip<Math, 8, 3>(g, column);
    if (kMost > 3 && left == 2) gemm_strip<Math, 8, 2>(g, column);
    if (kMost > 3 && left == 1) gemm_strip<Math, 8, 1>(g, column);
}

// Depthwise and its like: every column has inputs of its own, so lanes are columns. Products of
// codes are summed in uint32, which wraps like a register where a NaN code makes the sum void.
inline void lane_mac(float &sum, float code, float weight) {
    sum = __builtin_fmaf(code, weight, sum);
}
inline void lane_mac(uint32_t &sum, int16_t code, int16_t weight) {
    sum += static_cast<uint32_t>(static_cast<int32_t>(code) * weight);
}

template <class Sum, class Code, class Acc>
void lanes(const LaneSums<Code, Acc> &g) {
    for (int64_t n = 0; n < g.columns; n += 16) {
        for (int64_t i = 0; i < g.row_count; ++i) {
            Sum sum[16] = {};
            const Code *input = g.codes + g.rows[i] + n, *weight = g.weight + n;
            for (int64_t k = 0; k < g.k_count; ++k, weight += g.columns) {
                const Code *at = input + g.offsets[k];
                for (int l = 0; l < 16; ++l) lane_mac(sum[l], at[l], weight[l]);
            }
            __builtin_memcpy(g.acc + i * g.acc_stride + n, sum, sizeof sum);
        }
    }
}

}  // namespace
}  // namespace analogc
