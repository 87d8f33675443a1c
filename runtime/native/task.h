// One task: some input vectors times some columns, through all row blocks while in cache.
#pragma once
#include <math.h>

#include "state.h"

namespace analogc {

template <class Code>
class Task {
 public:
    // Task number `column` along columns, of vectors begin .. end. first: image (or vector) whose
    // codes come first. thread: whose arrays to use.
    Task(const State<Code> &state, int64_t column, int64_t begin, int64_t end, int64_t first,
         int64_t thread)
        : st(state),
          v0(begin),
          v1(end),
          n0(column * state.plan.chunk_columns),
          n1(n0 + state.plan.chunk_columns < state.plan.width ? n0 + state.plan.chunk_columns
                                                              : state.plan.width),
          image0(first),
          lead(state.plan.width < 64 ? begin * state.plan.width % 64 : 0),
          s(state.scratch[thread]) {}

    void run() {
        const bool in_place = st.layer.channels_last_out && st.plan.width == st.weight.columns &&
                              st.plan.width % 64 == 0;
        if (st.mode != Mode::kVectors) find_pixels();
        for (int64_t r = 0; r < st.weight.blocks; ++r) {
            const bool unit = sum_block(r);
            finish_block(r, unit, in_place);
            if (st.layer.mask) {
                store(s.mask, st.layer.mask + r * st.plan.vectors * st.weight.columns);
            }
        }
        if (!in_place) store(s.y, st.layer.y);
    }

 private:
    using Acc = typename State<Code>::Acc;

    int64_t row_count() const { return v1 - v0; }
    int64_t column_count() const { return n1 - n0; }

    // First pixel of each input vector's patch, counted over all maps that are there.
    void find_pixels() {
        const int64_t *out = st.layer.out;
        int64_t image = v0 / st.plan.pixels, at = v0 % st.plan.pixels;
        int64_t w = at % out[2], h = at / out[2] % out[1], d = at / out[2] / out[1];
        for (int64_t i = 0; i < row_count(); ++i) {
            s.pixel[i] = (image - image0) * st.map.map_pixels +
                         (d * st.layer.stride[0] * st.map.padded[1] + h * st.layer.stride[1]) *
                             st.map.padded[2] +
                         w * st.layer.stride[2];
            if (++w < out[2]) continue;
            w = 0;
            if (++h < out[1]) continue;
            h = 0;
            if (++d < out[0]) continue;
            d = 0;
            ++image;
        }
    }

    // Partial sums of row block r. Returns whether the task's units count.
    bool sum_block(int64_t r) {
        const bool poisoned = !st.layer.dynamic && st.is_poisoned(r);
        if (st.map.lanes) {
            sum_lanes(r, poisoned);
        } else {
            for (int64_t g = 0; g < st.weight.groups; ++g) sum_group(r, g, poisoned);
        }
        return st.layer.dynamic || poisoned;
    }

    void sum_group(int64_t r, int64_t g, bool poisoned) {
        const int64_t packed = packed_rows(st.weight, r);
        const Segment whole{0, packed};
        Gemm<Code, Acc> a;
        a.codes = st.codes + st.code_start[r];
        a.rows = s.row;
        a.row_count = row_count();
        a.segments = &whole;
        a.segment_count = 1;
        if (st.mode == Mode::kVectors) {
            for (int64_t i = 0; i < row_count(); ++i) s.row[i] = (v0 - image0 + i) * packed;
        } else {
            const int64_t depth = st.map.depth(st.weight, r),
                          first = g * Block(st.weight, r).channels();
            for (int64_t i = 0; i < row_count(); ++i) s.row[i] = s.pixel[i] * depth + first;
            if (st.mode == Mode::kDirect) {
                a.segments = st.patch[r].segments;
                a.segment_count = st.patch[r].segment_count;
            } else if (st.mode == Mode::kGather) {
                gather(r, packed);
                a.codes = s.codes;
            }
        }
        if (st.mode == Mode::kPatches) {
            quantise_patches(r, g, packed);
            a.codes = s.codes;
        } else if (st.layer.dynamic) {
            for (int64_t i = 0; i < row_count(); ++i) {
                set_unit(i, g, st.units[(v0 - image0 + i) * st.weight.blocks + r]);
            }
        } else if (poisoned) {
            for (int64_t i = 0; i < row_count(); ++i) set_unit(i, g, has_nan(a, i) ? NAN : 1.0f);
        }
        multiply(r, g, packed, a);
    }

