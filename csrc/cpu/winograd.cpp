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

// Packed weights are [term, lanes of outputs, C, lane], and a gap after each term.
template <class T>
int64_t packed_term(const Layout& layout) { return pitch<T>(layout.inputs() * layout.outputs()); }

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

// The pixels of a tile, each a row of channels; those outside are zeros.
template <class T, int kSide>
class Pixels {
 public:
  // Of [N, height, width, channels]
  Pixels(const T* x, int64_t channels, const int64_t (&extent)[kAxes])
      : x_(x), channels_(channels), height_(extent[1]), width_(extent[2]), zeros_(channels) {
    fill(zeros_.data, channels, T(0));
  }

  // From (row, column) of `image` on; what lies outside the square at (top, left) of `size` counts as zeros.
  void load(int64_t image, int64_t row, int64_t column, int64_t top, int64_t left, int64_t size) {
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t h = row + i, w = column + j;
        const bool wanted = i >= top && i < top + size && j >= left && j < left + size;
        const bool inside = wanted && h >= 0 && h < height_ && w >= 0 && w < width_;
        of[kSide * i + j] = inside ? x_ + ((image * height_ + h) * width_ + w) * channels_ : zeros_.data;
      }
    }
  }

  const T* of[kSide * kSide];

 private:
  const T* x_;
  const int64_t channels_, height_, width_;
  Array<T> zeros_;
};

// The transforms of one tile, out[term * step + channel]; with each panel of lanes `panel` numbers after the one before.
template <class T>
void transform_inputs(const Pixels<T, 4>& pixels, int64_t channels, T* out, int64_t step, int64_t panel = kLanes<T>) {
  for (int64_t c = 0; c < channels; c += kWidth<T>) {
    Vector<T> d[kTerms];
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) d[k] = at<Vector<T>>(pixels.of[k] + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) input_axis(d + i, 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) input_axis(d + 4 * i, 1);
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) at<Vector<T>>(out + k * step + c / kLanes<T> * panel + c % kLanes<T>) = d[k];
  }
}

template <class T>
void transform_gradients(const Pixels<T, 2>& pixels, int64_t channels, T* out, int64_t step, int64_t panel) {
  for (int64_t c = 0; c < channels; c += kWidth<T>) {
    Vector<T> e[4], rows[8], d[kTerms];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) e[k] = at<Vector<T>>(pixels.of[k] + c);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) output_axis_transposed(e + j, 2, rows + j, 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) output_axis_transposed(rows + 2 * i, 1, d + 4 * i, 1);
#pragma GCC unroll 16
    for (int k = 0; k < kTerms; ++k) at<Vector<T>>(out + k * step + c / kLanes<T> * panel + c % kLanes<T>) = d[k];
  }
}

template <class T>
void load_inputs(Pixels<T, 4>& pixels, const Layout& layout, const WinogradTile& tile) {
  const int64_t row = input_coordinate(layout.geo, 1, tile.row, 0), column = input_coordinate(layout.geo, 2, tile.column, 0);
  if (tile.only < 0) return pixels.load(tile.image, row, column, 0, 0, 4);
  pixels.load(tile.image, row, column, tile.only / 2, tile.only % 2, 3);
}

// sums += what lies there already, if anything does
template <class T, int kCount>
inline void add_to(Sums<T, kCount>& sums, const T* out, int64_t out_pitch, bool first) {
#pragma GCC unroll 16
  for (int s = 0; s < kCount && !first; ++s) {
    for (int i = 0; i < kVectors; ++i) sums.of[s][i] += at<Vector<T>>(out + s * out_pitch + i * kWidth<T>);
  }
}

template <class T, int kCount>
inline void store_all(const Sums<T, kCount>& sums, T* out, int64_t out_pitch) {
#pragma GCC unroll 16
  for (int s = 0; s < kCount; ++s) store(out + s * out_pitch, sums.of[s], kLanes<T>);
}

// m[s, lanes] (+)= sum over the channels of v[s, channel] * u[channel, lanes], for kCount rows
template <class T, int kCount>
void multiply(const T* v, int64_t v_pitch, const T* u, int64_t channels, bool first, T* m, int64_t m_pitch) {
  const T* rows[kCount];
  for (int s = 0; s < kCount; ++s) rows[s] = v + s * v_pitch;
  Sums<T, kCount> sums;
  for (int64_t c = 0; c < channels; ++c, u += kLanes<T>) sums.add(u, [&](int s) { return rows[s][c]; });
  add_to(sums, m, m_pitch, first);
  store_all(sums, m, m_pitch);
}

