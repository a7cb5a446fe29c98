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
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
  }
}

// Starts kernel(params) on a stream (a cudaStream_t) of the current device.
template <typename Params>
void launch(void (*kernel)(Params), dim3 grid, int threads, int64_t shared_bytes, void* stream,
            const Params& params) {
  constexpr int64_t without_asking = 48 * 1024;
  if (shared_bytes > without_asking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError());
}

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
// The planner never asks for TF32 there.
template <>
__device__ __forceinline__ void mma<float>(float (&)[4], const uint32_t (&)[4],
                                           const uint32_t (&)[2]) {
  __trap();
}
__device__ __forceinline__ float to_tf32(float x) { return x; }
#endif
#undef LSTM_FAST_MMA

}  // namespace lstm_fast::cuda

#endif
