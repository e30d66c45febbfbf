// The CPU backend. ATen computes the convolutions, a chunk of the batch at a time, and our passes finish each chunk
// while it is still in the cache: the output is written once, and nothing as large as it is kept besides.
#include <algorithm>
#include <utility>

#include "../dispatcher.h"
#include "passes.h"

namespace ccn::cpu {
namespace {

using aten::MemoryFormat;
using aten::ScalarType;
using Optional = std::optional<Tensor>;

constexpr int64_t kChunkBytes = 8 << 20;  // output and input of one chunk; see benchmarks/PERFORMANCE.md
constexpr int64_t kGrain = 1 << 14;       // elements that are worth a thread

struct Convolution {
  Axes stride, padding, dilation;
  int64_t groups;

  bool is_linear() const { return stride.empty(); }
};

template <class T>
constexpr ScalarType kType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class Work>
void parallel(int64_t tasks, int64_t elements_per_task, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_task));
  if (tasks == 0) return;
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { work(Range{begin, end}); });
}

Axes shape_of(const Tensor& t) { return Axes(t.sizes().begin(), t.sizes().end()); }

Tensor empty(const Axes& shape, ScalarType type) { return torch::stable::empty(shape, type); }

// Uninitialised, `batch` images of the type `type`, strided as `image` is.
Tensor empty_images(const Tensor& image, int64_t batch, ScalarType type) {
  Axes shape = shape_of(image);
  shape[0] = batch;
  const Axes strides(image.strides().begin(), image.strides().end());
  return aten::to_tensor(aten::call<1>("aten::empty_strided", "", shape, strides, std::optional(type), std::nullopt,
                                       std::nullopt, std::nullopt)[0]);
}

bool is_channels_last(const Tensor& t) { return t.dim() == 2 || (!t.is_contiguous() && t.stride(1) == 1); }

Tensor in_layout(const Tensor& t, bool channels_last, ScalarType type) {
  const MemoryFormat format = !channels_last || t.dim() < 4 ? MemoryFormat::Contiguous
                              : t.dim() == 4                ? MemoryFormat::ChannelsLast
                                                            : MemoryFormat::ChannelsLast3d;
  const Tensor typed = t.scalar_type() == type ? t : torch::stable::to(t, type);
  return torch::stable::contiguous(typed, format);
}

template <class T>
Tensor bias_or_zeros(const Optional& bias, int64_t channels) {
  if (bias) return in_layout(*bias, false, kType<T>);
  Tensor zeros = empty({channels}, kType<T>);
  return torch::stable::zero_(zeros);
}

double scalar_of(const Tensor& alpha) {
  return *torch::stable::to(alpha, ScalarType::Double).const_data_ptr<double>();
}

