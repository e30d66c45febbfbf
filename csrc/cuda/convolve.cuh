// The tile kernel of the forward pass and of the input's gradient: an implicit product of gathered patches [places, K] and
// a packed weight [K, outputs], asynchronously fed; each result is finished before it leaves the chip.
#pragma once

#include "operands.cuh"
#include "results.cuh"

namespace ccn::cuda {

// What both have in common.
template <class S>
struct Product {
  Geometry geo;
  Windows windows;             // of the first phase; no other has more places
  Activation<const S> source;  // x, or e
  const S* weight;             // [phases, groups * outputs, weight_row]
  int64_t weight_row;          // elements, whole chunks; what lies beyond K is zero
  int outputs;                 // of a group
  int splits;                  // of K
  Accumulator<S>* sums;        // [splits, places, groups * outputs], or null: then results are finished here
  Accumulator<S>* squares;     // [splits, places, groups]

  __device__ int64_t all_outputs() const { return geo.groups * outputs; }
};

// Where share `index` of so many steps begins.
__device__ inline int share(int steps, int index, int shares) {
  const int whole = steps / shares, rest = steps - whole * shares;
  return index * whole + (index < rest ? index : rest);
}

// The tile's rows of the two operands, a step at a time.
template <class E, bool kTogether>
class Feeder {
  using S = typename E::S;
  static constexpr int kRowsAtOnce = E::kThreads / kRowChunks;
  static constexpr int kPasses = kTogether ? E::kM / kRowsAtOnce : 1;
  static_assert(kTogether || E::kM == E::kThreads);

 public:
  // taps: of the split's columns, where elements are gathered one by one
  __device__ Feeder(const Product<S>& args, const Windows& windows, const TileOf& tile, int places, int first_k,
                    const Tap* taps)
      : args_(args),
        windows_(windows),
        taps_(taps),
        column_(args.source, windows, first_k + chunk() * kChunk<S>),
        k_(first_k + chunk() * kChunk<S>) {
    const int first_output = tile.column * E::kN + thread_row();
    left_ = args.outputs - first_output;
    const int64_t output = tile.group * static_cast<int64_t>(args.outputs) + first_output;
    weight_ = args.weight + (tile.phase * args.all_outputs() + output) * args.weight_row;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int64_t m = tile.row * E::kM + (kTogether ? thread_row() + i * kRowsAtOnce : threadIdx.x);
      rows_[i] = m < args.geo.batch * places ? row_of(tile.group, m, places) : Row<S>(args.source);
    }
  }

  __device__ void fetch(S* a, S* b) {
    if constexpr (kTogether) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        Chunk<S>* const to = Rows<S>::chunk(a, thread_row() + i * kRowsAtOnce, chunk());
        fetch_together(to, args_.source, windows_, rows_[i], column_);
      }
      column_.advance(args_.source, windows_, kStep<S>);
    } else {
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i) {
        fetch_apart(Rows<S>::chunk(a, threadIdx.x, i), args_.source, rows_[0], taps_ + i * kChunk<S>);
      }
      taps_ += kStep<S>;
    }
#pragma unroll
    for (int i = 0; i < E::kN / kRowsAtOnce; ++i) {
      const bool valid = i * kRowsAtOnce < left_ && k_ < args_.weight_row;
      const S* from = weight_ + i * kRowsAtOnce * args_.weight_row + k_;
      copy_async(Rows<S>::chunk(b, thread_row() + i * kRowsAtOnce, chunk()), valid ? from : args_.weight, valid);
    }
    k_ += kStep<S>;
  }

 private:
  __device__ static int chunk() { return threadIdx.x % kRowChunks; }
  __device__ static int thread_row() { return threadIdx.x / kRowChunks; }

  __device__ Row<S> row_of(int group, int64_t m, int places) const {
    const int64_t n = m / places;
    int place[kAxes];
    coordinates(windows_, static_cast<int>(m - n * places), place);
    return Row<S>(args_.source, windows_, n, group, place);
  }

  const Product<S>& args_;
  const Windows& windows_;
  const Tap* taps_;
  Row<S> rows_[kPasses];
  Column<S> column_;
  int k_;
  const S* weight_;
  int left_;  // outputs from this thread's first one on
};

