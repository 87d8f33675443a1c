// Gradients of all row blocks in one product: what is left to do element by element.
//
// The product takes the outputs that no row block's ADC clipped. An output that clipped in some
// blocks only (a mixed one) passes its gradient to the rows of the others; it is added here. Rows of
// a convolution's channel may lie in two blocks: where the input clips for one of them only, the
// channel's gradient is that of the other's rows.
#include "abi.h"
#include "isa.h"

#include <math.h>
#include <stdlib.h>

using namespace analogc;

namespace {

// Memory of maps [B, channels, pixels]: strides in elements.
struct Memory {
    int64_t image, channel, pixel;

    Memory(int64_t channels, int64_t pixels, bool channels_last)
        : image(channels * pixels), channel(channels_last ? 1 : pixels),
          pixel(channels_last ? channels : 1) {}
};

struct Layer {
    const analogc_layer &l;
    int64_t pixels, in_pixels, columns, channels, taps, rows;
    Memory in, out;

    explicit Layer(const analogc_layer &layer)
        : l(layer), pixels(l.out[0] * l.out[1] * l.out[2]),
          in_pixels(l.size[0] * l.size[1] * l.size[2]), columns(l.weight.columns),
          channels(l.weight.channels), taps(l.weight.taps), rows(channels * taps),
          in(channels, in_pixels, l.channels_last_in), out(columns, pixels, l.channels_last_out) {}

    bool ok() const {
        return l.weight.groups == 1 && l.weight.blocks > 0 && channels > 0 && taps > 0 &&
               l.stride[0] > 0 && l.stride[1] > 0 && l.stride[2] > 0;
    }

    // Offset of the pixel that each tap of an output pixel reads, -1 in the padding.
    void reads(int64_t pixel, int64_t *offset) const {
        const int64_t at[3] = {pixel / (l.out[1] * l.out[2]), pixel / l.out[2] % l.out[1],
                               pixel % l.out[2]};
        for (int64_t t = 0; t < taps; ++t) {
            const int64_t tap[3] = {t / (l.kernel[1] * l.kernel[2]),
                                    t / l.kernel[2] % l.kernel[1], t % l.kernel[2]};
            int64_t place = 0;
            bool inside = true;
            for (int d = 0; d < 3; ++d) {
                const int64_t i = at[d] * l.stride[d] + tap[d] * l.dilation[d] - l.padding[d];
                inside = inside && i >= 0 && i < l.size[d];
                place = place * l.size[d] + i;
            }
            offset[t] = inside ? place * in.pixel : -1;
        }
    }

    // Output pixel whose tap reads an input pixel, -1 if there is none.
    int64_t read_by(int64_t pixel, int64_t t) const {
        const int64_t at[3] = {pixel / (l.size[1] * l.size[2]), pixel / l.size[2] % l.size[1],
                               pixel % l.size[2]};
        const int64_t tap[3] = {t / (l.kernel[1] * l.kernel[2]), t / l.kernel[2] % l.kernel[1],
                                t % l.kernel[2]};
        int64_t place = 0;
        for (int d = 0; d < 3; ++d) {
            const int64_t i = at[d] + l.padding[d] - tap[d] * l.dilation[d];
            if (i < 0 || i % l.stride[d] || i / l.stride[d] >= l.out[d]) return -1;
            place = place * l.out[d] + i / l.stride[d];
        }
        return place;
    }
};

// What one mixed output adds.
struct Adder {
    const Layer &a;
    const float *x, *input_range, *weight;
    const uint8_t *mask;
    const float *gradient;
    float *grad_x, *grad_w;
    int64_t *offset, *place;  // [taps], [rows]
    float *value;             // [rows]

    void add(int64_t output, bool to_x, bool to_w) {
        const int64_t rest = output % a.out.image, image = output / a.out.image * a.in.image;
        const bool last = a.l.channels_last_out;
        const int64_t n = last ? rest % a.columns : rest / a.pixels;
        const float g = gradient[output];
        a.reads(last ? rest / a.columns : rest % a.pixels, offset);
        const int64_t total = a.l.batch * a.out.image;
        for (int64_t r = 0; r < a.l.weight.blocks; ++r) {
            if (!mask[r * total + output]) continue;
            const int64_t start = a.l.weight.rows[r], length = a.l.weight.rows[r + 1] - start;
            int64_t c = start / a.taps * a.in.channel, t = start % a.taps;
            for (int64_t i = 0; i < length; ++i) {
                place[i] = offset[t] < 0 ? -1 : image + c + offset[t];
                if (++t == a.taps) t = 0, c += a.in.channel;
            }
            if (to_w) add_weight(r, n, start, length, g);
            const float *w = weight + n * a.rows + start;
            for (int64_t i = 0; to_x && i < length; ++i) {
                if (place[i] >= 0) grad_x[place[i]] += g * w[i];
            }
        }
    }

