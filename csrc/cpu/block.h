// A padded copy of the part of the input that a block of the output reads: what direct.cpp and depthwise.cpp share.
// Included once per instruction set; no standard-library templates here either (see passes.cpp).
#pragma once

#include <new>

#include "simd.h"

namespace ccn::cpu::CCN_ISA {
namespace {

// The copy is [planes, rows, pitch], its pixels `depth` numbers wide.
template <class T>
struct Image {
  const Layout& layout;
  DirectTiling tiling;
  int64_t planes, depth, rows, columns, pitch;
  T* data;

  explicit Image(const Layout& of) : layout(of), tiling{of, sizeof(T)} {
    planes = layout.channels_last ? 1 : layout.inputs();
    depth = layout.channels_last ? layout.inputs() : 1;
    rows = tiling.input_rows();
    columns = tiling.input_columns();
    pitch = columns * depth + (layout.channels_last ? 0 : kLanes<T>);
    data = static_cast<T*>(::operator new(planes * rows * pitch * sizeof(T)));
  }
  Image(const Image&) = delete;
  ~Image() { ::operator delete(data); }

  // From a patch's first number to the one of its tap and channel.
  int64_t offset(int64_t tap, int64_t channel) const {
    const Geometry& geo = layout.geo;
    const int64_t row = tap / geo.kernel[2] * geo.dilation[1], column = tap % geo.kernel[2] * geo.dilation[2];
    return row * pitch + column * depth + channel * (layout.channels_last ? 1 : rows * pitch);
  }
};

// Copies image `n`, from input coordinate (top, left) on, into the image.
template <class T>
void load(const Image<T>& image, const T* x, int64_t n, int64_t top, int64_t left) {
  const Geometry& geo = image.layout.geo;
  const int64_t first = min(max(-left, 0), image.columns), last = max(min(geo.in[2] - left, image.columns), first);
  for (int64_t plane = 0; plane < image.planes; ++plane) {
    for (int64_t row = 0; row < image.rows; ++row) {
      T* out = image.data + (plane * image.rows + row) * image.pitch;
      const int64_t h = top + row;
      if (h < 0 || h >= geo.in[1]) {
        fill(out, image.pitch, T(0));
        continue;
      }
      const T* in = x + (((n * image.planes + plane) * geo.in[1] + h) * geo.in[2] + left) * image.depth;
      fill(out, first * image.depth, T(0));
      __builtin_memcpy(out + first * image.depth, in + first * image.depth, (last - first) * image.depth * sizeof(T));
      fill(out + last * image.depth, image.pitch - last * image.depth, T(0));
    }
  }
}

}  // namespace
}  // namespace ccn::cpu::CCN_ISA
