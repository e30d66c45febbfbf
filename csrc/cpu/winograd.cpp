// Winograd's convolution, a block of tiles at a time: their inputs transformed, one matrix product for each of the
// sixteen terms, the products transformed back, divided and stored. What a block needs stays in the caches.
//
// Compiled once per instruction set, as passes.cpp is; no standard-library templates here either.
#include "winograd.h"

#include "simd.h"

namespace ccn::cpu::CCN_ISA {
namespace {

constexpr int64_t kTerms = WinogradTile::kTerms;

// Rows of a power of two lie apart by what a cache maps onto itself; the gap breaks that.
template <class T>
int64_t pitch(int64_t channels) { return channels + kLanes<T>; }

template <class T>
struct Scratch {
  T* data;
  explicit Scratch(int64_t count) : data(static_cast<T*>(::operator new(count * sizeof(T)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { ::operator delete(data); }
};

template <class V, class T>
inline V& at(T* pointer) { return *reinterpret_cast<V*>(pointer); }
template <class V, class T>
inline const V& at(const T* pointer) { return *reinterpret_cast<const V*>(pointer); }

// The three transforms, of one axis: numbers `step` apart.
template <class V>
inline void input_axis(V* d, int step) {
  const V first = d[0] - d[2 * step], sum = d[step] + d[2 * step], difference = d[2 * step] - d[step];
  d[3 * step] = d[step] - d[3 * step];
  d[0] = first, d[step] = sum, d[2 * step] = difference;
}

template <class V>
inline void filter_axis(const V* g, int step, V* out, int out_step) {
  const V ends = g[0] + g[2 * step], half = V{} + 0.5f;
  out[0] = g[0];
  out[out_step] = half * (ends + g[step]);
  out[2 * out_step] = half * (ends - g[step]);
  out[3 * out_step] = g[2 * step];
}

template <class V>
inline void output_axis(const V* m, int step, V* out, int out_step) {
  out[0] = m[0] + m[step] + m[2 * step];
  out[out_step] = m[step] - m[2 * step] - m[3 * step];
}

// ... and their transposes, for the weight's gradient.
template <class V>
inline void output_axis_transposed(const V* e, int step, V* out, int out_step) {
  out[0] = e[0];
  out[out_step] = e[0] + e[step];
  out[2 * out_step] = e[0] - e[step];
  out[3 * out_step] = -e[step];
}

template <class V>
inline void filter_axis_transposed(const V* m, int step, V* out, int out_step) {
  const V half = V{} + 0.5f, sum = half * (m[step] + m[2 * step]);
  out[0] = m[0] + sum;
  out[out_step] = half * (m[step] - m[2 * step]);
  out[2 * out_step] = sum + m[3 * step];
}

// The `kSide` x `kSide` pixels of a tile, each a row of channels: those of the tensor itself in channels_last, copied
// together in contiguous tensors. Pixels outside are zeros.
template <class T, int kSide>
class Pixels {
 public:
  // Channels of [N, C, height, width]
  Pixels(const T* x, bool channels_last, int64_t channels, const int64_t (&extent)[kAxes])
      : x_(x), channels_last_(channels_last), channels_(channels), height_(extent[1]), width_(extent[2]),
        scratch_((kSide * kSide + 1) * pitch<T>(channels)), zeros_(scratch_.data + kSide * kSide * pitch<T>(channels)) {
    fill(zeros_, channels, T(0));
  }

  // From (row, column) of `image` on; what lies outside the square at (top, left) of `size` counts as zeros.
  void load(int64_t image, int64_t row, int64_t column, int64_t top, int64_t left, int64_t size) {
    const int64_t plane = height_ * width_;
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t h = row + i, w = column + j;
        const bool wanted = i >= top && i < top + size && j >= left && j < left + size;
        const bool inside = wanted && h >= 0 && h < height_ && w >= 0 && w < width_;
        const int64_t pixel = image * plane * (channels_last_ ? 1 : channels_) + h * width_ + w;
        of[kSide * i + j] = inside ? x_ + pixel * (channels_last_ ? channels_ : 1) : nullptr;
      }
    }
    if (!channels_last_) gather(plane);
    for (const T*& pixel : of) pixel = pixel ? pixel : zeros_;
  }

  const T* of[kSide * kSide];

 private:
  // All pixels of a channel before the next: they share cache lines.
  void gather(int64_t plane) {
    for (int64_t c = 0; c < channels_; ++c) {
      for (int64_t k = 0; k < kSide * kSide; ++k) {
        scratch_.data[k * pitch<T>(channels_) + c] = of[k] ? of[k][c * plane] : T(0);
      }
    }
    for (int64_t k = 0; k < kSide * kSide; ++k) of[k] = scratch_.data + k * pitch<T>(channels_);
  }

  const T* x_;
  const bool channels_last_;
  const int64_t channels_, height_, width_;
  Scratch<T> scratch_;
  T* zeros_;
};

// out[term * step + channel], for the channels of one tile
template <class T>
void transform_inputs(const Pixels<T, 4>& pixels, int64_t channels, T* out, int64_t step) {
  for (int64_t c = 0; c < channels; c += kWidth<T>) {
    Vector<T> d[kTerms];
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) d[k] = at<Vector<T>>(pixels.of[k] + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) input_axis(d + i, 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) input_axis(d + 4 * i, 1);
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) at<Vector<T>>(out + k * step + c) = d[k];
  }
}

template <class T>
void transform_gradients(const Pixels<T, 2>& pixels, int64_t channels, T* out, int64_t step) {
  for (int64_t c = 0; c < channels; c += kWidth<T>) {
    Vector<T> e[4], rows[8], d[kTerms];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) e[k] = at<Vector<T>>(pixels.of[k] + c);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) output_axis_transposed(e + j, 2, rows + j, 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) output_axis_transposed(rows + 2 * i, 1, d + 4 * i, 1);
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) at<Vector<T>>(out + k * step + c) = d[k];
  }
}

