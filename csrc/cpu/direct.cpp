// A convolution of our own, for layers whose weights stay in a core's cache. A tile of the output is summed in registers
// and divided by its patch norms before it is stored: the output crosses memory once, where ATen's convolution would
// write it for us to read and to write again. In channels_last the scalars of a tile are pixels and its lanes outputs, in
// contiguous tensors the scalars are outputs and the lanes pixels of a row.
//
// Compiled once per instruction set, as passes.cpp is; no standard-library templates here either.
#include "block.h"

namespace ccn::cpu::CCN_ISA {
namespace {

// A block of the output's rows and columns.
template <class T>
struct Block : Image<T> {
  int64_t patch;
  T *squares, *norm, *inverse;  // [rows, columns] of the input; of the output, twice
  int32_t* offsets;             // [patch] from a patch's first number to each, in the order of the packed weights

  explicit Block(const Layout& layout) : Image<T>(layout) {
    const Geometry& geo = layout.geo;
    const int64_t inputs = this->rows * this->columns;
    const int64_t outputs = this->tiling.rows() * this->tiling.columns() + kLanes<T>;
    patch = geo.in_channels * geo.kernel[1] * geo.kernel[2];
    squares = static_cast<T*>(::operator new((inputs + 2 * outputs) * sizeof(T) + patch * sizeof(int32_t)));
    norm = squares + inputs;
    inverse = norm + outputs;
    offsets = reinterpret_cast<int32_t*>(inverse + outputs);
    for (int64_t k = 0; k < patch; ++k) offsets[k] = this->offset(k / geo.in_channels, k % geo.in_channels);
  }
  ~Block() { ::operator delete(squares); }
};

// squares[row, column] = sum over channels
template <class T>
void square(const Block<T>& block) {
  for (int64_t row = 0; row < block.rows; ++row) {
    T* out = block.squares + row * block.columns;
    if (block.layout.channels_last) {
      const T* in = block.data + row * block.pitch;
      for (int64_t column = 0; column < block.columns; ++column, in += block.depth) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < block.depth; ++c) sum += in[c] * in[c];
        out[column] = sum;
      }
      continue;
    }
    fill(out, block.columns, T(0));
    for (int64_t plane = 0; plane < block.planes; ++plane) {
      const T* in = block.data + (plane * block.rows + row) * block.pitch;
#pragma omp simd
      for (int64_t column = 0; column < block.columns; ++column) out[column] += in[column] * in[column];
    }
  }
}

// The patch norms and the reciprocal divisors of a block's outputs, [rows, columns].
template <class T>
void norms(const Block<T>& block, int64_t rows, int64_t columns, T delta) {
  const Geometry& geo = block.layout.geo;
  const int64_t stride = geo.stride[2];
  for (int64_t row = 0; row < rows; ++row) {
    T *norm = block.norm + row * columns, *inverse = block.inverse + row * columns;
    fill(norm, columns, T(0));
    for (int64_t kh = 0; kh < geo.kernel[1]; ++kh) {
      const T* squares = block.squares + (row * geo.stride[1] + kh * geo.dilation[1]) * block.columns;
      for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) {
        const T* tap = squares + kw * geo.dilation[2];
#pragma omp simd
        for (int64_t w = 0; w < columns; ++w) norm[w] += tap[w * stride];
      }
    }
#pragma omp simd
    for (int64_t w = 0; w < columns; ++w) {
      norm[w] = std::sqrt(norm[w]);
      inverse[w] = reciprocal_divisor(norm[w], delta);
    }
  }
}

template <class T>
inline Vector<T> finished(Vector<T> quotient, T alpha, Vector<T> bias, bool relu) {
  const Vector<T> value = alpha * quotient + bias, zero = {};
  return relu ? (value < zero ? zero : value) : value;  // NaN passes, as in torch.relu
}

