// Sizes and memory of one call, and the constants of every output column.
#pragma once
#include "isa.h"
#include "layout.h"

namespace analogc {

// One block of memory for a call, carved into aligned arrays. Kept by the calling thread for its
// next call, up to kKept bytes: fresh pages would cost more than small layers compute.
class Arena {
 public:
    static constexpr int64_t kKept = int64_t{32} << 20;

    bool reserve(int64_t bytes);
    template <class T>
    T *take(int64_t count) {
        T *at = reinterpret_cast<T *>(base_ + used_);
        used_ += bytes_of<T>(count);
        return at;
    }
    template <class T>
    static int64_t bytes_of(int64_t count) {
        return round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    }
    void release();  // gives back what is over kKept
    ~Arena();

 private:
    unsigned char *base_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

Arena &thread_arena();

// Per output column, padded with zeros to a multiple of 64; [R, width] for the first three. For
// narrow layers the columns repeat, so that 64 neighbours are always 64 elements of the noise
// matrix.
struct ColumnConstants {
    float *p_steps, *z_steps, *gain, *bias;
    int64_t width;

    void fill(const analogc_layer &layer) const;
};

struct Plan {
    const analogc_layer &layer;
    const analogc_weight &w;
    int64_t pixels;      // input vectors of one image
    int64_t vectors;     // of the call
    int64_t width;       // of the noise matrix
    int64_t chunk_rows;  // input vectors of one task
    int64_t chunk_columns;

    explicit Plan(const analogc_layer &layer);
    // Sums, outputs, ... of one task: elements of each of its arrays. The slack is for a chunk that
    // starts inside a group of 64.
    int64_t chunk_size() const { return round_up(chunk_rows * chunk_columns, 64) + 128; }
    int64_t column_tasks() const { return (width + chunk_columns - 1) / chunk_columns; }
};

}  // namespace analogc
