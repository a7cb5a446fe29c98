// Matrices laid out for the register tile (tile.h): panels of kPanel columns, [K][width] each. All
// shares of a matrix together write it.
#pragma once

#include "tasks.h"
#include "tile.h"

namespace lstm_fast {
namespace {

// C elements; zeros if `from` is null.
template <typename T, typename E>
INLINE void copy_row(const T* from, E* to, int64_t C) {
  for (int64_t c = 0; c < C; c += kLanes<T>)
    store(to + c, from ? load(from + c, C - c) : Vec<T>{}, C - c);
}

// Rows [begin, end) of a contiguous matrix with C columns, from rows `from_stride` apart; zeros if
// `from` is null.
template <typename T>
INLINE void copy_rows(int64_t begin, int64_t end, const T* from, int64_t from_stride, T* to,
                      int64_t C) {
  for (int64_t b = begin; b < end; ++b)
    copy_row(from ? from + b * from_stride : nullptr, to + b * C, C);
}

// Adds C elements.
template <typename T>
INLINE void add_row(const T* from, T* to, int64_t C) {
  for (int64_t c = 0; c < C; c += kLanes<T>)
    store(to + c, load(to + c, C - c) + load(from + c, C - c), C - c);
}

// Elements of a packed [K, C] matrix.
template <typename T>
INLINE int64_t packed_size(int64_t K, int64_t C) {
  return K * ceil_div(C, kLanes<T>) * kLanes<T>;
}

// Vectors of the panel that begins at `column`.
template <typename T>
INLINE int64_t panel_vectors(int64_t C, int64_t column) {
  return min(kTileVectors, ceil_div(C - column, kLanes<T>));
}

// Rows [row0, row1) of the panel of m [K, C] (row stride `stride`) that begins at `column`, to out
// [rows][width].
template <typename E, typename T = Computed<E>>
INLINE void pack_panel(const E* m, int64_t stride, int64_t row0, int64_t row1, int64_t C,
                       int64_t column, T* out) {
  constexpr int lanes = kLanes<T>;
  const int64_t vectors = panel_vectors<T>(C, column);
  for (int64_t k = row0; k < row1; ++k) {
    const E* row = m + k * stride;
    for (int64_t w = 0; w < vectors; ++w, out += lanes) {
      const int64_t c = column + w * lanes;
      store(out, load(row + c, C - c));
    }
  }
}

// Packs m [K, C], a share of its panels. Row by row, as memory has them: where no cache holds them,
// a core's prefetchers bring them in time.
template <typename E, typename T = Computed<E>>
void pack_columns(const E* m, int64_t K, int64_t C, const Share& share, T* out) {
  const int64_t panels = ceil_div(C, kPanel<T>), last = min(C, share.end(panels) * kPanel<T>);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t column = share.begin(panels) * kPanel<T>; column < last; column += kPanel<T>) {
      const int64_t width = panel_vectors<T>(C, column) * kLanes<T>;
      pack_panel(m, C, k, k + 1, C, column, out + K * column + k * width);
    }
  }
}

// Asks for memory ahead of its use, in the order of addresses, which a core's own prefetchers
// follow and go on with: so much at a time as a square of kLanes x kLanes elements takes.
template <typename E>
struct Ahead {
  const E* next;  // null: for nothing

  INLINE void advance() {
    constexpr int lanes = kLanes<Computed<E>>, line = 64 / sizeof(E), elements = lanes * lanes;
    if (!next) return;
    // Into the second cache: much of it is used too late for the first.
    for (int i = 0; i < elements; i += line) __builtin_prefetch(next + i, 0, 2);
    next += elements;
  }
};

// Up to kLanes columns of the transpose of m [rows, K] (row stride `stride`): out[k * step + lane]
// = m[lane][k] for k < K and lane < lanes_out. Lanes past `rows` are zero.
template <typename E, typename O, typename T = Computed<E>>
INLINE void transpose_columns(const E* m, int64_t stride, int64_t rows, int64_t K, O* out,
                              int64_t step, int64_t lanes_out, Ahead<E>& ahead) {
  constexpr int lanes = kLanes<T>;
  if (K == 1 && stride == 1) return store(out, load(m, rows), lanes_out);  // the usual input
  int64_t k = 0;
  // Whole squares, without a test for each row.
  if (rows >= lanes && lanes_out >= lanes) {
    for (; k + lanes <= K; k += lanes) {
      Vec<T> square[lanes];
      for (int i = 0; i < lanes; ++i) square[i] = load(m + i * stride + k);
      ahead.advance();
      transpose<T>(square);
      for (int i = 0; i < lanes; ++i) store(out + (k + i) * step, square[i]);
    }
  }
  for (; k < K; k += lanes) {
    Vec<T> square[lanes];
    for (int i = 0; i < lanes; ++i) {
      square[i] = i < rows ? load(m + i * stride + k, K - k) : Vec<T>{};
    }
    transpose<T>(square);
    for (int i = 0; i < lanes && k + i < K; ++i) store(out + (k + i) * step, square[i], lanes_out);
  }
}

template <typename E, typename O>
INLINE void transpose_columns(const E* m, int64_t stride, int64_t rows, int64_t K, O* out,
                              int64_t step, int64_t lanes_out) {
  Ahead<E> nothing = {};
  transpose_columns(m, stride, rows, K, out, step, lanes_out, nothing);
}

// out[C, R] = m[R, C]^T, with rows of m `stride` and of out `out_stride` apart.
template <typename T, typename O>
INLINE void transpose_matrix(const T* m, int64_t stride, int64_t R, int64_t C, O* out,
                             int64_t out_stride) {
  for (int64_t r = 0; r < R; r += kLanes<T>) {
    transpose_columns(m + r * stride, stride, R - r, C, out + r, out_stride, R - r);
  }
}

// Packs the transpose of m [C, K].
template <typename E, typename T = Computed<E>>
void pack_transposed_columns(const E* m, int64_t K, int64_t C, const Share& share, T* out) {
  constexpr int lanes = kLanes<T>;
  const int64_t vectors = ceil_div(C, lanes);
  for (int64_t v = share.begin(vectors); v < share.end(vectors); ++v) {
    const int64_t column = v * lanes;
    const int64_t panel = column / kPanel<T> * kPanel<T>;
    const int64_t width = panel_vectors<T>(C, panel) * lanes;
    transpose_columns(m + column * K, K, C - column, K, out + K * panel + (column - panel), width,
                      lanes);
  }
}

}  // namespace
}  // namespace lstm_fast
