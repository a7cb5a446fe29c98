// The gradients of the weights of a layer in one direction, once all steps are done:
//
//   [dW_ih | dW_hh | db]^T = [x_t | h_{t-1} | 1]^T dz        dW_hr = dh^T hidden
//
// Both are sums over all N rows, made block by block of kBlock rows with the left factor gathered
// into one matrix. A block is summed by itself: a sum of a million rows that took one after the
// other would lose a digit. Threads take chunks of blocks, whose sums are added up afterwards, and
// strips of columns of dz (or hidden) if there are not enough chunks. How the rows are cut does not
// depend on the threads: no bit of a sum does.
#pragma once

#include <cstring>
#include <type_traits>

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

// Columns of dz in a strip: a vector, or what a unit for bfloat16 takes at once. The sums of a
// strip [rows of the product][columns] lie together; the unit fills up the rows to a multiple.
template <typename T>
INLINE int64_t gate_strip(const LayerShape& s) {
  return s.parts ? kPanel<T> : kLanes<T>;
}
template <typename T>
INLINE int64_t gate_strips(const LayerShape& s) {
  return ceil_div(4 * s.H, gate_strip<T>(s));
}
template <typename T>
INLINE int64_t gate_sums_size(const LayerShape& s) {
  const int64_t M = left_columns(s);
  return (s.parts ? ceil_div(M, kUnitRows) * kUnitRows : M) * gate_strip<T>(s);
}
// Of hidden, if projected.
template <typename T>
INLINE int64_t projection_strips(const LayerShape& s) {
  return s.projected ? ceil_div(s.H, kLanes<T>) : 0;
}
template <typename T>
INLINE int64_t projection_sums_size(const LayerShape& s) {
  return s.P * kLanes<T>;
}

// Strips of the gates, then of the projection.
template <typename T>
int64_t weight_grad_strips(const LayerShape& s) {
  return gate_strips<T>(s) + projection_strips<T>(s);
}

// Elements of the sums of all strips, and those of the first ones.
template <typename T>
INLINE int64_t sums_before(const LayerShape& s, int64_t strips) {
  const int64_t of_gates = min(strips, gate_strips<T>(s));
  return of_gates * gate_sums_size<T>(s) + (strips - of_gates) * projection_sums_size<T>(s);
}
template <typename T>
INLINE int64_t all_sums(const LayerShape& s) {
  return sums_before<T>(s, weight_grad_strips<T>(s));
}

// Chunks have so many rows that writing their sums, which leave the cache if they are large, hardly
// counts beside making them. Large products have strips enough for any number of threads.
template <typename T>
int64_t weight_grad_chunks(const LayerShape& s) {
  constexpr int64_t fewest_rows = 4 * kBlock, bytes_per_row = 128, most_chunks = 16;
  const int64_t bytes = all_sums<T>(s) * static_cast<int64_t>(sizeof(T));
  const int64_t rows = max(fewest_rows, bytes / bytes_per_row);
  return max(1, min(s.steps.total() / rows, most_chunks));
}

template <typename T>
int64_t weight_grad_sums(const LayerShape& s) {
  const int64_t chunks = weight_grad_chunks<T>(s);
  return chunks > 1 ? chunks * all_sums<T>(s) : 0;
}

// The rows of a chunk: whole blocks.
struct ChunkRows {
  int64_t begin, end;
};
template <typename T>
INLINE ChunkRows rows_of_chunk(const LayerShape& s, int64_t chunk) {
  const int64_t N = s.steps.total(), blocks = ceil_div(N, kBlock);
  const int64_t chunks = weight_grad_chunks<T>(s);
  return {part(blocks, chunks, chunk) * kBlock, min(N, part(blocks, chunks, chunk + 1) * kBlock)};
}

// Elements that the form of a unit for bfloat16 needs beside the sums of a panel.
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

// Panels whose sums a unit for bfloat16 has at once: all of a range, unless one block of rows is
// all that they are sums over.
INLINE int64_t split_panels_at_once(const LayerShape& s, int64_t panels) {
  return s.steps.total() <= kBlock ? 1 : panels;
}

