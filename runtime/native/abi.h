// C ABI of the CPU kernels. Everything that crosses it is a plain value or a pointer; layer.py
// mirrors the structs with ctypes, and ANALOGC_ABI_VERSION changes with them.
//
// Integers of 64 bits throughout: no product of sizes below is ever formed in 32 bits.
#pragma once
#include <stdint.h>

#define ANALOGC_ABI_VERSION 5

#pragma GCC visibility push(default)
#if defined(__cplusplus)
extern "C" {
#endif

enum analogc_format { ANALOGC_FLOAT32 = 0, ANALOGC_INT16 = 1 };
enum analogc_status { ANALOGC_OK = 0, ANALOGC_NO_MEMORY = 1, ANALOGC_BAD_ARGUMENT = 2 };

// A programmed weight [columns, rows_of_the_layer], as it is stored.
typedef struct {
    int64_t columns;   // N, all groups together
    int64_t channels;  // input channels of one group (linear: K)
    int64_t taps;      // kernel volume (linear: 1)
    int64_t tap_row;   // last kernel size: taps that may be neighbours in memory (linear: 1)
    int64_t groups;
    int64_t blocks;       // R
    const int64_t *rows;  // [R + 1] row block boundaries over K = channels * taps
    int32_t format;       // analogc_format
    int32_t unused;
    void *data;   // packed weights, analogc_packed_size() bytes
    float *step;  // [N] weight of code 1 (int16 only)
} analogc_weight;

// One call of a layer. Spatial sizes are (depth, height, width), 1 where a layer has fewer dims.
typedef struct {
    analogc_weight weight;
    int64_t batch;  // images, or input vectors of a linear layer
    int64_t size[3], stride[3], padding[3], dilation[3], kernel[3], out[3];
    int32_t channels_last_in, channels_last_out;
    int32_t dac_levels;      // 0: no DAC
    int32_t adc_levels;      // 0: no ADC
    int32_t dynamic;         // input range = abs-max of each input vector
    int32_t adc_per_column;  // adc_range is [R, N], not [R]
    int32_t threads;
    float output_noise;
    const float *x;            // [B, C, *size] or [B, *size, C]
    const float *alpha;        // [N]
    const float *bias;         // [N] or null
    const float *input_range;  // [R], static only
    const float *adc_range;    // [R] or [R, N]
    float *y;                  // [B, N, *out] or [B, *out, N]
    uint8_t *mask;             // [R, *y.shape] or null: 1 where the ADC did not clip
    uint64_t key;
    uint64_t call;
} analogc_layer;

int32_t analogc_abi_version(void);

// Instruction sets, best last: 0 baseline, 1 AVX2, 2 AVX-512, 3 AVX-512 VNNI.
int32_t analogc_isa_supported(void);   // best one of this machine
int32_t analogc_isa_use(int32_t isa);  // use this one; returns the one in use (-1: only ask)

int64_t analogc_packed_size(const analogc_weight *weight);
// written: [N, K] float32. Fills data and step.
int32_t analogc_pack(const analogc_weight *weight, const float *written, int32_t threads);
// written[n, k] = stored weight, times alpha[n] if alpha is not null.
int32_t analogc_unpack(const analogc_weight *weight, const float *alpha, float *written,
                       int32_t threads);
// rows[k - first, n] = the same of rows first .. first + count of one row block, the other way round
// and faster. Linear layers only; first is even, alpha is not null.
int32_t analogc_unpack_rows(const analogc_weight *weight, int64_t block, int64_t first,
                            int64_t count, const float *alpha, float *rows, int32_t threads);

int32_t analogc_forward(const analogc_layer *layer);
// The same with what changes from call to call given apart; `layer` is only read.
int32_t analogc_call(const analogc_layer *layer, const float *x, float *y, const float *alpha,
                     const float *bias, const float *input_range, const float *adc_range,
                     uint8_t *mask, uint64_t key, uint64_t call, int32_t threads);

// Standard normal numbers of row block `block` as a matrix [rows, columns].
void analogc_normals(float *out, int64_t rows, int64_t columns, uint64_t key, uint32_t block,
                     uint32_t call, int32_t threads);

// For the backward pass. Matrices [rows, ...] with a stride between rows; strides in elements.
// out[to + k] = what the tiles are driven with, in units of the input: code * unit / levels of
// x[from + k], k < length, in each row, for each of the parts. range: [parts], or null for the
// abs-max of each row's part. levels 0: a copy.
int32_t analogc_drive(const float *x, int64_t rows, int64_t x_stride, const int64_t *from,
                      const int64_t *to, const int64_t *length, int64_t parts, const float *range,
                      int32_t levels, float *out, int64_t out_stride, int32_t threads);
// out[i] = gradient[i] * mask[i]; out may be gradient.
int32_t analogc_mask_gradient(const float *gradient, const uint8_t *mask, int64_t n, float *out,
                              int32_t threads);
// out[i] = gradient[i] * (product of mask[r, i] over the blocks); out may be gradient. Lists in
// `mixed`, ascending, the i at which the blocks' masks differ and returns their number. -1, with
// `out` not to be used, if they are many (more than one of ANALOGC_MIXED in some part) or have a
// gradient that is not finite. mixed has room for ceil(n / 16384) * 16384 / ANALOGC_MIXED.
#define ANALOGC_MIXED 64
int64_t analogc_mask_blocks(const float *gradient, const uint8_t *mask, int64_t blocks, int64_t n,
                            float *out, int64_t *mixed, int32_t threads);
// What the products of a layer with one row block take, in one call: passed = gradient * mask, driven
// as of analogc_drive for all of x, and the weight times alpha, rows [K, N] as of analogc_unpack_rows
// for a linear layer, else [N, K]. Maps are [batch, columns, pixels] and [batch, inputs,
// in_pixels] in any one layout; `turned`: they are planes, and passed and driven channels last. Null
// results and a null mask are left out.
int32_t analogc_prepare(const analogc_weight *weight, const float *alpha, int32_t linear,
                        int64_t batch, int64_t pixels, int64_t inputs, int64_t in_pixels,
                        const float *gradient, const uint8_t *mask, const float *x,
                        const float *range, int32_t levels, int32_t turned, float *passed,
                        float *driven, float *unpacked, int32_t threads);
// out = gradient where |x| <= range, 0 times it elsewhere; out may be gradient. range: [parts], part
// s is columns bounds[s] to bounds[s + 1].
int32_t analogc_clip_gradient(const float *gradient, int64_t rows, int64_t stride, const float *x,
                              int64_t x_stride, const int64_t *bounds, int64_t parts,
                              const float *range, float *out, int64_t out_stride, int32_t threads);
// What the outputs in `mixed` add to the gradients of input and weight [N, K], those of the row
// blocks that pass them. mask [R, ...] and gradient are laid out as the layer's y, grad_x as its x;
// weight is [N, K], times alpha. grad_x or grad_w may be null. One group; of the layer only sizes,
// rows, layouts, DAC levels and `dynamic` are read.
int32_t analogc_add_mixed(const analogc_layer *layer, const float *x, const float *input_range,
                          const uint8_t *mask, const float *gradient, const int64_t *mixed,
                          int64_t count, const float *weight, float *grad_x, float *grad_w,
                          int32_t threads);
// Sets grad_x of each channel with rows in two blocks where |x| is in between their ranges: to the
// gradient of the rows of the block with the wider one. Operands as above; mask may be null.
int32_t analogc_shared_channels(const analogc_layer *layer, const float *x,
                                const float *input_range, const uint8_t *mask,
                                const float *gradient, const float *weight, float *grad_x,
                                int32_t threads);

// The same for feature maps, from planes [batch][channel][pixel] to channels last,
// [batch][pixel][channel]. mask may be null; a static range or levels 0.
int32_t analogc_mask_turned(const float *gradient, const uint8_t *mask, int64_t batch,
                            int64_t channels, int64_t pixels, float *out, int32_t threads);
int32_t analogc_drive_turned(const float *x, int64_t batch, int64_t channels, int64_t pixels,
                             const float *range, int32_t levels, float *out, int32_t threads);
// The other way round: gradient is channels last, x and out are planes.
int32_t analogc_clip_turned(const float *gradient, const float *x, int64_t batch, int64_t channels,
                            int64_t pixels, const float *range, float *out, int32_t threads);

// 64-bit content hash; the same on every machine of the same byte order.
uint64_t analogc_hash(const void *data, uint64_t bytes);
void analogc_hash_many(const void *const *data, const uint64_t *bytes, uint64_t *out, int64_t n,
                       int32_t threads);

#if defined(__cplusplus)
}
#endif
#pragma GCC visibility pop
