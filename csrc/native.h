// The operators of this library, as its own `ccn_native` schemas declare them (library.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "compact_conv.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // PyTorch 2.11 has none; this one's message does not say what went wrong
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace ccn {

using Tensor = torch::stable::Tensor;
using Axes = std::vector<int64_t>;

// Checks the call and lays it out on three spatial axes. Throws with the name of the argument that is wrong.
Geometry make_geometry(const Tensor& input, const Tensor& weight, const Axes& stride, const Axes& padding,
                       const Axes& dilation, int64_t groups);

// Throws, naming the argument, where `tensor` has another shape.
void check_shape(const char* name, const Tensor& tensor, const Axes& shape);

// [N, channels, *out], without the axes that the call lacks.
Axes output_shape(const Geometry& geo, int64_t channels, size_t rank);

// Which gradients a backward pass is asked for.
struct Needs {
  bool input, weight, alpha, bias;

  // Whether sum_o g * u / d is needed: by the input's gradient, and by alpha's unless the weight's gives it for free.
  bool moment() const { return input || (alpha && !weight); }
};

Needs make_needs(const std::vector<bool>& output_mask);

// What a backward pass is given of its forward pass. Throws, naming the argument, where it does not fit the call.
void check_saved(const Geometry& geo, size_t rank, const Tensor& input, const Tensor& weight, const Tensor& grad,
                 const std::optional<Tensor>& output, const std::optional<Tensor>& quotient, const Tensor& norm,
                 const Needs& needs);

namespace cpu {

// (y, z, r): the output, u / d (empty unless `save_quotient`), and the patch norms [N, G, *out].
std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor alpha,
                                           Axes stride, Axes padding, Axes dilation, int64_t groups, double delta,
                                           bool relu, bool save_quotient, bool tf32);

// (d input, d weight, d alpha, d bias); what `output_mask` does not ask for comes back empty.
// `output` is the forward's y under the fused ReLU, `quotient` its z where it was saved.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor alpha,
                                                    std::optional<Tensor> output, std::optional<Tensor> quotient,
                                                    Tensor norm, Axes stride, Axes padding, Axes dilation,
                                                    int64_t groups, double delta, std::vector<bool> output_mask,
                                                    bool tf32);

}  // namespace cpu
}  // namespace ccn
