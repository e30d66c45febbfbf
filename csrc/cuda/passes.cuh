// What is no product: packing, the backward pass's e and q, and sums in a fixed order.
#pragma once

#include "results.cuh"

namespace ccn::cuda {

constexpr int kTilePixels = 32;  // of the kernels that turn tiles around in shared memory
constexpr int kTileLanes = kThreads / kTilePixels;
constexpr int kEachLane = kTilePixels / kTileLanes;
constexpr int64_t kMostRows = 1024;  // of partial sums
constexpr float kLargestFloat = 3.402823466e38f;

// Over a block of kThreads threads, all of which must call it; right in the first of them. [kThreads] is shared memory.
template <class T, class Combine>
__device__ T block_reduce(T* shared, T value, const Combine& combine) {
  shared[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
  }
  return shared[0];
}

__device__ inline double block_sum(double* shared, double value) {
  return block_reduce(shared, value, [](double a, double b) { return a + b; });
}

// A tile of 32 pixels by 32 channels is read along whichever of them lies together, and written along channels.
struct TilePlace {
  int pixel, channel;

  __device__ TilePlace(bool channels_together, int i) {
    const int lane = threadIdx.x % kTilePixels, other = threadIdx.x / kTilePixels + i * kTileLanes;
    pixel = channels_together ? other : lane;
    channel = channels_together ? lane : other;
  }
};

// A pixel, by its number among those of all images.
struct PixelOf {
  int64_t n;
  int index, at[kAxes];

  template <class S>
  __device__ PixelOf(const Activation<S>& tensor, int64_t pixel) {
    n = pixel / tensor.pixels();
    index = static_cast<int>(pixel - n * tensor.pixels());
    const int line = index / tensor.extent[2];
    at[2] = index - line * tensor.extent[2];
    at[0] = line / tensor.extent[1];
    at[1] = line - at[0] * tensor.extent[1];
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
  __device__ int64_t at(int64_t o, int64_t c, int index, const Geometry& geo) const {
    const int height = static_cast<int>(geo.kernel[1]), width = static_cast<int>(geo.kernel[2]);
    const int line = index / width, plane = line / height;
    const int taps[kAxes] = {plane, line - plane * height, index - line * width};
    return at(o, c, taps);
  }
};

// Rows of the product's second operand: [phases, rows, row], each of its taps, and channels padded to `padded` in each.
// The forward's rows are outputs; the input gradient's (kGradient) are input channels, and what it sums are outputs.
template <class S, bool kGradient>
__global__ void pack_weight(Geometry geo, Windows first, Weight<const S> weight, int64_t count, int64_t row, int padded,
                            S* packed) {
  const int64_t of_group = kGradient ? geo.in_channels : geo.out_channels, rows = of_group * geo.groups;
  const int summed = static_cast<int>(kGradient ? geo.out_channels : geo.in_channels);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t r = i / row % rows, group = r / of_group;
    const int phase = static_cast<int>(i / row / rows), channel = static_cast<int>(i % row % padded);
    const Windows windows = phase == 0 ? first : InputGradient<S>::windows(geo, phase);
    int64_t tap = i % row / padded, kernel_tap = 0;
    const bool valid = tap < windows.taps() && channel < summed;
    for (int axis = kAxes - 1, scale = 1; valid && axis >= 0; --axis) {
      kernel_tap += scale * windows.axis[axis].kernel_tap(static_cast<int>(tap % windows.axis[axis].taps));
      tap /= windows.axis[axis].taps;
      scale *= static_cast<int>(geo.kernel[axis]);
    }
    const int64_t output = kGradient ? group * geo.out_channels + channel : r;
    const int64_t input = kGradient ? r % geo.in_channels : channel;
    packed[i] = valid ? weight.data[weight.at(output, input, static_cast<int>(kernel_tap), geo)] : S(0);
  }
}

// What the backward's first pass reads and writes.
template <class S>
struct Prologue {
  using A = Accumulator<S>;

  Geometry geo;
  Activation<const S> grad, y, z;  // y: the fused ReLU's output, z: u / d; data null where there is none
  const S* bias;                   // or null
  const A* alpha;
  const A* r;                      // [N, groups, pixels]
  A delta;
  bool moment_from_y;              // take y - b for alpha * z
  const A* scale;                  // of e, and its inverse; or null
  int padded;                      // channels of a group in e
  S* e;                            // [N, pixels, groups, padded]
  A* q;                            // [N, groups, pixels], or null
  int64_t row_tiles;               // of 32 pixels, whose sums are one row of partial sums
  A* bias_partials;                // [rows, groups * channels], or null
  A* moments;                      // [N, groups, pixels] sum_o grad * z, or null
  int shares;                      // of a pixel's channels, 32 at a time in turn
  A* moment_shares;                // [shares, N, groups, pixels], if there is more than one

