// What every native backend shares: the geometry of one call and the mathematics of one pixel.
// Nothing here depends on PyTorch or on a device, so that the CPU tests cover what the GPU runs.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define CCN_HOST_DEVICE __host__ __device__
#else  // never a function of its own: the linker would keep one copy for all instruction sets of the CPU's loops
#define CCN_HOST_DEVICE __attribute__((always_inline))
#endif

namespace ccn {

// Spatial axes are always (depth, height, width); those that a 2-D, 1-D or linear call lacks have extent 1.
constexpr int kAxes = 3;

struct Geometry {
  int64_t batch;
  int64_t groups;
  int64_t in_channels;   // of one group
  int64_t out_channels;  // of one group
  int64_t in[kAxes];
  int64_t out[kAxes];
  int64_t kernel[kAxes];
  int64_t stride[kAxes];
  int64_t padding[kAxes];
  int64_t dilation[kAxes];

  CCN_HOST_DEVICE int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  CCN_HOST_DEVICE int64_t out_pixels() const { return out[0] * out[1] * out[2]; }
  CCN_HOST_DEVICE int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

struct Range {
  int64_t begin;
  int64_t end;
};

CCN_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// Divides numbers below 2^31 by one that is known beforehand.
struct Divider {
  uint32_t divisor, multiplier, shift = 0;

  CCN_HOST_DEVICE explicit Divider(uint32_t by) : divisor(by) {
    while (shift < 31 && (1u << shift) < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - by)) / by + 1);
  }
  CCN_HOST_DEVICE uint32_t operator()(uint32_t value) const {
    return (static_cast<uint32_t>(static_cast<uint64_t>(value) * multiplier >> 32) + value) >> shift;
  }
};

// Whether every patch is a pixel of its own, so that box sums have nothing to do.
CCN_HOST_DEVICE inline bool patches_are_pixels(const Geometry& geo) {
  for (int axis = 0; axis < kAxes; ++axis) {
    if (geo.kernel[axis] != 1 || geo.stride[axis] != 1 || geo.padding[axis] != 0) return false;
  }
  return true;
}

// The input coordinate that tap `tap` of output coordinate `o` reads; outside [0, in) it is padding.
template <class Int = int64_t>
CCN_HOST_DEVICE inline Int input_coordinate(const Geometry& geo, int axis, std::type_identity_t<Int> o,
                                            std::type_identity_t<Int> tap) {
  return o * static_cast<Int>(geo.stride[axis]) + tap * static_cast<Int>(geo.dilation[axis]) -
         static_cast<Int>(geo.padding[axis]);
}

// The output coordinates whose tap `tap` falls inside the input, as a half-open range.
CCN_HOST_DEVICE inline Range valid_outputs(const Geometry& geo, int axis, int64_t tap) {
  const int64_t offset = geo.padding[axis] - tap * geo.dilation[axis];
  int64_t begin = ceil_div(offset, geo.stride[axis]);
  int64_t end = ceil_div(geo.in[axis] + offset, geo.stride[axis]);
  if (begin < 0) begin = 0;
  if (end > geo.out[axis]) end = geo.out[axis];
  return {begin, end > begin ? end : begin};
}

// The output coordinate whose tap `tap` reads input coordinate `i`, or -1.
template <class Int = int64_t>
CCN_HOST_DEVICE inline Int output_coordinate(const Geometry& geo, int axis, std::type_identity_t<Int> i,
                                             std::type_identity_t<Int> tap) {
  const Int stride = static_cast<Int>(geo.stride[axis]);
  const Int scaled = i + static_cast<Int>(geo.padding[axis]) - tap * static_cast<Int>(geo.dilation[axis]);
  if (scaled < 0 || (stride > 1 && scaled % stride != 0)) return -1;  // divisions are dear, and most strides 1
  const Int o = stride > 1 ? scaled / stride : scaled;
  return o < geo.out[axis] ? o : -1;
}

