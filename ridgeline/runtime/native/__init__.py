"""CPU kernels in C++ behind the ops protocol."""
