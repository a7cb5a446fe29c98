// Products with a matrix [K, C] on the matrix unit, packed as panels of up to four vectors of
// columns: the terms that no block covers as [tail][4 vectors] float32, then the blocks (split.h).
#pragma once

#include "matmul.h"
#include "split.h"

namespace lstm_fast {
namespace {

template <typename T>
struct SplitMatrix {
  const T* data;
  int64_t K, C;
  int parts;

  INLINE int64_t tail() const { return split_tail(K); }
  INLINE int64_t panel_size() const { return tail() * kPanel<T> + split_panel_size(K, parts); }
  INLINE int64_t panels() const { return ceil_div(C, kPanel<T>); }
  INLINE int64_t size() const { return panels() * panel_size(); }
  INLINE const T* panel(int64_t i) const { return data + i * panel_size(); }
  INLINE const T* blocks(int64_t i) const { return panel(i) + tail() * kPanel<T>; }
};

// Packs m [K, C] to out, of SplitMatrix::size elements.
template <typename T>
void pack_split(const T* m, const SplitMatrix<T>& shape, T* out) {
  if constexpr (kHasMatrixUnit<T>) {
    const int64_t K = shape.K, C = shape.C, tail = shape.tail();
    for (int64_t i = 0; i < shape.panels(); ++i, out += shape.panel_size()) {
      const int64_t column = i * kPanel<T>, columns = min(kPanel<T>, C - column);
      for (int64_t k = 0; k < tail; ++k) {
        const T* row = m + (K - tail + k) * C + column;
        for (int v = 0; v < kTileVectors; ++v) {
          const int64_t c = v * kLanes<T>;
          store(out + k * kPanel<T> + c, columns > c ? load(row + c, columns - c) : Vec<T>{});
        }
      }
      pack_split_panel(m + column, C, K, columns, split_blocks(K), shape.parts,
                       out + tail * kPanel<T>);
    }
  }
}

// Calls f(row, column, accumulators) for tiles of a[begin:end, K] x b. The unit multiplies for the
// next 32 rows or panel while f runs. `scratch` has split_size(end - begin, K, parts) elements.
template <typename T, typename F>
INLINE void for_each_split_tile(int64_t begin, int64_t end, const T* a, int64_t a_row,
                                const SplitMatrix<T>& b, T* scratch, const F& f) {
  if constexpr (kHasMatrixUnit<T>) {
    const int64_t rows = end - begin, row_blocks = ceil_div(rows, kPairRows), tail = b.tail();
    const SplitRows left = split_rows(a + begin * a_row, a_row, rows, b.K, b.parts, scratch);
    alignas(64) T sums[2][kPairRows * kPanel<T>];
    const auto product = [&](int64_t item) {
      const int64_t row = item % row_blocks * kPairRows;
      return Product<T>(left.from(row), split_blocks(b.K), {}, 0, b.blocks(item / row_blocks),
                        b.parts, min(kPairRows, rows - row), sums[item % 2]);
    };
    const int64_t items = b.panels() * row_blocks;
    Product<T> first = product(0);
    while (first.steps_left()) first.advance();
    for (int64_t item = 0; item < items; ++item) {
      const int64_t first_row = begin + item % row_blocks * kPairRows;
      const int64_t last_row = min(first_row + kPairRows, end);
      const int64_t panel = item / row_blocks, column = panel * kPanel<T>;
      Product<T> next = product(min(item + 1, items - 1));
      const int64_t steps =
          item + 1 < items ? ceil_div(next.steps_left(), ceil_div(last_row - first_row, kTileRows))
                           : 0;
      with_size<kTileVectors>(panel_vectors<T>(b.C, column), [&](auto vectors) {
        constexpr int W = decltype(vectors)::value;
        for_each_tile(first_row, last_row, [&](int64_t row, auto tile_rows) {
          constexpr int R = decltype(tile_rows)::value;
          Vec<T> acc[R][W];
          load_tile<R, W, T>(acc, sums[item % 2] + (row - first_row) * kPanel<T>, kPanel<T>, 0,
                             kPanel<T>);
          accumulate<R, W, T>(acc, {a + row * a_row + b.K - tail, a_row}, b.panel(panel), tail,
                              kPanel<T>);
          for (int64_t i = 0; i < steps && next.steps_left(); ++i) next.advance();
          f(row, column, acc);
        });
      });
    }
  }
}

// y[begin:end, C] (+)= a[begin:end, K] x b, in batches of rows. `scratch` has
// split_size(kSplitRowsAtOnce, K, parts) elements.
constexpr int64_t kSplitRowsAtOnce = 4 * kPairRows;

template <typename T>
void multiply_rows_split(int64_t begin, int64_t end, const T* a, int64_t a_row,
                         const SplitMatrix<T>& b, T* y, int64_t y_row, bool add, T* scratch) {
  for (; begin < end; begin += kSplitRowsAtOnce) {
    const int64_t stop = min(end, begin + kSplitRowsAtOnce);
    for_each_split_tile(begin, stop, a, a_row, b, scratch,
                        [&](int64_t row, int64_t column, auto& acc) {
                          T* out = y + row * y_row;
                          if (add) add_tile(acc, out, y_row, column, b.C);
                          store_tile(acc, out, y_row, column, b.C);
                        });
  }
}

}  // namespace
}  // namespace lstm_fast