template <class E>
constexpr size_t convolve_shared_bytes(int64_t taps) {
  using A = typename E::A;
  const size_t fed = kStages * E::kStageElements * sizeof(typename E::S) + taps * sizeof(Tap);
  const size_t finished = E::kM * (sizeof(Place<A>) + sizeof(A) * (E::kN + kPad + E::kSquareParts));
  return fed > finished ? fed : finished;
}

// Writes a tile's results, or this split's share of them.
template <class E, class Result>
__device__ inline void write_tile(const Product<typename E::S>& args, const Result& result, const TileOf& tile, int64_t end,
                                  const Place<typename E::A>* at, const typename E::A* sums) {
  using S = typename E::S;
  constexpr int kPitch = E::kN + kPad;
  const int first_output = tile.column * E::kN;
  const int rows = static_cast<int>(end - tile.row * E::kM < E::kM ? end - tile.row * E::kM : E::kM);
  const int width = args.outputs - first_output < E::kN ? args.outputs - first_output : E::kN;
  const int64_t channel = tile.group * static_cast<int64_t>(args.outputs) + first_output;
  if (args.sums) {
    typename E::A* const to = args.sums + (tile.split * end + tile.row * E::kM) * args.all_outputs() + channel;
    for (int i = threadIdx.x; i < rows * E::kN; i += E::kThreads) {
      const int row = i / E::kN, column = i % E::kN;
      if (column < width) to[row * args.all_outputs() + column] = sums[row * kPitch + column];
    }
  } else if (result.writes_chunks(args.outputs)) {
    constexpr int kAcross = E::kN / kChunk<S>;
    for (int i = threadIdx.x; i < rows * kAcross; i += E::kThreads) {
      const int row = i / kAcross, column = i % kAcross * kChunk<S>;
      if (column < width) result.template write<kChunk<S>>(at[row], channel + column, sums + row * kPitch + column);
    }
  } else {
    const bool down = !result.channels_together();
    for (int i = threadIdx.x; i < E::kM * E::kN; i += E::kThreads) {
      const int row = down ? i % E::kM : i / E::kN, column = down ? i / E::kM : i % E::kN;
      if (row < rows && column < width) {
        result.template write<1>(at[row], channel + column, sums + row * kPitch + column);
      }
    }
  }
}

template <class E, bool kTogether, class Result>
__global__ void __launch_bounds__(E::kThreads, 2) convolve(Product<typename E::S> args, Result result) {
  using S = typename E::S;
  using A = typename E::A;
  const int columns = (args.outputs + E::kN - 1) / E::kN;
  const int row_tiles = static_cast<int>(ceil_div(args.geo.batch * args.windows.places(), E::kM));
  const TileOf tile(blockIdx.x, columns, static_cast<int>(args.geo.groups), row_tiles, args.splits);
  const Windows windows = tile.phase == 0 ? args.windows : Result::windows(args.geo, tile.phase);
  const int places = windows.places();
  const int64_t end = args.geo.batch * places;
  if (tile.row * E::kM >= end) return;

  S* const stages = reinterpret_cast<S*>(shared_memory());
  E engine;
  const int steps = (windows.taps() * args.source.channels + kStep<S> - 1) / kStep<S>;
  const int first = share(steps, tile.split, args.splits), count = share(steps, tile.split + 1, args.splits) - first;
  if (count > 0) {
    Tap* const taps = reinterpret_cast<Tap*>(stages + kStages * E::kStageElements);
    if constexpr (!kTogether) {
      write_taps(taps, args.source, windows, first * kStep<S>, count * kStep<S>);
      __syncthreads();
    }
    Feeder<E, kTogether> feeder(args, windows, tile, places, first * kStep<S>, taps);
    run_steps<E>(stages, count, [&](S* a, S* b) { feeder.fetch(a, b); },
                 [&](S* a, S* b) { engine.template multiply<Result::kSquares>(a, b); });
  }

  Place<A>* const at = reinterpret_cast<Place<A>*>(shared_memory());
  A* const sums = reinterpret_cast<A*>(at + E::kM);
  A* const parts = sums + E::kM * (E::kN + kPad);
  engine.store(sums, E::kN + kPad);
  if constexpr (Result::kSquares) engine.store_squares(parts);
  __syncthreads();

  for (int row = threadIdx.x; row < E::kM && tile.row * E::kM + row < end; row += E::kThreads) {
    A squares = 0;
    for (int part = 0; Result::kSquares && part < E::kSquareParts; ++part) squares += parts[row * E::kSquareParts + part];
    const int64_t m = tile.row * E::kM + row;
    if (!args.sums) {
      const int64_t n = m / places;
      const int index = static_cast<int>(m - n * places);
      at[row] = result.place(args.geo, windows, tile.group, n, index, squares, tile.column == 0);
    } else if (Result::kSquares && tile.column == 0) {
      args.squares[(tile.split * end + m) * args.geo.groups + tile.group] = squares;
    }
  }
  __syncthreads();

  write_tile<E>(args, result, tile, end, at, sums);
}

