// The weight's gradient: sums over places of gathered x times e, split over blocks whose shares are added in order.
#pragma once

#include "operands.cuh"
#include "results.cuh"

namespace ccn::cuda {

template <class S>
struct WeightGradient {
  Geometry geo;
  Windows windows;
  Activation<const S> x;
  const S* e;          // [N, places, groups, e_channels], channels padded with zeros to whole chunks
  int e_channels, outputs;
  int splits;
  int64_t split_places;  // of a split, whole steps
  Accumulator<S>* shares;  // [splits, groups * outputs, taps * channels]
};

// The tile's rows of the two operands: a row for every place, a step of them at a time.
template <class E, bool kTogether>
class PlaceFeeder {
  using S = typename E::S;
  using TileA = Columns<S, E::kM>;
  using TileB = Columns<S, E::kN>;
  static constexpr int kRowsA = E::kThreads / TileA::kChunks, kRowsB = E::kThreads / TileB::kChunks;

 public:
  __device__ PlaceFeeder(const WeightGradient<S>& args, const Windows& windows, int group, int first_k, int first_output,
                         int64_t first_place, int64_t end, const Tap* taps)
      : args_(args),
        windows_(windows),
        taps_(taps + threadIdx.x % TileA::kChunks * kChunk<S>),
        group_(group),
        column_(args.x, windows, first_k + threadIdx.x % TileA::kChunks * kChunk<S>),
        in_image_(static_cast<uint32_t>(windows.places())),
        in_row_(static_cast<uint32_t>(windows.axis[2].places)),
        in_plane_(static_cast<uint32_t>(windows.axis[1].places)),
        image_(first_place / windows.places()),
        place_(static_cast<int>(first_place % windows.places())),
        left_(static_cast<int>(end - first_place)) {
    const int channel = first_output + threadIdx.x % TileB::kChunks * kChunk<S>;
    has_output_ = channel < args.e_channels;
    e_row_ = args.geo.groups * args.e_channels;
    e_ = args.e + (first_place + threadIdx.x / TileB::kChunks) * e_row_ + group * args.e_channels + channel;
  }

  __device__ void fetch(S* a, S* b) {
#pragma unroll
    for (int i = 0; i < kStep<S> / kRowsA; ++i) {
      const int row = threadIdx.x / TileA::kChunks + i * kRowsA;
      Chunk<S>* const to = TileA::chunk(a, row, threadIdx.x % TileA::kChunks);
      const Row<S> from = row < left_ ? row_of(place_ + row) : Row<S>(args_.x);
      if constexpr (kTogether) {
        fetch_together(to, args_.x, windows_, from, column_);
      } else {
        fetch_apart(to, args_.x, from, taps_);
      }
    }
#pragma unroll
    for (int i = 0; i < kStep<S> / kRowsB; ++i) {
      const int row = threadIdx.x / TileB::kChunks + i * kRowsB;
      const bool valid = row < left_ && has_output_;
      copy_async(TileB::chunk(b, row, threadIdx.x % TileB::kChunks), valid ? e_ + i * kRowsB * e_row_ : args_.e, valid);
    }
    place_ += kStep<S>;
    left_ -= kStep<S>;
    e_ += kStep<S> * e_row_;
  }

 private:
  __device__ Row<S> row_of(int index) const {
    const int image = in_image_(index), inside = index - image * in_image_.divisor;
    const int line = in_row_(inside), plane = in_plane_(line);
    const int place[kAxes] = {plane, line - plane * static_cast<int>(in_plane_.divisor),
                              inside - line * static_cast<int>(in_row_.divisor)};
    return Row<S>(args_.x, windows_, image_ + image, group_, place);
  }

