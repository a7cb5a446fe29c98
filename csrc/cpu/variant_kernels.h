// The kernels of one layer in one direction with what torch.nn.LSTM lacks: layer-normalised gates,
// other activations, zoneout, dropout of the recurrent input, resets inside a sequence, all cell
// states. Formulas: `variant` in lstm_fast/reference.py. The rules of kernels.h hold.
#pragma once

#include "../lstm.h"

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
  int parts;  // as in LayerShape, for the products over all steps
};

// Scales of the layer norms, and the shift of that of the cell; its biases are those of the layer.
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

template <typename T>
struct VariantKernels {
  int64_t (*forward_weights_size)(const VariantShape&);
  void (*pack_forward)(const VariantShape&, const LayerWeights<T>&, T* packed);
  // `scratch` of forward_scratch(shape, b1 - b0, save) elements.
  int64_t (*forward_scratch)(const VariantShape&, int64_t rows, bool save);
  void (*forward_rows)(const VariantForward<T>&, int64_t b0, int64_t b1, T* scratch);

  int64_t (*backward_weights_size)(const VariantShape&);
  void (*pack_backward)(const VariantShape&, const LayerWeights<T>&, T* packed);
  int64_t (*backward_scratch)(const VariantShape&, int64_t rows);
  void (*backward_rows)(const VariantBackward<T>&, int64_t b0, int64_t b1, T* scratch);

  // sums[c] of a[n, c] * b[n, c] over n < N, for the columns [c0, c1) of C; of a alone if b is
  // null.
  void (*column_sums)(const T* a, const T* b, int64_t N, int64_t C, int64_t c0, int64_t c1,
                      T* sums);
};

}  // namespace lstm_fast
