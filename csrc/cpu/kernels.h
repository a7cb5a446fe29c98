// The kernels of one layer in one direction, compiled once per instruction set (kernels.cpp) and
// reached through a table of function pointers. Shapes and layouts: ../lstm.h. Contracts:
//
// - Row-sliced functions (`*_rows`) work on the batch rows [b0, b1) alone, through all steps, and
//   write nothing of other rows: slices may run at the same time on different threads and give the
//   same bits in any partition. Those that take a TeamMember are called by each member of a team,
//   with the same arguments; layers with a projection take teams of one. Functions that take rows
//   [n0, n1) work on those of N instead, of all steps at once.
// - Packing functions write a share of what they pack; all shares together write all of it.
// - Unless said otherwise a pointer is read-only or written completely; nothing needs initialising,
//   and no two buffers of a call overlap.
// - Every buffer has its natural alignment at least; packed weights are best aligned to 64 bytes.
// - Subnormal numbers count as zero inside of a call; the caller's mode is restored.
#pragma once

#include "../lstm.h"
#include "team.h"
#include "variant_kernels.h"

namespace lstm_fast {

// Up to so many rows in all, weights are used too few times to win back their packing in backward;
// of a single step, the sums that are the gradients of weights are so short that to gather and
// transpose their terms would cost more.
constexpr int64_t kFewRows = 16;

// Gradients before the activations, rows of G: numbers of type T or, where all that becomes of them
// are products of bfloat16 numbers by dot products, bfloat16 ones. The other pointer is null.
template <typename T>
struct GradGates {
  T* rows;
  BFloat16* narrow;

