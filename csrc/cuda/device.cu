#include "device.cuh"

#include <algorithm>
#include <map>
#include <mutex>

#include "plan.h"

namespace lstm_fast::cuda {

#ifdef LSTM_FAST_CUDA_EMULATION

// A small Hopper, so that a few rows and units fill it.
Device current_device() { return {90, 4, 227 << 10, 50 << 20, 8}; }

#else

namespace {

__global__ void any_kernel() {}

Device describe(int index) {
  const auto get = [index](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index));
    return value;
  };
  // A device may run the PTX of an older architecture, which leaves out what only newer ones have.
  cudaFuncAttributes compiled{};
  check(cudaFuncGetAttributes(&compiled, any_kernel));
  const int capability = std::min(compiled.ptxVersion, 10 * get(cudaDevAttrComputeCapabilityMajor) +
                                                           get(cudaDevAttrComputeCapabilityMinor));
  // More than 8 blocks in a cluster are not granted everywhere.
  const bool clusters = capability >= 90 && get(cudaDevAttrClusterLaunch);
  return {capability, get(cudaDevAttrMultiProcessorCount),
          get(cudaDevAttrMaxSharedMemoryPerBlockOptin), get(cudaDevAttrL2CacheSize),
          clusters ? 8 : 1};
}

}  // namespace

Device current_device() {
  int index = 0;
  check(cudaGetDevice(&index));
  static std::mutex mutex;
  static std::map<int, Device> devices;
  const std::lock_guard lock(mutex);
  const auto known = devices.find(index);
  return known != devices.end() ? known->second
                                : devices.emplace(index, describe(index)).first->second;
}

int64_t most_shared_bytes() { return current_device().shared_bytes; }

#endif

}  // namespace lstm_fast::cuda
