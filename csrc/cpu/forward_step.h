// Forward of one layer for a batch of a single step, as streaming models call it. The weights are
// used once, so that packing them, or widening those of a bfloat16 module, would cost more than the
// arithmetic: each gate is a dot product of a row of torch's weights, a vector of terms at a time.
#pragma once

#include "flush_denormals.h"
#include "forward.h"
#include "kernels.h"
#include "step_dots.h"

namespace lstm_fast {
namespace {

// acc[r][j] += a[row r][0:K] * w[row j][0:K], lane by lane. Rows of w are w_row apart.
template <int R, int J, typename E>
INLINE void accumulate_lanes(Vec<Computed<E>> (&acc)[R][J], Rows<Computed<E>> a, const E* w,
                             int64_t w_row, int64_t K) {
  using T = Computed<E>;
  // One vector of weights at a time, which leaves registers for all else.
  const auto add_terms = [&](int64_t k, auto... count) {
    Vec<T> x[R];
    for (int r = 0; r < R; ++r) x[r] = load(a.data + r * a.row + k, count...);
    for (int j = 0; j < J; ++j) {
      const Vec<T> weights = load(w + j * w_row + k, count...);
      for (int r = 0; r < R; ++r) acc[r][j] = fma(x[r], weights, acc[r][j]);
    }
  };
  int64_t k = 0;
  for (; k + kLanes<T> <= K; k += kLanes<T>) add_terms(k);
  if (k < K) add_terms(k, K - k);
}

// x and h of a step, and what multiplies R rows of them from b with torch's rows for unit u.
template <typename T>
struct StepOperands {
  Rows<T> h, x;

  template <int R, typename E>
  INLINE void accumulate(Vec<T> (&acc)[R][4], const LayerShape& s, const LayerWeights<E>& w,
                         int64_t b, int64_t u) const {
    accumulate_lanes<R, 4>(acc, {h.data + b * h.row, h.row}, w.weight_hh + u * s.P, s.H * s.P, s.P);
    accumulate_lanes<R, 4>(acc, {x.data + b * x.row, x.row}, w.weight_ih + u * s.I, s.H * s.I, s.I);
  }
};

#if defined(__AVX512BF16__)
// The same, narrowed.
struct NarrowStepOperands {
  const uint16_t *h, *x;  // of row b0
  int64_t b0;

