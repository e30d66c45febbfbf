// The backward pass of depthwise layers, at once. A channel's gradients depend on that channel alone: e and q of the few
// rows of the output that read a row of the input stay in the cache, and the input's row gathers from them.
//
// Where only some gradients are needed the others are computed all the same, and dropped: it is memory that takes time.
//
// Compiled once per instruction set, as passes.cpp is; no standard-library templates here either.
#include "block.h"

namespace ccn::cpu::CCN_ISA {
namespace {

constexpr int kMostTaps = 9;  // that are gathered together: as many sums for the weight, of 16 registers

// What is computed side by side: as many numbers as a vector holds, or a single one where a row of them ends.
template <class T>
struct Whole {
  using Value = Vector<T>;
  static constexpr int64_t kCount = kWidth<T>;
};
template <class T>
struct Single {
  using Value = T;
  static constexpr int64_t kCount = 1;
};

int64_t reach(const Geometry& geo, int axis) { return (geo.kernel[axis] - 1) * geo.dilation[axis] + 1; }

// Where e and q lie of the rows of the output that read one row of the input, for some channels: e of a row, then its
// q, in the layout of the tensors. A row takes the place of one that reads no later row of the input.
template <class T>
struct Ring {
  static constexpr int64_t kBytes = 128 << 10, kPlaneBytes = 4 << 10, kNormBytes = 64 << 10, kMostBytes = 1 << 20;
  static constexpr int64_t kLine = 64 / sizeof(T);

  int64_t slots, channels, channel_step, column_step;
  int64_t left, columns;  // contiguous rows have margins of zeros: lanes are pixels, and vectors reach over the ends
  int64_t part, pitch;    // from e to q, and from row to row
  int64_t norm_rows;      // that are loaded together

  explicit Ring(const Layout& layout) {
    const Geometry& geo = layout.geo;
    slots = (reach(geo, 1) - 1) / geo.stride[1] + 1;
    const int64_t last = (geo.in[2] - 1 + geo.padding[2]) / geo.stride[2] + 1;
    left = layout.channels_last ? 0 : max(0, ceil_div(reach(geo, 2) - 1 - geo.padding[2], geo.stride[2]));
    columns = layout.channels_last ? geo.out[2] : left + max(geo.out[2], last) + kWidth<T>;
    const int64_t column_bytes = 2 * slots * columns * sizeof(T);
    const int64_t fit = max((layout.channels_last ? kBytes : kPlaneBytes) / column_bytes, layout.channels_last ? 64 : 1);
    const int64_t blocks = ceil_div(layout.inputs(), fit);
    channels = ceil_div(layout.inputs(), blocks);
    if (layout.channels_last) channels = padded(channels, kLanes<T>);
    channel_step = layout.channels_last ? 1 : columns;
    // An odd number of cache lines: pixels then lie in different sets.
    column_step = layout.channels_last ? (ceil_div(channels, kLine) | 1) * kLine : 1;
    part = layout.channels_last ? columns * column_step : channels * columns;
    pitch = 2 * part;
    norm_rows = max(1, kNormBytes / (part * sizeof(T)));
  }

