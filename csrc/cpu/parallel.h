// Work split over PyTorch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../compact_conv.h"

namespace ccn::cpu {

constexpr int64_t kGrain = 1 << 15;  // elements that are worth a thread: as many as in ATen

template <class Work>
void parallel(int64_t tasks, int64_t elements_per_task, const Work& work) {
  if (tasks == 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_task));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { work(Range{begin, end}); });
}

}  // namespace ccn::cpu
