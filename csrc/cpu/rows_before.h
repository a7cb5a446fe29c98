// Where rows of N take their states from: what the weights' gradients and the recomputed gates need
// of all steps at once.
#pragma once

#include "simd.h"

namespace lstm_fast {
namespace {

// The step of row n of N.
INLINE int64_t step_of_row(const Steps& steps, int64_t n) {
  if (n == 0) return 0;
  if (!steps.batch_sizes) return n / steps.B;
  int64_t t = 0, end = steps.T;  // t is at or before it, end after
  while (end - t > 1) {
    const int64_t middle = t + (end - t) / 2;
    (steps.offset(middle) <= n ? t : end) = middle;
  }
  return t;
}

// Calls f(n, b, before) for the rows n of [n0, n1): row b of the batch at its step, whose state is
// that of row `before` of N, or the initial one, if `before` is negative.
template <typename F>
INLINE void for_each_row(const LayerShape& s, int64_t n0, int64_t n1, const F& f) {
  const Steps& steps = s.steps;
  int64_t t = step_of_row(steps, n0);
  for (int64_t n = n0; n < n1; ++n) {
    while (n >= steps.offset(t) + steps.rows(t)) ++t;
    const int64_t b = n - steps.offset(t);
    const bool carried = b < steps.carried(t, s.reverse);
    f(n, b, carried ? steps.offset(Steps::previous(t, s.reverse)) + b : -1);
  }
}

// Of such a row: its row of the states of all steps, rows `stride` apart, or of the initial states
// [B, C]; null for zeros.
template <typename T>
INLINE const T* state_before(const T* states, int64_t stride, int64_t before, const T* initial,
                             int64_t C, int64_t b) {
  if (before >= 0) return states + before * stride;
  return initial ? initial + b * C : nullptr;
}

}  // namespace
}  // namespace lstm_fast
