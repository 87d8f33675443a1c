// Packing of programmed weights, and the way back.
#include "isa.h"
#include "layout.h"

#include <float.h>
#include <math.h>
#include <string.h>

namespace analogc {
namespace {

// Largest int16 code of a weight. Its halves fit 8 bits each, 256 * 127 + 127, because the CUDA
// path multiplies them apart and must have the same codes. Sums stay in int32: codes of a DAC of at
// most 8 bits are within 127, so |sum| <= 127 * limit * rows <= 2^31 - 1, also partial ones.
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

// Starting threads costs as much as packing this many weights.
constexpr int64_t kFew = 1 << 15;

// Weights k, k + k_step, ... of neighbouring columns, which lie in neighbouring packed rows.
constexpr int64_t kLine = 128;
struct Chunk {
    int64_t column, columns;
    int64_t k, k_step, count;  // count <= kLine
    int64_t panel;             // first element of the panel
    int64_t row, width;        // first packed row; columns of the panel, padding and all

    // Element of weight i of column j when rows are packed one by one, or in pairs.
    int64_t single(int64_t i, int64_t j) const { return panel + (row + i) * width + j; }
    int64_t paired(int64_t i, int64_t j) const {
        return panel + ((row + i) / 2 * width + j) * 2 + (row + i) % 2;
    }
};

// A panel of the GEMM form, or all of the lane form: what one thread packs.
struct Panel {
    int64_t block, group, left;  // left: its first column in the group
    int64_t first, width, rows;  // first element; columns and rows as packed
};

int64_t panel_count(const analogc_weight &w) {
    if (uses_lanes(w)) return 1;
    return w.blocks * w.groups * ((packed_columns(w) + kPanel - 1) / kPanel);
}

Panel panel_of(const analogc_weight &w, int64_t i) {
    if (uses_lanes(w)) return {0, 0, 0, 0, round_up(w.columns, 16), w.channels * w.taps};
    const int64_t stored = packed_columns(w), of_group = (stored + kPanel - 1) / kPanel;
    const int64_t r = i / of_group / w.groups, g = i / of_group % w.groups;
    const int64_t left = i % of_group * kPanel, rows = packed_rows(w, r);
    return {r, g, left, block_offset(w, r) + (g * stored + left) * rows,
            stored - left < kPanel ? stored - left : kPanel, rows};
}

// The weights of a panel, in chunks that stay in cache. Nothing for padding.
template <class Visit>
void for_each_chunk(const analogc_weight &w, const Panel &panel, Visit visit) {
    if (uses_lanes(w)) {
        for (int64_t k = 0; k < panel.rows; k += kLine) {
            const int64_t count = panel.rows - k < kLine ? panel.rows - k : kLine;
            visit(Chunk{0, w.columns, k, 1, count, 0, k, panel.width});
        }
        return;
    }
    const int64_t step = w.format == ANALOGC_INT16 ? 2 : 1, per_group = w.columns / w.groups;
    const int64_t left = per_group - panel.left, used = left < panel.width ? left : panel.width;
    const Block block(w, panel.block);
    int64_t row = 0, in_segment = 0;
    for_each_piece(w, panel.block, [&](const Piece &piece) {
        if (piece.begins_segment) {
            row += in_segment % step;
            in_segment = 0;
        }
        for (int64_t c = 0; c < piece.length; c += kLine) {
            const int64_t count = piece.length - c < kLine ? piece.length - c : kLine;
            const int64_t k = (block.first + piece.low + c) * w.taps + piece.tap;
            visit(Chunk{panel.group * per_group + panel.left, used, k, w.taps, count, panel.first,
                        row + c, panel.width});
        }
        row += piece.length;
        in_segment += piece.length;
    });
}

// Chunk as rows of columns, as they are packed: `from` holds its columns, `stride` words apart.
void turn(const void *from, int64_t stride, const Chunk &chunk, int64_t words, void *to) {
    isa().store_planes(static_cast<const float *>(from), chunk.columns, words, stride,
                       static_cast<float *>(to), chunk.width);
}

void pack_chunk(const Chunk &chunk, const float *written, int64_t k_count, float *data) {
    constexpr int64_t kStride = kLine + 16;  // a power of two would crowd a few sets of a cache
    alignas(64) float value[kPanel * kStride];
    for (int64_t first = 0; first < chunk.columns; first += kPanel) {
        Chunk part = chunk;
        part.columns = chunk.columns - first < kPanel ? chunk.columns - first : kPanel;
        for (int64_t j = 0; j < part.columns; ++j) {
            const float *from = written + (chunk.column + first + j) * k_count + chunk.k;
            float *line = value + j * kStride;
            for (int64_t i = 0; i < chunk.count; ++i) line[i] = from[i * chunk.k_step];
        }
        turn(value, kStride, part, chunk.count, data + chunk.single(0, first));
    }
}

void pack_chunk(const Chunk &chunk, const float *written, int64_t k_count, const float *step,
                float limit, bool paired, int16_t *data) {
    // Codes in pairs of rows are words, which turn as floats do.
    constexpr int64_t kStride = kLine + 32;
    alignas(64) int16_t code[kPanel * kStride];
    const bool words = paired && chunk.row % 2 == 0;
    for (int64_t first = 0; first < chunk.columns; first += kPanel) {
        Chunk part = chunk;
        part.columns = chunk.columns - first < kPanel ? chunk.columns - first : kPanel;
        for (int64_t j = 0; j < part.columns; ++j) {
            const int64_t n = chunk.column + first + j;
            const float *from = written + n * k_count + chunk.k;
            int16_t *line = code + j * kStride;
            float value[kLine];
            if (chunk.k_step != 1) {
                for (int64_t i = 0; i < chunk.count; ++i) value[i] = from[i * chunk.k_step];
                from = value;
            }
            isa().dac_int16(from, chunk.count, 1.0f / step[n], limit, line);
            line[chunk.count] = 0;
            if (words) continue;
            for (int64_t i = 0; i < chunk.count; ++i) {
                data[paired ? chunk.paired(i, first + j) : chunk.single(i, first + j)] = line[i];
            }
        }
        if (!words) continue;
        turn(code, kStride / 2, part, (chunk.count + 1) / 2, data + chunk.paired(0, first));
    }
}

bool is_valid(const analogc_weight &w) {
    if (w.columns < 1 || w.channels < 1 || w.taps < 1 || w.groups < 1 || w.blocks < 1) return false;
    if (w.columns % w.groups || w.tap_row < 1 || w.taps % w.tap_row) return false;
    return w.rows[0] == 0 && w.rows[w.blocks] == w.channels * w.taps;
}

// Weights of a chunk that is packed in pairs of rows, to written[n, k].
void unpack_pairs(const Chunk &c, const int16_t *code, const float *step, const float *alpha,
                  int64_t k_count, float *written) {
    constexpr int64_t kStride = kPanel + 16;  // a power of two would crowd a few sets of a cache
    alignas(64) float value[(kLine + 2) * kStride], ones[kPanel];
    for (int64_t j = 0; !alpha && j < c.columns; ++j) ones[j] = 1;
    const int64_t first = c.row / 2 * 2, skip = c.row - first;
    for (int64_t i = 0; i < skip + c.count; i += 2) {
        isa().pair_of_rows(code + c.panel + (first + i) * c.width, c.columns, step + c.column,
                           alpha ? alpha + c.column : ones, value + i * kStride,
                           value + (i + 1) * kStride);
    }
    for (int64_t j = 0; j < c.columns; ++j) {
        const float *from = value + skip * kStride + j;
        float *to = written + (c.column + j) * k_count + c.k;
        for (int64_t at = 0; at < c.count; ++at) to[at * c.k_step] = from[at * kStride];
    }
}

}  // namespace
}  // namespace analogc

