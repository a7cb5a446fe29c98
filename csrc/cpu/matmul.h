// y[begin:end, C] (+)= a[begin:end, K] x a packed [K, C] matrix (pack.h)
#pragma once

#include "pack.h"

namespace lstm_fast {
namespace {

// Calls f(column, panel, Size<vectors>) for the panels of a packed [K, C] matrix.
template <typename T, typename F>
INLINE void for_each_panel(const T* packed, int64_t K, int64_t C, const F& f) {
  for (int64_t column = 0; column < C; column += kPanel<T>) {
    with_size<kTileVectors>(panel_vectors<T>(C, column),
                            [&](auto vectors) { f(column, packed + K * column, vectors); });
  }
}

template <typename T>
void multiply_rows(int64_t begin, int64_t end, Rows<T> a, const T* packed, int64_t K, int64_t C,
                   T* y, int64_t y_row, bool add) {
  for_each_panel(packed, K, C, [&](int64_t column, const T* panel, auto vectors) {
    constexpr int W = decltype(vectors)::value;
    for_each_tile(begin, end, [&](int64_t row, auto rows) {
      constexpr int R = decltype(rows)::value;
      Vec<T> acc[R][W] = {};
      if (add) load_tile<R, W, T>(acc, y + row * y_row, y_row, column, C);
      accumulate<R, W, T>(acc, {a.data + row * a.row, a.row}, panel, K);
      store_tile<R, W, T>(acc, y + row * y_row, y_row, column, C);
    });
  });
}

}  // namespace
}  // namespace lstm_fast
