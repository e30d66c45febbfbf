// Compiled once per instruction set, with CCN_ISA naming the namespace. No standard-library templates in here: the
// linker would keep one copy for all instruction sets, perhaps one that this processor cannot run.
#include "passes.h"

namespace ccn::cpu::CCN_ISA {
namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Splits a range of a flattened [planes, pixels] array at plane boundaries.
template <class Visit>
inline void for_each_plane(Range tasks, int64_t pixels, Visit visit) {
  int64_t begin = tasks.begin;
  while (begin < tasks.end) {
    const int64_t plane = begin / pixels;
    const int64_t end = min(tasks.end, (plane + 1) * pixels);
    visit(plane, begin - plane * pixels, end - plane * pixels);
    begin = end;
  }
}

// Walks (depth, height) rows of an [N, G, D, H, W] plane: visit(plane index, depth, height).
template <class Visit>
inline void for_each_row(Range tasks, const int64_t (&extent)[kAxes], Visit visit) {
  for (int64_t row = tasks.begin; row < tasks.end; ++row) {
    const int64_t slice = row / extent[1];
    visit(slice / extent[0], slice % extent[0], row % extent[1]);
  }
}

template <class T>
inline T sum_of_squares(const T* x, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

template <class T>
void sum_of_squares(const Layout& layout, const T* x, T* plane, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t channels = geo.in_channels, groups = geo.groups, pixels = geo.in_pixels();
  for_each_plane(tasks, pixels, [&](int64_t n, int64_t begin, int64_t end) {
    for (int64_t p = begin; layout.channels_last && p < end; ++p) {
      const T* in = x + (n * pixels + p) * groups * channels;
      T* out = plane + n * groups * pixels + p;
      for (int64_t g = 0; g < groups; ++g, in += channels, out += pixels) {
        *out = sum_of_squares(in, channels);
      }
    }
    for (int64_t g = 0; !layout.channels_last && g < groups; ++g) {
      T* out = plane + (n * groups + g) * pixels;
      for (int64_t p = begin; p < end; ++p) out[p] = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const T* in = x + ((n * groups + g) * channels + c) * pixels;
#pragma omp simd
        for (int64_t p = begin; p < end; ++p) out[p] += in[p] * in[p];
      }
    }
  });
}

template <class T>
void patch_norm(const Layout& layout, const T* plane, T delta, T* r, T* inverse_divisor, Range tasks) {
  const Geometry& geo = layout.geo;
  const auto down = forward_window<int64_t>(geo, 0), along = forward_window<int64_t>(geo, 1);
  for_each_row(tasks, geo.out, [&](int64_t index, int64_t od, int64_t oh) {
    const int64_t at = ((index * geo.out[0] + od) * geo.out[1] + oh) * geo.out[2];
    T* out = r + at;
    for (int64_t w = 0; w < geo.out[2]; ++w) out[w] = 0;
    for (int64_t kd = 0; kd < down.taps; ++kd) {
      const int64_t d = down.source(od, kd);
      if (d < 0 || d >= geo.in[0]) continue;
      for (int64_t kh = 0; kh < along.taps; ++kh) {
        const int64_t h = along.source(oh, kh);
        if (h < 0 || h >= geo.in[1]) continue;
        const T* row = plane + ((index * geo.in[0] + d) * geo.in[1] + h) * geo.in[2];
        for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) {
          const Range valid = valid_outputs(geo, 2, kw);
          const T* tap = row + input_coordinate(geo, 2, 0, kw);
          const int64_t stride = geo.stride[2];
          if (stride == 1) {
#pragma omp simd
            for (int64_t w = valid.begin; w < valid.end; ++w) out[w] += tap[w];
          } else {
            for (int64_t w = valid.begin; w < valid.end; ++w) out[w] += tap[w * stride];
          }
        }
      }
    }
    T* inverse = inverse_divisor + at;
#pragma omp simd
    for (int64_t w = 0; w < geo.out[2]; ++w) {
      const T norm = std::sqrt(out[w]);
      out[w] = norm;
      inverse[w] = reciprocal_divisor(norm, delta);
    }
  });
}

