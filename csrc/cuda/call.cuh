// One call on its way to the kernels: tensors as they see them, and what is chosen for it.
#pragma once

#include "../tensors.h"
#include "direct.cuh"
#include "tiles.cuh"

namespace ccn::cuda {

constexpr int64_t kBlocks = 2 * 132;     // of tiles that fill a GPU: a constant, so that sums have one order on every GPU
constexpr int kFew = 16;                 // channels of a group: fewer are gathered one by one; several such groups go direct
constexpr int64_t kMostGathered = 1024;  // columns of K, whose taps lie in shared memory
constexpr int64_t kLeastSteps = 8;       // of a share of K
constexpr int64_t kMostSplits = 4;       // of a product: more shares of its results would cost more than they save
constexpr int64_t kMostShareBytes = 256 << 20;

template <class S>
constexpr ScalarType kScalar = std::is_same_v<S, Half>       ? ScalarType::Half
                               : std::is_same_v<S, BFloat16> ? ScalarType::BFloat16
                               : std::is_same_v<S, double>   ? ScalarType::Double
                                                             : ScalarType::Float;
template <class S>
constexpr ScalarType kSumScalar = kScalar<Accumulator<S>>;

// Calls visit(S()) for the type S of a tensor.
template <class Visit>
auto for_type(const Tensor& tensor, const Visit& visit) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return visit(Half());
    case ScalarType::BFloat16: return visit(BFloat16());
    case ScalarType::Double: return visit(double());
    default: return visit(float());
  }
}

// To what is only read, a constant one: a tensor that is copied on write stays uncopied.
template <class S>
S* pointer(const Tensor& t) {
  if constexpr (std::is_const_v<S>) return static_cast<S*>(t.const_data_ptr());
  else return static_cast<S*>(t.mutable_data_ptr());
}

template <class S>
Activation<S> activation(const Tensor& t, int64_t channels, const int64_t (&extent)[kAxes]) {
  Activation<S> result{};
  result.data = pointer<S>(t);
  result.channels = static_cast<int>(channels);
  result.image = t.stride(0);
  result.channel = t.stride(1);
  for (int axis = 0; axis < kAxes; ++axis) {
    const int64_t at = axis + t.dim() - kAxes;
    result.extent[axis] = static_cast<int>(extent[axis]);
    result.stride[axis] = at >= 2 ? t.stride(at) : 0;
  }
  return result;
}

// [N, pixels, groups * channels], dense.
template <class S>
Activation<S> packed_activation(const Tensor& t, const Geometry& geo, int64_t channels, const int64_t (&extent)[kAxes]) {
  const int64_t pixel = geo.groups * channels;
  Activation<S> result{pointer<S>(t), static_cast<int>(channels), {}, 0, 1, {}};
  result.image = extent[0] * extent[1] * extent[2] * pixel;
  result.stride[2] = pixel;
  result.stride[1] = extent[2] * pixel;
  result.stride[0] = extent[1] * extent[2] * pixel;
  for (int axis = 0; axis < kAxes; ++axis) result.extent[axis] = static_cast<int>(extent[axis]);
  return result;
}

template <class S>
Weight<S> weight_of(const Tensor& t) {
  Weight<S> result{pointer<S>(t), t.stride(0), t.stride(1), {}};
  for (int axis = 0; axis < kAxes; ++axis) {
    const int64_t at = axis + t.dim() - kAxes;
    result.tap[axis] = at >= 2 ? t.stride(at) : 0;
  }
  return result;
}

template <class S>
int64_t whole_chunks(int64_t elements) { return ceil_div(elements, kChunk<S>) * kChunk<S>; }

// 32-bit coordinates: of any place, of any tap, and of sums of places and steps.
inline void check_extents(const Geometry& geo) {
  for (int axis = 0; axis < kAxes; ++axis) {
    STD_TORCH_CHECK(geo.in[axis] > 0, "input must have at least 1 pixel along every axis");
    const int64_t reach = geo.in[axis] + 2 * geo.padding[axis] + geo.kernel[axis] * geo.dilation[axis];
    STD_TORCH_CHECK(reach < (1 << 29) && geo.stride[axis] < (1 << 29),
                    "input is too long for the CUDA kernels along an axis");
  }
  STD_TORCH_CHECK(geo.in_pixels() < (1 << 30) && geo.out_pixels() < (1 << 30),
                  "input is too large for the CUDA kernels: its images have 2^30 pixels or more");
  const int64_t channels = std::max(geo.in_channels, geo.out_channels) + kChunkBytes;  // may be padded to whole chunks
  STD_TORCH_CHECK(geo.taps() * channels < (1 << 30),
                  "weight is too large for the CUDA kernels: its patches have 2^30 elements or more");
}

