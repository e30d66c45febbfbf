// The forward operator for CUDA tensors.
#include <torch/csrc/stable/library.h>

#include "../explained.h"
#include "call.cuh"

namespace ccn::cuda {
namespace {

// The weight as the product's second operand, and what may have had to be made for it.
template <class S>
struct PackedWeight {
  std::optional<Tensor> copy;
  const S* data;
  int64_t row;

  PackedWeight(const Tensor& weight, const Geometry& geo, int64_t channels) {
    const Weight<const S> given = weight_of<const S>(weight);
    const int64_t outputs = geo.groups * geo.out_channels;
    row = whole_chunks<S>(geo.taps() * channels);
    data = given.data;
    if (row == geo.taps() * geo.in_channels && is_packed(given, geo)) return;
    copy = empty({outputs, row}, kScalar<S>, weight);
    data = ccn::data<S>(*copy);
    launch_over(pack_weight<S, false>, outputs * row, geo, Forward<S>::windows(geo, 0), given, outputs * row, row,
                static_cast<int>(channels), mutable_data<S>(*copy));
  }

 private:
  static bool is_packed(const Weight<const S>& weight, const Geometry& geo) {
    int64_t step = geo.in_channels;
    bool packed = weight.channel == 1 || geo.in_channels == 1;
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      packed = packed && (geo.kernel[axis] == 1 || weight.tap[axis] == step);
      step *= geo.kernel[axis];
    }
    return packed && weight.output == step && reinterpret_cast<uintptr_t>(weight.data) % kChunkBytes == 0;
  }
};

template <class S>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& input, const Tensor& weight,
                                              const std::optional<Tensor>& bias, const Tensor& alpha, const Geometry& geo,
                                              size_t rank, double delta, bool relu, bool save, bool tf32) {
  using A = Accumulator<S>;
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  const Axes shape = output_shape(geo, weight.size(0), rank);
  const Tensor y = empty(shape, kScalar<S>, input, channels_last);
  const Tensor z = save ? empty(shape, kScalar<S>, input, channels_last) : empty({0}, kScalar<S>, input);
  const Tensor norm = empty(output_shape(geo, geo.groups, rank), kSumScalar<S>, input);
  if (y.numel() == 0) return {y, z, norm};

  const std::optional<Tensor> dense_bias = bias ? std::optional(in_layout(*bias, false, kScalar<S>)) : std::nullopt;
  const Tensor wide_alpha = as_type(alpha, kSumScalar<S>);
  const Forward<S> result{static_cast<A>(delta), dense_bias ? data<S>(*dense_bias) : nullptr, data<A>(wide_alpha), relu,
                          activation<S>(y, geo.out_channels, geo.out), save ? mutable_data<S>(z) : nullptr,
                          mutable_data<A>(norm)};
  if (goes_direct(geo)) {
    launch_over(direct_forward<S>, y.numel(), geo, activation<const S>(input, geo.in_channels, geo.in),
                weight_of<const S>(weight), result, y.numel());
    return {y, z, norm};
  }
  const Source<S> source(input, geo);
  const PackedWeight<S> packed(weight, geo, source.activation.channels);
  const Product<S> product{geo, {}, source.activation, packed.data, packed.row, static_cast<int>(geo.out_channels), 1,
                           nullptr, nullptr};
  run_product(plan_of<S>(source.together, geo.out_channels, tf32), product, result, 1, input);
  return {y, z, norm};
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor alpha,
                                           Axes stride, Axes padding, Axes dilation, int64_t groups, double delta,
                                           bool relu, bool save_quotient, bool tf32) {
  const OnDevice guard(input);
  const aten::NoGrad no_grad;
  const Geometry geo = checked_geometry(input, weight, bias, alpha, stride, padding, dilation, groups);
  return for_type(input, [&]<class S>(S) {
    return forward_as<S>(input, weight, bias, alpha, geo, stride.size(), delta, relu, save_quotient, tf32);
  });
}

}  // namespace
}  // namespace ccn::cuda

STABLE_TORCH_LIBRARY_IMPL(CCN_NAMESPACE, CCN_DISPATCH_KEY, library) {
  library.impl("compact_conv", TORCH_BOX(&ccn::Explained<&ccn::cuda::forward>::call));
}
