// What the passes around the convolution read and write.
#pragma once

#include "../compact_conv.h"

namespace ccn {

// Activations are laid out [N, C, pixels] or, when `channels_last`, [N, pixels, C]; planes are always [N, G, pixels].
struct Layout {
  Geometry geo;
  bool channels_last;

  int64_t inputs() const { return geo.groups * geo.in_channels; }
  int64_t outputs() const { return geo.groups * geo.out_channels; }
};

// The layout of the convolution that gives the input's gradient.
inline Layout transposed(Layout layout) {
  Geometry& geo = layout.geo;
  const Geometry forward = geo;
  geo.in_channels = forward.out_channels;
  geo.out_channels = forward.in_channels;
  for (int axis = 0; axis < kAxes; ++axis) {
    geo.in[axis] = forward.out[axis];
    geo.out[axis] = forward.in[axis];
    geo.padding[axis] = forward.kernel[axis] - 1 - forward.padding[axis];
  }
  return layout;
}

template <class T>
struct ForwardEpilogue {
  const T* u;                 // [N, O, P] the convolution
  const T* inverse_divisor;   // [N, G, P] 1 / d
  const T* bias;              // [O]
  const T* alpha;            // one value
  bool relu;
  T* y;                       // [N, O, P]
  T* z;                       // [N, O, P] u / d, or null
};

template <class T>
struct BackwardPrologue {
  const T* grad;     // [N, O, P]
  const T* y;        // [N, O, P] the fused ReLU's output, or null
  const T* z;        // [N, O, P] u / d, or null
  const T* bias;     // [O]
  const T* r;        // [N, G, P]
  T delta;
  bool moment_from_y;  // take y - b for alpha * z
  T* e;              // [N, O, P] grad / d
  T* moment;         // [N, G, P] sum_o grad * z (or grad * (y - b)), or null
  T* bias_partials;  // [rows, O], or null; how many rows is the device's choice
};

template <class T>
struct InputEpilogue {
  const T* conv_grad;  // [N, C, P] the convolution's gradient
  const T* x;          // [N, C, P]
  const T* box;        // [N, G, P] sum of q over the patches that contain the pixel
  const T* alpha;      // one value
  T* dx;               // [N, C, P] alpha * conv_grad - x * box
};

// The whole backward pass of a depthwise layer, where a device has it in one. Partial sums are a row a task.
template <class T>
struct DepthwiseBackward {
  const T* grad;    // [N, C, P]
  const T* y;       // [N, C, P] the fused ReLU's output, or null
  const T* z;       // [N, C, P] u / d, or null
  const T* x;       // [N, C, P]
  const T* r;       // [N, C, P], whatever the layout
  const T* weight;  // [C, taps]
  const T* bias;    // [C]
  const T* alpha;   // one value
  T delta;
  bool moment_from_y;  // take y - b for alpha * z
  T* dx;               // [N, C, P], or null
  T* weight_partials;  // [tasks, taps, C] d weight / alpha, or null
  T* bias_partials;    // [tasks, C]
  T* moment_partials;  // [tasks, C] sum of grad * z (or grad * (y - b)), or 0 where there is neither
};

}  // namespace ccn
