// Two ways to multiply the tiles that lie in shared memory: by tensor cores (16-bit types and TF32), or by plain
// multiply-adds (fp32 to its last bit, and fp64). Both multiply a [kM, K] by b [kN, K]^T, a step of kStep along K at a time.
//
// A tile lies in shared memory as rows of 16-byte chunks that are permuted within 128 bytes, so that eight rows' chunks lie
// in eight different banks. `Rows` has a row for every place or channel, K along it; `Columns` a row for every k.
#pragma once

#include "tensor_core.cuh"

namespace ccn::cuda {

template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int kChunkBytes = 16;
constexpr int kRowBytes = 64;                        // of K, in one step
constexpr int kRowChunks = kRowBytes / kChunkBytes;  // in a row of Rows

constexpr int kStages = 4;  // steps on their way at a time
constexpr int kPad = 4;     // elements between the rows of finished tiles, so that columns are not all in one bank

template <class S>
constexpr int kChunk = kChunkBytes / sizeof(S);  // elements

template <class S>
constexpr int kStep = kRowBytes / sizeof(S);

template <class S>
struct alignas(kChunkBytes) Chunk {
  S values[kChunk<S>];
};

// Which tile kernel a call takes.
struct TilePlan {
  bool tensor_cores;  // they round fp32 to TF32
  bool together;      // the source's channels of a group are whole chunks, aligned
  bool wide;          // 128 outputs, not 64

  int64_t tiles(int64_t rows, int64_t outputs) const { return ceil_div(rows, 128) * ceil_div(outputs, wide ? 128 : 64); }
};

// [rows, kStep]
template <class S>
struct Rows {
  __device__ static Chunk<S>* chunk(S* tile, int row, int column) {
    return reinterpret_cast<Chunk<S>*>(tile) + row * kRowChunks + (column ^ (row >> 1 & 3));
  }
};

// [kStep, kColumns]
template <class S, int kColumns>
struct Columns {
  static constexpr int kChunks = kColumns / kChunk<S>;

  __device__ static Chunk<S>* chunk(S* tile, int row, int column) {
    // matrices of 16-bit elements are read eight rows at a time, wider elements four rows of two chunks
    const int permuted = column ^ (sizeof(S) == 2 ? row & 7 : row << 1 & 7);
    return reinterpret_cast<Chunk<S>*>(tile) + row * kChunks + permuted;
  }
  __device__ static S at(S* tile, int row, int column) {
    return chunk(tile, row, column / kChunk<S>)->values[column % kChunk<S>];
  }
};

// 2 x 2 warps, each with 64 rows and half of the kN_ columns.
template <class S_, int kN_>
struct TensorCores {
  using S = S_;
  using A = float;
  static constexpr int kM = 128, kN = kN_, kThreads = 128;
  static constexpr int kStageElements = (kM + kN) * kStep<S>;  // of both operands, in one step
  static constexpr int kRowBlocks = 4, kColumnBlocks = kN / 16;      // of a warp: 16 rows, 8 columns
  static constexpr int kSlabs = 2, kSlab = kStep<S> / kSlabs;        // of K: what one product takes
  static constexpr bool kTf32 = std::is_same_v<S, float>;

  A sums[kRowBlocks][kColumnBlocks][4] = {};
  A squares[kRowBlocks][2] = {};  // of the lane's rows, over its share of K

  __device__ static int lane() { return threadIdx.x % kWarp; }
  __device__ static int warp_row() { return threadIdx.x / kWarp / 2 * 64; }
  __device__ static int warp_half() { return threadIdx.x / kWarp % 2; }
  __device__ static int warp_column() { return warp_half() * (kN / 2); }

