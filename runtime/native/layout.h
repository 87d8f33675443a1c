// How a weight [N, K] lies in its packed form.
//
// GEMM form: [row block][group][panel of <= 64 columns][packed row][column], int16 with packed rows
// in pairs: [row / 2][column][2]. The rows of a block go tap by tap, channels inside, because that
// is the order in which a channels-last feature map holds them. Taps that are neighbours in such a
// map form one segment; for int16 each segment is padded to an even length with a row of zeros.
//
// Lane form, for groups with few outputs (depthwise): [k][columns padded to 16].
#pragma once
#include "abi.h"

namespace analogc {

constexpr int64_t kPanel = 64;

inline int64_t round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

// Columns of the noise matrix.
inline int64_t matrix_width(int64_t columns) {
    if (columns <= 16) return 16;
    return columns <= 32 ? 32 : round_up(columns, 64);
}

// Channels low .. low + length of tap `tap`, relative to the first channel that the block touches.
struct Piece {
    int64_t tap, low, length;
    bool begins_segment;
};

struct Block {
    int64_t start, stop;  // rows of K
    int64_t first, last;  // channels touched

    Block(const analogc_weight &w, int64_t r)
        : start(w.rows[r]),
          stop(w.rows[r + 1]),
          first(start / w.taps),
          last((stop + w.taps - 1) / w.taps) {}

    int64_t channels() const { return last - first; }
};

// Pieces of row block r in packed order.
template <class Visit>
void for_each_piece(const analogc_weight &w, int64_t r, Visit visit) {
    const Block b(w, r);
    bool open = false;  // whether the last piece ended at the block's last channel
    for (int64_t tap = 0; tap < w.taps; ++tap) {
        // Channel c has k = c * taps + tap in [start, stop).
        const int64_t low = b.first + (b.first * w.taps + tap < b.start);
        const int64_t high = b.last - ((b.last - 1) * w.taps + tap >= b.stop);
        if (high <= low) {
            open = false;
            continue;
        }
        const bool joins = open && low == b.first && tap % w.tap_row != 0 && w.groups == 1;
        visit(Piece{tap, low - b.first, high - low, !joins});
        open = high == b.last;
    }
}

inline bool uses_lanes(const analogc_weight &w) {
    return w.groups > 1 && w.columns / w.groups <= 4;
}

// Rows of block r as packed (GEMM form).
inline int64_t packed_rows(const analogc_weight &w, int64_t r) {
    int64_t total = 0, segment = 0;
    const int64_t step = w.format == ANALOGC_INT16 ? 2 : 1;
    for_each_piece(w, r, [&](const Piece &piece) {
        if (piece.begins_segment) {
            total += round_up(segment, step);
            segment = 0;
        }
        segment += piece.length;
    });
    return total + round_up(segment, step);
}

// Columns of one group as packed.
inline int64_t packed_columns(const analogc_weight &w) {
    return round_up(w.columns / w.groups, 16);
}

// Elements before row block r; r = R gives the number of all.
inline int64_t block_offset(const analogc_weight &w, int64_t r) {
    if (uses_lanes(w)) return w.rows[r] * round_up(w.columns, 16);
    int64_t rows = 0;
    for (int64_t i = 0; i < r; ++i) rows += packed_rows(w, i);
    return rows * w.groups * packed_columns(w);
}

}  // namespace analogc
