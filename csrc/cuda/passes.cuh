// What is no product: packing, the backward pass's e and q, and sums in a fixed order.
#pragma once

#include "results.cuh"

namespace ccn::cuda {

constexpr int kTilePixels = 32;  // of the kernels that turn tiles around in shared memory
constexpr int kTileLanes = kThreads / kTilePixels;
constexpr int kEachLane = kTilePixels / kTileLanes;
constexpr int64_t kMostRows = 1024;  // of partial sums

// A tile of 32 pixels by 32 channels is read along whichever of them lies together, and written along channels.
struct TilePlace {
  int pixel, channel;

  __device__ TilePlace(bool channels_together, int i) {
    const int lane = threadIdx.x % kTilePixels, other = threadIdx.x / kTilePixels + i * kTileLanes;
    pixel = channels_together ? other : lane;
    channel = channels_together ? lane : other;
  }
};

struct PixelOf {
  int64_t n, index;
  int at[kAxes];

  template <class S>
  __device__ PixelOf(const Activation<S>& tensor, int64_t pixel) {
    const int64_t area = static_cast<int64_t>(tensor.extent[1]) * tensor.extent[2], pixels = tensor.extent[0] * area;
    n = pixel / pixels;
    index = pixel % pixels;
    at[0] = static_cast<int>(index / area);
    at[1] = static_cast<int>(index % area / tensor.extent[2]);
    at[2] = static_cast<int>(index % tensor.extent[2]);
  }
};

// packed[pixel, group, channel of `padded`] = x, 0 beyond its channels. A block a tile of pixels and channels.
template <class S>
__global__ void __launch_bounds__(kThreads) pack_activation(Activation<const S> x, int64_t pixels, int groups, int padded,
                                                            S* packed) {
  int64_t* const offsets = reinterpret_cast<int64_t*>(shared_memory());  // [32] of the pixels
  S* const tile = reinterpret_cast<S*>(offsets + kTilePixels);           // [32][33]
  const int blocks = (padded + kTilePixels - 1) / kTilePixels, group = blockIdx.x / blocks % groups;
  const int64_t first = blockIdx.x / blocks / groups * static_cast<int64_t>(kTilePixels);
  const int first_channel = static_cast<int>(blockIdx.x % blocks) * kTilePixels;
  const int rows = static_cast<int>(pixels - first < kTilePixels ? pixels - first : kTilePixels);
  if (static_cast<int>(threadIdx.x) < rows) {
    const PixelOf pixel(x, first + threadIdx.x);
    offsets[threadIdx.x] = x.at(pixel.n, static_cast<int64_t>(group) * x.channels, pixel.at);
  }
  __syncthreads();
  for (int i = 0; i < kEachLane; ++i) {
    const TilePlace place(x.channel == 1, i);
    const int channel = first_channel + place.channel;
    const bool valid = place.pixel < rows && channel < x.channels;
    tile[place.pixel * (kTilePixels + 1) + place.channel] =
        valid ? x.data[offsets[place.pixel] + channel * x.channel] : S(0);
  }
  __syncthreads();
  for (int i = 0; i < kEachLane; ++i) {
    const TilePlace place(true, i);
    const int channel = first_channel + place.channel;
    if (place.pixel >= rows || channel >= padded) continue;
    packed[((first + place.pixel) * groups + group) * padded + channel] =
        tile[place.pixel * (kTilePixels + 1) + place.channel];
  }
}

template <class S>
constexpr size_t pack_shared_bytes() {
  return kTilePixels * (sizeof(int64_t) + (kTilePixels + 1) * sizeof(S));
}

// A weight [groups * outputs, channels, *kernel], by its strides.
template <class S>
struct Weight {
  S* data;
  int64_t output, channel, tap[kAxes];

