// Latencies that a step cannot avoid, as one line of JSON, in nanoseconds: of a launch that waits
// for the one before, of a barrier of a block, a cluster and the whole grid, and of the exchanges
// of csrc/cuda/exchange.cuh, in which every block hands 256 bytes to every other one; null where
// the device has none. Built and run by benchmarks/gpu.py.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <functional>

#include "../csrc/cuda/exchange.cuh"

namespace cg = cooperative_groups;
using namespace lstm_fast::cuda;

constexpr int kThreads = 256, kTimes = 20000, kClusterBlocks = 8;

struct Nothing {};

__global__ void nothing(Nothing) {}

__global__ void block_barrier(Nothing) {
  for (int i = 0; i < kTimes; ++i) __syncthreads();
}

__global__ void cluster_barrier(Nothing) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < kTimes; ++i) cg::this_cluster().sync();
#endif
}

__global__ void grid_barrier(Nothing) {
  const cg::grid_group grid = cg::this_grid();
  for (int i = 0; i < kTimes; ++i) grid.sync();
}

template <typename Way>
__global__ void __launch_bounds__(kThreads, 1)
    exchange_kernel(const __grid_constant__ Exchange exchange) {
  if constexpr (kHopper || Way::kTogether != Together::Cluster) {
    Way way(exchange, 0);
    for (int i = 0; i < kTimes; ++i) {
      if (threadIdx.x < 32)
        way.post_all(0, i, (way.rank() * 32 + threadIdx.x) * 8, Pair<float>{1, 2});
      way.posted(0, i);
      way.await(0, i);
      __syncthreads();
    }
    way.leave();
  }
}

// Nanoseconds of one of kTimes, or a negative number where the kernel cannot be launched.
double measure(const std::function<bool()>& run) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  float milliseconds = 0;
  try {
    for (int i = 0; i < 2; ++i) {  // the first time to warm up
      check(cudaEventRecord(start));
      if (!run()) return -1;
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
    }
    check(cudaEventElapsedTime(&milliseconds, start, end));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
  return milliseconds * 1e6 / kTimes;
}

double measure_barrier(void (*kernel)(Nothing), Together together, int blocks) {
  return measure([&] {
    return launch_together(kernel, together, blocks, blocks, kThreads, 0, nullptr, Nothing{});
  });
}

double measure_launch(int blocks) {
  return measure([&] {
    for (int i = 0; i < kTimes; ++i) launch(nothing, blocks, kThreads, 0, nullptr, Nothing{});
    return true;
  });
}

template <typename Way>
double measure_exchange(int blocks) {
  Exchange exchange{};
  exchange.common = true;
  exchange.arriving = blocks * 256;
  exchange.team.blocks = blocks;
  exchange.team.teams = exchange.team.groups = 1;
  exchange.team.memory.inbox_bytes = blocks * 256;
  exchange.team.memory.barriers = 2 * blocks * 256;
  const int64_t flag_bytes = blocks * sizeof(unsigned);
  check(cudaMalloc(&exchange.inboxes, 2 * blocks * 256));
  check(cudaMalloc(&exchange.flags, flag_bytes));
  return measure([&] {
    clear(exchange.flags, flag_bytes, nullptr);
    return launch_together(exchange_kernel<Way>, Way::kTogether, blocks, blocks, kThreads,
                           exchange.team.memory.barriers + 16, nullptr, exchange);
  });
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
  const bool clusters = properties.major >= 9;
  const int all = properties.multiProcessorCount;
  std::printf("{");
  print("launch", measure_launch(all), ", ");
  print("block", measure_barrier(block_barrier, Together::Alone, 1), ", ");
  print("cluster",
        clusters ? measure_barrier(cluster_barrier, Together::Cluster, kClusterBlocks) : -1, ", ");
  print("grid", measure_barrier(grid_barrier, Together::Grid, all), ", ");
  print("cluster_exchange", clusters ? measure_exchange<Cluster>(kClusterBlocks) : -1, ", ");
  print("grid_exchange", measure_exchange<Grid>(all), "}\n");
  return 0;
}
