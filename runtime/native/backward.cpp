// What the backward pass needs beside GEMMs of its caller: straight through converters inside their
// range, zero outside.
#include "abi.h"
#include "isa.h"

#include <math.h>
#include <string.h>

using namespace analogc;

namespace {

constexpr int64_t kPart = 1 << 14;  // elements that a thread takes at a time

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

extern "C" int32_t analogc_drive(const float *x, int64_t rows, int64_t x_stride,
                                 const int64_t *from, const int64_t *to, const int64_t *length,
                                 int64_t parts, const float *range, int32_t levels, float *out,
                                 int64_t out_stride, int32_t threads) {
    if (rows < 0 || parts < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const float most = static_cast<float>(levels);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t s = 0; s < parts; ++s) {
            const float *values = x + i * x_stride + from[s];
            float *found = out + i * out_stride + to[s];
            if (levels <= 0) {
                memcpy(found, values, static_cast<size_t>(length[s]) * sizeof(float));
                continue;
            }
            const float unit = range ? range[s] : isa().absmax(values, length[s]);
            isa().drive(values, length[s], unit == 0 ? 1 : unit, most, found);
        }
    }
    return ANALOGC_OK;
}

extern "C" int32_t analogc_mask_gradient(const float *gradient, const uint8_t *mask, int64_t n,
                                         float *out, int32_t threads) {
    if (n < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < n; i += kPart) {
        const int64_t count = n - i < kPart ? n - i : kPart;
        isa().mask_gradient(gradient + i, mask + i, count, out + i);
    }
    return ANALOGC_OK;
}

extern "C" int64_t analogc_mask_blocks(const float *gradient, const uint8_t *mask, int64_t blocks,
                                       int64_t n, float *out, int64_t *mixed, int32_t threads) {
    if (n < 0 || blocks < 1 || threads < 1) return -1;
    // Each part counts in the first place of its share of `mixed` and lists behind it.
    constexpr int64_t kShare = kPart / ANALOGC_MIXED;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < n; i += kPart) {
        const int64_t count = n - i < kPart ? n - i : kPart;
        int64_t *share = mixed + i / ANALOGC_MIXED;
        *share = isa().mask_blocks(gradient + i, mask + i, n, blocks, count, i, out + i, share + 1,
                                   kShare - 1);
    }
    int64_t total = 0;
    for (int64_t i = 0; i < n; i += kPart) {
        const int64_t *share = mixed + i / ANALOGC_MIXED;
        const int64_t count = *share;
        if (count < 0) return -1;
        for (int64_t j = 0; j < count; ++j) mixed[total++] = share[1 + j];
    }
    return total;
}

extern "C" int32_t analogc_clip_gradient(const float *gradient, int64_t rows, int64_t stride,
                                         const float *x, int64_t x_stride, const int64_t *bounds,
                                         int64_t parts, const float *range, float *out,
                                         int64_t out_stride, int32_t threads) {
    if (rows < 0 || parts < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t s = 0; s < parts; ++s) {
            const int64_t at = bounds[s];
            isa().clip_gradient(gradient + i * stride + at, x + i * x_stride + at,
                                bounds[s + 1] - at, range[s], out + i * out_stride + at);
        }
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
                                        int64_t pixels, const float *range, int32_t levels,
                                        float *out, int32_t threads) {
    if (batch < 0 || channels < 0 || pixels < 0 || threads < 1 || (levels > 0 && !range)) {
        return ANALOGC_BAD_ARGUMENT;
    }
    const float unit = levels > 0 && *range != 0 ? *range : 1;
    over_maps(batch, pixels, threads, [=](int64_t b, int64_t first, int64_t count) {
        isa().drive_turned(x + b * channels * pixels + first, pixels, count, channels, unit,
                           static_cast<float>(levels), out + (b * pixels + first) * channels);
    });
    return ANALOGC_OK;
}

extern "C" int32_t analogc_clip_turned(const float *gradient, const float *x, int64_t batch,
                                       int64_t channels, int64_t pixels, const float *range,
                                       float *out, int32_t threads) {
    if (batch < 0 || channels < 0 || pixels < 0 || threads < 1) return ANALOGC_BAD_ARGUMENT;
    const float full = *range;
    over_maps(batch, pixels, threads, [=](int64_t b, int64_t first, int64_t count) {
        const int64_t at = b * channels * pixels + first;
        isa().clip_turned(gradient + (b * pixels + first) * channels, x + at, pixels, count,
                          channels, full, out + at);
    });
    return ANALOGC_OK;
}

extern "C" int32_t analogc_prepare(const analogc_weight *weight, const float *alpha, int32_t linear,
                                   int64_t batch, int64_t pixels, int64_t inputs, int64_t in_pixels,
                                   const float *gradient, const uint8_t *mask, const float *x,
                                   const float *range, int32_t levels, int32_t turned,
                                   float *passed, float *driven, float *unpacked,
                                   int32_t threads) {
    const int64_t n = weight->columns, length = inputs * in_pixels, none = 0;
    int32_t status = weight->blocks == 1 ? ANALOGC_OK : ANALOGC_BAD_ARGUMENT;
    if (!status && passed) {
        status = turned ? analogc_mask_turned(gradient, mask, batch, n, pixels, passed, threads)
                        : analogc_mask_gradient(gradient, mask, batch * n * pixels, passed, threads);
    }
    if (!status && driven) {
        status = turned ? analogc_drive_turned(x, batch, inputs, in_pixels, range, levels, driven,
                                               threads)
                        : analogc_drive(x, batch, length, &none, &none, &length, 1, range, levels,
                                        driven, length, threads);
    }
    if (!status && unpacked) {
        const int64_t k = weight->channels * weight->taps;
        status = linear ? analogc_unpack_rows(weight, 0, 0, k, alpha, unpacked, threads)
                        : analogc_unpack(weight, alpha, unpacked, threads);
    }
    return status;
}
