// One call of a layer: codes of the inputs, then tasks of (input vectors x columns), each of which
// takes its row blocks through GEMM, noise, ADC and digital sum while the sums are in cache.
//
// A result is a function of the operands only: every sum is formed in one order, and noise belongs
// to its element, so neither threads nor the cut into tasks can change a bit.
#include "codes.h"
#include "task.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace analogc {
namespace {

int thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Images (or vectors) first .. last.
template <class Code>
int32_t forward(const analogc_layer &layer, int64_t first, int64_t last) {
    State<Code> state(layer);
    Arena &arena = thread_arena();
    if (!state.begin(arena)) return ANALOGC_NO_MEMORY;
#pragma omp parallel num_threads(layer.threads) if (layer.threads > 1)
    {
        const Plan &plan = state.plan;
        for (int64_t start = first; start < last; start += state.at_once) {
            const int64_t left = last - start;
            const int64_t stop = start + (left < state.at_once ? left : state.at_once);
            Drive<Code>(state).run(start, stop);
            const int64_t v0 = start * plan.pixels, v1 = stop * plan.pixels;
            const int64_t chunks = (v1 - v0 + plan.chunk_rows - 1) / plan.chunk_rows;
#pragma omp for schedule(static)
            for (int64_t task = 0; task < chunks * plan.column_tasks(); ++task) {
                const int64_t begin = v0 + task % chunks * plan.chunk_rows;
                const int64_t end = begin + plan.chunk_rows < v1 ? begin + plan.chunk_rows : v1;
                Task<Code>(state, task / chunks, begin, end, start, thread_index()).run();
            }
        }
    }
    arena.release();
    return ANALOGC_OK;
}

// Whether each thread takes a stretch of the batch of its own, as torch's operations do: then all
// that one of them writes stays in its core's cache for the next. Not if the weights, which each
// would read, are more than what is split, or if the stretches differ in length by much.
bool splits(const analogc_layer &l, double inputs, double outputs) {
    if (l.threads == 1 || l.batch < l.threads) return false;
    const int64_t longest = (l.batch + l.threads - 1) / l.threads;
    const double weights = static_cast<double>(analogc_packed_size(&l.weight));
    return weights <= 4 * (inputs + outputs) &&
           static_cast<double>(longest * l.threads) <= 1.1 * static_cast<double>(l.batch);
}

template <class Code>
int32_t forward(const analogc_layer &layer, bool split) {
    if (!split) return forward<Code>(layer, 0, layer.batch);
    analogc_layer part = layer;
    part.threads = 1;
    const int64_t each = (layer.batch + layer.threads - 1) / layer.threads;
    int32_t status = ANALOGC_OK;
#pragma omp parallel for num_threads(layer.threads) schedule(static, 1) reduction(| : status)
    for (int32_t thread = 0; thread < layer.threads; ++thread) {
        const int64_t first = thread * each, stop = first + each;
        if (first >= layer.batch) continue;
        status |= forward<Code>(part, first, stop < layer.batch ? stop : layer.batch);
    }
    return status;
}

}  // namespace
}  // namespace analogc

using namespace analogc;

extern "C" int32_t analogc_forward(const analogc_layer *layer) {
    analogc_layer l = *layer;
    const bool integer = l.weight.format == ANALOGC_INT16;
    if (l.batch < 0 || l.threads < 1) return ANALOGC_BAD_ARGUMENT;
    if (integer && (l.dac_levels < 1 || l.dac_levels > 127)) return ANALOGC_BAD_ARGUMENT;
    if (l.dac_levels && !l.dynamic && !l.input_range) return ANALOGC_BAD_ARGUMENT;
    if (l.adc_levels && !l.adc_range) return ANALOGC_BAD_ARGUMENT;
    const int64_t pixels = l.out[0] * l.out[1] * l.out[2];
    if (l.batch == 0 || pixels == 0) return ANALOGC_OK;
    // Starting threads costs as much as this many products.
    constexpr double kFew = 1e6;
    const double rows = static_cast<double>(l.weight.channels) * static_cast<double>(l.weight.taps);
    const double outputs = static_cast<double>(l.batch) * static_cast<double>(pixels) *
                           static_cast<double>(l.weight.columns);
    if (outputs * (rows + 32) < kFew) l.threads = 1;
    const double inputs = static_cast<double>(l.batch) * static_cast<double>(l.size[0] * l.size[1]) *
                          static_cast<double>(l.size[2] * l.weight.channels * l.weight.groups);
    const bool split = splits(l, inputs, outputs);
    return integer ? forward<int16_t>(l, split) : forward<float>(l, split);
}

extern "C" int32_t analogc_call(const analogc_layer *layer, const float *x, float *y,
                                const float *alpha, const float *bias, const float *input_range,
                                const float *adc_range, uint8_t *mask, uint64_t key, uint64_t call,
                                int32_t threads) {
    analogc_layer l = *layer;
    l.x = x, l.y = y, l.alpha = alpha, l.bias = bias;
    l.input_range = input_range, l.adc_range = adc_range, l.mask = mask;
    l.key = key, l.call = call, l.threads = threads;
    return analogc_forward(&l);
}
