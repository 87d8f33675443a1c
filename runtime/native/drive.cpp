#include "drive.h"

namespace analogc {

MapLayout::MapLayout(const analogc_layer &l) : lanes(uses_lanes(l.weight)) {
    map_pixels = in_pixels = 1;
    for (int d = 0; d < 3; ++d) {
        padded[d] = l.size[d] + 2 * l.padding[d];
        map_pixels *= padded[d];
        in_pixels *= l.size[d];
    }
}

int64_t MapLayout::depth(const analogc_weight &w, int64_t r) const {
    const int64_t channels = Block(w, r).channels();
    return lanes ? channels * round_up(w.columns, 16) : w.groups * channels;
}

void MapLayout::channels_of(const analogc_weight &w, int64_t r, int64_t *channel) const {
    const Block block(w, r);
    if (!lanes) {
        for (int64_t g = 0; g < w.groups; ++g) {
            for (int64_t c = block.first; c < block.last; ++c) *channel++ = g * w.channels + c;
        }
        return;
    }
    const int64_t per_group = w.columns / w.groups, wide = round_up(w.columns, 16);
    for (int64_t c = block.first; c < block.last; ++c) {
        for (int64_t n = 0; n < wide; ++n) {
            const int64_t column = n < w.columns ? n : w.columns - 1;  // padding: any code will do
            *channel++ = column / per_group * w.channels + c;
        }
    }
}

void MapLayout::pixel_places(const analogc_layer &l, int64_t *place) const {
    for (int64_t d = 0; d < l.size[0]; ++d) {
        for (int64_t h = 0; h < l.size[1]; ++h) {
            const int64_t line =
                ((d + l.padding[0]) * padded[1] + h + l.padding[1]) * padded[2] + l.padding[2];
            for (int64_t w = 0; w < l.size[2]; ++w) *place++ = line + w;
        }
    }
}

int64_t MapLayout::tap_place(const analogc_layer &l, int64_t tap) const {
    const int64_t w = tap % l.kernel[2], h = tap / l.kernel[2] % l.kernel[1];
    const int64_t d = tap / l.kernel[2] / l.kernel[1];
    return (d * l.dilation[0] * padded[1] + h * l.dilation[1]) * padded[2] + w * l.dilation[2];
}

bool Patch::build(const analogc_layer &l, const MapLayout &map, int64_t r, int64_t depth,
                  int64_t first_channel, int step) {
    bool direct = true;
    int64_t to = 0, in_segment = 0;
    copy_count = segment_count = 0;
    for_each_piece(l.weight, r, [&](const Piece &piece) {
        const int64_t from = map.tap_place(l, piece.tap) * depth + first_channel + piece.low;
        if (piece.begins_segment && in_segment % step) {
            copies[copy_count - 1].pad = true;
            ++to;
        }
        in_segment = piece.begins_segment ? piece.length : in_segment + piece.length;
        copies[copy_count++] = {from, to, piece.length, false};
        to += piece.length;
        Segment *last = segment_count ? segments + segment_count - 1 : nullptr;
        if (!piece.begins_segment && last->offset + last->length == from) {
            last->length += piece.length;
            return;
        }
        if (!piece.begins_segment && last->length % step) direct = false;
        segments[segment_count++] = {from, piece.length};
    });
    if (in_segment % step) copies[copy_count - 1].pad = true;
    return direct;
}

}  // namespace analogc
