// Everything that one call works with: sizes, tables and the arrays of its tasks.
#pragma once
#include <math.h>
#include <string.h>

#include <type_traits>

#include "drive.h"

namespace analogc {

enum class Mode {
    kVectors,      // linear
    kDirect,       // convolution: segments of the padded map of codes drive the GEMM
    kGather,       // convolution whose segments do not: patches of codes are built in cache
    kPatches,      // convolution with a range for each patch: patches of values are built in cache
    kLanes,        // groups with few outputs: lanes are columns
    kLanesPatches  // the same with a range for each patch
};

template <class Code>
struct State {
    using K = Kernels<Code>;
    using Acc = typename K::Acc;

    // Arrays of one task; each thread has its own.
    struct Scratch {
        Acc *acc, *tile;
        float *y, *unit, *values;
        uint8_t *mask;
        Code *codes, *lane_codes;
        int64_t *pixel, *row, *lane_offset;
    };

    const analogc_layer &layer;
    const analogc_weight &weight;
    Plan plan;
    MapLayout map;
    Mode mode = Mode::kVectors;
    int64_t at_once = 1;    // images (or vectors) whose codes are there at a time
    int64_t most_rows = 0;  // packed rows of the longest row block; for lanes times columns
    ColumnConstants constants{};
    int64_t *code_start = nullptr;  // [R + 1] of each row block in codes
    Code *codes = nullptr;          // [R][at_once][map pixels, depth] or [R][at_once][packed rows]
    uint8_t *bad = nullptr;         // [R] whether a NaN was met
    float *values = nullptr;        // [at_once][map pixels, value depth]
    float *units = nullptr;         // [at_once, R] ranges of input vectors
    int64_t *place = nullptr;       // [input pixels] place in the padded map
    int64_t *channel_start = nullptr,
            *channel = nullptr;  // channel of each code of a pixel, by block
    Patch *patch = nullptr;      // [R]
    Copy *copies = nullptr;
    Segment *segments = nullptr;
    int64_t *lane_offset = nullptr;  // [K]
    Scratch *scratch = nullptr;      // [threads]

    explicit State(const analogc_layer &l) : layer(l), weight(l.weight), plan(l), map(l) {
        choose();
    }

    // Finds memory and fills the tables; false if there is none.
    bool begin(Arena &arena) {
        if (!arena.reserve(lay_out(nullptr))) return false;
        lay_out(&arena);
        prepare();
        return true;
    }

    bool holds_values() const { return mode == Mode::kPatches || mode == Mode::kLanesPatches; }
    bool has_unit() const { return layer.dynamic || sizeof(Code) == 2; }

    // Codes of one image or vector, all row blocks.
    int64_t codes_per_image() const {
        int64_t total = 0;
        for (int64_t r = 0; r < weight.blocks; ++r) total += codes_of_block(r);
        return total;
    }
    int64_t codes_of_block(int64_t r) const {
        if (mode == Mode::kVectors) return packed_rows(weight, r);
        return holds_values() ? 0 : map.map_pixels * map.depth(weight, r);
    }
    int64_t value_depth() const {  // values of one pixel in a map of values
        return map.lanes ? weight.channels * round_up(weight.columns, 16)
                         : weight.groups * weight.channels;
    }

    float levels() const { return static_cast<float>(layer.dac_levels); }
    float steps_of(float unit) const { return levels() / unit; }

    // Abs-max of a vector. Infinity leaves no number either, as infinity / infinity does.
    static float usable_range(float peak) {
        if (peak == 0) return 1;
        return peak <= 3.402823466e38f ? peak : NAN;
    }
    static float range_of(const float *x, int64_t n) { return usable_range(isa().absmax(x, n)); }

    void note_nan(int64_t r, bool found) {
        if (found) __atomic_store_n(bad + r, uint8_t{1}, __ATOMIC_RELAXED);
    }
    bool is_poisoned(int64_t r) const {
        return sizeof(Code) == 2 && __atomic_load_n(bad + r, __ATOMIC_RELAXED) != 0;
    }

 private:
    void choose() {
        const bool convolution = weight.taps > 1 || plan.pixels > 1 || map.in_pixels > 1;
        if (map.lanes) {
            mode = layer.dynamic ? Mode::kLanesPatches : Mode::kLanes;
        } else if (!convolution && weight.groups == 1) {
            mode = Mode::kVectors;
        } else {
            mode = layer.dynamic ? Mode::kPatches : Mode::kDirect;
        }
        // A map that does not fit its segments is noticed when they are built (prepare).
        most_rows = 0;
        for (int64_t r = 0; r < weight.blocks; ++r) {
            int64_t rows =
                map.lanes ? (weight.rows[r + 1] - weight.rows[r]) * round_up(weight.columns, 16)
                          : packed_rows(weight, r);
            most_rows = rows > most_rows ? rows : most_rows;
        }
    }

