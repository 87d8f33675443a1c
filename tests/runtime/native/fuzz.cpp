// Runs random layers through the C ABI in buffers of exactly their size, for the sanitizers:
//   fuzz <seed> <layers>
// Results of all instruction sets and of 1 and 2 threads must agree to the bit.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "abi.h"
#include "isa.h"
#include "scalar.h"

namespace {

std::mt19937 g_random;

int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(g_random);
}

// A heap array of its own, so that reading past its end is seen.
template <class T>
std::unique_ptr<T[]> array(int64_t n) {
    return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]);
}

std::unique_ptr<float[]> values(int64_t n, float low, float high) {
    auto found = array<float>(n);
    std::uniform_real_distribution<float> spread(low, high);
    for (int64_t i = 0; i < n; ++i) found[static_cast<size_t>(i)] = spread(g_random);
    return found;
}

int fail(const char *what) {
    std::fprintf(stderr, "%s\n", what);
    return 1;
}

// The backward pass's helpers on a layer whose forward pass ran.
int run_gradient(analogc_layer &l, int64_t pixels, int64_t in_pixels) {
    const analogc_weight &w = l.weight;
    const int64_t inputs = w.channels * w.taps, channels = w.groups * w.channels;
    const int64_t x_size = l.batch * channels * in_pixels, y_size = l.batch * w.columns * pixels;
    const auto gradient = values(y_size, -1, 1);
    const auto mask = array<uint8_t>(w.blocks * y_size);
    const int64_t rare = pick(0, 1) ? 300 : 2;
    for (int64_t i = 0; i < w.blocks * y_size; ++i) mask[static_cast<size_t>(i)] = pick(1, rare) > 1;
    const auto scaled = array<float>(w.columns * inputs);
    if (analogc_unpack(&w, l.alpha, scaled.get(), 2)) return fail("unpack scaled");
    const bool planes = !l.channels_last_in && in_pixels > 0;
    const int64_t bounds[2] = {0, channels * in_pixels};

    std::vector<float> first;
    for (int32_t isa = analogc_isa_supported(); isa >= 0; --isa) {
        analogc_isa_use(isa);
        for (int32_t threads = 1; threads <= 2; ++threads) {
            const auto passed = array<float>(y_size), grad_x = values(x_size, 0, 0);
            const auto driven = values(x_size, 0, 0), unpacked = values(w.columns * inputs, 0, 0);
            const auto grad_w = values(w.columns * inputs, 0, 0);
            const auto mixed = array<int64_t>((y_size + 16383) / 16384 * 16384 / ANALOGC_MIXED);
            const int64_t count = analogc_mask_blocks(gradient.get(), mask.get(), w.blocks, y_size,
                                                      passed.get(), mixed.get(), threads);
            if (count > 0 && w.groups == 1 &&
                analogc_add_mixed(&l, l.x, l.input_range, mask.get(), gradient.get(), mixed.get(),
                                  count, scaled.get(), grad_x.get(), grad_w.get(), threads)) {
                return fail("mixed");
            }
            if (planes && l.size[0] == 1) {
                const auto out = array<float>(x_size);
                analogc_clip_turned(grad_x.get(), l.x, l.batch, channels, in_pixels, l.input_range,
                                    out.get(), threads);
            }
            analogc_clip_gradient(grad_x.get(), l.batch, bounds[1], l.x, bounds[1], bounds, 1,
                                  l.input_range, grad_x.get(), bounds[1], threads);
            bool shares = w.groups == 1 && !l.dynamic;
            for (int64_t r = 0; r + 2 < w.blocks; ++r) shares &= w.rows[r + 1] - w.rows[r] >= w.taps;
            if (shares && analogc_shared_channels(&l, l.x, l.input_range, mask.get(),
                                                  gradient.get(), scaled.get(), grad_x.get(),
                                                  threads)) {
                return fail("shared channels");
            }
            const bool turned = planes && l.size[0] == 1 && !l.dynamic && pick(0, 1);
            if (w.blocks == 1 &&
                analogc_prepare(&w, l.alpha, w.taps == 1 && w.groups == 1 && pick(0, 1), l.batch,
                                pixels, channels, in_pixels, gradient.get(), mask.get(), l.x,
                                l.dynamic ? nullptr : l.input_range, l.dac_levels, turned,
                                passed.get(), driven.get(), unpacked.get(), threads)) {
                return fail("prepare");
            }
            std::vector<float> found(grad_x.get(), grad_x.get() + x_size);
            found.insert(found.end(), grad_w.get(), grad_w.get() + w.columns * inputs);
            for (float &value : found) value = value == value ? value : 1e30f;
            if (first.empty()) first = found;
            if (std::memcmp(first.data(), found.data(), found.size() * sizeof(float))) {
                return fail("gradients of instruction sets or threads differ");
            }
        }
    }
    analogc_isa_use(analogc_isa_supported());
    return 0;
}