    void multiply(int64_t r, int64_t g, int64_t packed, Gemm<Code, Acc> &a) {
        const int64_t per_group = st.weight.columns / st.weight.groups,
                      stored = packed_columns(st.weight);
        const int64_t base = g * per_group - n0;  // column of the task where the group begins
        const Code *block = static_cast<const Code *>(st.weight.data) + block_offset(st.weight, r) +
                            g * stored * packed;
        Acc *acc = s.acc + lead;
        const int64_t begin = st.weight.groups > 1 ? 0 : n0;
        const int64_t end = st.weight.groups == 1 && n1 < stored ? n1 : stored;
        for (int64_t left = begin; left < end; left += kPanel) {
            a.panel = block + left * packed;
            a.panel_columns = stored - left < kPanel ? stored - left : kPanel;
            const int64_t used = per_group - left < kPanel ? per_group - left : kPanel;
            if (st.weight.groups == 1 || used == a.panel_columns) {
                a.acc = acc + base + left;
                a.acc_stride = column_count();
                Kernels<Code>::gemm(a);
                continue;
            }
            // The panel is wider than what is left of the group: its neighbour must not be hit.
            a.acc = s.tile;
            a.acc_stride = kPanel;
            Kernels<Code>::gemm(a);
            for (int64_t i = 0; i < row_count(); ++i) {
                memcpy(acc + i * column_count() + base + left, s.tile + i * kPanel,
                       static_cast<size_t>(used) * sizeof(Acc));
            }
        }
    }

    void set_unit(int64_t i, int64_t g, float unit) {
        const int64_t per_group = st.weight.columns / st.weight.groups;
        float *at = s.unit + lead + i * column_count() + (st.weight.groups > 1 ? g * per_group : 0);
        const int64_t count = st.weight.groups > 1 ? per_group : column_count();
        for (int64_t j = 0; j < count; ++j) at[j] = unit;
    }

    static bool has_nan(const Gemm<Code, Acc> &a, int64_t i) {
        bool found = false;
        for (int64_t s = 0; s < a.segment_count; ++s) {
            const Code *code = a.codes + a.rows[i] + a.segments[s].offset;
            for (int64_t k = 0; k < a.segments[s].length; ++k) found |= code[k] == Code(kNaNCode);
        }
        return found;
    }

    // Patches of codes, each packed row by row; rows then start there.
    void gather(int64_t r, int64_t packed) {
        const Patch &p = st.patch[r];
        for (int64_t i = 0; i < row_count(); ++i) {
            const Code *from = st.codes + st.code_start[r] + s.row[i];
            Code *to = s.codes + i * packed;
            for (int64_t c = 0; c < p.copy_count; ++c) {
                const Copy &copy = p.copies[c];
                memcpy(to + copy.to, from + copy.from,
                       static_cast<size_t>(copy.length) * sizeof(Code));
                if (copy.pad) to[copy.to + copy.length] = 0;
            }
            s.row[i] = i * packed;
        }
    }

    void quantise_patches(int64_t r, int64_t g, int64_t packed) {
        const Patch &p = st.patch[r];
        for (int64_t i = 0; i < row_count(); ++i) {
            const float *from = st.values + s.pixel[i] * st.value_depth() + g * st.weight.channels;
            for (int64_t c = 0; c < p.copy_count; ++c) {
                const Copy &copy = p.copies[c];
                memcpy(s.values + copy.to, from + copy.from, static_cast<size_t>(copy.length) * 4);
                if (copy.pad) s.values[copy.to + copy.length] = 0;
            }
            const float unit = st.range_of(s.values, packed);
            set_unit(i, g, unit);
            s.row[i] = i * packed;
            convert(s.values, packed, st.steps_of(unit), st.levels(), s.codes + i * packed);
        }
    }

    void sum_lanes(int64_t r, bool poisoned) {
        const int64_t wide = round_up(st.weight.columns, 16), k0 = st.weight.rows[r];
        LaneSums<Code, Acc> a;
        a.codes = st.codes + st.code_start[r];
        a.rows = s.row;
        a.row_count = row_count();
        a.offsets = st.lane_offset + k0;
        a.k_count = st.weight.rows[r + 1] - k0;
        a.weight = static_cast<const Code *>(st.weight.data) + block_offset(st.weight, r);
        a.columns = wide;
        a.acc = s.acc + lead;
        a.acc_stride = column_count();
        if (st.mode == Mode::kLanesPatches) {
            quantise_lanes(a);
            a.codes = s.codes;
            a.offsets = s.lane_offset;
        } else {
            const int64_t depth = st.map.depth(st.weight, r);
            for (int64_t i = 0; i < row_count(); ++i) s.row[i] = s.pixel[i] * depth;
            if (poisoned) poison_lanes(a);
        }
        Kernels<Code>::lanes(a);
    }