// The geometry of a call whose arguments fit each other and the kernels.
inline Geometry checked_geometry(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const Tensor& alpha, const Axes& stride, const Axes& padding, const Axes& dilation,
                                 int64_t groups) {
  const Geometry geo = make_geometry(input, weight, stride, padding, dilation, groups);
  check_extents(geo);
  if (bias) check_shape("bias", *bias, {weight.size(0)});
  check_shape("alpha", alpha, {});
  return geo;
}

// Groups too small for a tile.
inline bool goes_direct(const Geometry& geo) {
  return geo.groups > 1 && (geo.in_channels < kFew || geo.out_channels < kFew);
}

template <class S>
bool takes_tensor_cores(bool tf32) { return sizeof(S) == 2 || (std::is_same_v<S, float> && tf32); }

// The input as a product's source: itself, if its channels lie together in whole chunks; itself, to be gathered element by
// element, if they are few; else a packed copy.
template <class S>
struct Source {
  Activation<const S> activation;
  std::optional<Tensor> copy;
  bool together;

  Source(const Tensor& input, const Geometry& geo)
      : activation(cuda::activation<const S>(input, geo.in_channels, geo.in)) {
    together = takes_chunks(activation, geo.in_channels);
    if (together || (geo.in_channels < kFew && geo.in_channels * geo.taps() <= kMostGathered)) return;
    const int64_t padded = whole_chunks<S>(geo.in_channels), pixels = geo.batch * geo.in_pixels();
    copy = empty({pixels, geo.groups * padded}, kScalar<S>, input);
    const int64_t blocks = ceil_div(pixels, kTilePixels) * ceil_div(padded, kTilePixels) * geo.groups;
    launch(pack_activation<S>, blocks, kThreads, pack_shared_bytes<S>(), activation, pixels, static_cast<int>(geo.groups),
           static_cast<int>(padded), mutable_data<S>(*copy));
    activation = packed_activation<const S>(*copy, geo, padded, geo.in);
    together = true;
  }
};

// Into how many shares K is split, so that the blocks of `tiles` fill a GPU once.
inline int splits_of(int64_t tiles, int64_t steps, int64_t share_bytes, int64_t most) {
  most = std::min({most, steps / kLeastSteps, kMostShareBytes / std::max<int64_t>(1, share_bytes)});
  return static_cast<int>(std::max<int64_t>(1, std::min(kBlocks / std::max<int64_t>(1, tiles), most)));
}

// Runs the product, its K split where there are few tiles.
template <class S, class Result>
void run_product(const TilePlan& plan, Product<S> args, const Result& result, int64_t phases, const Tensor& like) {
  using A = Accumulator<S>;
  args.windows = Result::windows(args.geo, 0);
  const int64_t places = args.geo.batch * args.windows.places(), all = args.geo.groups * args.outputs;
  const int64_t tiles = plan.tiles(places, args.outputs) * args.geo.groups;
  const int64_t steps = ceil_div(args.weight_row, kStep<S>);
  args.splits = phases > 1 ? 1 : splits_of(tiles, steps, places * all * sizeof(A), kMostSplits);
  std::optional<Tensor> sums, squares;
  if (args.splits > 1) {
    sums = empty({args.splits, places, all}, kSumScalar<S>, like);
    squares = empty({args.splits, places, args.geo.groups}, kSumScalar<S>, like);
    args.sums = mutable_data<A>(*sums);
    args.squares = mutable_data<A>(*squares);
  }
  run_convolve(plan, args, result, phases);
}

template <class S>
TilePlan plan_of(bool together, int64_t outputs, bool tf32) {
  return {takes_tensor_cores<S>(tf32), together, outputs > 64 && takes_tensor_cores<S>(tf32)};
}

}  // namespace ccn::cuda
