// Kernels that stream memory, compiled once for each instruction set: DAC, layout, hash.
#pragma once
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
#include <emmintrin.h>
#include <xmmintrin.h>
#endif

#include "isa.h"
#include "scalar.h"

namespace analogc {
namespace {

inline int16_t to_code(float code) {
    return code == code ? static_cast<int16_t>(code) : kNaNCode;
}
inline void put(float &to, float code) {
    to = code;
}
inline void put(int16_t &to, float code) {
    to = to_code(code);
}

template <class Code>
bool dac(const float *x, int64_t n, float steps, float levels, Code *codes) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float code = dac_code(x[i], steps, levels);
        bad |= code != code;
        put(codes[i], code);
    }
    return bad != 0;
}

// As integers, magnitudes of floats have the order of their values and NaN comes last.
float absmax(const float *x, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t bits = bits_of(x[i]) & 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    return float_of(most);
}

// Codes of 8 channels of 8 pixels, turned to channels last.
inline void turn_tile(const float *tile, int16_t *codes, const int64_t *pixel, int64_t stride) {
    int16_t code[64];
    for (int l = 0; l < 64; ++l) put(code[l], tile[l]);
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i) {
        a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(code + 8 * i));
    }
    for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 8; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(codes + pixel[i] * stride), b[i]);
    }
#else
    for (int i = 0; i < 8; ++i) {
        for (int c = 0; c < 8; ++c) codes[pixel[i] * stride + c] = code[8 * c + i];
    }
#endif
}

// out[j * out_stride + i] = in[i * in_stride + j], 4 x 4.
inline void turn4(const float *in, int64_t in_stride, float *out0, float *out1, float *out2,
                  float *out3) {
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
    __m128 a = _mm_loadu_ps(in), b = _mm_loadu_ps(in + in_stride);
    __m128 c = _mm_loadu_ps(in + 2 * in_stride), d = _mm_loadu_ps(in + 3 * in_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out0, a);
    _mm_storeu_ps(out1, b);
    _mm_storeu_ps(out2, c);
    _mm_storeu_ps(out3, d);
#else
    float *out[4] = {out0, out1, out2, out3};
    for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 4; ++i) out[j][i] = in[i * in_stride + j];
    }
#endif
}

inline void turn_tile(const float *tile, float *codes, const int64_t *pixel, int64_t stride) {
    for (int i = 0; i < 8; i += 4) {
        for (int c = 0; c < 8; c += 4) {
            turn4(tile + 8 * c + i, 8, codes + pixel[i] * stride + c,
                  codes + pixel[i + 1] * stride + c, codes + pixel[i + 2] * stride + c,
                  codes + pixel[i + 3] * stride + c);
        }
    }
}

// One channel of at most kRun pixels.
constexpr int64_t kRun = 64;

template <class Code>
bool plane(const Planes &a, int64_t first, int64_t count, int64_t c, Code *codes) {
    const float *x = a.x + a.channel[c] * a.plane + first * a.step;
    float values[kRun];
    Code code[kRun];
    for (int64_t p = 0; p < count; ++p) values[p] = x[p * a.step];
    uint32_t bad = 0;
    for (int64_t p = 0; p < count; ++p) {
        const float value = a.levels > 0 ? dac_code(values[p], a.steps, a.levels) : values[p];
        bad |= value != value;
        put(code[p], value);
    }
    for (int64_t p = 0; p < count; ++p) codes[a.pixel[first + p] * a.channel_count + c] = code[p];
    return bad != 0;
}

template <class Code>
bool planes(const Planes &a, Code *codes) {
    uint32_t bad[64] = {};
    // What a run of pixels becomes stays in L1 over all channels.
    for (int64_t run = 0; run < a.pixel_count; run += kRun) {
        const int64_t stop = run + kRun < a.pixel_count ? run + kRun : a.pixel_count;
        const int64_t whole = a.step == 1 ? stop - (stop - run) % 8 : run;
        int64_t c = 0;
        for (; c + 8 <= a.channel_count; c += 8) {
            for (int64_t p = run; p < whole; p += 8) {
                float tile[64];
                for (int j = 0; j < 8; ++j) {
                    __builtin_memcpy(tile + 8 * j, a.x + a.channel[c + j] * a.plane + p, 32);
                }
                if (a.levels > 0) {
                    for (int l = 0; l < 64; ++l) tile[l] = dac_code(tile[l], a.steps, a.levels);
                }
                for (int l = 0; l < 64; ++l) bad[l] |= tile[l] != tile[l];
                turn_tile(tile, codes + c, a.pixel + p, a.channel_count);
            }
            for (int64_t j = c; whole < stop && j < c + 8; ++j) {
                bad[0] |= plane(a, whole, stop - whole, j, codes);
            }
        }
        for (; c < a.channel_count; ++c) bad[0] |= plane(a, run, stop - run, c, codes);
    }
    uint32_t any = 0;
    for (int l = 0; l < 64; ++l) any |= bad[l];
    return any != 0;
}

