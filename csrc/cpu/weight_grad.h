// The gradients of the weights of a layer in one direction, once all steps are done:
//
//   [dW_ih | dW_hh | db]^T = [x_t | h_{t-1} | 1]^T dz        dW_hr = dh^T hidden
//
// Both are sums over all N rows, made block by block of kBlock rows with the left factor gathered
// into one matrix. A block is summed by itself: a sum of a million rows that took one after the
// other would lose a digit. A panel of columns of dz (or hidden) after the other, so that panels
// can go to different threads.
#pragma once

#include <cstring>

#include "flush_denormals.h"
#include "kernels.h"
#include "matmul.h"
#include "rows_before.h"
#include "split_matmul.h"
#include "step_dots.h"
#include "tasks.h"

namespace lstm_fast {
namespace {

// Rows in a block: enough to hide the loads and stores of the sums, few enough for a block to stay
// in the cache. Best of 32 to 512 for H 32 to 512 on a Zen 4 core with 32 KiB of L1 and 1 MiB of
// L2.
constexpr int64_t kBlock = 128;

// Columns of the gathered left factor, and the distance of its rows: an odd number of cache lines,
// so that a walk down a column meets every set of the cache.
INLINE int64_t left_columns(const LayerShape& s) { return s.I + s.P + 1; }
template <typename T>
INLINE int64_t left_stride(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return (ceil_div(columns, line) | 1) * line;
}

template <typename T>
int64_t weight_grad_panels(const LayerShape& s) {
  return ceil_div(4 * s.H, kPanel<T>) + (s.projected ? ceil_div(s.H, kPanel<T>) : 0);
}

// Elements that the form of a unit for bfloat16 needs for the sums of one panel, and beside them.
INLINE int64_t split_sums_size(const LayerShape& s) {
  return ceil_div(left_columns(s), kUnitRows) * kUnitRows * kPanel<float>;
}
INLINE int64_t split_operands_size(const LayerShape& s) {
  return transposed_size(kBlock, left_columns(s), s.parts) + split_panel_size(kBlock, s.parts);
}

// Panels share a left factor, which is gathered for them once, if their sums, of M rows, have so
// many bytes together. They are read and written in order, so that leaving the cache hardly counts.
constexpr int64_t kSumsBytes = 1 << 19;

template <typename T>
INLINE int64_t panels_at_once(int64_t M) {
  const int64_t of_panel = M * kPanel<T> * static_cast<int64_t>(sizeof(T));
  return max(1, kSumsBytes / max(1, of_panel));
}

// Elements that sum_of_products needs for a product [M, C], sums included. Grows with M, so that
// what the widest layer needs is enough for all.
template <typename T>
INLINE int64_t sum_of_products_scratch(int64_t M, int64_t C) {
  const int64_t of_panel = M * kPanel<T>;
  const int64_t at_once = max(of_panel, kSumsBytes / static_cast<int64_t>(sizeof(T)));
  const int64_t sums = min(at_once, ceil_div(C, kPanel<T>) * of_panel);
  return sums + kBlock * (left_stride<T>(M) + kPanel<T>);
}

template <typename T>
int64_t weight_grad_scratch(const LayerShape& s) {
  const int64_t columns = left_columns(s), G = 4 * s.H;
  const int64_t of_projection = s.projected ? sum_of_products_scratch<T>(s.P, s.H) : 0;
  if (!s.parts) return max(sum_of_products_scratch<T>(columns, G), of_projection);
  return max(kBlock * left_stride<T>(columns) + 2 * split_operands_size(s) +
                 ceil_div(G, kPanel<T>) * split_sums_size(s),
             of_projection);
}

// Rows [n0, n1) of [x_t | h_{t-1} | 1]. Advances the background n1 - n0 times.
template <typename T, typename Background>
INLINE void gather_inputs(const WeightGrad<T>& p, int64_t n0, int64_t n1, T* out, int64_t stride,
                          Background& background) {
  const LayerShape& s = p.shape;
  for_each_row(s, n0, n1, [&](int64_t n, int64_t b, int64_t before) {
    copy_row(p.x + n * s.I, out, s.I);
    copy_row(state_before(p.y, p.y_stride, before, p.h0, s.P, b), out + s.I, s.P);
    out[s.I + s.P] = T(1);
    out += stride;
    background.advance();
  });
}

// The rows of the panel that is packed next. They come from the third cache or beyond, while the
// product of the panel before has nothing to wait for.
template <typename T>
struct PanelAhead {
  const T* row;
  int64_t stride, rows;

