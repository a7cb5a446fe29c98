// ../device.cuh for the CPU: the same kernel sources, compiled by g++, run where there is no GPU.
//
//   g++ -std=c++17 -x c++ -DLSTM_FAST_CUDA_EMULATION -I $CUDA_HOME/include kernels.cu scheduler.cpp
//
// Every CUDA thread is a fiber with a stack of its own; all of them share one thread of the
// process. A fiber runs until it waits at a barrier or for a flag; which one goes on is drawn at
// random from LSTM_FAST_EMULATION_SEED, so that a run can be repeated. Blocks run one after the
// other, but those of a cluster or of a grid that were launched together run together, in steps
// that mix at random. Shared memory is allocated anew for each block, of exactly the size asked
// for, filled with not-a-number. LSTM_FAST_EMULATION_RESIDENT_BLOCKS is how many blocks the device
// can hold at a time.
//
// It finds, with the sanitizers that know fibers: access beyond a buffer, shared memory included,
// that of other blocks too (-fsanitize=address); two threads that touch the same memory with no
// barrier, flag or posted value between them, whatever the order in which they happened to run
// (-fsanitize=thread); without any, barriers that not all threads reach, waits that never end,
// barriers that are told of more bytes than they expect, values that are used before they are
// written, blocks too large to launch.
//
// It does not model time, registers, caches, bank conflicts, alignment of vector accesses, warps
// in lockstep, the order in which weakly ordered writes become visible (a posted value is there at
// once, and a flag orders all that its thread has seen), fences, the state that a barrier in shared
// memory is in before it is initialised, the 2^20 bytes that it can count, the number of blocks
// that a cluster may have, or the last bit of the device's exp and tanh; tensor cores are modelled
// by sums in float32 in the order of k.
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

// Runs the grid to its end, `together` neighbouring blocks at a time. `kernel` is called once for
// each thread.
void run(Index grid, Index block, unsigned together, int64_t shared_bytes,
         void (*kernel)(const void*), const void* params);
// What the device can hold at a time.
unsigned resident_blocks();

void store_flag(unsigned* flag, unsigned value);
void wait_for_flag(const unsigned* flag, unsigned at_least);

// A barrier that counts bytes; the eight bytes of it are the emulation's own.
void init_barrier(uint64_t* barrier);
void expect(uint64_t* barrier, int bytes);
void complete(uint64_t* barrier, int bytes);
void wait(uint64_t* barrier, int parity);

// Of blocks that run together, of which there are `together` to run(): the place of the asking one
// among them, the shared memory of one, a meeting of all threads.
unsigned rank_together();
unsigned char* shared_memory_of(unsigned rank);
void sync_together();

}  // namespace lstm_fast::cuda::emulation

#define threadIdx (lstm_fast::cuda::emulation::thread_index())
#define blockIdx (lstm_fast::cuda::emulation::block_index())
#define blockDim (lstm_fast::cuda::emulation::block_size())
#define gridDim (lstm_fast::cuda::emulation::grid_size())
#define __syncthreads() lstm_fast::cuda::emulation::sync_block()

namespace lstm_fast::cuda {

__device__ inline unsigned char* shared_memory() { return emulation::shared_memory(); }

constexpr bool kAmpere = true, kHopper = true;
__device__ inline void left_out() {}

enum class Together { Alone, Cluster, Grid };

template <typename Params>
bool launch_together(void (*kernel)(Params), Together together, int cluster, dim3 grid, int threads,
                     int64_t shared_bytes, void* /*stream*/, const Params& params) {
  const unsigned all = grid.x * grid.y * grid.z;
  const unsigned count = together == Together::Alone     ? 1
                         : together == Together::Cluster ? static_cast<unsigned>(cluster)
                                                         : all;
  if (count > emulation::resident_blocks()) return false;
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  } const call{kernel, params};
  const auto body = [](const void* p) {
    const Call& c = *static_cast<const Call*>(p);
    c.kernel(c.params);
  };
  emulation::run({grid.x, grid.y, grid.z}, {static_cast<unsigned>(threads), 1, 1}, count,
                 shared_bytes, body, &call);
  return true;
}

template <typename Params>
void launch(void (*kernel)(Params), dim3 grid, int threads, int64_t shared_bytes, void* stream,
            const Params& params) {
  launch_together(kernel, Together::Alone, 1, grid, threads, shared_bytes, stream, params);
}

inline void clear(void* memory, int64_t bytes, void* /*stream*/) { std::memset(memory, 0, bytes); }

using emulation::store_flag;
using emulation::wait_for_flag;

template <typename V>
V load_shared_by_blocks(const V* from) {
  return *from;
}

using Barrier = uint64_t;
using emulation::expect;
using emulation::init_barrier;
using emulation::wait;

inline void show_barriers() {}
inline void reconverge() {}
inline int block_of_cluster() { return static_cast<int>(emulation::rank_together()); }
inline void sync_cluster() { emulation::sync_together(); }

template <typename V>
V* of_block(V* mine, int block) {
  const auto at = reinterpret_cast<unsigned char*>(mine) - emulation::shared_memory();
  return reinterpret_cast<V*>(emulation::shared_memory_of(static_cast<unsigned>(block)) + at);
}
template <typename V>
void post(V* to, Barrier* barrier, int block, const V& value) {
  *of_block(to, block) = value;
  emulation::complete(of_block(barrier, block), sizeof value);
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
    constexpr int per_word = sizeof(uint32_t) / sizeof(T), K = 8 * per_word;
    float a[16][K], b[8][K];
    for (int k = 0; k < K; ++k) {
      const int word = k / per_word, i = k % per_word;
      for (int m = 0; m < 16; ++m)
        a[m][k] = word_element(lane(m, word).a[m / 8 + word / 4 * 2], i, T());
      for (int n = 0; n < 8; ++n) b[n][k] = word_element(lane(n, word).b[word / 4], i, T());
    }
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        float sum = lane(m, n / 2).d[n % 2 + m / 8 * 2];
        for (int k = 0; k < K; ++k) sum += a[m][k] * b[n][k];
        lane(m, n / 2).d[n % 2 + m / 8 * 2] = sum;
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
