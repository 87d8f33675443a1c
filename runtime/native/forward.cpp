// One call of a layer: codes of the inputs, then tasks of (input vectors x columns), each of which
// takes its row blocks through GEMM, noise, ADC and digital sum while the sums are in cache.
//
// A result is a function of the operands only: every sum is formed in one order, and noise belongs
// to its element, so neither threads nor the cut into tasks can change a bit.
#include "drive.h"

#include <math.h>
#include <string.h>

#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace analogc {
namespace {

int thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

enum class Mode {
    kVectors,      // linear
    kDirect,       // convolution: segments of the padded map of codes drive the GEMM
    kGather,       // convolution whose segments do not: patches of codes are built in cache
    kPatches,      // convolution with a range for each patch: patches of values are built in cache
    kLanes,        // groups with few outputs: lanes are columns
    kLanesPatches  // the same with a range for each patch
};

template <class Code>
class Forward {
   public:
    explicit Forward(const analogc_layer &layer) : l_(layer), w_(layer.weight), plan_(layer), map_(layer) {}

    int32_t run() {
        choose();
        Arena &arena = thread_arena();
        if (!arena.reserve(lay_out(nullptr))) return ANALOGC_NO_MEMORY;
        lay_out(&arena);
        prepare();
#pragma omp parallel num_threads(l_.threads) if (l_.threads > 1)
        {
            for (int64_t start = 0; start < l_.batch; start += at_once_) {
                const int64_t stop = start + at_once_ < l_.batch ? start + at_once_ : l_.batch;
                drive(start, stop);  // ends with a barrier
                const int64_t v0 = start * plan_.pixels, v1 = stop * plan_.pixels;
                const int64_t chunks = (v1 - v0 + plan_.chunk_rows - 1) / plan_.chunk_rows;
#pragma omp for schedule(dynamic, 1)
                for (int64_t task = 0; task < chunks * plan_.column_tasks(); ++task) {
                    Task t = next_task(task / chunks, v0 + task % chunks * plan_.chunk_rows, v1);
                    t.image0 = start;
                    execute(t);
                }
            }
        }
        arena.release();
        return ANALOGC_OK;
    }

   private:
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

    struct Task {
        int64_t v0, v1, n0, n1;  // input vectors and columns of the noise matrix
        int64_t image0;          // first image (or vector) whose codes are there
        int64_t lead;            // elements of the noise group that belong to the vectors before
        Scratch s;
        int64_t rows() const { return v1 - v0; }
        int64_t columns() const { return n1 - n0; }
    };

    bool needs_patches() const {
        return mode_ == Mode::kGather || mode_ == Mode::kPatches || mode_ == Mode::kLanesPatches;
    }
    bool holds_values() const { return mode_ == Mode::kPatches || mode_ == Mode::kLanesPatches; }
    bool has_unit() const { return l_.dynamic || sizeof(Code) == 2; }

    void choose() {
        const bool convolution = w_.taps > 1 || plan_.pixels > 1 || map_.in_pixels > 1;
        if (map_.lanes) {
            mode_ = l_.dynamic ? Mode::kLanesPatches : Mode::kLanes;
        } else if (!convolution && w_.groups == 1) {
            mode_ = Mode::kVectors;
        } else {
            mode_ = l_.dynamic ? Mode::kPatches : Mode::kDirect;
        }
        // A map that does not fit its segments is noticed when they are built (prepare).
        most_rows_ = 0;
        for (int64_t r = 0; r < w_.blocks; ++r) {
            int64_t rows = map_.lanes ? (w_.rows[r + 1] - w_.rows[r]) * round_up(w_.columns, 16)
                                      : packed_rows(w_, r);
            most_rows_ = rows > most_rows_ ? rows : most_rows_;
        }
    }

