// The vocabulary of lstm-fast: shape letters and the steps of a batch. Knows neither torch nor any
// kernel.
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
#define LSTM_FAST_INLINE inline __attribute__((always_inline))

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

}  // namespace lstm_fast
