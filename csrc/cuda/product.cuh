// Products whose result goes to memory: the input of all steps at once, the projection, and what
// backward hands down.
//
//   output[m, n] = bias_ih[n] + bias_hh[n] + addend[m, n] + sum over segments, k of a[m, k] b[n, k]
#pragma once

#include "tile.cuh"

namespace lstm_fast::cuda {

template <typename T>
struct Segment {
  Array<T> a;  // [a_rows, K], rows a_stride apart; taken for zero in rows from a_rows on
  int64_t a_rows, a_stride;
  const T* b;  // [N, K] with k running fastest if kByK, else [K, N]; lines b_stride apart
  int64_t b_stride;
};

// One product; the directions of a layer are two that run at the same time.
template <typename T>
struct Product {
  int64_t M = 0, N = 0, K = 0;
  int segments = 1;
  Segment<T> segment[2];
  const T* bias_ih = nullptr;  // [N], or null; both or none
  const T* bias_hh = nullptr;
  Array<T> addend;  // [M, N], rows addend_stride apart, or null
  int64_t addend_stride = 0;
  int64_t last_from = 0;           // rows [last_from, M) are the last ones of their sequences:
  const T* last_addend = nullptr;  // [M, N], added to them; or null
  T* last = nullptr;               // [M, N], receives them; or null
  int64_t output_stride = 0;       // from row to row of
  Wide<T>* output = nullptr;       // [M, N], or null
  T* rounded_output = nullptr;     // [M, N], or null
};

template <typename T>
struct Products {
  Product<T> of[2];
};

template <typename T>
struct SegmentA {
  static constexpr bool kByK = true;
  const Segment<T>& s;
  int64_t row0;
  __device__ __forceinline__ Wide<T> operator()(int row, int64_t k) const {
    const int64_t m = row0 + row;
    return m < s.a_rows ? s.a[m * s.a_stride + k] : Wide<T>(0);
  }
};

template <typename T, bool kByK_>
struct SegmentB {
  static constexpr bool kByK = kByK_;
  const Segment<T>& s;
  int64_t row0, rows;
  __device__ __forceinline__ Wide<T> operator()(int row, int64_t k) const {
    const int64_t n = row0 + row;
    if (n >= rows) return 0;
    return widen(s.b[kByK ? n * s.b_stride + k : k * s.b_stride + n]);
  }
};

// Grid: rows, columns, directions, in tiles.
template <typename T, bool kByK, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    product_kernel(const __grid_constant__ Products<T> products) {
  const Product<T>& p = products.of[blockIdx.z];
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Tile::kM;
  const int64_t column0 = static_cast<int64_t>(blockIdx.y) * Tile::kN;
  if (row0 >= p.M) return;
  Tile tile;
  for (int i = 0; i < p.segments; ++i) {
    const Segment<T>& s = p.segment[i];
    if (row0 < s.a_rows) {
      tile.accumulate(SegmentA<T>{s, row0}, SegmentB<T, kByK>{s, column0, p.N}, 0, p.K);
    }
  }
  tile.finish(Tile::kN, [&](int row, int column, const auto& sum) {
    const int64_t m = row0 + row, n = column0 + column;
    if (m >= p.M || n >= p.N) return;
    Wide<T> value = sum(column);
    if (p.bias_ih) value += widen(p.bias_ih[n]) + widen(p.bias_hh[n]);
    if (p.addend.given()) value += p.addend[m * p.addend_stride + n];
    if (m >= p.last_from && p.last_addend) value += widen(p.last_addend[m * p.N + n]);
    if (p.output) p.output[m * p.output_stride + n] = value;
    if (p.rounded_output) p.rounded_output[m * p.output_stride + n] = narrow<T>(value);
    if (m >= p.last_from && p.last) p.last[m * p.N + n] = narrow<T>(value);
  });
}

}  // namespace lstm_fast::cuda