void store_planes(const float *y, int64_t rows, int64_t columns, int64_t y_stride, float *out,
                  int64_t out_stride) {
    int64_t n = 0;
    for (; n + 4 <= columns; n += 4) {
        int64_t p = 0;
        float *to = out + n * out_stride;
        for (; p + 4 <= rows; p += 4) {
            turn4(y + p * y_stride + n, y_stride, to + p, to + out_stride + p,
                  to + 2 * out_stride + p, to + 3 * out_stride + p);
        }
        for (; p < rows; ++p) {
            for (int j = 0; j < 4; ++j) to[j * out_stride + p] = y[p * y_stride + n + j];
        }
    }
    for (; n < columns; ++n) {
        for (int64_t p = 0; p < rows; ++p) out[n * out_stride + p] = y[p * y_stride + n];
    }
}

// Hash: 32 lanes of 64 bits. Each takes every 32nd word w as
//   a = (a ^ w) * prime;  a ^= a >> 29
// which is a bijection of a for given w and of w for given a: one changed word always changes its
// lane. The shift brings high bits down, so that two changes do not cancel as in a plain product.
constexpr int kHashLanes = 32;
constexpr uint64_t kHashPrime = 0x9E3779B1;

inline uint64_t hash_mix(uint64_t a) {
    a = (a ^ (a >> 32)) * 0xD6E8FEB86659FD93u;
    a = (a ^ (a >> 32)) * 0xD6E8FEB86659FD93u;
    return a ^ (a >> 32);
}

// One step of a register of lanes: the product of 64 and 32 bits from two of 32 and 32.
inline Vector::Wide hash_step(Vector::Wide lane, Vector::Wide word) {
    using V = Vector;
    const V::Wide prime = V::set_wide(kHashPrime), a = V::xor_wide(lane, word);
    const V::Wide high = V::mul_low_halves(V::shift_right<32>(a), prime);
    const V::Wide b = V::add_wide(V::mul_low_halves(a, prime), V::raise_halves(high));
    return V::xor_wide(b, V::shift_right<29>(b));
}

uint64_t hash(const void *data, uint64_t bytes) {
    constexpr uint64_t kStripe = 8 * kHashLanes;
    constexpr int kRegs = kHashLanes / Vector::kWideLanes;
    const unsigned char *at = static_cast<const unsigned char *>(data);
    uint64_t lane[kHashLanes];
    for (int l = 0; l < kHashLanes; ++l) lane[l] = hash_mix(bytes + static_cast<uint64_t>(l) + 1);
    Vector::Wide sum[kRegs];
    for (int i = 0; i < kRegs; ++i) sum[i] = Vector::load_wide(lane + i * Vector::kWideLanes);
    uint64_t left = bytes;
    for (; left >= kStripe; left -= kStripe, at += kStripe) {
#pragma GCC unroll 32
        for (int i = 0; i < kRegs; ++i) {
            sum[i] = hash_step(sum[i], Vector::load_wide(at + i * 8 * Vector::kWideLanes));
        }
    }
    if (left) {
        unsigned char last[kStripe] = {};
        __builtin_memcpy(last, at, left);
        for (int i = 0; i < kRegs; ++i) {
            sum[i] = hash_step(sum[i], Vector::load_wide(last + i * 8 * Vector::kWideLanes));
        }
    }
    for (int i = 0; i < kRegs; ++i) Vector::store_wide(lane + i * Vector::kWideLanes, sum[i]);
    uint64_t joined = bytes;
    for (int l = 0; l < kHashLanes; ++l) joined = hash_mix(joined ^ lane[l]) + 0x9E3779B97F4A7C15u;
    return joined;
}

}  // namespace
}  // namespace analogc