  int64_t numbers() const { return slots * pitch; }
  int64_t row(int64_t oh) const { return oh % slots * pitch; }
};

// One tap of a row of the input: from the ring's number of an output's column to the one that the tap belongs to, and
// the tap's place in the weight.
struct Tap {
  int64_t offset, index;
};

// Pixels of a row that are `stride` apart are read by the same taps, but for the row's ends. Of those that begin at
// `phase`, pixel j is read through this column of the kernel by output j + shift, where j lies in `pixels`.
struct Column {
  int64_t phase, shift;
  Range pixels;
};

Column column(const Geometry& geo, int64_t kw) {
  const int64_t stride = geo.stride[2], offset = kw * geo.dilation[2] - geo.padding[2];
  const int64_t phase = (offset % stride + stride) % stride, shift = (phase - offset) / stride;
  const int64_t pixels = max(0, ceil_div(geo.in[2] - phase, stride));
  const int64_t begin = max(0, -shift), end = min(pixels, geo.out[2] - shift);
  return {phase, shift, {begin, max(begin, end)}};
}

// `count` steps along a row: pixels whose lanes are channels, or vectors of pixels.
template <class T>
struct Run {
  const T *x, *e, *weights;
  T *dx, *sums;
  int64_t count, step, ring_step, part, weight_step, sum_step;
  bool more;  // other taps have begun dx
};

// dx = sum over the taps of alpha * W * e, less x times the sum of q; the weight's sums += e * x.
template <class T, class Lanes, bool kSplat, int kCount>
void gather(const Run<T>& run, const Tap* taps) {
  using Value = typename Lanes::Value;
  Value weights[kCount], sums[kCount];
  int64_t offsets[kCount];
  for (int t = 0; t < kCount; ++t) {
    const T* weight = run.weights + taps[t].index * run.weight_step;
    weights[t] = kSplat ? Value{} + *weight : *reinterpret_cast<const Value*>(weight);
    sums[t] = Value{};
    offsets[t] = taps[t].offset;
  }
  const T *x = run.x, *e = run.e, *q = run.e + run.part;
  T* dx = run.dx;
  for (int64_t i = 0; i < run.count; ++i) {
    const Value value = *reinterpret_cast<const Value*>(x);
    Value grad = run.more ? *reinterpret_cast<const Value*>(dx) : Value{}, box = {};
#pragma GCC unroll 9
    for (int t = 0; t < kCount; ++t) {
      const Value opened = *reinterpret_cast<const Value*>(e + offsets[t]);
      grad += weights[t] * opened;
      box += *reinterpret_cast<const Value*>(q + offsets[t]);
      sums[t] += opened * value;
    }
    *reinterpret_cast<Value*>(dx) = grad - value * box;
    x += run.step;
    dx += run.step;
    e += run.ring_step;
    q += run.ring_step;
  }
  for (int t = 0; t < kCount; ++t) *reinterpret_cast<Value*>(run.sums + taps[t].index * run.sum_step) += sums[t];
}

template <class T, class Lanes, bool kSplat, int kCount = kMostTaps>
void gather(int64_t count, const Run<T>& run, const Tap* taps) {
  if (count == kCount) return gather<T, Lanes, kSplat, kCount>(run, taps);
  if constexpr (kCount > 1) gather<T, Lanes, kSplat, kCount - 1>(count, run, taps);
}

template <class T>
bool is_finite(const T* values, int64_t count) {
  T zero = 0;
#pragma omp simd reduction(+ : zero)
  for (int64_t i = 0; i < count; ++i) zero += values[i] * T(0);
  return zero == T(0);
}

template <class T, class Lanes, bool kSplat>
void gather_all(Run<T> run, const Tap* taps, int64_t count) {
  for (int64_t i = 0; count == 0 && i < run.count; ++i) fill(run.dx + i * run.step, Lanes::kCount, T(0));
  for (int64_t first = 0; first < count; first += kMostTaps) {
    gather<T, Lanes, kSplat>(min(kMostTaps, count - first), run, taps + first);
    run.more = true;
  }
}

enum class Moment { kNone, kFromZ, kFromY };

// What is made of an output's gradient.
template <class T>
struct Opened {
  T open, moment, e, q;
};

template <class T, bool kRelu, Moment kMoment>
inline Opened<T> opened(T grad, T y, T z, T bias, T r, T delta, T scale) {
  const T open = kRelu ? open_gradient(grad, y) : grad;
  const T moment = kMoment == Moment::kFromZ ? open * z : kMoment == Moment::kFromY ? open * (y - bias) : T(0);
  const T q = kMoment == Moment::kNone ? T(0) : norm_gradient(scale * moment, r, delta);
  return {open, moment, open * reciprocal_divisor(r, delta), q};
}

template <class T>
struct Gradients {
  const Layout& layout;
  const DepthwiseBackward<T>& args;
  const Ring<T> ring;
  const int64_t taps, channels, in_pixels, out_pixels, lanes;
  const T scale;  // of the moments
  const bool gathers;
  Array<T> cache, weights;  // e and q in the ring; alpha * W, [taps, channels]
  Array<T> sums;            // d weight / alpha, [taps, channels of a block], each of `lanes` numbers
  Array<T> totals;          // of open and of the moments, [channels of a block] each; then a row's own
  Array<T> row, norms;      // of the input and of its gradient; r of a few rows of the output
  Array<Tap> list;
  Array<Column> columns;
  Array<int64_t> unread;  // columns of the input that no output reads
  int64_t unread_count = 0;
  // Of the task, and of its block of channels:
  int64_t n = 0, first = 0, count = 0;
  Range norm_rows = {0, 0};

