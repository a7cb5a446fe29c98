#include "device.cuh"

#include "plan.h"

namespace lstm_fast::cuda {

#ifdef LSTM_FAST_CUDA_EMULATION

// A small Hopper, so that a few rows and units fill it.
Device current_device() { return {90, 4, 227 << 10, 50 << 20, 8}; }

#else

Device current_device() {
  int index = 0;
  check(cudaGetDevice(&index));
  const auto get = [index](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index));
    return value;
  };
  // More than 8 blocks in a cluster are not granted everywhere.
  return {10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor),
          get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          get(cudaDevAttrL2CacheSize), get(cudaDevAttrClusterLaunch) ? 8 : 1};
}

#endif

}  // namespace lstm_fast::cuda
