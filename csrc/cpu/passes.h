// The loops around the convolution, each over a range of independent tasks so that any thread pool can split them.
// passes.cpp is compiled once for every instruction set; `passes<T>()` picks one when the library first runs.
#pragma once

#include "operands.h"

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
  // tasks: pixels, channels_last, each a patch of its own; all three of the above at once
  void (*divide_pixels)(const Layout&, const T* x, T delta, T* r, const ForwardEpilogue<T>&, Range tasks);
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

// How the convolutions of our own (direct.cpp, depthwise.cpp) split the output: blocks of rows and columns of one image,
// so small that the input they read stays in a core's cache.
struct DirectTiling {
  const Layout& layout;
  size_t element_size;

  struct Task {
    int64_t image;
    Range rows, columns;
  };

  static constexpr int64_t kBytes = 192 << 10, kMostBytes = 1 << 20, kColumns = 128, kLeastTasks = 16;

  int64_t columns() const { return layout.geo.out[2] < kColumns ? layout.geo.out[2] : kColumns; }

  int64_t rows() const {
    const Geometry& geo = layout.geo;
    const int64_t row_bytes = input_columns() * layout.inputs() * element_size;
    const int64_t fit = (kBytes / row_bytes - reach(1)) / geo.stride[1] + 1;
    const int64_t share = geo.batch * geo.out[1] / kLeastTasks;  // small batches are split for the threads' sake
    const int64_t most = fit < share ? fit : share;
    return most < 1 ? 1 : most < geo.out[1] ? most : geo.out[1];
  }

  int64_t input_rows() const { return (rows() - 1) * layout.geo.stride[1] + reach(1); }
  int64_t input_columns() const { return (columns() - 1) * layout.geo.stride[2] + reach(2); }
  int64_t tasks() const { return layout.geo.batch * down() * across(); }

  // Of at most two axes, not empty, and with blocks that stay in a cache: not those of a wide dilation.
  bool applies() const {
    const Geometry& geo = layout.geo;
    if (geo.in[0] != 1 || geo.kernel[0] != 1 || geo.out[0] != 1 || geo.padding[0] != 0) return false;
    if (layout.inputs() == 0 || layout.outputs() == 0 || geo.out_pixels() == 0) return false;
    if (input_rows() > kMostBytes || input_columns() > kMostBytes) return false;  // their product might overflow
    return input_rows() * input_columns() * layout.inputs() * static_cast<int64_t>(element_size) <= kMostBytes;
  }

  Task task(int64_t index) const {
    const int64_t row = index / across() % down() * rows(), column = index % across() * columns();
    const int64_t last_row = smaller(row + rows(), layout.geo.out[1]);
    const int64_t last_column = smaller(column + columns(), layout.geo.out[2]);
    return {index / across() / down(), {row, last_row}, {column, last_column}};
  }

 private:
  int64_t down() const { return ceil_div(layout.geo.out[1], rows()); }
  int64_t across() const { return ceil_div(layout.geo.out[2], columns()); }
  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  int64_t reach(int axis) const { return (layout.geo.kernel[axis] - 1) * layout.geo.dilation[axis] + 1; }
};

// A weight, or its gradient: [O, C, height, width] in any strides.
template <class T>
struct Filters {
  T* data;
  int64_t output, input, row, column;  // strides

  // What the input's gradient is convolved with, for 3x3.
  Filters transposed() const { return {data + 2 * (row + column), input, output, -row, -column}; }
};

template <class T>
struct DirectForward {
  const T* x;       // [N, C, P]
  const T* packed;  // weight and bias, by `pack`
  const T* alpha;   // one value
  T delta;
  bool relu;
  T* r;  // [N, G, P]
  T* y;  // [N, O, P]
  T* z;  // [N, O, P] u / d, or null
};

template <class T>
struct Direct {
  bool (*suits)(const Layout&);  // whether it can, and is the faster way
  int64_t (*pack_size)(const Layout&);
  void (*pack)(const Layout&, const Filters<const T>& weight, const T* bias, T* packed);
  // tasks: DirectTiling{layout, sizeof(T)}.tasks()
  void (*forward)(const Layout&, const DirectForward<T>&, Range tasks);
};

// For one group, and for as many as there are channels.
template <class T>
const Direct<T>& dense_loops();
template <class T>
const Direct<T>& depthwise_loops();

template <class T>
const Direct<T>& direct_loops(const Layout& layout) {
  return layout.geo.groups == 1 ? dense_loops<T>() : depthwise_loops<T>();
}

// How the depthwise backward is split: into blocks of the input's rows of one image, by the shape alone. Blocks are not
// small, for the rows of the output where two of them meet are opened twice.
struct DepthwiseBlocks {
  const Layout& layout;

  struct Task {
    int64_t image;
    Range rows;
  };

  static constexpr int64_t kLeastTasks = 16, kLeastRows = 8;

  int64_t tasks() const { return layout.geo.batch * down(); }
  Task task(int64_t index) const {
    const int64_t rows = layout.geo.in[1], block = index % down();
    return {index / down(), {block * rows / down(), (block + 1) * rows / down()}};
  }

 private:
  int64_t down() const {
    const int64_t rows = layout.geo.in[1], share = layout.geo.batch * rows / kLeastTasks;
    return ceil_div(rows, share < kLeastRows ? kLeastRows : share);
  }
};

// A backward pass that needs no convolution of ATen's.
template <class T>
struct AtOnce {
  bool (*suits)(const Layout&);
  // tasks: DepthwiseBlocks{layout}.tasks()
  void (*backward)(const Layout&, const DepthwiseBackward<T>&, Range tasks);
};

template <class T>
const AtOnce<T>& at_once();

const char* instruction_set();

}  // namespace ccn::cpu
