// What the convolutions of our own share: vectors, and products of them that stay in registers. Included once per
// instruction set; no standard-library templates here either (see passes.cpp).
#pragma once

#include <new>

#include "passes.h"

namespace ccn::cpu::CCN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kScalars = 12;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kScalars = 6;  // 12 of 16
#else
constexpr int kVectorBytes = 16;
constexpr int kScalars = 6;
#endif
constexpr int kVectors = 2;

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vector = typename Simd<T>::Vector;

template <class T>
constexpr int kWidth = kVectorBytes / sizeof(T);

template <class T>
constexpr int kLanes = kVectors * kWidth<T>;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t padded(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

template <class T>
inline void fill(T* out, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

// Uninitialised.
template <class T>
struct Array {
  T* data;

  explicit Array(int64_t count) : data(static_cast<T*>(::operator new(count * sizeof(T)))) {}
  Array(const Array&) = delete;
  ~Array() { ::operator delete(data); }
  operator T*() const { return data; }
};

// A product is made of tiles, each an outer product, summed: scalars times lanes. Tiles are of nearly equal size, for small
// ones leave the arithmetic units waiting.
struct Span {
  int64_t begin, end;
  int count() const { return static_cast<int>(end - begin); }
};
struct Tiles {
  int64_t count, size, larger;  // the first `larger` tiles hold one more

  explicit Tiles(int64_t scalars, int64_t most = kScalars)
      : count(ceil_div(scalars, most)), size(scalars / count), larger(scalars % count) {}
  Span operator[](int64_t index) const {
    const int64_t begin = index * size + min(index, larger);
    return {begin, begin + size + (index < larger)};
  }
};

template <class T>
inline void store(T* out, const Vector<T> (&values)[kVectors], int64_t lanes) {
  if (lanes >= kLanes<T>) {
    for (int v = 0; v < kVectors; ++v) reinterpret_cast<Vector<T>*>(out)[v] = values[v];
  } else {
    const T* value = reinterpret_cast<const T*>(values);
    for (int64_t i = 0; i < lanes; ++i) out[i] = value[i];
  }
}

// Adds scalar s times the lanes to sums[s].
template <class T, int kCount>
struct Sums {
  Vector<T> of[kCount][kVectors] = {};

  template <class Scalar>
  void add(const T* lanes, Scalar scalar) {
    const auto* loaded = reinterpret_cast<const Vector<T>*>(lanes);
    const Vector<T> first = loaded[0], second = loaded[1];
    static_assert(kVectors == 2);
#pragma GCC unroll 16
    for (int s = 0; s < kCount; ++s) {
      const T factor = scalar(s);
      of[s][0] += factor * first;
      of[s][1] += factor * second;
    }
  }
};

}  // namespace
}  // namespace ccn::cpu::CCN_ISA
