// Weights that stay on a multiprocessor through all steps, in the registers of a warp and, where
// these are full, in shared memory; and products with them.
//
//   sums[row, b] = sum over k of weights[row, k] operand[b, k]        32 rows, 8 rows b of a batch
//
// An operand lies in shared memory in chunks along k, [kTeamRows][kChunkBytes] each. In a lane's
// part of a chunk of weights are kChunkBytes of one row, for ordinary multiply-adds, or the A
// operands of two mma (device.cuh) of 16 rows each.
#pragma once

#include "plan.h"
#include "tile.cuh"

namespace lstm_fast::cuda {

// Which weights and which sums a lane has.
template <typename T, Unit kUnit>
struct Lane {
  using A = Wide<T>;
  using S = typename Stored<T, kUnit>::type;
  static constexpr int kAlong = kChunkBytes / static_cast<int>(sizeof(S));  // of a chunk, along k
  static constexpr int kChunk = kTeamRows * kAlong;  // elements of an operand
  // Sums that wait for themselves, unless there are two of each.
  static constexpr int kChains = kUnit == Unit::Tensor ? 2 : 1;

  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }

  // Of element e of a lane's part of a chunk. The four words of a mma along k are taken in the
  // order 0, 2, 4, 6, 1, 3, 5, 7, on both sides, so that a lane's two are neighbours.
  static __device__ __forceinline__ int row(int e) {
    if constexpr (kUnit == Unit::Exact) return lane();
    const int word = e * static_cast<int>(sizeof(S)) / 4;
    return word / 4 * 16 + word % 2 * 8 + lane() / 4;
  }
  static __device__ __forceinline__ int k(int e) {
    if constexpr (kUnit == Unit::Exact) return e;
    constexpr int per_word = kUnit == Unit::Exact ? 1 : 4 / static_cast<int>(sizeof(S));
    return (lane() % 4 * 2 + e / per_word % 4 / 2) * per_word + e % per_word;
  }

  // Of sum v; sums v and v + 1 are of the same row and neighbouring columns, for even v.
  static __device__ __forceinline__ int sum_row(int v) {
    if constexpr (kUnit == Unit::Exact) return lane();
    return v / 4 * 16 + v % 4 / 2 * 8 + lane() / 4;
  }
  static __device__ __forceinline__ int sum_column(int v) {
    if constexpr (kUnit == Unit::Exact) return v;
    return lane() % 4 * 2 + v % 2;
  }

  // Adds the product of a chunk of weights and an operand's, of which only `rows` are wanted.
  static __device__ __forceinline__ void multiply(A (&sums)[kTeamRows], const uint4 (&weights)[2],
                                                  const S* operand, int rows) {
    if constexpr (kUnit == Unit::Tensor) {
      uint32_t b[2];
      const uint2 words = reinterpret_cast<const uint2*>(operand)[lane()];
      b[0] = words.x;
      b[1] = words.y;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t a[4] = {weights[i].x, weights[i].y, weights[i].z, weights[i].w};
        mma<T>(reinterpret_cast<float (&)[4]>(sums[4 * i]), a, b);
      }
    } else {
      alignas(16) S w[kAlong];
      memcpy(w, weights, sizeof w);
#pragma unroll
      for (int r = 0; r < kTeamRows; ++r) {
        if (r >= rows) break;
        alignas(16) S x[kAlong];
        const uint4* from = reinterpret_cast<const uint4*>(operand + r * kAlong);
        const uint4 words[2] = {from[0], from[1]};
        memcpy(x, words, sizeof x);
#pragma unroll
        for (int e = 0; e < kAlong; ++e) sums[r] = fma(w[e], x[e], sums[r]);
      }
    }
  }
};

constexpr int kAllItems = 1 << 30;

// The weights of a warp: `items` chunks, of which kPerSum, or kAllItems, in a row have the same
// sums.
template <typename T, Unit kUnit, int kRegisterChunks, int kPerSum>
class Resident {
  using L = Lane<T, kUnit>;
  using A = typename L::A;
  using S = typename L::S;
  static_assert(kPerSum % 2 == 0 && kRegisterChunks % 2 == 0);

