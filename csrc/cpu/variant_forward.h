// Forward of a layer with options (../variant.h). For the rows of a slice, step by step:
//
//   the state, kept in h_n and c_n, is reset where the mask says so       h_in = drop_h h
//   z = W_ih x + b_ih + W_hh h_in + b_hh, each product normalised or not   i, f, o, g = activated z
//   fresh = f c + i g          hidden = o a(fresh, normalised or not)      c = fresh, zoned out
//   h = hidden, or W_hr hidden, zoned out
//
// Sums come from the register tile and go through memory that stays in the cache: the norm of a row
// needs all of them before any gate. Packed weights: W_ih^T, W_hh^T, and W_hr^T if projected.
#pragma once

#include "flush_denormals.h"
#include "tasks.h"
#include "variant_rows.h"

namespace lstm_fast {
namespace {

template <typename T>
struct VariantForwardWeights {
  Operand<T> ih, hh, hr;

  VariantForwardWeights(const VariantShape& s, const T* packed)
      : ih{packed, s.I, 4 * s.H, parts_of(s.I, s.parts)},
        hh{offset(packed, ih.size()), s.P, 4 * s.H, parts_of(s.P, s.parts)},
        hr{offset(hh.data, hh.size()), s.H, s.P, 0} {}
};

// With room for a transposed matrix after the packed ones, where these are made of parts.
template <typename T>
int64_t variant_forward_weights_size(const VariantShape& s) {
  const VariantForwardWeights<T> w(s, nullptr);
  return w.ih.size() + w.hh.size() + (s.projected ? w.hr.size() : 0) +
         (s.parts ? 4 * s.H * max(s.I, s.P) : 0);
}

// Packs a share of the transpose of m [C, K]. `spare` has room for all of it; shares use the
// columns that are theirs.
template <typename T>
INLINE void pack_transposed(const T* m, const Operand<T>& operand, const Share& share, T* out,
                            T* spare) {
  const int64_t K = operand.K, C = operand.C;
  if (!operand.parts) return pack_transposed_columns(m, K, C, share, out);
  const SplitMatrix<T> split = operand.split();
  const int64_t panels = split.all_panels().size();
  const int64_t begin = share.begin(panels) * kPanel<T>;
  const int64_t end = min(C, share.end(panels) * kPanel<T>);
  transpose_matrix(m + begin * K, K, end - begin, K, spare + begin, C);
  pack_split(spare, split, share, out);
}

template <typename T>
void variant_pack_forward(const VariantShape& s, const LayerWeights<T>& weights, const Share& share,
                          T* out) {
  const VariantForwardWeights<T> w(s, out);
  T *hh = out + w.ih.size(), *hr = hh + w.hh.size();
  T* spare = hr + (s.projected ? w.hr.size() : 0);
  pack_transposed(weights.weight_ih, w.ih, share, out, spare);
  pack_transposed(weights.weight_hh, w.hh, share, hh, spare);
  if (s.projected) pack_transposed(weights.weight_hr, w.hr, share, hr, spare);
}

// Rows that the input product is made for at a time, where they are contiguous: few enough for
// their gates to stay in the cache until their step.
constexpr int64_t kInputRows = 64;

INLINE int64_t steps_at_once(const VariantShape& s, int64_t rows) {
  return rows == s.steps.B ? max(1, kInputRows / max(1, rows)) : 1;
}

// Pieces of the scratch of a slice; those that are saved instead are not used.
template <typename T>
struct VariantForwardScratch {
  T* fresh;   // [H]
  T* gates;   // [rows of the steps at once, G]
  T* h_in;    // [rows, P]
  T* sums;    // [rows, G]
  T* hidden;  // [rows, H]
  T* product;
  int64_t size;