  const WeightGradient<S>& args_;
  const Windows& windows_;
  const Tap* const taps_;  // of the tile's columns, where elements are gathered one by one
  const int group_;
  const Column<S> column_;
  const Divider in_image_, in_row_, in_plane_;
  const int64_t image_;
  int place_, left_;  // counted from that image on; to the end of the split
  bool has_output_;
  int64_t e_row_;
  const S* e_;
};

template <class E, bool kTogether>
constexpr size_t gradient_shared_bytes() {
  const size_t taps = kTogether ? 0 : E::kM * sizeof(Tap);
  const size_t fed = kStages * E::kStageElements * sizeof(typename E::S) + taps;
  const size_t finished = E::kM * (E::kN + kPad) * sizeof(typename E::A);
  return fed > finished ? fed : finished;
}

template <class E, bool kTogether>
__global__ void __launch_bounds__(E::kThreads, 2) weight_gradient(WeightGradient<typename E::S> args) {
  using S = typename E::S;
  using A = typename E::A;
  constexpr int kPitch = E::kN + kPad;
  const Windows& windows = args.windows;
  const int depth = windows.taps() * args.x.channels;
  const int rows = (depth + E::kM - 1) / E::kM, columns = (args.outputs + E::kN - 1) / E::kN;
  const TileOf tile(blockIdx.x, columns, static_cast<int>(args.geo.groups), rows, args.splits);
  const int first_output = tile.column * E::kN, first_k = tile.row * E::kM, group = tile.group;
  const int64_t split = tile.split, all = args.geo.batch * windows.places();
  const int64_t first = split * args.split_places;
  const int64_t end = first + args.split_places < all ? first + args.split_places : all;

  S* const stages = reinterpret_cast<S*>(shared_memory());
  const int count = static_cast<int>(ceil_div(end - first, kStep<S>));
  E engine;
  Tap* const taps = reinterpret_cast<Tap*>(stages + kStages * E::kStageElements);
  if constexpr (!kTogether) {
    write_taps(taps, args.x, windows, first_k, E::kM);
    __syncthreads();
  }
  PlaceFeeder<E, kTogether> feeder(args, windows, group, first_k, first_output, first, end, taps);
  run_steps<E>(stages, count, [&](S* a, S* b) { feeder.fetch(a, b); },
               [&](S* a, S* b) { engine.multiply_columns(a, b); });

  A* const sums = reinterpret_cast<A*>(shared_memory());
  engine.store(sums, kPitch);
  __syncthreads();
  A* const to = args.shares + (split * args.geo.groups + group) * args.outputs * depth;
  for (int i = threadIdx.x; i < E::kM * E::kN; i += E::kThreads) {
    const int k = first_k + i % E::kM, output = first_output + i / E::kM;
    if (k < depth && output < args.outputs) {
      to[static_cast<int64_t>(output) * depth + k] = sums[i % E::kM * kPitch + i / E::kM];
    }
  }
}

template <class E, bool kTogether>
void launch_gradient(const WeightGradient<typename E::S>& args) {
  const int64_t tiles = ceil_div(args.geo.taps() * args.x.channels, E::kM) * ceil_div(args.outputs, E::kN);
  launch(weight_gradient<E, kTogether>, tiles * args.geo.groups * args.splits, E::kThreads,
         gradient_shared_bytes<E, kTogether>(), args);
}

template <class S>
void run_weight_gradient(const TilePlan& plan, const WeightGradient<S>& args) {
  if constexpr (!std::is_same_v<S, double>) {
    if (plan.tensor_cores && plan.together && plan.wide) return launch_gradient<TensorCores<S, 128>, true>(args);
    if (plan.tensor_cores && plan.together) return launch_gradient<TensorCores<S, 64>, true>(args);
    if (plan.tensor_cores) return launch_gradient<TensorCores<S, 64>, false>(args);
  }
  if constexpr (std::is_same_v<S, Accumulator<S>>) {
    if (plan.together) return launch_gradient<MultiplyAdds<S>, true>(args);
    return launch_gradient<MultiplyAdds<S>, false>(args);
  }
  STD_TORCH_CHECK(false, "no kernel for this call");
}

}  // namespace ccn::cuda
