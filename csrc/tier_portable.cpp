#define RL_TIER portable
#include "tier_kernels.hpp"