  VariantForwardScratch(const VariantShape& s, int64_t rows, bool save, T* base) {
    Arena<T> arena(base);
    fresh = arena.take(s.H);
    gates = arena.take(save ? 0 : steps_at_once(s, rows) * rows * 4 * s.H);
    h_in = arena.take(save ? 0 : rows * s.P);
    sums = arena.take(save || !s.normalised ? 0 : rows * 4 * s.H);
    hidden = arena.take(save || !s.projected ? 0 : rows * s.H);
    product = arena.take(operand_scratch<T>(max(s.I, s.P), s.parts));
    size = arena.used();
  }
};

template <typename T>
int64_t variant_forward_scratch(const VariantShape& s, int64_t rows, bool save) {
  return VariantForwardScratch<T>(s, rows, save, nullptr).size;
}

// gates[n0:n1] = W_ih x, normalised or not, plus the biases. `gates` is the row n0.
template <typename T>
INLINE void input_gates(const VariantForward<T>& p, const Operand<T>& weight_ih, int64_t n0,
                        int64_t n1, T* gates, T* scratch) {
  const VariantShape& s = p.shape;
  const int64_t G = 4 * s.H;
  T* sums = s.normalised && p.save ? p.saved.ih + n0 * G : gates;
  weight_ih.multiply(0, n1 - n0, p.x + n0 * s.I, sums, false, scratch);
  for (int64_t r = 0; r < n1 - n0; ++r) {
    const T* from = sums + r * G;
    T* to = gates + r * G;
    if (s.normalised) {
      const T scale = standardise_row(sums + r * G, G);
      if (p.save) p.saved.ih_scale[n0 + r] = scale;
    } else if (!p.plain.bias_ih) {
      continue;
    }
    for_each_vector<T>(G, [&](int64_t c, int64_t left) {
      Vec<T> z = load(from + c, left);
      if (s.normalised) z *= load(p.norms.ih + c, left);
      if (p.plain.bias_ih) z += load(p.plain.bias_ih + c, left) + load(p.plain.bias_hh + c, left);
      store(to + c, z, left);
    });
  }
}

// Resets the state of batch row b before row n of the steps, and writes what W_hh is multiplied
// with.
template <typename T>
INLINE void begin_step(const VariantForward<T>& p, int64_t b, int64_t n, T* h_in) {
  const int64_t H = p.shape.H, P = p.shape.P;
  const StateMasks<T>& masks = p.masks;
  T* h = p.h_n + b * P;
  if (masks.reset && masks.reset[n]) {
    copy_row(masks.reset_h ? masks.reset_h + b * P : nullptr, h, P);
    copy_row(masks.reset_c ? masks.reset_c + b * H : nullptr, p.c_n + b * H, H);
  }
  for_each_vector<T>(P, [&](int64_t c, int64_t left) {
    const Vec<T> v = load(h + c, left);
    store(h_in + c, masks.drop_h ? v * load(masks.drop_h + b * P + c, left) : v, left);
  });
}

// new_state = zone * state + (1 - zone) * fresh
template <typename T>
INLINE Vec<T> zone_out(const T* zone, Vec<T> state, Vec<T> fresh, int64_t left) {
  if (!zone) return fresh;
  const Vec<T> share = load(zone, left);
  return fma(share, state, (T(1) - share) * fresh);
}

// Gates and cells of batch row b, from the sums in `gates`, which become the activated gates.
template <GateActivation G, CellActivation C, typename T>
INLINE void cell_row(const VariantForward<T>& p, int64_t b, int64_t n, T* gates, T* fresh,
                     T* hidden) {
  const VariantShape& s = p.shape;
  const int64_t H = s.H;
  T* state = p.c_n + b * H;
  const T* zone = p.masks.zone_c ? p.masks.zone_c + n * p.masks.zone_c_row : nullptr;
  for_each_vector<T>(H, [&](int64_t u, int64_t left) {
    Vec<T> z[4], gate[4];
    for (int k = 0; k < 4; ++k) z[k] = load(gates + k * H + u, left);
    activate_gates<G, C, T>(z, gate);
    for (int k = 0; k < 4; ++k) store(gates + k * H + u, gate[k], left);
    const Vec<T> before = load(state + u, left);
    const Vec<T> c = fma(gate[1], before, gate[0] * gate[2]);
    store(fresh + u, c, left);
    const Vec<T> next = zone_out(zone ? zone + u : nullptr, before, c, left);
    store(state + u, next, left);
    if (p.cells) store(p.cells + n * H + u, next, left);
  });
  if (s.normalised) standardise_row(fresh, H);
  for_each_active_cell<C>(p.norms, fresh, H, [&](int64_t u, int64_t left, Vec<T> a) {
    store(hidden + u, load(gates + 3 * H + u, left) * a, left);
  });
}

template <typename T>
INLINE void end_step(const VariantForward<T>& p, int64_t b, int64_t n) {
  const int64_t P = p.shape.P;
  T *h = p.h_n + b * P, *y = p.y + n * P;
  const T* zone = p.masks.zone_h ? p.masks.zone_h + n * p.masks.zone_h_row : nullptr;
  for_each_vector<T>(P, [&](int64_t c, int64_t left) {
    const Vec<T> next =
        zone_out(zone ? zone + c : nullptr, load(h + c, left), load(y + c, left), left);
    store(y + c, next, left);
    store(h + c, next, left);
  });
}

// The step whose rows of the slice are the batch rows from b0 and the rows [n, n + rows) of N.
template <typename T>
INLINE void variant_forward_step(const VariantForward<T>& p, const VariantForwardWeights<T>& w,
                                 const VariantForwardScratch<T>& scratch, int64_t b0, int64_t n,
                                 int64_t rows, T* gates) {
  const VariantShape& s = p.shape;
  const int64_t G = 4 * s.H, P = s.P;
  T* h_in = p.save ? p.saved.h_in + n * P : scratch.h_in;
  for (int64_t r = 0; r < rows; ++r) begin_step(p, b0 + r, n + r, h_in + r * P);
  if (s.normalised) {
    T* sums = p.save ? p.saved.hh + n * G : scratch.sums;
    w.hh.multiply(0, rows, h_in, sums, false, scratch.product);
    for (int64_t r = 0; r < rows; ++r) {
      const T scale = standardise_row(sums + r * G, G);
      if (p.save) p.saved.hh_scale[n + r] = scale;
      for_each_vector<T>(G, [&](int64_t c, int64_t left) {
        T* z = gates + r * G + c;
        store(z, fma(load(sums + r * G + c, left), load(p.norms.hh + c, left), load(z, left)),
              left);
      });
    }
  } else {
    w.hh.multiply(0, rows, h_in, gates, true, scratch.product);
  }
  T* y = p.y + n * P;
  T* hidden = !s.projected ? y : p.save ? p.saved.hidden + n * s.H : scratch.hidden;
  with_activations(s, [&](auto gate, auto cell) {
    for (int64_t r = 0; r < rows; ++r) {
      cell_row<decltype(gate)::value, decltype(cell)::value>(p, b0 + r, n + r, gates + r * G,
                                                             scratch.fresh, hidden + r * s.H);
    }
  });
  if (s.projected) w.hr.multiply(0, rows, hidden, y, false, scratch.product);
  for (int64_t r = 0; r < rows; ++r) end_step(p, b0 + r, n + r);
}

template <typename T>
void variant_forward_rows(const VariantForward<T>& p, int64_t b0, int64_t b1, T* memory) {
  const FlushDenormals scope;
  const UnitScope unit(p.shape.parts > 0);
  const VariantShape& s = p.shape;
  const Steps& steps = s.steps;
  const VariantForwardWeights<T> weights(s, p.packed);
  const VariantForwardScratch<T> scratch(s, b1 - b0, p.save, memory);
  copy_rows(b0, b1, p.h0, s.P, p.h_n, s.P);
  copy_rows(b0, b1, p.c0, s.H, p.c_n, s.H);
  const int64_t at_once = steps_at_once(s, b1 - b0);
  for (int64_t i0 = 0; i0 < steps.T; i0 += at_once) {
    const int64_t i1 = min(steps.T, i0 + at_once);
    const int64_t first = s.reverse ? steps.T - i1 : i0,
                  last = s.reverse ? steps.T - 1 - i0 : i1 - 1;
    const int64_t n0 = steps.offset(first) + b0;
    const int64_t n1 = steps.offset(last) + min(b1, steps.rows(last));
    if (n0 >= n1) continue;
    T* gates = p.save ? p.saved.gates + n0 * 4 * s.H : scratch.gates;
    input_gates(p, weights.ih, n0, n1, gates, scratch.product);
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t t = s.reverse ? steps.T - 1 - i : i, n = steps.offset(t) + b0;
      variant_forward_step(p, weights, scratch, b0, n, min(b1, steps.rows(t)) - b0,
                           gates + (n - n0) * 4 * s.H);
    }
  }
}

}  // namespace
}  // namespace lstm_fast