// sums[s, lanes] (+)= sum over the tiles of v[tile, s] * e[tile, lanes]; all of them rows of lanes
template <class T, int kCount>
void accumulate_products(const T* v, const T* e, int64_t tiles, bool first, T* out) {
  Sums<T, kCount> sums;
  for (int64_t t = 0; t < tiles; ++t, v += kLanes<T>, e += kLanes<T>) sums.add(e, [&](int s) { return v[s]; });
  add_to(sums, out, kLanes<T>, first);
  store_all(sums, out, kLanes<T>);
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

// What is done to the u of `pixel`, of all images, and of channels o on, `to` in memory.
template <class T>
struct Divide {
  const ForwardEpilogue<T>& args;

  void operator()(Vector<T> u, int64_t pixel, int64_t to, int64_t o) const {
    const Vector<T> quotient = u * args.inverse_divisor[pixel], zero = {};
    const Vector<T> value = *args.alpha * quotient + at<Vector<T>>(args.bias + o);
    if (args.z) at<Vector<T>>(args.z + to) = quotient;
    at<Vector<T>>(args.y + to) = args.relu ? (value < zero ? zero : value) : value;  // NaN passes, as in torch.relu
  }
};

template <class T>
struct Subtract {
  const InputEpilogue<T>& args;

  void operator()(Vector<T> u, int64_t pixel, int64_t to, int64_t) const {
    at<Vector<T>>(args.dx + to) = *args.alpha * u - at<Vector<T>>(args.x + to) * args.box[pixel];
  }
};

// The outputs of one tile, from its products m[term * step + channel].
template <class T, class Finish>
void write_outputs(const Layout& layout, const WinogradTile& tile, const T* m, int64_t step, const Finish& finish) {
  const Geometry& geo = layout.geo;
  const int64_t channels = geo.out_channels;
  bool wanted[4];
  int64_t pixel[4];
  for (int k = 0; k < 4; ++k) {
    const int64_t row = tile.row + k / 2, column = tile.column + k % 2;
    wanted[k] = row < geo.out[1] && column < geo.out[2] && (tile.only < 0 || tile.only == k);
    pixel[k] = (tile.image * geo.out[1] + row) * geo.out[2] + column;
  }
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
      if (wanted[k]) finish(u[k], pixel[k], pixel[k] * channels + o, o);
    }
  }
}

// How many tiles are worked on together: enough to pay for reading all weights, few enough for the caches.
template <class T>
int64_t block_size(const Layout& layout) {
  constexpr int64_t kBytes = 6 << 20;
  const int64_t fit = kBytes / (kTerms * (layout.inputs() + layout.outputs()) * static_cast<int64_t>(sizeof(T)));
  return padded(max(48, min(fit, 96)), kScalars);
}

// m[tile, O] = v[tile, C] * u[C, O], for one term; u in panels of lanes, of which the part in use stays in the nearest cache
template <class T>
void multiply_term(const Layout& layout, const T* v, const T* u, int64_t tiles, T* m) {
  constexpr int64_t kPanelBytes = 16 << 10, kDepth = kPanelBytes / (kLanes<T> * sizeof(T));
  const int64_t inputs = layout.inputs(), outputs = layout.outputs();
  const int64_t v_pitch = pitch<T>(inputs), m_pitch = pitch<T>(outputs);
  const Tiles groups(tiles);
  for (int64_t c = 0; c < inputs; c += kDepth) {
    for (int64_t o = 0; o < outputs; o += kLanes<T>) {
      const T* panel = u + o * inputs + c * kLanes<T>;
      for (int64_t index = 0; index < groups.count; ++index) {
        const Span span = groups[index];
        multiply<T>(span.count(), v + span.begin * v_pitch + c, v_pitch, panel, min(kDepth, inputs - c), c == 0,
                    m + span.begin * m_pitch + o, m_pitch);
      }
    }
  }
}

