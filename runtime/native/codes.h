// Codes of the inputs of one call: what the DACs of its row blocks make of them.
#pragma once
#include "state.h"

namespace analogc {

template <class Code>
class Drive {
 public:
    explicit Drive(State<Code> &state) : st(state) {}

    // Codes of images (or vectors) start .. stop, shared by the threads; ends with a barrier.
    void run(int64_t start, int64_t stop) {
        if (st.mode == Mode::kVectors) return drive_vectors(start, stop);
        constexpr int64_t kRun = 2048;  // pixels of one task
        const int64_t runs = (st.map.in_pixels + kRun - 1) / kRun;
        const int64_t blocks = st.holds_values() ? 1 : st.weight.blocks;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < (stop - start) * blocks * runs; ++task) {
            const int64_t run = task % runs * kRun, r = task / runs % blocks;
            const int64_t image = start + task / runs / blocks;
            const int64_t left = st.map.in_pixels - run;
            drive_map(image, image - start, r, run, left < kRun ? left : kRun);
        }
    }

 private:
    void drive_vectors(int64_t start, int64_t stop) {
        const int64_t inputs = st.weight.channels;
#pragma omp for schedule(static)
        for (int64_t v = start; v < stop; ++v) {
            for (int64_t r = 0; r < st.weight.blocks; ++r) {
                const int64_t rows = st.weight.rows[r + 1] - st.weight.rows[r],
                              packed = st.codes_of_block(r);
                const float *x = st.layer.x + v * inputs + st.weight.rows[r];
                Code *codes = st.codes + st.code_start[r] + (v - start) * packed;
                float unit =
                    st.layer.dac_levels > 0 && !st.layer.dynamic ? st.layer.input_range[r] : 1.0f;
                if (st.layer.dynamic)
                    unit = st.units[(v - start) * st.weight.blocks + r] = st.range_of(x, rows);
                st.note_nan(r, convert(x, rows, st.steps_of(unit), st.levels(), codes));
                if (rows % Kernels<Code>::kStep) codes[rows] = 0;
            }
        }
    }

    void drive_map(int64_t image, int64_t slot, int64_t r, int64_t run, int64_t count) {
        const int64_t channels = st.weight.groups * st.weight.channels;
        Planes a;
        a.x = st.layer.x + image * channels * st.map.in_pixels +
              run * (st.layer.channels_last_in ? channels : 1);
        a.plane = st.layer.channels_last_in ? 1 : st.map.in_pixels;
        a.step = st.layer.channels_last_in ? channels : 1;
        a.pixel = st.place + run;
        a.pixel_count = count;
        if (st.holds_values()) {
            a.channel = st.channel;
            a.channel_count = st.value_depth();
            a.steps = a.levels = 0;
            isa().planes_float(a, st.values + slot * st.map.map_pixels * st.value_depth());
            return;
        }
        a.channel = st.channel + st.channel_start[r];
        a.channel_count = st.map.depth(st.weight, r);
        a.levels = st.levels();
        a.steps = st.layer.dac_levels > 0 ? st.steps_of(st.layer.input_range[r]) : 0;
        Code *codes = st.codes + st.code_start[r] + slot * st.map.map_pixels * a.channel_count;
        const bool same = a.channel_count == channels && (!st.map.lanes || st.weight.channels == 1);
        if (st.layer.channels_last_in && same) {
            st.note_nan(r, drive_lines(a, codes));
        } else {
            st.note_nan(r, Kernels<Code>::planes(a, codes));
        }
    }

    // Channels last to channels last: neighbours stay neighbours up to the end of a line.
    bool drive_lines(const Planes &a, Code *codes) {
        bool bad = false;
        for (int64_t p = 0; p < a.pixel_count;) {
            int64_t end = p + 1;
            while (end < a.pixel_count && a.pixel[end] == a.pixel[end - 1] + 1) ++end;
            bad |= convert(a.x + p * a.step, (end - p) * a.channel_count, a.steps, a.levels,
                           codes + a.pixel[p] * a.channel_count);
            p = end;
        }
        return bad;
    }

    State<Code> &st;
};

}  // namespace analogc