  // One pixel of a group: where its first channel lies in each tensor, and its place in planes.
  struct Patch {
    int64_t grad, y, z, plane;
    A inverse;
  };

  __device__ int64_t pixels() const { return geo.batch * geo.out_pixels(); }
  __device__ Patch patch(int64_t index, int64_t group) const {
    const PixelOf pixel(grad, index);
    const int64_t plane = (pixel.n * geo.groups + group) * geo.out_pixels() + pixel.index;
    const auto at = [&](const Activation<const S>& t) { return t.at(pixel.n, group * geo.out_channels, pixel.at); };
    return {at(grad), at(y), at(z), plane, reciprocal_divisor(r[plane], delta)};
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
  // |e|, but 0 where it is not finite: it must not decide for the rest.
  __device__ float size(const Patch& patch, A open) const {
    const float found = fabsf(static_cast<float>(open * patch.inverse));
    return found <= kLargestFloat ? found : 0.0f;
  }
  // Given a patch's whole moment.
  __device__ void finish(int64_t plane, A moment) const {
    const A factor = moment_from_y ? A(1) : *alpha;
    if (q) q[plane] = norm_gradient(factor * moment, r[plane], delta);
    if (moments) moments[plane] = moment;
  }
};

template <class S>
constexpr size_t prologue_shared_bytes() {
  using A = Accumulator<S>;
  return kTilePixels * (sizeof(typename Prologue<S>::Patch) + sizeof(A) * (2 * (kTilePixels + 1) + 2 * kTileLanes));
}

// A block a row of partial sums, a group, and a share of its channels: a range of pixels, 32 at a time.
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
  const int groups = static_cast<int>(args.geo.groups), channels = static_cast<int>(args.geo.out_channels);
  const int task = blockIdx.x / args.shares, share = blockIdx.x - task * args.shares;
  const int block = task / groups, group = task - block * groups;
  const int64_t tiles = ceil_div(args.pixels(), kTilePixels);
  const int64_t begin = block * args.row_tiles;
  const int64_t end = begin + args.row_tiles < tiles ? begin + args.row_tiles : tiles;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTilePixels;
    const int rows = static_cast<int>(args.pixels() - first < kTilePixels ? args.pixels() - first : kTilePixels);
    if (static_cast<int>(threadIdx.x) < rows) patches[threadIdx.x] = args.patch(first + threadIdx.x, group);
    __syncthreads();
    A moment = 0;  // of pixel `lane`, over this thread's channels
    for (int c = share * kTilePixels; c < args.padded; c += args.shares * kTilePixels) {
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
          args.e[((first + pixel) * groups + group) * args.padded + c + lane] = args.error(patches[pixel], value);
        }
      }
      bias_sums[other * kTilePixels + lane] = sum;
      __syncthreads();
      if (args.bias_partials && other == 0 && c + lane < channels) {
        A& total = args.bias_partials[(static_cast<int64_t>(block) * groups + group) * channels + c + lane];
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
      if (args.shares > 1) args.moment_shares[share * args.pixels() * groups + patches[lane].plane] = moment;
      if (args.shares == 1) args.finish(patches[lane].plane, moment);
    }
    __syncthreads();
  }
}

template <class S>
__global__ void add_moments(Prologue<S> args, int64_t patches) {
  for (int64_t i = thread_index(); i < patches; i += thread_count()) {
    Accumulator<S> moment = 0;
    for (int share = 0; share < args.shares; ++share) moment += args.moment_shares[share * patches + i];
    args.finish(i, moment);
  }
}