int run_layer() {
    analogc_layer l{};
    const int64_t dims = pick(0, 3);
    analogc_weight &w = l.weight;
    w.groups = dims && pick(0, 1) ? pick(1, 5) : 1;
    w.channels = pick(1, dims ? 20 : 90);
    w.columns = w.groups * pick(1, pick(0, 1) ? 6 : 150);
    w.taps = w.tap_row = 1;
    l.batch = pick(0, 6);
    int64_t pixels = 1, in_pixels = 1;
    for (int64_t d = 0; d < 3; ++d) {
        l.size[d] = l.stride[d] = l.dilation[d] = l.kernel[d] = l.out[d] = 1;
        if (d < 3 - dims) continue;
        l.kernel[d] = pick(1, 3);
        l.stride[d] = pick(1, 2);
        l.dilation[d] = pick(1, 2);
        l.padding[d] = pick(0, 2);
        const int64_t reach = l.dilation[d] * (l.kernel[d] - 1) + 1;
        l.size[d] = pick(std::max<int64_t>(1, reach - 2 * l.padding[d]), 9);
        l.out[d] = (l.size[d] + 2 * l.padding[d] - reach) / l.stride[d] + 1;
        pixels *= l.out[d];
        in_pixels *= l.size[d];
        w.taps *= l.kernel[d];
    }
    if (dims) w.tap_row = l.kernel[2];
    const int64_t inputs = w.channels * w.taps;
    std::vector<int64_t> rows{0};
    while (rows.back() < inputs) rows.push_back(pick(rows.back() + 1, inputs));
    w.blocks = static_cast<int64_t>(rows.size()) - 1;
    w.rows = rows.data();
    l.dac_levels = pick(0, 3) ? 127 : 0;
    l.adc_levels = pick(0, 3) ? 127 : 0;
    l.dynamic = l.dac_levels && pick(0, 1);
    l.adc_per_column = static_cast<int32_t>(pick(0, 1));
    l.output_noise = pick(0, 1) ? 0.1f : 0.0f;
    w.format = l.dac_levels && pick(0, 1) ? ANALOGC_INT16 : ANALOGC_FLOAT32;
    l.channels_last_in = l.channels_last_out = dims == 0 || pick(0, 1);

    const auto weight = values(w.columns * inputs, -1, 1);
    const int64_t bytes = analogc_packed_size(&w);
    if (bytes < 0) return fail("packed size");
    const auto data = array<unsigned char>(bytes);
    const auto step = array<float>(w.columns);
    w.data = data.get();
    w.step = step.get();
    if (analogc_pack(&w, weight.get(), 1)) return fail("pack");
    const auto unpacked = array<float>(w.columns * inputs);
    if (analogc_unpack(&w, nullptr, unpacked.get(), 1)) return fail("unpack");

    const int64_t x_size = l.batch * w.groups * w.channels * in_pixels;
    const int64_t y_size = l.batch * w.columns * pixels;
    const auto x = values(x_size, -2, 2);
    if (x_size && pick(0, 3) == 0) x[static_cast<size_t>(pick(0, x_size - 1))] = NAN;
    if (x_size && pick(0, 3) == 0) x[static_cast<size_t>(pick(0, x_size - 1))] = INFINITY;
    const auto alpha = values(w.columns, 0.5f, 1), bias = values(w.columns, -1, 1);
    const auto input_range = values(w.blocks, 1, 2);
    const auto adc_range = values(w.blocks * (l.adc_per_column ? w.columns : 1), 1, 4);
    l.x = x.get();
    l.alpha = alpha.get();
    l.bias = pick(0, 1) ? bias.get() : nullptr;
    l.input_range = input_range.get();
    l.adc_range = adc_range.get();
    l.key = 0x123456789ABCDEFu;

    std::vector<float> first;
    for (int32_t isa = analogc_isa_supported(); isa >= 0; --isa) {
        analogc_isa_use(isa);
        for (l.threads = 1; l.threads <= 2; ++l.threads) {
            const auto y = values(y_size, 0, 1);
            const auto mask = array<uint8_t>(w.blocks * y_size);
            l.y = y.get();
            l.mask = l.adc_levels && l.threads == 1 ? mask.get() : nullptr;
            if (analogc_forward(&l)) return fail("forward");
            std::vector<float> found(y.get(), y.get() + y_size);
            for (float &value : found) value = value == value ? value : 1e30f;
            if (first.empty()) first = found;
            if (y_size && std::memcmp(first.data(), found.data(), found.size() * sizeof(float))) {
                return fail("instruction sets or threads differ");
            }
        }
    }
    const uint64_t hash = analogc_hash(data.get(), static_cast<uint64_t>(bytes));
    analogc_isa_use(analogc_isa_supported());
    if (hash != analogc_hash(data.get(), static_cast<uint64_t>(bytes))) return fail("hash");
    return run_gradient(l, pixels, in_pixels);
}

// Noise far into a matrix, where the number of a Philox block takes more than 32 bits.
int check_far_noise() {
    for (const uint64_t group : {uint64_t{0}, (uint64_t{1} << 28) - 1, (uint64_t{1} << 28) + 5,
                                 (uint64_t{1} << 57) + 12345}) {
        float wanted[64], found[64];
        for (unsigned l = 0; l < 16; ++l) {
            const uint64_t number = group * 16 + l;
            unsigned c0 = static_cast<unsigned>(number), c1 = static_cast<unsigned>(number >> 32);
            unsigned c2 = 3, c3 = 9;
            analogc::philox4x32_10(c0, c1, c2, c3, 0x89ABCDEFu, 0x01234567u);
            analogc::normal_pair(c0, c1, wanted[l], wanted[16 + l]);
            analogc::normal_pair(c2, c3, wanted[32 + l], wanted[48 + l]);
        }
        for (int32_t isa = 0; isa <= analogc_isa_supported(); ++isa) {
            analogc_isa_use(isa);
            analogc::isa().normals(found, group, 1, 0x0123456789ABCDEFu, 3, 9);
            if (std::memcmp(wanted, found, sizeof found)) return fail("far noise");
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) return fail("usage: fuzz <seed> <layers>");
    if (check_far_noise()) return 1;
    g_random.seed(static_cast<unsigned>(std::atoi(argv[1])));
    for (int i = 0; i < std::atoi(argv[2]); ++i) {
        if (run_layer()) {
            std::fprintf(stderr, "layer %d\n", i);
            return 1;
        }
    }
    return 0;
}
