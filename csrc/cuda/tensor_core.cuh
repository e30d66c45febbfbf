// The instructions that C++ has no words for: asynchronous copies into shared memory, and matrix products of a warp.
// Inline PTX rather than wmma, whose fragments are opaque: ours are squared on their way to the product, come from
// swizzled memory, and are transposed as they are read. They need compute capability 8.0; the host sees to it.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "device.cuh"

namespace ccn::cuda {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

#ifndef CCN_EMULATED
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CCN_PTX(...) asm volatile(__VA_ARGS__)
#else
#define CCN_PTX(...) __trap()
#endif

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory; zeros where not `valid`, when `from` is not read.
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  CCN_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
          : "memory");
}

__device__ inline void commit_copies() { CCN_PTX("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last kPending groups of this thread's copies have arrived.
template <int kPending>
__device__ inline void wait_for_copies() {
  CCN_PTX("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements, whose rows lie where the lanes say: lane l has row l / 4, columns 2 * (l % 4) and
// the next of each; of the transposed matrices, if kTransposed.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  if constexpr (kTransposed) {
    CCN_PTX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
  } else {
    CCN_PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
  }
}

#define CCN_MMA(shape, type)                                                                                       \
  CCN_PTX("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "       \
          "{%8, %9}, {%0, %1, %2, %3};"                                                                            \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                         \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// d [16, 8] += a [16, 32 bytes] b [8, 32 bytes]^T, each spread over a warp: 16-bit elements, or TF32 where S is float.
template <class S>
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<S, Half>) CCN_MMA("m16n8k16", "f16");
  if constexpr (std::is_same_v<S, BFloat16>) CCN_MMA("m16n8k16", "bf16");
  if constexpr (std::is_same_v<S, float>) CCN_MMA("m16n8k8", "tf32");
}

// The nearest TF32 number; the tensor cores alone would cut the rest off.
__device__ inline uint32_t to_tf32(float value) {
  uint32_t result = 0;
  CCN_PTX("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
}
#endif  // CCN_EMULATED

}  // namespace ccn::cuda
