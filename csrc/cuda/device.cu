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

// Most blocks of a cluster, with all the shared memory that a block may have. More than 8 are not
// granted everywhere.
int cluster_blocks(int64_t shared_bytes) {
  constexpr int most = 8;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = most;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = most;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaFuncSetAttribute(any_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)));
  int clusters = 0;
  // An error is the answer of a device that has none.
  if (cudaOccupancyMaxActiveClusters(&clusters, any_kernel, &config)) cudaGetLastError();
  return clusters ? most : 1;
}

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
  const int shared_bytes = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return {capability, get(cudaDevAttrMultiProcessorCount), shared_bytes,
          get(cudaDevAttrL2CacheSize), capability >= 90 ? cluster_blocks(shared_bytes) : 1};
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
