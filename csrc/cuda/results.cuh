// What becomes of a sum over K: the forward's output, or the input's gradient. A place's own numbers are found once.
#pragma once

#include "operands.cuh"

namespace ccn::cuda {

template <class A>
struct Place {
  int64_t offset;  // of its first channel in the result
  int64_t other;   // in the input, where it has the same shape
  A factor;
};

template <int kCount, class S>
__device__ inline void write_values(S* to, const S (&values)[kCount]) {
  if constexpr (kCount == kChunk<S>) {
    Chunk<S> chunk;
#pragma unroll
    for (int i = 0; i < kCount; ++i) chunk.values[i] = values[i];
    *reinterpret_cast<Chunk<S>*>(to) = chunk;
  } else {
    to[0] = values[0];
  }
}

template <int kCount, class S>
__device__ inline void read_values(const S* from, S (&values)[kCount]) {
  if constexpr (kCount == kChunk<S>) {
    const Chunk<S> chunk = *reinterpret_cast<const Chunk<S>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = chunk.values[i];
  } else {
    values[0] = from[0];
  }
}

// Whether each pixel's channels are whole chunks, aligned.
template <class S>
CCN_HOST_DEVICE inline bool takes_chunks(const Activation<S>& tensor, int64_t channels) {
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % kChunkBytes == 0;
  return aligned && tensor.channel == 1 && channels % kChunk<S> == 0 && tensor.image % kChunk<S> == 0 &&
         tensor.stride[0] % kChunk<S> == 0 && tensor.stride[1] % kChunk<S> == 0 && tensor.stride[2] % kChunk<S> == 0;
}

// y = activate(alpha * sum / (r + delta) + bias), z = sum / (r + delta), and r.
template <class S>
struct Forward {
  using A = Accumulator<S>;
  static constexpr bool kSquares = true, kAnySource = true;

  A delta;
  const S* bias;  // [groups * outputs], or null
  const A* alpha;
  bool relu;
  Activation<S> y;
  S* z;  // as y, or null
  A* norm;  // [N, groups, places]

  CCN_HOST_DEVICE static Windows windows(const Geometry& geo, int) {
    return {{forward_window(geo, 0), forward_window(geo, 1), forward_window(geo, 2)}};
  }
  __device__ bool channels_together() const { return y.channel == 1; }
  __device__ bool writes_chunks(int channels) const { return takes_chunks(y, channels); }

  __device__ Place<A> place(const Geometry& geo, const Windows& windows, int group, int64_t n, int index, A squares,
                            bool first) const {
    int at[kAxes];
    coordinates(windows, index, at);
    const A r = std::sqrt(squares);
    if (first) norm[(n * geo.groups + group) * windows.places() + index] = r;
    return {y.at(n, 0, at), 0, reciprocal_divisor(r, delta)};
  }

  template <int kCount>
  __device__ void write(const Place<A>& at, int64_t channel, const A* sums) const {
    const A scale = *alpha;
    S output[kCount], quotients[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const A quotient = sums[i] * at.factor;
      quotients[i] = static_cast<S>(quotient);
      output[i] = static_cast<S>(activate(scale * quotient + (bias ? A(bias[channel + i]) : A(0)), relu));
    }
    const int64_t offset = at.offset + channel * y.channel;
    write_values<kCount>(y.data + offset, output);
    if (z) write_values<kCount>(z + offset, quotients);
  }
};

// dx = alpha * sum - x * box, where box is the sum of q over the patches that contain the pixel.
template <class S>
struct InputGradient {
  using A = Accumulator<S>;
  static constexpr bool kSquares = false, kAnySource = false;

  const A* alpha;
  const A* scale;  // of e, and its inverse; or null
  Activation<const S> x;
  const A* q;  // [N, groups, output pixels]
  Activation<S> dx;

  CCN_HOST_DEVICE static Windows windows(const Geometry& geo, int phase) {
    const int last = static_cast<int>(phases(geo, 2)), middle = static_cast<int>(phases(geo, 1));
    return {{gradient_window(geo, 0, phase / last / middle), gradient_window(geo, 1, phase / last % middle),
             gradient_window(geo, 2, phase % last)}};
  }
  __device__ bool channels_together() const { return dx.channel == 1; }
  __device__ bool writes_chunks(int channels) const { return takes_chunks(dx, channels) && takes_chunks(x, channels); }

  __device__ Place<A> place(const Geometry& geo, const Windows& windows, int group, int64_t n, int index, A,
                            bool) const {
    int at[kAxes], pixel[kAxes];
    coordinates(windows, index, at);
    for (int axis = 0; axis < kAxes; ++axis) pixel[axis] = windows.axis[axis].result(at[axis]);
    return {dx.at(n, 0, pixel), x.at(n, 0, pixel), box(geo, windows, group, n, at)};
  }

  template <int kCount>
  __device__ void write(const Place<A>& at, int64_t channel, const A* sums) const {
    const A factor = scale ? *alpha * scale[1] : *alpha;
    S values[kCount], gradient[kCount];
    read_values<kCount>(x.data + at.other + channel * x.channel, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // where no patch has seen x, it may be infinite
      const A norm_term = at.factor == A(0) ? A(0) : A(values[i]);
      gradient[i] = static_cast<S>(input_gradient(factor * sums[i], norm_term, at.factor));
    }
    write_values<kCount>(dx.data + at.offset + channel * dx.channel, gradient);
  }

 private:
  __device__ A box(const Geometry& geo, const Windows& windows, int group, int64_t n, const int (&at)[kAxes]) const {
    const A* const plane = q + (n * geo.groups + group) * geo.out_pixels();
    A sum = 0;
    for (int i = 0; i < windows.axis[0].taps; ++i) {
      const int64_t d = windows.axis[0].source(at[0], i);
      if (d < 0 || d >= geo.out[0]) continue;
      for (int j = 0; j < windows.axis[1].taps; ++j) {
        const int64_t h = windows.axis[1].source(at[1], j);
        if (h < 0 || h >= geo.out[1]) continue;
        for (int k = 0; k < windows.axis[2].taps; ++k) {
          const int64_t w = windows.axis[2].source(at[2], k);
          if (w >= 0 && w < geo.out[2]) sum += plane[(d * geo.out[1] + h) * geo.out[2] + w];
        }
      }
    }
    return sum;
  }
};

}  // namespace ccn::cuda
