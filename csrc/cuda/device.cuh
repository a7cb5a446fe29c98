// The few facilities of a CUDA device that the kernels use beside plain CUDA C++. Under
// LSTM_FAST_CUDA_EMULATION the CPU provides them, which is how kernels are checked without a GPU.
#pragma once

#ifdef LSTM_FAST_CUDA_EMULATION
#include "emulation/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace lstm_fast::cuda {

extern __shared__ __align__(128) unsigned char shared_bytes_of_block[];

// The dynamic shared memory of the block: there is no other, so that one mechanism sizes it all.
__device__ __forceinline__ unsigned char* shared_memory() { return shared_bytes_of_block; }

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would be blamed for it
  throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

// Of a block on the current device.
int64_t most_shared_bytes();

// The limit is one of the kernel, for all threads of the host: always the same, so that none takes
// away what another one is about to use.
template <typename Params>
void allow_shared_memory(void (*kernel)(Params), int64_t bytes) {
  constexpr int64_t without_asking = 48 * 1024;
  if (bytes <= without_asking) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(most_shared_bytes())));
}

// Starts kernel(params) on a stream (a cudaStream_t) of the current device.
template <typename Params>
void launch(void (*kernel)(Params), dim3 grid, int threads, int64_t shared_bytes, void* stream,
            const Params& params) {
  allow_shared_memory(kernel, shared_bytes);
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError());
}

// Blocks of a launch that run at the same time, because they wait for each other.
enum class Together { Alone, Cluster, Grid };

// `launch` for these; blocks of a cluster are neighbours along x. Does nothing and returns false
// where the device cannot run so many of them together.
template <typename Params>
bool launch_together(void (*kernel)(Params), Together together, int cluster, dim3 grid, int threads,
                     int64_t shared_bytes, void* stream, const Params& params) {
  allow_shared_memory(kernel, shared_bytes);
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = together != Together::Alone;
  if (together == Together::Cluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (together == Together::Grid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params);
  // A context may have a part of the multiprocessors that the planner counts on.
  if (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize ||
      error == cudaErrorNotSupported) {
    cudaGetLastError();
    return false;
  }
  check(error);
  return true;
}

// Zeros, on the stream.
inline void clear(void* memory, int64_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// An error, rather than results that nobody wrote: of what is not compiled for an architecture, as
// the planner never asks for it there.
__device__ __forceinline__ void left_out() { __trap(); }

// D += A B on the tensor cores, for a warp: A [16, K], B [K, 8], D [16, 8] in float32, where K is
// eight 32-bit words: 8 elements of TF32 (T = float) or 16 halves. With g = lane / 4, t = lane % 4,
// a lane holds
//
//   a   words t, t, t + 4, t + 4 along k of the rows g, g + 8, g, g + 8 of A
//   b   words t, t + 4 along k of column g of B
//   d   columns 2t, 2t + 1, 2t, 2t + 1 of the rows g, g, g + 8, g + 8 of D
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define LSTM_FAST_MMA(shape, type)                                          \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type      \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kAmpere = true;  // or newer

template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  LSTM_FAST_MMA("m16n8k16", "f16");
}
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  LSTM_FAST_MMA("m16n8k16", "bf16");
}
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[2]) {
  LSTM_FAST_MMA("m16n8k8", "tf32");
}
__device__ __forceinline__ float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

#else  // Turing
constexpr bool kAmpere = false;

template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
}
// No tensor core there reads bfloat16: the same sums with ordinary instructions.
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int word = 0; word < 8; ++word) {
    const int half = word / 4;
    const uint32_t x[2] = {__shfl_sync(~0u, a[2 * half], g * 4 + word % 4),
                           __shfl_sync(~0u, a[2 * half + 1], g * 4 + word % 4)};
    const uint32_t y[2] = {__shfl_sync(~0u, b[half], 2 * t * 4 + word % 4),
                           __shfl_sync(~0u, b[half], (2 * t + 1) * 4 + word % 4)};
    for (int i = 0; i < 4; ++i) {
      // The first of the two elements lies in the low half of the word.
      d[i] += __uint_as_float(x[i / 2] << 16) * __uint_as_float(y[i % 2] << 16);
      d[i] += __uint_as_float(x[i / 2] & 0xffff0000u) * __uint_as_float(y[i % 2] & 0xffff0000u);
    }
  }
}
template <>
__device__ __forceinline__ void mma<float>(float (&)[4], const uint32_t (&)[4],
                                           const uint32_t (&)[2]) {
  left_out();
}
__device__ __forceinline__ float to_tf32(float x) { return x; }
#endif
#undef LSTM_FAST_MMA

// Flags in the memory of the device. What a thread wrote before it stored a flag, and others of its
// block wrote before they met it at a barrier, is seen by whoever finds the flag.
__device__ __forceinline__ void store_flag(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ void wait_for_flag(const unsigned* flag, unsigned at_least) {
  unsigned value;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  } while (static_cast<int>(value - at_least) < 0);
}

// Past the first-level cache, which knows nothing of the writes of other multiprocessors.
template <typename V>
__device__ __forceinline__ V load_shared_by_blocks(const V* from) {
  return __ldcg(from);
}

// The rest is for blocks of a cluster. Barriers (mbarrier) lie in shared memory: of two phases that
// alternate, one ends when `expect` has been called once for it and as many bytes as that said have
// been posted.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHopper = true;  // or newer; no kernel calls what follows elsewhere
#else
constexpr bool kHopper = false;
#endif

using Barrier = uint64_t;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ uint32_t address_of_block(uint32_t address, int block) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  return there;
}

__device__ __forceinline__ void init_barrier(Barrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
// By the threads that called init_barrier, before sync_cluster.
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void expect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Until the phase of this parity, 0 for the first one, has ended.
__device__ __forceinline__ void wait(Barrier* barrier, int parity) {
  const uint32_t address = shared_address(barrier);
  uint32_t ended = 0;
  while (!ended) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(address), "r"(parity)
        : "memory");
  }
}
// After a loop that lanes leave one by one, before an instruction of the whole warp.
__device__ __forceinline__ void reconverge() { __syncwarp(); }
// Stores a value of 4, 8 or 16 bytes where `to` is in another block, and posts it to its barrier.
template <typename V>
__device__ __forceinline__ void post(V* to, Barrier* barrier, int block, const V& value) {
  uint32_t words[sizeof(V) / 4];
  memcpy(words, &value, sizeof value);
  const uint32_t there = address_of_block(shared_address(to), block);
  const uint32_t its_barrier = address_of_block(shared_address(barrier), block);
#define LSTM_FAST_POST "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes"
  if constexpr (sizeof(V) == 4) {
    asm volatile(LSTM_FAST_POST ".b32 [%0], %1, [%2];" ::"r"(there), "r"(words[0]), "r"(its_barrier)
                 : "memory");
  } else if constexpr (sizeof(V) == 8) {
    asm volatile(LSTM_FAST_POST ".v2.b32 [%0], {%1, %2}, [%3];" ::"r"(there), "r"(words[0]),
                 "r"(words[1]), "r"(its_barrier)
                 : "memory");
  } else {
    static_assert(sizeof(V) == 16);
    asm volatile(LSTM_FAST_POST ".v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(its_barrier)
                 : "memory");
  }
#undef LSTM_FAST_POST
}
__device__ __forceinline__ int block_of_cluster() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster.
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

}  // namespace lstm_fast::cuda

#endif