    void poison_lanes(const LaneSums<Code, Acc> &a) {
        for (int64_t i = 0; i < row_count(); ++i) {
            for (int64_t n = 0; n < a.columns; ++n) {
                bool found = false;
                for (int64_t k = 0; k < a.k_count; ++k) {
                    found |= a.codes[a.rows[i] + a.offsets[k] + n] == Code(kNaNCode);
                }
                s.unit[lead + i * column_count() + n] = found ? NAN : 1.0f;
            }
        }
    }

    void quantise_lanes(const LaneSums<Code, Acc> &a) {
        for (int64_t k = 0; k < a.k_count; ++k) s.lane_offset[k] = k * a.columns;
        for (int64_t i = 0; i < row_count(); ++i) {
            const float *from = st.values + s.pixel[i] * st.value_depth();
            float *unit = s.unit + lead + i * column_count();
            s.row[i] = i * a.k_count * a.columns;
            for (int64_t n = 0; n < a.columns; ++n) {
                for (int64_t k = 0; k < a.k_count; ++k) s.values[k] = from[a.offsets[k] + n];
                unit[n] = st.range_of(s.values, a.k_count);
                convert(s.values, a.k_count, st.steps_of(unit[n]), st.levels(), s.lane_codes);
                Code *to = s.codes + s.row[i] + n;
                for (int64_t k = 0; k < a.k_count; ++k) to[k * a.columns] = s.lane_codes[k];
            }
        }
    }

    void finish_block(int64_t r, bool unit, bool in_place) {
        const ColumnConstants &c = st.constants;
        const bool narrow = st.plan.width < 64;
        Epilogue e;
        e.acc = s.acc;
        e.unit = unit ? s.unit : nullptr;
        e.y = in_place ? st.layer.y + v0 * st.weight.columns + n0 : s.y;
        e.mask = st.layer.mask ? s.mask : nullptr;
        e.columns = narrow ? 64 : column_count();
        e.rows = narrow ? (lead + row_count() * st.plan.width + 63) / 64 : row_count();
        e.y_stride = in_place ? st.weight.columns : e.columns;
        const uint64_t first = static_cast<uint64_t>(v0) * static_cast<uint64_t>(st.plan.width);
        e.first_group = (first + static_cast<uint64_t>(n0)) / 64;
        e.group_stride = narrow ? 1 : static_cast<uint64_t>(st.plan.width / 64);
        const int64_t from = r * c.width + (narrow ? 0 : n0);
        e.p_steps = c.p_steps + from;
        e.z_steps = c.z_steps + from;
        e.gain = c.gain + from;
        e.bias = st.layer.bias && r == st.weight.blocks - 1 ? c.bias + (narrow ? 0 : n0) : nullptr;
        e.adc_levels = static_cast<float>(st.layer.adc_levels);
        e.key = st.layer.key;
        e.block = static_cast<uint32_t>(r);
        e.call = static_cast<uint32_t>(st.layer.call);
        e.integer = sizeof(Code) == 2;
        e.first = r == 0;
        e.noise = st.layer.output_noise > 0;
        isa().epilogue(e);
    }

    // A task's part [rows, columns] into an output of the layer's layout.
    template <class T>
    void store(const T *from, T *out) {
        from += lead;
        const int64_t end = n1 < st.weight.columns ? n1 : st.weight.columns, columns = end - n0;
        if (st.layer.channels_last_out) {
            for (int64_t i = 0; i < row_count(); ++i) {
                memcpy(out + (v0 + i) * st.weight.columns + n0, from + i * column_count(),
                       static_cast<size_t>(columns) * sizeof(T));
            }
            return;
        }
        for (int64_t v = v0; v < v1;) {
            const int64_t image = v / st.plan.pixels, pixel = v % st.plan.pixels;
            const int64_t left = st.plan.pixels - pixel;
            const int64_t rows = left < v1 - v ? left : v1 - v;
            T *to = out + (image * st.weight.columns + n0) * st.plan.pixels + pixel;
            turn(from + (v - v0) * column_count(), rows, columns, column_count(), to);
            v += rows;
        }
    }
    void turn(const float *y, int64_t rows, int64_t columns, int64_t stride, float *to) {
        isa().store_planes(y, rows, columns, stride, to, st.plan.pixels);
    }
    void turn(const uint8_t *mask, int64_t rows, int64_t columns, int64_t stride, uint8_t *to) {
        for (int64_t n = 0; n < columns; ++n) {
            for (int64_t p = 0; p < rows; ++p) to[n * st.plan.pixels + p] = mask[p * stride + n];
        }
    }

    const State<Code> &st;
    const int64_t v0, v1, n0, n1;  // input vectors, and columns of the noise matrix
    const int64_t image0;
    const int64_t lead;  // elements of the first noise group that belong to vectors before v0
    const typename State<Code>::Scratch &s;
};

}  // namespace analogc
