// The loops around the convolution, each over a range of independent tasks so that any thread pool can split them.
// passes.cpp is compiled once for every instruction set; `passes<T>()` picks one when the library first runs.
#pragma once

#include "../compact_conv.h"

namespace ccn::cpu {

// Activations are laid out [N, C, pixels] or, when `channels_last`, [N, pixels, C]; planes are always [N, G, pixels].
struct Layout {
  Geometry geo;
  bool channels_last;

  // Output pixels that one task of `backward_prologue` covers; the split depends on the shape alone, so that sums
  // are formed in the same order whatever the number of threads.
  int64_t prologue_pixels() const { return channels_last ? 64 : 4096; }
  int64_t prologue_segments() const { return ceil_div(geo.out_pixels(), prologue_pixels()); }
  int64_t prologue_tasks() const {
    return channels_last ? ceil_div(geo.batch * geo.out_pixels(), prologue_pixels())
                         : geo.batch * geo.groups * prologue_segments();
  }
  int64_t bias_partials() const { return channels_last ? prologue_tasks() : geo.batch * prologue_segments(); }
};

template <class T>
struct ForwardEpilogue {
  const T* u;                 // [N, O, P] the convolution
  const T* inverse_divisor;   // [N, G, P] 1 / d
  const T* bias;              // [O]
  T alpha;
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
  T* bias_partials;  // [bias_partials(), O], or null
};

template <class T>
struct Passes {
  // tasks: input pixels; plane[n, g, p] = sum of squares over the group's channels
  void (*sum_of_squares)(const Layout&, const T* x, T* plane, Range tasks);
  // tasks: rows (n, g, depth, height) of the output; r and 1 / d of every patch
  void (*patch_norm)(const Layout&, const T* plane, T delta, T* r, T* inverse_divisor, Range tasks);
  // tasks: output pixels (channels_last) or output elements
  void (*forward_epilogue)(const Layout&, const ForwardEpilogue<T>&, Range tasks);
  // tasks: prologue_tasks()
  void (*backward_prologue)(const Layout&, const BackwardPrologue<T>&, Range tasks);
  // tasks: rows (n, g, depth, height) of the input; box[p] = sum of q over the patches that contain p
  void (*transposed_box)(const Layout&, const T* q, T* box, Range tasks);
  // tasks: input pixels (channels_last) or input elements; dx = alpha * conv_grad - x * box
  void (*input_epilogue)(const Layout&, const T* conv_grad, const T* x, const T* box, T alpha, T* dx, Range tasks);
};

template <class T>
const Passes<T>& passes();

const char* instruction_set();

}  // namespace ccn::cpu
