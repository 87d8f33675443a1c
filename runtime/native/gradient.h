// Kernels of the backward pass, compiled once for each instruction set: masks, codes as floats, and
// the turn between planes [channel][pixel] and channels last [pixel][channel].
#pragma once
#include "stream.h"

namespace analogc {
namespace {

// 1 where the DAC did not clip.
inline float passes(float x, float full) {
    return float_of(bits_of(x) & 0x7FFFFFFF) <= full ? 1.0f : 0.0f;
}

void mask_gradient(const float *gradient, const uint8_t *mask, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i) out[i] = gradient[i] * static_cast<float>(mask[i]);
}

// Masks of all blocks, `stride` apart, for n <= 64 elements. True if two of them differ somewhere.
inline bool meet(const uint8_t *mask, int64_t stride, int64_t blocks, int64_t n, uint8_t *all,
                 uint8_t *differ) {
    uint8_t any[64] = {}, found = 0;
    for (int64_t i = 0; i < n; ++i) all[i] = any[i] = mask[i];
    for (int64_t r = 1; r < blocks; ++r) {
        for (int64_t i = 0; i < n; ++i) all[i] &= mask[r * stride + i];
        for (int64_t i = 0; i < n; ++i) any[i] |= mask[r * stride + i];
    }
    for (int64_t i = 0; i < n; ++i) differ[i] = all[i] ^ any[i];
    for (int64_t i = 0; i < n; ++i) found |= differ[i];
    return found != 0;
}

int64_t mask_blocks(const float *gradient, const uint8_t *mask, int64_t stride, int64_t blocks,
                    int64_t n, int64_t first, float *out, int64_t *mixed, int64_t room) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 64) {
        const int64_t length = n - i < 64 ? n - i : 64;
        uint8_t all[64], differ[64];
        // The constant is for the compiler, which makes a few instructions of the loops then.
        const bool some = length == 64 ? meet(mask + i, stride, blocks, 64, all, differ)
                                       : meet(mask + i, stride, blocks, length, all, differ);
        for (int64_t j = 0; j < length; ++j) {
            out[i + j] = gradient[i + j] * static_cast<float>(all[j]);
        }
        for (int64_t j = 0; some && j < length; ++j) {
            if (!differ[j]) continue;
            const bool finite = (bits_of(gradient[i + j]) & 0x7F800000) != 0x7F800000;
            if (count == room || !finite) return -1;
            mixed[count++] = first + i + j;
        }
    }
    return count;
}

void clip_gradient(const float *gradient, const float *x, int64_t n, float full, float *out) {
    if (out != gradient) {
        for (int64_t i = 0; i < n; ++i) out[i] = gradient[i] * passes(x[i], full);
        return;
    }
    // In place hardly any part has something to write.
    constexpr int64_t kPart = 64;
    constexpr uint32_t kOne = 0x3F800000;  // bits of 1.0f
    int64_t i = 0;
    for (; i + kPart <= n; i += kPart) {
        uint32_t clipped = 0;
        for (int64_t j = 0; j < kPart; ++j) clipped |= bits_of(passes(x[i + j], full)) ^ kOne;
        for (int64_t j = 0; clipped && j < kPart; ++j) out[i + j] *= passes(x[i + j], full);
    }
    for (; i < n; ++i) out[i] *= passes(x[i], full);
}

void drive(const float *x, int64_t n, float unit, float levels, float *out) {
    const float steps = levels / unit, scale = unit / levels;
    for (int64_t i = 0; i < n; ++i) out[i] = dac_code(x[i], steps, levels) * scale;
}

// A pair is read as one word, low half first, as on every machine that this is built for.
void pair_of_rows(const int16_t *codes, int64_t n, const float *step, const float *alpha,
                  float *__restrict even, float *__restrict odd) {
    for (int64_t i = 0; !odd && i < n; ++i) {
        even[i] = static_cast<float>(codes[2 * i]) * step[i] * alpha[i];
    }
#pragma GCC ivdep
    for (int64_t i = 0; odd && i < n; ++i) {
        uint32_t pair;
        __builtin_memcpy(&pair, codes + 2 * i, sizeof pair);
        const int32_t low = static_cast<int32_t>(pair << 16) >> 16;
        const int32_t high = static_cast<int32_t>(pair) >> 16;
        even[i] = static_cast<float>(low) * step[i] * alpha[i];
        odd[i] = static_cast<float>(high) * step[i] * alpha[i];
    }
}

