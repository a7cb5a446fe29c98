// ../device.cuh for the CPU: the same kernel sources, compiled by g++, run where there is no GPU.
//
//   g++ -std=c++17 -x c++ -DLSTM_FAST_CUDA_EMULATION -I $CUDA_HOME/include kernels.cu scheduler.cpp
//
// Every CUDA thread is a fiber with a stack of its own; all of them share one thread of the
// process. A fiber runs until it waits at a barrier; which one goes on is drawn at random from
// LSTM_FAST_EMULATION_SEED, so that a run can be repeated. Shared memory is allocated anew for each
// block, of exactly the size asked for, filled with not-a-number.
//
// It finds, with the sanitizers that know fibers: access beyond a buffer, shared memory included
// (-fsanitize=address); two threads that touch the same memory with no barrier between them,
// whatever the order in which they happened to run (-fsanitize=thread); without any, barriers that
// not all threads reach, values that are used before they are written, blocks too large to launch.
//
// It does not model time, registers, caches, bank conflicts, alignment of vector accesses, warps
// in lockstep, the order in which weakly ordered writes become visible, or the last bit of the
// device's exp and tanh; tensor cores are modelled by sums in float32 in the order of k.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <math.h>
#include <cstdint>
#include <cstring>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#undef __grid_constant__
#define __grid_constant__

namespace lstm_fast::cuda::emulation {

struct Index {
  unsigned x, y, z;
};

// Of the fiber that asks.
const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();
unsigned char* shared_memory();
void sync_block();

// All 32 lanes of a warp meet; the last one to come calls `all` with what every lane brought.
void collective(void* mine, void (*all)(void* const* lanes));

// Runs the grid to its end. `kernel` is called once for each thread.
void run(Index grid, Index block, int64_t shared_bytes, void (*kernel)(const void*),
         const void* params);

}  // namespace lstm_fast::cuda::emulation

#define threadIdx (lstm_fast::cuda::emulation::thread_index())
#define blockIdx (lstm_fast::cuda::emulation::block_index())
#define blockDim (lstm_fast::cuda::emulation::block_size())
#define gridDim (lstm_fast::cuda::emulation::grid_size())
#define __syncthreads() lstm_fast::cuda::emulation::sync_block()

namespace lstm_fast::cuda {

__device__ inline unsigned char* shared_memory() { return emulation::shared_memory(); }

constexpr bool kAmpere = true;

template <typename Params>
void launch(void (*kernel)(Params), dim3 grid, int threads, int64_t shared_bytes, void* /*stream*/,
            const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  } const call{kernel, params};
  const auto body = [](const void* p) {
    const Call& c = *static_cast<const Call*>(p);
    c.kernel(c.params);
  };
  emulation::run({grid.x, grid.y, grid.z}, {static_cast<unsigned>(threads), 1, 1}, shared_bytes,
                 body, &call);
}

// One of the elements along k that a 32-bit word of a fragment holds, as the tensor core reads it.
inline float word_element(uint32_t word, int i, float) {
  (void)i;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}
template <typename Half>
float word_element(uint32_t word, int i, Half) {
  Half pair[2];
  std::memcpy(static_cast<void*>(pair), &word, sizeof pair);
  return static_cast<float>(pair[i]);
}

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Lane {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  emulation::collective(&mine, [](void* const* lanes) {
    const auto lane = [&](int row, int word) -> const Lane& {
      return *static_cast<const Lane*>(lanes[row % 8 * 4 + word % 4]);
    };
    constexpr int per_word = sizeof(uint32_t) / sizeof(T);
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        float& sum = lane(m, n / 2).d[n % 2 + m / 8 * 2];
        for (int word = 0; word < 8; ++word) {
          const uint32_t x = lane(m, word).a[m / 8 + word / 4 * 2];
          const uint32_t y = lane(n, word).b[word / 4];
          for (int i = 0; i < per_word; ++i)
            sum += word_element(x, i, T()) * word_element(y, i, T());
        }
      }
    }
  });
}

// The nearest number of 10 bits of mantissa, ties away from zero.
inline float to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace lstm_fast::cuda
