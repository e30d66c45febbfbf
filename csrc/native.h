// The operators of this library, as its own `ccn_native` schemas declare them (library.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "compact_conv.h"

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

namespace cpu {

// (y, z, r): the output, u / d (empty unless `save_quotient`), and the patch norms [N, G, *out].
std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor alpha,
                                           Axes stride, Axes padding, Axes dilation, int64_t groups, double delta,
                                           bool relu, bool save_quotient);

// (d input, d weight, d alpha, d bias); what `output_mask` does not ask for comes back empty.
// `output` is the forward's y under the fused ReLU, `quotient` its z where it was saved.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor alpha,
                                                    std::optional<Tensor> output, std::optional<Tensor> quotient,
                                                    Tensor norm, Axes stride, Axes padding, Axes dilation,
                                                    int64_t groups, double delta, std::vector<bool> output_mask);

}  // namespace cpu
}  // namespace ccn
