// Backward of a layer with options (../variant.h), against the order of variant_forward.h.
// grad_h0 and grad_c0 hold dh and dc, the gradients of the state after the step, of all rows:
//
//   dh += dy               dc += d(cells)
//   d(new h) = (1 - zone_h) dh                         dh = zone_h dh
//   dm = d(new h), or W_hr^T d(new h)                  dz_o = dm a(fresh) o'
//   d(fresh) = (1 - zone_c) dc + dm o a'(fresh)        dc = zone_c dc + d(fresh) f
//   dz_i, dz_f, dz_g = d(fresh) g i', d(fresh) c_{t-1} f', d(fresh) i g'
//   dh += drop_h W_hh^T dz
//
// and where the state was reset, dh and dc go to what it was reset to. Norms lie between. Packed
// weights: W_hh, and W_hr if projected.
#pragma once

#include "flush_denormals.h"
#include "tasks.h"
#include "variant_rows.h"
#include "weight_grad.h"

namespace lstm_fast {
namespace {

template <typename T>
struct VariantBackwardWeights {
  Operand<T> hh, hr;

  VariantBackwardWeights(const VariantShape& s, const T* packed)
      : hh{packed, 4 * s.H, s.P, parts_of(4 * s.H, s.parts)},
        hr{offset(packed, hh.size()), s.P, s.H, 0} {}
};

template <typename T>
int64_t variant_backward_weights_size(const VariantShape& s) {
  const VariantBackwardWeights<T> w(s, nullptr);
  return w.hh.size() + (s.projected ? w.hr.size() : 0);
}

template <typename T>
void variant_pack_backward(const VariantShape& s, const LayerWeights<T>& weights,
                           const Share& share, T* out) {
  const VariantBackwardWeights<T> w(s, out);
  w.hh.pack(weights.weight_hh, share, out);
  if (s.projected) w.hr.pack(weights.weight_hr, share, out + w.hh.size());
}

// Pieces of the scratch of a slice.
template <typename T>
struct VariantBackwardScratch {
  T* fresh;      // [H]
  T* from_h;     // [H] part of d(fresh)
  T* scaled;     // [G]
  T* grad_new;   // [rows, P] d(new h), unless projected
  T* grad_h_in;  // [rows, P]
  T* grad_m;     // [rows, H] if projected
  T* product;
  int64_t size;

