// Products of a single step of a bfloat16 module by dot products of AVX-512 (vdpbf16ps). Torch's
// weights are read, and their gradients written, as they lie; x, h and the gradients of gates are
// narrowed to bfloat16. An instruction takes two terms where a float32 multiply-add takes one, and
// nothing has to be widened.
#pragma once

#include "split_matmul.h"

namespace lstm_fast {
namespace {

#if defined(__AVX512BF16__)

// Of the next n terms, those that a vector holds.
INLINE __mmask32 first_terms(int64_t n) {
  return n >= kBlockTerms ? ~__mmask32(0) : n > 0 ? (__mmask32(1) << n) - 1 : 0;
}
INLINE PartVec load_terms(const BFloat16* p, int64_t n) {
  return _mm512_maskz_loadu_epi16(first_terms(n), p);
}

INLINE PartVec narrow(Vec<float> low, Vec<float> high) {
  PartVec parts[3];
  split(low, high, 1, parts);
  return parts[0];
}

// acc[R][W] += x y, of so many pairs: those of row r at x.data + r * x.row, x.step apart, times W
// vectors of pairs, y_step apart.
template <int R, int W>
INLINE void accumulate_dots(Vec<float> (&acc)[R][W], Rows<uint16_t> x, const uint16_t* y,
                            int64_t y_step, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i, y += y_step) {
    PartVec columns[W];
    for (int w = 0; w < W; ++w) columns[w] = _mm512_loadu_si512(y + w * kBlockTerms);
    for (int r = 0; r < R; ++r) {
      const PartVec pair = broadcast_pair(x.data + r * x.row + i * x.step);
      for (int w = 0; w < W; ++w) acc[r][w] = dot(pair, columns[w], acc[r][w]);
    }
  }
}

// --- Operands from float32 matrices [rows, K] with rows `stride` apart.

// Rows of numbers, zeros from K on.
INLINE int64_t narrow_row(int64_t K) { return ceil_div(K, kBlockTerms) * kBlockTerms; }
INLINE void narrow_rows(const float* m, int64_t stride, int64_t rows, int64_t K, uint16_t* out) {
  for (int64_t r = 0; r < rows; ++r, m += stride, out += narrow_row(K)) {
    for (int64_t k = 0; k < K; k += kBlockTerms) {
      store_parts(out + k, narrow(load(m + k, K - k), load_some(m + k + 16, K - k - 16)));
    }
  }
}

// Two rows to a row of pairs, [ceil(rows / 2)][16-multiple of K][2].
INLINE int64_t pair_row(int64_t K) { return ceil_div(K, 16) * 32; }
INLINE void pair_rows(const float* m, int64_t stride, int64_t rows, int64_t K, uint16_t* out) {
  for (int64_t r = 0; r < rows; r += 2, m += 2 * stride, out += pair_row(K)) {
    for (int64_t k = 0; k < K; k += 16) {
      const int64_t left = r + 1 < rows ? K - k : 0;
      store_parts(out + 2 * k,
                  pair_up(narrow(load(m + k, K - k), load_some(m + stride + k, left))));
    }
  }
}

// --- Forward: rows times rows.

// acc[r][j] += a[row r][0:K] * w[row j][0:K], lane by lane, with `a` as narrow_rows writes it. Rows
// of w are w_row apart.
template <int R, int J>
INLINE void accumulate_dots_of_rows(Vec<float> (&acc)[R][J], const uint16_t* a, const BFloat16* w,
                                    int64_t w_row, int64_t K) {
  for (int64_t k = 0; k < K; k += kBlockTerms) {
    PartVec weights[J];
    for (int j = 0; j < J; ++j) weights[j] = load_terms(w + j * w_row + k, K - k);
    for (int r = 0; r < R; ++r) {
      const PartVec x = _mm512_loadu_si512(a + r * narrow_row(K) + k);
      for (int j = 0; j < J; ++j) acc[r][j] = dot(x, weights[j], acc[r][j]);
    }
  }
}

// --- Gradients of inputs: y [B, C] (+)= a [B, G] w [G, C], with `a` as narrow_rows writes it.

// 32 columns of two rows of w become two vectors of pairs. Of each eight columns, the first four
// are in one and the others in the other; sums change to that order and back.
INLINE void to_halves(Vec<float>& low, Vec<float>& high) {
  const Vec<float> a = low, b = high;
  low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  high = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
INLINE void from_halves(Vec<float>& low, Vec<float>& high) {
  const Vec<float> a = low, b = high;
  low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  high =
      __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
}

// Rows of w are taken so many at a time through all columns, since they are far apart.
constexpr int64_t kDotRowsAtOnce = 128;

// Asks for some rows of w ahead of their use, of each the part that some panels read, in the order
// of addresses and into the second cache, as packing does (pack.h).
struct RowsAhead {
  const BFloat16* w;
  int64_t stride, rows, panels;
  int64_t next;  // panel of a row, all rows in turn

  INLINE void advance() {
    const int64_t row = next / panels, panel = next % panels;
    ++next;
    if (row >= rows) return;
    const BFloat16* part = w + row * stride + panel * kPanel<float>;
    __builtin_prefetch(part, 0, 2);
    __builtin_prefetch(part + kPanel<float> / 2, 0, 2);
  }
};

// Some rows of w, of W vectors of columns: [rows / 2][W][16][2], zero past the last column.
template <int W>
INLINE void pair_weights(const BFloat16* w, int64_t stride, int64_t rows, int64_t columns,
                         uint16_t* out, RowsAhead& ahead) {
  for (int64_t g = 0; g < rows; g += 2, w += 2 * stride) {
    ahead.advance(), ahead.advance();
    for (int v = 0; v < W; v += 2, out += 2 * kBlockTerms) {
      const PartVec upper = load_terms(w + v * 16, columns - v * 16);
      const PartVec lower = load_terms(w + stride + v * 16, columns - v * 16);
      store_parts(out, _mm512_unpacklo_epi16(upper, lower));
      store_parts(out + kBlockTerms, _mm512_unpackhi_epi16(upper, lower));
    }
  }
}

// Of R rows of y that are C apart, and as many columns as there are of W vectors; with so many
// pairs of each row of `a`.
template <int R, int W>
INLINE void grad_tile(const uint16_t* a, int64_t a_row, const uint16_t* w, int64_t pairs, bool add,
                      float* y, int64_t C, int64_t columns) {
  Vec<float> acc[R][W];
  clear_tile<R, W, float>(acc);
  for (int r = 0; add && r < R; ++r) {
    for (int v = 0; v < W; v += 2) {
      const int64_t c = v * 16;
      acc[r][v] = load(y + r * C + c, columns - c);
      acc[r][v + 1] = load_some(y + r * C + c + 16, columns - c - 16);
      to_halves(acc[r][v], acc[r][v + 1]);
    }
  }
  accumulate_dots(acc, {a, a_row, 2}, w, W * kBlockTerms, pairs);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < W; v += 2) {
      const int64_t c = v * 16;
      from_halves(acc[r][v], acc[r][v + 1]);
      store(y + r * C + c, acc[r][v], columns - c);
      if (columns - c > 16) store(y + r * C + c + 16, acc[r][v + 1], columns - c - 16);
    }
  }
}