  GradGates from(int64_t n) const { return {offset(rows, n), offset(narrow, n)}; }
  explicit operator bool() const { return rows || narrow; }
};

template <typename T>
struct LayerForward {
  LayerShape shape;
  const T* weights;  // as written by pack_forward; not used by forward_step
  const T* x;        // [N, I]
  const T* h0;       // [B, P], rows h0_stride apart, or null for zeros
  int64_t h0_stride;
  const T* c0;     // [B, H], or null for zeros
  const T* zeros;  // [P] zeros; needed if h0 is null
  // Scratch of forward_input_sums(shape) elements: what x adds to the gates is summed there for
  // several steps before they are taken. Null: step by step. Needs all rows in one call, of a
  // thread without a team, and no unit for bfloat16.
  T* input_sums;
  T* y;  // [N, P], rows y_stride apart
  int64_t y_stride;
  T* h_n;     // [B, P] state after the last step of each row
  T* c_n;     // [B, H]
  T* gates;   // [N, G] activated gates for backward, or null
  T* cells;   // [N, H] cell states for backward; null only with gates
  T* hidden;  // [N, H] output before the projection if projected and gates is given;
              // [B, H] scratch if projected and gates is null; else null
};

template <typename T>
struct LayerBackward {
  LayerShape shape;
  const T* weights;  // as written by pack_backward, if plain is null; null for a single step that
                     // is not projected, of which no gradient of h0 is wanted
  const LayerWeights<T>* plain;  // torch's own, or null
  const T* c0;                   // [B, H], or null for zeros
  const T* gates;                // as saved by forward; may be grad_gates.rows
  const T* cells;                // as saved by forward
  const T* grad_y;               // [N, P], rows grad_y_stride apart; null for zeros
  int64_t grad_y_stride;
  const T* grad_h_n;        // [B, P], or null for zeros
  const T* grad_c_n;        // [B, H], or null for zeros
  GradGates<T> grad_gates;  // [N, G]
  T* grad_hidden;  // [N, P] gradient of y with the part that comes back through time, if projected;
                   // else null
  T* grad_h0;      // [B, P], or null when not wanted
  T* grad_c0;      // [B, H]; always needed, as the running gradient of the cells
};

// The gates of all steps anew, from what the forward pass has left of a layer in one direction.
template <typename T>
struct LayerRecompute {
  LayerShape shape;  // with the parts that forward had
  const T* weights;  // as written by pack_forward
  const T* x;        // [N, I]
  const T* h0;       // [B, P], or null for zeros
  const T* c0;       // [B, H], or null for zeros
  const T* y;        // [N, P], rows y_stride apart
  int64_t y_stride;
  const T* cells;  // as saved by forward
  T* gates;        // [N, G] activated gates
  T* hidden;       // [N, H] output before the projection if projected; else null
};

// grad_x = sum over directions of grad_gates x weight_ih, for the rows of a slice.
template <typename T>
struct InputGrad {
  LayerShape shape;  // reverse is not used
  int directions;
  bool packed;
  const T* weights[2];         // as written by pack_input_grad if packed, else weight_ih [G, I]
  GradGates<T> grad_gates[2];  // [N, G], not written
  T* grad_x;                   // [N, I]
};

// y[B, C] (+)= grad_gates[B, G] x w[G, C], with torch's own weights, for a single step.
template <typename T, typename E>
struct StepGrad {
  int64_t B, G, C;
  int parts;
  const T* grad_gates;
  const E* w;
  T* y;
  bool add;
};

// The gradients of the weights of a layer in one direction; any of the outputs may be null.
template <typename T>
struct WeightGrad {
  LayerShape shape;
  GradGates<T> grad_gates;  // [N, G], not written
  const T* grad_hidden;     // [N, P] if projected
  const T* hidden;          // [N, H] if projected
  const T* x;               // [N, I]
  const T* h0;              // [B, P], or null for zeros
  const T* y;               // [N, P], rows y_stride apart
  int64_t y_stride;
  T* sums;  // weight_grad_sums(shape) elements, which weight_grad leaves to add_chunks
  LayerWeightGrads<T> grads;
  const LayerWeightGrads<BFloat16>* bfloat16_grads;  // instead of grads, or null; float32 alone
};

// Of a single step, with weights that are bfloat16 numbers in memory. Null but for float32. Parts
// of 1 multiply bfloat16 numbers; parts of 0 give the same bits as widened weights, backward of up
// to kFewRows rows. `scratch` of scratch(widest layer) elements.
template <typename T>
struct StepKernels {
  int64_t (*scratch)(const LayerShape&);
  // As LayerKernels::forward_step.
  void (*forward)(const LayerForward<T>&, const LayerWeights<BFloat16>&, int64_t b0, int64_t b1,
                  int64_t u0, int64_t u1, T* scratch);
  // Panels of so many columns.
  int64_t (*grad_panels)(int64_t C);
  // For panels of columns of w.
  void (*grad)(const StepGrad<T, BFloat16>&, int64_t panel0, int64_t panel1, T* scratch);
  // Of a layer without a projection, to bfloat16_grads; for panels of columns of grad_gates.
  void (*weight_grad)(const WeightGrad<T>&, int64_t panel0, int64_t panel1, T* scratch);
};

template <typename T>
struct LayerKernels {
  // For products of this type of bfloat16 parts: with dot products, LayerShape::parts may be 1,
  // with a matrix unit up to 3.
  Bf16Unit unit;
  // Whether products of these numbers can be made of several parts: all are below 2^56 in
  // magnitude.
  bool (*is_ordinary)(const T*, int64_t n);

  // sigmoid[i] and tanh[i] of x[i], i < n: the functions that the gates use, for tests of their
  // accuracy.
  void (*activations)(const T* x, int64_t n, T* sigmoid, T* tanh);

  int64_t (*forward_weights_size)(const LayerShape&);
  void (*pack_forward)(const LayerShape&, const LayerWeights<T>&, const Share&, T* packed);
  // Likewise of weights that are halves in memory, as others of these names. Null but for float32.
  void (*pack_forward_bfloat16)(const LayerShape&, const LayerWeights<BFloat16>&, const Share&,
                                T* packed);
  void (*pack_forward_float16)(const LayerShape&, const LayerWeights<Float16>&, const Share&,
                               T* packed);
  // `scratch` of forward_scratch(shape, b1 - b0) elements, of each member's own.
  int64_t (*forward_scratch)(const LayerShape&, int64_t rows);
  int64_t (*forward_input_sums)(const LayerShape&);
  void (*forward_rows)(const LayerForward<T>&, int64_t b0, int64_t b1, TeamMember&, T* scratch);