  __device__ int64_t at(int64_t o, int64_t c, const int (&taps)[kAxes]) const {
    return o * output + c * channel + taps[0] * tap[0] + taps[1] * tap[1] + taps[2] * tap[2];
  }
  // ... of a tap by its number
  __device__ int64_t at(int64_t o, int64_t c, int64_t index, const Geometry& geo) const {
    const int64_t line = index / geo.kernel[2], plane = line / geo.kernel[1];
    const int taps[kAxes] = {static_cast<int>(plane), static_cast<int>(line - plane * geo.kernel[1]),
                             static_cast<int>(index - line * geo.kernel[2])};
    return at(o, c, taps);
  }
};

// Rows of the product's second operand: [phases, rows, row], each of its taps, and channels padded to `padded` in each.
// The forward's rows are outputs; the input gradient's (kGradient) are input channels, and what it sums are outputs.
template <class S, bool kGradient>
__global__ void pack_weight(Geometry geo, Weight<const S> weight, int64_t count, int64_t row, int padded, S* packed) {
  const int64_t of_group = kGradient ? geo.in_channels : geo.out_channels, rows = of_group * geo.groups;
  const int summed = static_cast<int>(kGradient ? geo.out_channels : geo.in_channels);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t r = i / row % rows, group = r / of_group;
    const int phase = static_cast<int>(i / row / rows), channel = static_cast<int>(i % row % padded);
    const Windows windows = kGradient ? InputGradient<S>::windows(geo, phase) : Forward<S>::windows(geo, 0);
    int64_t tap = i % row / padded, kernel_tap = 0;
    const bool valid = tap < windows.taps() && channel < summed;
    for (int axis = kAxes - 1, scale = 1; valid && axis >= 0; --axis) {
      kernel_tap += scale * windows.axis[axis].kernel_tap(static_cast<int>(tap % windows.axis[axis].taps));
      tap /= windows.axis[axis].taps;
      scale *= static_cast<int>(geo.kernel[axis]);
    }
    const int64_t output = kGradient ? group * geo.out_channels + channel : r;
    const int64_t input = kGradient ? r % geo.in_channels : channel;
    packed[i] = valid ? weight.data[weight.at(output, input, kernel_tap, geo)] : S(0);
  }
}

// What the backward's first pass reads and writes.
template <class S>
struct Prologue {
  using A = Accumulator<S>;

  Geometry geo;
  Activation<const S> grad, y, z;  // y: the fused ReLU's output, z: u / d; data null where there is none
  const S* bias;                   // or null
  const S* alpha;
  const A* r;                      // [N, groups, pixels]
  A delta;
  bool moment_from_y;              // take y - b for alpha * z
  const A* scale;                  // of e, or null
  int padded;                      // channels of a group in e
  S* e;                            // [N, pixels, groups, padded]
  A* q;                            // [N, groups, pixels], or null
  int64_t rows;                    // of partial sums, a block each
  A* bias_partials;                // [rows, groups * channels], or null
  A* moments;                      // [N, groups, pixels] sum_o grad * z, or null

  // One pixel of a group: where its first channel lies in each tensor, and its place in planes.
  struct Patch {
    int64_t grad, y, z, plane;
    A inverse;
  };

  __device__ int64_t pixels() const { return geo.batch * geo.out_pixels(); }
  __device__ Patch patch(int64_t index, int64_t group) const {
    const PixelOf pixel(grad, index);
    const int64_t channel = group * geo.out_channels, plane = (pixel.n * geo.groups + group) * geo.out_pixels() + pixel.index;
    return {grad.at(pixel.n, channel, pixel.at), y.at(pixel.n, channel, pixel.at), z.at(pixel.n, channel, pixel.at), plane,
            reciprocal_divisor(r[plane], delta)};
  }
  __device__ A open(const Patch& patch, int64_t channel) const {
    const A g = grad.data[patch.grad + channel * grad.channel];
    return y.data ? open_gradient(g, A(y.data[patch.y + channel * y.channel])) : g;
  }
  // What the moment sums.
  __device__ A product(const Patch& patch, int64_t channel, int64_t group, A open) const {
    if (!moment_from_y) return z.data ? open * A(z.data[patch.z + channel * z.channel]) : A(0);
    const A offset = bias ? A(bias[group * geo.out_channels + channel]) : A(0);
    return open * (A(y.data[patch.y + channel * y.channel]) - offset);
  }
  __device__ S error(const Patch& patch, A open) const {
    return static_cast<S>(scale ? open * patch.inverse * *scale : open * patch.inverse);
  }
  __device__ void finish(const Patch& patch, A moment) const {
    const A factor = moment_from_y ? A(1) : A(*alpha);
    if (q) q[patch.plane] = norm_gradient(factor * moment, r[patch.plane], delta);
    if (moments) moments[patch.plane] = moment;
  }
};

