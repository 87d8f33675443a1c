// What the backward pass needs beside GEMMs of its caller: straight through converters inside their
// range, zero outside.
#include "abi.h"
#include "isa.h"

#include <math.h>
#include <string.h>

using namespace analogc;

namespace {

// Calls part(image, first pixel, pixels) for all pixels of all images, a share for each thread.
template <class Part>
void over_maps(int64_t batch, int64_t pixels, int32_t threads, Part part) {
    constexpr int64_t kPixels = 256;
    const int64_t parts = (pixels + kPixels - 1) / kPixels;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < batch * parts; ++i) {
        const int64_t first = i % parts * kPixels, left = pixels - first;
        part(i / parts, first, left < kPixels ? left : kPixels);
    }
}

}  // namespace

extern "C" int32_t analogc_drive(const float *x, int64_t rows, int64_t length, int64_t x_stride,
                                 const float *range, int32_t levels, float *out, int64_t out_stride,
                                 int32_t threads) {
    if (rows < 0 || length < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const float most = static_cast<float>(levels);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < rows; ++i) {
        const float *from = x + i * x_stride;
        float *to = out + i * out_stride;
        if (levels <= 0) {
            memcpy(to, from, static_cast<size_t>(length) * sizeof(float));
            continue;
        }
        float unit = range ? *range : isa().absmax(from, length);
        if (unit == 0) unit = 1;
        isa().dac_float(from, length, most / unit, most, to);
        const float scale = unit / most;
        for (int64_t k = 0; k < length; ++k) to[k] *= scale;
    }
    return ANALOGC_OK;
}

extern "C" int32_t analogc_mask_gradient(const float *gradient, const uint8_t *mask, int64_t n,
                                         float *out, int32_t threads) {
    if (n < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    constexpr int64_t kPart = 1 << 14;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < n; i += kPart) {
        const int64_t count = n - i < kPart ? n - i : kPart;
        isa().mask_gradient(gradient + i, mask + i, count, out + i);
    }
    return ANALOGC_OK;
}

extern "C" int32_t analogc_clip_gradient(const float *gradient, int64_t rows, int64_t length,
                                         int64_t stride, const float *x, int64_t x_stride,
                                         const float *range, float *out, int64_t out_stride,
                                         int32_t threads) {
    if (rows < 0 || length < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const float full = *range;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < rows; ++i) {
        isa().clip_gradient(gradient + i * stride, x + i * x_stride, length, full,
                            out + i * out_stride);
    }
    return ANALOGC_OK;
}

extern "C" int32_t analogc_mask_turned(const float *gradient, const uint8_t *mask, int64_t batch,
                                       int64_t channels, int64_t pixels, float *out,
                                       int32_t threads) {
    if (batch < 0 || channels < 0 || pixels < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    over_maps(batch, pixels, threads, [=](int64_t b, int64_t first, int64_t count) {
        const int64_t from = b * channels * pixels + first;
        isa().mask_turned(gradient + from, mask ? mask + from : nullptr, pixels, count, channels,
                          out + (b * pixels + first) * channels);
    });
    return ANALOGC_OK;
}

extern "C" int32_t analogc_drive_turned(const float *x, int64_t batch, int64_t channels,
                                        int64_t maps, int64_t pixels, const float *range,
                                        int32_t levels, float *out, int32_t threads) {
    if (batch < 0 || channels < 0 || maps < channels || pixels < 0 || threads < 1 ||
        (levels > 0 && !range)) {
        return ANALOGC_BAD_ARGUMENT;
    }
    const float unit = levels > 0 && *range != 0 ? *range : 1;
    over_maps(batch, pixels, threads, [=](int64_t b, int64_t first, int64_t count) {
        isa().drive_turned(x + b * maps * pixels + first, pixels, count, channels, unit,
                           static_cast<float>(levels), out + (b * pixels + first) * channels);
    });
    return ANALOGC_OK;
}

extern "C" int32_t analogc_clip_turned(const float *gradient, const float *x, int64_t batch,
                                       int64_t channels, int64_t maps, int64_t pixels,
                                       const float *range, float *out, int32_t threads) {
    if (batch < 0 || channels < 0 || maps < channels || pixels < 0 || threads < 1) {
        return ANALOGC_BAD_ARGUMENT;
    }
    const float full = range ? *range : INFINITY;
    over_maps(batch, pixels, threads, [=](int64_t b, int64_t first, int64_t count) {
        const int64_t at = b * maps * pixels + first;
        isa().clip_turned(gradient + (b * pixels + first) * channels, x + at, pixels, count,
                          channels, full, out + at);
    });
    return ANALOGC_OK;
}