template <class T>
const T* data(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

template <class T>
T* mutable_data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

// Images of one chunk: few enough to stay in the cache, yet enough to pay for the weight's repacking inside ATen.
int64_t images_per_chunk(const Geometry& geo, size_t element_size) {
  const int64_t weight = geo.groups * geo.in_channels * geo.out_channels * geo.kernel[0] * geo.kernel[1] * geo.kernel[2];
  const int64_t image = geo.groups * (geo.in_channels * geo.in_pixels() + geo.out_channels * geo.out_pixels());
  const int64_t budget = std::max<int64_t>(kChunkBytes, weight * element_size);
  const int64_t fit = std::max<int64_t>(1, budget / std::max<int64_t>(1, image * element_size));
  const int64_t chunks = std::max<int64_t>(1, ceil_div(geo.batch, fit));
  return std::max<int64_t>(1, ceil_div(geo.batch, chunks));
}

// Calls visit(first image, images) for each chunk.
template <class Visit>
void for_each_chunk(const Geometry& geo, size_t element_size, const Visit& visit) {
  const int64_t step = images_per_chunk(geo, element_size);
  for (int64_t first = 0; first < geo.batch; first += step) visit(first, std::min(step, geo.batch - first));
}

Tensor images(const Tensor& t, int64_t first, int64_t count) {
  Tensor whole = t;
  return torch::stable::narrow(whole, 0, first, count);
}

Tensor convolve(const Tensor& x, const Tensor& w, const Convolution& conv) {
  if (conv.is_linear()) return torch::stable::matmul(x, torch::stable::transpose(w, 0, 1));
  return aten::convolution(x, w, conv.stride, conv.padding, conv.dilation, conv.groups);
}

std::pair<Tensor, Tensor> convolve_backward(const Tensor& e, const Tensor& x, const Tensor& w, const Convolution& conv,
                                            bool need_input, bool need_weight) {
  if (!conv.is_linear()) {
    return aten::convolution_backward(e, x, w, conv.stride, conv.padding, conv.dilation, conv.groups, need_input,
                                      need_weight);
  }
  return {need_input ? torch::stable::matmul(e, w) : Tensor(),
          need_weight ? torch::stable::matmul(torch::stable::transpose(e, 0, 1), x) : Tensor()};
}

// r and 1 / d of a chunk; `r` is written in place, 1 / d is returned.
template <class T>
Tensor norms(const Layout& layout, const Tensor& x, T delta, const Tensor& r) {
  const Geometry& geo = layout.geo;
  const Tensor plane = empty({geo.batch, geo.groups, geo.in_pixels()}, kType<T>);
  const Tensor inverse = empty({geo.batch, geo.groups, geo.out_pixels()}, kType<T>);
  parallel(geo.batch * geo.in_pixels(), geo.groups * geo.in_channels,
           [&](Range tasks) { passes<T>().sum_of_squares(layout, data<T>(x), mutable_data<T>(plane), tasks); });
  parallel(geo.batch * geo.groups * geo.out[0] * geo.out[1], geo.out[2] * geo.kernel[1] * geo.kernel[2],
           [&](Range tasks) {
             passes<T>().patch_norm(layout, data<T>(plane), delta, mutable_data<T>(r), mutable_data<T>(inverse), tasks);
           });
  return inverse;
}

Layout chunk_layout(Geometry geo, int64_t count, bool channels_last) {
  geo.batch = count;
  return {geo, channels_last};
}

Axes norm_shape(const Geometry& geo, int64_t rank) {
  Axes shape{geo.batch, geo.groups};
  shape.insert(shape.end(), geo.out + kAxes - rank, geo.out + kAxes);
  return shape;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& input, const Tensor& weight, const Optional& bias,
                                              T alpha, const Convolution& conv, T delta, bool relu, bool save) {
  const Geometry geo = make_geometry(input, weight, conv.stride, conv.padding, conv.dilation, conv.groups);
  const ScalarType type = input.scalar_type();
  const Tensor w = torch::stable::to(weight, kType<T>);
  const Tensor b = bias_or_zeros<T>(bias, geo.groups * geo.out_channels);
  const Tensor norm = empty(norm_shape(geo, conv.stride.size()), kType<T>);
  Tensor y, z = empty({0}, type);
  if (geo.batch == 0) {  // ATen knows the shape and format of an empty result
    return {convolve(input, weight, conv), save ? convolve(input, weight, conv) : z, norm};
  }
  for_each_chunk(geo, sizeof(T), [&](int64_t first, int64_t count) {
    const Tensor x = torch::stable::to(images(input, first, count), kType<T>);
    const Tensor u = convolve(x, w, conv);
    const Layout layout = chunk_layout(geo, count, is_channels_last(u));
    if (first == 0) {
      y = count == geo.batch && type == kType<T> ? u : empty_images(u, geo.batch, type);
      if (save) z = empty_images(u, geo.batch, type);
    }
    const Tensor inverse =
        norms<T>(layout, in_layout(x, layout.channels_last, kType<T>), delta, images(norm, first, count));
    // A narrower result is computed in place and copied: the copy narrows.
    const bool narrow = type != kType<T>;
    const Tensor chunk_y = narrow ? u : images(y, first, count);
    const Tensor chunk_z = !save ? z : narrow ? empty_images(u, count, kType<T>) : images(z, first, count);
    const ForwardEpilogue<T> args{data<T>(u), data<T>(inverse),        data<T>(b), alpha,
                                  relu,       mutable_data<T>(chunk_y), save ? mutable_data<T>(chunk_z) : nullptr};
    const int64_t tasks = count * geo.out_pixels() * (layout.channels_last ? 1 : geo.groups * geo.out_channels);
    parallel(tasks, layout.channels_last ? geo.groups * geo.out_channels : 1,
             [&](Range range) { passes<T>().forward_epilogue(layout, args, range); });
    if (!narrow) return;
    Tensor y_part = images(y, first, count), z_part = z;
    torch::stable::copy_(y_part, chunk_y);
    if (!save) return;
    z_part = images(z, first, count);
    torch::stable::copy_(z_part, chunk_z);
  });
  return {y, z, norm};
}

// <w, dw>, in a fixed order; dw becomes alpha * dw.
template <class T>
double scale_weight_gradient(const Tensor& w, const Tensor& dw, T alpha) {
  constexpr int64_t kBlock = 1 << 14;
  const int64_t blocks = ceil_div(w.numel(), kBlock);
  std::vector<double> partial(blocks, 0.0);
  const T* weight = data<T>(w);
  T* gradient = mutable_data<T>(dw);
  parallel(blocks, kBlock, [&](Range range) {
    for (int64_t block = range.begin; block < range.end; ++block) {
      const int64_t end = std::min(w.numel(), (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) {
        partial[block] += static_cast<double>(weight[i]) * gradient[i];
        gradient[i] *= alpha;
      }
    }
  });
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

struct Needs {
  bool input, weight, alpha, bias;
};

template <class T>
class Backward {
 public:
  Backward(const Geometry& geo, const Convolution& conv, const Tensor& weight, const Optional& bias, T alpha, T delta,
           bool channels_last, bool moment_from_y, Needs needs)
      : geo_(geo), conv_(conv), needs_(needs), alpha_(alpha), delta_(delta), moment_from_y_(moment_from_y),
        channels_last_(channels_last), w_(torch::stable::to(weight, kType<T>)),
        b_(bias_or_zeros<T>(bias, geo.groups * geo.out_channels)), bias_sum_(geo.groups * geo.out_channels, 0.0) {}

  // One chunk: e and its moments, both convolutions, and the input's epilogue, written to `dx`.
  void chunk(const Tensor& grad, const Tensor& x, const Tensor* y, const Tensor* z, const Tensor& r, const Tensor& dx) {
    const Layout layout = chunk_layout(geo_, x.size(0), channels_last_);
    const Geometry& geo = layout.geo;
    const int64_t channels = geo.groups * geo.out_channels;
    const Tensor e = empty_images(grad, geo.batch, kType<T>);
    const Tensor moment = empty({geo.batch, geo.groups, geo.out_pixels()}, kType<T>);
    const Tensor partials = empty({needs_.bias ? layout.bias_partials() : 0, channels}, kType<T>);
    const bool need_moment = needs_.input || (needs_.alpha && !needs_.weight);
    const BackwardPrologue<T> args{data<T>(grad),
                                   y ? data<T>(*y) : nullptr,
                                   z ? data<T>(*z) : nullptr,
                                   data<T>(b_),
                                   data<T>(r),
                                   delta_,
                                   moment_from_y_,
                                   mutable_data<T>(e),
                                   need_moment ? mutable_data<T>(moment) : nullptr,
                                   needs_.bias ? mutable_data<T>(partials) : nullptr};
    const int64_t tasks = layout.prologue_tasks();
    parallel(tasks, geo.batch * geo.out_pixels() * channels / std::max<int64_t>(1, tasks),
             [&](Range range) { passes<T>().backward_prologue(layout, args, range); });
    if (needs_.bias) add_bias(data<T>(partials), layout.bias_partials());
    if (needs_.alpha && !needs_.weight) add_alpha(data<T>(moment), moment.numel());
    if (!needs_.input && !needs_.weight) return;

    const auto [conv_grad, dw] = convolve_backward(e, x, w_, conv_, needs_.input, needs_.weight);
    if (needs_.weight) add_weight(dw);
    if (needs_.input) input_epilogue(layout, in_layout(conv_grad, channels_last_, kType<T>), x, moment, r, dx);
  }

  std::optional<Tensor> weight_gradient() const { return weight_sum_; }
  const Tensor& weight() const { return w_; }
  const std::vector<double>& bias_gradient() const { return bias_sum_; }
  double alpha_gradient() const { return alpha_sum_; }

 private:
  void add_weight(const Tensor& dw) {
    if (!weight_sum_) {
      weight_sum_ = dw;
      return;
    }
    const T* part = data<T>(dw);
    T* sum = mutable_data<T>(*weight_sum_);
    parallel(dw.numel(), 1, [&](Range range) {
      for (int64_t i = range.begin; i < range.end; ++i) sum[i] += part[i];
    });
  }

  void add_bias(const T* partials, int64_t rows) {
    const int64_t channels = static_cast<int64_t>(bias_sum_.size());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t o = 0; o < channels; ++o) bias_sum_[o] += partials[row * channels + o];
    }
  }

  void add_alpha(const T* moment, int64_t count) {
    for (int64_t i = 0; i < count; ++i) alpha_sum_ += moment[i];
  }

  void input_epilogue(const Layout& layout, const Tensor& conv_grad, const Tensor& x, const Tensor& moment,
                      const Tensor& r, const Tensor& dx) const {
    const Geometry& geo = layout.geo;
    const T scale = moment_from_y_ ? T(1) : alpha_;
    T* q = mutable_data<T>(moment);
    const T* norm = data<T>(r);
    const Tensor box = empty({geo.batch, geo.groups, geo.in_pixels()}, kType<T>);
    parallel(moment.numel(), 1, [&](Range range) {
      for (int64_t i = range.begin; i < range.end; ++i) q[i] = norm_gradient(scale * q[i], norm[i], delta_);
    });
    parallel(geo.batch * geo.groups * geo.in[0] * geo.in[1], geo.in[2] * geo.kernel[1] * geo.kernel[2],
             [&](Range range) { passes<T>().transposed_box(layout, q, mutable_data<T>(box), range); });
    const int64_t channels = geo.groups * geo.in_channels;
    parallel(geo.batch * geo.in_pixels() * (layout.channels_last ? 1 : channels), layout.channels_last ? channels : 1,
             [&](Range range) {
               passes<T>().input_epilogue(layout, data<T>(conv_grad), data<T>(x), data<T>(box), alpha_,
                                          mutable_data<T>(dx), range);
             });
  }

  const Geometry geo_;
  const Convolution& conv_;
  const Needs needs_;
  const T alpha_, delta_;
  const bool moment_from_y_, channels_last_;
  const Tensor w_, b_;
  std::optional<Tensor> weight_sum_;
  std::vector<double> bias_sum_;
  double alpha_sum_ = 0;
};

Tensor from_doubles(const std::vector<double>& values, const Axes& shape, ScalarType type) {
  const Tensor wide = empty(shape, ScalarType::Double);
  std::copy(values.begin(), values.end(), mutable_data<double>(wide));
  return torch::stable::to(wide, type);
}

// The gradient in the weight's own type and strides.
template <class T>
std::pair<Tensor, double> finish_weight(const Tensor& weight, const Backward<T>& backward, T alpha) {
  Tensor dw = torch::stable::empty_like(backward.weight());
  if (!backward.weight_gradient()) return {torch::stable::to(torch::stable::zero_(dw), weight.scalar_type()), 0.0};
  torch::stable::copy_(dw, *backward.weight_gradient());
  const double dot = scale_weight_gradient<T>(backward.weight(), dw, alpha);
  return {torch::stable::to(dw, weight.scalar_type()), dot};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                       const Optional& bias, const Tensor& alpha,
                                                       const Optional& output, const Optional& quotient,
                                                       const Tensor& norm, const Convolution& conv, T delta,
                                                       Needs needs) {
  const Geometry geo = make_geometry(input, weight, conv.stride, conv.padding, conv.dilation, conv.groups);
  const ScalarType type = input.scalar_type();
  const T alpha_value = static_cast<T>(scalar_of(alpha));
  const bool needs_moment = needs.input || (needs.alpha && !needs.weight);
  STD_TORCH_CHECK(!needs_moment || quotient || (output && needs.input),
                  "quotient must be given for the gradients that output_mask asks for");
  const bool channels_last = is_channels_last(quotient ? *quotient : output ? *output : grad);
  const bool narrow = type != kType<T>;

  Tensor none = empty({0}, type);
  Tensor dx = none;
  if (needs.input) dx = torch::stable::empty_like(in_layout(input, channels_last, type));
  Backward<T> backward(geo, conv, weight, bias, alpha_value, delta, channels_last, needs_moment && !quotient, needs);
  for_each_chunk(geo, sizeof(T), [&](int64_t first, int64_t count) {
    const auto part = [&](const Tensor& t) { return in_layout(images(t, first, count), channels_last, kType<T>); };
    const Optional y = output ? Optional(part(*output)) : std::nullopt;
    const Optional z = quotient && needs_moment ? Optional(part(*quotient)) : std::nullopt;
    const Tensor x = part(input);
    Tensor dx_part = needs.input ? images(dx, first, count) : none;
    const Tensor dx_wide = needs.input && narrow ? torch::stable::empty_like(x) : dx_part;
    backward.chunk(part(grad), x, y ? &*y : nullptr, z ? &*z : nullptr, images(norm, first, count), dx_wide);
    if (needs.input && narrow) torch::stable::copy_(dx_part, dx_wide);
  });

  Tensor dw = none, dalpha = none, db = none;
  double alpha_sum = backward.alpha_gradient();
  if (needs.weight) std::tie(dw, alpha_sum) = finish_weight<T>(weight, backward, alpha_value);
  if (needs.alpha) dalpha = from_doubles({alpha_sum}, {}, alpha.scalar_type());
  if (needs.bias) db = from_doubles(backward.bias_gradient(), {weight.size(0)}, type);
  return {dx, dw, dalpha, db};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, Tensor weight, Optional bias, Tensor alpha, Axes stride,
                                           Axes padding, Axes dilation, int64_t groups, double delta, bool relu,
                                           bool save_quotient) {
  const aten::NoGrad guard;
  const Convolution conv{std::move(stride), std::move(padding), std::move(dilation), groups};
  const double scale = scalar_of(alpha);
  if (input.scalar_type() == ScalarType::Double) {
    return forward_as<double>(input, weight, bias, scale, conv, delta, relu, save_quotient);
  }
  return forward_as<float>(input, weight, bias, static_cast<float>(scale), conv, static_cast<float>(delta), relu,
                           save_quotient);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor weight, Optional bias,
                                                    Tensor alpha, Optional output, Optional quotient, Tensor norm,
                                                    Axes stride, Axes padding, Axes dilation, int64_t groups,
                                                    double delta, std::vector<bool> output_mask) {
  const aten::NoGrad guard;
  STD_TORCH_CHECK(output_mask.size() == 4, "output_mask must have 4 entries: input, weight, alpha, bias");
  const Convolution conv{std::move(stride), std::move(padding), std::move(dilation), groups};
  const Needs needs{output_mask[0], output_mask[1], output_mask[2], output_mask[3]};
  if (input.scalar_type() == ScalarType::Double) {
    return backward_as<double>(grad, input, weight, bias, alpha, output, quotient, norm, conv, delta, needs);
  }
  return backward_as<float>(grad, input, weight, bias, alpha, output, quotient, norm, conv,
                            static_cast<float>(delta), needs);
}

}  // namespace ccn::cpu
