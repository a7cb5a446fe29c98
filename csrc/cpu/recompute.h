// The gates of all steps anew, for backward, where the forward pass has kept y and the cells alone.
// With h_{t-1} and c_{t-1} of all steps known, no step waits for another one: rows of N are as rows
// of one step are (forward.h), in products of many rows, with the sums in the same order.
#pragma once

#include "forward.h"
#include "rows_before.h"

namespace lstm_fast {
namespace {

// Rows that are computed at a time. 64 and 256 took the same time within 3 % for H 25 to 512 on
// Sapphire Rapids.
constexpr int64_t kRecomputeRows = 128;

// h_{t-1}, c_{t-1} and the output before the projection of these rows, and what forward needs.
template <typename T>
int64_t recompute_scratch(const LayerShape& s) {
  return kRecomputeRows * (s.P + 2 * s.H) + forward_scratch<T>(s, kRecomputeRows);
}

template <typename T>
void recompute_rows(const LayerRecompute<T>& p, int64_t n0, int64_t n1, T* scratch) {
  const FlushDenormals scope;
  const UnitScope unit(p.shape.parts > 0);
  const LayerShape& s = p.shape;
  T* h = scratch;
  T* cells = h + kRecomputeRows * s.P;
  T* hidden = cells + kRecomputeRows * s.H;
  T* of_forward = hidden + kRecomputeRows * s.H;
  LayerForward<T> layer{};
  layer.shape = s;
  layer.weights = p.weights;
  layer.c_n = cells;  // c_{t-1}, replaced by c_t
  for (int64_t n = n0; n < n1; n += kRecomputeRows) {
    const int64_t stop = min(n1, n + kRecomputeRows);
    for_each_row(s, n, stop, [&](int64_t row, int64_t b, int64_t before) {
      copy_row(state_before(p.y, p.y_stride, before, p.h0, s.P, b), h + (row - n) * s.P, s.P);
      copy_row(state_before(p.cells, s.H, before, p.c0, s.H, b), cells + (row - n) * s.H, s.H);
    });
    ForwardRun<T> run;
    run.begin = 0, run.end = stop - n;
    run.groups = all_groups<T>(s);
    run.x = {p.x + n * s.I, s.I};
    run.h = {h, s.P};
    run.hidden = p.hidden ? p.hidden + n * s.H : hidden;
    run.hidden_stride = s.H;
    run.gates = p.gates + n * 4 * s.H;
    run.cells = cells;
    forward_run(layer, run, of_forward);
  }
}

}  // namespace
}  // namespace lstm_fast