template <class T>
void load_inputs(Pixels<T, 4>& pixels, const Layout& layout, const WinogradTile& tile) {
  const int64_t row = input_coordinate(layout.geo, 1, tile.row, 0), column = input_coordinate(layout.geo, 2, tile.column, 0);
  if (tile.only < 0) return pixels.load(tile.image, row, column, 0, 0, 4);
  pixels.load(tile.image, row, column, tile.only / 2, tile.only % 2, 3);
}

// m[s, lanes] = sum over the channels of v[s, channel] * u[channel, lanes], for kCount rows
template <class T, int kCount>
void multiply(const T* v, int64_t v_pitch, const T* u, int64_t channels, T* m, int64_t m_pitch) {
  const T* rows[kCount];
  for (int s = 0; s < kCount; ++s) rows[s] = v + s * v_pitch;
  Sums<T, kCount> sums;
  for (int64_t c = 0; c < channels; ++c, u += kLanes<T>) sums.add(u, [&](int s) { return rows[s][c]; });
#pragma GCC unroll 16
  for (int s = 0; s < kCount; ++s) store(m + s * m_pitch, sums.of[s], kLanes<T>);
}

// sums[s, lanes] (+)= sum over the tiles of v[tile, s] * e[tile, lanes]
template <class T, int kCount>
void accumulate_products(const T* v, int64_t v_pitch, const T* e, int64_t e_pitch, int64_t tiles, bool first, T* out,
                         int64_t out_pitch) {
  Sums<T, kCount> sums;
  for (int s = 0; s < kCount && !first; ++s) {
    for (int i = 0; i < kVectors; ++i) sums.of[s][i] = at<Vector<T>>(out + s * out_pitch + i * kWidth<T>);
  }
  for (int64_t t = 0; t < tiles; ++t, v += v_pitch, e += e_pitch) sums.add(e, [&](int s) { return v[s]; });
#pragma GCC unroll 16
  for (int s = 0; s < kCount; ++s) store(out + s * out_pitch, sums.of[s], kLanes<T>);
}

template <class T, int kCount = kScalars, class... Args>
void multiply(int count, const Args&... args) {
  if (count == kCount) return multiply<T, kCount>(args...);
  if constexpr (kCount > 1) multiply<T, kCount - 1>(count, args...);
}

template <class T, int kCount = kScalars, class... Args>
void accumulate_products(int count, const Args&... args) {
  if (count == kCount) return accumulate_products<T, kCount>(args...);
  if constexpr (kCount > 1) accumulate_products<T, kCount - 1>(count, args...);
}

// What is done to u at `pixel` (of all images), at offset `to` of the output, channel `o`: a number, or a vector of them.
template <class T>
struct Divide {
  const ForwardEpilogue<T>& args;

