// Argument checks of the native operators. Python checks first and says more; a C++ caller has only these.
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "native.h"

namespace ccn {

using torch::headeronly::ScalarType;

Geometry make_geometry(const Tensor& input, const Tensor& weight, const Axes& stride, const Axes& padding,
                       const Axes& dilation, int64_t groups) {
  const int64_t rank = static_cast<int64_t>(stride.size());
  STD_TORCH_CHECK(rank <= kAxes, "stride must have at most 3 entries, got ", rank);
  STD_TORCH_CHECK(input.dim() == rank + 2, "input must have ", rank + 2, " dimensions, got ", input.dim());
  STD_TORCH_CHECK(weight.dim() == rank + 2, "weight must have ", rank + 2, " dimensions, got ", weight.dim());
  STD_TORCH_CHECK(padding.size() == stride.size() && dilation.size() == stride.size(),
                  "padding and dilation must have as many entries as stride");
  STD_TORCH_CHECK(groups > 0 && weight.size(0) % groups == 0, "groups must divide the weight's output channels");
  STD_TORCH_CHECK(input.size(1) == weight.size(1) * groups, "input must have ", weight.size(1) * groups,
                  " channels, got ", input.size(1));
  STD_TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "input and weight must have the same dtype");
  const ScalarType type = input.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  "input must be of a floating-point dtype");

  Geometry geo{input.size(0), groups,    weight.size(1), weight.size(0) / groups, {1, 1, 1}, {1, 1, 1},
               {1, 1, 1},     {1, 1, 1}, {0, 0, 0},      {1, 1, 1}};
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t axis = kAxes - rank + i;
    geo.in[axis] = input.size(2 + i);
    geo.kernel[axis] = weight.size(2 + i);
    geo.stride[axis] = stride[i];
    geo.padding[axis] = padding[i];
    geo.dilation[axis] = dilation[i];
    STD_TORCH_CHECK(stride[i] > 0, "stride must be positive, got ", stride[i]);
    STD_TORCH_CHECK(padding[i] >= 0, "padding must not be negative, got ", padding[i]);
    STD_TORCH_CHECK(dilation[i] > 0, "dilation must be positive, got ", dilation[i]);
    STD_TORCH_CHECK(geo.kernel[axis] > 0, "weight's kernel must have at least 1 tap along every axis");
    const int64_t span = dilation[i] * (geo.kernel[axis] - 1) + 1;
    const int64_t room = geo.in[axis] + 2 * padding[i] - span;
    STD_TORCH_CHECK(room >= 0, "weight's kernel spans ", span, " but the padded input has ", room + span);
    geo.out[axis] = room / stride[i] + 1;
  }
  return geo;
}

void check_shape(const char* name, const Tensor& tensor, const Axes& shape) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(sizes.size() == shape.size() && std::equal(sizes.begin(), sizes.end(), shape.begin()), name,
                  " has a shape that does not fit the call");
}

Needs make_needs(const std::vector<bool>& output_mask) {
  STD_TORCH_CHECK(output_mask.size() == 4, "output_mask must have 4 entries: input, weight, alpha, bias");
  return {output_mask[0], output_mask[1], output_mask[2], output_mask[3]};
}

void check_saved(const Geometry& geo, size_t rank, const Tensor& input, const Tensor& weight, const Tensor& grad,
                 const std::optional<Tensor>& output, const std::optional<Tensor>& quotient, const Tensor& norm,
                 const Needs& needs) {
  STD_TORCH_CHECK(!needs.moment() || quotient || (output && (needs.weight || !needs.alpha)),
                  "quotient must be given for the gradients that output_mask asks for");
  const Axes out = output_shape(geo, weight.size(0), rank);
  check_shape("grad", grad, out);
  if (output) check_shape("output", *output, out);
  if (quotient) check_shape("quotient", *quotient, out);
  check_shape("norm", norm, output_shape(geo, geo.groups, rank));
  const ScalarType wide = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(norm.scalar_type() == wide, "norm must be of the dtype that the forward gave it");
}

Axes output_shape(const Geometry& geo, int64_t channels, size_t rank) {
  Axes shape{geo.batch, channels};
  shape.insert(shape.end(), geo.out + kAxes - rank, geo.out + kAxes);
  return shape;
}

}  // namespace ccn
