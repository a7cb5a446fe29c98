// The steps of a layer in one launch, where the recurrent weights fit into the registers of one
// block: a block owns 8 rows of the batch through all steps, and no block waits for another. On
// tensor cores; without a projection.
//
// Weights are the A operand of mma (device.cuh), 16 rows of them in a fragment; the 8 rows of the
// batch are the columns of B and D. Between steps h, or backward the gradient of the gates, goes
// through shared memory.
#pragma once

#include <algorithm>

#include "layer.cuh"
#include "tile.cuh"

namespace lstm_fast::cuda {

constexpr int kBlockRows = 8;

template <typename T>
struct Words {
  static constexpr int kElements = 4 / sizeof(T);  // of a 32-bit word
  static constexpr int kChunk = 8 * kElements;     // along k, of one mma

  // A word of a fragment from element(0), element(1).
  template <typename F>
  static __device__ __forceinline__ uint32_t pack(const F& element) {
    using Store = Stored<T, Unit::Tensor>;
    typename Store::type pair[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) pair[i] = Store::of(element(i));
    uint32_t word;
    memcpy(&word, pair, sizeof word);
    return word;
  }
};

// The fragments of weights [16, kChunks * kChunk] that a lane keeps; element(row, k). They take a
// detour over four words of shared memory for each thread, so that four loads are on their way at a
// time: those of all chunks would take more registers than there are.
template <typename T, int kChunks, typename F>
__device__ __forceinline__ void load_weights(uint32_t (&fragments)[kChunks][4], const F& element) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t* mine = reinterpret_cast<uint32_t*>(shared_memory()) + threadIdx.x;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll(4 / Words<T>::kElements)
    for (int i = 0; i < 4; ++i) {
      const int word = chunk * 8 + t + i / 2 * 4;
      mine[i * blockDim.x] = Words<T>::pack(
          [&](int e) { return element(g + i % 2 * 8, word * Words<T>::kElements + e); });
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) fragments[chunk][i] = mine[i * blockDim.x];
    reconverge();  // no load is moved across it
  }
}

constexpr int64_t load_weights_bytes(int threads) { return threads * 4 * sizeof(uint32_t); }

