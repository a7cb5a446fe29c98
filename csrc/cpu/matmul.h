// y[begin:end, C] (+)= a[begin:end, K] x b[K, C], with b packed (pack.h) or as it is, of all
// columns or of some panels. b may be bfloat16.
#pragma once

#include "pack.h"
#include "tasks.h"

namespace lstm_fast {
namespace {

// A matrix [K, C] to multiply with. Packed or plain makes no difference to a bit of the result.
template <typename E>
struct Matrix {
  const E* data;
  int64_t K, C;
  bool packed;

  INLINE Sweep all_panels() const { return {0, ceil_div(C, kPanel<Computed<E>>)}; }
};

// Calls f(column, Columns, Size<vectors>) for panels of columns, which are null if m has no data.
template <typename E, typename F>
INLINE void for_each_panel(const Matrix<E>& m, const Sweep& panels, const F& f) {
  using T = Computed<E>;
  for (int64_t i = 0; i < panels.size(); ++i) {
    const int64_t column = panels[i] * kPanel<T>;
    const int64_t vectors = panel_vectors<T>(m.C, column), width = vectors * kLanes<T>;
    const Columns<E> columns = m.packed ? Columns<E>{offset(m.data, m.K * column), width, width}
                                        : Columns<E>{offset(m.data, column), m.C, m.C - column};
    with_size<kTileVectors>(vectors, [&](auto size) { f(column, columns, size); });
  }
}

// Rows of a plain matrix are far apart: so many at a time are read through all columns.
constexpr int64_t kPlainRowsAtOnce = 32;

template <typename E>
void multiply_some_rows(int64_t begin, int64_t end, Rows<Computed<E>> a, const Matrix<E>& b,
                        Computed<E>* y, int64_t y_row, bool add, const Sweep& panels) {
  const int64_t step = b.packed ? b.K : kPlainRowsAtOnce;
  for (int64_t k = 0; k < b.K; k += step) {
    const int64_t K = min(step, b.K - k);
    const Matrix<E> some = b.packed ? b : Matrix<E>{b.data + k * b.C, K, b.C, false};
    for_each_panel(some, panels, [&](int64_t column, const Columns<E>& columns, auto vectors) {
      constexpr int W = decltype(vectors)::value;
      for_each_tile<W>(begin, end, [&](int64_t row, auto rows) {
        constexpr int R = decltype(rows)::value;
        Vec<Computed<E>> acc[R][W];
        if (add || k) {
          load_tile<R, W>(acc, y + row * y_row, y_row, column, b.C);
        } else {
          clear_tile<R, W, Computed<E>>(acc);
        }
        accumulate<R, W>(acc, {a.data + row * a.row + k * a.step, a.row, a.step}, columns, K);
        store_tile<R, W>(acc, y + row * y_row, y_row, column, b.C);
      });
    });
  }
}

// Rows of `a` stay in the second cache while panel after panel is multiplied with them.
template <typename E>
void multiply_rows(int64_t begin, int64_t end, Rows<Computed<E>> a, const Matrix<E>& b,
                   Computed<E>* y, int64_t y_row, bool add, const Sweep& panels) {
  constexpr int64_t bytes = 1 << 18, fewest = 48;
  constexpr int64_t element_bytes = sizeof(Computed<E>);
  const int64_t rows = max(fewest, bytes / (b.K * element_bytes + 1));
  for (; begin < end; begin += rows) {
    multiply_some_rows(begin, min(end, begin + rows), a, b, y, y_row, add, panels);
  }
}

template <typename E>
void multiply_rows(int64_t begin, int64_t end, Rows<Computed<E>> a, const Matrix<E>& b,
                   Computed<E>* y, int64_t y_row, bool add) {
  multiply_rows(begin, end, a, b, y, y_row, add, b.all_panels());
}

}  // namespace
}  // namespace lstm_fast
