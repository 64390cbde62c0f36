#define RL_TIER avx512
#include "tier_kernels.hpp"