    // Codes of one image or vector, all row blocks.
    int64_t codes_per_image() const {
        int64_t total = 0;
        for (int64_t r = 0; r < w_.blocks; ++r) total += codes_of_block(r);
        return total;
    }
    int64_t codes_of_block(int64_t r) const {
        if (mode_ == Mode::kVectors) return packed_rows(w_, r);
        return holds_values() ? 0 : map_.map_pixels * map_.depth(w_, r);
    }
    int64_t value_depth() const {  // values of one pixel in a map of values
        return map_.lanes ? w_.channels * round_up(w_.columns, 16) : w_.groups * w_.channels;
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
                             (holds_values() ? map_.map_pixels * value_depth() * 4 : 0);
        at_once_ = kBudget * l_.threads / (each > 0 ? each : 1);
        if (mode_ == Mode::kVectors) {
            const int64_t least = plan_.chunk_rows * l_.threads;
            at_once_ = at_once_ < least ? least : at_once_ / plan_.chunk_rows * plan_.chunk_rows;
        }
        at_once_ = at_once_ < 1 ? 1 : at_once_ > l_.batch ? l_.batch : at_once_;

        const int64_t width = plan_.width < 64 ? 64 : plan_.width;
        constants_.width = width;
        take(constants_.p_steps, w_.blocks * width);
        take(constants_.z_steps, w_.blocks * width);
        take(constants_.gain, w_.blocks * width);
        take(constants_.bias, width);
        take(code_start_, w_.blocks + 1);
        take(bad_, w_.blocks);
        take(codes_, codes_per_image() * at_once_ + kSlack);
        take(values_, holds_values() ? map_.map_pixels * value_depth() * at_once_ + kSlack : 0);
        take(units_, mode_ == Mode::kVectors && l_.dynamic ? at_once_ * w_.blocks : 0);
        const bool maps = mode_ != Mode::kVectors;
        take(place_, maps ? map_.in_pixels : 0);
        take(channel_start_, w_.blocks + 1);
        int64_t channels = 0;
        for (int64_t r = 0; maps && r < w_.blocks; ++r) channels += map_.depth(w_, r);
        take(channel_, holds_values() ? value_depth() : channels);
        take(patch_, w_.blocks);
        take(copies_, maps ? w_.blocks * w_.taps : w_.blocks);
        take(segments_, maps ? w_.blocks * w_.taps : w_.blocks);
        take(lane_offset_, map_.lanes ? w_.channels * w_.taps : 0);
        take(scratch_, l_.threads);
        for (int32_t i = 0; i < l_.threads; ++i) {
            Scratch none{};
            Scratch &s = arena ? scratch_[i] : none;
            const int64_t size = plan_.chunk_size();
            take(s.acc, size);
            take(s.y, size);
            take(s.unit, has_unit() ? size : 0);
            take(s.mask, l_.mask ? size : 0);
            // Direct layers may yet turn out to need patches of codes.
            take(s.codes, maps ? plan_.chunk_rows * most_rows_ + kSlack : 0);
            take(s.tile, w_.groups > 1 ? plan_.chunk_rows * kPanel : 0);
            take(s.lane_codes, map_.lanes ? w_.channels * w_.taps : 0);
            take(s.lane_offset, map_.lanes ? w_.channels * w_.taps : 0);
            take(s.values, holds_values() ? most_rows_ + kSlack : 0);
            take(s.pixel, plan_.chunk_rows);
            take(s.row, plan_.chunk_rows);
        }
        return bytes;
    }

    void prepare() {
        constants_.fill(l_);
        memset(bad_, 0, static_cast<size_t>(w_.blocks));
        code_start_[0] = 0;
        for (int64_t r = 0; r < w_.blocks; ++r) {
            code_start_[r + 1] = code_start_[r] + codes_of_block(r) * at_once_;
        }
        if (mode_ == Mode::kVectors) return;
        // Padding stays zero: only pixels of the input are ever written.
        memset(codes_, 0, static_cast<size_t>(code_start_[w_.blocks]) * sizeof(Code));
        map_.pixel_places(l_, place_);
        if (holds_values()) {
            memset(values_, 0, static_cast<size_t>(map_.map_pixels * value_depth() * at_once_) * 4);
            all_channels();
        } else {
            channel_start_[0] = 0;
            for (int64_t r = 0; r < w_.blocks; ++r) {
                map_.channels_of(w_, r, channel_ + channel_start_[r]);
                channel_start_[r + 1] = channel_start_[r] + map_.depth(w_, r);
            }
        }
        map_.lanes ? find_lanes() : find_patches();
    }