INLINE void step_grad_dots(const StepGrad<float, BFloat16>& p, int64_t panel0, int64_t panel1,
                           float* scratch) {
  uint16_t* a = reinterpret_cast<uint16_t*>(scratch);
  const int64_t a_row = narrow_row(p.G);
  narrow_rows(p.grad_gates, p.G, p.B, p.G, a);
  alignas(64) uint16_t weights[kDotRowsAtOnce / 2 * kTileVectors * kBlockTerms];
  for (int64_t g = 0; g < p.G; g += kDotRowsAtOnce) {
    const int64_t rows = min(kDotRowsAtOnce, p.G - g);
    RowsAhead ahead = {p.w + (g + rows) * p.C + panel0 * kPanel<float>, p.C, p.G - g - rows,
                       panel1 - panel0, 0};
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t column = panel * kPanel<float>, columns = p.C - column;
      with_size<2>(min(2, ceil_div(columns, kBlockTerms)), [&](auto halves) {
        constexpr int W = 2 * decltype(halves)::value;
        pair_weights<W>(p.w + g * p.C + column, p.C, rows, columns, weights, ahead);
        for_each_tile<W>(0, p.B, [&](int64_t b, auto tile_rows) {
          grad_tile<decltype(tile_rows)::value, W>(a + b * a_row + g, a_row, weights, rows / 2,
                                                   p.add || g, p.y + b * p.C + column, p.C,
                                                   columns);
        });
      });
    }
  }
}

// --- Gradients of weights: out [rows, C] = a [B, rows]^T m [B, C], both as pair_rows writes them.

template <int R, int W>
INLINE void store_narrow(const Vec<float> (&acc)[R][W], BFloat16* out, int64_t column, int64_t C) {
  unrolled<R*((W + 1) / 2)>([&](auto i) {
    constexpr int r = i % R, w = i / R * 2;
    const int64_t c = column + w * 16;
    Vec<float> high = {};
    if constexpr (w + 1 < W) high = acc[r][w + 1];
    _mm512_mask_storeu_epi16(out + r * C + c, first_terms(C - c), narrow(acc[r][w], high));
  });
}

// Not inlined: GCC 12 keeps less in registers where one function has it for both numbers of rows,
// which takes 1.2 to 1.7 times as long.
template <int Rows>
__attribute__((noinline)) void outer_dots(const uint16_t* a, int64_t rows, const uint16_t* m,
                                          int64_t B, int64_t C, BFloat16* out) {
  for_each_tile_of<Rows>(ceil_div(rows, Rows), 0, rows, [&](int64_t row, auto tile_rows) {
    constexpr int R = decltype(tile_rows)::value;
    for (int64_t column = 0; column < C; column += kPanel<float>) {
      with_size<kTileVectors>(panel_vectors<float>(C, column), [&](auto vectors) {
        constexpr int W = decltype(vectors)::value;
        Vec<float> acc[R][W];
        clear_tile<R, W, float>(acc);
        accumulate_dots(acc, {a + 2 * row, 2, pair_row(rows)}, m + 2 * column, pair_row(C),
                        ceil_div(B, 2));
        store_narrow<R, W>(acc, out + row * C, column, C);
      });
    }
  });
}

#endif

// Floats of scratch that a single step needs, forward or backward.
INLINE int64_t step_scratch([[maybe_unused]] const LayerShape& s) {
#if defined(__AVX512BF16__)
  const int64_t B = s.steps.B, G = 4 * s.H;
  const int64_t forward = B * (narrow_row(s.P) + narrow_row(s.I));
  const int64_t of_weights = ceil_div(B, 2) * (pair_row(G) + pair_row(max(s.I, s.P)));
  return max(forward, max(B * narrow_row(G), of_weights)) / 2;
#else
  return 0;
#endif
}

}  // namespace
}  // namespace lstm_fast