  // a, b: Rows
  template <bool kSquares>
  __device__ void multiply(S* a, S* b) {
    const int matrix = lane() / 8, row = lane() % 8;
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      uint32_t left[kRowBlocks][4], right[kColumnBlocks / 2][4];
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
        load_matrices<false>(left[i],
                             Rows<S>::chunk(a, warp_row() + i * 16 + matrix % 2 * 8 + row, slab * 2 + matrix / 2));
      }
#pragma unroll
      for (int j = 0; j < kColumnBlocks / 2; ++j) {
        load_matrices<false>(right[j],
                             Rows<S>::chunk(b, warp_column() + j * 16 + matrix / 2 * 8 + row, slab * 2 + matrix % 2));
      }
      if (kSquares && slab == warp_half()) add_squares(left);  // both halves' warps read the same rows
      products(left, right);
    }
  }

  // a, b: Columns
  __device__ void multiply_columns(S* a, S* b) {
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      uint32_t left[kRowBlocks][4], right[kColumnBlocks / 2][4];
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) load_columns<kM, 1>(left[i], a, slab, warp_row() + i * 16);
#pragma unroll
      for (int j = 0; j < kColumnBlocks / 2; ++j) load_columns<kN, 2>(right[j], b, slab, warp_column() + j * 16);
      products(left, right);
    }
  }

  // Writes sums to tile[row * pitch + column], and every row's squares to row_squares[row * 2 + half].
  __device__ void store(A* tile, int pitch) const {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnBlocks; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int row = warp_row() + i * 16 + k / 2 * 8 + lane() / 4;
          tile[row * pitch + warp_column() + j * 8 + lane() % 4 * 2 + k % 2] = sums[i][j][k];
        }
      }
    }
  }

  static constexpr int kSquareParts = 2;  // that a row's squares come in

  __device__ void store_squares(A* parts) const {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        A sum = squares[i][k];  // four lanes share a row
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane() % 4 == 0) parts[(warp_row() + i * 16 + k * 8 + lane() / 4) * kSquareParts + warp_half()] = sum;
      }
    }
  }

 private:
  __device__ static float2 pair(uint32_t word) {
    if constexpr (std::is_same_v<S, BFloat16>) return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
    if constexpr (std::is_same_v<S, Half>) return {half(word), half(word >> 16)};
    if constexpr (kTf32) return {__uint_as_float(word), 0};
  }
  __device__ static float half(uint32_t bits) { return Half(static_cast<uint16_t>(bits), Half::from_bits()); }

  __device__ void add_squares(const uint32_t (&left)[kRowBlocks][4]) {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 values = pair(left[i][k]);
        squares[i][k % 2] += values.x * values.x;
        if (!kTf32) squares[i][k % 2] += values.y * values.y;
      }
    }
  }

  // A fragment whose rows are the tile's columns. kInner: which bit of a matrix's number goes along them.
  template <int kColumns, int kInner>
  __device__ static void load_columns(uint32_t (&to)[4], S* tile, int slab, int column) {
    using Tile = Columns<S, kColumns>;
    if constexpr (kTf32) {
#pragma unroll
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int along = kInner == 1 ? matrix % 2 : matrix / 2, down = kInner == 1 ? matrix / 2 : matrix % 2;
        to[matrix] = __float_as_uint(Tile::at(tile, slab * kSlab + down * 4 + lane() % 4, column + along * 8 + lane() / 4));
      }
    } else {
      const int matrix = lane() / 8, row = lane() % 8;
      const int along = kInner == 1 ? matrix % 2 : matrix / 2, down = kInner == 1 ? matrix / 2 : matrix % 2;
      load_matrices<true>(to, Tile::chunk(tile, slab * kSlab + down * 8 + row, column / 8 + along));
    }
  }

  __device__ void products(uint32_t (&left)[kRowBlocks][4], uint32_t (&right)[kColumnBlocks / 2][4]) {
    if constexpr (kTf32) {
      round(left);
      round(right);
    }
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnBlocks; ++j) {
        multiply_add<S>(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  template <int kBlocks>
  __device__ static void round(uint32_t (&words)[kBlocks][4]) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) words[i][k] = to_tf32(__uint_as_float(words[i][k]));
    }
  }
};

// 4 warps, each with 32 rows; a thread has every fourth of them and every eighth of the columns.
template <class S_>
struct MultiplyAdds {
  using S = S_;
  using A = Accumulator<S>;
  static constexpr int kRowsDown = 4, kColumnsAcross = 8, kRowsEach = 8, kColumnsEach = sizeof(S) == 8 ? 4 : 8;
  static constexpr int kM = 128, kN = kColumnsAcross * kColumnsEach, kThreads = 128;
  static constexpr int kStageElements = (kM + kN) * kStep<S>;

  A sums[kRowsEach][kColumnsEach] = {};
  A square = 0;  // of the row that is the thread's number

  __device__ static int first_row() { return threadIdx.x / kWarp * 32 + threadIdx.x % kWarp / kColumnsAcross; }
  __device__ static int first_column() { return threadIdx.x % kColumnsAcross; }
  __device__ static int row_of(int i) { return first_row() + i * kRowsDown; }
  __device__ static int column_of(int j) { return first_column() + j * kColumnsAcross; }

  template <bool kSquares>
  __device__ void multiply(S* a, S* b) {
#pragma unroll
    for (int chunk = 0; chunk < kRowChunks; ++chunk) {
      Chunk<S> left[kRowsEach];
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) left[i] = *Rows<S>::chunk(a, row_of(i), chunk);
#pragma unroll
      for (int j = 0; j < kColumnsEach; ++j) {
        const Chunk<S> right = *Rows<S>::chunk(b, column_of(j), chunk);
#pragma unroll
        for (int i = 0; i < kRowsEach; ++i) {
#pragma unroll
          for (int k = 0; k < kChunk<S>; ++k) sums[i][j] += left[i].values[k] * right.values[k];
        }
      }
      if constexpr (kSquares) {
        const Chunk<S> own = *Rows<S>::chunk(a, threadIdx.x, chunk);
#pragma unroll
        for (int k = 0; k < kChunk<S>; ++k) square += own.values[k] * own.values[k];
      }
    }
  }

  __device__ void multiply_columns(S* a, S* b) {
#pragma unroll 2
    for (int k = 0; k < kStep<S>; ++k) {
      S left[kRowsEach], right[kColumnsEach];
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) left[i] = Columns<S, kM>::at(a, k, row_of(i));
#pragma unroll
      for (int j = 0; j < kColumnsEach; ++j) right[j] = Columns<S, kN>::at(b, k, column_of(j));
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) {
#pragma unroll
        for (int j = 0; j < kColumnsEach; ++j) sums[i][j] += left[i] * right[j];
      }
    }
  }

  __device__ void store(A* tile, int pitch) const {
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnsEach; ++j) tile[row_of(i) * pitch + column_of(j)] = sums[i][j];
    }
  }

  static constexpr int kSquareParts = 1;

  __device__ void store_squares(A* parts) const { parts[threadIdx.x] = square; }
};

}  // namespace ccn::cuda
