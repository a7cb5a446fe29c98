// The gradients of weights: one product over all rows of all steps, as on the CPU, with the bias as
// a column of ones.
//
//   [weight_ih | bias | weight_hh] = grad_gates^T [x | 1 | h_prev]        over the N rows
//   weight_hr                      = grad_hidden^T hidden
//
// The rows are cut into parts, which fill the device where weights are small; parts are added up in
// their order, so that a result is the same in every run.
#pragma once

#include "tile.cuh"

namespace lstm_fast::cuda {

// For each of the N rows, the row of the step before of its sequence; -1 - b for the first one of
// sequence b.
struct PreviousRows {
  Steps steps;        // arrays on the device
  int64_t* previous;  // [D][N]
  int64_t N;
};

[[maybe_unused]] static __global__ void __launch_bounds__(kTileThreads)
    previous_rows_kernel(const PreviousRows p) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= p.N) return;
  // The last step that begins at or before row n.
  int64_t t = 0, end = p.steps.T;
  while (end - t > 1) {
    const int64_t middle = (t + end) / 2;
    (p.steps.offset(middle) <= n ? t : end) = middle;
  }
  const bool reverse = blockIdx.y == 1;
  const int64_t b = n - p.steps.offset(t);
  p.previous[blockIdx.y * p.N + n] =
      b < p.steps.carried(t, reverse) ? p.steps.offset(Steps::previous(t, reverse)) + b : -1 - b;
}

template <typename T>
struct WeightGrad {
  const Wide<T>* grad;  // [N, M]
  Array<T> x;           // [N, X], rows x_stride apart
  int64_t x_stride;
  const int64_t* previous;  // [N], see above; null with P == 0
  const Wide<T>* y;         // [N, P], rows y_stride apart
  int64_t y_stride;
  const T* h0;     // [B, P], or null for zeros
  Wide<T>* parts;  // [parts][M, columns]
  T* weight_x;     // [M, X]
  T* bias_ih;      // [M], with ones
  T* bias_hh;      // [M], with ones
  T* weight_h;     // [M, P], with P > 0
};

template <typename T>
struct WeightGrads {
  int64_t N, M, X, P;
  bool ones;
  int parts;
  WeightGrad<T> of[2];

  __host__ __device__ int64_t columns() const { return X + ones + P; }
};

template <typename T>
struct GradColumns {
  static constexpr bool kByK = false;
  const WeightGrads<T>& p;
  const WeightGrad<T>& d;
  int64_t row0;
  __device__ __forceinline__ Wide<T> operator()(int row, int64_t n) const {
    const int64_t m = row0 + row;
    return m < p.M ? d.grad[n * p.M + m] : Wide<T>(0);
  }
};

template <typename T>
struct InputColumns {
  static constexpr bool kByK = false;
  const WeightGrads<T>& p;
  const WeightGrad<T>& d;
  int64_t column0;
  __device__ __forceinline__ Wide<T> operator()(int column, int64_t n) const {
    int64_t j = column0 + column;
    if (j < p.X) return d.x[n * d.x_stride + j];
    if (j >= p.columns()) return 0;
    if (p.ones && j == p.X) return 1;
    j -= p.X + p.ones;
    const int64_t before = d.previous[n];
    if (before >= 0) return d.y[before * d.y_stride + j];
    return d.h0 ? widen(d.h0[(-1 - before) * p.P + j]) : Wide<T>(0);
  }
};

// Tensor cores cut what does not fit in a sum off, always towards zero: of a million rows that was
// 0.3 % of it. After so many rows the sum is added to the others by ordinary instructions.
constexpr int64_t kRowsOfSum = 2048;

// Grid: rows and columns in tiles, parts and directions.
template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    weight_grad_kernel(const __grid_constant__ WeightGrads<T> p) {
  const WeightGrad<T>& d = p.of[blockIdx.z / p.parts];
  const int64_t part = blockIdx.z % p.parts;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Tile::kM;
  const int64_t column0 = static_cast<int64_t>(blockIdx.y) * Tile::kN;
  Wide<T>* result = d.parts + part * p.M * p.columns();
  const int64_t begin = p.N * part / p.parts, end = p.N * (part + 1) / p.parts;
  int64_t n = begin;
  do {
    const int64_t stop = end - n > kRowsOfSum ? n + kRowsOfSum : end;
    Tile tile;
    tile.accumulate(GradColumns<T>{p, d, row0}, InputColumns<T>{p, d, column0}, n, stop);
    tile.finish(Tile::kN, [&](int row, int column, const auto& sum) {
      const int64_t m = row0 + row, j = column0 + column;
      if (m >= p.M || j >= p.columns()) return;
      Wide<T>& to = result[m * p.columns() + j];
      to = n > begin ? to + sum(column) : sum(column);
    });
    n = stop;
  } while (n < end);
}

// Grid: elements of [M, columns], 1, directions.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    add_parts_kernel(const __grid_constant__ WeightGrads<T> p) {
  const WeightGrad<T>& d = p.of[blockIdx.z];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t columns = p.columns();
  if (i >= p.M * columns) return;
  Wide<T> sum = 0;
  for (int part = 0; part < p.parts; ++part) sum += d.parts[part * p.M * columns + i];
  const T rounded = narrow<T>(sum);
  const int64_t m = i / columns, j = i % columns;
  if (j < p.X) {
    d.weight_x[m * p.X + j] = rounded;
  } else if (p.ones && j == p.X) {
    d.bias_ih[m] = rounded;
    d.bias_hh[m] = rounded;
  } else {
    d.weight_h[m * p.P + j - p.X - p.ones] = rounded;
  }
}

}  // namespace lstm_fast::cuda
