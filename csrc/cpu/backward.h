// The backward pass, as forward.h makes the forward one: a chunk of the batch at a time, its sums in order.
#pragma once

#include "call.h"

namespace ccn {

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
    if (const int64_t tasks = Device::template backward_at_once_tasks<T>(layout)) {
      return chunk_at_once(layout, tasks, grad, x, y, z, r, dx);
    }
    const Tensor e = empty_images(grad, x.size(0), kType<T>);
    const std::optional<Tensor> moment = prologue(layout, grad, y, z, r, e);
    if (!needs_.input && !needs_.weight) return;
    const std::optional<Tensor> box = needs_.input ? std::optional(norm_term(layout, *moment, r)) : std::nullopt;
    const InputEpilogue<T> epilogue{nullptr, data<T>(x), data_or_null<T>(box), data<T>(operands_.alpha),
                                    needs_.input ? mutable_data<T>(dx) : nullptr};
    by_aten(layout, e, x, epilogue, winograd_ ? by_winograd(layout, e, x, epilogue) : needs_);
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

  // e, the sums of the bias and of alpha, and the moments.
  std::optional<Tensor> prologue(const Layout& layout, const Tensor& grad, const std::optional<Tensor>& y,
                                 const std::optional<Tensor>& z, const Tensor& r, const Tensor& e) {
    const Geometry& geo = layout.geo;
    std::optional<Tensor> moment, partials;
    if (needs_.moment()) moment = empty({geo.batch, geo.groups, geo.out_pixels()}, kType<T>, e);
    if (needs_.bias) partials = empty({Device::bias_rows(layout), layout.outputs()}, kType<T>, e);
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
    return moment;
  }

  // Both convolutions where they are worth it: what is left to ATen.
  Needs by_winograd(const Layout& layout, const Tensor& e, const Tensor& x, const InputEpilogue<T>& epilogue) {
    const Tensor e_plane = squares(transposed(layout), e);
    Needs left = needs_;
    if (needs_.weight) {
      const Tensor x_plane = squares(layout, x);
      left.weight = !Device::template winograd_accumulate<T>(layout, data<T>(x), data<T>(e), data<T>(x_plane),
                                                             data<T>(e_plane), winograd_sums_, x);
    }
    if (needs_.input) {
      left.input = !Device::template winograd_input_gradient<T>(layout, operands_.weight, winograd_weight_, data<T>(e),
                                                                data<T>(e_plane), epilogue);
    }
    return left;
  }

  void by_aten(const Layout& layout, const Tensor& e, const Tensor& x, InputEpilogue<T> epilogue, const Needs& needs) {
    if (!needs.input && !needs.weight) return;
    const auto [conv_grad, dw] = convolve_backward(e, x, operands_.weight, operands_.conv, needs);
    if (needs.weight && !weight_sum_) {
      weight_sum_ = dw;
    } else if (needs.weight) {
      // ATen may choose another convolution, and another layout of its result, for a last, smaller chunk
      Tensor part = dw;
      if (!same_strides(dw, *weight_sum_)) copy(dw, part = torch::stable::empty_like(*weight_sum_));
      Device::template add<T>(data<T>(part), part.numel(), mutable_data<T>(*weight_sum_));
    }
    if (!needs.input) return;
    const Tensor laid = in_layout(conv_grad, channels_last_, kType<T>);
    epilogue.conv_grad = data<T>(laid);
    Device::template input_epilogue<T>(layout, epilogue);
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
  std::optional<Tensor> weight_sum_, winograd_sums_;
  WinogradWeight winograd_weight_;
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
  const size_t rank = operands.conv.stride.size();
  check_saved(operands.geo, rank, input, weight, grad, output, quotient, norm, needs);

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
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                    const std::optional<Tensor>& bias, const Tensor& alpha,
                                                    const std::optional<Tensor>& output,
                                                    const std::optional<Tensor>& quotient, const Tensor& norm,
                                                    const Convolution& conv, double delta,
                                                    const std::vector<bool>& output_mask) {
  const aten::NoGrad guard;
  const Needs needs = make_needs(output_mask);
  const Call call(input, weight, conv);
  const auto run = [&]<class T>(T) {
    return backward_as<Device, T>(grad, call.seen, weight, alpha, output, quotient, norm,
                                  Operands<T>(call.seen, weight, bias, alpha, call.conv, delta), input, call.skipped,
                                  needs);
  };
  return input.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace ccn