using namespace analogc;

extern "C" int64_t analogc_packed_size(const analogc_weight *weight) {
    if (!is_valid(*weight)) return -1;
    const int64_t size = weight->format == ANALOGC_INT16 ? 2 : 4;
    return block_offset(*weight, weight->blocks) * size;
}

extern "C" int32_t analogc_pack(const analogc_weight *weight, const float *written,
                                int32_t threads) {
    const analogc_weight &w = *weight;
    if (!is_valid(w) || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const int64_t k_count = w.channels * w.taps, panels = panel_count(w);
    const bool integer = w.format == ANALOGC_INT16, paired = integer && !uses_lanes(w);
    const float limit = static_cast<float>(weight_limit(w));
    if (integer && limit < 1) return ANALOGC_BAD_ARGUMENT;
#pragma omp parallel num_threads(threads) if (threads > 1 && w.columns * k_count > kFew)
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < (integer ? w.columns : 0); ++n) {
            w.step[n] = column_step(written + n * k_count, k_count, limit);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < panels; ++i) {
            const Panel panel = panel_of(w, i);
            const int64_t size = panel.rows * panel.width;
            float *real = static_cast<float *>(w.data);
            int16_t *code = static_cast<int16_t *>(w.data);
            if (integer) {
                memset(code + panel.first, 0, static_cast<size_t>(size) * sizeof *code);
            } else {
                memset(real + panel.first, 0, static_cast<size_t>(size) * sizeof *real);
            }
            for_each_chunk(w, panel, [&](const Chunk &chunk) {
                if (integer) {
                    pack_chunk(chunk, written, k_count, w.step, limit, paired, code);
                } else {
                    pack_chunk(chunk, written, k_count, real);
                }
            });
        }
    }
    return ANALOGC_OK;
}

extern "C" int32_t analogc_unpack(const analogc_weight *weight, const float *alpha, float *written,
                                  int32_t threads) {
    const analogc_weight &w = *weight;
    if (!is_valid(w) || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const int64_t k_count = w.channels * w.taps, panels = panel_count(w);
    const bool integer = w.format == ANALOGC_INT16, paired = integer && !uses_lanes(w);
    const float *real = static_cast<const float *>(w.data);
    const int16_t *code = static_cast<const int16_t *>(w.data);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) \
    if (threads > 1 && w.columns * k_count > kFew)
    for (int64_t i = 0; i < panels; ++i) {
        for_each_chunk(w, panel_of(w, i), [&](const Chunk &c) {
            if (paired) unpack_pairs(c, code, w.step, alpha, k_count, written);
            for (int64_t j = 0; !paired && j < c.columns; ++j) {
                const int64_t n = c.column + j;
                const float unit = integer ? w.step[n] : 1.0f, scale = alpha ? alpha[n] : 1.0f;
                float *to = written + n * k_count + c.k;
                // Two loops, because a choice for each weight would cost more than moving it.
                const auto put = [&](int64_t at, float value) {
                    to[at * c.k_step] = value * unit * scale;
                };
                if (integer) {
                    for (int64_t at = 0; at < c.count; ++at) put(at, code[c.single(at, j)]);
                } else {
                    for (int64_t at = 0; at < c.count; ++at) put(at, real[c.single(at, j)]);
                }
            }
        });
    }
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
