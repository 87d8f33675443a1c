// The kernel table of one instruction set; the includer has defined `Vector`.
#pragma once
#include "epilogue.h"
#include "gemm.h"
#include "gradient.h"
#include "stream.h"

#define ANALOGC_TABLE(name)             \
    {name,                              \
     gemm<FloatMath>,                   \
     gemm<Int16Math>,                   \
     lanes<float, float, float>,        \
     lanes<uint32_t, int16_t, int32_t>, \
     epilogue,                          \
     dac<float>,                        \
     dac<int16_t>,                      \
     absmax,                            \
     planes<float>,                     \
     planes<int16_t>,                   \
     store_planes,                      \
     normals,                           \
     mask_gradient,                     \
     mask_blocks,                       \
     clip_gradient,                     \
     drive,                             \
     pair_of_rows,                      \
     mask_turned,                       \
     drive_turned,                      \
     clip_turned,                       \
     hash}
