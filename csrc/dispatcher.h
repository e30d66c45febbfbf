// Calls into ATen through the stable dispatcher, for the operators that torch/csrc/stable/ops.h does not wrap.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <array>

#include "native.h"

namespace ccn::aten {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

template <size_t kOutputs, class... Args>
std::array<StableIValue, kOutputs> call(const char* name, const char* overload, const Args&... args) {
  constexpr size_t kSlots = std::max(sizeof...(Args), kOutputs);
  std::array<StableIValue, kSlots> stack{torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<StableIValue, kOutputs> outputs;
  std::copy_n(stack.begin(), kOutputs, outputs.begin());
  return outputs;
}

inline Tensor to_tensor(StableIValue value) { return torch::stable::detail::to<Tensor>(value); }

inline Tensor convolution(const Tensor& input, const Tensor& weight, const Axes& stride, const Axes& padding,
                          const Axes& dilation, int64_t groups) {
  const Axes no_output_padding(stride.size(), 0);
  return to_tensor(call<1>("aten::convolution", "", input, weight, std::nullopt, stride, padding, dilation, false,
                           no_output_padding, groups)[0]);
}

// (d input, d weight) of a convolution without bias; an undefined tensor for what is not needed.
inline std::pair<Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                      const Axes& stride, const Axes& padding, const Axes& dilation,
                                                      int64_t groups, bool need_input, bool need_weight) {
  const Axes no_output_padding(stride.size(), 0);
  const std::array<bool, 3> mask{need_input, need_weight, false};
  const torch::headeronly::HeaderOnlyArrayRef<bool> output_mask(mask.data(), mask.size());
  const auto results = call<3>("aten::convolution_backward", "", grad, input, weight, std::nullopt, stride, padding,
                               dilation, false, no_output_padding, groups, output_mask);
  to_tensor(results[2]);  // takes ownership, so that it is freed
  return {to_tensor(results[0]), to_tensor(results[1])};
}

// x [N, C] times w [O, C], transposed
inline Tensor linear(const Tensor& x, const Tensor& w) {
  return to_tensor(call<1>("aten::linear", "", x, w, std::nullopt)[0]);
}

inline Tensor mm(const Tensor& a, const Tensor& b) { return to_tensor(call<1>("aten::mm", "", a, b)[0]); }

// Every `step`th entry of an axis: a view.
inline Tensor every(const Tensor& t, int64_t axis, int64_t step) {
  return to_tensor(call<1>("aten::slice", "Tensor", t, axis, std::nullopt, std::nullopt, step)[0]);
}

// Contiguous, on `like`'s device. By the shim of its own: half the time of a boxed call, and ours make several.
inline Tensor empty(const Axes& shape, ScalarType type, const Tensor& like) {
  int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.data(), static_cast<int64_t>(shape.size()),
                                                          &dtype, nullptr, nullptr, 0, nullptr, &handle));
  return Tensor(handle);
}

inline Tensor empty_strided(const Axes& shape, const Axes& strides, ScalarType type, const torch::stable::Device& device) {
  return to_tensor(call<1>("aten::empty_strided", "", shape, strides, std::optional(type), std::nullopt,
                           std::optional(device), std::nullopt)[0]);
}

// ATen's operators record gradients when they are called from C++ with the grad mode on; ours must not.
class NoGrad {
 public:
  NoGrad() : previous_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(previous_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool previous_;
};

}  // namespace ccn::aten
