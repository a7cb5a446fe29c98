// The register tile under every matrix product of the library:
//
//   acc[R][W] += a[R, K] * b[K, W vectors]
//
// Every element is summed in the order of k, one rounding (fma) a term, whatever R, W and the
// blocking around it are. That makes results independent of the other rows of a batch and of the
// number of threads.
#pragma once

#include <type_traits>

#include "halves.h"

namespace lstm_fast {
namespace {

// Columns of a full panel: a [K, C] matrix is packed as ceil(C / kPanel) panels, each [K][width]
// with width kPanel but for the last, whose width is its columns rounded up to whole vectors;
// padding is zero.
template <typename T>
constexpr int64_t kPanel = kTileVectors * kLanes<T>;

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// The panels of a matrix [first, last) that are gone through, from the first one up or from the
// last one down. Steps that multiply with the same weights alternate: where a cache does not hold
// all of them, it holds those that the step before read last.
struct Sweep {
  int64_t first, last;
  bool down = false;

  INLINE int64_t size() const { return last - first; }
  INLINE int64_t operator[](int64_t i) const { return down ? last - 1 - i : first + i; }
};

// A matrix operand whose rows are tile rows: element (r, k) at data[r * row + k * step].
template <typename T>
struct Rows {
  const T* data;
  int64_t row;
  int64_t step = 1;
};

// Asks for C elements of a row that will be read or written soon; they need not exist.
template <typename T>
INLINE void prefetch_row(const T* row, int64_t C) {
  for (int64_t c = 0; c < C; c += 64 / sizeof(T)) __builtin_prefetch(row + c);
  __builtin_prefetch(row + C - 1);  // in a line of its own if the row begins within one
}

// W vectors of columns of a matrix of elements E: row k begins at data + k * step, and has `last`
// columns, if below W * kLanes. Reading on is harmless, up to the end of the last row.
template <typename E>
struct Columns {
  const E* data;
  int64_t step;
  int64_t last;
};

template <int N>
using Size = std::integral_constant<int, N>;

// Calls f(Size<0>), ..., f(Size<N - 1>).
template <int N, typename F>
INLINE void unrolled(const F& f) {
  if constexpr (N > 0) {
    unrolled<N - 1>(f);
    f(Size<N - 1>{});
  }
}

// Not by an initialiser: GCC makes a string instruction of it, which takes dozens of cycles.
template <int R, int W, typename T>
INLINE void clear_tile(Vec<T> (&acc)[R][W]) {
  unrolled<R * W>([&](auto i) { acc[i / W][i % W] = Vec<T>{}; });
}

template <int R, int W, typename E>
INLINE void accumulate(Vec<Computed<E>> (&acc)[R][W], Rows<Computed<E>> a, const E* b, int64_t K,
                       int64_t step = W * kLanes<Computed<E>>);

// The columns of the vectors from `Begin` on.
template <int Begin, int Vectors, int R, int W, typename E>
INLINE void accumulate_columns(Vec<Computed<E>> (&acc)[R][W], Rows<Computed<E>> a, const E* b,
                               int64_t K, int64_t step) {
  using T = Computed<E>;
  Vec<T> part[R][Vectors];
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < Vectors; ++w) part[r][w] = acc[r][Begin + w];
  }
  accumulate<R, Vectors>(part, a, b + Begin * kLanes<T>, K, step);
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < Vectors; ++w) acc[r][Begin + w] = part[r][w];
  }
}

template <int R, int W, typename E>
INLINE void accumulate(Vec<Computed<E>> (&acc)[R][W], Rows<Computed<E>> a, const E* b, int64_t K,
                       int64_t step) {
  using T = Computed<E>;
  if constexpr (R * W > kTileSums) {
    accumulate_columns<0, W / 2>(acc, a, b, K, step);
    accumulate_columns<W / 2, W - W / 2>(acc, a, b, K, step);
  } else {
    constexpr int lanes = kLanes<T>;
    const T* a_row[R];
    for (int r = 0; r < R; ++r) a_row[r] = a.data + r * a.row;
    // Unrolled, since a core cannot foresee the end of a loop of dozens of short rounds.
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k, b += step) {
      // The operand with fewer vectors stays in registers.
      if constexpr (R < W) {
        Vec<T> x[R];
        for (int r = 0; r < R; ++r) x[r] = broadcast(a_row[r][k * a.step]);
        for (int w = 0; w < W; ++w) {
          const Vec<T> y = load(b + w * lanes);
          for (int r = 0; r < R; ++r) acc[r][w] = fma(x[r], y, acc[r][w]);
        }
      } else {
        Vec<T> y[W];
        for (int w = 0; w < W; ++w) y[w] = load(b + w * lanes);
        for (int r = 0; r < R; ++r) {
          const Vec<T> x = broadcast(a_row[r][k * a.step]);
          for (int w = 0; w < W; ++w) acc[r][w] = fma(x, y[w], acc[r][w]);
        }
      }
    }
  }
}

