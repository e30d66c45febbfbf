// The backward operator for CUDA tensors (SPEC: e = g / d, q, and three sums over them).
#include <torch/csrc/stable/library.h>

#include "../explained.h"
#include "call.cuh"

namespace ccn::cuda {
namespace {

constexpr float kTopOfHalf = 1 << 14;  // what the largest |e| in fp16 is scaled to; sums of it are fp32
constexpr int64_t kMostSums = 1024;    // blocks that share in one sum

// The power of two that brings the largest |e| of all blocks below `top`, and its inverse.
__global__ void scale_for_errors(const float* largest, int64_t count, float top, float* scale) {
  float most = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWarp) most = fmaxf(most, largest[i]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  if (threadIdx.x != 0) return;
  const float power = most > 0 ? fminf(floorf(log2f(top / most)), 100.0f) : 0.0f;
  scale[0] = exp2f(power);
  scale[1] = exp2f(-power);
}

template <class S>
class Backward {
  using A = Accumulator<S>;

 public:
  Backward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
           const Geometry& geo, double delta, Needs needs, bool tf32)
      : input_(input), weight_(weight), geo_(geo), needs_(needs), tf32_(tf32), direct_(goes_direct(geo)),
        delta_(static_cast<A>(delta)),
        padded_(direct_ ? geo.out_channels : whole_chunks<S>(geo.out_channels)),
        bias_(bias ? std::optional(in_layout(*bias, false, kScalar<S>)) : std::nullopt),
        alpha_(as_type(alpha, kSumScalar<S>)),
        e_(make({geo.batch * geo.out_pixels(), geo.groups * padded_}, kScalar<S>)) {}

  // e and q; the sums of the bias and, where they are not had from the weight's gradient, of alpha.
  void prologue(const Tensor& grad, const std::optional<Tensor>& output, const std::optional<Tensor>& quotient,
                const Tensor& norm, const Tensor& dbias, const Tensor& dalpha) {
    const int64_t patches = geo_.batch * geo_.groups * geo_.out_pixels(), outputs = geo_.groups * geo_.out_channels;
    const bool sums_moments = needs_.alpha && !needs_.weight;
    std::optional<Tensor> partials, moments;
    const int64_t tiles = ceil_div(geo_.batch * geo_.out_pixels(), kTilePixels);
    const int64_t row_tiles = ceil_div(tiles, kMostRows), rows = ceil_div(tiles, row_tiles);
    if (needs_.bias) partials = make({rows, outputs}, kSumScalar<S>);
    if (needs_.input) q_ = make({patches}, kSumScalar<S>);
    if (sums_moments) moments = make({patches}, kSumScalar<S>);
    Prologue<S> args{geo_, activation<const S>(grad, geo_.out_channels, geo_.out), view(output),
                     needs_.moment() ? view(quotient) : view(std::nullopt), bias_ ? data<S>(*bias_) : nullptr,
                     data<A>(alpha_), data<A>(norm), delta_, needs_.moment() && !quotient, nullptr,
                     static_cast<int>(padded_), mutable_data<S>(e_), data_or_null<A>(q_), row_tiles,
                     data_or_null<A>(partials), data_or_null<A>(moments), 1, nullptr};
    // where there are few pixels, several blocks share a pixel's channels
    const int64_t blocks = rows * geo_.groups, most = std::min(kBlocks / blocks, ceil_div(padded_, kTilePixels));
    args.shares = static_cast<int>(std::max<int64_t>(1, most));
    if constexpr (std::is_same_v<S, Half>) args.scale = scale_errors(args, patches, blocks * args.shares);
    if (direct_) {
      launch_over(direct_prologue<S>, patches, args, patches);
      if (needs_.bias) launch_over(direct_bias_partials<S>, rows * outputs, args, rows * outputs);
    } else {
      std::optional<Tensor> shares;
      if (args.shares > 1) shares = make({args.shares, patches}, kSumScalar<S>);
      args.moment_shares = data_or_null<A>(shares);
      launch(backward_prologue<S>, blocks * args.shares, kThreads, prologue_shared_bytes<S>(), args);
      if (args.shares > 1) launch_over(add_moments<S>, patches, args, patches);
    }
    if (needs_.bias) {
      launch(sum_columns<A, S>, ceil_div(outputs, kTilePixels), kThreads, kThreads * sizeof(double), data<A>(*partials),
             rows, outputs, mutable_data<S>(dbias));
    }
    if (sums_moments) sum(data<A>(*moments), patches, dalpha);
  }

