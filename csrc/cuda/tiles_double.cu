#define CCN_COMPILES_TILES
#include "tiles.cuh"

namespace ccn::cuda {
CCN_TILES(, double)
}  // namespace ccn::cuda
