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

// Uninitialised, as `convolve` would return it, of `batch` images.
template <class T>
Tensor empty_result(const Operands<T>& operands, int64_t batch, bool channels_last, ScalarType type) {
  Geometry geo = operands.geo;
  geo.batch = batch;
  return empty(output_shape(geo, operands.weight.size(0), operands.conv.stride.size()), type, operands.weight, channels_last);
}

// For devices that have no convolution of their own: what they answer, and what is then never called.
struct AtenOnly {
  template <class T>
  static bool suits_winograd(const Layout&) { return false; }
  template <class T, class... Args>
  static bool winograd_forward(const Args&...) { return false; }
  template <class T, class... Args>
  static bool winograd_input_gradient(const Args&...) { return false; }
  template <class T, class... Args>
  static bool winograd_accumulate(const Args&...) { return false; }
  template <class T, class... Args>
  static void winograd_weight_gradient(const Args&...) {}
  template <class T>
  static std::optional<Tensor> pack(const Layout&, const Tensor&, const Tensor&) { return std::nullopt; }
  template <class T, class... Args>
  static void direct(const Args&...) {}
  template <class T, class... Args>
  static bool divide_pixels(const Args&...) { return false; }
  template <class T>
  static int64_t backward_at_once_tasks(const Layout&) { return 0; }
  template <class T>
  static void backward_at_once(const Layout&, const DepthwiseBackward<T>&) {}
};

