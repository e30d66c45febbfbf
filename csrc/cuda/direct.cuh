// Groups of a few channels, depthwise ones above all: a thread a result, no tiles.
#pragma once

#include "passes.cuh"
#include "weight_gradient.cuh"

namespace ccn::cuda {

// Calls visit(tap along each axis, coordinates of the other end) for every tap that meets something: of the output pixel
// `at` its inputs, of the input pixel `at` (kGradient) the outputs that read it.
template <bool kGradient, class Visit>
__device__ inline void for_each_tap(const Geometry& geo, const int (&at)[kAxes], const Visit& visit) {
  const auto reach = [&](int axis, int tap) {
    if (kGradient) return output_coordinate<int>(geo, axis, at[axis], tap);
    const int found = input_coordinate<int>(geo, axis, at[axis], tap);
    return found < geo.in[axis] ? found : -1;
  };
  int tap[kAxes], other[kAxes];
  for (tap[0] = 0; tap[0] < geo.kernel[0]; ++tap[0]) {
    if ((other[0] = reach(0, tap[0])) < 0) continue;
    for (tap[1] = 0; tap[1] < geo.kernel[1]; ++tap[1]) {
      if ((other[1] = reach(1, tap[1])) < 0) continue;
      for (tap[2] = 0; tap[2] < geo.kernel[2]; ++tap[2]) {
        if ((other[2] = reach(2, tap[2])) >= 0) visit(tap, other);
      }
    }
  }
}

// A channel (or group) and a pixel of all images by their number, counted along whichever of them lies together.
struct PlaceOf {
  int64_t channel, index;

  __device__ PlaceOf(bool together, int64_t channels, int64_t pixels, int64_t i)
      : channel(together ? i % channels : i / pixels % channels),
        index(together ? i / channels : i / pixels / channels * pixels + i % pixels) {}
};

// Element `i` of a tensor, counted along whichever of channels and pixels lies together.
struct ElementOf {
  int64_t channel;
  PixelOf pixel;

  template <class S>
  __device__ ElementOf(const Activation<S>& tensor, int64_t channels, int64_t i)
      : ElementOf(tensor, PlaceOf(tensor.channel == 1, channels, tensor.pixels(), i)) {}

 private:
  template <class S>
  __device__ ElementOf(const Activation<S>& tensor, const PlaceOf& place)
      : channel(place.channel), pixel(tensor, place.index) {}
};

template <class S>
__global__ void direct_forward(Geometry geo, Activation<const S> x, Weight<const S> weight, Forward<S> result,
                               int64_t count) {
  using A = Accumulator<S>;
  const Windows windows = Forward<S>::windows(geo, 0);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const ElementOf element(result.y, geo.groups * geo.out_channels, i);
    const int64_t group = element.channel / geo.out_channels;
    A sum = 0, squares = 0;
    for_each_tap<false>(geo, element.pixel.at, [&](const int (&tap)[kAxes], const int (&at)[kAxes]) {
      const S* const from = x.data + x.at(element.pixel.n, group * geo.in_channels, at);
      const S* const by = weight.data + weight.at(element.channel, 0, tap);
      for (int64_t c = 0; c < geo.in_channels; ++c) {
        const A value = from[c * x.channel];
        sum += value * A(by[c * weight.channel]);
        squares += value * value;
      }
    });
    const bool first = element.channel % geo.out_channels == 0;
    const PixelOf& pixel = element.pixel;
    const Place<A> place = result.place(geo, windows, static_cast<int>(group), pixel.n, pixel.index, squares, first);
    result.template write<1>(place, element.channel, &sum);
  }
}

// What backward_prologue does, a thread a patch.
template <class S>
__global__ void direct_prologue(Prologue<S> args, int64_t count) {
  using A = Accumulator<S>;
  const Geometry& geo = args.geo;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const auto [group, index] = PlaceOf(args.grad.channel == 1, geo.groups, geo.out_pixels(), i);
    const auto patch = args.patch(index, group);
    A moment = 0;
    for (int64_t c = 0; c < geo.out_channels; ++c) {
      const A open = args.open(patch, c);
      args.e[(index * geo.groups + group) * geo.out_channels + c] = args.error(patch, open);
      moment += args.product(patch, c, group, open);
    }
    args.finish(patch.plane, moment);
  }
}

