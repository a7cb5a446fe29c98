// Forward of one layer in one direction.
//
//   i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)[i, f, o]      g = tanh(...)[g]
//   c_t = f * c_{t-1} + i * g        hidden = o * tanh(c_t)        h_t = hidden, or W_hr hidden
//
// A register tile holds the four gates of kLanes units for up to kTileRows rows, so that gates and
// cells never leave the registers. Weights are packed for it: per group of kLanes units the biases
// [4][kLanes] and then, for k over x and over h, [I + P][4][kLanes]; after all groups come the
// panels of weight_hr.
#pragma once

#include "flush_denormals.h"
#include "kernels.h"
#include "math.h"
#include "matmul.h"

namespace lstm_fast {
namespace {

template <typename T>
INLINE int64_t unit_group_size(const LayerShape& s) {
  return (1 + s.I + s.P) * kPanel<T>;
}

template <typename T>
int64_t forward_weights_size(const LayerShape& s) {
  return ceil_div(s.H, kLanes<T>) * unit_group_size<T>(s) +
         (s.projected ? packed_size<T>(s.H, s.P) : 0);
}

template <typename T>
void pack_forward(const LayerShape& s, const LayerWeights<T>& w, T* out) {
  constexpr int lanes = kLanes<T>;
  for (int64_t u = 0; u < s.H; u += lanes, out += unit_group_size<T>(s)) {
    const int64_t units = min(lanes, s.H - u);
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * s.H + u;
      T* column = out + gate * lanes;
      store(column,
            w.bias_ih ? load(w.bias_ih + row, units) + load(w.bias_hh + row, units) : Vec<T>{});
      column += kPanel<T>;
      transpose_columns(w.weight_ih + row * s.I, s.I, units, s.I, column, kPanel<T>, lanes);
      transpose_columns(w.weight_hh + row * s.P, s.P, units, s.P, column + s.I * kPanel<T>,
                        kPanel<T>, lanes);
    }
  }
  if (s.projected) pack_transposed_columns(w.weight_hr, s.H, s.P, out);
}

// The rows [begin, end) of the batch at one step. Pointers are to batch row 0, row b lies b *
// stride further.
template <typename T>
struct ForwardRun {
  int64_t begin, end;
  Rows<T> x, h;
  T* hidden;
  int64_t hidden_stride;
  T* gates;  // null if they are not saved
  T* cells;
};

template <typename T>
INLINE void update_cells(const LayerForward<T>& p, const ForwardRun<T>& run, int64_t b, int64_t u,
                         const Vec<T> (&z)[4]) {
  const int64_t H = p.shape.H, units = H - u;
  T* c_row = p.c_n + b * H + u;
  Vec<T> i, g, o, tanh_c;
  sigmoid_and_tanh<T>(z[0], z[2], i, g);
  const Vec<T> f = sigmoid<T>(z[1]);
  const Vec<T> c = fma(f, load(c_row, units), i * g);
  sigmoid_and_tanh<T>(z[3], c, o, tanh_c);
  store(c_row, c, units);
  store(run.hidden + b * run.hidden_stride + u, o * tanh_c, units);
  if (run.gates) {
    T* gates = run.gates + b * 4 * H + u;
    store(gates, i, units);
    store(gates + H, f, units);
    store(gates + 2 * H, g, units);
    store(gates + 3 * H, o, units);
    store(run.cells + b * H + u, c, units);
  }
}

template <typename T>
INLINE void forward_run(const LayerForward<T>& p, const ForwardRun<T>& run) {
  const LayerShape& s = p.shape;
  const T* group = p.weights;
  for (int64_t u = 0; u < s.H; u += kLanes<T>, group += unit_group_size<T>(s)) {
    for_each_tile(run.begin, run.end, [&](int64_t b, auto rows) {
      constexpr int R = decltype(rows)::value;
      Vec<T> z[R][4];
      for (int r = 0; r < R; ++r) {
        for (int gate = 0; gate < 4; ++gate) z[r][gate] = load(group + gate * kLanes<T>);
      }
      const T* w = group + kPanel<T>;
      accumulate<R, 4, T>(z, {run.x.data + b * run.x.row, run.x.row}, w, s.I);
      accumulate<R, 4, T>(z, {run.h.data + b * run.h.row, run.h.row}, w + s.I * kPanel<T>, s.P);
      for (int r = 0; r < R; ++r) update_cells<T>(p, run, b + r, u, z[r]);
    });
  }
}

template <typename T>
void forward_rows(const LayerForward<T>& p, int64_t b0, int64_t b1) {
  const FlushDenormals scope;
  const LayerShape& s = p.shape;
  const Steps& steps = s.steps;
  const T* weight_hr = p.weights + ceil_div(s.H, kLanes<T>) * unit_group_size<T>(s);
  const Rows<T> h0 = p.h0 ? Rows<T>{p.h0, s.P} : Rows<T>{p.zeros, 0};
  copy_rows(b0, b1, p.c0, s.H, p.c_n, s.H);
  for (int64_t i = 0; i < steps.T; ++i) {
    const int64_t t = s.reverse ? steps.T - 1 - i : i;
    const int64_t end = min(b1, steps.rows(t));
    if (b0 >= end) continue;
    const int64_t n = steps.offset(t);
    T* y = p.y + n * p.y_stride;
    ForwardRun<T> run;
    run.x = {p.x + n * s.I, s.I};
    run.hidden = !s.projected ? y : p.gates ? p.hidden + n * s.H : p.hidden;
    run.hidden_stride = s.projected ? s.H : p.y_stride;
    run.gates = p.gates ? p.gates + n * 4 * s.H : nullptr;
    run.cells = p.gates ? p.cells + n * s.H : nullptr;

    const int64_t carried = min(max(b0, steps.carried(t, s.reverse)), end);
    if (b0 < carried) {
      run.begin = b0, run.end = carried;
      run.h = {p.y + steps.offset(Steps::previous(t, s.reverse)) * p.y_stride, p.y_stride};
      forward_run(p, run);
    }
    if (carried < end) {
      run.begin = carried, run.end = end;
      run.h = h0;
      forward_run(p, run);
    }
    if (s.projected) {
      multiply_rows<T>(b0, end, {run.hidden, s.H}, weight_hr, s.H, s.P, y, p.y_stride, false);
    }
    const int64_t ending = max(b0, steps.carried(t, !s.reverse));
    copy_rows(ending, end, y, p.y_stride, p.h_n, s.P);
  }
}

}  // namespace
}  // namespace lstm_fast
