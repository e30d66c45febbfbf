// What every native backend shares: the geometry of one call and the mathematics of one pixel.
// Nothing here depends on PyTorch or on a device, so that the CPU tests cover what the GPU runs.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define CCN_HOST_DEVICE __host__ __device__
#else
#define CCN_HOST_DEVICE
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
};

struct Range {
  int64_t begin;
  int64_t end;
};

CCN_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// Whether every patch is a pixel of its own, so that box sums have nothing to do.
CCN_HOST_DEVICE inline bool patches_are_pixels(const Geometry& geo) {
  for (int axis = 0; axis < kAxes; ++axis) {
    if (geo.kernel[axis] != 1 || geo.stride[axis] != 1 || geo.padding[axis] != 0) return false;
  }
  return true;
}

// The input coordinate that tap `tap` of output coordinate `o` reads; outside [0, in) it is padding.
CCN_HOST_DEVICE inline int64_t input_coordinate(const Geometry& geo, int axis, int64_t o, int64_t tap) {
  return o * geo.stride[axis] + tap * geo.dilation[axis] - geo.padding[axis];
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
CCN_HOST_DEVICE inline int64_t output_coordinate(const Geometry& geo, int axis, int64_t i, int64_t tap) {
  const int64_t scaled = i + geo.padding[axis] - tap * geo.dilation[axis];
  if (scaled < 0 || scaled % geo.stride[axis] != 0) return -1;
  const int64_t o = scaled / geo.stride[axis];
  return o < geo.out[axis] ? o : -1;
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

}  // namespace ccn
