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
  INLINE Sweep all_panels() const { return {0, ceil_div(C, kPanel<T>)}; }
  INLINE int64_t size() const { return all_panels().size() * panel_size(); }
  INLINE const T* panel(int64_t i) const { return data + i * panel_size(); }
  INLINE const T* blocks(int64_t i) const { return panel(i) + tail() * kPanel<T>; }
};

// Packs m [K, C] to out, of SplitMatrix::size elements.
template <typename T>
void pack_split(const T* m, const SplitMatrix<T>& shape, T* out) {
  if constexpr (kHasMatrixUnit<T>) {
    const int64_t K = shape.K, C = shape.C, tail = shape.tail();
    const NoBackground background;
    for (int64_t i = 0; i < shape.all_panels().size(); ++i, out += shape.panel_size()) {
      const int64_t column = i * kPanel<T>, columns = min(kPanel<T>, C - column);
      for (int64_t k = 0; k < tail; ++k) {
        const T* row = m + (K - tail + k) * C + column;
        for (int v = 0; v < kTileVectors; ++v) {
          const int64_t c = v * kLanes<T>;
          store(out + k * kPanel<T> + c, columns > c ? load(row + c, columns - c) : Vec<T>{});
        }
      }
      pack_split_panel(m + column, C, K, columns, split_blocks(K), shape.parts,
                       out + tail * kPanel<T>, background);
    }
  }
}

// Products of `rows` rows with each of `panels` panels, of which product(row, panel, rows, sums)
// makes one of up to kPairRows rows. Calls f(row, panel, Size<tile rows>, sums, background) for
// tiles that cover them, with the sums [tile rows][kPanel] of the tile. The unit multiplies for the
// next rows or panel while f works on up to `Most` rows at a time.
template <int Most, typename T, typename MakeProduct, typename F>
INLINE void for_each_product_tile(int64_t rows, int64_t panels, const MakeProduct& product,
                                  const F& f) {
  const int64_t row_blocks = ceil_div(rows, kPairRows), items = panels * row_blocks;
  alignas(64) T sums[2][kPairRows * kPanel<T>];
  const auto row_of = [&](int64_t item) { return item % row_blocks * kPairRows; };
  const auto start = [&](int64_t item) {
    const int64_t row = row_of(item);
    return product(row, item / row_blocks, min(kPairRows, rows - row), sums[item % 2]);
  };
  Product<T> first = start(0);
  while (first.steps_left()) first.advance();
  for (int64_t item = 0; item < items; ++item) {
    const int64_t panel = item / row_blocks, begin = row_of(item);
    const int64_t end = min(begin + kPairRows, rows);
    const auto tile = [&](int64_t row, auto size, const auto& background) {
      f(row, panel, size, sums[item % 2] + (row - begin) * kPanel<T>, background);
    };
    Product<T> next = start(min(item + 1, items - 1));
    int64_t row = begin, steps = item + 1 < items ? next.steps_left() : 0;
    if (steps && next.has_pieces()) {
      // As many rows a step as use up both at the same time.
      with_size<Most>(ceil_div(end - begin, steps), [&](auto size) {
        constexpr int R = decltype(size)::value;
        for (; row + R <= end && next.steps_left(); row += R) {
          tile(row, size, typename Product<T>::Step{next});
        }
      });
      while (next.steps_left()) next.advance();
      steps = 0;
    }
    const int64_t steps_a_tile = ceil_div(steps, ceil_div(end - begin, kTileRows));
    for_each_tile<kTileVectors>(row, end, [&](int64_t r, auto size) {
      for (int64_t i = 0; i < steps_a_tile && next.steps_left(); ++i) next.advance();
      tile(r, size, NoBackground{});
    });
  }
}

// Calls f(row, column, accumulators, background) for tiles of a[begin:end, K] x the panels of b.
// `scratch` has split_size(end - begin, K, parts) elements.
template <typename T, typename F>
INLINE void for_each_split_tile(int64_t begin, int64_t end, const Rows<T>& a,
                                const SplitMatrix<T>& b, const Sweep& panels, T* scratch,
                                const F& f) {
  if constexpr (kHasMatrixUnit<T>) {
    const int64_t tail = b.tail();
    const SplitRows left =
        split_rows(a.data + begin * a.row, a.row, end - begin, b.K, b.parts, scratch);
    const auto product = [&](int64_t row, int64_t panel, int64_t rows, T* sums) {
      return Product<T>(left.from(row), split_blocks(b.K), {}, 0, b.blocks(panels[panel]), b.parts,
                        rows, sums);
    };
    const auto tile = [&](int64_t row, int64_t i, auto tile_rows, const T* sums,
                          const auto& background) {
      constexpr int R = decltype(tile_rows)::value;
      row += begin;
      const int64_t panel = panels[i], column = panel * kPanel<T>;
      with_size<kTileVectors>(panel_vectors<T>(b.C, column), [&](auto vectors) {
        constexpr int W = decltype(vectors)::value;
        Vec<T> acc[R][W];
        load_tile<R, W, T>(acc, sums, kPanel<T>, 0, kPanel<T>);
        accumulate<R, W, T>(acc, {a.data + row * a.row + b.K - tail, a.row}, b.panel(panel), tail,
                            kPanel<T>);
        f(row, column, acc, background);
      });
    };
    for_each_product_tile<4, T>(end - begin, panels.size(), product, tile);
  }
}

// y[begin:end, C] (+)= a[begin:end, K] x panels of b, in batches of rows. `scratch` has
// split_size(kSplitRowsAtOnce, K, parts) elements, or split_size(end - begin, K, parts) if fewer.
constexpr int64_t kSplitRowsAtOnce = 4 * kPairRows;

template <typename T>
void multiply_rows_split(int64_t begin, int64_t end, const T* a, int64_t a_row,
                         const SplitMatrix<T>& b, T* y, int64_t y_row, bool add,
                         const Sweep& panels, T* scratch) {
  for (; begin < end; begin += kSplitRowsAtOnce) {
    const int64_t stop = min(end, begin + kSplitRowsAtOnce);
    for_each_split_tile(begin, stop, Rows<T>{a, a_row}, b, panels, scratch,
                        [&](int64_t row, int64_t column, auto& acc, const auto& background) {
                          T* out = y + row * y_row;
                          if (add) add_tile(acc, out, y_row, column, b.C);
                          store_tile(acc, out, y_row, column, b.C);
                          background.advance(0, 1);
                        });
  }
}

}  // namespace
}  // namespace lstm_fast