template <class T, class Finish>
void convolve(const Layout& layout, const T* x, const T* packed, const WinogradTile* tiles, const Finish& finish,
              Range tasks) {
  const int64_t inputs = layout.inputs(), outputs = layout.outputs(), most = min(block_size<T>(layout), tasks.end - tasks.begin);
  const int64_t v_pitch = pitch<T>(inputs), m_pitch = pitch<T>(outputs);
  const int64_t v_term = most * v_pitch, m_term = most * m_pitch;
  Array<T> v(kTerms * v_term), m(kTerms * m_term);
  Pixels<T, 4> pixels(x, inputs, layout.geo.in);
  const Tiles blocks(tasks.end - tasks.begin, most);
  for (int64_t index = 0; index < blocks.count; ++index) {
    const Span block = blocks[index];
    const WinogradTile* tile = tiles + tasks.begin + block.begin;
    for (int64_t t = 0; t < block.count(); ++t) {
      load_inputs(pixels, layout, tile[t]);
      transform_inputs(pixels, inputs, v.data + t * v_pitch, v_term);
    }
    for (int64_t term = 0; term < kTerms; ++term) {
      multiply_term(layout, v.data + term * v_term, packed + term * packed_term<T>(layout), block.count(), m.data + term * m_term);
    }
    for (int64_t t = 0; t < block.count(); ++t) {
      write_outputs<T>(layout, tile[t], m.data + t * m_pitch, m_term, finish);
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

template <class T>
void weigh(const Layout& layout, const T* x_plane, const T* e_plane, double (*energies)[9], Range tasks) {
  const Geometry& geo = layout.geo;
  for (int64_t n = tasks.begin; n < tasks.end; ++n) {
    const T *x = x_plane + n * geo.in_pixels(), *e = e_plane + n * geo.out_pixels();
    for (int64_t tap = 0; tap < 9; ++tap) {
      const Range rows = valid_outputs(geo, 1, tap / 3), columns = valid_outputs(geo, 2, tap % 3);
      double sum = 0;
      for (int64_t h = rows.begin; h < rows.end; ++h) {
        const T* from = x + input_coordinate(geo, 1, h, tap / 3) * geo.in[2] + input_coordinate(geo, 2, 0, tap % 3);
#pragma omp simd reduction(+ : sum)
        for (int64_t w = columns.begin; w < columns.end; ++w) sum += double(e[h * geo.out[2] + w]) * double(from[w]);
      }
      energies[n][tap] = sum;
    }
  }
}

template <class T>
int64_t pack_size(const Layout& layout) { return kTerms * packed_term<T>(layout); }
template <class T>
int64_t pack_tasks(const Layout& layout) { return layout.outputs() / kLanes<T>; }

template <class T>
void pack(const Layout& layout, const Filters<const T>& filters, T* packed, double (*energies)[9], Range tasks) {
  const int64_t inputs = layout.inputs(), term = packed_term<T>(layout);
  for (int64_t panel = tasks.begin; panel < tasks.end; ++panel) {
    T* out = packed + panel * inputs * kLanes<T>;
    Vector<T> squares[9] = {};
    for (int64_t c = 0; c < inputs; ++c, out += kLanes<T>) {
      T taps[9][kLanes<T>];
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        const T* from = filters.data + (panel * kLanes<T> + lane) * filters.output + c * filters.input;
        for (int tap = 0; tap < 9; ++tap) taps[tap][lane] = from[tap / 3 * filters.row + tap % 3 * filters.column];
      }
      for (int64_t lane = 0; lane < kLanes<T>; lane += kWidth<T>) {
        Vector<T> g[9], rows[12], u[kTerms];
        for (int tap = 0; tap < 9; ++tap) {
          g[tap] = at<Vector<T>>(taps[tap] + lane);
          squares[tap] += g[tap] * g[tap];
        }
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) filter_axis(g + j, 3, rows + j, 3);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) filter_axis(rows + 3 * i, 1, u + 4 * i, 1);
#pragma GCC unroll 16
        for (int k = 0; k < kTerms; ++k) at<Vector<T>>(out + k * term + lane) = u[k];
      }
    }
    for (int tap = 0; tap < 9; ++tap) {
      energies[panel][tap] = 0;
      for (int lane = 0; lane < kWidth<T>; ++lane) energies[panel][tap] += squares[tap][lane];
    }
  }
}

// Transformed tiles are [term, panels of channels, tile, lane], and a gap after each term.
template <class T>
int64_t transformed_term(int64_t tiles, int64_t channels) { return pitch<T>(tiles * channels); }
template <class T>
int64_t transformed_size(int64_t tiles, int64_t channels) { return kTerms * transformed_term<T>(tiles, channels); }

