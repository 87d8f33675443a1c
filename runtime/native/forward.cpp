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

template <class Code>
int32_t forward(const analogc_layer &layer) {
    State<Code> state(layer);
    Arena &arena = thread_arena();
    if (!state.begin(arena)) return ANALOGC_NO_MEMORY;
#pragma omp parallel num_threads(layer.threads) if (layer.threads > 1)
    {
        const Plan &plan = state.plan;
        for (int64_t start = 0; start < layer.batch; start += state.at_once) {
            const int64_t left = layer.batch - start;
            const int64_t stop = start + (left < state.at_once ? left : state.at_once);
            Drive<Code>(state).run(start, stop);
            const int64_t v0 = start * plan.pixels, v1 = stop * plan.pixels;
            const int64_t chunks = (v1 - v0 + plan.chunk_rows - 1) / plan.chunk_rows;
#pragma omp for schedule(dynamic, 1)
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
    return integer ? forward<int16_t>(l) : forward<float>(l);
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