template <class S>
constexpr size_t prologue_shared_bytes() {
  using A = Accumulator<S>;
  return kTilePixels * (sizeof(typename Prologue<S>::Patch) + sizeof(A) * (2 * (kTilePixels + 1) + 2 * kTileLanes));
}

// A block a row of partial sums and a group: a range of pixels, 32 at a time, all channels of each.
template <class S>
__global__ void __launch_bounds__(kThreads, 4) backward_prologue(Prologue<S> args) {
  using A = Accumulator<S>;
  constexpr int kPitch = kTilePixels + 1;
  auto* const patches = reinterpret_cast<typename Prologue<S>::Patch*>(shared_memory());
  A* const open = reinterpret_cast<A*>(patches + kTilePixels);
  A* const products = open + kTilePixels * kPitch;
  A* const bias_sums = products + kTilePixels * kPitch;         // [lanes][32 channels]
  A* const moment_sums = bias_sums + kTileLanes * kTilePixels;  // [lanes][32 pixels]
  const int lane = threadIdx.x % kTilePixels, other = threadIdx.x / kTilePixels;
  const int group = static_cast<int>(blockIdx.x % args.geo.groups), channels = static_cast<int>(args.geo.out_channels);
  const int64_t block = blockIdx.x / args.geo.groups, tiles = ceil_div(args.pixels(), kTilePixels);
  const int64_t begin = tiles * block / args.rows, end = tiles * (block + 1) / args.rows;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTilePixels;
    const int rows = static_cast<int>(args.pixels() - first < kTilePixels ? args.pixels() - first : kTilePixels);
    if (static_cast<int>(threadIdx.x) < rows) patches[threadIdx.x] = args.patch(first + threadIdx.x, group);
    __syncthreads();
    A moment = 0;  // of pixel `lane`, over this thread's channels
    for (int c = 0; c < args.padded; c += kTilePixels) {
      for (int i = 0; i < kEachLane; ++i) {
        const TilePlace place(args.grad.channel == 1, i);
        const bool valid = place.pixel < rows && c + place.channel < channels;
        const A value = valid ? args.open(patches[place.pixel], c + place.channel) : A(0);
        open[place.pixel * kPitch + place.channel] = value;
        products[place.pixel * kPitch + place.channel] =
            valid ? args.product(patches[place.pixel], c + place.channel, group, value) : A(0);
      }
      __syncthreads();
      A sum = 0;
      for (int i = 0; i < kEachLane; ++i) {
        const int pixel = other + i * kTileLanes;
        const A value = open[pixel * kPitch + lane];
        sum += value;
        moment += products[lane * kPitch + other * kEachLane + i];
        if (pixel < rows && c + lane < args.padded) {
          args.e[((first + pixel) * args.geo.groups + group) * args.padded + c + lane] = args.error(patches[pixel], value);
        }
      }
      bias_sums[other * kTilePixels + lane] = sum;
      __syncthreads();
      if (args.bias_partials && other == 0 && c + lane < channels) {
        A& total = args.bias_partials[(block * args.geo.groups + group) * channels + c + lane];
        A added = tile == begin ? A(0) : total;
        for (int i = 0; i < kTileLanes; ++i) added += bias_sums[i * kTilePixels + lane];
        total = added;
      }
    }
    moment_sums[other * kTilePixels + lane] = moment;
    __syncthreads();
    if (other == 0 && lane < rows) {
      moment = 0;
      for (int i = 0; i < kTileLanes; ++i) moment += moment_sums[i * kTilePixels + lane];
      args.finish(patches[lane], moment);
    }
    __syncthreads();
  }
}

