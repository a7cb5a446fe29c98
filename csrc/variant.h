// A layer in one direction with what torch.nn.LSTM lacks: layer-normalised gates, other
// activations, zoneout, dropout of the recurrent input, resets inside a sequence, all cell states.
// Formulas: `variant` in lstm_fast/reference.py. Knows neither torch nor any kernel.
#pragma once

#include "lstm.h"

namespace lstm_fast {

// As numbered by the op.
enum class GateActivation : int64_t { Sigmoid, HardSigmoid };
enum class CellActivation : int64_t { Tanh, Relu, HardTanh };

struct VariantShape {
  Steps steps;
  int64_t I, H, P;
  bool projected, reverse, normalised;
  GateActivation gate;
  CellActivation cell;
  int parts;  // as in LayerShape; what it is used for is up to the planner

  // Operations of the products with W_ih and W_hh in a forward pass; backward has twice as many.
  LSTM_FAST_INLINE int64_t flops() const { return 2 * steps.total() * 4 * H * (I + P); }
};

// Scales of the layer norms, and the shift of that of the cell; its biases are those of the layer.
// All null where nothing is normalised.
template <typename T>
struct NormWeights {
  const T* ih;      // [G]
  const T* hh;      // [G]
  const T* c;       // [H]
  const T* c_bias;  // [H], or null for zeros
};

// What acts on the state from outside. Any pointer may be null: nothing is done, or zeros.
template <typename T>
struct StateMasks {
  const uint8_t* reset;  // [N]: where not zero, the state is replaced before the step by
  const T* reset_h;      // [B, P] this
  const T* reset_c;      // [B, H] and this
  const T* drop_h;       // [B, P] factor of h in the recurrent product
  const T* zone_h;       // [N, P] share of the state before that is kept
  const T* zone_c;       // [N, H] likewise
  int64_t zone_h_row;    // distance of their rows; 0 if all rows are the same
  int64_t zone_c_row;
};

// What forward keeps for backward, beside the cells.
template <typename T>
struct VariantSaved {
  T* gates;     // [N, G] activated
  T* h_in;      // [N, P] that W_hh was multiplied with
  T* hidden;    // [N, H] if projected
  T* ih;        // [N, G] W_ih x, standardised; if normalised, as all below
  T* hh;        // [N, G] W_hh h_in, standardised
  T* ih_scale;  // [N] reciprocals of their standard deviations
  T* hh_scale;  // [N]
};

template <typename T>
struct VariantForward {
  VariantShape shape;
  LayerWeights<T> plain;
  NormWeights<T> norms;
  StateMasks<T> masks;
  const T* packed;  // as written by pack_forward
  const T* x;       // [N, I]
  const T* h0;      // [B, P]
  const T* c0;      // [B, H]
  T* y;             // [N, P]
  T* h_n;           // [B, P]
  T* c_n;           // [B, H]
  T* cells;         // [N, H], or null; needed if saved
  bool save;
  VariantSaved<T> saved;
};

template <typename T>
struct VariantBackward {
  VariantShape shape;
  NormWeights<T> norms;
  StateMasks<T> masks;
  const T* packed;  // as written by pack_backward
  const T* c0;      // [B, H]
  const T* cells;   // as forward wrote them
  VariantSaved<const T> saved;
  const T* grad_y;      // [N, P], or null for zeros, as the next three
  const T* grad_h_n;    // [B, P]
  const T* grad_c_n;    // [B, H]
  const T* grad_cells;  // [N, H]
  T* grad_gates;        // [N, G] before the activations
  T* grad_ih;           // [N, G] of W_ih x, if normalised; else null
  T* grad_hh;           // [N, G] of W_hh h_in, if normalised; else grad_gates
  T* grad_hidden;       // [N, P] of W_hr m, if projected; else null
  T* grad_norm_c;       // [N, H] of the normalised cell, if normalised; else null
  T* norm_c;            // [N, H] the cell, standardised, if normalised; else null
  T* grad_h0;           // [B, P]; needed, as the running gradient of h
  T* grad_c0;           // [B, H]; likewise
  T* grad_reset_h;      // [B, P] sums over the resets of each row, or null when not wanted
  T* grad_reset_c;      // [B, H]
};

// How the buffer lies that forward keeps for backward: the members of VariantSaved, one after the
// other.
struct VariantSavedLayout {
  VariantShape shape;

  int64_t N() const { return shape.steps.total(); }
  int64_t size() const {
    const int64_t of_norms = shape.normalised ? 8 * shape.H + 2 : 0;
    return N() * (4 * shape.H + shape.P + (shape.projected ? shape.H : 0) + of_norms);
  }
  template <typename T>
  VariantSaved<T> pieces(T* p) const {
    const int64_t n = N(), H = shape.H;
    VariantSaved<T> saved{};
    const auto take = [&](int64_t columns) {
      T* piece = p;
      p += n * columns;
      return piece;
    };
    saved.gates = take(4 * H);
    saved.h_in = take(shape.P);
    if (shape.projected) saved.hidden = take(H);
    if (!shape.normalised) return saved;
    saved.ih = take(4 * H);
    saved.hh = take(4 * H);
    saved.ih_scale = take(1);
    saved.hh_scale = take(1);
    return saved;
  }
};

// Gradients of the weights; any may be null.
template <typename T>
struct VariantWeightGrads {
  LayerWeightGrads<T> plain;
  T* norm_ih;      // [G]
  T* norm_hh;      // [G]
  T* norm_c;       // [H]
  T* norm_c_bias;  // [H]
};

template <typename T>
struct VariantProblemBackward {
  VariantBackward<T> rows;
  LayerWeights<T> plain;
  const T* x;  // [N, I]
  T* grad_x;   // [N, I], or null when not wanted
  VariantWeightGrads<T> grads;
  bool need_weights;  // whether any of them is wanted
};

}  // namespace lstm_fast
