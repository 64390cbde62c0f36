#define RL_TIER amx
#include "tier_kernels.hpp"