// One pixel's outputs of a group, which begin at `at`; the first of them has the bias `bias`.
template <class T, bool kRelu, bool kSave>
inline void epilogue_pixel(const ForwardEpilogue<T>& args, T alpha, T inverse, int64_t at, const T* bias,
                           int64_t channels) {
  const T* u = args.u + at;
  T* y = args.y + at;
  T* z = kSave ? args.z + at : nullptr;
#pragma omp simd
  for (int64_t o = 0; o < channels; ++o) {
    const T quotient = u[o] * inverse;
    const T value = alpha * quotient + bias[o];
    if (kSave) z[o] = quotient;
    y[o] = activate(value, kRelu);
  }
}

template <class T, bool kRelu, bool kSave>
void epilogue_pixels(const Layout& layout, const ForwardEpilogue<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t pixels = geo.out_pixels(), channels = geo.out_channels, groups = geo.groups;
  const T alpha = *args.alpha;
  for_each_plane(tasks, pixels, [&](int64_t n, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t g = 0; g < groups; ++g) {
        const T inverse = args.inverse_divisor[(n * groups + g) * pixels + p];
        const int64_t at = ((n * pixels + p) * groups + g) * channels;
        epilogue_pixel<T, kRelu, kSave>(args, alpha, inverse, at, args.bias + g * channels, channels);
      }
    }
  });
}

template <class T, bool kRelu, bool kSave>
void divide_pixels(const Layout& layout, const T* x, T delta, T* r, const ForwardEpilogue<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t pixels = geo.out_pixels(), groups = geo.groups;
  const T alpha = *args.alpha;
  for_each_plane(tasks, pixels, [&](int64_t n, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t patch = (n * pixels + p) * groups + g;
        const T norm = std::sqrt(sum_of_squares(x + patch * geo.in_channels, geo.in_channels));
        r[(n * groups + g) * pixels + p] = norm;
        epilogue_pixel<T, kRelu, kSave>(args, alpha, reciprocal_divisor(norm, delta), patch * geo.out_channels,
                                        args.bias + g * geo.out_channels, geo.out_channels);
      }
    }
  });
}

template <class T>
void divide_pixels(const Layout& layout, const T* x, T delta, T* r, const ForwardEpilogue<T>& args, Range tasks) {
  const auto without_save = args.relu ? divide_pixels<T, true, false> : divide_pixels<T, false, false>;
  const auto with_save = args.relu ? divide_pixels<T, true, true> : divide_pixels<T, false, true>;
  (args.z ? with_save : without_save)(layout, x, delta, r, args, tasks);
}

template <class T, bool kRelu, bool kSave>
void epilogue_planes(const Layout& layout, const ForwardEpilogue<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t pixels = geo.out_pixels(), channels = geo.out_channels, all = geo.groups * channels;
  const T alpha = *args.alpha;
  for_each_plane(tasks, pixels, [&](int64_t plane, int64_t begin, int64_t end) {
    const int64_t n = plane / all, o = plane % all;
    const T* inverse = args.inverse_divisor + (n * geo.groups + o / channels) * pixels;
    const T bias = args.bias[o];
    const T* u = args.u + plane * pixels;
    T* y = args.y + plane * pixels;
    T* z = kSave ? args.z + plane * pixels : nullptr;
#pragma omp simd
    for (int64_t p = begin; p < end; ++p) {
      const T quotient = u[p] * inverse[p];
      const T value = alpha * quotient + bias;
      if (kSave) z[p] = quotient;
      y[p] = activate(value, kRelu);
    }
  });
}

template <class T, bool kRelu, bool kSave>
void epilogue(const Layout& layout, const ForwardEpilogue<T>& args, Range tasks) {
  (layout.channels_last ? epilogue_pixels<T, kRelu, kSave> : epilogue_planes<T, kRelu, kSave>)(layout, args, tasks);
}

template <class T>
void forward_epilogue(const Layout& layout, const ForwardEpilogue<T>& args, Range tasks) {
  const auto without_save = args.relu ? epilogue<T, true, false> : epilogue<T, false, false>;
  const auto with_save = args.relu ? epilogue<T, true, true> : epilogue<T, false, true>;
  (args.z ? with_save : without_save)(layout, args, tasks);
}