template <typename T>
int64_t weight_grad_scratch(const LayerShape& s) {
  const int64_t columns = left_columns(s), G = 4 * s.H;
  const int64_t of_projection = s.projected ? sum_of_products_scratch<T>(s.P, s.H) : 0;
  if (!s.parts) return max(sum_of_products_scratch<T>(columns, G), of_projection);
  return max(kBlock * left_stride<T>(columns) + 2 * split_operands_size(s) +
                 split_panels_at_once(s, gate_strips<T>(s)) * gate_sums_size<T>(s),
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

// The vectors [begin, end) of columns of left[N, M]^T right[N, C], of some of the N rows, where
// gather(n0, n1, out, stride) writes rows of left. The sums [M][vector] of a vector after the other
// come to be in `kept`; without it (null) they are in the scratch while f(vector, sums) is called.
// `scratch` has sum_of_products_scratch(M, C) elements.
template <typename T, typename Gather, typename F>
INLINE void sum_of_products(const ChunkRows& rows, int64_t M, const T* right, int64_t C,
                            int64_t begin, int64_t end, T* kept, T* scratch, const Gather& gather,
                            const F& f) {
  const int64_t stride = left_stride<T>(M), ahead_per_row = ceil_div(kBlock, M);
  T* left = scratch;
  T* right_panel = left + kBlock * stride;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t vector_sums = M * lanes;
  // Panels of vectors, as even as they can be: the first vector of each.
  const int64_t all = ceil_div(end - begin, kTileVectors), at_once = panels_at_once<T>(M);
  const auto vector_of = [&](int64_t panel) { return begin + part(end - begin, all, panel); };
  for (int64_t first = 0; first < all; first += at_once) {
    const int64_t last = min(all, first + at_once);
    const int64_t begin_v = vector_of(first), end_v = vector_of(last);
    T* sums = kept ? kept + (begin_v - begin) * vector_sums : right_panel + kBlock * kPanel<T>;
    for (int64_t n0 = rows.begin; n0 == rows.begin || n0 < rows.end; n0 += kBlock) {
      const int64_t n1 = min(rows.end, n0 + kBlock);
      gather(n0, n1, left, stride);
      for (int64_t i = first; i < last; ++i) {
        const int64_t v = vector_of(i), next = vector_of(i + 1);
        T* of_panel = sums + (v - begin_v) * vector_sums;
        pack_panel(right, C, n0, n1, min(C, next * lanes), v * lanes, right_panel);
        PanelAhead<T> ahead = {right + n0 * C + next * lanes, C, n1 - n0};
        if (i + 1 == last)
          ahead = {right + n1 * C + begin_v * lanes, C, min(kBlock, rows.end - n1)};
        with_size<kTileVectors>(next - v, [&](auto vectors) {
          constexpr int W = decltype(vectors)::value;
          for_each_tile<W>(0, M, [&](int64_t m, auto tile_rows) {
            constexpr int R = decltype(tile_rows)::value;
            ahead.prefetch(R * ahead_per_row);
            Vec<T> acc[R][W];
            clear_tile<R, W, T>(acc);
            accumulate<R, W, T>(acc, {left + m, 1, stride}, right_panel, n1 - n0);
            T* out = of_panel + m * lanes;
            const auto sum = [&](int i) { return out + i % W * vector_sums + i / W * lanes; };
            if (n0 > rows.begin) {
              unrolled<R * W>([&](auto i) { acc[i / W][i % W] += load(sum(i)); });
            }
            unrolled<R * W>([&](auto i) { store(sum(i), acc[i / W][i % W]); });
          });
        });
      }
    }
    for (int64_t v = begin_v; !kept && v < end_v; ++v) f(v, sums + (v - begin_v) * vector_sums);
  }
}

// Returns f of the gradients that are to be written.
template <typename T, typename F>
INLINE auto with_grads(const WeightGrad<T>& p, const F& f) {
  if constexpr (std::is_same_v<T, float>) {
    if (p.bfloat16_grads) return f(*p.bfloat16_grads);
  }
  return f(p.grads);
}

// Writes the sums of a strip of dz.
template <typename T>
INLINE void write_gate_weight_grad(const WeightGrad<T>& p, int64_t strip, const T* sums) {
  const LayerShape& s = p.shape;
  const int64_t width = gate_strip<T>(s), column = strip * width;
  const int64_t columns = min(width, 4 * s.H - column);
  const T *of_h = sums + s.I * width, *bias = of_h + s.P * width;
  with_grads(p, [&](const auto& grads) {
    if (grads.weight_ih)
      transpose_matrix(sums, width, s.I, columns, grads.weight_ih + column * s.I, s.I);
    if (grads.weight_hh)
      transpose_matrix(of_h, width, s.P, columns, grads.weight_hh + column * s.P, s.P);
    if (grads.bias_ih) copy_row(bias, grads.bias_ih + column, columns);
    if (grads.bias_hh) copy_row(bias, grads.bias_hh + column, columns);
  });
}

template <typename T>
INLINE bool wants_projection(const WeightGrad<T>& p) {
  return with_grads(p, [](const auto& grads) { return grads.weight_hr != nullptr; });
}

// Writes the sums of a strip of hidden, which is a vector.
template <typename T>
INLINE void write_projection_weight_grad(const WeightGrad<T>& p, int64_t strip, const T* sums) {
  const LayerShape& s = p.shape;
  const int64_t column = strip * kLanes<T>;
  with_grads(p, [&](const auto& grads) {
    for (int64_t m = 0; m < s.P; ++m) {
      store(grads.weight_hr + m * s.H + column, load(sums + m * kLanes<T>), s.H - column);
    }
  });
}

// The strips [begin, end) with a unit for bfloat16: a block of the left factor serves all of them.
// While a matrix unit multiplies for one panel, the vector units make the operands of the next.
template <typename T>
INLINE void gate_weight_grad_split(const WeightGrad<T>& p, const ChunkRows& chunk, int64_t begin,
                                   int64_t end, T* kept, T* scratch) {
  if constexpr (kUnit<T> != Bf16Unit::None) {
    const LayerShape& s = p.shape;
    const int64_t G = 4 * s.H, M = left_columns(s), stride = left_stride<T>(M);
    const int64_t panels = end - begin;
    const int64_t items = ceil_div(chunk.end - chunk.begin, kBlock) * panels;
    Arena<T> arena(scratch);
    T* rows = arena.take(kBlock * stride);
    T* left[2];
    T* right[2];
    for (int i = 0; i < 2; ++i) {
      left[i] = arena.take(transposed_size(kBlock, M, s.parts));
      right[i] = arena.take(split_panel_size(kBlock, s.parts));
    }
    const int64_t at_once = kept ? panels : split_panels_at_once(s, panels);
    T* sums = kept ? kept : arena.take(at_once * gate_sums_size<T>(s));
    const auto sums_of = [&](int64_t panel) {
      return sums + panel % at_once * gate_sums_size<T>(s);
    };
    const auto first_row = [&](int64_t item) { return chunk.begin + item / panels * kBlock; };
    const auto terms = [&](int64_t item) { return min(kBlock, chunk.end - first_row(item)); };
    const auto blocks = [&](int64_t item) { return ceil_div(terms(item), kBlockTerms); };

    SplitRows a[2];  // of a block of rows and the next one
    const auto prepare = [&](int64_t item, auto& background) {
      const int64_t n0 = first_row(item), which = item / panels % 2;
      const int64_t column = (begin + item % panels) * kPanel<T>;
      if (item % panels == 0) {
        gather_inputs(p, n0, n0 + terms(item), rows, stride, background);
        a[which] = split_transposed(rows, stride, terms(item), M, s.parts, left[which], background);
      }
      const auto pack_panel_of = [&](const auto* dz) {
        pack_split_panel(dz, G, terms(item), G - column, blocks(item), s.parts, right[item % 2],
                         background);
      };
      const GradGates<T> dz = p.grad_gates.from(n0 * G + column);
      dz.narrow ? pack_panel_of(dz.narrow) : pack_panel_of(dz.rows);
    };
    const auto advances = [&](int64_t item) {
      const int64_t of_panel = split_panel_advances(blocks(item));
      if (item % panels > 0) return of_panel;
      return of_panel + terms(item) + transposed_advances(terms(item), M, s.parts);
    };

    NoBackground none;
    if (items) prepare(0, none);
    for (int64_t item = 0; item < items; ++item) {
      const int64_t panel = item % panels;
      const bool more = item + 1 < items;
      PanelProducts<T> products({a[item / panels % 2], {}, right[item % 2], s.parts}, M,
                                sums_of(panel), item >= panels, more ? advances(item + 1) : 1);
      if (more) prepare(item + 1, products);
      products.finish();
      const bool is_last = items - item <= panels;
      if (!kept && is_last) write_gate_weight_grad(p, begin + panel, sums_of(panel));
    }
  }
}

// The strips [begin, end) without it.
template <typename T>
INLINE void gate_weight_grad(const WeightGrad<T>& p, const ChunkRows& rows, int64_t begin,
                             int64_t end, T* kept, T* scratch) {
  const LayerShape& s = p.shape;
  const NoBackground background;
  const auto gather = [&](int64_t n0, int64_t n1, T* out, int64_t stride) {
    gather_inputs(p, n0, n1, out, stride, background);
  };
  sum_of_products<T>(rows, left_columns(s), p.grad_gates.rows, 4 * s.H, begin, end, kept, scratch,
                     gather,
                     [&](int64_t strip, const T* sums) { write_gate_weight_grad(p, strip, sums); });
}

// The same for a few rows of a single step: x and h_0 are matrices as they lie.

// out [rows, C] = dz [B, rows]^T m [B, C], rows of dz G apart, up to `Most` of them at a time.
// One after the other, what is written lies in one run: six at a time, out of the cache, took three
// times as long for B 1. Two share what is read of m.
template <int Most, typename T, typename E>
INLINE void few_rows_product(const T* dz, int64_t G, int64_t rows, const Matrix<T>& m, E* out) {
  for_each_tile_of<Most>(ceil_div(rows, Most), 0, rows, [&](int64_t row, auto tile_rows) {
    constexpr int R = decltype(tile_rows)::value;
    for_each_panel(m, m.all_panels(), [&](int64_t column, const Columns<T>& columns, auto vectors) {
      constexpr int W = decltype(vectors)::value;
      Vec<T> acc[R][W];
      clear_tile<R, W, T>(acc);
      accumulate<R, W>(acc, {dz + row, 1, G}, columns, m.K);
      store_tile<R, W>(acc, out + row * m.C, m.C, column, m.C);
    });
  });
}

// Of the gates [begin, end), given what writes them of a matrix: product(m, C, out), where out is
// that of the first of them.
template <typename T, typename E, typename Product>
INLINE void step_weight_grad(const WeightGrad<T>& p, const LayerWeightGrads<E>& grads,
                             int64_t begin, int64_t end, const Product& product) {
  const LayerShape& s = p.shape;
  if (grads.weight_ih) product(p.x, s.I, grads.weight_ih + begin * s.I);
  if (grads.weight_hh && p.h0) {
    product(p.h0, s.P, grads.weight_hh + begin * s.P);
  } else if (grads.weight_hh) {
    std::memset(grads.weight_hh + begin * s.P, 0, (end - begin) * s.P * sizeof(E));
  }
  for (int64_t c = begin; c < end; c += kLanes<T>) {
    Vec<T> sum = {};
    for (int64_t b = 0; b < s.steps.B; ++b)
      sum += load(p.grad_gates.rows + b * 4 * s.H + c, end - c);
    if (grads.bias_ih) store(grads.bias_ih + c, sum, end - c);
    if (grads.bias_hh) store(grads.bias_hh + c, sum, end - c);
  }
}

template <typename T>
INLINE void few_rows_weight_grad(const WeightGrad<T>& p, int64_t begin, int64_t end) {
  const int64_t B = p.shape.steps.B, G = 4 * p.shape.H;
  with_grads(p, [&](const auto& grads) {
    step_weight_grad(p, grads, begin, end, [&](const T* m, int64_t C, auto* out) {
      constexpr int64_t reading_counts = 8;
      const T* dz = p.grad_gates.rows + begin;
      const Matrix<T> matrix = {m, B, C, false};
      B < reading_counts ? few_rows_product<1>(dz, G, end - begin, matrix, out)
                         : few_rows_product<2>(dz, G, end - begin, matrix, out);
    });
  });
}

INLINE void bfloat16_step_weight_grad(const WeightGrad<float>& p, int64_t panel0, int64_t panel1,
                                      [[maybe_unused]] float* scratch) {
  const FlushDenormals scope;
  const int64_t G = 4 * p.shape.H, begin = panel0 * kPanel<float>,
                end = min(G, panel1 * kPanel<float>);
#if defined(__AVX512BF16__)
  if (p.shape.parts) {
    const int64_t B = p.shape.steps.B;
    uint16_t* dz = reinterpret_cast<uint16_t*>(scratch);
    uint16_t* pairs = dz + ceil_div(B, 2) * pair_row(end - begin);
    pair_rows(p.grad_gates.rows + begin, G, B, end - begin, dz);
    const auto product = [&](const float* m, int64_t C, BFloat16* out) {
      pair_rows(m, C, B, C, pairs);
      // As few_rows_product, until reading m for every row takes longer than that gains.
      B <= kFewRows ? outer_dots<1>(dz, end - begin, pairs, B, C, out)
                    : outer_dots<kTileRows>(dz, end - begin, pairs, B, C, out);
    };
    return step_weight_grad(p, *p.bfloat16_grads, begin, end, product);
  }
#endif
  few_rows_weight_grad(p, begin, end);
}

template <typename T>
INLINE void projection_weight_grad(const WeightGrad<T>& p, const ChunkRows& rows, int64_t begin,
                                   int64_t end, T* kept, T* scratch) {
  const LayerShape& s = p.shape;
  const auto gather = [&](int64_t n0, int64_t n1, T* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n, out += stride) copy_row(p.grad_hidden + n * s.P, out, s.P);
  };
  sum_of_products<T>(
      rows, s.P, p.hidden, s.H, begin, end, kept, scratch, gather,
      [&](int64_t strip, const T* sums) { write_projection_weight_grad(p, strip, sums); });
}

// Where the sums of a strip of a chunk are kept; null if there is but one chunk.
template <typename T>
INLINE T* kept_sums(const WeightGrad<T>& p, int64_t chunk, int64_t strip) {
  if (weight_grad_chunks<T>(p.shape) == 1) return nullptr;
  return p.sums + chunk * all_sums<T>(p.shape) + sums_before<T>(p.shape, strip);
}

template <typename T>
void weight_grad(const WeightGrad<T>& p, int64_t chunk, int64_t strip0, int64_t strip1,
                 T* scratch) {
  const FlushDenormals scope;
  const LayerShape& s = p.shape;
  const ChunkRows rows = rows_of_chunk<T>(s, chunk);
  const int64_t of_gates = gate_strips<T>(s), gates_end = min(strip1, of_gates);
  if (strip0 < gates_end) {
    T* kept = kept_sums(p, chunk, strip0);
    if (s.parts) {
      const UnitScope unit(true);
      gate_weight_grad_split(p, rows, strip0, gates_end, kept, scratch);
    } else if (s.steps.T == 1 && s.steps.B > 0 && s.steps.B <= kFewRows) {
      few_rows_weight_grad(p, strip0 * kLanes<T>, min(4 * s.H, gates_end * kLanes<T>));
    } else {
      gate_weight_grad(p, rows, strip0, gates_end, kept, scratch);
    }
  }
  const int64_t begin = max(strip0, of_gates);
  if (begin < strip1 && wants_projection(p)) {
    projection_weight_grad(p, rows, begin - of_gates, strip1 - of_gates, kept_sums(p, chunk, begin),
                           scratch);
  }
}

template <typename T>
void add_chunks(const WeightGrad<T>& p, int64_t strip0, int64_t strip1) {
  const FlushDenormals scope;
  const LayerShape& s = p.shape;
  const int64_t chunks = weight_grad_chunks<T>(s), of_gates = gate_strips<T>(s);
  for (int64_t strip = strip0; strip < strip1; ++strip) {
    const bool of_gate = strip < of_gates;
    if (!of_gate && !wants_projection(p)) continue;
    const int64_t size = of_gate ? left_columns(s) * gate_strip<T>(s) : projection_sums_size<T>(s);
    T* sums = kept_sums(p, 0, strip);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      add_row<T>(kept_sums(p, chunk, strip), sums, size);
    }
    of_gate ? write_gate_weight_grad(p, strip, sums)
            : write_projection_weight_grad(p, strip - of_gates, sums);
  }
}

}  // namespace
}  // namespace lstm_fast
