// What is compiled once for each instruction set: a table of kernels that work on chunks.
#pragma once
#include <stdint.h>

namespace analogc {

// Contiguous run of codes that meets the next `length` rows of a packed panel.
struct Segment {
    int64_t offset, length;
};

// acc[i, j] = sum over segments of codes[rows[i] + offset + k] * panel[k, j], for one panel.
template <class Code, class Acc>
struct Gemm {
    const Code *codes;
    const int64_t *rows;  // start of each input vector in codes
    int64_t row_count;
    const Segment *segments;
    int64_t segment_count;
    const Code *panel;      // float: [k][columns]; int16: [k / 2][columns][2]
    int64_t panel_columns;  // 16, 32, 48 or 64
    Acc *acc;
    int64_t acc_stride;
};
using GemmFloat = Gemm<float, float>;
using GemmInt16 = Gemm<int16_t, int32_t>;

// One output column for each lane: acc[i, n] = sum_k codes[rows[i] + offsets[k] + n] * weight[k,
// n].
template <class Code, class Acc>
struct LaneSums {
    const Code *codes;
    const int64_t *rows;
    int64_t row_count;
    const int64_t *offsets;  // [k_count]
    int64_t k_count;
    const Code *weight;  // [k_count, columns]
    int64_t columns;     // multiple of 16
    Acc *acc;
    int64_t acc_stride;
};

// Noise, ADC and digital sum over a chunk of partial sums, in groups of 64 elements of the noise
// matrix. Matrix [rows, columns], columns a multiple of 64; noise group of (i, 64 j) is
// first_group + i * group_stride + j.
struct Epilogue {
    const void *acc;    // int32 or float [rows, columns]
    const float *unit;  // [rows, columns] input range of each element, or null: it is in gain
    float *y;
    uint8_t *mask;  // [rows, columns] or null
    int64_t rows, columns, y_stride;
    uint64_t first_group, group_stride;
    const float *p_steps, *z_steps, *gain, *bias;  // [columns]; bias null: not the last row block
    float adc_levels;                              // 0: no ADC
    uint64_t key;
    uint32_t block, call;
    bool integer, first, noise;
};

// Codes of a feature map, as channels last, each pixel at its place in a padded map:
// codes[pixel[p] * channel_count + c] = code(x[channel[c] * plane + p * step]).
struct Planes {
    const float *x;
    int64_t plane, step;
    const int64_t *channel;
    int64_t channel_count;
    const int64_t *pixel;
    int64_t pixel_count;
    float steps, levels;  // levels 0: no DAC, codes are the values
};

struct Isa {
    const char *name;
    void (*gemm_float)(const GemmFloat &);
    void (*gemm_int16)(const GemmInt16 &);
    void (*lanes_float)(const LaneSums<float, float> &);
    void (*lanes_int16)(const LaneSums<int16_t, int32_t> &);
    void (*epilogue)(const Epilogue &);
    // Codes of n values. NaN gives kNaNCode in int16. Returns whether one was NaN.
    bool (*dac_float)(const float *x, int64_t n, float steps, float levels, float *codes);
    bool (*dac_int16)(const float *x, int64_t n, float steps, float levels, int16_t *codes);
    float (*absmax)(const float *x, int64_t n);  // NaN if there is one
    bool (*planes_float)(const Planes &, float *codes);
    bool (*planes_int16)(const Planes &, int16_t *codes);
    // out[n * out_stride + p] = y[p * y_stride + n]
    void (*store_planes)(const float *y, int64_t rows, int64_t columns, int64_t y_stride,
                         float *out, int64_t out_stride);
    void (*normals)(float *out, uint64_t first_group, int64_t groups, uint64_t key, uint32_t block,
                    uint32_t call);
    void (*mask_gradient)(const float *gradient, const uint8_t *mask, int64_t n, float *out);
    // out = gradient * (mask of all blocks, `stride` apart). Writes first + i to `mixed` where the
    // blocks' masks differ and returns how many these are: -1 beyond `room`, or if a gradient is not
    // finite there.
    int64_t (*mask_blocks)(const float *gradient, const uint8_t *mask, int64_t stride,
                           int64_t blocks, int64_t n, int64_t first, float *out, int64_t *mixed,
                           int64_t room);
    void (*clip_gradient)(const float *gradient, const float *x, int64_t n, float full, float *out);
    // Codes in units of x: code * unit / levels.
    void (*drive)(const float *x, int64_t n, float unit, float levels, float *out);
    // even[n] = codes[n][0] * step[n] * alpha[n], odd[n] = codes[n][1] * ...; odd may be null.
    void (*pair_of_rows)(const int16_t *codes, int64_t n, const float *step, const float *alpha,
                         float *even, float *odd);
    // Between planes, element c * plane + p, and channels last, p * channels + c; a few pixels of
    // one image. As mask_gradient (mask may be null), dac_float and clip_gradient.
    void (*mask_turned)(const float *gradient, const uint8_t *mask, int64_t plane, int64_t pixels,
                        int64_t channels, float *out);
    void (*drive_turned)(const float *x, int64_t plane, int64_t pixels, int64_t channels,
                         float unit, float levels, float *out);
    void (*clip_turned)(const float *gradient, const float *x, int64_t plane, int64_t pixels,
                        int64_t channels, float full, float *out);
    uint64_t (*hash)(const void *data, uint64_t bytes);
};

// Not a code: codes of at most 8 bits are in [-127, 127].
constexpr int16_t kNaNCode = INT16_MIN;

extern const Isa kBaseline;
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
extern const Isa kAvx2, kAvx512, kAvx512Vnni;
#endif

const Isa &isa();  // the one in use

}  // namespace analogc