  template <class V>
  void operator()(const V& u, int64_t pixel, int64_t to, int64_t o) const {
    const V quotient = u * args.inverse_divisor[pixel], zero = {};
    const V value = *args.alpha * quotient + at<V>(args.bias + o);
    if (args.z) at<V>(args.z + to) = quotient;
    at<V>(args.y + to) = args.relu ? (value < zero ? zero : value) : value;  // NaN passes, as in torch.relu
  }
};

template <class T>
struct Subtract {
  const InputEpilogue<T>& args;

  template <class V>
  void operator()(const V& u, int64_t pixel, int64_t to, int64_t) const {
    at<V>(args.dx + to) = *args.alpha * u - at<V>(args.x + to) * args.box[pixel];
  }
};

// The outputs of one tile, from its products m[term * step + channel]. `scratch`: [4, channels]
template <class T, class Finish>
void write_outputs(const Layout& layout, const WinogradTile& tile, const T* m, int64_t step, const Finish& finish,
                   T* scratch) {
  const Geometry& geo = layout.geo;
  const int64_t channels = geo.out_channels, pixels = geo.out_pixels();
  const int64_t first = tile.row * geo.out[2] + tile.column;
  const bool below = tile.row + 1 < geo.out[1], beside = tile.column + 1 < geo.out[2];
  const bool there[4] = {true, beside, below, below && beside};
  const int64_t place[4] = {first, first + 1, first + geo.out[2], first + geo.out[2] + 1};
  const auto wanted = [&](int k) { return tile.only < 0 ? there[k] : tile.only == k; };
  for (int64_t o = 0; o < channels; o += kWidth<T>) {
    Vector<T> terms[kTerms], rows[8], u[4];
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) terms[k] = at<Vector<T>>(m + k * step + o);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) output_axis(terms + j, 4, rows + j, 4);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) output_axis(rows + 4 * i, 1, u + 2 * i, 1);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      if (!layout.channels_last) {
        at<Vector<T>>(scratch + k * channels + o) = u[k];
      } else if (wanted(k)) {
        const int64_t pixel = tile.image * pixels + place[k];
        finish(u[k], pixel, pixel * channels + o, o);
      }
    }
  }
  if (layout.channels_last) return;
  for (int64_t o = 0; o < channels; ++o) {
    for (int k = 0; k < 4; ++k) {
      if (!wanted(k)) continue;
      finish(scratch[k * channels + o], tile.image * pixels + place[k], (tile.image * channels + o) * pixels + place[k], o);
    }
  }
}

// How many tiles are worked on together: enough to pay for reading all weights, few enough for the caches.
template <class T>
int64_t block_size(const Layout& layout) {
  constexpr int64_t kBytes = 2 << 20;
  const int64_t fit = kBytes / (kTerms * (layout.inputs() + layout.outputs()) * static_cast<int64_t>(sizeof(T)));
  return padded(max(24, min(fit, 96)), kScalars);
}

template <class T, class Finish>
void convolve(const Layout& layout, const T* x, const T* packed, const WinogradTile* tiles, const Finish& finish,
              Range tasks) {
  const int64_t inputs = layout.inputs(), outputs = layout.outputs(), most = min(block_size<T>(layout), tasks.end - tasks.begin);
  const int64_t v_pitch = pitch<T>(inputs), m_pitch = pitch<T>(outputs);
  const int64_t v_term = most * v_pitch, m_term = most * m_pitch;
  Scratch<T> v(kTerms * v_term), m(kTerms * m_term), pixel(4 * outputs);
  Pixels<T, 4> pixels(x, layout.channels_last, inputs, layout.geo.in);
  const Tiles blocks(tasks.end - tasks.begin, most);
  for (int64_t index = 0; index < blocks.count; ++index) {
    const Span block = blocks[index];
    const WinogradTile* tile = tiles + tasks.begin + block.begin;
    for (int64_t t = 0; t < block.count(); ++t) {
      load_inputs(pixels, layout, tile[t]);
      transform_inputs(pixels, inputs, v.data + t * v_pitch, v_term);
    }
    const Tiles groups(block.count());
    const T* u = packed;
    for (int64_t term = 0; term < kTerms; ++term) {
      for (int64_t o = 0; o < outputs; o += kLanes<T>, u += inputs * kLanes<T>) {
        for (int64_t group = 0; group < groups.count; ++group) {
          const Span span = groups[group];
          multiply<T>(span.count(), static_cast<const T*>(v.data + term * v_term + span.begin * v_pitch), v_pitch, u, inputs,
                      m.data + term * m_term + span.begin * m_pitch + o, m_pitch);
        }
      }
    }
    for (int64_t t = 0; t < block.count(); ++t) {
      write_outputs<T>(layout, tile[t], m.data + t * m_pitch, m_term, finish, pixel.data);
    }
  }
}

