// Packing of programmed weights, and the way back.
#include "isa.h"
#include "layout.h"

#include <float.h>
#include <math.h>
#include <string.h>

namespace analogc {
namespace {

// Largest int16 code of a weight. Its halves fit 8 bits each, 256 * 127 + 127, because the CUDA path
// multiplies them apart and must have the same codes. Sums stay in int32: codes of a DAC of at most
// 8 bits are within 127, so |sum| <= 127 * limit * rows <= 2^31 - 1, also for every partial sum.
int64_t weight_limit(const analogc_weight &w) {
    int64_t most = 1;
    for (int64_t r = 0; r < w.blocks; ++r) {
        const int64_t rows = w.rows[r + 1] - w.rows[r];
        most = rows > most ? rows : most;
    }
    constexpr int64_t kMost = 256 * 127 + 127;
    const int64_t limit = INT32_MAX / (127 * most);
    return limit < kMost ? limit : kMost;
}

// Weight that code 1 stands for. Packing what was unpacked must give the same step again, so it is
// moved to where limit * step / limit is step in float arithmetic (an ulp or two at most).
float column_step(const float *row, int64_t k_count, float limit) {
    const float peak = isa().absmax(row, k_count);
    if (!(peak <= FLT_MAX)) return NAN;  // the whole column is void
    if (peak <= FLT_MIN / 2) return 1;   // all codes will be 0
    float step = peak / limit;
    for (float next = step * limit / limit; next != step; next = step * limit / limit) step = next;
    return step < FLT_MIN ? FLT_MIN : step;
}

// Up to kLine weights of one column that lie in neighbouring packed rows.
constexpr int64_t kLine = 128;
struct Line {
    int64_t column;     // n
    int64_t k, k_step;  // of the first weight, and from one to the next
    int64_t count;
    int64_t panel;           // first element of the panel
    int64_t row, at, width;  // first packed row; place among the `width` columns of the panel

    // Elements of the weights when rows are packed one by one, or in pairs.
    int64_t single(int64_t i) const { return panel + (row + i) * width + at; }
    int64_t paired(int64_t i) const {
        return panel + ((row + i) / 2 * width + at) * 2 + (row + i) % 2;
    }
};

// All weights, panel by panel in blocks that stay in cache. Nothing for padding.
template <class Visit>
void for_each_gemm_line(const analogc_weight &w, Visit visit) {
    const int64_t step = w.format == ANALOGC_INT16 ? 2 : 1;
    const int64_t per_group = w.columns / w.groups, stored = packed_columns(w);
    for (int64_t r = 0; r < w.blocks; ++r) {
        const Block block(w, r);
        const int64_t rows = packed_rows(w, r), base = block_offset(w, r);
        for (int64_t panel = 0, width = 0; panel < w.groups * stored; panel += width) {
            const int64_t g = panel / stored, left = panel % stored;
            width = stored - left < kPanel ? stored - left : kPanel;
            const int64_t used = per_group - left < kPanel ? per_group - left : kPanel;
            int64_t row = 0, in_segment = 0;
            for_each_piece(w, r, [&](const Piece &piece) {
                if (piece.begins_segment) {
                    row += in_segment % step;
                    in_segment = 0;
                }
                for (int64_t c = 0; c < piece.length; c += kLine) {
                    const int64_t count = piece.length - c < kLine ? piece.length - c : kLine;
                    const int64_t k = (block.first + piece.low + c) * w.taps + piece.tap;
                    for (int64_t j = 0; j < used; ++j) {
                        visit(Line{g * per_group + left + j, k, w.taps, count, base + panel * rows,
                                   row + c, j, width});
                    }
                }
                row += piece.length;
                in_segment += piece.length;
            });
        }
    }
}

template <class Visit>
void for_each_line(const analogc_weight &w, Visit visit) {
    if (!uses_lanes(w)) return for_each_gemm_line(w, visit);
    const int64_t width = round_up(w.columns, 16), k_count = w.channels * w.taps;
    for (int64_t k = 0; k < k_count; k += kLine) {
        const int64_t count = k_count - k < kLine ? k_count - k : kLine;
        for (int64_t n = 0; n < w.columns; ++n) visit(Line{n, k, 1, count, 0, k, n, width});
    }
}

// Calls move(element of the packed weight, i) for each weight of the line.
template <class Element, class Move>
void move_line(const Line &line, bool paired, Element *data, Move move) {
    // Two loops, because a choice for each weight would cost more than moving it.
    if (paired) {
        for (int64_t i = 0; i < line.count; ++i) move(data[line.paired(i)], i);
    } else {
        for (int64_t i = 0; i < line.count; ++i) move(data[line.single(i)], i);
    }
}

bool is_valid(const analogc_weight &w) {
    if (w.columns < 1 || w.channels < 1 || w.taps < 1 || w.groups < 1 || w.blocks < 1) return false;
    if (w.columns % w.groups || w.tap_row < 1 || w.taps % w.tap_row) return false;
    return w.rows[0] == 0 && w.rows[w.blocks] == w.channels * w.taps;
}

}  // namespace
}  // namespace analogc

