// Kernels for any processor, in plain C++. fmaf keeps the bits of the others: an instruction where
// the target has one, else a (slow) library call.
#include <stdint.h>
#include <string.h>

namespace analogc {
namespace {

struct Vector {
    static constexpr int kLanes = 4, kStripRegs = 2, kStripRows = 2;
    struct Float {
        float lane[kLanes];
    };
    struct Int {
        uint32_t lane[kLanes];  // wraps, as vector registers do
        int16_t pair[2 * kLanes];
    };
    static Float zero_float() { return {}; }
    static Float load_float(const float *p) {
        Float v{};
        memcpy(v.lane, p, sizeof v.lane);
        return v;
    }
    static Float broadcast_float(const float *p) {
        Float v{};
        for (float &lane : v.lane) lane = *p;
        return v;
    }
    static Float fma(Float acc, const Float &a, const Float &b) {
        for (int l = 0; l < kLanes; ++l) {
            acc.lane[l] = __builtin_fmaf(a.lane[l], b.lane[l], acc.lane[l]);
        }
        return acc;
    }
    static void store_float(float *p, const Float &v) { memcpy(p, v.lane, sizeof v.lane); }
    static Int zero_int() { return {}; }
    static Int load_int(const int16_t *p) {
        Int v{};
        memcpy(v.pair, p, sizeof v.pair);
        return v;
    }
    static Int broadcast_pair(const int16_t *p) {
        Int v{};
        for (int l = 0; l < 2 * kLanes; ++l) v.pair[l] = p[l % 2];
        return v;
    }
    static Int dot_pairs(Int acc, const Int &a, const Int &b) {
        for (int l = 0; l < kLanes; ++l) {
            acc.lane[l] += static_cast<uint32_t>(a.pair[2 * l] * b.pair[2 * l]) +
                           static_cast<uint32_t>(a.pair[2 * l + 1] * b.pair[2 * l + 1]);
        }
        return acc;
    }
    static void store_int(int32_t *p, const Int &v) { memcpy(p, v.lane, sizeof v.lane); }

    // 64-bit lanes: one is enough for any processor.
    using Wide = uint64_t;
    static constexpr int kWideLanes = 1;
    static Wide set_wide(uint64_t value) { return value; }
    static Wide load_wide(const void *p) {
        Wide v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    static void store_wide(void *p, Wide v) { memcpy(p, &v, sizeof v); }
    static Wide add_wide(Wide a, Wide b) { return a + b; }
    static Wide xor_wide(Wide a, Wide b) { return a ^ b; }
    static Wide mul_low_halves(Wide a, Wide b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
    template <int kBits>
    static Wide shift_right(Wide a) {
        return a >> kBits;
    }
    static Wide raise_halves(Wide a) { return a << 32; }
    // 32-bit words: the low half of `even` and above it that of `odd`.
    static Wide interleave(Wide even, Wide odd) { return (even & 0xFFFFFFFFu) | odd << 32; }
};

}  // namespace
}  // namespace analogc

#include "table.h"
namespace analogc {
const Isa kBaseline = ANALOGC_TABLE("baseline");
}
