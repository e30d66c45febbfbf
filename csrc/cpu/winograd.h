// Winograd's F(2x2, 3x3) for 3x3 layers: four outputs from sixteen products a channel, where the plain sum takes 36
// (Lavin and Gray, 2016). Its rounding errors are smaller than those of a long plain sum, but they are relative to the
// largest numbers that a tile reads, and a compact convolution divides by the norm of each patch: see `judge`, and the sums
// that `pack` and `weigh` return, of all channels together. All tensors are channels_last.
#pragma once

#include "passes.h"

namespace ccn::cpu {

// Outputs (row, column) to (row + 1, column + 1) of one image, of the 4x4 inputs that they see together; or only one of
// them, of its own 3x3 inputs, with zeros for the others.
struct WinogradTile {
  int64_t image;
  int32_t row, column;
  int32_t only;  // 2 * row + column in the tile, or -1

  static constexpr int64_t kSize = 2;
  static constexpr int64_t kTerms = 16;  // of the transforms

  static int64_t down(const Layout& layout) { return ceil_div(layout.geo.out[1], kSize); }
  static int64_t across(const Layout& layout) { return ceil_div(layout.geo.out[2], kSize); }
  static int64_t of_image(const Layout& layout) { return down(layout) * across(layout); }
};

template <class T>
struct Winograd {
  bool (*suits)(const Layout&);  // whether it can, and is the faster way
  // uneven[tile]: whether a patch is so small beside the others of its tile, or one of them not finite, that each output
  // must be formed on its own. plane: [N, P] squares. tasks: images
  void (*judge)(const Layout&, const T* plane, bool* uneven, Range tasks);
  int64_t (*pack_size)(const Layout&);
  int64_t (*pack_tasks)(const Layout&);
  // energies[task][tap]: sum of the weight's squares
  void (*pack)(const Layout&, const Filters<const T>&, T* packed, double (*energies)[9], Range tasks);
  // tasks: tiles
  void (*forward)(const Layout&, const T* x, const T* packed, const WinogradTile*, const ForwardEpilogue<T>&, Range tasks);
  // of the transposed layout, whose input is e; its epilogue is that of the forward's input
  void (*input_gradient)(const Layout&, const T* e, const T* packed, const WinogradTile*, const InputEpilogue<T>&,
                         Range tasks);

  // energies[n][tap]: sum over the outputs of e's squares times those of the input that the tap sees. tasks: images
  void (*weigh)(const Layout&, const T* x_plane, const T* e_plane, double (*energies)[9], Range tasks);
  // The weight's gradient: inputs and e transformed, `tiles` at a time; sums of their products, laid out as packed weights
  // are; and the sums transformed back. tasks: tiles of the chunk; then terms times pack_tasks; then inputs
  int64_t (*transformed_size)(int64_t tiles, int64_t channels);
  void (*transform)(const Layout&, const T* x, const T* e, const WinogradTile*, int64_t tiles, T* inputs, T* outputs,
                    Range tasks);
  void (*accumulate)(const Layout&, const T* inputs, const T* outputs, int64_t tiles, bool first, T* sums, Range tasks);
  void (*weight_gradient)(const Layout&, const T* sums, bool add, const Filters<T>&, Range tasks);
};

template <class T>
const Winograd<T>& winograd_loops();

}  // namespace ccn::cpu