  VariantBackwardScratch(const VariantShape& s, int64_t rows, T* base) {
    Arena<T> arena(base);
    fresh = arena.take(s.H);
    from_h = arena.take(s.H);
    scaled = arena.take(4 * s.H);
    grad_new = arena.take(s.projected ? 0 : rows * s.P);
    grad_h_in = arena.take(rows * s.P);
    grad_m = arena.take(s.projected ? rows * s.H : 0);
    product = arena.take(operand_scratch<T>(4 * s.H, s.parts));
    size = arena.used();
  }
};

template <typename T>
int64_t variant_backward_scratch(const VariantShape& s, int64_t rows) {
  return VariantBackwardScratch<T>(s, rows, nullptr).size;
}

// The cell that step t of batch row b, row n of the steps, began from; null for zeros.
template <typename T>
INLINE const T* cell_before(const VariantBackward<T>& p, int64_t t, int64_t b, int64_t n) {
  const VariantShape& s = p.shape;
  if (p.masks.reset && p.masks.reset[n]) {
    return p.masks.reset_c ? p.masks.reset_c + b * s.H : nullptr;
  }
  if (b < s.steps.carried(t, s.reverse)) {
    return p.cells + (s.steps.offset(Steps::previous(t, s.reverse)) + b) * s.H;
  }
  return p.c0 + b * s.H;
}

// Splits dh between the new h and the state before.
template <typename T>
INLINE void grad_of_new_h(const VariantBackward<T>& p, int64_t b, int64_t n, T* grad_new) {
  const int64_t P = p.shape.P;
  T* dh = p.grad_h0 + b * P;
  const T* zone = p.masks.zone_h ? p.masks.zone_h + n * p.masks.zone_h_row : nullptr;
  for_each_vector<T>(P, [&](int64_t c, int64_t left) {
    Vec<T> d = load(dh + c, left);
    if (p.grad_y) d += load(p.grad_y + n * P + c, left);
    const Vec<T> kept = zone ? d * load(zone + c, left) : Vec<T>{};
    store(grad_new + c, d - kept, left);
    store(dh + c, kept, left);
  });
}

// dz of batch row b from dm, and dc of the state before.
template <GateActivation G, CellActivation C, typename T>
INLINE void cell_row_grad(const VariantBackward<T>& p, const VariantBackwardScratch<T>& scratch,
                          int64_t t, int64_t b, int64_t n, const T* dm) {
  const VariantShape& s = p.shape;
  const int64_t H = s.H;
  const T* gates = p.saved.gates + n * 4 * H;
  T* dz = p.grad_gates + n * 4 * H;
  const T* before = cell_before(p, t, b, n);
  const auto c_before = [&](int64_t u, int64_t left) {
    return before ? load(before + u, left) : Vec<T>{};
  };
  T* fresh = s.normalised ? p.norm_c + n * H : scratch.fresh;
  for_each_vector<T>(H, [&](int64_t u, int64_t left) {
    const Vec<T> ig = load(gates + u, left) * load(gates + 2 * H + u, left);
    store(fresh + u, fma(load(gates + H + u, left), c_before(u, left), ig), left);
  });
  const T scale = s.normalised ? standardise_row(fresh, H) : T(1);

  for_each_active_cell<C>(p.norms, fresh, H, [&](int64_t u, int64_t left, Vec<T> a) {
    const Vec<T> o = load(gates + 3 * H + u, left), d = load(dm + u, left);
    store(dz + 3 * H + u, d * a * gate_slope<G, T>(o), left);
    Vec<T> from_h = d * o * cell_slope<C, T>(a);
    if (s.normalised) {
      store(p.grad_norm_c + n * H + u, from_h, left);
      from_h *= load(p.norms.c + u, left);
    }
    store(scratch.from_h + u, from_h, left);
  });
  if (s.normalised) standardise_row_grad<T>(scratch.from_h, fresh, scale, H, scratch.from_h);

  T* dc = p.grad_c0 + b * H;
  const T* zone = p.masks.zone_c ? p.masks.zone_c + n * p.masks.zone_c_row : nullptr;
  for_each_vector<T>(H, [&](int64_t u, int64_t left) {
    const Vec<T> i = load(gates + u, left), f = load(gates + H + u, left);
    const Vec<T> g = load(gates + 2 * H + u, left);
    Vec<T> d = load(dc + u, left);
    if (p.grad_cells) d += load(p.grad_cells + n * H + u, left);
    const Vec<T> kept = zone ? d * load(zone + u, left) : Vec<T>{};
    const Vec<T> d_fresh = d - kept + load(scratch.from_h + u, left);
    store(dz + u, d_fresh * g * gate_slope<G, T>(i), left);
    store(dz + H + u, d_fresh * c_before(u, left) * gate_slope<G, T>(f), left);
    store(dz + 2 * H + u, d_fresh * i * cell_slope<C, T>(g), left);
    store(dc + u, fma(d_fresh, f, kept), left);
  });
}

// The gradients of both products of row n, through their norms.
template <typename T>
INLINE void products_row_grad(const VariantBackward<T>& p, int64_t n, T* scaled) {
  const int64_t G = 4 * p.shape.H;
  const T* dz = p.grad_gates + n * G;
  const auto through = [&](const T* weight, const T* standardised, T scale, T* grad) {
    for_each_vector<T>(G, [&](int64_t c, int64_t left) {
      store(scaled + c, load(dz + c, left) * load(weight + c, left), left);
    });
    standardise_row_grad<T>(scaled, standardised + n * G, scale, G, grad + n * G);
  };
  through(p.norms.ih, p.saved.ih, p.saved.ih_scale[n], p.grad_ih);
  through(p.norms.hh, p.saved.hh, p.saved.hh_scale[n], p.grad_hh);
}

// Moves a gradient from the running sum of a row to that of what the state was reset to.
template <typename T>
INLINE void move_row(T* from, T* to, int64_t C) {
  if (to) add_row(from, to, C);
  copy_row<T>(nullptr, from, C);
}

template <typename T>
INLINE void grad_of_state_before(const VariantBackward<T>& p, int64_t b, int64_t n,
                                 const T* grad_h_in) {
  const int64_t H = p.shape.H, P = p.shape.P;
  T* dh = p.grad_h0 + b * P;
  for_each_vector<T>(P, [&](int64_t c, int64_t left) {
    Vec<T> d = load(grad_h_in + c, left);
    if (p.masks.drop_h) d *= load(p.masks.drop_h + b * P + c, left);
    store(dh + c, load(dh + c, left) + d, left);
  });
  if (!p.masks.reset || !p.masks.reset[n]) return;
  move_row(dh, offset(p.grad_reset_h, b * P), P);
  move_row(p.grad_c0 + b * H, offset(p.grad_reset_c, b * H), H);
}

template <typename T>
void variant_backward_rows(const VariantBackward<T>& p, int64_t b0, int64_t b1, T* memory) {
  const FlushDenormals scope;
  const UnitScope unit(p.shape.parts > 0);
  const VariantShape& s = p.shape;
  const Steps& steps = s.steps;
  const int64_t H = s.H, P = s.P, G = 4 * H;
  const VariantBackwardScratch<T> scratch(s, b1 - b0, memory);
  const VariantBackwardWeights<T> weights(s, p.packed);
  copy_rows(b0, b1, p.grad_h_n, P, p.grad_h0, P);
  copy_rows(b0, b1, p.grad_c_n, H, p.grad_c0, H);
  if (p.grad_reset_h) copy_rows<T>(b0, b1, nullptr, P, p.grad_reset_h, P);
  if (p.grad_reset_c) copy_rows<T>(b0, b1, nullptr, H, p.grad_reset_c, H);
  for (int64_t i = 0; i < steps.T; ++i) {
    const int64_t t = s.reverse ? i : steps.T - 1 - i;
    const int64_t rows = min(b1, steps.rows(t)) - b0, n = steps.offset(t) + b0;
    if (rows <= 0) continue;
    T* grad_new = s.projected ? p.grad_hidden + n * P : scratch.grad_new;
    for (int64_t r = 0; r < rows; ++r) grad_of_new_h(p, b0 + r, n + r, grad_new + r * P);
    const T* dm = s.projected ? scratch.grad_m : grad_new;
    if (s.projected) weights.hr.multiply(0, rows, grad_new, scratch.grad_m, false, scratch.product);
    with_activations(s, [&](auto gate, auto cell) {
      for (int64_t r = 0; r < rows; ++r) {
        cell_row_grad<decltype(gate)::value, decltype(cell)::value>(p, scratch, t, b0 + r, n + r,
                                                                    dm + r * H);
      }
    });
    if (s.normalised) {
      for (int64_t r = 0; r < rows; ++r) products_row_grad(p, n + r, scratch.scaled);
    }
    weights.hh.multiply(0, rows, p.grad_hh + n * G, scratch.grad_h_in, false, scratch.product);
    for (int64_t r = 0; r < rows; ++r) {
      grad_of_state_before(p, b0 + r, n + r, scratch.grad_h_in + r * P);
    }
  }
}

template <typename T>
void column_sums(const T* a, const T* b, int64_t N, int64_t C, int64_t c0, int64_t c1, T* sums) {
  const FlushDenormals scope;
  // Block by block, as the other gradients of weights are summed. The sums of a few columns stay in
  // registers while rows go by.
  for (int64_t c = c0; c < c1; c += kPanel<T>) {
    const int64_t columns = min(kPanel<T>, c1 - c);
    with_size<kTileVectors>(panel_vectors<T>(columns, 0), [&](auto vectors) {
      constexpr int W = decltype(vectors)::value;
      Vec<T> total[W] = {};
      for (int64_t block = 0; block < N; block += kBlock) {
        Vec<T> acc[W] = {};
        for (int64_t n = block; n < min(N, block + kBlock); ++n) {
          for (int w = 0; w < W; ++w) {
            const int64_t v = w * kLanes<T>, left = columns - v;
            const Vec<T> x = load(a + n * C + c + v, left);
            acc[w] = b ? fma(x, load(b + n * C + c + v, left), acc[w]) : acc[w] + x;
          }
        }
        for (int w = 0; w < W; ++w) total[w] += acc[w];
      }
      for (int w = 0; w < W; ++w)
        store(sums + c + w * kLanes<T>, total[w], columns - w * kLanes<T>);
    });
  }
}

}  // namespace
}  // namespace lstm_fast
