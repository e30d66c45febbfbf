// The loops around the convolution, each over a range of independent tasks so that any thread pool can split them.
// passes.cpp is compiled once for every instruction set; `passes<T>()` picks one when the library first runs.
#pragma once

#include "../passes.h"

namespace ccn::cpu {

// How the backward prologue is split into tasks. The split depends on the shape alone, so that sums are formed in the
// same order whatever the number of threads.
struct Prologue {
  const Layout& layout;

  int64_t pixels() const { return layout.channels_last ? 64 : 4096; }
  int64_t segments() const { return ceil_div(layout.geo.out_pixels(), pixels()); }
  int64_t tasks() const {
    const Geometry& geo = layout.geo;
    return layout.channels_last ? ceil_div(geo.batch * geo.out_pixels(), pixels()) : geo.batch * geo.groups * segments();
  }
  int64_t bias_rows() const { return layout.channels_last ? tasks() : layout.geo.batch * segments(); }
};

template <class T>
struct Passes {
  // tasks: input pixels; plane[n, g, p] = sum of squares over the group's channels
  void (*sum_of_squares)(const Layout&, const T* x, T* plane, Range tasks);
  // tasks: rows (n, g, depth, height) of the output; r and 1 / d of every patch
  void (*patch_norm)(const Layout&, const T* plane, T delta, T* r, T* inverse_divisor, Range tasks);
  // tasks: output pixels (channels_last) or output elements
  void (*forward_epilogue)(const Layout&, const ForwardEpilogue<T>&, Range tasks);
  // tasks: Prologue{layout}.tasks()
  void (*backward_prologue)(const Layout&, const BackwardPrologue<T>&, Range tasks);
  // tasks: rows (n, g, depth, height) of the input; box[p] = sum of q over the patches that contain p
  void (*transposed_box)(const Layout&, const T* q, T* box, Range tasks);
  // tasks: input pixels (channels_last) or input elements
  void (*input_epilogue)(const Layout&, const InputEpilogue<T>&, Range tasks);
  // <a, b> over a range, in double; a missing b is ones
  double (*dot)(const T* a, const T* b, Range range);
};

template <class T>
const Passes<T>& passes();

const char* instruction_set();

}  // namespace ccn::cpu