  // The single step of a batch with T == 1, for rows [b0, b1) and units [u0, u1), straight from
  // torch's weights; c0 may be c_n. u0 must be a multiple of unit_group, the units that are
  // computed together; projected layers take all units at once. Sums in another order than
  // forward_rows does.
  int64_t unit_group;
  void (*forward_step)(const LayerForward<T>&, const LayerWeights<T>&, int64_t b0, int64_t b1,
                       int64_t u0, int64_t u1);
  void (*forward_step_float16)(const LayerForward<T>&, const LayerWeights<Float16>&, int64_t b0,
                               int64_t b1, int64_t u0, int64_t u1);

  // `scratch` of recompute_scratch(shape) elements.
  int64_t (*recompute_scratch)(const LayerShape&);
  void (*recompute_rows)(const LayerRecompute<T>&, int64_t n0, int64_t n1, T* scratch);

  int64_t (*backward_weights_size)(const LayerShape&);
  void (*pack_backward)(const LayerShape&, const LayerWeights<T>&, const Share&, T* packed);
  void (*pack_backward_bfloat16)(const LayerShape&, const LayerWeights<BFloat16>&, const Share&,
                                 T* packed);
  // `scratch` of backward_scratch(shape, b1 - b0) elements, of each member's own.
  int64_t (*backward_scratch)(const LayerShape&, int64_t rows);
  void (*backward_rows)(const LayerBackward<T>&, int64_t b0, int64_t b1, TeamMember&, T* scratch);

  int64_t (*input_grad_weights_size)(const LayerShape&);
  void (*pack_input_grad)(const LayerShape&, const T* weight_ih, const Share&, T* packed);
  void (*pack_input_grad_bfloat16)(const LayerShape&, const BFloat16* weight_ih, const Share&,
                                   T* packed);
  // `scratch` of input_grad_scratch(shape) elements.
  int64_t (*input_grad_scratch)(const LayerShape&);
  void (*input_grad_rows)(const InputGrad<T>&, int64_t n0, int64_t n1, T* scratch);

  // Strips of columns of the product that gives all weight gradients, and chunks of rows that it is
  // a sum over; a range of strips of a chunk can be computed by a thread of its own, in `scratch`
  // of weight_grad_scratch(shape) elements. If there are several chunks, add_chunks follows, for
  // ranges of strips likewise.
  int64_t (*weight_grad_strips)(const LayerShape&);
  int64_t (*weight_grad_chunks)(const LayerShape&);
  int64_t (*weight_grad_sums)(const LayerShape&);
  int64_t (*weight_grad_scratch)(const LayerShape&);
  void (*weight_grad)(const WeightGrad<T>&, int64_t chunk, int64_t strip0, int64_t strip1,
                      T* scratch);
  void (*add_chunks)(const WeightGrad<T>&, int64_t strip0, int64_t strip1);

  StepKernels<T> bfloat16_step;
  VariantKernels<T> variant;
};

struct Kernels {
  const char* isa;
  LayerKernels<float> f32;
  LayerKernels<double> f64;
  void (*widen_bfloat16)(const BFloat16*, int64_t n, float*);
  void (*narrow_to_bfloat16)(const float*, int64_t n, BFloat16*);
  void (*widen_float16)(const Float16*, int64_t n, float*);

  const LayerKernels<float>& of(float) const { return f32; }
  const LayerKernels<double>& of(double) const { return f64; }
};

// The instruction sets compiled in that this host has, the best one last. (dispatch.cpp)
int available_kernels(const Kernels* const** first);

// The kernels in use: the best available, or the one that the environment variable LSTM_FAST_ISA
// names. An unknown or unavailable name throws std::runtime_error. Read once.
const Kernels& active_kernels();

}  // namespace lstm_fast