  void input_gradient(const Tensor& dx) const {
    const InputGradient<S> result{data<A>(alpha_), scale(), activation<const S>(input_, geo_.in_channels, geo_.in),
                                  data<A>(*q_), activation<S>(dx, geo_.in_channels, geo_.in)};
    if (direct_) {
      launch_over(direct_input_gradient<S>, dx.numel(), geo_, data<S>(e_), weight_of<const S>(weight_), result, dx.numel());
      return;
    }
    int64_t taps = 1, all_phases = 1;
    for (int axis = 0; axis < kAxes; ++axis) {
      int64_t most = 0;
      for (int64_t phase = 0; phase < phases(geo_, axis); ++phase) {
        most = std::max<int64_t>(most, gradient_window(geo_, axis, phase).taps);
      }
      taps *= most;
      all_phases *= phases(geo_, axis);
    }
    const int64_t row = taps * padded_, count = all_phases * geo_.groups * geo_.in_channels * row;
    const Tensor packed = make({count}, kScalar<S>);
    launch_over(pack_weight<S, true>, count, geo_, InputGradient<S>::windows(geo_, 0), weight_of<const S>(weight_), count,
                row, static_cast<int>(padded_), mutable_data<S>(packed));
    const Product<S> product{geo_, {}, packed_activation<const S>(e_, geo_, padded_, geo_.out), data<S>(packed), row,
                             static_cast<int>(geo_.in_channels), 1, nullptr, nullptr};
    run_product(plan_of<S>(true, geo_.in_channels, tf32_), product, result, all_phases, input_);
  }

  void weight_gradient(const Tensor& dw, const Tensor& dalpha) const {
    const int64_t outputs = geo_.groups * geo_.out_channels, places = geo_.batch * geo_.out_pixels();
    std::optional<Source<S>> source;
    Activation<const S> x = activation<const S>(input_, geo_.in_channels, geo_.in);
    if (!direct_) x = source.emplace(input_, geo_).activation;
    const TilePlan plan = plan_of<S>(source && source->together, geo_.out_channels, tf32_);
    const int64_t depth = geo_.taps() * x.channels, share_bytes = outputs * depth * sizeof(A);
    const int64_t tiles = plan.tiles(depth, geo_.out_channels) * geo_.groups;
    const int64_t work = direct_ ? ceil_div(outputs * depth, kThreads) : tiles;
    const int64_t least = ceil_div(places, int64_t(1) << 30);  // places of a split are counted in 32 bits
    const int64_t splits = std::max<int64_t>(least, splits_of(work, ceil_div(places, kStep<S>), share_bytes, kMostSums));
    const int64_t of_split = ceil_div(ceil_div(places, splits), kStep<S>) * kStep<S>;
    WeightGradient<S> args{geo_, Forward<S>::windows(geo_, 0), x, data<S>(e_), static_cast<int>(padded_),
                           static_cast<int>(geo_.out_channels), static_cast<int>(ceil_div(places, of_split)), of_split,
                           nullptr};
    const Tensor shares = make({args.splits, outputs, depth}, kSumScalar<S>);
    args.shares = mutable_data<A>(shares);
    if (direct_) {
      launch_over(direct_weight_gradient<S>, shares.numel(), args, shares.numel());
    } else {
      run_weight_gradient(plan, args);
    }
    const int64_t blocks = std::min(ceil_div(dw.numel(), kThreads), kMostSums);
    const Tensor products = make({blocks}, ScalarType::Double);
    const FinishWeight<S> finish{geo_, args.shares, args.splits, static_cast<int>(geo_.taps()), x.channels,
                                 data<A>(alpha_), scale(), weight_of<const S>(weight_), weight_of<S>(dw),
                                 mutable_data<double>(products)};
    launch(finish_weight<S>, blocks, kThreads, kThreads * sizeof(double), finish);
    if (needs_.alpha) finish_sum(products, dalpha);
  }

 private:
  Tensor make(const Axes& shape, ScalarType type) const { return empty(shape, type, input_); }
  const A* scale() const { return scale_ ? data<A>(*scale_) : nullptr; }

  Activation<const S> view(const std::optional<Tensor>& t) const {
    return t ? activation<const S>(*t, geo_.out_channels, geo_.out) : Activation<const S>{};
  }

