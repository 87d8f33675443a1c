// The CUDA kernels around the GEMMs of a layer: DAC, constants of each column, and one epilogue for
// noise, ADC and digital accumulation over all row blocks. gpu.py puts scalar.h in place of the
// include and compiles the text; the tests compile it as C++ as well. Every float operation is a
// named IEEE one, so the bits are those of the CPU kernels.
#include "scalar.h"

namespace {

constexpr int kWarp = 32;
constexpr int kRowsOfBlock = 8;    // a thread block of 128: groups of 16 lanes, one above the other
constexpr unsigned kInfinity = 0x7F800000u;

__device__ __forceinline__ void store_code(signed char *to, float code) { *to = (signed char)code; }
__device__ __forceinline__ void store_code(float *to, float code) { *to = code; }

// DAC of one row block of one input vector, by one warp. grid (vectors / 4, R), block (32, 4).
//   x [vectors, K]; rows [R + 1] boundaries of the row blocks in K; input_range [R], or null for
//     the abs-max of each vector's part (1 if that is 0)
//   codes: for each row block a matrix [code_rows, padded], at code_rows * starts[r], where padded
//     is starts[r + 1] - starts[r]; zeros beyond the rows of the block
//   unit [R, vectors]: the abs-max, or 1 if ranges are static; NaN if outputs must be NaN, since
//     integer codes cannot be
template <class Code>
__device__ __forceinline__ void dac(const float *x, Code *codes, float *unit, const int *rows,
                                    const int *starts, const float *input_range, int vectors,
                                    int code_rows, float levels) {
    const int m = blockIdx.x * blockDim.y + threadIdx.y, r = blockIdx.y, blocks = gridDim.y;
    if (m >= vectors) return;
    const int first = rows[r], count = rows[r + 1] - first, padded = starts[r + 1] - starts[r];
    const float *from = x + (long long)m * rows[blocks] + first;
    // The bits of magnitudes are ordered as unsigned numbers are, infinity and then NaN on top.
    unsigned peak = 0;
    for (int k = threadIdx.x; k < count; k += kWarp) {
        const unsigned size = (unsigned)__float_as_int(from[k]) & 0x7FFFFFFFu;
        peak = size > peak ? size : peak;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const unsigned other = __shfl_xor_sync(0xFFFFFFFFu, peak, step);
        peak = other > peak ? other : peak;
    }
    const bool dynamic = input_range == nullptr;
    const float largest = peak == 0 || peak > kInfinity ? 1.0f : __int_as_float((int)peak);
    const float steps = __fdiv_rn(levels, dynamic ? largest : input_range[r]);
    Code *to = codes + (long long)code_rows * starts[r] + (long long)m * padded;
    for (int k = threadIdx.x; k < padded; k += kWarp) {
        store_code(to + k, k < count ? analogc::dac_code(from[k], steps, levels) : 0.0f);
    }
    if (threadIdx.x == 0) {
        // An infinite range needs no care: it makes the outputs NaN by itself, as in torch.
        unit[(long long)r * vectors + m] = peak > kInfinity ? __int_as_float(0x7FC00000)
                                           : dynamic        ? largest
                                                            : 1.0f;
    }
}

// Where partial sums, outputs and masks lie: element (m, n) is pixel m % pixels of image m / pixels
// and column n % columns of group n / columns.
struct Strides {
    long long image, pixel, group, column;
};

template <bool mapped>
__device__ __forceinline__ long long place(const Strides &s, int m, int n, int pixels,
                                           int columns) {
    if (!mapped) return m * s.pixel + n * s.column;
    return m / pixels * s.image + m % pixels * s.pixel + n / columns * s.group +
           n % columns * s.column;
}

// Weights may be of two terms, and so are their sums then: high_unit * high + low. One rounding:
// where both are integers, that of the integer that they make.
__device__ __forceinline__ float load_sum(const float *sums, long long at, int low,
                                          float high_unit) {
    return low ? ANALOGC_FMA(sums[at], high_unit, sums[at + low]) : sums[at];
}
// The product may wrap around, the sum is in range again.
__device__ __forceinline__ float load_sum(const int *sums, long long at, int low, float) {
    return (float)(int)((unsigned)sums[at] * 256u + (unsigned)sums[at + low]);
}

// Noise, ADC and accumulation of all row blocks. A thread makes the four elements of the noise
// matrix [vectors, width] that share a Philox block. grid (groups of rows / 8, groups of columns),
// block (16, 8).
//   sums: row block r at r * block_stride; if low: high terms, the low ones `low` further on
//   p_steps, z_steps, gain [R, N]; bias [N] or null; unit [R, vectors, groups] or null
//   y, and mask [R, like y] (or null), mask_stride from one row block to the next
//   first_row_group: of the noise matrix, where a call is cut into chunks of vectors
//   width_shift: 0, 1, 2 for a width of 16, 32, more;  adc_levels: 0 without an ADC
template <class Sum, bool mapped>
__device__ __forceinline__ void epilogue(const Sum *sums, float *y, bool *mask,
                                         const float *p_steps, const float *z_steps,
                                         const float *gain, const float *bias, const float *unit,
                                         int blocks, int vectors, int all_columns, int pixels,
                                         int columns, int width_shift, int low, float high_unit,
                                         long long block_stride, long long mask_stride,
                                         Strides from, Strides to, long long first_row_group,
                                         float adc_levels, int noise,
                                         unsigned key0, unsigned key1, unsigned call) {
    const int lane = threadIdx.x, row_group = blockIdx.x * kRowsOfBlock + threadIdx.y;
    const unsigned long long group = (first_row_group + row_group) * gridDim.y + blockIdx.y;
    const int rows_of_group = 4 >> width_shift, columns_mask = (1 << width_shift) - 1;
    const int groups = mapped ? all_columns / columns : 1;
    if ((long long)row_group * rows_of_group >= vectors) return;
    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int r = 0; r < blocks; ++r) {
        float z[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (noise) {
            unsigned c0 = (unsigned)(group << 4) + lane, c1 = (unsigned)(group >> 28);
            unsigned c2 = r, c3 = call;
            analogc::philox4x32_10(c0, c1, c2, c3, key0, key1);
            analogc::normal_pair(c0, c1, z[0], z[1]);
            analogc::normal_pair(c2, c3, z[2], z[3]);
        }
ANALOGC_UNROLL
        for (int v = 0; v < 4; ++v) {
            const int m = row_group * rows_of_group + (v >> width_shift);
            const int n = blockIdx.y * 64 + (v & columns_mask) * 16 + lane;
            if (m >= vectors || n >= all_columns) continue;
            const int column = r * all_columns + n;
            const long long at = place<mapped>(from, m, n, pixels, columns);
            const float p = load_sum(sums, r * block_stride + at, low, high_unit);
            float t = noise ? analogc::adc_input(p, p_steps[column], z[v], z_steps[column])
                            : ANALOGC_MUL(p, p_steps[column]);
            float full = 1.0f;
            if (unit) {
                const int g = mapped ? n / columns : 0;
                full = unit[((long long)r * vectors + m) * groups + g];
                t = ANALOGC_ADD(t, ANALOGC_ADD(full, -full));  // NaN if the unit is, else + 0
            }
            if (mask) {
                mask[r * mask_stride + place<mapped>(to, m, n, pixels, columns)] =
                    analogc::adc_inside(t, adc_levels);
            }
            if (adc_levels > 0.0f) t = analogc::adc_step(t, adc_levels);
            if (unit) t = ANALOGC_MUL(t, full);
            total[v] = r == 0 ? ANALOGC_MUL(t, gain[column])
                              : ANALOGC_FMA(t, gain[column], total[v]);
        }
    }
ANALOGC_UNROLL
    for (int v = 0; v < 4; ++v) {
        const int m = row_group * rows_of_group + (v >> width_shift);
        const int n = blockIdx.y * 64 + (v & columns_mask) * 16 + lane;
        if (m >= vectors || n >= all_columns) continue;
        y[place<mapped>(to, m, n, pixels, columns)] =
            bias ? ANALOGC_ADD(total[v], bias[n]) : total[v];
    }
}

}  // namespace

