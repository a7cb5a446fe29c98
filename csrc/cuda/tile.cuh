// The matrix product of a block of threads: a tile [kM, kN] of A B^T, for A [M, K] and B [N, K],
// each given by a function of (row, k) that is zero beyond the matrix. Every element is summed in
// the order of k, whatever the tile, so that a row's result does not depend on the other rows.
//
// On the way through shared memory elements are rounded to what the product reads: TF32 or halves
// on tensor cores, Wide<T> on ordinary ones.
#pragma once

#include "number.cuh"

namespace lstm_fast::cuda {

// How products of elements T are computed.
//   Exact     ordinary multiply-adds in Wide<T>: float32 and float64
//   Tensor    tensor cores, sums in float32: TF32 for float, and both halves
enum class Unit { Exact, Tensor };

template <typename T, Unit kUnit>
struct Stored {
  using type = Wide<T>;
  static __device__ __forceinline__ type of(Wide<T> x) { return x; }
};
template <>
struct Stored<float, Unit::Tensor> {
  using type = float;
  static __device__ __forceinline__ float of(float x) { return to_tf32(x); }
};
template <>
struct Stored<__half, Unit::Tensor> {
  using type = __half;
  static __device__ __forceinline__ __half of(float x) { return narrow<__half>(x); }
};
template <>
struct Stored<__nv_bfloat16, Unit::Tensor> {
  using type = __nv_bfloat16;
  static __device__ __forceinline__ __nv_bfloat16 of(float x) { return narrow<__nv_bfloat16>(x); }
};

// The sums of a block in registers. `multiply` adds the product of two slices [rows, kK] in shared
// memory, kStride elements from row to row; `store` writes the sums to a [kM][kN + 4] array there.
template <typename T, Unit kUnit, int kM, int kN, int kK>
class Sums;

constexpr int kTileThreads = 128;
constexpr int kResultPadding = 4;

// A thread has rows y, y + 8, ... and columns x, x + 16, ... of the tile.
template <typename T, int kM, int kN, int kK>
class Sums<T, Unit::Exact, kM, kN, kK> {
  using S = typename Stored<T, Unit::Exact>::type;
  static constexpr int kRows = kM / 8, kColumns = kN / 16;
  static_assert(kM % 8 == 0 && kN % 16 == 0);

 public:
  // Rows begin 20 banks apart, so that vectors of 16 bytes from eight rows do not collide.
  static constexpr int kStride = kK + 16 / sizeof(S);

  __device__ __forceinline__ void multiply(const S* a, const S* b) {
    constexpr int kVector = 16 / sizeof(S);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
    for (int k = 0; k < kK; k += kVector) {
      alignas(16) S av[kRows][kVector];
      alignas(16) S bv[kColumns][kVector];
#pragma unroll
      for (int i = 0; i < kRows; ++i) load(a + (y + 8 * i) * kStride + k, av[i]);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) load(b + (x + 16 * j) * kStride + k, bv[j]);
#pragma unroll
      for (int v = 0; v < kVector; ++v)
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int j = 0; j < kColumns; ++j) sum_[i][j] = fma(av[i][v], bv[j][v], sum_[i][j]);
    }
  }

  __device__ __forceinline__ void store(Wide<T>* c) const {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        c[(y + 8 * i) * (kN + kResultPadding) + x + 16 * j] = sum_[i][j];
  }

 private:
  static __device__ __forceinline__ void load(const S* from, S (&to)[16 / sizeof(S)]) {
    *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(from);
  }

  S sum_[kRows][kColumns] = {};
};

// Four warps share the columns, or with 64 rows each has a quarter of the tile; a warp's part is
// cut into fragments [16, 8] (device.cuh: mma).
template <typename T, int kM, int kN, int kK>
class Sums<T, Unit::Tensor, kM, kN, kK> {
  using S = typename Stored<T, Unit::Tensor>::type;
  static constexpr int kWarpsDown = kM >= 64 ? 2 : 1, kWarpsAcross = 4 / kWarpsDown;
  static constexpr int kWarpM = kM / kWarpsDown, kWarpN = kN / kWarpsAcross;
  static constexpr int kRows = kWarpM / 16, kColumns = kWarpN / 8;
  static_assert(kWarpM % 16 == 0 && kWarpN % 8 == 0);
  static constexpr int kWords = kK * static_cast<int>(sizeof(S)) / 4;  // of a row

 public:
  // Rows begin 20 banks apart: the eight rows and four words of a fragment never collide.
  static constexpr int kStride = kK + 16 / sizeof(S);

