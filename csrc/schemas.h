// The signatures of the native operators.
#pragma once

namespace ccn {

// (output, quotient, norm). `tf32`: whether tensor cores may round fp32 to TF32; a CPU has none.
inline const char* const kForwardSchema =
    "compact_conv(Tensor input, Tensor weight, Tensor? bias, Tensor alpha, int[] stride, int[] padding, "
    "int[] dilation, int groups, float delta, bool relu, bool save_quotient, bool tf32=False) "
    "-> (Tensor, Tensor, Tensor)";

// Gradients of input, weight, alpha and bias.
inline const char* const kBackwardSchema =
    "compact_conv_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias, Tensor alpha, Tensor? output, "
    "Tensor? quotient, Tensor norm, int[] stride, int[] padding, int[] dilation, int groups, float delta, "
    "bool[] output_mask, bool tf32=False) -> (Tensor, Tensor, Tensor, Tensor)";

}  // namespace ccn