  // Not inlined: the product's registers would be spilled.
  __attribute__((noinline)) void prefetch(int64_t n) {
    for (n = min(n, rows), rows -= n; n > 0; --n, row += stride) prefetch_row(row, kPanel<T>);
  }
};

// Calls f(first column, width, sums [M][width]) for the panels [begin, end) of left[N, M]^T
// right[N, C], where gather(n0, n1, out, stride) writes rows of left. `scratch` has
// sum_of_products_scratch(M, C) elements.
template <typename T, typename Gather, typename F>
INLINE void sum_of_products(int64_t N, int64_t M, const T* right, int64_t C, int64_t begin,
                            int64_t end, T* scratch, const Gather& gather, const F& f) {
  const int64_t stride = left_stride<T>(M), ahead_per_row = ceil_div(kBlock, M);
  T* left = scratch;
  T* right_panel = left + kBlock * stride;
  T* sums = right_panel + kBlock * kPanel<T>;
  const auto sums_of = [&](int64_t i) { return sums + i * M * kPanel<T>; };
  const int64_t at_once = panels_at_once<T>(M);
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t panels = min(at_once, end - first);
    for (int64_t n0 = 0; n0 == 0 || n0 < N; n0 += kBlock) {
      const int64_t n1 = min(N, n0 + kBlock);
      gather(n0, n1, left, stride);
      for (int64_t i = 0; i < panels; ++i) {
        const int64_t column = (first + i) * kPanel<T>;
        pack_panel(right, C, n0, n1, C, column, right_panel);
        PanelAhead<T> ahead = {right + n0 * C + column + kPanel<T>, C, n1 - n0};
        if (i + 1 == panels) ahead = {right + n1 * C + first * kPanel<T>, C, min(kBlock, N - n1)};
        with_size<kTileVectors>(panel_vectors<T>(C, column), [&](auto vectors) {
          constexpr int W = decltype(vectors)::value;
          constexpr int64_t width = W * kLanes<T>;
          for_each_tile<W>(0, M, [&](int64_t m, auto rows) {
            constexpr int R = decltype(rows)::value;
            T* out = sums_of(i) + m * width;
            ahead.prefetch(R * ahead_per_row);
            Vec<T> acc[R][W];
            clear_tile<R, W, T>(acc);
            accumulate<R, W, T>(acc, {left + m, 1, stride}, right_panel, n1 - n0);
            if (n0) add_tile<R, W, T>(acc, out, width, 0, width);
            store_tile<R, W, T>(acc, out, width, 0, width);
          });
        });
      }
    }
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t column = (first + i) * kPanel<T>;
      f(column, panel_vectors<T>(C, column) * kLanes<T>, sums_of(i));
    }
  }
}

// Writes the sums [M][width of the panel] of the columns of dz from `column`.
template <typename T>
INLINE void write_gate_weight_grad(const WeightGrad<T>& p, int64_t column, const T* sums,
                                   int64_t width) {
  const LayerShape& s = p.shape;
  const int64_t columns = min(width, 4 * s.H - column);
  const T* bias = sums + (s.I + s.P) * width;
  const LayerWeightGrads<T>& grads = p.grads;
  if (grads.weight_ih)
    transpose_matrix(sums, width, s.I, columns, grads.weight_ih + column * s.I, s.I);
  if (grads.weight_hh) {
    transpose_matrix(sums + s.I * width, width, s.P, columns, grads.weight_hh + column * s.P, s.P);
  }
  if (grads.bias_ih) copy_row(bias, grads.bias_ih + column, columns);
  if (grads.bias_hh) copy_row(bias, grads.bias_hh + column, columns);
}

