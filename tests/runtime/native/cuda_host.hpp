// Runs CUDA kernels as C++ on the CPU, one thread after the other; the lanes of a warp as fibers, so
// that __shfl_xor_sync works. Only what kernels.cu uses; x86-64 or any other CPU with ucontext.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#define ANALOGC_CUDA_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct Index {
    unsigned x = 1, y = 1;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (std::uint64_t{a} * b) >> 32; }
static inline int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
static inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// A lane hands over its value and waits until all lanes have; then all read, and wait once more
// before a slot may be written again.
struct Warp {
    static constexpr unsigned kLanes = 32;
    ucontext_t scheduler, lane[kLanes];
    std::vector<char> stack[kLanes];
    bool done[kLanes];
    unsigned current, slot[kLanes];
    std::function<void()> body;
};
static Warp warp;

static void yield_lane() { swapcontext(&warp.lane[warp.current], &warp.scheduler); }

static unsigned __shfl_xor_sync(unsigned, unsigned value, int lane_mask) {
    const unsigned lane = warp.current;
    warp.slot[lane] = value;
    yield_lane();
    const unsigned found = warp.slot[lane ^ lane_mask];
    yield_lane();
    return found;
}

static void start_lane() {
    warp.body();
    warp.done[warp.current] = true;
}

static void run_warp() {
    for (unsigned l = 0; l < Warp::kLanes; ++l) {
        warp.stack[l].resize(1 << 16);
        getcontext(&warp.lane[l]);
        warp.lane[l].uc_stack.ss_sp = warp.stack[l].data();
        warp.lane[l].uc_stack.ss_size = warp.stack[l].size();
        warp.lane[l].uc_link = &warp.scheduler;
        makecontext(&warp.lane[l], start_lane, 0);
        warp.done[l] = false;
    }
    for (bool live = true; live;) {
        live = false;
        for (unsigned l = 0; l < Warp::kLanes; ++l) {
            if (warp.done[l]) continue;
            live = true;
            warp.current = threadIdx.x = l;
            swapcontext(&warp.scheduler, &warp.lane[l]);
        }
    }
}

// Types of a kernel's parameters as the letters of NumPy's dtypes, P for a pointer.
template <class T>
constexpr char letter() {
    if (std::is_pointer_v<T>) return 'P';
    if (std::is_same_v<T, float>) return 'f';
    if (std::is_same_v<T, int>) return 'i';
    if (std::is_same_v<T, unsigned>) return 'I';
    return std::is_same_v<T, long long> ? 'q' : '?';
}

// A kernel as a function of grid, block and its own arguments. A block 32 wide is one of warps.
template <auto kernel>
struct Launch;

template <class... Args, void (*kernel)(Args...)>
struct Launch<kernel> {
    static constexpr char signature[] = {letter<Args>()..., 0};

    static void run(unsigned grid_x, unsigned grid_y, unsigned block_x, unsigned block_y,
                    Args... args) {
        gridDim = {grid_x, grid_y};
        blockDim = {block_x, block_y};
        warp.body = [&] { kernel(args...); };
        for (blockIdx.y = 0; blockIdx.y < grid_y; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x) {
                for (threadIdx.y = 0; threadIdx.y < block_y; ++threadIdx.y) {
                    if (block_x == Warp::kLanes) {
                        run_warp();
                        continue;
                    }
                    for (threadIdx.x = 0; threadIdx.x < block_x; ++threadIdx.x) kernel(args...);
                }
            }
        }
    }
};
