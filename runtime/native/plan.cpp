#include "plan.h"

#include <stdlib.h>

namespace analogc {

bool Arena::reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return true;
    free(base_);
    size_ = 0;
    base_ = static_cast<unsigned char *>(aligned_alloc(64, static_cast<size_t>(bytes)));
    if (!base_) return false;
    size_ = bytes;
    return true;
}

void Arena::release() {
    if (size_ <= kKept) return;
    free(base_);
    base_ = nullptr;
    size_ = 0;
}

Arena::~Arena() {
    free(base_);
}

Arena &thread_arena() {
    static thread_local Arena arena;
    return arena;
}

Plan::Plan(const analogc_layer &l) : layer(l), w(l.weight) {
    pixels = l.out[0] * l.out[1] * l.out[2];
    vectors = l.batch * pixels;
    width = matrix_width(w.columns);
    // 96 rows reuse a panel often enough to hide its way from L2; sums and outputs of a task fit L2
    // beside it. Groups may straddle any column, so a grouped layer is not cut along columns.
    constexpr int64_t kRows = 96, kColumns = 256, kElements = kRows * kColumns;
    chunk_columns = w.groups > 1 || width < kColumns ? width : kColumns;
    chunk_rows = kElements / chunk_columns;
    chunk_rows = chunk_rows > kRows ? kRows : chunk_rows < 12 ? 12 : chunk_rows / 6 * 6;
    // Enough tasks for all threads.
    const int64_t share = (vectors + l.threads - 1) / (l.threads > 0 ? l.threads : 1);
    if (l.threads > 1 && share < chunk_rows) chunk_rows = share < 12 ? 12 : round_up(share, 6);
}

void ColumnConstants::fill(const analogc_layer &l) const {
    const analogc_weight &w = l.weight;
    const bool integer = w.format == ANALOGC_INT16;
    const float dac = l.dac_levels > 0 ? static_cast<float>(l.dac_levels) : 1.0f;
    const float adc = static_cast<float>(l.adc_levels);
    const int64_t period = matrix_width(w.columns);
    for (int64_t r = 0; r < w.blocks; ++r) {
        const float unit = l.dac_levels > 0 && !l.dynamic ? l.input_range[r] : 1.0f;
        float *p = p_steps + r * width, *z = z_steps + r * width, *g = gain + r * width;
        const bool each = l.adc_per_column;
        const float *range = l.adc_levels > 0 ? l.adc_range + (each ? r * w.columns : r) : nullptr;
        for (int64_t n = 0; n < w.columns; ++n) {
            const float step = integer ? w.step[n] : 1.0f;
            const float full = range ? range[each ? n : 0] : 1.0f;
            p[n] = range ? adc / (full * dac) * step : step;
            z[n] = range ? l.output_noise * adc / full : l.output_noise * dac;
            g[n] = (range ? unit * full / adc : unit / dac) * l.alpha[n];
        }
        for (int64_t n = w.columns; n < period; ++n) p[n] = z[n] = g[n] = 0;
        for (int64_t n = period; n < width; ++n) {
            p[n] = p[n - period];
            z[n] = z[n - period];
            g[n] = g[n - period];
        }
    }
    for (int64_t n = 0; n < width; ++n) {
        const int64_t column = n % period;
        bias[n] = l.bias && column < w.columns ? l.bias[column] : 0;
    }
}

}  // namespace analogc