    void all_channels() {
        const int64_t wide = round_up(w_.columns, 16), per_group = w_.columns / w_.groups;
        for (int64_t i = 0; i < value_depth(); ++i) {
            const int64_t n = i % wide < w_.columns ? i % wide : w_.columns - 1;
            channel_[i] = map_.lanes ? n / per_group * w_.channels + i / wide : i;
        }
    }

    void find_lanes() {
        const int64_t wide = round_up(w_.columns, 16);
        for (int64_t r = 0; r < w_.blocks; ++r) {
            const int64_t depth = holds_values() ? value_depth() : map_.depth(w_, r);
            const int64_t first = holds_values() ? 0 : Block(w_, r).first;
            for (int64_t k = w_.rows[r]; k < w_.rows[r + 1]; ++k) {
                lane_offset_[k] = map_.tap_place(l_, k % w_.taps) * depth + (k / w_.taps - first) * wide;
            }
        }
    }

    void find_patches() {
        for (int64_t r = 0; r < w_.blocks; ++r) {
            Patch &p = patch_[r];
            p.copies = copies_ + r * w_.taps;
            p.segments = segments_ + r * w_.taps;
            const int64_t depth = holds_values() ? value_depth() : map_.depth(w_, r);
            const int64_t first = holds_values() ? Block(w_, r).first : 0;
            const bool direct = p.build(l_, map_, r, depth, first, K::kStep);
            if (!direct && mode_ == Mode::kDirect) mode_ = Mode::kGather;
        }
    }

    // ---- codes ----

    void drive(int64_t start, int64_t stop) {
        if (mode_ == Mode::kVectors) return drive_vectors(start, stop);
        constexpr int64_t kRun = 2048;  // pixels of one task
        const int64_t runs = (map_.in_pixels + kRun - 1) / kRun;
        const int64_t blocks = holds_values() ? 1 : w_.blocks;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < (stop - start) * blocks * runs; ++task) {
            const int64_t run = task % runs * kRun, r = task / runs % blocks;
            const int64_t image = start + task / runs / blocks;
            const int64_t left = map_.in_pixels - run;
            drive_map(image, image - start, r, run, left < kRun ? left : kRun);
        }
    }

    void drive_vectors(int64_t start, int64_t stop) {
        const int64_t inputs = w_.channels;
#pragma omp for schedule(static)
        for (int64_t v = start; v < stop; ++v) {
            for (int64_t r = 0; r < w_.blocks; ++r) {
                const int64_t rows = w_.rows[r + 1] - w_.rows[r], packed = codes_of_block(r);
                const float *x = l_.x + v * inputs + w_.rows[r];
                Code *codes = codes_ + code_start_[r] + (v - start) * packed;
                float unit = l_.dac_levels > 0 && !l_.dynamic ? l_.input_range[r] : 1.0f;
                if (l_.dynamic) unit = units_[(v - start) * w_.blocks + r] = range_of(x, rows);
                note_nan(r, convert(x, rows, steps_of(unit), levels(), codes));
                if (rows % K::kStep) codes[rows] = 0;
            }
        }
    }