template <class T>
void forward(const Layout& layout, const T* x, const T* packed, const WinogradTile* tiles, const ForwardEpilogue<T>& args,
             Range tasks) {
  convolve(layout, x, packed, tiles, Divide<T>{args}, tasks);
}

template <class T>
void input_gradient(const Layout& layout, const T* e, const T* packed, const WinogradTile* tiles,
                    const InputEpilogue<T>& args, Range tasks) {
  convolve(layout, e, packed, tiles, Subtract<T>{args}, tasks);
}

// Squares of the 4x4 inputs of the tile at (row, column) of the output.
template <class T>
void load_squares(const Geometry& geo, const T* plane, int64_t row, int64_t column, T (&squares)[4][4]) {
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t h = input_coordinate(geo, 1, row, i), w = input_coordinate(geo, 2, column, j);
      const bool inside = h >= 0 && h < geo.in[1] && w >= 0 && w < geo.in[2];
      squares[i][j] = inside ? plane[h * geo.in[2] + w] : T(0);
    }
  }
}

// Errors are some eps * |W| * the norm of the tile; they must be small beside each patch's own norm.
template <class T>
bool is_uneven(const T (&squares)[4][4], int64_t rows, int64_t columns) {
  constexpr T kMost = 32;  // the tile's squares over those of its least patch
  T sides[4][2], all = 0, least = 0;
  for (int i = 0; i < 4; ++i) {
    const T middle = squares[i][1] + squares[i][2];
    sides[i][0] = squares[i][0] + middle;
    sides[i][1] = middle + squares[i][3];
    all += sides[i][0] + squares[i][3];
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const T patch = sides[i][j] + sides[i + 1][j] + sides[i + 2][j];
      least = i + j == 0 || patch < least ? patch : least;
    }
  }
  return all != 0 && !(all < kMost * least);  // NaN and infinity are uneven
}

template <class T>
void judge(const Layout& layout, const T* plane, bool* uneven, Range tasks) {
  const Geometry& geo = layout.geo;
  uneven += tasks.begin * WinogradTile::of_image(layout);
  for (int64_t n = tasks.begin; n < tasks.end; ++n) {
    for (int64_t row = 0; row < geo.out[1]; row += 2) {
      for (int64_t column = 0; column < geo.out[2]; column += 2) {
        T squares[4][4];
        load_squares(geo, plane + n * geo.in_pixels(), row, column, squares);
        *uneven++ = is_uneven(squares, min(2, geo.out[1] - row), min(2, geo.out[2] - column));
      }
    }
  }
}

// [term, lanes of outputs, C, lane]
template <class T>
int64_t pack_size(const Layout& layout) { return kTerms * layout.inputs() * layout.outputs(); }
template <class T>
int64_t pack_tasks(const Layout& layout) { return layout.outputs() / kLanes<T>; }

template <class T>
void pack(const Layout& layout, const Filters<const T>& filters, T* packed, Range tasks) {
  const int64_t inputs = layout.inputs(), term = inputs * layout.outputs();
  for (int64_t panel = tasks.begin; panel < tasks.end; ++panel) {
    T* out = packed + panel * inputs * kLanes<T>;
    for (int64_t c = 0; c < inputs; ++c, out += kLanes<T>) {
      T taps[9][kLanes<T>];
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        const T* from = filters.data + (panel * kLanes<T> + lane) * filters.output + c * filters.input;
        for (int tap = 0; tap < 9; ++tap) taps[tap][lane] = from[tap / 3 * filters.row + tap % 3 * filters.column];
      }
      for (int64_t lane = 0; lane < kLanes<T>; lane += kWidth<T>) {
        Vector<T> g[9], rows[12], u[kTerms];
        for (int tap = 0; tap < 9; ++tap) g[tap] = at<Vector<T>>(taps[tap] + lane);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) filter_axis(g + j, 3, rows + j, 3);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) filter_axis(rows + 3 * i, 1, u + 4 * i, 1);
#pragma GCC unroll 16
        for (int k = 0; k < kTerms; ++k) at<Vector<T>>(out + k * term + lane) = u[k];
      }
    }
  }
}