template <class T>
void transform(const Layout& layout, const T* x, const T* e, const WinogradTile* tiles, int64_t count, T* inputs,
               T* outputs, Range tasks) {
  const int64_t in = layout.inputs(), out = layout.outputs(), panel = count * kLanes<T>;
  Pixels<T, 4> patch(x, in, layout.geo.in);
  Pixels<T, 2> tile(e, out, layout.geo.out);
  for (int64_t t = tasks.begin; t < tasks.end; ++t) {
    load_inputs(patch, layout, tiles[t]);
    transform_inputs(patch, in, inputs + t * kLanes<T>, transformed_term<T>(count, in), panel);
    const bool whole = tiles[t].only < 0;
    const int64_t top = whole ? 0 : tiles[t].only / 2, left = whole ? 0 : tiles[t].only % 2;
    tile.load(tiles[t].image, tiles[t].row, tiles[t].column, top, left, whole ? 2 : 1);
    transform_gradients(tile, out, outputs + t * kLanes<T>, transformed_term<T>(count, out), panel);
  }
}

template <class T>
void accumulate(const Layout& layout, const T* inputs, const T* outputs, int64_t tiles, bool first, T* sums, Range tasks) {
  const int64_t in = layout.inputs(), panels = pack_tasks<T>(layout), panel = tiles * kLanes<T>;
  const Tiles groups(kLanes<T>);
  for (int64_t task = tasks.begin; task < tasks.end; ++task) {
    const int64_t term = task / panels, o = task % panels;
    const T* e = outputs + term * transformed_term<T>(tiles, layout.outputs()) + o * panel;
    const T* v = inputs + term * transformed_term<T>(tiles, in);
    T* sum = sums + term * packed_term<T>(layout) + o * in * kLanes<T>;
    for (int64_t c = 0; c < in; c += kLanes<T>, v += panel) {
      for (int64_t group = 0; group < groups.count; ++group) {
        const Span span = groups[group];
        accumulate_products<T>(span.count(), v + span.begin, e, tiles, first, sum + (c + span.begin) * kLanes<T>);
      }
    }
  }
}

template <class T>
void weight_gradient(const Layout& layout, const T* sums, bool add, const Filters<T>& filters, Range tasks) {
  const int64_t in = layout.inputs(), out = layout.outputs(), term = packed_term<T>(layout);
  for (int64_t c = tasks.begin; c < tasks.end; ++c) {
    for (int64_t o = 0; o < out; o += kWidth<T>) {
      const T* from = sums + (o / kLanes<T> * in + c) * kLanes<T> + o % kLanes<T>;
      Vector<T> m[kTerms], rows[12], g[9];
#pragma GCC unroll 16
      for (int k = 0; k < kTerms; ++k) m[k] = at<Vector<T>>(from + k * term);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) filter_axis_transposed(m + j, 4, rows + j, 4);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) filter_axis_transposed(rows + 4 * i, 1, g + 3 * i, 1);
      for (int lane = 0; lane < kWidth<T>; ++lane) {
        T* to = filters.data + (o + lane) * filters.output + c * filters.input;
        for (int tap = 0; tap < 9; ++tap, to += tap % 3 ? filters.column : filters.row - 2 * filters.column) {
          *to = add ? *to + g[tap][lane] : g[tap][lane];
        }
      }
    }
  }
}

// Measured against ATen's convolution and our own other one; see benchmarks/PERFORMANCE.md.
template <class T>
bool pays(const Layout& layout) {
  const int64_t in = layout.geo.in_channels, out = layout.geo.out_channels;
  const int64_t tiles = layout.geo.batch * WinogradTile::of_image(layout);
  const int64_t least = layout.channels_last ? 32 : 64;  // contiguous tensors are copied to channels_last and back
  if (in < least || out < least) return false;
  return tiles >= 48 && 12 * tiles >= in + out;  // weights are transformed anew for each call
}

template <class T>
bool suits(const Layout& layout) {
  const Geometry& geo = layout.geo;
  if (geo.groups != 1 || geo.in[0] != 1 || geo.kernel[0] != 1 || geo.out[0] != 1 || geo.padding[0] != 0) return false;
  for (int axis = 1; axis < kAxes; ++axis) {
    if (geo.kernel[axis] != 3 || geo.stride[axis] != 1 || geo.dilation[axis] != 1 || geo.padding[axis] > 2) return false;
  }
  return geo.in_channels % kLanes<T> == 0 && geo.out_channels % kLanes<T> == 0 && pays<T>(layout);
}

template <class T>
constexpr Winograd<T> table() {
  return {suits<T>,   judge<T>,          pack_size<T>,     pack_tasks<T>, pack<T>,          forward<T>,
          input_gradient<T>, weigh<T>, transformed_size<T>, transform<T>, accumulate<T>, weight_gradient<T>};
}

}  // namespace

extern const Winograd<float> kWinogradFloat = table<float>();
extern const Winograd<double> kWinogradDouble = table<double>();

}  // namespace ccn::cpu::CCN_ISA
