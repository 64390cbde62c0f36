#define RL_TIER avx2
#include "tier_kernels.hpp"
