// Backward of one layer in one direction, step by step against the direction of the forward pass.
// With dh_t and dc_t the whole gradients of h_t and c_t, and dz the gradients before the
// activations:
//
//   d(hidden) = dh_t, or W_hr^T dh_t        dc_t = dc_{t+1} f_{t+1} + d(hidden) o (1 - tanh(c_t)^2)
//   dz_i = dc_t g i (1 - i)     dz_f = dc_t c_{t-1} f (1 - f)     dz_g = dc_t i (1 - g^2)
//   dz_o = d(hidden) tanh(c_t) o (1 - o)
//   dh_{t-1} = dy_{t-1} + W_hh^T dz_t
//
// The product with W_hh^T of a tile of units is at once followed by their gates at the step before.
// Packed weights: panels of W_hh [G, P], then of W_hr [P, H] if projected; few rows use torch's
// own.
#pragma once

#include "flush_denormals.h"
#include "kernels.h"
#include "math.h"
#include "matmul.h"
#include "split_matmul.h"
#include "step_dots.h"

namespace lstm_fast {
namespace {

// As packed, or torch's own.
template <typename T>
struct BackwardWeights {
  Operand<T> hh, hr;

  INLINE BackwardWeights(const LayerShape& s, const T* packed)
      : hh{packed, 4 * s.H, s.P, s.parts}, hr{offset(packed, hh.size()), s.P, s.H, 0} {}
  INLINE explicit BackwardWeights(const LayerBackward<T>& p)
      : BackwardWeights(p.shape, p.plain ? nullptr : p.weights) {
    if (!p.plain) return;
    hh.data = p.plain->weight_hh;
    hr.data = p.plain->weight_hr;
    hh.packed = hr.packed = false;
  }
};

template <typename T>
int64_t backward_weights_size(const LayerShape& s) {
  const BackwardWeights<T> w(s, nullptr);
  return w.hh.size() + (s.projected ? w.hr.size() : 0);
}

template <typename E, typename T = Computed<E>>
void pack_backward(const LayerShape& s, const LayerWeights<E>& weights, const Share& share,
                   T* out) {
  const BackwardWeights<T> w(s, out);
  w.hh.pack(weights.weight_hh, share, out);
  if (s.projected) w.hr.pack(weights.weight_hr, share, out + w.hh.size());
}

template <typename T>
int64_t backward_scratch(const LayerShape& s, int64_t rows) {
  return s.parts ? split_size(rows, 4 * s.H, s.parts) : 0;
}

// The rows [begin, end) of the batch at one step, and the panels of columns of W_hh that are
// computed for them. Pointers are to batch row 0; null means zeros.
template <typename T>
struct BackwardRun {
  int64_t begin, end;
  Sweep panels;
  GradGates<T> dz_next;  // [B, G] at the step that followed
  const T* dh_end;       // [B, P] gradient of the final state, for rows that ended at this step
  const T* dy;           // [B, P], rows grad_y_stride apart
  const T* gates;        // [B, G]
  const T* cells;        // [B, H]
  const T* c_before;     // [B, H]
  GradGates<T> dz;       // [B, G]
  T* dh;                 // [B, P], used if projected
};

// dz[i:i + n] = v, of a vector at most.
template <typename T>
INLINE void store_gradient(const GradGates<T>& dz, int64_t i, Vec<T> v, int64_t n) {
  if constexpr (kUnit<T> == Bf16Unit::DotProducts) {
    if (dz.narrow) return store_part<T>(dz.narrow + i, v, n);
  }
  store(dz.rows + i, v, n);
}

// The gates' gradients of a tile of R rows from b and W vectors of units from u.
template <typename T, int R, int W, typename Background = NoBackground>
INLINE void gate_gradients(const LayerBackward<T>& p, const BackwardRun<T>& run, int64_t b,
                           int64_t u, Vec<T> (&d_hidden)[R][W], const Background& background = {}) {
  const int64_t H = p.shape.H;
  for (int r = 0; r < R; ++r) {
    const T* gates = run.gates + (b + r) * 4 * H;
    const T* c_before = run.c_before ? run.c_before + (b + r) * H : nullptr;
    const GradGates<T> dz = run.dz.from((b + r) * 4 * H);
    T* dc_row = p.grad_c0 + (b + r) * H;
    Vec<T> c[W], tanh_c[W];
    for (int w = 0; w < W; ++w) {
      const int64_t v = u + w * kLanes<T>;
      c[w] = load(run.cells + (b + r) * H + v, H - v);
    }
    tanh<T, W>(c, tanh_c);
    background.advance(2 * r, 2 * R);
    for (int w = 0; w < W; ++w) {
      const int64_t v = u + w * kLanes<T>, units = H - v;
      const Vec<T> i = load(gates + v, units), f = load(gates + H + v, units);
      const Vec<T> g = load(gates + 2 * H + v, units), o = load(gates + 3 * H + v, units);
      const Vec<T> before = c_before ? load(c_before + v, units) : Vec<T>{};
      const Vec<T> dh = d_hidden[r][w];
      const Vec<T> dc = fma(dh * o, T(1) - tanh_c[w] * tanh_c[w], load(dc_row + v, units));
      store_gradient(dz, v, dc * g * (i * (T(1) - i)), units);
      store_gradient(dz, H + v, dc * before * (f * (T(1) - f)), units);
      store_gradient(dz, 2 * H + v, dc * i * (T(1) - g * g), units);
      store_gradient(dz, 3 * H + v, dh * tanh_c[w] * (o * (T(1) - o)), units);
      store(dc_row + v, dc * f, units);
    }
    background.advance(2 * r + 1, 2 * R);
  }
}

// From a tile of the product with W_hh, or with W_hr if projected, to the gradients of its gates.
template <typename T, int R, int W, typename Background = NoBackground>
INLINE void finish_tile(const LayerBackward<T>& p, const BackwardRun<T>& run, int64_t b,
                        int64_t column, Vec<T> (&d_hidden)[R][W],
                        const Background& background = {}) {
  const int64_t P = p.shape.P;
  if (run.dh_end) add_tile(d_hidden, run.dh_end + b * P, P, column, P);
  if (run.dy) add_tile(d_hidden, run.dy + b * p.grad_y_stride, p.grad_y_stride, column, P);
  gate_gradients<T>(p, run, b, column, d_hidden, background);
}

// Asks for what `finish_tile` reads and writes of row b.
template <typename T>
INLINE void prefetch_tile_row(const LayerBackward<T>& p, const BackwardRun<T>& run, int64_t b,
                              int64_t column, int64_t width) {
  const int64_t H = p.shape.H;
  for (int gate = 0; gate < 4; ++gate) {
    prefetch_row(run.gates + (b * 4 + gate) * H + column, width);
    if (run.dz.rows) prefetch_row(run.dz.rows + (b * 4 + gate) * H + column, width);
  }
  prefetch_row(run.cells + b * H + column, width);
  if (run.c_before) prefetch_row(run.c_before + b * H + column, width);
  if (run.dy) prefetch_row(run.dy + b * p.grad_y_stride + column, width);
}

// `finish_tile` of all tiles of the product of `a` with panels of m; of zeros if `a` is null, and m
// may have no data then.
template <typename T>
void finish_product(const LayerBackward<T>& p, const BackwardRun<T>& run, Rows<T> a,
                    const Matrix<T>& m, const Sweep& panels) {
  for_each_panel(m, panels, [&](int64_t column, const Columns<T>& panel, auto vectors) {
    constexpr int W = decltype(vectors)::value;
    for_each_tile<W>(run.begin, run.end, [&](int64_t b, auto rows) {
      constexpr int R = decltype(rows)::value;
      Vec<T> d_hidden[R][W];
      clear_tile<R, W, T>(d_hidden);
      // A row between some of the terms and the next: all at once, they would delay the first
      // terms.
      for (int r = 0; a.data && r < R; ++r) {
        const int64_t begin = m.K * r / R, end = m.K * (r + 1) / R;
        prefetch_tile_row(p, run, b + r, column, W * kLanes<T>);
        accumulate<R, W, T>(d_hidden, {a.data + b * a.row + begin, a.row},
                            {panel.data + begin * panel.step, panel.step, panel.last}, end - begin);
      }
      finish_tile(p, run, b, column, d_hidden);
    });
  });
}

template <typename T>
INLINE void backward_run(const LayerBackward<T>& p, const BackwardWeights<T>& w, BackwardRun<T> run,
                         T* scratch) {
  const LayerShape& s = p.shape;
  const int64_t G = 4 * s.H, P = s.P;
  if (s.projected) {  // and no team shares the units
    if (run.dz_next) {
      w.hh.multiply(run.begin, run.end, run.dz_next, run.dh, false, run.panels, scratch);
    } else {
      copy_rows(run.begin, run.end, run.dh_end, P, run.dh, P);
    }
    for (int64_t b = run.begin; run.dy && b < run.end; ++b) {
      add_row(run.dy + b * p.grad_y_stride, run.dh + b * P, P);
    }
    run.dh_end = run.dy = nullptr;
    const Matrix<T> hr = w.hr.matrix();
    finish_product(p, run, {run.dh, P}, hr, hr.all_panels());
  } else if (s.parts && run.dz_next) {
    const auto finish = [&](int64_t b, int64_t column, auto& dh, const auto& background) {
      finish_tile(p, run, b, column, dh, background);
    };
    const auto tiles_of = [&](const auto& dz_next) {
      for_each_split_tile(run.begin, run.end, dz_next, w.hh.split(), run.panels, scratch, finish);
    };
    if constexpr (kUnit<T> == Bf16Unit::DotProducts) {
      if (run.dz_next.narrow) return tiles_of(Rows<BFloat16>{run.dz_next.narrow, G});
    }
    tiles_of(Rows<T>{run.dz_next.rows, G});
  } else {
    finish_product(p, run, {run.dz_next.rows, G}, w.hh.matrix(), run.panels);
  }
}

template <typename T>
void backward_rows(const LayerBackward<T>& p, int64_t b0, int64_t b1, TeamMember& member,
                   T* scratch) {
  const FlushDenormals scope;
  const UnitScope unit(p.shape.parts > 0);
  const LayerShape& s = p.shape;
  const Steps& steps = s.steps;
  const BackwardWeights<T> w(p);
  const int64_t G = 4 * s.H, panels = w.hh.matrix().all_panels().size();
  const auto dz = [&](int64_t t) { return p.grad_gates.from(steps.offset(t) * G); };

  // The gradient of h0 of the rows that step t was the first of.
  const auto finish_rows = [&](int64_t t, const Sweep& panels) {
    const int64_t begin = max(b0, steps.carried(t, s.reverse)), end = min(b1, steps.rows(t));
    if (!p.grad_h0 || begin >= end) return;
    w.hh.multiply(begin, end, dz(t), p.grad_h0, false, panels, scratch);
  };

  member.round([&](const Share& share) {
    copy_rows(b0 + share.begin(b1 - b0), b0 + share.end(b1 - b0), p.grad_c_n, s.H, p.grad_c0, s.H);
  });
  for (int64_t i = 0; i <= steps.T; ++i) {
    const int64_t t = s.reverse ? i : steps.T - 1 - i;
    member.round([&](const Share& share) {
      BackwardRun<T> run;
      run.panels = {share.begin(panels), share.end(panels), i % 2 > 0};
      if (i > 0) finish_rows(Steps::previous(t, !s.reverse), run.panels);
      if (i == steps.T) return;
      const int64_t n = steps.offset(t), end = min(b1, steps.rows(t));
      const int64_t followed = steps.carried(t, !s.reverse), carried = steps.carried(t, s.reverse);
      run.dy = p.grad_y ? p.grad_y + n * p.grad_y_stride : nullptr;
      run.gates = p.gates + n * G;
      run.cells = p.cells + n * s.H;
      run.dz = dz(t);
      run.dh = p.grad_hidden ? p.grad_hidden + n * s.P : nullptr;
      for (run.begin = b0; run.begin < end; run.begin = run.end) {
        const bool has_next = run.begin < followed, has_previous = run.begin < carried;
        run.end = min(end, min(has_next ? followed : end, has_previous ? carried : end));
        run.dz_next = has_next ? dz(Steps::previous(t, !s.reverse)) : GradGates<T>{};
        run.dh_end = has_next ? nullptr : p.grad_h_n;
        run.c_before =
            has_previous ? p.cells + steps.offset(Steps::previous(t, s.reverse)) * s.H : p.c0;
        backward_run(p, w, run, scratch);
      }
    });
  }
}

INLINE int64_t step_grad_panels(int64_t C) { return ceil_div(C, kPanel<float>); }

INLINE void step_grad(const StepGrad<float, BFloat16>& p, int64_t panel0, int64_t panel1,
                      [[maybe_unused]] float* scratch) {
  const FlushDenormals scope;
#if defined(__AVX512BF16__)
  if (p.parts) return step_grad_dots(p, panel0, panel1, scratch);
#endif
  const Matrix<BFloat16> w = {p.w, p.G, p.C, false};
  multiply_rows<BFloat16>(0, p.B, {p.grad_gates, p.G}, w, p.y, p.C, p.add, {panel0, panel1});
}

template <typename T>
INLINE Operand<T> input_operand(const LayerShape& s, const T* data) {
  return {data, 4 * s.H, s.I, s.parts};
}

template <typename T>
int64_t input_grad_weights_size(const LayerShape& s) {
  return input_operand<T>(s, nullptr).size();
}

template <typename E, typename T = Computed<E>>
void pack_input_grad(const LayerShape& s, const E* weight_ih, const Share& share, T* out) {
  input_operand<T>(s, nullptr).pack(weight_ih, share, out);
}

template <typename T>
int64_t input_grad_scratch(const LayerShape& s) {
  return operand_scratch<T>(4 * s.H, s.parts);
}

template <typename T>
void input_grad_rows(const InputGrad<T>& p, int64_t n0, int64_t n1, T* scratch) {
  const FlushDenormals scope;
  const UnitScope unit(p.shape.parts > 0);
  for (int d = 0; d < p.directions; ++d) {
    Operand<T> weight_ih = input_operand(p.shape, p.weights[d]);
    weight_ih.packed = p.packed;
    weight_ih.multiply(n0, n1, p.grad_gates[d], p.grad_x, d > 0, scratch);
  }
}

}  // namespace
}  // namespace lstm_fast