    void add_weight(int64_t r, int64_t n, int64_t start, int64_t length, float g) {
        for (int64_t i = 0; i < length; ++i) value[i] = place[i] < 0 ? 0 : x[place[i]];
        if (a.l.dac_levels > 0) {
            const float unit = a.l.dynamic ? isa().absmax(value, length) : input_range[r];
            const float levels = static_cast<float>(a.l.dac_levels);
            isa().drive(value, length, unit == 0 ? 1 : unit, levels, value);
        }
        float *to = grad_w + n * a.rows + start;
        for (int64_t i = 0; i < length; ++i) to[i] += g * value[i];
    }
};

}  // namespace

extern "C" int32_t analogc_add_mixed(const analogc_layer *layer, const float *x,
                                     const float *input_range, const uint8_t *mask,
                                     const float *gradient, const int64_t *mixed, int64_t count,
                                     const float *weight, float *grad_x, float *grad_w,
                                     int32_t threads) {
    const Layer a(*layer);
    const bool ranges = layer->dac_levels <= 0 || layer->dynamic || input_range;
    if (!a.ok() || count < 0 || threads < 1 || !ranges || (grad_x && !weight)) {
        return ANALOGC_BAD_ARGUMENT;
    }
    if (count < 32) threads = 1;
    int32_t failed = 0;
    // A share has the images and columns that are its number modulo their count: each element gets
    // its sum in the same order, whatever the number of threads.
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(| : failed)
    for (int32_t share = 0; share < threads; ++share) {
        const size_t size = static_cast<size_t>(a.taps + a.rows) * sizeof(int64_t) +
                            static_cast<size_t>(a.rows) * sizeof(float);
        auto *memory = static_cast<int64_t *>(malloc(size));
        failed |= memory == nullptr;
        if (!memory) continue;
        int64_t *place = memory + a.taps;
        Adder adder{a,        x,      input_range, weight, mask,
                    gradient, grad_x, grad_w,      memory, place,
                    reinterpret_cast<float *>(place + a.rows)};
        for (int64_t i = 0; i < count; ++i) {
            const int64_t image = mixed[i] / a.out.image, rest = mixed[i] % a.out.image;
            const int64_t n = layer->channels_last_out ? rest % a.columns : rest / a.pixels;
            const bool to_x = grad_x && image % threads == share;
            const bool to_w = grad_w && n % threads == share;
            if (to_x || to_w) adder.add(mixed[i], to_x, to_w);
        }
        free(memory);
    }
    return failed ? ANALOGC_NO_MEMORY : ANALOGC_OK;
}

extern "C" int32_t analogc_shared_channels(const analogc_layer *layer, const float *x,
                                           const float *input_range, const uint8_t *mask,
                                           const float *gradient, const float *weight,
                                           float *grad_x, int32_t threads) {
    const Layer a(*layer);
    if (!a.ok() || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const int64_t total = layer->batch * a.out.image, *rows = layer->weight.rows;
    for (int64_t r = 1; r < layer->weight.blocks; ++r) {
        const int64_t c = rows[r] / a.taps, first = c * a.taps;
        if (rows[r] == first || input_range[r] == input_range[r - 1]) continue;
        const int64_t wide = input_range[r] > input_range[r - 1] ? r : r - 1;
        const float least = input_range[2 * r - 1 - wide], most = input_range[wide];
        const int64_t start = rows[wide] > first ? rows[wide] - first : 0;
        const int64_t stop = rows[wide + 1] - first < a.taps ? rows[wide + 1] - first : a.taps;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (int64_t b = 0; b < layer->batch; ++b) {
            for (int64_t p = 0; p < a.in_pixels; ++p) {
                const int64_t at = b * a.in.image + c * a.in.channel + p * a.in.pixel;
                if (!(fabsf(x[at]) > least && fabsf(x[at]) <= most)) continue;
                float sum = 0;
                for (int64_t t = start; t < stop; ++t) {
                    const int64_t o = a.read_by(p, t);
                    for (int64_t n = 0; o >= 0 && n < a.columns; ++n) {
                        const int64_t from = b * a.out.image + n * a.out.channel + o * a.out.pixel;
                        const float pass = mask ? mask[wide * total + from] : 1;
                        sum += gradient[from] * pass * weight[n * a.rows + first + t];
                    }
                }
                grad_x[at] = sum;
            }
        }
    }
    return ANALOGC_OK;
}