// What a column of a row block multiplies with, [R, N] each, a thread for each: steps of the ADC
// per unit of the partial sum and of the noise, and the output of one ADC step.
//   alpha [N]; weight_step [N] (null: 1): weight of one integer step
//   input_range [R] (null: 1); adc_range [R] or, if per_column, [R, N] (null: no ADC)
extern "C" __global__ void analogc_constants(float *p_steps, float *z_steps, float *gain,
                                             const float *alpha, const float *weight_step,
                                             const float *input_range, const float *adc_range,
                                             int per_column, int blocks, int columns,
                                             float dac_levels, float adc_levels,
                                             float output_noise) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= blocks * columns) return;
    const int r = at / columns, n = at % columns;
    const float step = weight_step ? weight_step[n] : 1.0f;
    const float unit = input_range ? input_range[r] : 1.0f;
    if (adc_range) {
        const float full = adc_range[per_column ? at : r];
        const float inverse = __fdiv_rn(adc_levels, ANALOGC_MUL(full, dac_levels));
        p_steps[at] = ANALOGC_MUL(inverse, step);
        z_steps[at] = __fdiv_rn(ANALOGC_MUL(output_noise, adc_levels), full);
        gain[at] = ANALOGC_MUL(__fdiv_rn(ANALOGC_MUL(unit, full), adc_levels), alpha[n]);
    } else {
        p_steps[at] = step;
        z_steps[at] = ANALOGC_MUL(output_noise, dac_levels);
        gain[at] = ANALOGC_MUL(__fdiv_rn(unit, dac_levels), alpha[n]);
    }
}

