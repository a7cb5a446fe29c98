// What the layers with options do to a row at a time: activations and their slopes, layer norm.
#pragma once

#include "math.h"
#include "matmul.h"
#include "split_matmul.h"
#include "variant_kernels.h"

namespace lstm_fast {
namespace {

// Parts that a matrix of K rows is made of: none if no block of the unit would be full enough.
INLINE int parts_of(int64_t K, int parts) { return split_blocks(K) > 0 ? parts : 0; }

// Calls f(column, columns left) for each vector of C columns.
template <typename T, typename F>
INLINE void for_each_vector(int64_t C, const F& f) {
  for (int64_t c = 0; c < C; c += kLanes<T>) f(c, C - c);
}

// Calls f(column, Size<vectors>) for groups of up to four vectors of C columns.
template <typename T, typename F>
INLINE void for_each_vectors(int64_t C, const F& f) {
  for (int64_t c = 0; c < C; c += kPanel<T>) {
    with_size<kTileVectors>(panel_vectors<T>(C, c), [&](auto vectors) { f(c, vectors); });
  }
}

template <GateActivation A>
using GateConstant = std::integral_constant<GateActivation, A>;
template <CellActivation A>
using CellConstant = std::integral_constant<CellActivation, A>;

// Calls f with the activations of the shape as constants.
template <typename F>
INLINE void with_activations(const VariantShape& s, const F& f) {
  const auto with_gate = [&](auto gate) {
    switch (s.cell) {
      case CellActivation::Tanh:
        return f(gate, CellConstant<CellActivation::Tanh>{});
      case CellActivation::Relu:
        return f(gate, CellConstant<CellActivation::Relu>{});
      case CellActivation::HardTanh:
        return f(gate, CellConstant<CellActivation::HardTanh>{});
    }
  };
  if (s.gate == GateActivation::Sigmoid) {
    with_gate(GateConstant<GateActivation::Sigmoid>{});
  } else {
    with_gate(GateConstant<GateActivation::HardSigmoid>{});
  }
}

template <GateActivation A, typename T>
INLINE Vec<T> activate_gate(Vec<T> x) {
  if constexpr (A == GateActivation::Sigmoid) return sigmoid<T>(x);
  return clamp(x + T(3), T(0), T(6)) / T(6);
}

template <CellActivation A, typename T, int W>
INLINE void activate_cells(const Vec<T> (&x)[W], Vec<T> (&y)[W]) {
  if constexpr (A == CellActivation::Tanh) {
    tanh<T, W>(x, y);
  } else {
    const T low = A == CellActivation::Relu ? T(0) : T(-1);
    const T high = A == CellActivation::Relu ? T(__builtin_inf()) : T(1);
    for (int w = 0; w < W; ++w) y[w] = clamp(x[w], low, high);
  }
}

// i, f, g, o of the sums z.
template <GateActivation G, CellActivation C, typename T>
INLINE void activate_gates(const Vec<T> (&z)[4], Vec<T> (&gates)[4]) {
  if constexpr (G == GateActivation::Sigmoid && C == CellActivation::Tanh) {
    const ExpParts<T, 4> e = exp_parts<T, 4>({sigmoid_exponent<T>(z[0]), sigmoid_exponent<T>(z[1]),
                                              tanh_exponent<T>(z[2]), sigmoid_exponent<T>(z[3])});
    for (int gate : {0, 1, 3}) gates[gate] = sigmoid_of_exp<T>(exp(e, gate));
    const Vec<T> m = expm1(e, 2);
    gates[2] = m / (m + T(2));
  } else {
    for (int gate : {0, 1, 3}) gates[gate] = activate_gate<G, T>(z[gate]);
    Vec<T> g[1];
    activate_cells<C, T, 1>({z[2]}, g);
    gates[2] = g[0];
  }
}

// Slopes of the activations, from their values. At a corner they are those of torch.
template <GateActivation A, typename T>
INLINE Vec<T> gate_slope(Vec<T> y) {
  if constexpr (A == GateActivation::Sigmoid) return y * (T(1) - y);
  return ((y <= T(0)) | (y >= T(1))) ? Vec<T>{} : broadcast(T(1) / T(6));
}
template <CellActivation A, typename T>
INLINE Vec<T> cell_slope(Vec<T> y) {
  if constexpr (A == CellActivation::Tanh) return T(1) - y * y;
  if constexpr (A == CellActivation::Relu) return y <= T(0) ? Vec<T>{} : broadcast(T(1));
  return ((y <= T(-1)) | (y >= T(1))) ? Vec<T>{} : broadcast(T(1));
}

template <typename T>
INLINE T sum(Vec<T> v) {
  T sums[4];
  sum_lanes<T>(v, v, v, v, sums);
  return sums[0];
}

constexpr double kNormEpsilon = 1e-5;  // that of torch.nn.LayerNorm

// z = (z - mean) / sqrt(variance + epsilon); returns the factor.
template <typename T>
INLINE T standardise_row(T* z, int64_t C) {
  Vec<T> total = {}, squares = {};
  for_each_vector<T>(C, [&](int64_t c, int64_t left) { total += load(z + c, left); });
  const T mean = sum<T>(total) / T(C);
  for_each_vector<T>(C, [&](int64_t c, int64_t left) {
    store(z + c, load(z + c, left) - mean, left);
    const Vec<T> centred = load(z + c, left);  // zero past the columns
    squares = fma(centred, centred, squares);
  });
  const double variance = double(sum<T>(squares)) / double(C);
  // Not a number if the squares have overflowed: infinity would make a row of zeros.
  const T scale = T(1 / __builtin_sqrt(variance + kNormEpsilon) + 0 * variance);
  for_each_vector<T>(
      C, [&](int64_t c, int64_t left) { store(z + c, load(z + c, left) * scale, left); });
  return scale;
}

// The gradient of z, from d, that of its standardised form, which may be where it is written:
//   dz = scale (d - mean(d) - standardised mean(d standardised))
template <typename T>
INLINE void standardise_row_grad(const T* d, const T* standardised, T scale, int64_t C, T* grad) {
  Vec<T> total = {}, product = {};
  for_each_vector<T>(C, [&](int64_t c, int64_t left) {
    const Vec<T> v = load(d + c, left);
    total += v;
    product = fma(v, load(standardised + c, left), product);
  });
  const T mean = sum<T>(total) / T(C), along = sum<T>(product) / T(C);
  for_each_vector<T>(C, [&](int64_t c, int64_t left) {
    const Vec<T> v = load(d + c, left) - mean - load(standardised + c, left) * along;
    store(grad + c, v * scale, left);
  });
}

// Calls f(column, columns left, a) for each vector of a(fresh), where the cells of a row were
// standardised before if they are normalised.
template <CellActivation C, typename T, typename F>
INLINE void for_each_active_cell(const NormWeights<T>& norms, const T* fresh, int64_t H,
                                 const F& f) {
  for_each_vectors<T>(H, [&](int64_t u, auto vectors) {
    constexpr int W = decltype(vectors)::value;
    Vec<T> c[W], a[W];
    for (int w = 0; w < W; ++w) {
      const int64_t v = u + w * kLanes<T>, left = H - v;
      c[w] = load(fresh + v, left);
      if (norms.c) c[w] *= load(norms.c + v, left);
      if (norms.c_bias) c[w] += load(norms.c_bias + v, left);
    }
    activate_cells<C, T, W>(c, a);
    for (int w = 0; w < W; ++w) f(u + w * kLanes<T>, H - u - w * kLanes<T>, a[w]);
  });
}

}  // namespace
}  // namespace lstm_fast
