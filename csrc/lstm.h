// The vocabulary of lstm-fast: shape letters, the steps of a batch, a stack of layers and what is
// kept of it for backward. Knows neither torch nor any kernel.
//
//   T steps       B batch rows        I input size       H hidden size (units, cells)
//   P output size of a layer: proj_size, or H when there is no projection
//   G = 4H gate rows in torch's order i, f, g, o
//   L layers      D directions (1 or 2)       N rows in all: T * B, or the sum of the batch sizes
//
// Matrices are row-major. Weights have torch's layouts: weight_ih [G, I], weight_hh [G, P], bias_ih
// [G], bias_hh [G], weight_hr [P, H].
#pragma once

#include <cstdint>

// Forced, because an inline function that is emitted out of line is merged by the linker with its
// copies from other objects, and the copy that stays may be compiled for an instruction set that
// the host lacks.
#ifdef __CUDACC__
#define LSTM_FAST_INLINE __host__ __device__ __forceinline__
#else
#define LSTM_FAST_INLINE inline __attribute__((always_inline))
#endif

namespace lstm_fast {

// The steps of a batch. Sequences are sorted by falling length, so that the rows alive at a step
// are always the first ones, and the rows of all steps lie one after the other: row b of step t is
// row `offset(t) + b` of N. A padded batch is the special case in which all B rows are alive at
// every step.
struct Steps {
  int64_t T;
  int64_t B;
  const int64_t* batch_sizes;  // [T], not increasing, batch_sizes[0] == B; null: B at every step
  const int64_t* offsets;      // [T], exclusive prefix sums of batch_sizes; null with batch_sizes

  LSTM_FAST_INLINE int64_t rows(int64_t t) const { return batch_sizes ? batch_sizes[t] : B; }
  LSTM_FAST_INLINE int64_t offset(int64_t t) const { return offsets ? offsets[t] : t * B; }
  LSTM_FAST_INLINE int64_t total() const { return offset(T - 1) + rows(T - 1); }

  // The step visited before step t by a direction, and the number of rows of step t that were alive
  // there. The rows [carried(t), rows(t)) begin at step t: their state comes from outside of the
  // sequence.
  LSTM_FAST_INLINE static int64_t previous(int64_t t, bool reverse) {
    return reverse ? t + 1 : t - 1;
  }
  LSTM_FAST_INLINE int64_t carried(int64_t t, bool reverse) const {
    if (reverse) return t + 1 < T ? rows(t + 1) : 0;
    return t > 0 ? rows(t) : 0;
  }
};

// A bfloat16 number: the upper half of a float32 one.
struct BFloat16 {
  uint16_t bits;
};

// A float16 number of IEEE 754.
struct Float16 {
  uint16_t bits;
};

// What multiplies bfloat16 numbers and adds in float32 on a CPU.
enum class Bf16Unit { None, DotProducts, Matrix };

// Parts that products of halves are made of, given those that float32 may be made of: one holds a
// bfloat16, two hold a float16.
inline int parts_of_halves(bool bfloat16, int parts) { return !parts ? 0 : bfloat16 ? 1 : 2; }

struct LayerShape {
  Steps steps;
  int64_t I, H, P;
  bool projected;  // weight_hr is present; otherwise P == H
  bool reverse;
  int parts;  // bfloat16 parts that products are made of on such a unit, 1 to 3; 0 without it

  // Operations of the products with W_ih and W_hh in a forward pass; backward has twice as many.
  LSTM_FAST_INLINE int64_t flops() const { return 2 * steps.total() * 4 * H * (I + P); }
};

struct StackShape {
  Steps steps;
  int64_t I, H, P;
  bool projected;
  int64_t L, D;
  int parts;      // as in LayerShape, where the planner uses a unit
  Bf16Unit unit;  // that there is, set by the planner

  int64_t input_size(int64_t layer) const { return layer ? D * P : I; }
  LayerShape layer(int64_t layer, int64_t direction) const {
    return {steps, input_size(layer), H, P, projected, direction == 1, parts};
  }
  int64_t flops() const {
    return D * (layer(0, 0).flops() + (L > 1 ? (L - 1) * layer(1, 0).flops() : 0));
  }
};

// What the forward pass keeps for backward, in one buffer. Layer after layer: gates [D][N, G],
// cells [D][N, H], hidden [D][N, H] if projected, and y [N, D * P], which the last layer lacks
// unless keep_output. Of these, cells and y alone if backward is to recompute the others from them.
struct SavedLayout {
  StackShape shape;
  bool keep_output;
  bool recompute_gates = false;

  int64_t N() const { return shape.steps.T ? shape.steps.total() : 0; }
  int64_t size() const { return shape.L * layer_size() - (keep_output ? 0 : output_size()); }
  // Of these, gates and hidden take no room, and must not be used, if they are recomputed.
  int64_t gates(int64_t l, int64_t d) const { return l * layer_size() + d * N() * gate_columns(); }
  int64_t cells(int64_t l, int64_t d) const { return gates(l, shape.D) + d * N() * shape.H; }
  int64_t hidden(int64_t l, int64_t d) const {
    return cells(l, shape.D) + d * N() * hidden_columns();
  }
  int64_t output(int64_t l) const { return hidden(l, shape.D); }

 private:
  int64_t gate_columns() const { return recompute_gates ? 0 : 4 * shape.H; }
  int64_t hidden_columns() const { return shape.projected && !recompute_gates ? shape.H : 0; }
  int64_t output_size() const { return N() * shape.D * shape.P; }
  int64_t layer_size() const {
    return shape.D * N() * (gate_columns() + shape.H + hidden_columns()) + output_size();
  }
};

// Torch's weights of a layer in one direction. Biases may be null together; weight_hr is null
// unless projected.
template <typename T>
struct LayerWeights {
  const T* weight_ih;  // [G, I]
  const T* weight_hh;  // [G, P]
  const T* bias_ih;    // [G]
  const T* bias_hh;    // [G]
  const T* weight_hr;  // [P, H]
};

// Weight gradients of a layer in one direction, in torch's layouts; any may be null.
template <typename T>
struct LayerWeightGrads {
  T* weight_ih;
  T* weight_hh;
  T* bias_ih;
  T* bias_hh;
  T* weight_hr;
};

}  // namespace lstm_fast