#define ANALOGC_DAC(name, Code)                                                                  \
    extern "C" __global__ void name(const float *x, Code *codes, float *unit, const int *rows,   \
                                    const int *starts, const float *input_range, int vectors,    \
                                    int code_rows, float levels) {                               \
        dac(x, codes, unit, rows, starts, input_range, vectors, code_rows, levels);              \
    }

#define ANALOGC_EPILOGUE(name, Sum, mapped)                                                      \
    extern "C" __global__ void __launch_bounds__(128)                                            \
        name(const Sum *sums, float *y, bool *mask, const float *p_steps, const float *z_steps,  \
             const float *gain, const float *bias, const float *unit, int blocks, int vectors,   \
             int all_columns, int pixels, int columns, int width_shift, int low,                 \
             float high_unit, long long block_stride, long long mask_stride,                     \
             long long from_image, long long from_pixel, long long from_group,                   \
             long long from_column, long long to_image, long long to_pixel,                      \
             long long to_group, long long to_column, long long first_row_group,                 \
             float adc_levels, int noise, unsigned key0,                                         \
             unsigned key1, unsigned call) {                                                     \
        epilogue<Sum, mapped>(sums, y, mask, p_steps, z_steps, gain, bias, unit, blocks,         \
                              vectors, all_columns, pixels, columns, width_shift, low,           \
                              high_unit, block_stride, mask_stride,                              \
                              {from_image, from_pixel, from_group, from_column},                 \
                              {to_image, to_pixel, to_group, to_column}, first_row_group,        \
                              adc_levels, noise, key0, key1, call);                              \
    }

ANALOGC_DAC(analogc_dac_int8, signed char)
ANALOGC_DAC(analogc_dac_float, float)
ANALOGC_EPILOGUE(analogc_epilogue_int, int, false)
ANALOGC_EPILOGUE(analogc_epilogue_float, float, false)
ANALOGC_EPILOGUE(analogc_epilogue_map, float, true)