// D += weights B over a slice of shared memory [8 rows of the batch][words along k].
template <typename T, int kChunks>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&weights)[kChunks][4],
                                         const uint32_t* words, int stride) {
  const int lane = threadIdx.x % 32;
  const uint32_t* row = words + lane / 4 * stride + lane % 4;
  float odd[4] = {};  // a second chain of sums, as one would wait for itself
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const uint32_t b[2] = {row[chunk * 8], row[chunk * 8 + 4]};
    if (chunk % 2) {
      mma<T>(odd, weights[chunk], b);
    } else {
      mma<T>(d, weights[chunk], b);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += odd[i];
}

// A warp owns 8 units: the fragments of their gates i above f, and g above o, so that a lane gets
// the four gates of one unit for two rows of the batch.
template <typename T, int kChunks>
struct BlockForwardSizes {
  using W = Words<T>;
  static constexpr int kMaxUnits = kChunks * W::kChunk;
  static constexpr int kStride = kChunks * 8 + 4;  // words of a row: eight rows in other banks
  static constexpr int kMaxThreads = kMaxUnits * 4;
  static constexpr int64_t kSharedBytes =
      std::max<int64_t>(2 * kBlockRows * kStride * 4, load_weights_bytes(kMaxThreads));
  static int threads(int64_t H) { return static_cast<int>((H + 7) / 8) * 32; }
};

// What a lane reads of a step before it can compute it: the gates of two rows, from the input.
struct FromInput {
  Gates<float> of[2];
};

template <typename T, int kChunks>
__device__ __forceinline__ void block_forward(const LayersForward<T>& layers) {
  using Sizes = BlockForwardSizes<T, kChunks>;
  using Store = Stored<T, Unit::Tensor>;
  using S = typename Store::type;
  constexpr int kStride = Sizes::kStride, kRow = kStride * Words<T>::kElements;
  const LayerForward<T>& p = layers.of[blockIdx.z];
  const Steps& steps = layers.steps;
  const bool reverse = blockIdx.z == 1;
  const int H = layers.H, lane = threadIdx.x % 32;
  const int unit = threadIdx.x / 32 * 8 + lane / 4, row = lane % 4 * 2;
  const int64_t b0 = static_cast<int64_t>(blockIdx.x) * kBlockRows;
  uint32_t* words = reinterpret_cast<uint32_t*>(shared_memory());  // h, of this step and the next

  uint32_t if_weights[kChunks][4], go_weights[kChunks][4];
  const auto weight = [&](int gate, int r, int k) {
    const int u = threadIdx.x / 32 * 8 + r % 8;
    return u < H && k < H ? widen(p.weight_hh[(static_cast<int64_t>(gate + r / 8) * H + u) * H + k])
                          : 0.f;
  };
  load_weights<T>(if_weights, [&](int r, int k) { return weight(0, r, k); });
  load_weights<T>(go_weights, [&](int r, int k) { return weight(2, r, k); });
  __syncthreads();

  for (int i = threadIdx.x; i < 2 * kBlockRows * kStride; i += blockDim.x) words[i] = 0;
  __syncthreads();
  float c[2], h[2];
  for (int j = 0; j < 2; ++j) {
    const int64_t b = b0 + row + j;
    const bool there = b < steps.B && unit < H;
    if (layers.first) {
      c[j] = there ? p.running[b * H + unit] : 0.f;
      h[j] = there ? widen(p.h_n[b * H + unit]) : 0.f;
    } else {
      c[j] = there && p.c0 ? widen(p.c0[b * H + unit]) : 0.f;
      h[j] = there && p.h0 ? widen(p.h0[b * H + unit]) : 0.f;
    }
    if (unit < H) reinterpret_cast<S*>(words)[(row + j) * kRow + unit] = Store::of(h[j]);
  }
  __syncthreads();

  const auto alive = [&](int64_t t, int j) { return b0 + row + j < steps.rows(t) && unit < H; };
  const auto load = [&](int64_t s) {
    FromInput from{};
    if (s >= layers.last) return from;
    const int64_t t = reverse ? steps.T - 1 - s : s;
    for (int j = 0; j < 2; ++j) {
      if (!alive(t, j)) continue;
      from.of[j] = load_gates(p.gates, steps.offset(t) + b0 + row + j, H, unit);
    }
    return from;
  };

  FromInput next = load(layers.first);
  int copy = 0;
  for (int64_t s = layers.first; s < layers.last; ++s) {
    const int64_t t = reverse ? steps.T - 1 - s : s;
    // Gates i and f, then g and o, of two rows: sums begin with what comes from the input.
    const Gates<float>(&x)[2] = next.of;
    float in_forget[4] = {x[0].i, x[1].i, x[0].f, x[1].f};
    float cell_out[4] = {x[0].g, x[1].g, x[0].o, x[1].o};
    next = load(s + 1);
    if (steps.rows(t) <= b0) continue;  // no row of this block
    const uint32_t* now = words + copy * kBlockRows * kStride;
    multiply<T>(in_forget, if_weights, now, kStride);
    multiply<T>(cell_out, go_weights, now, kStride);
    copy ^= 1;
    S* after = reinterpret_cast<S*>(words + copy * kBlockRows * kStride);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (alive(t, j)) {
        const Gates<float> gates =
            activate(Gates<float>{in_forget[j], in_forget[2 + j], cell_out[j], cell_out[2 + j]});
        c[j] = next_cell(gates, c[j]);
        h[j] = hidden(gates, c[j]);
        store_cell(layers, p, steps.offset(t) + b0 + row + j, unit, gates, c[j], h[j]);
      }
      if (unit < H) after[(row + j) * kRow + unit] = Store::of(h[j]);
    }
    __syncthreads();
  }
  for (int j = 0; j < 2; ++j) {
    const int64_t b = b0 + row + j;
    if (b >= steps.B || unit >= H) continue;
    p.h_n[b * H + unit] = narrow<T>(h[j]);
    p.c_n[b * H + unit] = narrow<T>(c[j]);
    if (p.running) p.running[b * H + unit] = c[j];
  }
}

// Grid: rows in groups of 8, 1, directions.
template <typename T, int kChunks>
__global__ void __launch_bounds__(BlockForwardSizes<T, kChunks>::kMaxThreads, 1)
    block_forward_kernel(const __grid_constant__ LayersForward<T> layers) {
  if constexpr (kAmpere) {
    block_forward<T, kChunks>(layers);
  } else {
    left_out();
  }
}

// A warp owns 16 units and two gates: half of the product grad_gates weight_hh. The halves meet in
// shared memory, where a thread has one unit of the rows r and r + 4.
template <typename T, int kChunks>
struct BlockBackwardSizes {
  using W = Words<T>;
  static constexpr int kMaxUnits = kChunks * W::kChunk;
  static constexpr int kStride = 4 * kChunks * 8 + 4;  // words of a row of the gates' gradients
  static constexpr int kSumStride = kMaxUnits + 4;     // numbers of a row of a half
  static constexpr int kMaxThreads = kMaxUnits * 4;
  static constexpr int64_t kSharedBytes = std::max<int64_t>(
      4 * kBlockRows * (kStride + 2 * kSumStride), load_weights_bytes(kMaxThreads));
  static int threads(int64_t H) { return static_cast<int>((H + 15) / 16) * 64; }
};