    // Sizes of all arrays, and (with an arena) where they are.
    int64_t lay_out(Arena *arena) {
        int64_t bytes = 0;
        const auto take = [&](auto *&at, int64_t count) {
            using T = std::remove_reference_t<decltype(*at)>;
            bytes += Arena::bytes_of<T>(count);
            if (arena) at = arena->template take<T>(count);
        };
        // Inputs whose codes are there at once: about the size of L2 for each thread.
        constexpr int64_t kSlack = 128, kBudget = int64_t{768} << 10;
        const int64_t each = codes_per_image() * int64_t{sizeof(Code)} +
                             (holds_values() ? map.map_pixels * value_depth() * 4 : 0);
        at_once = kBudget * layer.threads / (each > 0 ? each : 1);
        if (mode == Mode::kVectors) {
            const int64_t least = plan.chunk_rows * layer.threads;
            at_once = at_once < least ? least : at_once / plan.chunk_rows * plan.chunk_rows;
        }
        at_once = at_once < 1 ? 1 : at_once > layer.batch ? layer.batch : at_once;

        const int64_t width = plan.width < 64 ? 64 : plan.width;
        constants.width = width;
        take(constants.p_steps, weight.blocks * width);
        take(constants.z_steps, weight.blocks * width);
        take(constants.gain, weight.blocks * width);
        take(constants.bias, width);
        take(code_start, weight.blocks + 1);
        take(bad, weight.blocks);
        take(codes, codes_per_image() * at_once + kSlack);
        take(values, holds_values() ? map.map_pixels * value_depth() * at_once + kSlack : 0);
        take(units, mode == Mode::kVectors && layer.dynamic ? at_once * weight.blocks : 0);
        const bool maps = mode != Mode::kVectors;
        take(place, maps ? map.in_pixels : 0);
        take(channel_start, weight.blocks + 1);
        int64_t channels = 0;
        for (int64_t r = 0; maps && r < weight.blocks; ++r) channels += map.depth(weight, r);
        take(channel, holds_values() ? value_depth() : channels);
        take(patch, weight.blocks);
        take(copies, maps ? weight.blocks * weight.taps : weight.blocks);
        take(segments, maps ? weight.blocks * weight.taps : weight.blocks);
        take(lane_offset, map.lanes ? weight.channels * weight.taps : 0);
        take(scratch, layer.threads);
        for (int32_t i = 0; i < layer.threads; ++i) {
            Scratch none{};
            Scratch &s = arena ? scratch[i] : none;
            const int64_t size = plan.chunk_size();
            take(s.acc, size);
            take(s.y, size);
            take(s.unit, has_unit() ? size : 0);
            take(s.mask, layer.mask ? size : 0);
            // Direct layers may yet turn out to need patches of codes.
            take(s.codes, maps ? plan.chunk_rows * most_rows + kSlack : 0);
            take(s.tile, weight.groups > 1 ? plan.chunk_rows * kPanel : 0);
            take(s.lane_codes, map.lanes ? weight.channels * weight.taps : 0);
            take(s.lane_offset, map.lanes ? weight.channels * weight.taps : 0);
            take(s.values, holds_values() ? most_rows + kSlack : 0);
            take(s.pixel, plan.chunk_rows);
            take(s.row, plan.chunk_rows);
        }
        return bytes;
    }

    void prepare() {
        constants.fill(layer);
        memset(bad, 0, static_cast<size_t>(weight.blocks));
        code_start[0] = 0;
        for (int64_t r = 0; r < weight.blocks; ++r) {
            code_start[r + 1] = code_start[r] + codes_of_block(r) * at_once;
        }
        if (mode == Mode::kVectors) return;
        // Padding stays zero: only pixels of the input are ever written.
        memset(codes, 0, static_cast<size_t>(code_start[weight.blocks]) * sizeof(Code));
        map.pixel_places(layer, place);
        if (holds_values()) {
            memset(values, 0, static_cast<size_t>(map.map_pixels * value_depth() * at_once) * 4);
            all_channels();
        } else {
            channel_start[0] = 0;
            for (int64_t r = 0; r < weight.blocks; ++r) {
                map.channels_of(weight, r, channel + channel_start[r]);
                channel_start[r + 1] = channel_start[r] + map.depth(weight, r);
            }
        }
        map.lanes ? find_lanes() : find_patches();
    }

    void all_channels() {
        const int64_t wide = round_up(weight.columns, 16),
                      per_group = weight.columns / weight.groups;
        for (int64_t i = 0; i < value_depth(); ++i) {
            const int64_t n = i % wide < weight.columns ? i % wide : weight.columns - 1;
            channel[i] = map.lanes ? n / per_group * weight.channels + i / wide : i;
        }
    }

    void find_lanes() {
        const int64_t wide = round_up(weight.columns, 16);
        for (int64_t r = 0; r < weight.blocks; ++r) {
            const int64_t depth = holds_values() ? value_depth() : map.depth(weight, r);
            const int64_t first = holds_values() ? 0 : Block(weight, r).first;
            for (int64_t k = weight.rows[r]; k < weight.rows[r + 1]; ++k) {
                lane_offset[k] = map.tap_place(layer, k % weight.taps) * depth +
                                 (k / weight.taps - first) * wide;
            }
        }
    }

    void find_patches() {
        for (int64_t r = 0; r < weight.blocks; ++r) {
            Patch &p = patch[r];
            p.copies = copies + r * weight.taps;
            p.segments = segments + r * weight.taps;
            const int64_t depth = holds_values() ? value_depth() : map.depth(weight, r);
            const int64_t first = holds_values() ? Block(weight, r).first : 0;
            const bool direct = p.build(layer, map, r, depth, first, K::kStep);
            if (!direct && mode == Mode::kDirect) mode = Mode::kGather;
        }
    }
};

}  // namespace analogc
