// Packing of programmed weights, and the way back.
#include "layout.h"

#include <float.h>
#include <math.h>

namespace analogc {
namespace {

// Largest int16 code of a weight. Sums stay in int32: codes of a DAC of at most 8 bits are within
// 127, so |sum| <= 127 * limit * rows <= 2^31 - 1, also for every partial sum on the way.
int64_t weight_limit(const analogc_weight &w) {
    int64_t most = 1;
    for (int64_t r = 0; r < w.blocks; ++r) {
        const int64_t rows = w.rows[r + 1] - w.rows[r];
        most = rows > most ? rows : most;
    }
    const int64_t limit = INT32_MAX / (127 * most);
    return limit < INT16_MAX ? limit : INT16_MAX;
}

// Weight that code 1 stands for. Packing what was unpacked must give the same step again, so it is
// moved to where limit * step / limit is step in float arithmetic (an ulp or two at most).
float column_step(const float *row, int64_t k_count, float limit) {
    float peak = 0;
    for (int64_t k = 0; k < k_count; ++k) {
        const float size = fabsf(row[k]);
        if (!(size <= FLT_MAX)) return NAN;  // the whole column is void
        peak = size > peak ? size : peak;
    }
    if (peak <= FLT_MIN / 2) return 1;  // all codes will be 0
    float step = peak / limit;
    for (float next = step * limit / limit; next != step; next = step * limit / limit) step = next;
    return step < FLT_MIN ? FLT_MIN : step;
}

int16_t code_of(float weight, float step) {
    return step == step ? static_cast<int16_t>(rintf(weight / step)) : 0;
}

// Calls visit(element, n, k) for every stored weight, panel by panel in blocks that stay in cache;
// k = -1 at padding rows.
template <class Visit>
void for_each_gemm_weight(const analogc_weight &w, Visit visit) {
    const int64_t step = w.format == ANALOGC_INT16 ? 2 : 1;
    const int64_t per_group = w.columns / w.groups;
    for (int64_t r = 0; r < w.blocks; ++r) {
        const Block block(w, r);
        const int64_t rows = packed_rows(w, r), base = block_offset(w, r);
        for (int64_t g = 0; g < w.groups; ++g) {
            for (int64_t left = 0; left < per_group; left += kPanel) {
                const int64_t panel = base + (g * packed_columns(w) + left) * rows;
                const int64_t wide = packed_columns(w) - left;
                const int64_t stored = wide < kPanel ? wide : kPanel;
                const int64_t used = per_group - left < kPanel ? per_group - left : kPanel;
                int64_t row = 0, segment = 0;
                const auto put = [&](int64_t at, int64_t j, int64_t k) {
                    visit(panel + (at / step * stored + j) * step + at % step,
                          g * per_group + left + j, j < used ? k : -1);
                };
                const auto close = [&] {
                    if (segment % step) {
                        for (int64_t j = 0; j < stored; ++j) put(row, j, -1);
                        ++row;
                    }
                    segment = 0;
                };
                for_each_piece(w, r, [&](const Piece &piece) {
                    if (piece.begins_segment) close();
                    constexpr int64_t kTile = 32;
                    for (int64_t c0 = 0; c0 < piece.length; c0 += kTile) {
                        const int64_t c1 = c0 + kTile < piece.length ? c0 + kTile : piece.length;
                        for (int64_t j = 0; j < stored; ++j) {
                            for (int64_t c = c0; c < c1; ++c) {
                                const int64_t channel = block.first + piece.low + c;
                                put(row + c, j, channel * w.taps + piece.tap);
                            }
                        }
                    }
                    row += piece.length;
                    segment += piece.length;
                });
                close();
            }
        }
    }
}

template <class Visit>
void for_each_weight(const analogc_weight &w, Visit visit) {
    if (!uses_lanes(w)) return for_each_gemm_weight(w, visit);
    const int64_t wide = round_up(w.columns, 16), k_count = w.channels * w.taps;
    for (int64_t k = 0; k < k_count; ++k) {
        for (int64_t n = 0; n < wide; ++n) visit(k * wide + n, n, n < w.columns ? k : -1);
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
    if (w.format == ANALOGC_FLOAT32) {
        float *data = static_cast<float *>(w.data);
        for_each_weight(w, [&](int64_t at, int64_t n, int64_t k) {
            data[at] = k < 0 ? 0 : written[n * k_count + k];
        });
        return ANALOGC_OK;
    }
    const float limit = static_cast<float>(weight_limit(w));
    if (limit < 1) return ANALOGC_BAD_ARGUMENT;
    for (int64_t n = 0; n < w.columns; ++n) {
        w.step[n] = column_step(written + n * k_count, k_count, limit);
    }
    int16_t *data = static_cast<int16_t *>(w.data);
    for_each_weight(w, [&](int64_t at, int64_t n, int64_t k) {
        data[at] = k < 0 ? 0 : code_of(written[n * k_count + k], w.step[n]);
    });
    return ANALOGC_OK;
}

extern "C" int32_t analogc_unpack(const analogc_weight *weight, const float *alpha,
                                  float *written) {
    const analogc_weight &w = *weight;
    if (!is_valid(w)) return ANALOGC_BAD_ARGUMENT;
    const int64_t k_count = w.channels * w.taps;
    const float *real = static_cast<const float *>(w.data);
    const int16_t *code = static_cast<const int16_t *>(w.data);
    for_each_weight(w, [&](int64_t at, int64_t n, int64_t k) {
        if (k < 0) return;
        const float value = w.format == ANALOGC_INT16 ? code[at] * w.step[n] : real[at];
        written[n * k_count + k] = alpha ? value * alpha[n] : value;
    });
    return ANALOGC_OK;
}
