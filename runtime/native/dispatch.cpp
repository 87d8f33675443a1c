// Choice of the instruction set, and the entry points that only pass on to its kernels.
#include "abi.h"
#include "isa.h"
#include "layout.h"

namespace analogc {
namespace {

const Isa *table(int32_t level) {
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
    if (level == 3) return &kAvx512Vnni;
    if (level == 2) return &kAvx512;
    if (level == 1) return &kAvx2;
#endif
    return level == 0 ? &kBaseline : nullptr;
}

int32_t supported() {
#if defined(__x86_64__) && !defined(ANALOGC_PORTABLE)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return 1;
    }
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#else
    return 0;
#endif
}

// Read by running calls; a change of ISA changes speed but no bit of any result.
int32_t g_level = supported();

}  // namespace

const Isa &isa() {
    return *table(__atomic_load_n(&g_level, __ATOMIC_RELAXED));
}

}  // namespace analogc

using namespace analogc;

extern "C" int32_t analogc_abi_version(void) {
    return ANALOGC_ABI_VERSION;
}

extern "C" int32_t analogc_isa_supported(void) {
    return supported();
}

extern "C" int32_t analogc_isa_use(int32_t level) {
    if (level >= 0 && level <= supported()) __atomic_store_n(&g_level, level, __ATOMIC_RELAXED);
    return __atomic_load_n(&g_level, __ATOMIC_RELAXED);
}

extern "C" void analogc_normals(float *out, int64_t rows, int64_t columns, uint64_t key,
                                uint32_t block, uint32_t call, int32_t threads) {
    constexpr int64_t kGroup = 64, kGroups = 64;  // elements of a group, groups drawn at a time
    const int64_t width = matrix_width(columns), end = rows * width;
    const int64_t parts = (end + kGroup * kGroups - 1) / (kGroup * kGroups);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && parts > 4)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = part * kGroup * kGroups;
        const int64_t left = end - first < kGroup * kGroups ? end - first : kGroup * kGroups;
        const int64_t groups = (left + kGroup - 1) / kGroup;
        const uint64_t group = static_cast<uint64_t>(first / kGroup);
        if (width == columns && left % kGroup == 0) {
            isa().normals(out + first, group, groups, key, block, call);
            continue;
        }
        // The noise matrix may be wider than the output: whole groups are drawn, then cut.
        float drawn[kGroup * kGroups];
        isa().normals(drawn, group, groups, key, block, call);
        for (int64_t at = 0; at < left; at += 16) {
            const int64_t row = (first + at) / width, column = (first + at) % width;
            for (int64_t l = 0; l < 16 && column + l < columns; ++l) {
                out[row * columns + column + l] = drawn[at + l];
            }
        }
    }
}

namespace {

// Data is hashed in pieces, so that threads can share it and the value is the same without them.
constexpr uint64_t kPiece = uint64_t{1} << 20;

uint64_t join(uint64_t sum, uint64_t piece) {
    sum = (sum ^ piece) * 0xD6E8FEB86659FD93u;
    return sum ^ (sum >> 32);
}

}  // namespace

extern "C" uint64_t analogc_hash(const void *data, uint64_t bytes) {
    const unsigned char *at = static_cast<const unsigned char *>(data);
    uint64_t sum = bytes;
    for (uint64_t done = 0; done < bytes; done += kPiece) {
        const uint64_t left = bytes - done;
        sum = join(sum, isa().hash(at + done, left < kPiece ? left : kPiece));
    }
    return sum;
}

extern "C" void analogc_hash_many(const void *const *data, const uint64_t *bytes, uint64_t *out,
                                  int64_t n, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1 && n > 1)
    for (int64_t i = 0; i < n; ++i) out[i] = analogc_hash(data[i], bytes[i]);
}