// The largest |e| that each block finds, and then the power of two that brings the largest of all below `top`.
template <class S>
__global__ void largest_error(Prologue<S> args, float* largest) {
  float* const shared = reinterpret_cast<float*>(shared_memory());  // [threads]
  const bool together = args.grad.channel == 1;
  const int64_t groups = args.geo.groups, pixels = args.geo.out_pixels();
  float most = 0;
  for (int64_t i = thread_index(); i < args.pixels() * groups; i += thread_count()) {
    const int64_t group = together ? i % groups : i / pixels % groups;
    const auto patch = args.patch(together ? i / groups : i / pixels / groups * pixels + i % pixels, group);
    for (int64_t c = 0; c < args.geo.out_channels; ++c) {
      most = fmaxf(most, fabsf(static_cast<float>(args.open(patch, c) * patch.inverse)));
    }
  }
  shared[threadIdx.x] = most;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  if (threadIdx.x == 0) largest[blockIdx.x] = shared[0];
}

template <class Scale>
__global__ void scale_for_errors(const float* largest, int64_t count, float top, Scale* scale) {
  float most = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWarp) most = fmaxf(most, largest[i]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  // nothing to scale, or nothing that scaling could save
  if (threadIdx.x == 0) *scale = most > 0 && most <= 3.4e38f ? exp2f(fminf(floorf(log2f(top / most)), 100.0f)) : 1.0f;
}

// The sum over a block of kThreads threads; all of them must call it. Right in the first thread.
__device__ inline double block_sum(double* shared, double value) {
  shared[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  return shared[0];
}

// sums[c] = the sum of a column, a warp a column: each lane every 32nd row, then the lanes in a fixed order.
template <class T, class S>
__global__ void sum_columns(const T* values, int64_t rows, int64_t columns, S* sums) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t c = thread_index() / kWarp; c < columns; c += thread_count() / kWarp) {
    double sum = 0;
    for (int64_t row = lane; row < rows; row += kWarp) sum += values[row * columns + c];
    sum = warp_sum(sum);
    if (lane == 0) sums[c] = static_cast<S>(sum);
  }
}

// partials[block] = the sum of a share of the values
template <class T>
__global__ void __launch_bounds__(kThreads) sum_share(const T* values, int64_t count, double* partials) {
  double* const shared = reinterpret_cast<double*>(shared_memory());  // [threads]
  double sum = 0;
  for (int64_t i = thread_index(); i < count; i += thread_count()) sum += values[i];
  const double total = block_sum(shared, sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// dw = alpha * the sum of the shares, in the weight's own strides; and <weight, dw / alpha>, a partial sum a block.
template <class S>
struct FinishWeight {
  using A = Accumulator<S>;

  Geometry geo;
  const A* shares;  // [splits, groups * outputs, taps, padded channels]
  int splits, padded;
  const S* alpha;
  const A* scale;  // that e was multiplied by, or null
  Weight<const S> weight;
  Weight<S> dw;
  double* products;  // [blocks]
};

template <class S>
__global__ void __launch_bounds__(kThreads) finish_weight(FinishWeight<S> args) {
  using A = Accumulator<S>;
  double* const shared = reinterpret_cast<double*>(shared_memory());  // [threads]
  const Geometry& geo = args.geo;
  const int64_t taps = geo.kernel[0] * geo.kernel[1] * geo.kernel[2], outputs = geo.groups * geo.out_channels;
  const int64_t count = outputs * taps * geo.in_channels, stride = outputs * taps * args.padded;
  double product = 0;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t channel = i % geo.in_channels, row = i / geo.in_channels, tap = row % taps, output = row / taps;
    A sum = 0;
    for (int split = 0; split < args.splits; ++split) sum += args.shares[split * stride + row * args.padded + channel];
    if (args.scale) sum /= *args.scale;
    product += static_cast<double>(sum) * static_cast<double>(args.weight.data[args.weight.at(output, channel, tap, geo)]);
    args.dw.data[args.dw.at(output, channel, tap, geo)] = static_cast<S>(A(*args.alpha) * sum);
  }
  const double total = block_sum(shared, product);
  if (threadIdx.x == 0) args.products[blockIdx.x] = total;
}

}  // namespace ccn::cuda