// The largest |e| that each block finds.
template <class S>
__global__ void __launch_bounds__(kThreads) largest_error(Prologue<S> args, float* largest) {
  auto* const patches = reinterpret_cast<typename Prologue<S>::Patch*>(shared_memory());
  float* const found = reinterpret_cast<float*>(patches + kTilePixels);  // [threads]
  const int groups = static_cast<int>(args.geo.groups), task = blockIdx.x / args.shares;
  const int share = blockIdx.x - task * args.shares, block = task / groups, group = task - block * groups;
  const int64_t begin = block * args.row_tiles * kTilePixels, end = begin + args.row_tiles * kTilePixels;
  float most = 0;
  for (int64_t first = begin; first < end && first < args.pixels(); first += kTilePixels) {
    const int rows = static_cast<int>(args.pixels() - first < kTilePixels ? args.pixels() - first : kTilePixels);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) patches[threadIdx.x] = args.patch(first + threadIdx.x, group);
    __syncthreads();
    for (int c = share * kTilePixels; c < args.geo.out_channels; c += args.shares * kTilePixels) {
      for (int i = 0; i < kEachLane; ++i) {
        const TilePlace place(args.grad.channel == 1, i);
        if (place.pixel >= rows || c + place.channel >= args.geo.out_channels) continue;
        const auto& patch = patches[place.pixel];
        most = fmaxf(most, args.size(patch, args.open(patch, c + place.channel)));
      }
    }
  }
  most = block_reduce(found, most, [](float a, float b) { return fmaxf(a, b); });
  if (threadIdx.x == 0) largest[blockIdx.x] = most;
}

template <class S>
constexpr size_t largest_shared_bytes() {
  return kTilePixels * sizeof(typename Prologue<S>::Patch) + kThreads * sizeof(float);
}

// sums[c] = the sum of a column. A block 32 columns: each lane every 8th row of one, then the lanes in their order.
template <class T, class S>
__global__ void __launch_bounds__(kThreads) sum_columns(const T* values, int64_t rows, int64_t columns, S* sums) {
  double* const lanes = reinterpret_cast<double*>(shared_memory());  // [lanes][32]
  const int lane = threadIdx.x % kTilePixels, other = threadIdx.x / kTilePixels;
  const int64_t column = blockIdx.x * static_cast<int64_t>(kTilePixels) + lane;
  double sum = 0;
  for (int64_t row = other; row < rows && column < columns; row += kTileLanes) sum += values[row * columns + column];
  lanes[other * kTilePixels + lane] = sum;
  __syncthreads();
  if (other != 0 || column >= columns) return;
  sum = 0;
  for (int i = 0; i < kTileLanes; ++i) sum += lanes[i * kTilePixels + lane];
  sums[column] = static_cast<S>(sum);
}

// sums[block] = the sum of a share of the values
template <class T, class S>
__global__ void __launch_bounds__(kThreads) sum_share(const T* values, int64_t count, S* sums) {
  double* const shared = reinterpret_cast<double*>(shared_memory());  // [threads]
  double sum = 0;
  for (int64_t i = thread_index(); i < count; i += thread_count()) sum += values[i];
  const double total = block_sum(shared, sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = static_cast<S>(total);
}

// dw = alpha * the sum of the shares, in the weight's own strides; and <weight, dw / alpha>, a partial sum a block.
template <class S>
struct FinishWeight {
  using A = Accumulator<S>;

  Geometry geo;
  const A* shares;  // [splits, groups * outputs, taps, padded channels]
  int splits, taps, padded;
  const A* alpha;
  const A* scale;  // of e, and its inverse; or null
  Weight<const S> weight;
  Weight<S> dw;
  double* products;  // [blocks]
};

template <class S>
__global__ void __launch_bounds__(kThreads, 4) finish_weight(FinishWeight<S> args) {
  using A = Accumulator<S>;
  double* const shared = reinterpret_cast<double*>(shared_memory());  // [threads]
  const Geometry& geo = args.geo;
  const int channels = static_cast<int>(geo.in_channels), taps = args.taps;
  const int64_t outputs = geo.groups * geo.out_channels, stride = outputs * taps * args.padded;
  double product = 0;
  for (int64_t i = thread_index(); i < outputs * taps * channels; i += thread_count()) {
    const int64_t row = i / channels, output = row / taps;
    const int channel = static_cast<int>(i - row * channels), tap = static_cast<int>(row - output * taps);
    A sum = 0;
    for (int split = 0; split < args.splits; ++split) sum += args.shares[split * stride + row * args.padded + channel];
    if (args.scale) sum *= args.scale[1];
    product += static_cast<double>(sum) * static_cast<double>(args.weight.data[args.weight.at(output, channel, tap, geo)]);
    args.dw.data[args.dw.at(output, channel, tap, geo)] = static_cast<S>(*args.alpha * sum);
  }
  const double total = block_sum(shared, product);
  if (threadIdx.x == 0) args.products[blockIdx.x] = total;
}

}  // namespace ccn::cuda