  Gradients(const Layout& of, const DepthwiseBackward<T>& with)
      : layout(of), args(with), ring(of), taps(of.geo.kernel[1] * of.geo.kernel[2]), channels(of.inputs()),
        in_pixels(of.geo.in_pixels()), out_pixels(of.geo.out_pixels()), lanes(of.channels_last ? 1 : kWidth<T>),
        scale(with.moment_from_y ? T(1) : *with.alpha), gathers(with.dx || with.weight_partials), cache(ring.numbers()),
        weights(taps * channels), sums(taps * ring.channels * lanes), totals(4 * ring.channels),
        row(of.channels_last ? of.geo.in[2] * channels : 2 * padded(of.geo.in[2], kWidth<T>)),
        norms(of.channels_last ? ring.norm_rows * ring.part : 0), list(taps), columns(of.geo.kernel[2]),
        unread(of.geo.in[2]) {
    const Geometry& geo = of.geo;
    fill(cache.data, ring.numbers(), T(0));
    for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) columns[kw] = column(geo, kw);
    for (int64_t i = 0; i < taps * channels; ++i) weights[i % taps * channels + i / taps] = *args.alpha * args.weight[i];
    for (int64_t iw = 0; iw < geo.in[2]; ++iw) {
      bool is_read = false;
      for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) is_read |= output_coordinate(geo, 2, iw, kw) >= 0;
      if (!is_read) unread[unread_count++] = iw;
    }
  }

  // The rows of the output that read a row of the input lie in [first_output, end_output).
  int64_t first_output(int64_t ih) const {
    const Geometry& geo = layout.geo;
    return max(0, ceil_div(ih + geo.padding[1] - reach(geo, 1) + 1, geo.stride[1]));
  }
  int64_t end_output(int64_t ih) const {
    const Geometry& geo = layout.geo;
    return min(geo.out[1], (ih + geo.padding[1]) / geo.stride[1] + 1);
  }
  // A task owns the rows of the output that are new to it; the first and the last one, those of padding alone as well.
  Range owned_outputs(Range rows) const {
    return {rows.begin == 0 ? 0 : end_output(rows.begin - 1),
            rows.end == layout.geo.in[1] ? layout.geo.out[1] : end_output(rows.end - 1)};
  }

  // Every sum is formed of rows' sums, whose order is the shape's.
  void task(int64_t index) {
    const auto [image, rows] = DepthwiseBlocks{layout}.task(index);
    n = image;
    const Range owned = owned_outputs(rows);
    for (first = 0; first < channels; first += ring.channels) {
      count = min(ring.channels, channels - first);
      norm_rows = {0, 0};
      fill(sums.data, taps * ring.channels * lanes, T(0));
      fill(totals.data, 2 * ring.channels, T(0));
      int64_t next = gathers ? min(owned.begin, first_output(rows.begin)) : owned.begin;
      for (int64_t ih = rows.begin; gathers && ih < rows.end; ++ih) {
        for (; next < end_output(ih); ++next) open_row(next, next >= owned.begin);
        gather_row(ih);
      }
      for (; next < owned.end; ++next) open_row(next, true);
      store(index);
    }
  }