template <class T>
int64_t transformed_size(int64_t tiles, int64_t channels) { return kTerms * tiles * pitch<T>(channels); }

template <class T>
void transform(const Layout& layout, const T* x, const T* e, const WinogradTile* tiles, int64_t count, T* inputs,
               T* outputs, Range tasks) {
  const int64_t x_pitch = pitch<T>(layout.inputs()), e_pitch = pitch<T>(layout.outputs());
  Pixels<T, 4> patch(x, layout.channels_last, layout.inputs(), layout.geo.in);
  Pixels<T, 2> tile(e, layout.channels_last, layout.outputs(), layout.geo.out);
  for (int64_t t = tasks.begin; t < tasks.end; ++t) {
    load_inputs(patch, layout, tiles[t]);
    transform_inputs(patch, layout.inputs(), inputs + t * x_pitch, count * x_pitch);
    tile.load(tiles[t].image, tiles[t].row, tiles[t].column, 0, 0, 2);
    transform_gradients(tile, layout.outputs(), outputs + t * e_pitch, count * e_pitch);
  }
}

template <class T>
void accumulate(const Layout& layout, const T* inputs, const T* outputs, int64_t tiles, bool first, T* sums, Range tasks) {
  const int64_t in = layout.inputs(), out = layout.outputs(), panels = pack_tasks<T>(layout);
  const int64_t x_pitch = pitch<T>(in), e_pitch = pitch<T>(out);
  const Tiles groups(in);
  for (int64_t task = tasks.begin; task < tasks.end; ++task) {
    const int64_t term = task / panels, o = task % panels * kLanes<T>;
    const T* e = outputs + term * tiles * e_pitch + o;
    for (int64_t group = 0; group < groups.count; ++group) {
      const Span span = groups[group];
      accumulate_products<T>(span.count(), inputs + term * tiles * x_pitch + span.begin, x_pitch, e, e_pitch, tiles, first,
                             sums + (term * in + span.begin) * out + o, out);
    }
  }
}

template <class T>
void weight_gradient(const Layout& layout, const T* sums, const Filters<T>& filters, Range tasks) {
  const int64_t out = layout.outputs(), term = layout.inputs() * out;
  for (int64_t c = tasks.begin; c < tasks.end; ++c) {
    for (int64_t o = 0; o < out; o += kWidth<T>) {
      Vector<T> m[kTerms], rows[12], g[9];
#pragma GCC unroll 16
      for (int k = 0; k < kTerms; ++k) m[k] = at<Vector<T>>(sums + k * term + c * out + o);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) filter_axis_transposed(m + j, 4, rows + j, 4);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) filter_axis_transposed(rows + 4 * i, 1, g + 3 * i, 1);
      for (int lane = 0; lane < kWidth<T>; ++lane) {
        T* to = filters.data + (o + lane) * filters.output + c * filters.input;
        for (int tap = 0; tap < 9; ++tap) to[tap / 3 * filters.row + tap % 3 * filters.column] = g[tap][lane];
      }
    }
  }
}

// Measured against ATen's convolution and our own other one; see benchmarks/PERFORMANCE.md.
template <class T>
bool suits(const Layout& layout) {
  const Geometry& geo = layout.geo;
  if (geo.groups != 1 || geo.in[0] != 1 || geo.kernel[0] != 1 || geo.out[0] != 1 || geo.padding[0] != 0) return false;
  for (int axis = 1; axis < kAxes; ++axis) {
    if (geo.kernel[axis] != 3 || geo.stride[axis] != 1 || geo.dilation[axis] != 1 || geo.padding[axis] > 2) return false;
  }
  if (geo.in_channels % kLanes<T> != 0 || geo.out_channels % kLanes<T> != 0) return false;
  return geo.in_channels > 0 && geo.out_channels > 0 && geo.out_pixels() > 0;
}

template <class T>
constexpr Winograd<T> table() {
  return {suits<T>,   judge<T>,          pack_size<T>,     pack_tasks<T>, pack<T>,          forward<T>,
          input_gradient<T>, transformed_size<T>, transform<T>, accumulate<T>, weight_gradient<T>};
}

}  // namespace

extern const Winograd<float> kWinogradFloat = table<float>();
extern const Winograd<double> kWinogradDouble = table<double>();

}  // namespace ccn::cpu::CCN_ISA