// How a call is convolved: by ATen, or by the device itself, which divides as it goes.
template <class Device, class T>
struct Method {
  bool winograd;                 // Winograd's, always in channels_last, unless a chunk's patches are too uneven for it
  std::optional<Tensor> direct;  // weight and bias, packed
  std::optional<Tensor> packed;  // the weight, once Winograd's needs it

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
  const Tensor norm = empty(output_shape(geo, geo.groups, conv.stride.size()), kType<T>, input);
  Tensor y, z = empty({0}, type, input);
  if (geo.batch == 0) {  // ATen knows the shape and format of an empty result
    y = as_type(convolve(as_type(input, kType<T>), weight, conv), type);
    return {y, save ? torch::stable::empty_like(y) : z, norm};
  }
  Method<Device, T> method({geo, wants_channels_last}, operands);
  const bool channels_last = wants_channels_last || method.winograd;
  // A result of a narrower type, or another format, is computed in place and copied: the copy converts.
  const bool staged = narrow || channels_last != wants_channels_last;
  const int64_t step = method.own() && !staged ? geo.batch : Device::images_per_chunk(geo, sizeof(T));
  for_each_chunk(geo, step, [&](int64_t first, int64_t count) {
    const Tensor x = in_layout(images(input, first, count), channels_last, kType<T>);  // once, not in ATen as well
    const Tensor u = method.own() ? empty_result(operands, count, channels_last, kType<T>) : convolve(x, weight, conv);
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

// The gradients of one call, gathered chunk by chunk in order.
template <class Device, class T>
class Backward {
 public:
  Backward(const Tensor& input, const Operands<T>& operands, bool channels_last, bool moment_from_y, Needs needs,
           bool winograd)
      : operands_(operands), channels_last_(channels_last), moment_from_y_(moment_from_y), needs_(needs),
        winograd_(winograd),
        alpha_sum_(zeros({}, ScalarType::Double, input)),
        bias_sum_(zeros({operands.weight.size(0)}, ScalarType::Double, input)) {}

  // e and its moments, both convolutions, and the input's epilogue, written to `dx`. All tensors are of the type T
  // and in this call's layout.
  void chunk(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& y, const std::optional<Tensor>& z,
             const Tensor& r, const Tensor& dx) {
    const Layout layout = layout_of(operands_.geo, x.size(0), channels_last_);
    const Geometry& geo = layout.geo;
    if (const int64_t tasks = Device::template backward_at_once_tasks<T>(layout)) {
      return chunk_at_once(layout, tasks, grad, x, y, z, r, dx);
    }
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

    Needs by_aten = needs_;
    Tensor x_plane, e_plane;
    if (winograd_) {
      e_plane = squares(transposed(layout), e);
      if (needs_.weight) x_plane = squares(layout, x);
    }
    if (winograd_ && needs_.weight) {
      by_aten.weight = !Device::template winograd_accumulate<T>(layout, data<T>(x), data<T>(e), data<T>(x_plane),
                                                                data<T>(e_plane), winograd_sums_, x);
    }
    const Tensor box = needs_.input ? norm_term(layout, *moment, r) : Tensor();
    const auto epilogue = [&](const T* grad) {
      return InputEpilogue<T>{grad, data<T>(x), data<T>(box), data<T>(operands_.alpha), mutable_data<T>(dx)};
    };
    if (winograd_ && needs_.input) {
      by_aten.input = !Device::template winograd_input_gradient<T>(layout, operands_.weight, winograd_packed_, data<T>(e),
                                                                   data<T>(e_plane), epilogue(nullptr));
    }
    if (!by_aten.input && !by_aten.weight) return;

    const auto [conv_grad, dw] = convolve_backward(e, x, operands_.weight, operands_.conv, by_aten);
    if (by_aten.weight && !weight_sum_) {
      weight_sum_ = dw;
    } else if (by_aten.weight) {
      Device::template add<T>(data<T>(dw), dw.numel(), mutable_data<T>(*weight_sum_));
    }
    if (by_aten.input) {
      const Tensor laid = in_layout(conv_grad, channels_last_, kType<T>);
      Device::template input_epilogue<T>(layout, epilogue(data<T>(laid)));
    }
  }

  // d weight and, where it comes with it, d alpha = <weight, d weight / alpha>: in the weight's type and strides.
  Tensor weight_gradient(ScalarType type) {
    const Tensor& weight = operands_.weight;
    const bool fits = weight_sum_ && weight_sum_->scalar_type() == kType<T> &&
                      same_strides(*weight_sum_, weight);  // dense then, as every result of ATen's
    Tensor dw = fits ? *weight_sum_ : torch::stable::empty_like(weight);
    if (!weight_sum_ && !winograd_sums_) return as_type(torch::stable::zero_(dw), type);
    if (weight_sum_ && !fits) copy(*weight_sum_, dw);
    if (winograd_sums_) {
      const Layout layout{operands_.geo, channels_last_};
      Device::template winograd_weight_gradient<T>(layout, *winograd_sums_, weight_sum_.has_value(), dw);
    }
    T* gradient = mutable_data<T>(dw);
    Device::template add_dot<T>(data<T>(fits ? weight : dense(weight)), gradient, dw.numel(),
                                mutable_data<double>(alpha_sum_));
    Device::template scale<T>(data<T>(operands_.alpha), dw.numel(), gradient);
    return as_type(dw, type);
  }

  Tensor alpha_gradient(ScalarType type) const { return as_type(alpha_sum_, type); }
  Tensor bias_gradient(ScalarType type) const { return as_type(bias_sum_, type); }

 private:
  void chunk_at_once(const Layout& layout, int64_t tasks, const Tensor& grad, const Tensor& x,
                     const std::optional<Tensor>& y, const std::optional<Tensor>& z, const Tensor& r, const Tensor& dx) {
    const int64_t channels = layout.inputs(), weights = operands_.weight.numel();
    const auto rows = [&](int64_t count) { return empty({tasks, count}, kType<T>, x); };
    const Tensor bias_partials = rows(channels), moment_partials = rows(channels);
    const std::optional<Tensor> weight_partials = needs_.weight ? std::optional(rows(weights)) : std::nullopt;
    const Tensor weight = in_layout(operands_.weight, false, kType<T>);
    Device::template backward_at_once<T>(
        layout, {data<T>(grad), data_or_null<T>(y), data_or_null<T>(z), data<T>(x), data<T>(r), data<T>(weight),
                 data<T>(operands_.bias), data<T>(operands_.alpha), operands_.delta, moment_from_y_,
                 needs_.input ? mutable_data<T>(dx) : nullptr, data_or_null<T>(weight_partials),
                 mutable_data<T>(bias_partials), mutable_data<T>(moment_partials)});
    if (needs_.bias) {
      Device::template add_rows<T>(data<T>(bias_partials), tasks, channels, mutable_data<double>(bias_sum_));
    }
    if (needs_.alpha && !needs_.weight) {
      Device::template add_dot<T>(data<T>(moment_partials), nullptr, tasks * channels, mutable_data<double>(alpha_sum_));
    }
    if (!needs_.weight) return;
    if (!weight_sum_) {  // channels innermost, as the partial sums have them
      const Tensor sum = torch::stable::transpose(zeros({weights / channels, channels}, ScalarType::Double, x), 0, 1);
      weight_sum_ = torch::stable::view(sum, shape_of(operands_.weight));
    }
    Device::template add_rows<T>(data<T>(*weight_partials), tasks, weights, mutable_data<double>(*weight_sum_));
  }

  // The transposed box filter of q, which takes the place of the moments.
  Tensor norm_term(const Layout& layout, const Tensor& moment, const Tensor& r) const {
    const Geometry& geo = layout.geo;
    const T* alpha = moment_from_y_ ? nullptr : data<T>(operands_.alpha);
    T* q = mutable_data<T>(moment);
    Device::template norm_gradients<T>(data<T>(r), operands_.delta, alpha, moment.numel(), q);
    if (patches_are_pixels(geo)) return moment;
    const Tensor box = empty({geo.batch, geo.groups, geo.in_pixels()}, kType<T>, moment);
    Device::template transposed_box<T>(layout, q, mutable_data<T>(box));
    return box;
  }

  static Tensor squares(const Layout& layout, const Tensor& x) {
    const Tensor plane = empty({layout.geo.batch, layout.geo.groups, layout.geo.in_pixels()}, kType<T>, x);
    Device::template sum_of_squares<T>(layout, data<T>(x), mutable_data<T>(plane));
    return plane;
  }

  const Operands<T>& operands_;
  const bool channels_last_, moment_from_y_;
  const Needs needs_;
  const bool winograd_;
  std::optional<Tensor> weight_sum_, winograd_sums_, winograd_packed_;
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

  const bool wants_channels_last = rank == 0 || suggests_channels_last(whole) || suggests_channels_last(weight);
  const bool winograd = Device::template suits_winograd<T>({operands.geo, wants_channels_last});
  const bool channels_last = wants_channels_last || winograd;
  // dx is computed apart, then copied to its place: the copy converts.
  const bool apart = needs.input && (narrow || channels_last != wants_channels_last || !skipped.empty());
  const auto none = [&] { return empty({0}, type, input); };
  const Tensor dx = needs.input ? empty(shape_of(whole), type, input, wants_channels_last) : none();
  Backward<Device, T> backward(input, operands, channels_last, moment_from_y, needs, winograd);
  const bool at_once = !narrow && Device::template backward_at_once_tasks<T>({operands.geo, channels_last});
  const int64_t step = at_once ? operands.geo.batch : Device::images_per_chunk(operands.geo, sizeof(T));
  for_each_chunk(operands.geo, step, [&](int64_t first, int64_t count) {
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