    void drive_map(int64_t image, int64_t slot, int64_t r, int64_t run, int64_t count) {
        const int64_t channels = w_.groups * w_.channels;
        Planes a;
        a.x = l_.x + image * channels * map_.in_pixels + run * (l_.channels_last_in ? channels : 1);
        a.plane = l_.channels_last_in ? 1 : map_.in_pixels;
        a.step = l_.channels_last_in ? channels : 1;
        a.pixel = place_ + run;
        a.pixel_count = count;
        if (holds_values()) {
            a.channel = channel_;
            a.channel_count = value_depth();
            a.steps = a.levels = 0;
            isa().planes_float(a, values_ + slot * map_.map_pixels * value_depth());
            return;
        }
        a.channel = channel_ + channel_start_[r];
        a.channel_count = map_.depth(w_, r);
        a.levels = levels();
        a.steps = l_.dac_levels > 0 ? steps_of(l_.input_range[r]) : 0;
        Code *codes = codes_ + code_start_[r] + slot * map_.map_pixels * a.channel_count;
        const bool same = a.channel_count == channels && (!map_.lanes || w_.channels == 1);
        if (l_.channels_last_in && same) {
            note_nan(r, drive_lines(a, codes));
        } else {
            note_nan(r, K::planes(a, codes));
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

    float levels() const { return static_cast<float>(l_.dac_levels); }
    float steps_of(float unit) const { return levels() / unit; }

    // Abs-max of a vector. Infinity leaves no number either, as infinity / infinity does.
    static float usable_range(float peak) {
        if (peak == 0) return 1;
        return peak <= 3.402823466e38f ? peak : NAN;
    }
    static float range_of(const float *x, int64_t n) { return usable_range(isa().absmax(x, n)); }

    void note_nan(int64_t r, bool found) {
        if (found) __atomic_store_n(bad_ + r, uint8_t{1}, __ATOMIC_RELAXED);
    }
    bool is_poisoned(int64_t r) const {
        return sizeof(Code) == 2 && __atomic_load_n(bad_ + r, __ATOMIC_RELAXED) != 0;
    }

#include "task.inc"

    const analogc_layer &l_;
    const analogc_weight &w_;
    Plan plan_;
    MapLayout map_;
    Mode mode_ = Mode::kVectors;
    int64_t at_once_ = 1, most_rows_ = 0;
    ColumnConstants constants_{};
    int64_t *code_start_ = nullptr;  // [R + 1] of each row block in codes_
    uint8_t *bad_ = nullptr;         // [R] whether a NaN was met
    Code *codes_ = nullptr;          // [R][at_once][map pixels, depth] or [R][at_once][packed rows]
    float *values_ = nullptr;        // [at_once][map pixels, value depth]
    float *units_ = nullptr;         // [at_once, R] ranges of input vectors
    int64_t *place_ = nullptr;       // [input pixels] place in the padded map
    int64_t *channel_start_ = nullptr, *channel_ = nullptr;
    Patch *patch_ = nullptr;
    Copy *copies_ = nullptr;
    Segment *segments_ = nullptr;
    int64_t *lane_offset_ = nullptr;  // [K]
    Scratch *scratch_ = nullptr;
};

}  // namespace
}  // namespace analogc

using namespace analogc;

extern "C" int32_t analogc_forward(const analogc_layer *layer) {
    analogc_layer l = *layer;
    const bool integer = l.weight.format == ANALOGC_INT16;
    if (l.batch < 0 || l.threads < 1) return ANALOGC_BAD_ARGUMENT;
    if (integer && (l.dac_levels < 1 || l.dac_levels > 127)) return ANALOGC_BAD_ARGUMENT;
    const int64_t pixels = l.out[0] * l.out[1] * l.out[2];
    if (l.batch == 0 || pixels == 0) return ANALOGC_OK;
    // Starting threads costs as much as this many products.
    constexpr double kFew = 2.5e5;
    const double rows = static_cast<double>(l.weight.channels) * static_cast<double>(l.weight.taps);
    const double outputs = static_cast<double>(l.batch) * static_cast<double>(pixels) *
                           static_cast<double>(l.weight.columns);
    if (outputs * (rows + 32) < kFew) l.threads = 1;
    return integer ? Forward<int16_t>(l).run() : Forward<float>(l).run();
}