// What largest_error does.
template <class S>
__global__ void __launch_bounds__(kThreads) direct_largest_error(Prologue<S> args, int64_t count, float* largest) {
  float* const found = reinterpret_cast<float*>(shared_memory());  // [threads]
  float most = 0;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const auto [group, index] = PlaceOf(args.grad.channel == 1, args.geo.groups, args.geo.out_pixels(), i);
    const auto patch = args.patch(index, group);
    for (int64_t c = 0; c < args.geo.out_channels; ++c) most = fmaxf(most, args.size(patch, args.open(patch, c)));
  }
  most = block_reduce(found, most, [](float a, float b) { return fmaxf(a, b); });
  if (threadIdx.x == 0) largest[blockIdx.x] = most;
}

// bias_partials[row, channel]: the gradient's sum over a share of the pixels.
template <class S>
__global__ void direct_bias_partials(Prologue<S> args, int64_t count) {
  const int64_t outputs = args.geo.groups * args.geo.out_channels;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t channel = i % outputs, row = i / outputs;
    Accumulator<S> sum = 0;
    const int64_t first = row * args.row_tiles * kTilePixels, next = first + args.row_tiles * kTilePixels;
    for (int64_t m = first; m < next && m < args.pixels(); ++m) {
      sum += args.open(args.patch(m, channel / args.geo.out_channels), channel % args.geo.out_channels);
    }
    args.bias_partials[i] = sum;
  }
}

// e [N, pixels, groups * outputs]
template <class S>
__global__ void direct_input_gradient(Geometry geo, const S* e, Weight<const S> weight, InputGradient<S> result,
                                      int64_t count) {
  using A = Accumulator<S>;
  const int64_t outputs = geo.groups * geo.out_channels;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const ElementOf element(result.dx, geo.groups * geo.in_channels, i);
    const int64_t group = element.channel / geo.in_channels, c = element.channel % geo.in_channels, n = element.pixel.n;
    A sum = 0, box = 0;
    for_each_tap<true>(geo, element.pixel.at, [&](const int (&tap)[kAxes], const int (&at)[kAxes]) {
      const int64_t p = (at[0] * geo.out[1] + at[1]) * geo.out[2] + at[2];
      box += result.q[(n * geo.groups + group) * geo.out_pixels() + p];
      const S* const from = e + (n * geo.out_pixels() + p) * outputs + group * geo.out_channels;
      const S* const by = weight.data + weight.at(group * geo.out_channels, c, tap);
      for (int64_t o = 0; o < geo.out_channels; ++o) sum += A(from[o]) * A(by[o * weight.output]);
    });
    const Place<A> place{result.dx.at(n, 0, element.pixel.at), result.x.at(n, 0, element.pixel.at), box};
    result.template write<1>(place, element.channel, &sum);
  }
}

// Neighbouring threads have neighbouring outputs, as e has them.
template <class S>
__global__ void direct_weight_gradient(WeightGradient<S> args, int64_t count) {
  using A = Accumulator<S>;
  const Geometry& geo = args.geo;
  const int64_t outputs = geo.groups * geo.out_channels, all = geo.batch * geo.out_pixels();
  const Windows& windows = args.windows;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t output = i % outputs, c = i / outputs % geo.in_channels, split = i / (count / args.splits);
    int64_t tap = i / outputs / geo.in_channels % geo.taps();
    const int64_t kernel_tap = tap;
    int taps[kAxes];
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      taps[axis] = static_cast<int>(tap % geo.kernel[axis]);
      tap /= geo.kernel[axis];
    }
    const int64_t first = split * args.split_places, channel = output / geo.out_channels * geo.in_channels + c;
    const int64_t end = first + args.split_places < all ? first + args.split_places : all;
    int64_t n = first / geo.out_pixels();
    int at[kAxes];
    coordinates(windows, static_cast<int>(first % geo.out_pixels()), at);
    A sum = 0;
    for (int64_t m = first; m < end; ++m) {
      int from[kAxes];
      for (int axis = 0; axis < kAxes; ++axis) from[axis] = windows.axis[axis].source(at[axis], taps[axis]);
      if (args.x.has(from[0], from[1], from[2])) {
        sum += A(args.e[m * outputs + output]) * A(args.x.data[args.x.at(n, channel, from)]);
      }
      if (++at[2] < windows.axis[2].places) continue;
      at[2] = 0;
      if (++at[1] < windows.axis[1].places) continue;
      at[1] = 0;
      if (++at[0] < windows.axis[0].places) continue;
      at[0] = 0;
      ++n;
    }
    args.shares[((split * outputs + output) * geo.taps() + kernel_tap) * geo.in_channels + c] = sum;
  }
}

}  // namespace ccn::cuda
