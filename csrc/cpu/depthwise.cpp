// The depthwise convolution of our own: a channel's patch is divided by its own norm, so both sums are formed at once.
// Compiled once per instruction set, as passes.cpp is; no standard-library templates here either.
#include "block.h"

namespace ccn::cpu::CCN_ISA {
namespace {

// A row of outputs before the division: sums of products and of squares.
template <class T>
struct Row {
  T *products, *squares;
};

// sums[i] over the taps, for kLanes numbers: those of `input` and of `weights` lie `weight_step` (channels_last), or
// nothing (contiguous: one weight for all of them), apart.
template <class T, bool kChannelsLast>
inline void sum(const T* input, const int64_t* offsets, const T* weights, int64_t weight_step, int64_t taps,
                const Row<T>& row, int64_t at) {
  Vector<T> products[kVectors] = {}, squares[kVectors] = {};
  for (int64_t tap = 0; tap < taps; ++tap, weights += weight_step) {
    const auto* values = reinterpret_cast<const Vector<T>*>(input + offsets[tap]);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vector<T> value = values[v];
      products[v] += value * (kChannelsLast ? reinterpret_cast<const Vector<T>*>(weights)[v] : Vector<T>{} + *weights);
      squares[v] += value * value;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    reinterpret_cast<Vector<T>*>(row.products + at)[v] = products[v];
    reinterpret_cast<Vector<T>*>(row.squares + at)[v] = squares[v];
  }
}

// y, z and r, which takes the place of the squares, of `count` numbers with the same bias (step 0) or each its own (1).
template <class T, int kBiasStep>
inline void finish(const Row<T>& row, int64_t count, const T* bias, const DirectForward<T>& args, T* y, T* z) {
  const T alpha = *args.alpha, delta = args.delta;
  const bool relu = args.relu;
  T *products = row.products, *squares = row.squares;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T norm = std::sqrt(squares[i]);
    const T quotient = products[i] * reciprocal_divisor(norm, delta);
    const T value = alpha * quotient + bias[kBiasStep * i];
    squares[i] = norm;
    products[i] = quotient;
    y[i] = activate(value, relu);
  }
  if (z) __builtin_memcpy(z, products, count * sizeof(T));
}

// r is [channels, pixels], whatever the layout.
template <class T>
void transpose(const T* norms, int64_t pixels, int64_t channels, T* r, int64_t stride) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; ++p) r[c * stride + p] = norms[p * channels + c];
  }
}

template <class T>
struct Depthwise {
  const Image<T>& image;
  const DirectForward<T>& args;
  const int64_t* offsets;  // [taps]
  Row<T> row;
  int64_t taps, channels, pixels;

  // `width` outputs of the block's row `row_index`, which begin at pixel `at` of image `n`
  void channels_last(int64_t row_index, int64_t width, int64_t n, int64_t at) const {
    const Geometry& geo = image.layout.geo;
    const T* bias = args.packed + taps * channels;
    for (int64_t w = 0; w < width; ++w) {
      const T* input = image.data + row_index * geo.stride[1] * image.pitch + w * geo.stride[2] * channels;
      for (int64_t c = 0; c < channels; c += kLanes<T>) {
        sum<T, true>(input + c, offsets, args.packed + c, channels, taps, row, w * channels + c);
      }
      const int64_t to = (n * pixels + at + w) * channels;
      finish<T, 1>({row.products + w * channels, row.squares + w * channels}, channels, bias, args, args.y + to,
                   args.z ? args.z + to : nullptr);
    }
    transpose(row.squares, width, channels, args.r + n * channels * pixels + at, pixels);
  }

  void contiguous(int64_t row_index, int64_t width, int64_t n, int64_t at) const {
    const T* bias = args.packed + taps * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const T* input = image.data + (c * image.rows + row_index * image.layout.geo.stride[1]) * image.pitch;
      for (int64_t w = 0; w < width; w += kLanes<T>) {
        sum<T, false>(input + w, offsets, args.packed + c * taps, 1, taps, row, w);
      }
      const int64_t to = (n * channels + c) * pixels + at;
      finish<T, 0>(row, width, bias + c, args, args.y + to, args.z ? args.z + to : nullptr);
      __builtin_memcpy(args.r + to, row.squares, width * sizeof(T));
    }
  }
};

template <class T>
void depthwise_forward(const Layout& layout, const DirectForward<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const Image<T> image(layout);
  const int64_t taps = geo.kernel[1] * geo.kernel[2], channels = layout.inputs();
  const int64_t numbers = image.tiling.columns() * image.depth + kLanes<T>;
  int64_t* offsets = static_cast<int64_t*>(::operator new(taps * sizeof(int64_t) + 2 * numbers * sizeof(T)));
  for (int64_t tap = 0; tap < taps; ++tap) offsets[tap] = image.offset(tap, 0);
  T* scratch = reinterpret_cast<T*>(offsets + taps);
  const Depthwise<T> rows{image, args, offsets, {scratch, scratch + numbers}, taps, channels, geo.out_pixels()};
  for (int64_t index = tasks.begin; index < tasks.end; ++index) {
    const auto task = image.tiling.task(index);
    const int64_t width = task.columns.end - task.columns.begin;
    load(image, args.x, task.image, input_coordinate(geo, 1, task.rows.begin, 0),
         input_coordinate(geo, 2, task.columns.begin, 0));
    for (int64_t oh = task.rows.begin; oh < task.rows.end; ++oh) {
      const int64_t at = oh * geo.out[2] + task.columns.begin, row = oh - task.rows.begin;
      if (layout.channels_last) {
        rows.channels_last(row, width, task.image, at);
      } else {
        rows.contiguous(row, width, task.image, at);
      }
    }
  }
  ::operator delete(offsets);
}

// Channels_last [taps, C], contiguous [C, taps]; then the bias.
template <class T>
void depthwise_pack(const Layout& layout, const Filters<const T>& weight, const T* bias, T* packed) {
  const Geometry& geo = layout.geo;
  const int64_t taps = geo.kernel[1] * geo.kernel[2], channels = layout.inputs();
  for (int64_t tap = 0; tap < taps; ++tap) {
    const T* from = weight.data + tap / geo.kernel[2] * weight.row + tap % geo.kernel[2] * weight.column;
    T* to = packed + tap * (layout.channels_last ? channels : 1);
    const int64_t step = layout.channels_last ? 1 : taps;
    for (int64_t c = 0; c < channels; ++c) to[c * step] = from[c * weight.output];
  }
  for (int64_t c = 0; c < channels; ++c) packed[taps * channels + c] = bias[c];
}

template <class T>
int64_t depthwise_pack_size(const Layout& layout) {
  return layout.inputs() * (layout.geo.kernel[1] * layout.geo.kernel[2] + 1);
}

template <class T>
bool depthwise_suits(const Layout& layout) {
  const Geometry& geo = layout.geo;
  if (geo.in_channels != 1 || geo.out_channels != 1 || !DirectTiling{layout, sizeof(T)}.applies()) return false;
  return layout.channels_last ? geo.groups % kLanes<T> == 0 : geo.stride[2] == 1;
}

}  // namespace

extern const Direct<float> kDepthwiseFloat = {depthwise_suits<float>, depthwise_pack_size<float>, depthwise_pack,
                                              depthwise_forward};
extern const Direct<double> kDepthwiseDouble = {depthwise_suits<double>, depthwise_pack_size<double>, depthwise_pack,
                                                depthwise_forward};

}  // namespace ccn::cpu::CCN_ISA
