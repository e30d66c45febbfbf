// What the kernels take from CUDA: launches, shared memory, streams. With CCN_EMULATED a C++ compiler takes them too, and
// they run on a CPU, thread by thread (tests/emulator): CI has no GPU.
#pragma once

#include <algorithm>

#include "../native.h"

#ifdef CCN_EMULATED
#include "emulator.h"
#else

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#define CCN_DISPATCH_KEY CUDA
#define CCN_NAMESPACE ccn_native

// It lives in libtorch_cuda; a hard reference would keep the library from loading beside a CPU-only PyTorch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace ccn::cuda {

// Makes a tensor's device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

inline cudaStream_t current_stream() {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this PyTorch has no CUDA");
  int device = 0;
  check(cudaGetDevice(&device), "no current CUDA device");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// What a block may have of shared memory on every GPU of capability 8.0 and up.
constexpr size_t kMostShared = 99 << 10;

// Runs `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory each.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, int threads, size_t shared, const Args&... args) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "the call needs more blocks than a CUDA grid may have");
  STD_TORCH_CHECK(shared <= kMostShared, "a CUDA kernel needs more shared memory than a GPU has");
  if (shared > (48 << 10)) {  // has to be asked for: always as much, since another thread may be launching the same kernel
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostShared)),
          "a CUDA kernel was refused its shared memory");
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared, current_stream()>>>(args...);
  check(cudaGetLastError(), "a CUDA kernel did not launch");
}

#ifdef __CUDACC__
extern __shared__ uint4 dynamic_shared_memory[];
__device__ inline unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(dynamic_shared_memory); }
#endif

}  // namespace ccn::cuda
#endif  // CCN_EMULATED

namespace ccn::cuda {

constexpr int kWarp = 32;

// For kernels whose threads stride over all tasks.
constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

template <class... Params, class... Args>
void launch_over(void (*kernel)(Params...), int64_t tasks, const Args&... args) {
  launch(kernel, std::min(ceil_div(tasks, kThreads), kMostBlocks), kThreads, 0, args...);
}

__device__ inline int64_t thread_index() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ inline int64_t thread_count() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

}  // namespace ccn::cuda
