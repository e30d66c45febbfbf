// The forward pass from ATen's convolutions and a device's passes, or by convolutions of the device's own.
//
// ATen convolves a chunk of the batch at a time; the passes finish each chunk before the next begins. Narrow types are
// computed in fp32. `Device` supplies the passes and reductions (see cpu/compact_conv.cpp).
#pragma once

#include "call.h"

namespace ccn {

// How a call is convolved: by ATen, or by the device itself, which divides as it goes.
template <class Device, class T>
struct Method {
  bool winograd;                 // Winograd's, always in channels_last, unless a chunk's patches are too uneven for it
  std::optional<Tensor> direct;  // weight and bias, packed
  WinogradWeight packed;

  Method(const Layout& layout, const Operands<T>& operands) : winograd(Device::template suits_winograd<T>(layout)) {
    if (!winograd) direct = Device::template pack<T>(layout, operands.weight, operands.bias);
  }
  bool own() const { return winograd || direct; }
};

// Convolves and divides: r, y and z, from the u of the epilogue unless it is convolved here.
template <class Device, class T>
void divide(const Layout& layout, const Tensor& x, const Operands<T>& operands, Method<Device, T>& method, const Tensor& u,
            T* r, ForwardEpilogue<T> epilogue) {
  if (method.direct) {
    return Device::template direct<T>(layout, data<T>(x), data<T>(*method.direct), operands.delta, r, epilogue);
  }
  const Geometry& geo = layout.geo;
  if (Device::template divide_pixels<T>(layout, data<T>(x), operands.delta, r, epilogue)) return;
  const Tensor plane = empty({geo.batch, geo.groups, geo.in_pixels()}, kType<T>, x);
  const Tensor inverse = empty({geo.batch, geo.groups, geo.out_pixels()}, kType<T>, x);
  Device::template sum_of_squares<T>(layout, data<T>(x), mutable_data<T>(plane));
  Device::template patch_norm<T>(layout, data<T>(plane), operands.delta, r, mutable_data<T>(inverse));
  epilogue.inverse_divisor = data<T>(inverse);
  if (method.winograd) {
    if (Device::template winograd_forward<T>(layout, operands.weight, method.packed, data<T>(x), data<T>(plane), epilogue)) {
      return;
    }
    copy(convolve(x, operands.weight, operands.conv), u);
  }
  Device::template forward_epilogue<T>(layout, epilogue);
}

template <class Device, class T>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& input, const Operands<T>& operands,
                                              bool wants_channels_last, bool relu, bool save) {
  const auto& [geo, conv, delta, weight, bias, alpha] = operands;
  const ScalarType type = input.scalar_type();
  const bool narrow = type != kType<T>;
  // ATen takes a sequence's permuted weight, or a cast one that was expanded, for channels_last, and gives u in it.
  const auto convolved = [&](const Tensor& x) {
    const Tensor u = convolve(x, weight, conv);
    return conv.is_linear() || wants_channels_last ? u : in_layout(u, false, kType<T>);
  };
  const Tensor norm = empty(output_shape(geo, geo.groups, conv.stride.size()), kType<T>, input);
  Tensor y, z = empty({0}, type, input);
  if (geo.batch == 0) {  // ATen knows the shape and format of an empty result
    y = as_type(convolved(as_type(input, kType<T>)), type);
    return {y, save ? torch::stable::empty_like(y) : z, norm};
  }
  Method<Device, T> method({geo, wants_channels_last}, operands);
  const bool channels_last = wants_channels_last || method.winograd;
  // A result of a narrower type, or another format, is computed in place and copied: the copy converts.
  const bool staged = narrow || channels_last != wants_channels_last;
  const int64_t step = method.own() && !staged ? geo.batch : Device::images_per_chunk(geo, sizeof(T));
  for_each_chunk(geo, step, [&](int64_t first, int64_t count) {
    const Tensor x = in_layout(images(input, first, count), channels_last, kType<T>);  // once, not in ATen as well
    const Tensor u = method.own() ? empty_result(operands, count, channels_last, kType<T>) : convolved(x);
    const Layout layout = layout_of(geo, count, method.own() ? channels_last : is_channels_last(u));
    if (first == 0) {
      const auto result = [&] {
        return method.own() ? empty_result(operands, geo.batch, wants_channels_last, type) : empty_images(u, geo.batch, type);
      };
      y = count == geo.batch && !staged ? u : result();
      if (save) z = result();
    }
    const Tensor chunk_y = staged ? u : images(y, first, count);
    const Tensor chunk_z = !save ? z : staged ? empty_images(u, count, kType<T>) : images(z, first, count);
    const Tensor x_laid = in_layout(x, layout.channels_last, kType<T>);
    const ForwardEpilogue<T> epilogue{data<T>(u), nullptr, data<T>(bias), data<T>(alpha), relu, mutable_data<T>(chunk_y),
                                      save ? mutable_data<T>(chunk_z) : nullptr};
    divide<Device, T>(layout, x_laid, operands, method, u, mutable_data<T>(images(norm, first, count)), epilogue);
    if (staged) copy(chunk_y, images(y, first, count));
    if (staged && save) copy(chunk_z, images(z, first, count));
  });
  return {y, z, norm};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                           const std::optional<Tensor>& bias, const Tensor& alpha,
                                           const Convolution& conv, double delta, bool relu, bool save_quotient) {
  const aten::NoGrad guard;
  const Call call(input, weight, conv);
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  const auto run = [&]<class T>(T) {
    return forward_as<Device, T>(call.seen, Operands<T>(call.seen, weight, bias, alpha, call.conv, delta), channels_last,
                                 relu, save_quotient);
  };
  return input.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace ccn
