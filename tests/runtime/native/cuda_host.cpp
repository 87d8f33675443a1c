// kernels.cu as a shared library. host_kernel(name) is a function that takes grid, block and the
// kernel's arguments; host_signature(name) tells their types.
#include "cuda_host.hpp"

#include "kernels.cu"

#define FOR_EACH_KERNEL(visit)    \
    visit(analogc_constants)      \
    visit(analogc_dac_int8)       \
    visit(analogc_dac_float)      \
    visit(analogc_epilogue_int)   \
    visit(analogc_epilogue_float) \
    visit(analogc_epilogue_map)

#define FUNCTION(kernel) \
    if (!std::strcmp(name, #kernel)) return reinterpret_cast<void *>(&Launch<&kernel>::run);
extern "C" void *host_kernel(const char *name) {
    FOR_EACH_KERNEL(FUNCTION)
    return nullptr;
}

#define SIGNATURE(kernel) \
    if (!std::strcmp(name, #kernel)) return Launch<&kernel>::signature;
extern "C" const char *host_signature(const char *name) {
    FOR_EACH_KERNEL(SIGNATURE)
    return nullptr;
}