// The panels [begin, end) with a unit for bfloat16: a block of the left factor serves all of them.
// While a matrix unit multiplies for one panel, the vector units make the operands of the next.
template <typename T>
INLINE void gate_weight_grad_split(const WeightGrad<T>& p, int64_t begin, int64_t end, T* scratch) {
  if constexpr (kUnit<T> != Bf16Unit::None) {
    const LayerShape& s = p.shape;
    const int64_t N = s.steps.total(), G = 4 * s.H, M = left_columns(s), stride = left_stride<T>(M);
    const int64_t panels = end - begin, items = ceil_div(N, kBlock) * panels;
    Arena<T> arena(scratch);
    T* rows = arena.take(kBlock * stride);
    T* left[2];
    T* right[2];
    for (int i = 0; i < 2; ++i) {
      left[i] = arena.take(transposed_size(kBlock, M, s.parts));
      right[i] = arena.take(split_panel_size(kBlock, s.parts));
    }
    T* sums = arena.take(panels * split_sums_size(s));
    const auto first_row = [&](int64_t item) { return item / panels * kBlock; };
    const auto terms = [&](int64_t item) { return min(kBlock, N - first_row(item)); };
    const auto blocks = [&](int64_t item) { return ceil_div(terms(item), kBlockTerms); };

    SplitRows a[2];  // of a block of rows and the next one
    const auto prepare = [&](int64_t item, auto& background) {
      const int64_t n0 = first_row(item), which = item / panels % 2;
      const int64_t column = (begin + item % panels) * kPanel<T>;
      if (item % panels == 0) {
        gather_inputs(p, n0, n0 + terms(item), rows, stride, background);
        a[which] = split_transposed(rows, stride, terms(item), M, s.parts, left[which], background);
      }
      pack_split_panel(p.grad_gates + n0 * G + column, G, terms(item), G - column, blocks(item),
                       s.parts, right[item % 2], background);
    };
    const auto advances = [&](int64_t item) {
      const int64_t of_panel = split_panel_advances(blocks(item));
      if (item % panels > 0) return of_panel;
      return of_panel + terms(item) + transposed_advances(terms(item), M, s.parts);
    };

    NoBackground none;
    if (items) prepare(0, none);
    for (int64_t item = 0; item < items; ++item) {
      const bool more = item + 1 < items;
      PanelProducts<T> products({a[item / panels % 2], {}, right[item % 2], s.parts}, M,
                                sums + item % panels * split_sums_size(s), first_row(item) > 0,
                                more ? advances(item + 1) : 1);
      if (more) prepare(item + 1, products);
      products.finish();
    }
    for (int64_t panel = begin; panel < end; ++panel) {
      write_gate_weight_grad(p, panel * kPanel<T>, sums + (panel - begin) * split_sums_size(s),
                             kPanel<T>);
    }
  }
}

// The panels [begin, end) without it.
template <typename T>
INLINE void gate_weight_grad(const WeightGrad<T>& p, int64_t begin, int64_t end, T* scratch) {
  const LayerShape& s = p.shape;
  const NoBackground background;
  const auto gather = [&](int64_t n0, int64_t n1, T* out, int64_t stride) {
    gather_inputs(p, n0, n1, out, stride, background);
  };
  sum_of_products<T>(s.steps.total(), left_columns(s), p.grad_gates, 4 * s.H, begin, end, scratch,
                     gather, [&](int64_t column, int64_t width, const T* sums) {
                       write_gate_weight_grad(p, column, sums, width);
                     });
}

// The same for a few rows of a single step: x and h_0 are matrices as they lie, and the sums are so
// short that gathering and transposing would cost more than they.
constexpr int64_t kFewRows = 16;

// out [rows, C] = dz [B, rows]^T m [B, C], rows of dz G apart. One row after the other, so that
// what is written lies in one run: six at a time, out of the cache, took three times as long for
// B 1.
template <typename T, typename E>
INLINE void few_rows_product(const T* dz, int64_t G, int64_t rows, const Matrix<T>& m, E* out) {
  for (int64_t row = 0; row < rows; ++row) {
    for_each_panel(m, m.all_panels(), [&](int64_t column, const Columns<T>& columns, auto vectors) {
      constexpr int W = decltype(vectors)::value;
      Vec<T> acc[1][W];
      clear_tile<1, W, T>(acc);
      accumulate<1, W>(acc, {dz + row, 1, G}, columns, m.K);
      store_tile<1, W>(acc, out + row * m.C, m.C, column, m.C);
    });
  }
}