using namespace analogc;

extern "C" int64_t analogc_packed_size(const analogc_weight *weight) {
    if (!is_valid(*weight)) return -1;
    const int64_t size = weight->format == ANALOGC_INT16 ? 2 : 4;
    return block_offset(*weight, weight->blocks) * size;
}

extern "C" int32_t analogc_pack(const analogc_weight *weight, const float *written) {
    const analogc_weight &w = *weight;
    if (!is_valid(w)) return ANALOGC_BAD_ARGUMENT;
    const int64_t k_count = w.channels * w.taps;
    const bool integer = w.format == ANALOGC_INT16, paired = integer && !uses_lanes(w);
    const float limit = static_cast<float>(weight_limit(w));
    if (integer && limit < 1) return ANALOGC_BAD_ARGUMENT;
    for (int64_t n = 0; integer && n < w.columns; ++n) {
        w.step[n] = column_step(written + n * k_count, k_count, limit);
    }
    memset(w.data, 0, static_cast<size_t>(analogc_packed_size(&w)));
    float *real = static_cast<float *>(w.data);
    int16_t *code = static_cast<int16_t *>(w.data);
    for_each_line(w, [&](const Line &line) {
        const float *from = written + line.column * k_count + line.k;
        float value[kLine];
        for (int64_t i = 0; i < line.count; ++i) value[i] = from[i * line.k_step];
        if (!integer) {
            move_line(line, paired, real, [&](float &to, int64_t i) { to = value[i]; });
            return;
        }
        int16_t line_code[kLine];
        isa().dac_int16(value, line.count, 1.0f / w.step[line.column], limit, line_code);
        move_line(line, paired, code, [&](int16_t &to, int64_t i) { to = line_code[i]; });
    });
    return ANALOGC_OK;
}

extern "C" int32_t analogc_unpack(const analogc_weight *weight, const float *alpha,
                                  float *written) {
    const analogc_weight &w = *weight;
    if (!is_valid(w)) return ANALOGC_BAD_ARGUMENT;
    const int64_t k_count = w.channels * w.taps;
    const bool integer = w.format == ANALOGC_INT16, paired = integer && !uses_lanes(w);
    const float *real = static_cast<const float *>(w.data);
    const int16_t *code = static_cast<const int16_t *>(w.data);
    for_each_line(w, [&](const Line &line) {
        const float unit = integer ? w.step[line.column] : 1.0f;
        const float scale = alpha ? alpha[line.column] : 1.0f;
        float *to = written + line.column * k_count + line.k;
        const auto take = [&](float value, int64_t i) {
            to[i * line.k_step] = value * unit * scale;
        };
        integer ? move_line(line, paired, code, take) : move_line(line, paired, real, take);
    });
    return ANALOGC_OK;
}

// Rows whose part of a panel is unpacked before the next panel's: few enough that the pages they are
// written to stay in the TLB, many enough to read a stretch of the panel.
constexpr int64_t kUnpackRows = 64;

extern "C" int32_t analogc_unpack_rows(const analogc_weight *weight, int64_t block, int64_t first,
                                       int64_t count, const float *alpha, float *rows,
                                       int32_t threads) {
    const analogc_weight &w = *weight;
    if (!is_valid(w) || w.taps != 1 || w.groups != 1 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    if (block < 0 || block >= w.blocks || first < 0 || first % 2 || count < 0) {
        return ANALOGC_BAD_ARGUMENT;
    }
    const int64_t all = w.rows[block + 1] - w.rows[block];
    if (first > all || count > all - first) return ANALOGC_BAD_ARGUMENT;
    const bool integer = w.format == ANALOGC_INT16;
    const int64_t n = w.columns, stored = packed_columns(w), step = integer ? 2 : 1;
    const int64_t packed = packed_rows(w, block);
    const float *real = static_cast<const float *>(w.data) + block_offset(w, block);
    const int16_t *code = static_cast<const int16_t *>(w.data) + block_offset(w, block);
    const int64_t panels = (n + kPanel - 1) / kPanel, parts = (count + kUnpackRows - 1) / kUnpackRows;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < parts * panels; ++i) {
        const int64_t from = i / panels * kUnpackRows, left = i % panels * kPanel;
        const int64_t to = from + kUnpackRows < count ? from + kUnpackRows : count;
        const int64_t width = stored - left < kPanel ? stored - left : kPanel;
        const int64_t used = n - left < kPanel ? n - left : kPanel;
        for (int64_t k = from; k < to; k += step) {
            const int64_t at = left * packed + (first + k) * width;
            float *even = rows + k * n + left;
            if (integer) {
                isa().pair_of_rows(code + at, used, w.step + left, alpha + left, even,
                                   k + 1 < to ? even + n : nullptr);
                continue;
            }
            for (int64_t j = 0; j < used; ++j) even[j] = real[at + j] * alpha[left + j];
        }
    }
    return ANALOGC_OK;
}
