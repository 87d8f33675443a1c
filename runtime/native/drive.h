// What the tiles are driven with: codes of input vectors or of zero-padded channels-last maps.
#pragma once
#include "plan.h"

namespace analogc {

template <class Code>
struct Kernels;
template <>
struct Kernels<float> {
    using Acc = float;
    static constexpr int kStep = 1;
    static bool dac(const float *x, int64_t n, float steps, float levels, float *codes) {
        return isa().dac_float(x, n, steps, levels, codes);
    }
    static bool planes(const Planes &a, float *codes) { return isa().planes_float(a, codes); }
    static void gemm(const GemmFloat &g) { isa().gemm_float(g); }
    static void lanes(const LaneSums<float, float> &g) { isa().lanes_float(g); }
};
template <>
struct Kernels<int16_t> {
    using Acc = int32_t;
    static constexpr int kStep = 2;
    static bool dac(const float *x, int64_t n, float steps, float levels, int16_t *codes) {
        return isa().dac_int16(x, n, steps, levels, codes);
    }
    static bool planes(const Planes &a, int16_t *codes) { return isa().planes_int16(a, codes); }
    static void gemm(const GemmInt16 &g) { isa().gemm_int16(g); }
    static void lanes(const LaneSums<int16_t, int32_t> &g) { isa().lanes_int16(g); }
};

// Codes of n values; without a DAC they are the values.
template <class Code>
bool convert(const float *x, int64_t n, float steps, float levels, Code *codes) {
    if (levels > 0) return Kernels<Code>::dac(x, n, steps, levels, codes);
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<Code>(x[i]);
    return false;
}

// A stretch of a patch: `length` codes at `from` of the input go to `to` of the packed order.
struct Copy {
    int64_t from, to, length;
    bool pad;  // a zero follows
};

// Geometry of a padded channels-last map of one image, and where each row block finds its codes.
struct MapLayout {
    int64_t padded[3], map_pixels;  // of the padded map
    int64_t in_pixels;
    bool lanes;

    explicit MapLayout(const analogc_layer &layer);
    // Codes of one pixel that row block r uses: its channels of every group, or for lanes one plane
    // of all columns for each of its channels.
    int64_t depth(const analogc_weight &w, int64_t r) const;
    void channels_of(const analogc_weight &w, int64_t r, int64_t *channel) const;
    void pixel_places(const analogc_layer &layer, int64_t *place) const;
    int64_t tap_place(const analogc_layer &layer, int64_t tap) const;
};

// Pieces of row block r of a patch, as copies and (where they are long enough) as segments.
// depth: codes of one pixel of the map. Returns whether segments alone can drive the GEMM: not if
// an odd number of int16 codes ends where the packed rows go on.
struct Patch {
    Copy *copies;
    Segment *segments;
    int64_t copy_count, segment_count;

    bool build(const analogc_layer &layer, const MapLayout &map, int64_t r, int64_t depth,
               int64_t first_channel, int step);
};

}  // namespace analogc