template <typename T, int kChunks>
__device__ __forceinline__ void block_backward(const LayersBackward<T>& layers) {
  using Sizes = BlockBackwardSizes<T, kChunks>;
  using Store = Stored<T, Unit::Tensor>;
  using S = typename Store::type;
  constexpr int kStride = Sizes::kStride, kSumStride = Sizes::kSumStride;
  constexpr int kGate = Sizes::kMaxUnits;  // elements along k of a gate, padded
  constexpr int kRow = kStride * Words<T>::kElements;
  const LayerBackward<T>& p = layers.of[blockIdx.z];
  const Steps& steps = layers.steps;
  const bool reverse = blockIdx.z == 1;
  const int H = layers.H, lane = threadIdx.x % 32;
  const int half = threadIdx.x / 32 % 2, unit0 = threadIdx.x / 64 * 16;
  const int width = blockDim.x / 4;
  const int row = threadIdx.x / width, unit = threadIdx.x % width;
  const int64_t b0 = static_cast<int64_t>(blockIdx.x) * kBlockRows;
  const auto b_of = [&](int j) { return b0 + row + 4 * j; };
  uint32_t* words = reinterpret_cast<uint32_t*>(shared_memory());
  float* sums = reinterpret_cast<float*>(words + kBlockRows * kStride);  // [2][8][kSumStride]

  uint32_t weights[2 * kChunks][4];
  load_weights<T>(weights, [&](int r, int k) {
    const int u = unit0 + r, gate = 2 * half + k / kGate, from = k % kGate;
    return u < H && from < H ? widen(p.weight_hh[(static_cast<int64_t>(gate) * H + from) * H + u])
                             : 0.f;
  });
  __syncthreads();
  for (int i = threadIdx.x; i < kBlockRows * kStride; i += blockDim.x) words[i] = 0;
  __syncthreads();

  // The gradient of h that comes back from the step visited before; of h0 after the last one.
  const auto from_after = [&](float (&dh)[2]) {
    float d[4] = {};
    multiply<T>(d, weights, words + half * 2 * kChunks * 8, kStride);
    const int u = unit0 + lane / 4, column = lane % 4 * 2;
    float* mine = sums + half * kBlockRows * kSumStride;
#pragma unroll
    for (int i = 0; i < 4; ++i) mine[(column + i % 2) * kSumStride + u + i / 2 * 8] = d[i];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float* both = sums + (row + 4 * j) * kSumStride + unit;
      dh[j] = both[0] + both[kBlockRows * kSumStride];
    }
  };
  const auto step = [&](int64_t s) { return reverse ? steps.T - 1 - s : s; };
  const auto load = [&](int64_t s, int j) {
    const int64_t t = step(s), b = b_of(j);
    if (b >= steps.rows(t) || unit >= H) return FromForward<float>{};
    return load_cell(layers, p, t, reverse, b, unit);
  };

  float dc[2], dm[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int64_t b = b_of(j);
    dc[j] = b < steps.B && unit < H && p.grad_c_n ? widen(p.grad_c_n[b * H + unit]) : 0.f;
  }
  for (int64_t s = steps.T - 1; s >= 0; --s) {
    const int64_t t = step(s);
    if (steps.rows(t) <= b0) continue;                            // no row of this block
    const FromForward<float> from[2] = {load(s, 0), load(s, 1)};  // on its way during the product
    from_after(dm);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t b = b_of(j);
      if (b >= steps.rows(t) || unit >= H) continue;
      dm[j] += from[j].grad_y;
      const bool last = b >= steps.carried(t, !reverse);
      if (last && p.grad_h_n) dm[j] += widen(p.grad_h_n[b * H + unit]);
      const Gates<float> da =
          gate_gradients(from[j].gates, from[j].c, from[j].c_prev, dm[j], dc[j]);
      store_gates(p.grad_gates, steps.offset(t) + b, H, unit, da);
      // A row that does not change at a step keeps its gradients for those of h0.
      S* kept = reinterpret_cast<S*>(words) + (row + 4 * j) * kRow + unit;
      kept[0] = Store::of(da.i);
      kept[kGate] = Store::of(da.f);
      kept[2 * kGate] = Store::of(da.g);
      kept[3 * kGate] = Store::of(da.o);
    }
    __syncthreads();
  }
  if (p.grad_h0) from_after(dm);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int64_t b = b_of(j);
    if (b >= steps.B || unit >= H) continue;
    if (p.grad_h0) p.grad_h0[b * H + unit] = narrow<T>(dm[j]);
    if (p.grad_c0) p.grad_c0[b * H + unit] = narrow<T>(dc[j]);
  }
}

// Grid: rows in groups of 8, 1, directions.
template <typename T, int kChunks>
__global__ void __launch_bounds__(BlockBackwardSizes<T, kChunks>::kMaxThreads, 1)
    block_backward_kernel(const __grid_constant__ LayersBackward<T> layers) {
  if constexpr (kAmpere) {
    block_backward<T, kChunks>(layers);
  } else {
    left_out();
  }
}

}  // namespace lstm_fast::cuda
