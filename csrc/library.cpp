// The library's own operators. Python's `ccn` operators call them, and so can any LibTorch program.
#include <torch/csrc/stable/library.h>

#include "native.h"

namespace {

const char* const kForward =
    "compact_conv(Tensor input, Tensor weight, Tensor? bias, Tensor alpha, int[] stride, int[] padding, "
    "int[] dilation, int groups, float delta, bool relu, bool save_quotient) -> (Tensor, Tensor, Tensor)";

const char* const kBackward =
    "compact_conv_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias, Tensor alpha, Tensor? output, "
    "Tensor? quotient, Tensor norm, int[] stride, int[] padding, int[] dilation, int groups, float delta, "
    "bool[] output_mask) -> (Tensor, Tensor, Tensor, Tensor)";

}  // namespace

STABLE_TORCH_LIBRARY(ccn_native, library) {
  library.def(kForward);
  library.def(kBackward);
}

STABLE_TORCH_LIBRARY_IMPL(ccn_native, CPU, library) {
  library.impl("compact_conv", TORCH_BOX(&ccn::cpu::forward));
  library.impl("compact_conv_backward", TORCH_BOX(&ccn::cpu::backward));
}
