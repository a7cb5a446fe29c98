// Small arrays of the host on the device, handed over as kernel arguments: no pinned memory, no
// waiting, and a CUDA graph keeps the numbers themselves.
#pragma once

#include <algorithm>

#include "device.cuh"

namespace lstm_fast::cuda {

struct Numbers {
  static constexpr int kMost = 448;  // of 4 KB, the limit of all arguments of a kernel on Turing
  int64_t* to;
  int count;
  int64_t values[kMost];
};

static __global__ void __launch_bounds__(Numbers::kMost)
    upload_kernel(const __grid_constant__ Numbers p) {
  if (static_cast<int>(threadIdx.x) < p.count) p.to[threadIdx.x] = p.values[threadIdx.x];
}

inline void upload(const int64_t* from, int64_t count, int64_t* to, void* stream) {
  for (int64_t done = 0; done < count; done += Numbers::kMost) {
    Numbers numbers{
        to + done, static_cast<int>(std::min<int64_t>(Numbers::kMost, count - done)), {}};
    std::copy_n(from + done, numbers.count, numbers.values);
    launch(upload_kernel, 1, Numbers::kMost, 0, stream, numbers);
  }
}

}  // namespace lstm_fast::cuda
