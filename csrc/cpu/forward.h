// Forward of one layer in one direction.
//
//   i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)[i, f, o]      g = tanh(...)[g]
//   c_t = f * c_{t-1} + i * g        hidden = o * tanh(c_t)        h_t = hidden, or W_hr hidden
//
// A register tile holds the four gates of a group of units for up to kTileRows rows, so that gates
// and cells never leave the registers. A group has kLanes units, a vector for each gate; the last
// one may have fewer, and then two or all four of its gates share a vector. Weights are packed for
// it: per group the biases [4][units] and then, for k over h and over x, [P + I][4][units]; after
// all groups come the panels of weight_hr.
#pragma once

#include "flush_denormals.h"
#include "kernels.h"
#include "math.h"
#include "matmul.h"

namespace lstm_fast {
namespace {

// Vectors for the four gates of the group that begins at unit u, and its size as packed.
template <typename T>
INLINE int64_t group_vectors(const LayerShape& s, int64_t u) {
  const int64_t units = s.H - u;
  return units * 4 <= kLanes<T> ? 1 : units * 2 <= kLanes<T> ? 2 : 4;
}
template <typename T>
INLINE int64_t group_size(const LayerShape& s, int64_t u) {
  return (1 + s.P + s.I) * group_vectors<T>(s, u) * kLanes<T>;
}

template <typename T>
INLINE int64_t all_groups_size(const LayerShape& s) {
  const int64_t last = (s.H - 1) / kLanes<T> * kLanes<T>;
  return last / kLanes<T> * group_size<T>(s, 0) + group_size<T>(s, last);
}

template <typename T>
int64_t forward_weights_size(const LayerShape& s) {
  return all_groups_size<T>(s) + (s.projected ? packed_size<T>(s.H, s.P) : 0);
}

template <typename T>
void pack_forward(const LayerShape& s, const LayerWeights<T>& w, T* out) {
  for (int64_t u = 0; u < s.H; out += group_size<T>(s, u), u += kLanes<T>) {
    const int64_t width = group_vectors<T>(s, u) * kLanes<T>, lanes = width / 4;
    const int64_t units = min(lanes, s.H - u);
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * s.H + u;
      T* column = out + gate * lanes;
      const Vec<T> bias =
          w.bias_ih ? load(w.bias_ih + row, units) + load(w.bias_hh + row, units) : Vec<T>{};
      store(column, bias, lanes);
      column += width;
      transpose_columns(w.weight_hh + row * s.P, s.P, units, s.P, column, width, lanes);
      transpose_columns(w.weight_ih + row * s.I, s.I, units, s.I, column + s.P * width, width,
                        lanes);
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

// Gates and cells of R rows from b, units from u, of which z holds the sums before activation. A
// sigmoid and the tanh that it is multiplied with share a division:
//   i g = m / ((1 + exp(-z_i)) (m + 2)) with m = expm1(2 z_g), and likewise o tanh(c)
template <int R, typename T>
INLINE void update_cells(const LayerForward<T>& p, const ForwardRun<T>& run, int64_t b, int64_t u,
                         const Vec<T> (&z)[R][4]) {
  const int64_t H = p.shape.H, units = H - u;
  const T two = 2;
  Vec<T> c[R], o_inverse[R], c_exponent[R];
  for (int r = 0; r < R; ++r) {
    const ExpParts<T, 4> e =
        exp_parts<T, 4>({sigmoid_exponent<T>(z[r][0]), sigmoid_exponent<T>(z[r][1]),
                         tanh_exponent<T>(z[r][2]), sigmoid_exponent<T>(z[r][3])});
    const Vec<T> i_inverse = one_plus_exp(e, 0), m = expm1(e, 2);
    const Vec<T> ig_inverse = T(1) / (i_inverse * (m + two)), f = T(1) / one_plus_exp(e, 1);
    o_inverse[r] = one_plus_exp(e, 3);
    T* c_row = p.c_n + (b + r) * H + u;
    c[r] = fma(f, load(c_row, units), m * ig_inverse);
    c_exponent[r] = tanh_exponent<T>(c[r]);
    store(c_row, c[r], units);
    if (run.gates) {
      T* gates = run.gates + (b + r) * 4 * H + u;
      store(gates, (m + two) * ig_inverse, units);
      store(gates + H, f, units);
      store(gates + 2 * H, m * (i_inverse * ig_inverse), units);
      store(run.cells + (b + r) * H + u, c[r], units);
    }
  }
  const ExpParts<T, R> e = exp_parts<T, R>(c_exponent);
  for (int r = 0; r < R; ++r) {
    const Vec<T> m = expm1(e, r), h_inverse = T(1) / (o_inverse[r] * (m + two));
    store(run.hidden + (b + r) * run.hidden_stride + u, m * h_inverse, units);
    if (run.gates) store(run.gates + ((b + r) * 4 + 3) * H + u, (m + two) * h_inverse, units);
  }
}

// One vector for each gate, from the W vectors in which they lie; lanes past the units are
// arbitrary.
template <typename T, int W>
INLINE void separate_gates(const Vec<T> (&packed)[W], Vec<T> (&z)[4]) {
  constexpr int shift = W * kLanes<T> / 4;
  z[0] = packed[0];
  z[1] = W == 4 ? packed[1 % W] : rotate<T, shift % kLanes<T>>(packed[0]);
  z[2] = W == 1 ? rotate<T, 2 * shift % kLanes<T>>(packed[0]) : packed[W / 2];
  z[3] = W == 4 ? packed[3 % W] : rotate<T, 3 * shift % kLanes<T>>(packed[W - 1]);
}

// The group of units that begins at unit u, with W vectors of gates.
template <int W, typename T>
INLINE void forward_group(const LayerForward<T>& p, const ForwardRun<T>& run, const T* group,
                          int64_t u) {
  constexpr int width = W * kLanes<T>;
  const LayerShape& s = p.shape;
  const T* weights_h = group + width;
  const T* weights_x = weights_h + s.P * width;
  for_each_tile(run.begin, run.end, [&](int64_t b, auto rows) {
    constexpr int R = decltype(rows)::value;
    // Terms of h are usually smaller than those of x and than the biases: added first, they are
    // rounded least.
    Vec<T> packed[R][W] = {};
    accumulate<R, W, T>(packed, {run.h.data + b * run.h.row, run.h.row}, weights_h, s.P);
    accumulate<R, W, T>(packed, {run.x.data + b * run.x.row, run.x.row}, weights_x, s.I);
    for (int w = 0; w < W; ++w) {
      const Vec<T> bias = load(group + w * kLanes<T>);
      for (int r = 0; r < R; ++r) packed[r][w] += bias;
    }
    Vec<T> z[R][4];
    for (int r = 0; r < R; ++r) separate_gates<T, W>(packed[r], z[r]);
    update_cells<R, T>(p, run, b, u, z);
  });
}

template <typename T>
INLINE void forward_run(const LayerForward<T>& p, const ForwardRun<T>& run) {
  const T* group = p.weights;
  for (int64_t u = 0; u < p.shape.H; group += group_size<T>(p.shape, u), u += kLanes<T>) {
    switch (group_vectors<T>(p.shape, u)) {
      case 1:
        forward_group<1>(p, run, group, u);
        break;
      case 2:
        forward_group<2>(p, run, group, u);
        break;
      default:
        forward_group<4>(p, run, group, u);
    }
  }
}

template <typename T>
void forward_rows(const LayerForward<T>& p, int64_t b0, int64_t b1) {
  const FlushDenormals scope;
  const LayerShape& s = p.shape;
  const Steps& steps = s.steps;
  const Matrix<T> weight_hr = {p.weights + all_groups_size<T>(s), s.H, s.P, true};
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
      multiply_rows<T>(b0, end, {run.hidden, s.H}, weight_hr, y, p.y_stride, false);
    }
    const int64_t ending = max(b0, steps.carried(t, !s.reverse));
    copy_rows(ending, end, y, p.y_stride, p.h_n, s.P);
  }
}

}  // namespace
}  // namespace lstm_fast