// What a sliding window reads along one axis. The convolution is one (forward_window), and so is its input's gradient,
// which a stride divides into phases that no tap leaves (gradient_window).
template <class Int>
struct WindowOf {
  Int places, taps;
  Int stride, offset, step;     // tap j of place m reads source coordinate m * stride + offset + j * step
  Int first_tap, tap_step;      // and is the kernel's tap first_tap + j * tap_step
  Int first_place, place_step;  // place m is the result's coordinate first_place + m * place_step

  CCN_HOST_DEVICE Int source(Int place, Int tap) const { return place * stride + offset + tap * step; }
  CCN_HOST_DEVICE Int kernel_tap(Int tap) const { return first_tap + tap * tap_step; }
  CCN_HOST_DEVICE Int result(Int place) const { return first_place + place * place_step; }
};
using Window = WindowOf<int>;  // of kernels on a GPU

template <class Int = int>
CCN_HOST_DEVICE inline WindowOf<Int> forward_window(const Geometry& geo, int axis) {
  return {static_cast<Int>(geo.out[axis]),      static_cast<Int>(geo.kernel[axis]),
          static_cast<Int>(geo.stride[axis]),   static_cast<Int>(-geo.padding[axis]),
          static_cast<Int>(geo.dilation[axis]), 0, 1, 0, 1};
}

// How many phases the input's coordinates have along an axis.
CCN_HOST_DEVICE inline int64_t phases(const Geometry& geo, int axis) {
  return geo.stride[axis] < geo.in[axis] ? geo.stride[axis] : geo.in[axis];
}

// Of the input coordinates phase, phase + stride, ...: the output coordinates that read them. May have no taps.
template <class Int = int>
CCN_HOST_DEVICE inline WindowOf<Int> gradient_window(const Geometry& geo, int axis, int64_t phase) {
  const int64_t stride = geo.stride[axis], dilation = geo.dilation[axis], taps = geo.kernel[axis];
  const int64_t start = phase + geo.padding[axis];
  int64_t divisor = stride, rest = dilation % stride;  // of stride and dilation the greatest common one
  while (rest != 0) {
    const int64_t next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  const int64_t tap_step = stride / divisor;
  int64_t first = 0;
  while (first < taps && first < tap_step && (start - first * dilation) % stride != 0) ++first;
  const bool any = first < taps && first < tap_step;
  return {static_cast<Int>(ceil_div(geo.in[axis] - phase, stride)),
          static_cast<Int>(any ? ceil_div(taps - first, tap_step) : 0),
          1,
          static_cast<Int>(any ? (start - first * dilation) / stride : 0),
          static_cast<Int>(-dilation / divisor),
          static_cast<Int>(first),
          static_cast<Int>(tap_step),
          static_cast<Int>(phase),
          static_cast<Int>(stride)};
}

// 1 / d, where d = r + delta. At r = 0 the quotient u / d is 0 whatever delta is, so delta = 0 must not divide.
template <class T>
CCN_HOST_DEVICE inline T reciprocal_divisor(T r, T delta) {
  return r == T(0) && delta == T(0) ? T(0) : T(1) / (r + delta);
}

// q of the backward pass: `moment` is sum_o g * alpha * u / d, and the norm's own gradient vanishes at r = 0.
template <class T>
CCN_HOST_DEVICE inline T norm_gradient(T moment, T r, T delta) {
  return r == T(0) ? T(0) : moment / ((r + delta) * r);
}

// The input's gradient at one element: that of the convolution, and that of the norms of the patches it is in.
template <class T>
CCN_HOST_DEVICE inline T input_gradient(T convolution, T x, T box) { return convolution - x * box; }

// NaN passes, as in torch.relu.
template <class T>
CCN_HOST_DEVICE inline T activate(T value, bool relu) {
  return relu && value < T(0) ? T(0) : value;
}

// The gradient before a fused ReLU whose output was `y`.
template <class T>
CCN_HOST_DEVICE inline T open_gradient(T grad, T y) { return y <= T(0) ? T(0) : grad; }

}  // namespace ccn