  void store(int64_t index) const {
    __builtin_memcpy(args.bias_partials + index * channels + first, totals, count * sizeof(T));
    __builtin_memcpy(args.moment_partials + index * channels + first, totals + ring.channels, count * sizeof(T));
    for (int64_t tap = 0; args.weight_partials && tap < taps; ++tap) {
      T* out = args.weight_partials + (index * taps + tap) * channels + first;
      const T* in = sums + tap * ring.channels * lanes;
      for (int64_t c = 0; c < count; ++c) {
        T sum = in[c * lanes];
        for (int64_t lane = 1; lane < lanes; ++lane) sum += in[c * lanes + lane];
        out[c] = sum;
      }
    }
  }

  // e and q of a row of the output; its sums where the row is the task's own.
  void open_row(int64_t oh, bool owned) {
    const auto none = args.y ? &Gradients::open<true, Moment::kNone> : &Gradients::open<false, Moment::kNone>;
    const auto from_z = args.y ? &Gradients::open<true, Moment::kFromZ> : &Gradients::open<false, Moment::kFromZ>;
    const auto from_y = &Gradients::open<true, Moment::kFromY>;
    T* of_row = totals + 2 * ring.channels;
    fill(of_row, 2 * ring.channels, T(0));
    (this->*(args.moment_from_y ? from_y : args.z ? from_z : none))(oh);
    for (int64_t i = 0; owned && i < 2 * ring.channels; ++i) totals[i] += of_row[i];
  }

  template <bool kRelu, Moment kMoment>
  void open(int64_t oh) {
    if (layout.channels_last) {
      open_pixels<kRelu, kMoment>(oh);
    } else {
      open_planes<kRelu, kMoment>(oh);
    }
  }

  // r is [channels, pixels], whatever the layout: a few rows of it at once, and another channel's on their way, for
  // streams so short are over before the processor has noticed them.
  void load_norms(Range rows) {
    const int64_t from = rows.begin * layout.geo.out[2], pixels = rows.end * layout.geo.out[2] - from;
    const T* r = args.r + (n * channels + first) * out_pixels + from;
    for (int64_t c = 0; c < count; ++c) {
      const T *plane = r + c * out_pixels, *soon = r + min(c + 8, count - 1) * out_pixels;
      for (int64_t p = 0; p < pixels; p += ring.kLine) __builtin_prefetch(soon + p);
      for (int64_t p = 0; p < pixels; ++p) norms[p * ring.column_step + c] = plane[p];
    }
    norm_rows = rows;
  }

  template <bool kRelu, Moment kMoment>
  void open_pixels(int64_t oh) {
    const int64_t width = layout.geo.out[2], size = count;
    if (oh < norm_rows.begin || oh >= norm_rows.end) load_norms({oh, min(oh + ring.norm_rows, layout.geo.out[1])});
    T *sum = totals + 2 * ring.channels, *moment = sum + ring.channels;
    const T *bias = args.bias + first, delta = args.delta, factor = scale;
    for (int64_t w = 0; w < width; ++w) {
      const int64_t at = (n * out_pixels + oh * width + w) * channels + first;
      const T *grad = args.grad + at, *norm = norms + ((oh - norm_rows.begin) * width + w) * ring.column_step;
      const T *y = kRelu ? args.y + at : grad, *z = kMoment == Moment::kFromZ ? args.z + at : grad;
      T *e = cache + ring.row(oh) + w * ring.column_step, *q = e + ring.part;
#pragma omp simd
      for (int64_t c = 0; c < size; ++c) {
        const auto of = opened<T, kRelu, kMoment>(grad[c], y[c], z[c], bias[c], norm[c], delta, factor);
        e[c] = of.e;
        q[c] = of.q;
        sum[c] += of.open;
        moment[c] += of.moment;
      }
    }
  }