// All outputs of `kCount` pixels, channels_last. `pixels`: where their patches begin; inverse, y and z begin with the
// first of them.
template <class T, int kCount>
void tile_of_pixels(const Block<T>& block, const DirectForward<T>& args, const T* const* pixels, const T* inverse, T* y,
                    T* z) {
  const int32_t* end = block.offsets + block.patch;
  const int64_t outputs = block.layout.geo.out_channels;
  const T *packed = args.packed, *bias = args.packed + padded(outputs, kLanes<T>) * block.patch;
  const T alpha = *args.alpha;
  const T* pixel[kCount];
  for (int s = 0; s < kCount; ++s) pixel[s] = pixels[s];
  for (int64_t o = 0; o < outputs; o += kLanes<T>) {
    Sums<T, kCount> sums;
    for (const int32_t* at = block.offsets; at < end; ++at, packed += kLanes<T>) {
      sums.add(packed, [&](int s) { return pixel[s][*at]; });
    }
    const auto* biases = reinterpret_cast<const Vector<T>*>(bias + o);
#pragma GCC unroll 16
    for (int s = 0; s < kCount; ++s) {
      Vector<T> quotients[kVectors], values[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        quotients[v] = sums.of[s][v] * inverse[s];
        values[v] = finished<T>(quotients[v], alpha, biases[v], args.relu);
      }
      store(y + s * outputs + o, values, outputs - o);
      if (z) store(z + s * outputs + o, quotients, outputs - o);
    }
  }
}

// `kCount` outputs of up to kLanes pixels of a row, contiguous. `weights`: theirs, packed; `inverse`, y and z begin with
// the first pixel and the first output.
template <class T, int kCount>
void tile_of_outputs(const Block<T>& block, const DirectForward<T>& args, const T* weights, const T* bias,
                     const T* image, const T* inverse, int64_t lanes, T* y, T* z) {
  const int64_t pixels = block.layout.geo.out_pixels();
  const T alpha = *args.alpha;
  Sums<T, kCount> sums;
  for (const int32_t *at = block.offsets, *end = at + block.patch; at < end; ++at, weights += kCount) {
    sums.add(image + *at, [&](int s) { return weights[s]; });
  }
  const auto* inverses = reinterpret_cast<const Vector<T>*>(inverse);
#pragma GCC unroll 16
  for (int s = 0; s < kCount; ++s) {
    Vector<T> quotients[kVectors], values[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      quotients[v] = sums.of[s][v] * inverses[v];
      values[v] = finished<T>(quotients[v], alpha, Vector<T>{} + bias[s], args.relu);
    }
    store(y + s * pixels, values, lanes);
    if (z) store(z + s * pixels, quotients, lanes);
  }
}

template <class T, int kCount = kScalars, class... Args>
void tile_of_pixels(int count, const Args&... args) {
  if (count == kCount) return tile_of_pixels<T, kCount>(args...);
  if constexpr (kCount > 1) tile_of_pixels<T, kCount - 1>(count, args...);
}

template <class T, int kCount = kScalars, class... Args>
void tile_of_outputs(int count, const Args&... args) {
  if (count == kCount) return tile_of_outputs<T, kCount>(args...);
  if constexpr (kCount > 1) tile_of_outputs<T, kCount - 1>(count, args...);
}

// Rows of a block that follow each other in y, each `columns` pixels long; `at` is the first pixel's place in y.
template <class T>
void strip_channels_last(const Block<T>& block, const DirectForward<T>& args, int64_t first, int64_t rows,
                         int64_t columns, int64_t at) {
  const Geometry& geo = block.layout.geo;
  const int64_t count = rows * columns, down = geo.stride[1] * block.pitch, across = geo.stride[2] * block.depth;
  const T *row = block.data + first * down, *pixel = row, *end = row + columns * across;
  const Tiles tiles(count);
  for (int64_t index = 0; index < tiles.count; ++index) {
    const Span span = tiles[index];
    const T* pixels[kScalars];
    for (int s = 0; s < span.count(); ++s) {
      pixels[s] = pixel;
      pixel += across;
      if (pixel != end) continue;
      pixel = row += down;
      end += down;
    }
    const int64_t to = (at + span.begin) * geo.out_channels;
    tile_of_pixels<T>(span.count(), block, args, static_cast<const T* const*>(pixels),
                      block.inverse + first * columns + span.begin, args.y + to, args.z ? args.z + to : nullptr);
  }
}

// One row of a block: `count` pixels; `at` is the first one's place among the pixels of image `n`.
template <class T>
void row_contiguous(const Block<T>& block, const DirectForward<T>& args, int64_t row, int64_t count, int64_t n,
                    int64_t at) {
  const Geometry& geo = block.layout.geo;
  const int64_t outputs = geo.out_channels;
  const Tiles tiles(outputs);
  const T* bias = args.packed + outputs * block.patch;
  for (int64_t next = 0; next < count; next += kLanes<T>) {
    const int64_t w = max(0, min(next, count - kLanes<T>));  // the last tile is computed whole, overlapping its neighbour
    const T* image = block.data + row * geo.stride[1] * block.pitch + w;
    for (int64_t index = 0; index < tiles.count; ++index) {
      const Span span = tiles[index];
      const int64_t to = (n * outputs + span.begin) * geo.out_pixels() + at + w;
      tile_of_outputs<T>(span.count(), block, args, args.packed + span.begin * block.patch, bias + span.begin, image,
                         block.inverse + row * count + w, count - w, args.y + to, args.z ? args.z + to : nullptr);
    }
  }
}

