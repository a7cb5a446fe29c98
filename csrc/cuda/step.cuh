// One step of a layer for all rows and units: the recurrent product and, on its tile, the cells.
#pragma once

#include "gates.cuh"
#include "product.cuh"

namespace lstm_fast::cuda {

// Forward, for the rows alive at the step. Those of `carried` were alive at the step before; the
// others begin here, from h0 and c0.
//
//   gates = gates + h_prev weight_hh^T,  c = f * c_prev + i * g,  hidden = o * tanh(c)
template <typename T>
struct StepForward {
  int64_t rows, carried, ending;  // rows [ending, rows) are at their last step
  int64_t H, P;
  const Wide<T>* y_prev;  // [carried, P], rows y_stride apart
  int64_t y_stride;
  const T* h0;                // [B, P], or null for zeros
  const T* c0;                // [B, H], or null for zeros
  const T* weight_hh;         // [G, P]
  Wide<T>* gates;             // [rows, G], from the input; replaced by the activated gates if saved
  bool save;                  //
  const Wide<T>* cells_prev;  // [carried, H]
  Wide<T>* cells;             // [rows, H], or null; may be cells_prev
  Wide<T>* hidden;            // [rows, H], rows hidden_stride apart; or null
  int64_t hidden_stride;
  T* rounded_hidden;  // the same, rounded, or null
  T* h_n;             // [B, H], receives the rows at their last step; or null
  T* c_n;             // [B, H], likewise
};

template <typename T>
struct StepsForward {
  StepForward<T> of[2];
};

template <typename T>
struct PreviousHidden {
  static constexpr bool kByK = true;
  const StepForward<T>& p;
  int64_t row0;
  __device__ __forceinline__ Wide<T> operator()(int row, int64_t k) const {
    const int64_t b = row0 + row;
    if (b < p.carried) return p.y_prev[b * p.y_stride + k];
    return p.h0 && b < p.rows ? widen(p.h0[b * p.P + k]) : Wide<T>(0);
  }
};

// Rows of weight_hh in the order of a tile's columns: its units' i, then f, g, o.
template <typename T, int kUnits>
struct GateRows {
  static constexpr bool kByK = true;
  const StepForward<T>& p;
  int64_t unit0;
  __device__ __forceinline__ Wide<T> operator()(int row, int64_t k) const {
    const int64_t unit = unit0 + row % kUnits;
    if (unit >= p.H) return 0;
    return widen(p.weight_hh[(row / kUnits * p.H + unit) * p.P + k]);
  }
};

// Grid: rows, units, directions, in tiles.
template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    step_forward_kernel(const __grid_constant__ StepsForward<T> steps) {
  constexpr int kUnits = Tile::kN / 4;
  const StepForward<T>& p = steps.of[blockIdx.z];
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Tile::kM;
  const int64_t unit0 = static_cast<int64_t>(blockIdx.y) * kUnits;
  if (row0 >= p.rows) return;
  Tile tile;
  const bool all_zero = row0 >= p.carried && !p.h0;
  tile.accumulate(PreviousHidden<T>{p, row0}, GateRows<T, kUnits>{p, unit0}, 0, all_zero ? 0 : p.P);
  tile.finish(kUnits, [&](int row, int u, const auto& sum) {
    const int64_t b = row0 + row, unit = unit0 + u;
    if (b >= p.rows || unit >= p.H) return;
    Wide<T>* from_input = p.gates + b * 4 * p.H + unit;
    const Gates<Wide<T>> gates = activate(Gates<Wide<T>>{
        from_input[0] + sum(u), from_input[p.H] + sum(kUnits + u),
        from_input[2 * p.H] + sum(2 * kUnits + u), from_input[3 * p.H] + sum(3 * kUnits + u)});
    const int64_t cell = b * p.H + unit;
    const Wide<T> c_prev = b < p.carried ? p.cells_prev[cell]
                           : p.c0        ? widen(p.c0[cell])
                                         : Wide<T>(0);
    const Wide<T> c = next_cell(gates, c_prev), h = hidden(gates, c);
    if (p.save) {
      from_input[0] = gates.i;
      from_input[p.H] = gates.f;
      from_input[2 * p.H] = gates.g;
      from_input[3 * p.H] = gates.o;
    }
    if (p.cells) p.cells[cell] = c;
    if (p.hidden) p.hidden[b * p.hidden_stride + unit] = h;
    if (p.rounded_hidden) p.rounded_hidden[b * p.hidden_stride + unit] = narrow<T>(h);
    if (b >= p.ending) {
      if (p.h_n) p.h_n[cell] = narrow<T>(h);
      p.c_n[cell] = narrow<T>(c);
    }
  });
}

// Backward, against the order of forward. The gradient of the hidden values comes from the product
// a b (without a projection: the gradient of the gates at the step visited before, times weight_hh;
// with one: that of the output of this step, times weight_hr) and, without a projection, from
// outside.
template <typename T>
struct StepBackward {
  int64_t rows, carried, ending;  // as forward
  int64_t H, K;
  Segment<T> product;         // a [rows, K]; b [K, H]
  Array<T> grad_y;            // [rows, H], rows grad_y_stride apart; null for zeros
  int64_t grad_y_stride;      //
  const T* grad_h_n;          // [B, H], or null for zeros; for rows at their last step
  const T* grad_c_n;          // [B, H], or null for zeros; likewise
  const Wide<T>* gates;       // [rows, G]; may be grad_gates
  const Wide<T>* cells;       // [rows, H]
  const Wide<T>* cells_prev;  // [carried, H]
  const T* c0;                // [B, H], or null for zeros
  Wide<T>* grad_cells;        // [B, H], the running gradient
  Wide<T>* grad_gates;        // [rows, G]
  T* grad_c0;                 // [B, H], receives the rows that begin here; or null
};

template <typename T>
struct StepsBackward {
  StepBackward<T> of[2];
};

// Grid: rows, units, directions, in tiles.
template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    step_backward_kernel(const __grid_constant__ StepsBackward<T> steps) {
  const StepBackward<T>& p = steps.of[blockIdx.z];
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Tile::kM;
  const int64_t unit0 = static_cast<int64_t>(blockIdx.y) * Tile::kN;
  if (row0 >= p.rows) return;
  Tile tile;
  if (row0 < p.product.a_rows) {
    tile.accumulate(SegmentA<T>{p.product, row0}, SegmentB<T, false>{p.product, unit0, p.H}, 0,
                    p.K);
  }
  tile.finish(Tile::kN, [&](int row, int u, const auto& sum) {
    const int64_t b = row0 + row, unit = unit0 + u;
    if (b >= p.rows || unit >= p.H) return;
    const int64_t cell = b * p.H + unit;
    Wide<T> dm = sum(u);
    if (p.grad_y.given()) dm += p.grad_y[b * p.grad_y_stride + unit];
    Wide<T> dc = 0;
    if (b < p.ending) {
      dc = p.grad_cells[cell];
    } else {
      if (p.grad_h_n) dm += widen(p.grad_h_n[cell]);
      if (p.grad_c_n) dc = widen(p.grad_c_n[cell]);
    }
    const Wide<T> c_prev = b < p.carried ? p.cells_prev[cell]
                           : p.c0        ? widen(p.c0[cell])
                                         : Wide<T>(0);
    const Wide<T>* g = p.gates + b * 4 * p.H + unit;
    const Gates<Wide<T>> da = gate_gradients(Gates<Wide<T>>{g[0], g[p.H], g[2 * p.H], g[3 * p.H]},
                                             p.cells[cell], c_prev, dm, dc);
    Wide<T>* grads = p.grad_gates + b * 4 * p.H + unit;
    grads[0] = da.i;
    grads[p.H] = da.f;
    grads[2 * p.H] = da.g;
    grads[3 * p.H] = da.o;
    p.grad_cells[cell] = dc;
    if (b >= p.carried && p.grad_c0) p.grad_c0[cell] = narrow<T>(dc);
  });
}

}  // namespace lstm_fast::cuda
