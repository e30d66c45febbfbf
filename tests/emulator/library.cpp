// The CUDA backend's operators, emulated, under a name of their own.
#include <torch/csrc/stable/library.h>

#include "schemas.h"

STABLE_TORCH_LIBRARY(ccn_emulated, library) {
  library.def(ccn::kForwardSchema);
  library.def(ccn::kBackwardSchema);
}
