// Latencies of the barriers that persistent kernels can wait at, as one line of JSON, in
// nanoseconds; null where the device has none. Built and run by benchmarks/gpu.py.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>

namespace cg = cooperative_groups;

constexpr int kThreads = 256, kTimes = 20000, kClusterBlocks = 8;

__global__ void block_barrier() {
  for (int i = 0; i < kTimes; ++i) __syncthreads();
}

__global__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < kTimes; ++i) cg::this_cluster().sync();
#endif
}

__global__ void grid_barrier() {
  const cg::grid_group grid = cg::this_grid();
  for (int i = 0; i < kTimes; ++i) grid.sync();
}

// Nanoseconds of one barrier, or a negative number where the kernel cannot be launched.
double measure(void (*kernel)(), int blocks, cudaLaunchAttribute attribute, int attributes) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = kThreads;
  config.attrs = &attribute;
  config.numAttrs = attributes;
  if (cudaLaunchKernelEx(&config, kernel) != cudaSuccess) return cudaGetLastError(), -1;
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  cudaEventRecord(start);
  cudaLaunchKernelEx(&config, kernel);
  cudaEventRecord(end);
  if (cudaEventSynchronize(end) != cudaSuccess) return cudaGetLastError(), -1;
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, start, end);
  return milliseconds * 1e6 / kTimes;
}

void print(const char* name, double nanoseconds, const char* after) {
  if (nanoseconds < 0) {
    std::printf("\"%s\": null%s", name, after);
  } else {
    std::printf("\"%s\": %.1f%s", name, nanoseconds, after);
  }
}

int main() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return 1;
  cudaLaunchAttribute cluster{}, cooperative{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kClusterBlocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  std::printf("{");
  print("block", measure(block_barrier, 1, {}, 0), ", ");
  print("cluster",
        properties.major >= 9 ? measure(cluster_barrier, kClusterBlocks, cluster, 1) : -1, ", ");
  print("grid", measure(grid_barrier, properties.multiProcessorCount, cooperative, 1), "}\n");
  return 0;
}