enum class Moment { kNone, kFromZ, kFromY };

template <class T, bool kRelu, Moment kMoment>
void prologue_pixels(const Layout& layout, const BackwardPrologue<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t pixels = geo.out_pixels(), channels = geo.out_channels, groups = geo.groups;
  const int64_t all = groups * channels, block = Prologue{layout}.pixels();
  for (int64_t task = tasks.begin; task < tasks.end; ++task) {
    T* partial = args.bias_partials ? args.bias_partials + task * all : nullptr;
    for (int64_t o = 0; partial && o < all; ++o) partial[o] = 0;
    const Range rows{task * block, min((task + 1) * block, geo.batch * pixels)};
    for_each_plane(rows, pixels, [&](int64_t n, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t plane = (n * groups + g) * pixels + p;
          const T inverse = reciprocal_divisor(args.r[plane], args.delta);
          const int64_t at = (n * pixels + p) * all + g * channels;
          const T *grad = args.grad + at, *bias = args.bias + g * channels;
          const T* y = kRelu ? args.y + at : nullptr;
          const T* z = kMoment == Moment::kFromZ ? args.z + at : nullptr;
          T* e = args.e + at;
          T moment = 0;
#pragma omp simd reduction(+ : moment)
          for (int64_t o = 0; o < channels; ++o) {
            const T open = kRelu ? open_gradient(grad[o], y[o]) : grad[o];
            e[o] = open * inverse;
            if (kMoment == Moment::kFromZ) moment += open * z[o];
            if (kMoment == Moment::kFromY) moment += open * (y[o] - bias[o]);
          }
          if (kMoment != Moment::kNone) args.moment[plane] = moment;
          if (!partial) continue;
          T* sum = partial + g * channels;
#pragma omp simd
          for (int64_t o = 0; o < channels; ++o) sum[o] += kRelu ? open_gradient(grad[o], y[o]) : grad[o];
        }
      }
    });
  }
}

template <class T, bool kRelu, Moment kMoment>
void prologue_planes(const Layout& layout, const BackwardPrologue<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t pixels = geo.out_pixels(), channels = geo.out_channels, all = geo.groups * channels;
  const int64_t segments = Prologue{layout}.segments(), block = Prologue{layout}.pixels();
  for (int64_t task = tasks.begin; task < tasks.end; ++task) {
    const int64_t plane = task / segments, segment = task % segments;
    const int64_t n = plane / geo.groups, g = plane % geo.groups;
    const int64_t begin = segment * block, end = min(begin + block, pixels);
    T* moment = args.moment + plane * pixels;
    for (int64_t p = begin; kMoment != Moment::kNone && p < end; ++p) moment[p] = 0;
    for (int64_t o = g * channels; o < (g + 1) * channels; ++o) {
      const int64_t at = (n * all + o) * pixels;
      const T *grad = args.grad + at, *r = args.r + plane * pixels;
      const T* y = kRelu ? args.y + at : nullptr;
      const T* z = kMoment == Moment::kFromZ ? args.z + at : nullptr;
      const T bias = args.bias[o], delta = args.delta;
      T* e = args.e + at;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t p = begin; p < end; ++p) {
        const T open = kRelu ? open_gradient(grad[p], y[p]) : grad[p];
        e[p] = open * reciprocal_divisor(r[p], delta);
        if (kMoment == Moment::kFromZ) moment[p] += open * z[p];
        if (kMoment == Moment::kFromY) moment[p] += open * (y[p] - bias);
        sum += open;
      }
      if (args.bias_partials) args.bias_partials[(n * segments + segment) * all + o] = sum;
    }
  }
}

template <class T, bool kRelu, Moment kMoment>
void prologue(const Layout& layout, const BackwardPrologue<T>& args, Range tasks) {
  (layout.channels_last ? prologue_pixels<T, kRelu, kMoment> : prologue_planes<T, kRelu, kMoment>)(layout, args, tasks);
}