template <class T>
void direct_forward(const Layout& layout, const DirectForward<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const Block<T> block(layout);
  for (int64_t task = tasks.begin; task < tasks.end; ++task) {
    const auto [n, rows, columns] = block.tiling.task(task);
    const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
    load(block, args.x, n, input_coordinate(geo, 1, rows.begin, 0), input_coordinate(geo, 2, columns.begin, 0));
    square(block);
    norms(block, height, width, args.delta);
    const int64_t at = rows.begin * geo.out[2] + columns.begin, image = n * geo.out_pixels();
    const bool whole = layout.channels_last && width == geo.out[2];  // its rows follow each other in the output
    for (int64_t row = 0; row < height; ++row) {
      const int64_t to = at + row * geo.out[2];
      __builtin_memcpy(args.r + image + to, block.norm + row * width, width * sizeof(T));
      if (!layout.channels_last) {
        row_contiguous(block, args, row, width, n, to);
      } else if (!whole) {
        strip_channels_last(block, args, row, 1, width, image + to);
      }
    }
    if (whole) strip_channels_last(block, args, 0, height, width, image + at);
  }
}

// [O, C, taps] in the order in which tiles walk, [tiles, taps, C, tile], where tiles are of lanes (channels_last) or of
// scalars; then the bias, padded to lanes.
template <class T>
void direct_pack(const Layout& layout, const Filters<const T>& weight, const T* bias, T* packed) {
  const Geometry& geo = layout.geo;
  const int64_t taps = geo.kernel[1] * geo.kernel[2], outputs = geo.out_channels;
  const Tiles tiles(outputs);
  for (int64_t index = 0; index < (layout.channels_last ? ceil_div(outputs, kLanes<T>) : tiles.count); ++index) {
    const Span span = layout.channels_last ? Span{index * kLanes<T>, (index + 1) * kLanes<T>} : tiles[index];
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* from = weight.data + tap / geo.kernel[2] * weight.row + tap % geo.kernel[2] * weight.column;
      for (int64_t c = 0; c < geo.in_channels; ++c, from += weight.input) {
        for (int64_t o = span.begin; o < span.end; ++o) *packed++ = o < outputs ? from[o * weight.output] : T(0);
      }
    }
  }
  for (int64_t o = 0; o < padded(outputs, kLanes<T>); ++o) *packed++ = o < outputs ? bias[o] : T(0);
}

template <class T>
int64_t direct_pack_size(const Layout& layout) {
  const Geometry& geo = layout.geo;
  return padded(geo.out_channels, kLanes<T>) * (geo.in_channels * geo.kernel[1] * geo.kernel[2] + 1);
}

// Measured against ATen's convolution and our passes; see benchmarks/PERFORMANCE.md.
template <class T>
bool direct_suits(const Layout& layout) {
  constexpr int64_t kBytes = 320 << 10, kContiguousBytes = 48 << 10;
  const Geometry& geo = layout.geo;
  if (geo.groups != 1 || !DirectTiling{layout, sizeof(T)}.applies()) return false;
  if (!layout.channels_last && geo.stride[2] != 1) return false;  // lanes are loaded together
  const int64_t lanes = layout.channels_last ? geo.out_channels : geo.out[2];
  const bool linear = layout.channels_last && geo.in[2] == 1 && patches_are_pixels(geo);
  const bool full = linear ? lanes <= kLanes<T> : 10 * lanes >= 9 * padded(lanes, kLanes<T>);
  const int64_t bytes = direct_pack_size<T>(layout) * sizeof(T);
  return full && bytes <= (layout.channels_last ? kBytes : kContiguousBytes);
}

}  // namespace

extern const Direct<float> kDirectFloat = {direct_suits<float>, direct_pack_size<float>, direct_pack, direct_forward};
extern const Direct<double> kDirectDouble = {direct_suits<double>, direct_pack_size<double>, direct_pack, direct_forward};

}  // namespace ccn::cpu::CCN_ISA
