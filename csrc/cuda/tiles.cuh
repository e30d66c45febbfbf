// The tile kernels, which tiles_*.cu compile for a type each.
#pragma once

#include "convolve.cuh"
#include "weight_gradient.cuh"

#define CCN_TILES(prefix, S)                                                                              \
  prefix template void run_convolve(const TilePlan&, const Product<S>&, const Forward<S>&, int64_t);       \
  prefix template void run_convolve(const TilePlan&, const Product<S>&, const InputGradient<S>&, int64_t); \
  prefix template void run_weight_gradient(const TilePlan&, const WeightGradient<S>&);

#ifndef CCN_COMPILES_TILES
namespace ccn::cuda {
CCN_TILES(extern, Half)
CCN_TILES(extern, BFloat16)
CCN_TILES(extern, float)
CCN_TILES(extern, double)
}  // namespace ccn::cuda
#endif