// out[j * stride + i] = in[i * in_stride + j], 8 x 8.
inline void turn8(const float *in, int64_t in_stride, float *out, int64_t stride) {
#if defined(__AVX__)
    __m256 row[8], pair[8];
    for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        row[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        row[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xEE);
        row[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        row[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xEE);
    }
    for (int j = 0; j < 4; ++j) {
        _mm256_storeu_ps(out + j * stride, _mm256_permute2f128_ps(row[j], row[j + 4], 0x20));
        _mm256_storeu_ps(out + (j + 4) * stride, _mm256_permute2f128_ps(row[j], row[j + 4], 0x31));
    }
#else
    for (int64_t i = 0; i < 8; i += 4) {
        for (int64_t j = 0; j < 8; j += 4) {
            float *to = out + j * stride + i;
            turn4(in + i * in_stride + j, in_stride, to, to + stride, to + 2 * stride,
                  to + 3 * stride);
        }
    }
#endif
}

// Visits tiles of 8 x 8 and what is left, pixel by pixel, in stretches of planes that are long
// enough for processors to foresee and short enough that channels-last memory, which each group of
// `wide` channels visits again, stays in cache.
template <int64_t wide, class Tile, class One>
inline void over_tiles(int64_t pixels, int64_t channels, Tile tile, One one) {
    constexpr int64_t kRun = 256;
    for (int64_t run = 0; run < pixels; run += kRun) {
        const int64_t stop = run + kRun < pixels ? run + kRun : pixels;
        const int64_t whole = stop - (stop - run) % 8;
        int64_t c = 0;
        if (wide > 8) {
            for (; c + wide <= channels; c += wide) {
                for (int64_t p = run; p < whole; p += 8) {
                    for (int64_t j = 0; j < wide; j += 8) tile(c + j, p);
                }
                for (int64_t p = whole; p < stop; ++p) {
                    for (int64_t j = 0; j < wide; ++j) one(c + j, p);
                }
            }
        }
        for (; c + 8 <= channels; c += 8) {
            for (int64_t p = run; p < whole; p += 8) tile(c, p);
            for (int64_t p = whole; p < stop; ++p) {
                for (int64_t j = 0; j < 8; ++j) one(c + j, p);
            }
        }
        for (; c < channels; ++c) {
            for (int64_t p = run; p < stop; ++p) one(c, p);
        }
    }
}

// out[p * channels + c] = value(c * plane + p)
template <class Value>
inline void turn_planes(int64_t plane, int64_t pixels, int64_t channels, float *out, Value value) {
    const auto tile = [&](int64_t c, int64_t p) {
        float block[64];
        for (int64_t j = 0; j < 8; ++j) {
            for (int64_t i = 0; i < 8; ++i) block[8 * j + i] = value((c + j) * plane + p + i);
        }
        turn8(block, 8, out + p * channels + c, channels);
    };
    // 16 channels are a line of the output, which is then written once.
    over_tiles<16>(pixels, channels, tile, [&](int64_t c, int64_t p) {
        out[p * channels + c] = value(c * plane + p);
    });
}

void mask_turned(const float *gradient, const uint8_t *mask, int64_t plane, int64_t pixels,
                 int64_t channels, float *out) {
    if (mask) {
        turn_planes(plane, pixels, channels, out,
                    [=](int64_t i) { return gradient[i] * static_cast<float>(mask[i]); });
    } else {
        turn_planes(plane, pixels, channels, out, [=](int64_t i) { return gradient[i]; });
    }
}

void drive_turned(const float *x, int64_t plane, int64_t pixels, int64_t channels, float unit,
                  float levels, float *out) {
    if (levels > 0) {
        const float steps = levels / unit, scale = unit / levels;
        turn_planes(plane, pixels, channels, out,
                    [=](int64_t i) { return dac_code(x[i], steps, levels) * scale; });
    } else {
        turn_planes(plane, pixels, channels, out, [=](int64_t i) { return x[i]; });
    }
}

void clip_turned(const float *gradient, const float *x, int64_t plane, int64_t pixels,
                 int64_t channels, float full, float *out) {
    const auto tile = [&](int64_t c, int64_t p) {
        float block[64];
        turn8(gradient + p * channels + c, channels, block, 8);
        for (int64_t j = 0; j < 8; ++j) {
            const int64_t at = (c + j) * plane + p;
            for (int64_t i = 0; i < 8; ++i) out[at + i] = block[8 * j + i] * passes(x[at + i], full);
        }
    };
    over_tiles<8>(pixels, channels, tile, [&](int64_t c, int64_t p) {
        const int64_t at = c * plane + p;
        out[at] = gradient[p * channels + c] * passes(x[at], full);
    });
}

}  // namespace
}  // namespace analogc
