"""CPU kernels in C++ behind a plain C ABI, and their use from Python."""