  __device__ __forceinline__ void multiply(const S* a, const S* b) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    constexpr int stride = kStride * static_cast<int>(sizeof(S)) / 4;
    const auto* aw = reinterpret_cast<const uint32_t*>(a) + (first_row() + g) * stride + t;
    const auto* bw = reinterpret_cast<const uint32_t*>(b) + (first_column() + g) * stride + t;
#pragma unroll
    for (int w = 0; w < kWords; w += 8) {
      uint32_t af[kRows][4], bf[kColumns][2];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const uint32_t* row = aw + i * 16 * stride + w;
        af[i][0] = row[0];
        af[i][1] = row[8 * stride];
        af[i][2] = row[4];
        af[i][3] = row[8 * stride + 4];
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const uint32_t* row = bw + j * 8 * stride + w;
        bf[j][0] = row[0];
        bf[j][1] = row[4];
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) mma<T>(sum_[i][j], af[i], bf[j]);
    }
  }

  __device__ __forceinline__ void store(float* c) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        float* row =
            c + (first_row() + i * 16 + g) * (kN + kResultPadding) + first_column() + j * 8 + 2 * t;
        row[0] = sum_[i][j][0];
        row[1] = sum_[i][j][1];
        row += 8 * (kN + kResultPadding);
        row[0] = sum_[i][j][2];
        row[1] = sum_[i][j][3];
      }
  }

 private:
  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / 32 / kWarpsAcross * kWarpM;
  }
  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) / 32 % kWarpsAcross * kWarpN;
  }

  float sum_[kRows][kColumns][4] = {};
};

template <typename T, Unit kUnit, int kM_, int kN_>
class Tile {
 public:
  static constexpr int kM = kM_, kN = kN_, kThreads = kTileThreads;

 private:
  using S = typename Stored<T, kUnit>::type;
  // 64 bytes of a row: what a thread prefetches of more would not stay in registers.
  static constexpr int kK = 64 / sizeof(S);
  using BlockSums = Sums<T, kUnit, kM, kN, kK>;
  static constexpr int kStride = BlockSums::kStride;
  static constexpr int64_t kSlices = (kM + kN) * kStride * sizeof(S);
  static constexpr int64_t kResult = kM * (kN + kResultPadding) * sizeof(Wide<T>);

 public:
  static constexpr int64_t kSharedBytes = kSlices > kResult ? kSlices : kResult;

  // Adds A B^T over k0 <= k < k1. `a(row, k)` and `b(row, k)` take rows of the tile, 0 to kM and
  // kN; neighbouring threads ask for neighbouring k if A::kByK, else for neighbouring rows.
  template <typename A, typename B>
  __device__ __forceinline__ void accumulate(const A& a, const B& b, int64_t k0, int64_t k1) {
    S* a_slice = reinterpret_cast<S*>(shared_memory());
    S* b_slice = a_slice + kM * kStride;
    S a_next[kM * kK / kThreads], b_next[kN * kK / kThreads];
    if (k0 >= k1) return;
    fetch<kM>(a, k0, k1, a_next);
    fetch<kN>(b, k0, k1, b_next);
    for (int64_t k = k0; k < k1; k += kK) {
      __syncthreads();
      place<kM, A>(a_next, a_slice);
      place<kN, B>(b_next, b_slice);
      __syncthreads();
      // Underway while the slice at hand is multiplied.
      if (k + kK < k1) {
        fetch<kM>(a, k + kK, k1, a_next);
        fetch<kN>(b, k + kK, k1, b_next);
      }
      sums_.multiply(a_slice, b_slice);
    }
  }

  // Hands the sums to f(row, column, read), where read(column) is the sum at another column of the
  // same row; for every row, and the columns [0, columns).
  template <typename F>
  __device__ __forceinline__ void finish(int columns, const F& f) {
    Wide<T>* result = reinterpret_cast<Wide<T>*>(shared_memory());
    __syncthreads();
    sums_.store(result);
    __syncthreads();
    for (int i = threadIdx.x; i < kM * columns; i += kThreads) {
      const int row = i / columns, column = i % columns;
      f(row, column, [&](int c) { return result[row * (kN + kResultPadding) + c]; });
    }
  }

 private:
  template <int kRows, typename Operand>
  static __device__ __forceinline__ void position(int i, int& row, int& k) {
    const int at = threadIdx.x + i * kThreads;
    row = Operand::kByK ? at / kK : at % kRows;
    k = Operand::kByK ? at % kK : at / kRows;
  }

  template <int kRows, typename Operand>
  static __device__ __forceinline__ void fetch(const Operand& operand, int64_t k0, int64_t k1,
                                               S (&next)[kRows * kK / kThreads]) {
#pragma unroll
    for (int i = 0; i < kRows * kK / kThreads; ++i) {
      int row, k;
      position<kRows, Operand>(i, row, k);
      next[i] = Stored<T, kUnit>::of(k0 + k < k1 ? operand(row, k0 + k) : Wide<T>(0));
    }
  }

  template <int kRows, typename Operand>
  static __device__ __forceinline__ void place(const S (&next)[kRows * kK / kThreads], S* slice) {
#pragma unroll
    for (int i = 0; i < kRows * kK / kThreads; ++i) {
      int row, k;
      position<kRows, Operand>(i, row, k);
      slice[row * kStride + k] = next[i];
    }
  }

  BlockSums sums_;
};

}  // namespace lstm_fast::cuda