  const A* scale_errors(const Prologue<S>& args, int64_t patches, int64_t tile_blocks) {
    const int64_t blocks = direct_ ? std::min(ceil_div(patches, kThreads), kMostSums) : tile_blocks;
    const Tensor largest = make({blocks}, ScalarType::Float);
    scale_ = make({2}, ScalarType::Float);
    if (direct_) {
      launch(direct_largest_error<S>, blocks, kThreads, kThreads * sizeof(float), args, patches,
             mutable_data<float>(largest));
    } else {
      launch(largest_error<S>, blocks, kThreads, largest_shared_bytes<S>(), args, mutable_data<float>(largest));
    }
    launch(scale_for_errors, 1, kWarp, 0, data<float>(largest), blocks, kTopOfHalf, mutable_data<float>(*scale_));
    return scale();
  }

  void sum(const A* values, int64_t count, const Tensor& to) const {
    const int64_t blocks = std::min(ceil_div(count, kThreads), kMostSums);
    const Tensor partials = make({blocks}, ScalarType::Double);
    launch(sum_share<A, double>, blocks, kThreads, kThreads * sizeof(double), values, count, mutable_data<double>(partials));
    finish_sum(partials, to);
  }

  void finish_sum(const Tensor& partials, const Tensor& to) const {
    launch(sum_share<double, A>, 1, kThreads, kThreads * sizeof(double), data<double>(partials), partials.numel(),
           mutable_data<A>(to));
  }

  const Tensor input_, weight_;
  const Geometry geo_;
  const Needs needs_;
  const bool tf32_, direct_;
  const A delta_;
  const int64_t padded_;
  const std::optional<Tensor> bias_;
  const Tensor alpha_, e_;
  std::optional<Tensor> q_, scale_;
};

template <class S>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& alpha,
                                                       const std::optional<Tensor>& output,
                                                       const std::optional<Tensor>& quotient, const Tensor& norm,
                                                       const Geometry& geo, double delta, Needs needs, bool tf32) {
  const auto if_asked = [&](bool asked, const auto& make) { return asked ? make() : empty({0}, kScalar<S>, input); };
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  const Tensor dx = if_asked(needs.input, [&] { return empty(shape_of(input), kScalar<S>, input, channels_last); });
  const Tensor dw = if_asked(needs.weight, [&] { return torch::stable::empty_like(weight); });
  const Tensor dalpha = if_asked(needs.alpha, [&] { return empty({}, kSumScalar<S>, input); });
  const Tensor dbias = if_asked(needs.bias, [&] { return empty({weight.size(0)}, kScalar<S>, input); });
  if (grad.numel() == 0) {
    for (Tensor t : {dx, dw, dalpha, dbias}) torch::stable::zero_(t);
  } else {
    Backward<S> backward(input, weight, bias, alpha, geo, delta, needs, tf32);
    backward.prologue(grad, output, quotient, norm, dbias, dalpha);
    if (needs.input) backward.input_gradient(dx);
    if (needs.weight) backward.weight_gradient(dw, dalpha);
  }
  return {dx, dw, needs.alpha ? as_type(dalpha, alpha.scalar_type()) : dalpha, dbias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor alpha,
                                                    std::optional<Tensor> output, std::optional<Tensor> quotient,
                                                    Tensor norm, Axes stride, Axes padding, Axes dilation,
                                                    int64_t groups, double delta, std::vector<bool> output_mask,
                                                    bool tf32) {
  const OnDevice guard(input);
  const aten::NoGrad no_grad;
  const Geometry geo = checked_geometry(input, weight, bias, alpha, stride, padding, dilation, groups);
  const Needs needs = make_needs(output_mask);
  check_saved(geo, stride.size(), input, weight, grad, output, quotient, norm, needs);
  return for_type(input, [&]<class S>(S) {
    const auto typed = [&](const std::optional<Tensor>& t) { return t ? std::optional(as_type(*t, kScalar<S>)) : t; };
    return backward_as<S>(*typed(grad), input, weight, bias, alpha, typed(output),
                          typed(needs.moment() ? quotient : std::nullopt), in_layout(norm, false, norm.scalar_type()),
                          geo, delta, needs, tf32);
  });
}

}  // namespace
}  // namespace ccn::cuda

STABLE_TORCH_LIBRARY_IMPL(CCN_NAMESPACE, CCN_DISPATCH_KEY, library) {
  library.impl("compact_conv_backward", TORCH_BOX(&ccn::Explained<&ccn::cuda::backward>::call));
}
