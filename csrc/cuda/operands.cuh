// How operands come into shared memory: an activation gathered by a window that slides over it, and plain matrices.
// K counts a window's taps and, within a tap, the channels of a group. What lies outside an operand is zero.
#pragma once

#include "engines.cuh"

namespace ccn::cuda {

// A block's place in a grid.
struct TileOf {
  int column, group, split, phase;
  int64_t row;

  // A grid has fewer than 2^31 blocks, so that 32 bits are enough.
  __device__ TileOf(int block, int columns, int groups, int rows, int splits) {
    column = block % columns;
    block /= columns;
    group = block % groups;
    block /= groups;
    row = block % rows;
    block /= rows;
    split = block % splits;
    phase = block / splits;
  }
};

struct Windows {
  Window axis[kAxes];

  CCN_HOST_DEVICE int places() const { return axis[0].places * axis[1].places * axis[2].places; }
  CCN_HOST_DEVICE int taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
};

// [N, groups * channels, *extent], by its strides.
template <class S>
struct Activation {
  S* data;
  int channels;  // of a group
  int extent[kAxes];
  int64_t image, channel, stride[kAxes];

  __device__ int64_t at(int64_t n, int64_t c, const int (&p)[kAxes]) const {
    return n * image + c * channel + p[0] * stride[0] + p[1] * stride[1] + p[2] * stride[2];
  }
  __device__ int pixels() const { return extent[0] * extent[1] * extent[2]; }
  __device__ bool has(int d, int h, int w) const {
    return static_cast<unsigned>(d) < static_cast<unsigned>(extent[0]) &&
           static_cast<unsigned>(h) < static_cast<unsigned>(extent[1]) &&
           static_cast<unsigned>(w) < static_cast<unsigned>(extent[2]);
  }
};

// A place of the window: where its first tap reads.
template <class S>
struct Row {
  const S* base;
  int at[kAxes];

  Row() = default;
  __device__ Row(const Activation<const S>& from, const Windows& windows, int64_t n, int group, const int (&place)[kAxes]) {
    for (int axis = 0; axis < kAxes; ++axis) at[axis] = windows.axis[axis].source(place[axis], 0);
    base = from.data + from.at(n, static_cast<int64_t>(group) * from.channels, at);
  }
  // Sees nothing.
  __device__ explicit Row(const Activation<const S>& from) : base(from.data), at{INT32_MIN / 2, 0, 0} {}
};

// A position along K: a tap, a channel, and how far they lie from a row's first tap.
template <class S>
struct Column {
  int channel, tap[kAxes];
  int shift[kAxes];  // from the first tap
  int64_t offset;

  __device__ Column(const Activation<const S>& from, const Windows& windows, int k) {
    int rest = k / from.channels;
    channel = k - rest * from.channels;
    for (int axis = kAxes - 1; axis > 0; --axis) {
      tap[axis] = rest % windows.axis[axis].taps;
      rest /= windows.axis[axis].taps;
    }
    tap[0] = rest;
    settle(from, windows);
  }

  __device__ void advance(const Activation<const S>& from, const Windows& windows, int by) {
    channel += by;
    offset += by * from.channel;
    if (channel < from.channels) return;
    for (; channel >= from.channels; channel -= from.channels) {
      if (++tap[2] < windows.axis[2].taps) continue;
      tap[2] = 0;
      if (++tap[1] < windows.axis[1].taps) continue;
      tap[1] = 0;
      ++tap[0];
    }
    settle(from, windows);
  }

  __device__ bool valid(const Windows& windows) const { return tap[0] < windows.axis[0].taps; }

  __device__ bool within(const Activation<const S>& from, const Row<S>& row) const {
    return from.has(row.at[0] + shift[0], row.at[1] + shift[1], row.at[2] + shift[2]);
  }

 private:
  __device__ void settle(const Activation<const S>& from, const Windows& windows) {
    offset = channel * from.channel;
    for (int axis = 0; axis < kAxes; ++axis) {
      shift[axis] = tap[axis] * windows.axis[axis].step;
      offset += shift[axis] * from.stride[axis];
    }
  }
};

// One chunk of a row, whose channels lie together and 16-byte aligned.
template <class S>
__device__ inline void fetch_together(Chunk<S>* to, const Activation<const S>& from, const Windows& windows,
                                      const Row<S>& row, const Column<S>& column) {
  const bool valid = column.valid(windows) && column.within(from, row);
  copy_async(to, valid ? row.base + column.offset : from.data, valid);
}

// A Column, ready to be read by all threads; one beyond K is outside every input.
struct alignas(16) Tap {
  int64_t offset;
  int shift[kAxes];
};

// taps[0, count) = the columns from `first` on.
template <class S>
__device__ inline void write_taps(Tap* taps, const Activation<const S>& from, const Windows& windows, int first, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const Column<S> column(from, windows, first + i);
    const bool valid = column.valid(windows);
    taps[i] = {column.offset, {valid ? column.shift[0] : INT32_MIN / 2, column.shift[1], column.shift[2]}};
  }
}

// One chunk of a row, element by element.
template <class S>
__device__ inline void fetch_apart(Chunk<S>* to, const Activation<const S>& from, const Row<S>& row, const Tap* taps) {
  Chunk<S> chunk;
#pragma unroll
  for (int i = 0; i < kChunk<S>; ++i) {
    const Tap tap = taps[i];
    const bool valid = from.has(row.at[0] + tap.shift[0], row.at[1] + tap.shift[1], row.at[2] + tap.shift[2]);
    chunk.values[i] = valid ? row.base[tap.offset] : S(0);
  }
  *to = chunk;
}

// Feeds and multiplies `count` steps, kStages - 1 of them on their way. Afterwards the shared memory is free.
template <class E, class Feed, class Multiply>
__device__ inline void run_steps(typename E::S* stages, int count, const Feed& feed, const Multiply& multiply) {
  constexpr int kSecond = E::kM * kStep<typename E::S>;  // where a stage's second operand begins
  const auto stage = [&](int index) { return stages + index % kStages * E::kStageElements; };
  const auto fetch = [&](int index) {
    if (index < count) feed(stage(index), stage(index) + kSecond);
    commit_copies();
  };
  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  for (int step = 0; step < count; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // this step's operands are there, and nobody reads the last one's any more
    fetch(step + kStages - 1);
    multiply(stage(step), stage(step) + kSecond);
  }
  wait_for_copies<0>();
  __syncthreads();
}

// A place's coordinates, from its number among those of an image.
__device__ inline void coordinates(const Windows& windows, int index, int (&place)[kAxes]) {
  const int line = index / windows.axis[2].places;
  place[2] = index - line * windows.axis[2].places;
  place[0] = line / windows.axis[1].places;
  place[1] = line - place[0] * windows.axis[1].places;
}

}  // namespace ccn::cuda