  template <int R>
  INLINE void accumulate(Vec<float> (&acc)[R][4], const LayerShape& s,
                         const LayerWeights<BFloat16>& w, int64_t b, int64_t u) const {
    accumulate_dots_of_rows(acc, h + (b - b0) * narrow_row(s.P), w.weight_hh + u * s.P, s.H * s.P,
                            s.P);
    accumulate_dots_of_rows(acc, x + (b - b0) * narrow_row(s.I), w.weight_ih + u * s.I, s.H * s.I,
                            s.I);
  }
};
#endif

// The units [u, u + count) for R rows from b.
template <int R, bool Rough, typename T, typename E, typename Operands>
INLINE void step_tile(const LayerForward<T>& p, const LayerWeights<E>& w, const ForwardRun<T>& run,
                      const Operands& operands, int64_t b, int64_t u, int64_t count) {
  constexpr int lanes = kLanes<T>;
  const LayerShape& s = p.shape;
  T gates[R][4][lanes];
  for (int64_t j = 0; j < count; ++j) {
    Vec<T> acc[R][4];
    clear_tile<R, 4, T>(acc);
    operands.accumulate(acc, s, w, b, u + j);
    for (int r = 0; r < R; ++r) {
      T sums[4];
      sum_lanes<T>(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums);
      for (int gate = 0; gate < 4; ++gate) gates[r][gate][j] = sums[gate];
    }
  }
  Vec<T> bias[4] = {};
  if (w.bias_ih) {
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * s.H + u;
      bias[gate] = load(w.bias_ih + row, count) + load(w.bias_hh + row, count);
    }
  }
  Vec<T> z[R][4];
  for (int r = 0; r < R; ++r) {
    for (int gate = 0; gate < 4; ++gate) {
      z[r][gate] = load(gates[r][gate], count) + bias[gate];
    }
  }
  update_cells<R, 1, Rough, T>(p, run, b, u, z);
}

// y[b, p] = hidden[b] . weight_hr[p]
template <typename T, typename E>
INLINE void project(const LayerForward<T>& p, const E* weight_hr, const ForwardRun<T>& run) {
  const LayerShape& s = p.shape;
  for (int64_t b = run.begin; b < run.end; ++b) {
    for (int64_t j = 0; j < s.P; ++j) {
      Vec<T> acc[1][1] = {};
      accumulate_lanes<1, 1>(acc, {run.hidden + b * s.H, s.H}, weight_hr + j * s.H, s.H, s.H);
      T sums[4];
      sum_lanes<T>(acc[0][0], acc[0][0], acc[0][0], acc[0][0], sums);
      p.y[b * p.y_stride + j] = sums[0];
    }
  }
}

// Operands are operands_of(run).
template <bool Rough, typename T, typename E, typename OperandsOf>
INLINE void take_step(const LayerForward<T>& p, const LayerWeights<E>& w, int64_t b0, int64_t b1,
                      int64_t u0, int64_t u1, const OperandsOf& operands_of) {
  const FlushDenormals scope;
  const LayerShape& s = p.shape;
  ForwardRun<T> run;
  run.begin = b0, run.end = b1;
  run.x = {p.x, s.I};
  run.h = p.h0 ? Rows<T>{p.h0, p.h0_stride} : Rows<T>{p.zeros, 0};
  run.hidden = s.projected ? p.hidden : p.y;
  run.hidden_stride = s.projected ? s.H : p.y_stride;
  run.gates = p.gates;
  run.cells = p.cells;
  for (int64_t b = b0; p.c0 != p.c_n && b < b1; ++b) {
    copy_row(p.c0 ? p.c0 + b * s.H + u0 : nullptr, p.c_n + b * s.H + u0, u1 - u0);
  }
  const auto operands = operands_of(run);
  // Of so many rows, the sums of the four gates of a unit fit the registers.
  constexpr int most_rows = kTileSums / 4;
  const int64_t tiles = ceil_div(b1 - b0, most_rows);
  for (int64_t u = u0; u < u1; u += kLanes<T>) {
    for_each_tile_of<most_rows>(tiles, b0, b1, [&](int64_t b, auto rows) {
      step_tile<decltype(rows)::value, Rough>(p, w, run, operands, b, u, min(kLanes<T>, u1 - u));
    });
  }
  if (p.cells && !p.gates) keep_cells(p, 0, b0, b1, u0, u1);
  if (s.projected) project(p, w.weight_hr, run);
  const int64_t first = s.projected ? 0 : u0, columns = s.projected ? s.P : u1 - u0;
  for (int64_t b = b0; b < b1; ++b) {
    copy_row(p.y + b * p.y_stride + first, p.h_n + b * s.P + first, columns);
  }
}

template <typename T, typename E>
void forward_step(const LayerForward<T>& p, const LayerWeights<E>& w, int64_t b0, int64_t b1,
                  int64_t u0, int64_t u1) {
  take_step<false>(p, w, b0, b1, u0, u1,
                   [](const ForwardRun<T>& run) { return StepOperands<T>{run.h, run.x}; });
}

INLINE void forward_bfloat16_step(const LayerForward<float>& p, const LayerWeights<BFloat16>& w,
                                  int64_t b0, int64_t b1, int64_t u0, int64_t u1,
                                  [[maybe_unused]] float* scratch) {
#if defined(__AVX512BF16__)
  if (p.shape.parts) {
    return take_step<true>(p, w, b0, b1, u0, u1, [&](const ForwardRun<float>& run) {
      const LayerShape& s = p.shape;
      uint16_t* h = reinterpret_cast<uint16_t*>(scratch);
      uint16_t* x = h + (b1 - b0) * narrow_row(s.P);
      narrow_rows(run.h.data + b0 * run.h.row, run.h.row, b1 - b0, s.P, h);
      narrow_rows(run.x.data + b0 * run.x.row, run.x.row, b1 - b0, s.I, x);
      return NarrowStepOperands{h, x, b0};
    });
  }
#endif
  forward_step(p, w, b0, b1, u0, u1);
}

}  // namespace
}  // namespace lstm_fast
