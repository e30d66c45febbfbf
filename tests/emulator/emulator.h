// Runs the CUDA kernels of csrc/cuda on a CPU: a fiber a thread, a block after the other. It is for tests, so it is strict:
// threads run in an order that is drawn anew after every barrier; shared memory starts as NaN; an asynchronous copy arrives
// no sooner than it is waited for, and what it will overwrite is NaN from its start; threads that wait for each other at
// different barriers are an error.
#pragma once

#include <setjmp.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define CCN_DISPATCH_KEY CPU
#define CCN_NAMESPACE ccn_emulated

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index3 {
  unsigned x = 0;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

namespace emulator {

constexpr int kLanes = 32;
constexpr size_t kStack = 256 << 10;

// What a lane hands to its warp.
struct Deposit {
  const void* pointer;
  uint32_t words[6];
  unsigned char value[8];
};

struct Barrier {
  int members = 0, arrived = 0;
  uint64_t generation = 0;

  void arrive() {
    if (++arrived < members) return;
    arrived = 0;
    ++generation;
  }
  void leave() {  // a thread that has returned is not waited for
    --members;
    if (members > 0 && arrived == members) {
      arrived = 0;
      ++generation;
    }
  }
};

struct Warp {
  Barrier barrier;
  Deposit deposits[2][kLanes];  // in turn, so that one barrier an exchange is enough
};

struct Copy {
  void* to;
  const void* from;
  bool valid;

  void arrive() const {
    if (valid) std::memcpy(to, from, 16);
    if (!valid) std::memset(to, 0, 16);
  }
};

struct Thread {
  unsigned index = 0;
  Warp* warp = nullptr;
  int exchanges = 0;
  const Barrier* waits_at = nullptr;
  uint64_t waits_for = 0;
  bool started = false, done = false;
  std::vector<Copy> pending;
  std::deque<std::vector<Copy>> groups;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;
  jmp_buf place;

  bool can_run() const { return !done && (!waits_at || waits_at->generation >= waits_for); }
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::unique_ptr<uint4[]> shared;
  const std::function<void()>* kernel = nullptr;
  jmp_buf scheduler;
  ucontext_t base;
};

inline thread_local Block* block = nullptr;
inline thread_local Thread* current = nullptr;
inline thread_local std::mt19937 order;

inline void pause() {
  if (_setjmp(current->place) == 0) _longjmp(block->scheduler, 1);
}

inline void wait_at(Barrier& barrier) {
  const uint64_t before = barrier.generation;
  barrier.arrive();
  current->waits_at = &barrier;
  current->waits_for = before + 1;
  pause();
  current->waits_at = nullptr;
}

inline void enter() {
  (*block->kernel)();
  current->done = true;
  current->warp->barrier.leave();
  block->barrier.leave();
  _longjmp(block->scheduler, 1);
}

}  // namespace emulator

inline thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline void resume(Thread& thread) {
  current = &thread;
  threadIdx.x = thread.index;
  if (_setjmp(block->scheduler) != 0) return;
  if (thread.started) _longjmp(thread.place, 1);
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, enter, 0);
  setcontext(&thread.context);
}

inline void run_block(Block& state, int threads, size_t shared, const std::function<void()>& kernel) {
  block = &state;
  state.kernel = &kernel;
  state.shared.reset(new uint4[(shared + 15) / 16]);
  std::memset(state.shared.get(), 0xff, (shared + 15) / 16 * 16);
  state.barrier = {threads, 0, 0};
  state.warps.assign((threads + kLanes - 1) / kLanes, Warp());
  state.threads.resize(threads);
  std::vector<int> turns(threads);
  for (int i = 0; i < threads; ++i) {
    Thread& thread = state.threads[i];
    thread.index = i;
    thread.warp = &state.warps[i / kLanes];
    ++thread.warp->barrier.members;
    thread.exchanges = 0;
    thread.waits_at = nullptr;
    thread.started = thread.done = false;
    thread.pending.clear();
    thread.groups.clear();
    turns[i] = i;
  }
  for (bool any = true; any;) {
    std::shuffle(turns.begin(), turns.end(), order);
    any = false;
    for (const int turn : turns) {
      if (!state.threads[turn].can_run()) continue;
      any = true;
      resume(state.threads[turn]);
    }
  }
  for (const Thread& thread : state.threads) {
    STD_TORCH_CHECK(thread.done, "thread ", thread.index, " of block ", blockIdx.x, " waits at a barrier for ever");
  }
}

