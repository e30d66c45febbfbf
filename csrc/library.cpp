// The library's own operators. Python's `ccn` operators call them, and so can any LibTorch program.
#include <torch/csrc/stable/library.h>

#include "explained.h"
#include "native.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(ccn_native, library) {
  library.def(ccn::kForwardSchema);
  library.def(ccn::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(ccn_native, CPU, library) {
  library.impl("compact_conv", TORCH_BOX(&ccn::Explained<&ccn::cpu::forward>::call));
  library.impl("compact_conv_backward", TORCH_BOX(&ccn::Explained<&ccn::cpu::backward>::call));
}