template <int R, int W, typename E>
INLINE void accumulate(Vec<Computed<E>> (&acc)[R][W], Rows<Computed<E>> a, Columns<E> b,
                       int64_t K) {
  using T = Computed<E>;
  constexpr int lanes = kLanes<T>;
  // Rows near the end, from which a whole read would go on beyond the matrix.
  const int64_t beyond = W * lanes - b.last;
  const int64_t masked = beyond > 0 ? min(K, ceil_div(beyond, b.step)) : 0;
  accumulate<R, W>(acc, a, b.data, K - masked, b.step);
  for (int64_t k = K - masked; k < K; ++k) {
    for (int w = 0; w < W; ++w) {
      const Vec<T> y = load(b.data + k * b.step + w * lanes, b.last - w * lanes);
      for (int r = 0; r < R; ++r) {
        acc[r][w] = fma(broadcast(a.data[r * a.row + k * a.step]), y, acc[r][w]);
      }
    }
  }
}

// Rows of a tile of up to W vectors, from columns [column, C) of a matrix with rows `stride` apart.
template <int R, int W, typename E>
INLINE void load_tile(Vec<Computed<E>> (&acc)[R][W], const E* m, int64_t stride, int64_t column,
                      int64_t C) {
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) {
      const int64_t c = column + w * kLanes<Computed<E>>;
      acc[r][w] = load(m + r * stride + c, C - c);
    }
  }
}

template <int R, int W, typename T>
INLINE void add_tile(Vec<T> (&acc)[R][W], const T* m, int64_t stride, int64_t column, int64_t C) {
  Vec<T> other[R][W];
  load_tile<R, W, T>(other, m, stride, column, C);
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) acc[r][w] += other[r][w];
  }
}

template <int R, int W, typename E>
INLINE void store_tile(const Vec<Computed<E>> (&acc)[R][W], E* m, int64_t stride, int64_t column,
                       int64_t C) {
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) {
      const int64_t c = column + w * kLanes<Computed<E>>;
      store(m + r * stride + c, acc[r][w], C - c);
    }
  }
}

// Calls f(Size<n>) for the n in 1..Most that equals `n`.
template <int Most, typename F>
INLINE void with_size(int64_t n, const F& f) {
  if constexpr (Most > 1) {
    if (n < Most) return with_size<Most - 1>(n, f);
  }
  f(Size<Most>{});
}

// Calls f(first row, Size<rows>) for tiles of up to Most rows that cover the rows [begin, end), so
// many tiles as are given, as even as they can be in multiples of some rows.
template <int Most, int Multiple = 1, typename F>
INLINE void for_each_tile_of(int64_t tiles, int64_t begin, int64_t end, const F& f) {
  for (; tiles > 0; --tiles) {
    const int64_t even = ceil_div(end - begin, tiles * Multiple) * Multiple;
    const int64_t rows = Multiple > 1 ? min(even, end - begin) : even;
    with_size<Most>(rows, [&](auto size) { f(begin, size); });
    begin += rows;
  }
}

// The same for tiles of so many vectors of columns. Where the registers do not hold the sums of
// kTileRows rows, tiles have at least as many as they do hold: half as many would read the other
// operand twice as often.
template <int Vectors, typename F>
INLINE void for_each_tile(int64_t begin, int64_t end, const F& f) {
  constexpr bool fits = kTileRows * Vectors <= kTileSums;
  constexpr int held = kTileSums / kTileVectors;
  const int64_t all = end - begin;
  const int64_t tiles = fits ? ceil_div(all, kTileRows) : max(all > 0, all / held);
  for_each_tile_of<fits ? kTileRows : 2 * held - 1>(tiles, begin, end, f);
}

}  // namespace
}  // namespace lstm_fast
