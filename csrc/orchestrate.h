// One compact convolution from ATen's convolutions and a device's passes, the same for every device.
//
// ATen computes the convolutions, a chunk of the batch at a time; the passes finish each chunk before the next begins.
// Narrow types are computed in fp32. `Device` supplies the passes and reductions (see cpu/compact_conv.cpp).
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "dispatcher.h"
#include "native.h"
#include "passes.h"

namespace ccn {

using aten::MemoryFormat;
using aten::ScalarType;

struct Convolution {
  Axes stride, padding, dilation;
  int64_t groups;

  bool is_linear() const { return stride.empty(); }
};

struct Needs {
  bool input, weight, alpha, bias;

  // Whether sum_o g * u / d is needed: by the input's gradient, and by alpha's unless the weight's gives it for free.
  bool moment() const { return input || (alpha && !weight); }
};

template <class T>
constexpr ScalarType kType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class T>
const T* data(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

template <class T>
T* mutable_data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

template <class T>
T* data_or_null(const std::optional<Tensor>& t) { return t ? mutable_data<T>(*t) : nullptr; }

inline Axes shape_of(const Tensor& t) { return Axes(t.sizes().begin(), t.sizes().end()); }

inline Tensor empty(const Axes& shape, ScalarType type, const Tensor& like) { return aten::empty(shape, type, like); }

inline Tensor zeros(const Axes& shape, ScalarType type, const Tensor& like) {
  Tensor t = empty(shape, type, like);
  return torch::stable::zero_(t);
}

// Uninitialised, `batch` images of the type `type`, strided as `image` is.
inline Tensor empty_images(const Tensor& image, int64_t batch, ScalarType type) {
  Axes shape = shape_of(image);
  shape[0] = batch;
  if (image.is_contiguous()) return empty(shape, type, image);
  const Axes strides(image.strides().begin(), image.strides().end());
  return aten::empty_strided(shape, strides, type, image.device());
}

inline Tensor images(const Tensor& t, int64_t first, int64_t count) {
  if (count == t.size(0)) return t;
  Tensor whole = t;
  return torch::stable::narrow(whole, 0, first, count);
}

// A kernel of one tap sees every stride-th pixel, a view. To read those alone is less work, and oneDNN (PyTorch
// 2.13) overruns its memory on such strided kernels over few channels_last channels.
inline bool skips_pixels(const Tensor& weight, const Convolution& conv) {
  bool strided = false;
  for (size_t axis = 0; axis < conv.stride.size(); ++axis) {
    const bool known = axis < conv.padding.size() && static_cast<int64_t>(axis) + 2 < weight.dim();
    if (!known || conv.padding[axis] != 0 || weight.size(axis + 2) != 1 || conv.stride[axis] < 1) return false;
    strided = strided || conv.stride[axis] > 1;
  }
  return strided;
}

inline Tensor seen_pixels(Tensor t, const Axes& stride) {
  for (size_t axis = 0; axis < stride.size() && static_cast<int64_t>(axis) + 2 < t.dim(); ++axis) {
    if (stride[axis] > 1) t = aten::every(t, axis + 2, stride[axis]);
  }
  return t;
}

struct Call {
  Tensor seen;
  Convolution conv;
  Axes skipped;  // the strides by which `seen` is thinner than the input; empty if it is not

  Call(const Tensor& input, const Tensor& weight, const Convolution& given) : seen(input), conv(given) {
    if (!skips_pixels(weight, given)) return;
    skipped = given.stride;
    seen = seen_pixels(input, skipped);
    conv.stride.assign(skipped.size(), 1);
  }
};

// How channels lie in memory. A linear layer's [N, C] counts as channels_last: one pixel, channels innermost.
inline bool is_channels_last(const Tensor& t) { return t.dim() == 2 || (!t.is_contiguous() && t.stride(1) == 1); }

// What ATen takes the strides for; where they could be either format, it is not channels_last.
inline bool suggests_channels_last(const Tensor& t) {
  const int64_t rank = t.dim();
  if (rank != 4 && rank != 5) return false;
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t axis = i == 0 ? 1 : i == rank - 1 ? 0 : rank - i;  // channels, innermost to outermost axis, batch
    if (t.size(axis) == 0 || t.stride(axis) < least) return false;
    if (axis == 0 && least == t.stride(1)) return false;
    least = t.stride(axis) * std::max<int64_t>(1, t.size(axis));
  }
  return true;
}

inline MemoryFormat format_of(bool channels_last, int64_t rank) {
  if (!channels_last || rank < 4) return MemoryFormat::Contiguous;
  return rank == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

inline Tensor as_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

inline Tensor empty(const Axes& shape, ScalarType type, const Tensor& like, bool channels_last) {
  const MemoryFormat format = format_of(channels_last, static_cast<int64_t>(shape.size()));
  if (format == MemoryFormat::Contiguous) return empty(shape, type, like);
  return torch::stable::empty(shape, type, std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor in_layout(const Tensor& t, bool channels_last, ScalarType type) {
  const MemoryFormat format = format_of(channels_last, t.dim());
  const Tensor typed = as_type(t, type);
  if (format == MemoryFormat::Contiguous && typed.is_contiguous()) return typed;
  return torch::stable::contiguous(typed, format);
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  return std::equal(a.strides().begin(), a.strides().end(), b.strides().begin());
}

// The tensor in dense memory, its axes in the order that empty_like gives them.
inline Tensor dense(const Tensor& t) {
  Tensor copy = torch::stable::empty_like(t);
  if (same_strides(t, copy)) return t;
  return torch::stable::copy_(copy, t);
}

inline void copy(const Tensor& from, Tensor to) { torch::stable::copy_(to, from); }

inline Tensor convolve(const Tensor& x, const Tensor& w, const Convolution& conv) {
  if (conv.is_linear()) return aten::linear(x, w);
  return aten::convolution(x, w, conv.stride, conv.padding, conv.dilation, conv.groups);
}

inline std::pair<Tensor, Tensor> convolve_backward(const Tensor& e, const Tensor& x, const Tensor& w,
                                                   const Convolution& conv, const Needs& needs) {
  if (!conv.is_linear()) {
    return aten::convolution_backward(e, x, w, conv.stride, conv.padding, conv.dilation, conv.groups, needs.input,
                                      needs.weight);
  }
  return {needs.input ? aten::mm(e, w) : Tensor(),
          needs.weight ? aten::mm(torch::stable::transpose(e, 0, 1), x) : Tensor()};
}

// Calls visit(first image, images) for each chunk of `step` images.
template <class Visit>
void for_each_chunk(const Geometry& geo, int64_t step, const Visit& visit) {
  for (int64_t first = 0; first < geo.batch; first += step) visit(first, std::min(step, geo.batch - first));
}

inline Layout layout_of(Geometry geo, int64_t count, bool channels_last) {
  geo.batch = count;
  return {geo, channels_last};
}

// What a call's chunks share.
template <class T>
struct Operands {
  Geometry geo;
  const Convolution& conv;
  T delta;
  Tensor weight, bias, alpha;  // of the type T; a missing bias is zeros

  Operands(const Tensor& input, const Tensor& w, const std::optional<Tensor>& b, const Tensor& a,
           const Convolution& convolution, double d)
      : geo(make_geometry(input, w, convolution.stride, convolution.padding, convolution.dilation, convolution.groups)),
        conv(convolution),
        delta(static_cast<T>(d)),
        weight(as_type(w, kType<T>)),
        bias(b ? in_layout(*b, false, kType<T>) : zeros({w.size(0)}, kType<T>, input)),
        alpha(as_type(a, kType<T>)) {
    if (b) check_shape("bias", *b, {w.size(0)});
    check_shape("alpha", a, {});
  }
};

// Uninitialised, what `convolve` would return.
template <class T>
Tensor empty_result(const Tensor& x, const Operands<T>& operands, bool channels_last) {
  Geometry geo = operands.geo;
  geo.batch = x.size(0);
  return empty(output_shape(geo, operands.weight.size(0), operands.conv.stride.size()), kType<T>, x, channels_last);
}

// Finishes a convolution: r, and y and z from u.
template <class Device, class T>
void divide(const Layout& layout, const Tensor& x, T delta, T* r, ForwardEpilogue<T> epilogue) {
  const Geometry& geo = layout.geo;
  if (Device::template divide_pixels<T>(layout, data<T>(x), delta, r, epilogue)) return;
  const Tensor plane = empty({geo.batch, geo.groups, geo.in_pixels()}, kType<T>, x);
  const Tensor inverse = empty({geo.batch, geo.groups, geo.out_pixels()}, kType<T>, x);
  Device::template sum_of_squares<T>(layout, data<T>(x), mutable_data<T>(plane));
  Device::template patch_norm<T>(layout, data<T>(plane), delta, r, mutable_data<T>(inverse));
  epilogue.inverse_divisor = data<T>(inverse);
  Device::template forward_epilogue<T>(layout, epilogue);
}

template <class Device, class T>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& input, const Operands<T>& operands,
                                              bool wants_channels_last, bool relu, bool save) {
  const auto& [geo, conv, delta, weight, bias, alpha] = operands;
  const ScalarType type = input.scalar_type();
  const bool narrow = type != kType<T>;
  const Tensor norm = empty(output_shape(geo, geo.groups, conv.stride.size()), kType<T>, input);
  Tensor y, z = empty({0}, type, input);
  if (geo.batch == 0) {  // ATen knows the shape and format of an empty result
    y = as_type(convolve(as_type(input, kType<T>), weight, conv), type);
    return {y, save ? torch::stable::empty_like(y) : z, norm};
  }
  const std::optional<Tensor> packed = Device::template pack<T>({geo, wants_channels_last}, weight, bias);
  const int64_t step = packed && !narrow ? geo.batch : Device::images_per_chunk(geo, sizeof(T));
  for_each_chunk(geo, step, [&](int64_t first, int64_t count) {
    const Tensor x = in_layout(images(input, first, count), wants_channels_last, kType<T>);  // once, not in ATen as well
    const Tensor u = packed ? empty_result(x, operands, wants_channels_last) : convolve(x, weight, conv);
    const Layout layout = layout_of(geo, count, packed ? wants_channels_last : is_channels_last(u));
    if (first == 0) {
      y = count == geo.batch && !narrow ? u : empty_images(u, geo.batch, type);
      if (save) z = empty_images(u, geo.batch, type);
    }
    // A narrower result is computed in place and copied: the copy narrows.
    const Tensor chunk_y = narrow ? u : images(y, first, count);
    const Tensor chunk_z = !save ? z : narrow ? empty_images(u, count, kType<T>) : images(z, first, count);
    const Tensor x_laid = in_layout(x, layout.channels_last, kType<T>);
    const ForwardEpilogue<T> epilogue{data<T>(u), nullptr, data<T>(bias), data<T>(alpha), relu, mutable_data<T>(chunk_y),
                                      save ? mutable_data<T>(chunk_z) : nullptr};
    T* r = mutable_data<T>(images(norm, first, count));
    if (packed) {
      Device::template direct<T>(layout, data<T>(x_laid), data<T>(*packed), delta, r, epilogue);
    } else {
      divide<Device, T>(layout, x_laid, delta, r, epilogue);
    }
    if (narrow) copy(chunk_y, images(y, first, count));
    if (narrow && save) copy(chunk_z, images(z, first, count));
  });
  return {y, z, norm};
}

// The gradients of one call, gathered chunk by chunk in order.
template <class Device, class T>
class Backward {
 public:
  Backward(const Tensor& input, const Operands<T>& operands, bool channels_last, bool moment_from_y, Needs needs)
      : operands_(operands), channels_last_(channels_last), moment_from_y_(moment_from_y), needs_(needs),
        alpha_sum_(zeros({}, ScalarType::Double, input)),
        bias_sum_(zeros({operands.weight.size(0)}, ScalarType::Double, input)) {}

  // e and its moments, both convolutions, and the input's epilogue, written to `dx`. All tensors are of the type T
  // and in this call's layout.
  void chunk(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& y, const std::optional<Tensor>& z,
             const Tensor& r, const Tensor& dx) {
    const Layout layout = layout_of(operands_.geo, x.size(0), channels_last_);
    const Geometry& geo = layout.geo;
    const Tensor e = empty_images(grad, geo.batch, kType<T>);
    std::optional<Tensor> moment, partials;
    if (needs_.moment()) moment = empty({geo.batch, geo.groups, geo.out_pixels()}, kType<T>, x);
    if (needs_.bias) partials = empty({Device::bias_rows(layout), layout.outputs()}, kType<T>, x);
    Device::template backward_prologue<T>(
        layout, {data<T>(grad), data_or_null<T>(y), data_or_null<T>(z), data<T>(operands_.bias), data<T>(r),
                 operands_.delta, moment_from_y_, mutable_data<T>(e), data_or_null<T>(moment),
                 data_or_null<T>(partials)});
    if (needs_.bias) {
      Device::template add_rows<T>(data<T>(*partials), partials->size(0), layout.outputs(),
                                   mutable_data<double>(bias_sum_));
    }
    if (needs_.alpha && !needs_.weight) {
      Device::template add_dot<T>(data<T>(*moment), nullptr, moment->numel(), mutable_data<double>(alpha_sum_));
    }
    if (!needs_.input && !needs_.weight) return;

    const auto [conv_grad, dw] = convolve_backward(e, x, operands_.weight, operands_.conv, needs_);
    if (needs_.weight && !weight_sum_) {
      weight_sum_ = dw;
    } else if (needs_.weight) {
      Device::template add<T>(data<T>(dw), dw.numel(), mutable_data<T>(*weight_sum_));
    }
    if (needs_.input) finish_input(layout, in_layout(conv_grad, channels_last_, kType<T>), x, *moment, r, dx);
  }

  // d weight and, where it comes with it, d alpha = <weight, d weight / alpha>: in the weight's type and strides.
  Tensor weight_gradient(ScalarType type) {
    const Tensor& weight = operands_.weight;
    const bool fits = weight_sum_ && same_strides(*weight_sum_, weight);  // dense then, as every result of ATen's
    Tensor dw = fits ? *weight_sum_ : torch::stable::empty_like(weight);
    if (!weight_sum_) return as_type(torch::stable::zero_(dw), type);
    if (!fits) copy(*weight_sum_, dw);
    T* gradient = mutable_data<T>(dw);
    Device::template add_dot<T>(data<T>(fits ? weight : dense(weight)), gradient, dw.numel(),
                                mutable_data<double>(alpha_sum_));
    Device::template scale<T>(data<T>(operands_.alpha), dw.numel(), gradient);
    return as_type(dw, type);
  }

  Tensor alpha_gradient(ScalarType type) const { return as_type(alpha_sum_, type); }
  Tensor bias_gradient(ScalarType type) const { return as_type(bias_sum_, type); }

 private:
  void finish_input(const Layout& layout, const Tensor& conv_grad, const Tensor& x, const Tensor& moment,
                    const Tensor& r, const Tensor& dx) const {
    const Geometry& geo = layout.geo;
    const T* alpha = data<T>(operands_.alpha);
    T* q = mutable_data<T>(moment);
    Device::template norm_gradients<T>(data<T>(r), operands_.delta, moment_from_y_ ? nullptr : alpha, moment.numel(), q);
    Tensor box = moment;
    if (!patches_are_pixels(geo)) {
      box = empty({geo.batch, geo.groups, geo.in_pixels()}, kType<T>, x);
      Device::template transposed_box<T>(layout, q, mutable_data<T>(box));
    }
    Device::template input_epilogue<T>(layout,
                                       {data<T>(conv_grad), data<T>(x), data<T>(box), alpha, mutable_data<T>(dx)});
  }

  const Operands<T>& operands_;
  const bool channels_last_, moment_from_y_;
  const Needs needs_;
  std::optional<Tensor> weight_sum_;
  Tensor alpha_sum_, bias_sum_;
};

template <class Device, class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                       const Tensor& alpha, const std::optional<Tensor>& output,
                                                       const std::optional<Tensor>& quotient, const Tensor& norm,
                                                       const Operands<T>& operands, const Tensor& whole,
                                                       const Axes& skipped, const Needs& needs) {
  const ScalarType type = input.scalar_type();
  const bool narrow = type != kType<T>;
  const bool moment_from_y = needs.moment() && !quotient;
  STD_TORCH_CHECK(!moment_from_y || (output && (needs.weight || !needs.alpha)),
                  "quotient must be given for the gradients that output_mask asks for");
  const size_t rank = operands.conv.stride.size();
  const Axes out = output_shape(operands.geo, weight.size(0), rank);
  check_shape("grad", grad, out);
  if (output) check_shape("output", *output, out);
  if (quotient) check_shape("quotient", *quotient, out);
  check_shape("norm", norm, output_shape(operands.geo, operands.geo.groups, rank));
  STD_TORCH_CHECK(norm.scalar_type() == kType<T>, "norm must be of the dtype that the forward gave it");

  const bool channels_last = rank == 0 || suggests_channels_last(whole) || suggests_channels_last(weight);
  const bool apart = needs.input && (narrow || !skipped.empty());  // dx is computed, then copied to its place
  const auto none = [&] { return empty({0}, type, input); };
  const Tensor dx = needs.input ? empty(shape_of(whole), type, input, channels_last) : none();
  Backward<Device, T> backward(input, operands, channels_last, moment_from_y, needs);
  for_each_chunk(operands.geo, Device::images_per_chunk(operands.geo, sizeof(T)), [&](int64_t first, int64_t count) {
    const auto part = [&](const Tensor& t) { return in_layout(images(t, first, count), channels_last, kType<T>); };
    const auto optional_part = [&](const std::optional<Tensor>& t, bool wanted) {
      return t && wanted ? std::optional(part(*t)) : std::nullopt;
    };
    const Tensor x = part(input);
    Tensor dx_part = needs.input ? images(dx, first, count) : dx;
    const Tensor dx_wide = apart ? torch::stable::empty_like(x) : dx_part;
    backward.chunk(part(grad), x, optional_part(output, true), optional_part(quotient, needs.moment()),
                   images(norm, first, count), dx_wide);
    if (apart && !skipped.empty()) torch::stable::zero_(dx_part);
    if (apart) copy(dx_wide, seen_pixels(dx_part, skipped));
  });
  const Tensor dw = needs.weight ? backward.weight_gradient(weight.scalar_type()) : none();
  return {dx, dw, needs.alpha ? backward.alpha_gradient(alpha.scalar_type()) : none(),
          needs.bias ? backward.bias_gradient(type) : none()};
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

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                    const std::optional<Tensor>& bias, const Tensor& alpha,
                                                    const std::optional<Tensor>& output,
                                                    const std::optional<Tensor>& quotient, const Tensor& norm,
                                                    const Convolution& conv, double delta,
                                                    const std::vector<bool>& output_mask) {
  const aten::NoGrad guard;
  STD_TORCH_CHECK(output_mask.size() == 4, "output_mask must have 4 entries: input, weight, alpha, bias");
  const Needs needs{output_mask[0], output_mask[1], output_mask[2], output_mask[3]};
  const Call call(input, weight, conv);
  const auto run = [&]<class T>(T) {
    return backward_as<Device, T>(grad, call.seen, weight, alpha, output, quotient, norm,
                                  Operands<T>(call.seen, weight, bias, alpha, call.conv, delta), input, call.skipped,
                                  needs);
  };
  return input.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace ccn