// Adds the shares of K up in their order, and finishes the results.
template <class S, class Result>
__global__ void combine(Product<S> args, Result result) {
  using A = Accumulator<S>;
  const Windows& windows = args.windows;
  const int64_t places = windows.places(), end = args.geo.batch * places, all = args.all_outputs();
  for (int64_t i = thread_index(); i < end * all; i += thread_count()) {
    const int64_t m = i / all, channel = i % all;
    const int group = static_cast<int>(channel / args.outputs);
    A sum = 0, squares = 0;
    for (int split = 0; split < args.splits; ++split) {
      sum += args.sums[split * end * all + i];
      if (Result::kSquares) squares += args.squares[(split * end + m) * args.geo.groups + group];
    }
    const bool first = channel % args.outputs == 0;
    const int index = static_cast<int>(m % places);
    result.template write<1>(result.place(args.geo, windows, group, m / places, index, squares, first), channel, &sum);
  }
}

template <class E, bool kTogether, class Result>
void launch_convolve(const Product<typename E::S>& args, const Result& result, int64_t phases) {
  const int64_t rows = ceil_div(args.geo.batch * args.windows.places(), E::kM), columns = ceil_div(args.outputs, E::kN);
  const int64_t blocks = rows * columns * args.geo.groups * args.splits * phases;
  const int64_t taps = kTogether ? 0 : ceil_div(args.weight_row, kStep<typename E::S>) * kStep<typename E::S>;
  launch(convolve<E, kTogether, Result>, blocks, E::kThreads, convolve_shared_bytes<E>(taps), args, result);
  if (!args.sums) return;
  const int64_t results = args.geo.batch * args.windows.places() * args.geo.groups * args.outputs;
  launch_over(combine<typename E::S, Result>, results, args, result);
}

template <class S, class Result>
void run_convolve(const TilePlan& plan, const Product<S>& args, const Result& result, int64_t phases) {
  if constexpr (!std::is_same_v<S, double>) {
    if (plan.tensor_cores) {
      if (plan.together && plan.wide) return launch_convolve<TensorCores<S, 128>, true>(args, result, phases);
      if (plan.together) return launch_convolve<TensorCores<S, 64>, true>(args, result, phases);
      if constexpr (Result::kAnySource) return launch_convolve<TensorCores<S, 64>, false>(args, result, phases);
    }
  }
  if constexpr (std::is_same_v<S, Accumulator<S>>) {
    if (plan.together) return launch_convolve<MultiplyAdds<S>, true>(args, result, phases);
    if constexpr (Result::kAnySource) return launch_convolve<MultiplyAdds<S>, false>(args, result, phases);
  }
  STD_TORCH_CHECK(false, "no kernel for this call");
}

}  // namespace ccn::cuda