// Of the gates [begin, end), given what writes them of a matrix: product(m, C, out), where out is
// that of the first of them.
template <typename T, typename E, typename Product>
INLINE void step_weight_grad(const WeightGrad<T, E>& p, int64_t begin, int64_t end,
                             const Product& product) {
  const LayerShape& s = p.shape;
  const LayerWeightGrads<E>& grads = p.grads;
  if (grads.weight_ih) product(p.x, s.I, grads.weight_ih + begin * s.I);
  if (grads.weight_hh && p.h0) {
    product(p.h0, s.P, grads.weight_hh + begin * s.P);
  } else if (grads.weight_hh) {
    std::memset(grads.weight_hh + begin * s.P, 0, (end - begin) * s.P * sizeof(E));
  }
  for (int64_t c = begin; c < end; c += kLanes<T>) {
    Vec<T> sum = {};
    for (int64_t b = 0; b < s.steps.B; ++b) sum += load(p.grad_gates + b * 4 * s.H + c, end - c);
    if (grads.bias_ih) store(grads.bias_ih + c, sum, end - c);
    if (grads.bias_hh) store(grads.bias_hh + c, sum, end - c);
  }
}

template <typename T, typename E>
INLINE void few_rows_weight_grad(const WeightGrad<T, E>& p, int64_t begin, int64_t end) {
  const int64_t B = p.shape.steps.B, G = 4 * p.shape.H;
  step_weight_grad(p, begin, end, [&](const T* m, int64_t C, E* out) {
    few_rows_product(p.grad_gates + begin, G, end - begin, {m, B, C, false}, out);
  });
}

INLINE void bfloat16_step_weight_grad(const WeightGrad<float, BFloat16>& p, int64_t panel0,
                                      int64_t panel1, [[maybe_unused]] float* scratch) {
  const FlushDenormals scope;
  const int64_t G = 4 * p.shape.H, begin = panel0 * kPanel<float>,
                end = min(G, panel1 * kPanel<float>);
#if defined(__AVX512BF16__)
  if (p.shape.parts) {
    const int64_t B = p.shape.steps.B;
    uint16_t* dz = reinterpret_cast<uint16_t*>(scratch);
    uint16_t* pairs = dz + ceil_div(B, 2) * pair_row(end - begin);
    pair_rows(p.grad_gates + begin, G, B, end - begin, dz);
    return step_weight_grad(p, begin, end, [&](const float* m, int64_t C, BFloat16* out) {
      pair_rows(m, C, B, C, pairs);
      // As few_rows_product, until reading m for every row takes longer than that gains.
      B <= kFewRows ? outer_dots<1>(dz, end - begin, pairs, B, C, out)
                    : outer_dots<kTileRows>(dz, end - begin, pairs, B, C, out);
    });
  }
#endif
  few_rows_weight_grad(p, begin, end);
}

template <typename T>
INLINE void projection_weight_grad(const WeightGrad<T>& p, int64_t begin, int64_t end, T* scratch) {
  const LayerShape& s = p.shape;
  const auto gather = [&](int64_t n0, int64_t n1, T* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n, out += stride) copy_row(p.grad_hidden + n * s.P, out, s.P);
  };
  sum_of_products<T>(s.steps.total(), s.P, p.hidden, s.H, begin, end, scratch, gather,
                     [&](int64_t column, int64_t width, const T* sums) {
                       for (int64_t m = 0; m < s.P; ++m) {
                         copy_row(sums + m * width, p.grads.weight_hr + m * s.H + column,
                                  min(width, s.H - column));
                       }
                     });
}

// Panels of the gates, then of the projection.
template <typename T>
void weight_grad(const WeightGrad<T>& p, int64_t panel0, int64_t panel1, T* scratch) {
  const FlushDenormals scope;
  const int64_t gate_panels = ceil_div(4 * p.shape.H, kPanel<T>);
  const Steps& steps = p.shape.steps;
  const int64_t gates_end = min(panel1, gate_panels);
  if (panel0 < gates_end) {
    if (p.shape.parts) {
      const UnitScope unit(true);
      gate_weight_grad_split(p, panel0, gates_end, scratch);
    } else if (steps.T == 1 && steps.B > 0 && steps.B <= kFewRows) {
      few_rows_weight_grad(p, panel0 * kPanel<T>, min(4 * p.shape.H, gates_end * kPanel<T>));
    } else {
      gate_weight_grad(p, panel0, gates_end, scratch);
    }
  }
  const int64_t begin = max(panel0, gate_panels);
  if (begin < panel1 && p.grads.weight_hr) {
    projection_weight_grad(p, begin - gate_panels, panel1 - gate_panels, scratch);
  }
}

}  // namespace
}  // namespace lstm_fast