// All lanes' deposits, once they are there.
template <class Fill>
const Deposit* exchange(const Fill& fill) {
  Warp& warp = *current->warp;
  Deposit* deposits = warp.deposits[current->exchanges++ % 2];
  fill(deposits[current->index % kLanes]);
  wait_at(warp.barrier);
  return deposits;
}

inline int lane() { return static_cast<int>(current->index % kLanes); }

// Element k of row `row` of a fragment: registers go by halves of the row's 32 bytes and by halves of 16 rows.
template <class S>
float element(const Deposit* deposits, int first_word, int words_a_half, int row, int k) {
  constexpr int kHalf = 16 / sizeof(S), kInWord = 4 / sizeof(S);
  const int word = first_word + (k / kHalf) * words_a_half + row / 8;
  const uint32_t bits = deposits[row % 8 * 4 + k % kHalf / kInWord].words[word];
  if constexpr (sizeof(S) == 4) {
    return __uint_as_float(bits & 0xffffe000u);  // TF32
  } else {
    return static_cast<float>(S(static_cast<uint16_t>(bits >> (k % 2 * 16)), S::from_bits()));
  }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_at(emulator::block->barrier); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  const auto* deposits = emulator::exchange([&](emulator::Deposit& mine) { std::memcpy(mine.value, &value, sizeof(T)); });
  std::memcpy(&value, deposits[emulator::lane() ^ offset].value, sizeof(T));
  return value;
}

namespace ccn::cuda {

struct OnDevice {
  explicit OnDevice(const Tensor&) {}
};

inline unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(emulator::block->shared.get()); }

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, int threads, size_t shared, const Args&... args) {
  const std::function<void()> run = [&] { kernel(args...); };
  emulator::Block state;
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) emulator::run_block(state, threads, shared, run);
}

inline void copy_async(void* to, const void* from, bool valid) {
  std::memset(to, 0xff, 16);
  emulator::current->pending.push_back({to, from, valid});
}

inline void commit_copies() { emulator::current->groups.push_back(std::move(emulator::current->pending)); }

template <int kPending>
void wait_for_copies() {
  auto& groups = emulator::current->groups;
  for (; groups.size() > kPending; groups.pop_front()) {
    for (const emulator::Copy& copy : groups.front()) copy.arrive();
  }
}

template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto* deposits = emulator::exchange([&](emulator::Deposit& mine) { mine.pointer = row; });
  const int first = emulator::lane() / 4, second = emulator::lane() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto row_of = [&](int i) { return static_cast<const uint16_t*>(deposits[matrix * 8 + i].pointer); };
    const uint32_t low = kTransposed ? row_of(2 * second)[first] : row_of(first)[2 * second];
    const uint32_t high = kTransposed ? row_of(2 * second + 1)[first] : row_of(first)[2 * second + 1];
    to[matrix] = low | high << 16;
  }
}

template <class S>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto* deposits = emulator::exchange([&](emulator::Deposit& mine) {
    std::copy_n(a, 4, mine.words);
    mine.words[4] = b0;
    mine.words[5] = b1;
  });
  for (int i = 0; i < 4; ++i) {
    const int row = emulator::lane() / 4 + i / 2 * 8, column = emulator::lane() % 4 * 2 + i % 2;
    for (int k = 0; k < static_cast<int>(32 / sizeof(S)); ++k) {
      d[i] += emulator::element<S>(deposits, 0, 2, row, k) * emulator::element<S>(deposits, 4, 1, column, k);
    }
  }
}

inline uint32_t to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  return value == value ? bits + 0x1000u : bits;  // the tensor core cuts what is left of them
}

}  // namespace ccn::cuda
