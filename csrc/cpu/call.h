// One call: its convolution by ATen, its chunks of the batch, its operands.
#pragma once

#include "../tensors.h"
#include "operands.h"

namespace ccn {

struct Convolution {
  Axes stride, padding, dilation;
  int64_t groups;

  bool is_linear() const { return stride.empty(); }
};

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

// The weight as Winograd's convolution wants it, once a chunk has needed it, and whether it can do with this one.
struct WinogradWeight {
  std::optional<Tensor> values;
  bool uneven = false;
};

}  // namespace ccn