template <class T>
void backward_prologue(const Layout& layout, const BackwardPrologue<T>& args, Range tasks) {
  const auto none = args.y ? prologue<T, true, Moment::kNone> : prologue<T, false, Moment::kNone>;
  const auto from_z = args.y ? prologue<T, true, Moment::kFromZ> : prologue<T, false, Moment::kFromZ>;
  const auto from_y = prologue<T, true, Moment::kFromY>;
  (!args.moment ? none : args.moment_from_y ? from_y : from_z)(layout, args, tasks);
}

template <class T>
void transposed_box(const Layout& layout, const T* q, T* box, Range tasks) {
  const Geometry& geo = layout.geo;
  for_each_row(tasks, geo.in, [&](int64_t index, int64_t id, int64_t ih) {
    T* out = box + ((index * geo.in[0] + id) * geo.in[1] + ih) * geo.in[2];
    for (int64_t w = 0; w < geo.in[2]; ++w) out[w] = 0;
    const auto down = gradient_window<int64_t>(geo, 0, id % geo.stride[0]);
    const auto along = gradient_window<int64_t>(geo, 1, ih % geo.stride[1]);
    for (int64_t kd = 0; kd < down.taps; ++kd) {
      const int64_t d = down.source(id / geo.stride[0], kd);
      if (d < 0 || d >= geo.out[0]) continue;
      for (int64_t kh = 0; kh < along.taps; ++kh) {
        const int64_t h = along.source(ih / geo.stride[1], kh);
        if (h < 0 || h >= geo.out[1]) continue;
        const T* row = q + ((index * geo.out[0] + d) * geo.out[1] + h) * geo.out[2];
        for (int64_t kw = 0; kw < geo.kernel[2]; ++kw) {
          const Range valid = valid_outputs(geo, 2, kw);
          T* tap = out + input_coordinate(geo, 2, 0, kw);
          const int64_t stride = geo.stride[2];
          if (stride == 1) {
#pragma omp simd
            for (int64_t w = valid.begin; w < valid.end; ++w) tap[w] += row[w];
          } else {
            for (int64_t w = valid.begin; w < valid.end; ++w) tap[w * stride] += row[w];
          }
        }
      }
    }
  });
}

template <class T>
void input_epilogue(const Layout& layout, const InputEpilogue<T>& args, Range tasks) {
  const Geometry& geo = layout.geo;
  const int64_t pixels = geo.in_pixels(), channels = geo.in_channels, groups = geo.groups;
  const T alpha = *args.alpha;
  const T *grad = args.conv_grad, *x = args.x;
  T* dx = args.dx;
  for_each_plane(tasks, pixels, [&](int64_t plane, int64_t begin, int64_t end) {
    if (layout.channels_last) {
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t g = 0; g < groups; ++g) {
          const T factor = args.box[(plane * groups + g) * pixels + p];
          const int64_t at = ((plane * pixels + p) * groups + g) * channels;
#pragma omp simd
          for (int64_t c = at; c < at + channels; ++c) dx[c] = input_gradient(alpha * grad[c], x[c], factor);
        }
      }
    } else {
      const T* factor = args.box + plane / channels * pixels;  // plane / channels = n * groups + g
      const int64_t at = plane * pixels;
#pragma omp simd
      for (int64_t p = begin; p < end; ++p) dx[at + p] = input_gradient(alpha * grad[at + p], x[at + p], factor[p]);
    }
  });
}

template <class T>
double dot(const T* a, const T* b, Range range) {
  double sum = 0;
  if (b) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = range.begin; i < range.end; ++i) sum += double(a[i]) * double(b[i]);
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = range.begin; i < range.end; ++i) sum += a[i];
  }
  return sum;
}

}  // namespace

extern const Passes<float> kFloat = {sum_of_squares,    patch_norm,     forward_epilogue, divide_pixels,
                                     backward_prologue, transposed_box, input_epilogue,   dot};
extern const Passes<double> kDouble = {sum_of_squares,    patch_norm,     forward_epilogue, divide_pixels,
                                       backward_prologue, transposed_box, input_epilogue,   dot};

}  // namespace ccn::cpu::CCN_ISA