  template <bool kRelu, Moment kMoment>
  void open_planes(int64_t oh) const {
    const int64_t width = layout.geo.out[2];
    const T delta = args.delta, factor = scale;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = (n * channels + first + c) * out_pixels + oh * width;
      const T *grad = args.grad + at, *r = args.r + at, bias = args.bias[first + c];
      const T *y = kRelu ? args.y + at : grad, *z = kMoment == Moment::kFromZ ? args.z + at : grad;
      T *e = cache + ring.row(oh) + c * ring.columns + ring.left, *q = e + ring.part;
      T sum = 0, moment = 0;
#pragma omp simd reduction(+ : sum, moment)
      for (int64_t w = 0; w < width; ++w) {
        const auto of = opened<T, kRelu, kMoment>(grad[w], y[w], z[w], bias, r[w], delta, factor);
        e[w] = of.e;
        q[w] = of.q;
        sum += of.open;
        moment += of.moment;
      }
      totals[2 * ring.channels + c] = sum;
      totals[3 * ring.channels + c] = moment;
    }
  }

  // Adds column `kw` of the kernel to the list of taps that read a row.
  int64_t list_taps(int64_t ih, int64_t kw, int64_t listed) const {
    const Geometry& geo = layout.geo;
    for (int64_t kh = 0; kh < geo.kernel[1]; ++kh) {
      const int64_t oh = output_coordinate(geo, 1, ih, kh);
      if (oh < 0) continue;
      list[listed++] = {ring.row(oh) + (ring.left + columns[kw].shift) * ring.column_step, kh * geo.kernel[2] + kw};
    }
    return listed;
  }

  void gather_row(int64_t ih) const {
    for (int64_t phase = 0; phase < min(layout.geo.stride[2], layout.geo.in[2]); ++phase) {
      if (layout.channels_last) {
        gather_pixels(ih, phase);
      } else {
        gather_planes(ih, phase);
      }
    }
  }

  // Pixels that the same taps read, from one end of a column's to the next.
  void gather_pixels(int64_t ih, int64_t phase) const {
    const Geometry& geo = layout.geo;
    const int64_t pixels = ceil_div(geo.in[2] - phase, geo.stride[2]);
    for (int64_t begin = 0, end; begin < pixels; begin = end) {
      int64_t listed = 0;
      end = pixels;
      for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) {
        const auto [of, shift, valid] = columns[kw];
        if (of != phase || begin >= valid.end) continue;
        end = min(end, begin < valid.begin ? valid.begin : valid.end);
        if (begin >= valid.begin) listed = list_taps(ih, kw, listed);
      }
      gather_segment(ih, phase + begin * geo.stride[2], {begin, end}, listed);
    }
  }

  void gather_segment(int64_t ih, int64_t iw, Range pixels, int64_t listed) const {
    const Geometry& geo = layout.geo;
    const int64_t from = iw * channels + first, image = (n * in_pixels + ih * geo.in[2]) * channels;
    Run<T> run{args.x + image + from, cache + pixels.begin * ring.column_step, weights + first,
               (args.dx ? args.dx + image : row.data) + from, sums, pixels.end - pixels.begin,
               geo.stride[2] * channels, ring.column_step, ring.part, channels, ring.channels, false};
    const auto by = [&]<class Lanes>(Lanes) {
      gather_all<T, Lanes, false>(run, list, listed);
      run.x += Lanes::kCount;
      run.e += Lanes::kCount;
      run.weights += Lanes::kCount;
      run.dx += Lanes::kCount;
      run.sums += Lanes::kCount;
    };
    int64_t c = 0;
    for (; c + kWidth<T> <= count; c += kWidth<T>) by(Whole<T>{});
    for (; c < count; ++c) by(Single<T>{});
  }

  // A row of each channel, copied so that its pixels lie side by side: zeros where it ends, and where no output reads.
  void gather_planes(int64_t ih, int64_t phase) const {
    const Geometry& geo = layout.geo;
    const int64_t stride = geo.stride[2], pixels = ceil_div(geo.in[2] - phase, stride);
    const int64_t whole = padded(pixels, kWidth<T>);
    int64_t listed = list_phase(ih, phase);
    T *in = row, *out = row + whole;
    fill(in, whole, T(0));
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = (n * channels + first + c) * in_pixels + ih * geo.in[2] + phase;
      for (int64_t j = 0; j < pixels; ++j) in[j] = args.x[at + j * stride];
      for (int64_t i = 0; i < unread_count; ++i) {
        if (unread[i] % stride == phase) in[unread[i] / stride] = 0;
      }
      const Run<T> run{in, cache + c * ring.columns, weights + first + c, out, sums + c * lanes,
                       whole / kWidth<T>, kWidth<T>, kWidth<T>, ring.part, channels, ring.channels * lanes, false};
      if (is_finite(in, pixels)) {
        gather_all<T, Whole<T>, true>(run, list, listed);
      } else {
        gather_columns(run, ih, phase, whole);
        listed = list_phase(ih, phase);
      }
      for (int64_t j = 0; args.dx && j < pixels; ++j) args.dx[at + j * stride] = out[j];
    }
  }

  // A column of the kernel after the other, each over the pixels that it reads: in the margins e is 0, and 0 times
  // infinity would reach taps that read no such pixel.
  void gather_columns(Run<T> run, int64_t ih, int64_t phase, int64_t whole) const {
    fill(run.dx, whole, T(0));
    for (int64_t kw = 0; kw < layout.geo.kernel[2]; ++kw) {
      const auto [of, shift, valid] = columns[kw];
      const int64_t listed = of == phase && valid.begin < valid.end ? list_taps(ih, kw, 0) : 0;
      if (listed == 0) continue;
      gather_all<T, Single<T>, true>({run.x + valid.begin, run.e + valid.begin, run.weights, run.dx + valid.begin, run.sums,
                                      valid.end - valid.begin, 1, 1, run.part, run.weight_step, run.sum_step, true},
                                     list, listed);
    }
  }

  int64_t list_phase(int64_t ih, int64_t phase) const {
    int64_t listed = 0;
    for (int64_t kw = 0; kw < layout.geo.kernel[2]; ++kw) {
      const auto [of, shift, valid] = columns[kw];
      if (of == phase && valid.begin < valid.end) listed = list_taps(ih, kw, listed);
    }
    return listed;
  }
};

template <class T>
void depthwise_backward(const Layout& layout, const DepthwiseBackward<T>& args, Range tasks) {
  Gradients<T> gradients(layout, args);
  for (int64_t task = tasks.begin; task < tasks.end; ++task) gradients.task(task);
}

// Of at most two axes, not empty, and with a few rows that stay in a cache: not those of a wide dilation.
template <class T>
bool depthwise_backward_suits(const Layout& layout) {
  const Geometry& geo = layout.geo;
  if (geo.groups == 1 || geo.in_channels != 1 || geo.out_channels != 1) return false;
  if (geo.in[0] != 1 || geo.kernel[0] != 1 || geo.out[0] != 1 || geo.padding[0] != 0) return false;
  if (geo.in_pixels() == 0) return false;
  return Ring<T>(layout).numbers() * static_cast<int64_t>(sizeof(T)) <= Ring<T>::kMostBytes;
}

}  // namespace

extern const AtOnce<float> kAtOnceFloat = {depthwise_backward_suits<float>, depthwise_backward};
extern const AtOnce<double> kAtOnceDouble = {depthwise_backward_suits<double>, depthwise_backward};

}  // namespace ccn::cpu::CCN_ISA