 public:
  // weight(item, row, k), rounded on the way. `shared` has all warps' chunks that are not in
  // registers; `detour` two chunks' part of each thread, because the loads of an unrolled loop
  // would all be issued at once, into more registers than there are.
  template <typename F>
  __device__ __forceinline__ void load(int items, unsigned char* shared, unsigned char* detour,
                                       const F& weight) {
    items_ = items;
    shared_ = reinterpret_cast<uint4*>(shared) + threadIdx.x / 32 * 64 + L::lane();
    stride_ = blockDim.x / 32 * 64;
    uint4* mine = reinterpret_cast<uint4*>(detour) + threadIdx.x * 4;
    // Without values to begin with, nvcc 13.0 keeps none of those that the loop sets.
    memset(registers_, 0, sizeof registers_);
#pragma unroll 1
    for (int first = 0; first < items || first < kRegisterChunks; first += 2) {
#pragma unroll 1
      for (int half = 0; half < 4; ++half) {
        constexpr int kElements = L::kAlong / 2;
        S* to = reinterpret_cast<S*>(mine) + half * kElements;
        const int item = first + half / 2;
        A values[kElements];  // all on their way before the first one is needed
#pragma unroll
        for (int j = 0; j < kElements; ++j) {
          const int e = half % 2 * kElements + j;
          values[j] = item < items ? weight(item, L::row(e), L::k(e)) : A(0);
        }
#pragma unroll
        for (int j = 0; j < kElements; ++j) to[j] = Stored<T, kUnit>::of(values[j]);
      }
#pragma unroll
      for (int i = 0; i < kRegisterChunks; ++i) {
        if (i / 2 * 2 != first) continue;
        registers_[i][0] = mine[i % 2 * 2];
        registers_[i][1] = mine[i % 2 * 2 + 1];
      }
      for (int i = first; i >= kRegisterChunks && i < items && i < first + 2; ++i) {
        uint4* to = shared_ + (i - kRegisterChunks) * stride_;
        to[0] = mine[i % 2 * 2];
        to[32] = mine[i % 2 * 2 + 1];
      }
    }
  }

  // operand(item): the chunk that an item is multiplied by. done(index, sums) takes finished sums.
  template <typename Operand, typename Done>
  __device__ __forceinline__ void multiply(int rows, const Operand& operand,
                                           const Done& done) const {
    A sums[2][kTeamRows] = {};
#pragma unroll
    for (int i = 0; i < kRegisterChunks; ++i) {
      if (i < items_) {
        L::multiply(sums[i % L::kChains], registers_[i], operand(i), rows);
        if ((i + 1) % kPerSum == 0) finish(i / kPerSum, sums, done);
      }
    }
#pragma unroll 1
    for (int i = kRegisterChunks; i < items_; i += 2) {
      multiply_shared(sums[0], i, operand, rows);
      if (i + 1 < items_) multiply_shared(sums[L::kChains - 1], i + 1, operand, rows);
      if ((i + 2) % kPerSum == 0) finish(i / kPerSum, sums, done);
    }
    if (kPerSum == kAllItems) finish(0, sums, done);
  }

 private:
  template <typename Operand>
  __device__ __forceinline__ void multiply_shared(A (&sums)[kTeamRows], int item,
                                                  const Operand& operand, int rows) const {
    const uint4* from = shared_ + (item - kRegisterChunks) * stride_;
    const uint4 weights[2] = {from[0], from[32]};
    L::multiply(sums, weights, operand(item), rows);
  }

  template <typename Done>
  static __device__ __forceinline__ void finish(int index, A (&sums)[2][kTeamRows],
                                                const Done& done) {
#pragma unroll
    for (int v = 0; v < kTeamRows; ++v) sums[0][v] += L::kChains == 2 ? sums[1][v] : A(0);
    done(index, sums[0]);
#pragma unroll
    for (int v = 0; v < kTeamRows; ++v) sums[0][v] = sums[1][v] = 0;
  }

  uint4 registers_[kRegisterChunks][2];
  uint4* shared_;
  int stride_, items_;
};

}  // namespace lstm_fast::cuda
