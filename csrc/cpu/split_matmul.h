// Products with a matrix [K, C] on a unit for bfloat16, packed as panels of up to four vectors of
// columns: the terms that no block covers as [tail][4 vectors] float32, then the blocks (split.h).
#pragma once

#include "kernels.h"
#include "matmul.h"
#if defined(__AMX_BF16__)
#include "matrix_unit.h"
#elif defined(__AVX512BF16__)
#include "dot_products.h"
#else
#include "split.h"
#endif

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

// Packs a share of the panels of m [K, C] to out, of SplitMatrix::size elements.
template <typename E, typename T = Computed<E>>
void pack_split(const E* m, const SplitMatrix<T>& shape, const Share& share, T* out) {
  if constexpr (kUnit<T> != Bf16Unit::None) {
    const int64_t K = shape.K, C = shape.C, tail = shape.tail(), panels = shape.all_panels().size();
    const NoBackground background;
    for (int64_t i = share.begin(panels); i < share.end(panels); ++i) {
      T* panel = out + i * shape.panel_size();
      const int64_t column = i * kPanel<T>, columns = min(kPanel<T>, C - column);
      for (int64_t k = 0; k < tail; ++k) {
        const E* row = m + (K - tail + k) * C + column;
        for (int v = 0; v < kTileVectors; ++v) {
          const int64_t c = v * kLanes<T>;
          store(panel + k * kPanel<T> + c, columns > c ? load(row + c, columns - c) : Vec<T>{});
        }
      }
      pack_split_panel(m + column, C, K, columns, split_blocks(K), shape.parts,
                       panel + tail * kPanel<T>, background);
    }
  }
}

// The left operand a[begin:end, K], in `scratch` of split_size(end - begin, K, parts) elements.
template <typename T>
INLINE SplitRows split_operand(const Rows<T>& a, int64_t begin, int64_t end, int64_t K, int parts,
                               T* scratch) {
  return split_rows(a.data + begin * a.row, a.row, end - begin, K, parts, scratch);
}
// Of dot products, as it lies.
template <typename T>
INLINE SplitRows split_operand(const Rows<BFloat16>& a, int64_t begin, int64_t, int64_t K, int,
                               T*) {
  return {&a.data[begin * a.row].bits, a.row, 0, kBlockTerms, K};
}

// Calls f(row, column, accumulators, background) for tiles of a[begin:end, K] x the panels of b.
// `scratch` is as for split_operand.
template <typename E, typename T, typename F>
INLINE void for_each_split_tile(int64_t begin, int64_t end, const Rows<E>& a,
                                const SplitMatrix<T>& b, const Sweep& panels, T* scratch,
                                const F& f) {
  if constexpr (kUnit<T> != Bf16Unit::None) {
    const int64_t tail = b.tail();
    const SplitRows left = split_operand(a, begin, end, b.K, b.parts, scratch);
    const auto operands = [&](int64_t i) {
      return SplitOperands<T>{left, {}, b.blocks(panels[i]), b.parts};
    };
    const auto tile = [&](int64_t row, int64_t i, auto tile_rows, const auto& sums,
                          const auto& background) {
      constexpr int R = decltype(tile_rows)::value;
      row += begin;
      const int64_t panel = panels[i], column = panel * kPanel<T>;
      with_size<kTileVectors>(panel_vectors<T>(b.C, column), [&](auto vectors) {
        constexpr int W = decltype(vectors)::value;
        Vec<T> acc[R][W];
        load_sums(acc, sums);
        if constexpr (std::is_same_v<E, T>) {
          accumulate<R, W, T>(acc, {a.data + row * a.row + b.K - tail, a.row}, b.panel(panel), tail,
                              kPanel<T>);
        }
        f(row, column, acc, background);
      });
    };
    for_each_product_tile<4, T>(end - begin, panels.size(), operands, tile);
  }
}

// y[begin:end, C] (+)= a[begin:end, K] x panels of b, in batches of rows. `scratch` has
// split_size(kSplitRowsAtOnce, K, parts) elements, or split_size(end - begin, K, parts) if fewer.
constexpr int64_t kSplitRowsAtOnce = 4 * kPairRows;

template <typename E, typename T>
void multiply_rows_split(int64_t begin, int64_t end, const E* a, int64_t a_row,
                         const SplitMatrix<T>& b, T* y, int64_t y_row, bool add,
                         const Sweep& panels, T* scratch) {
  for (; begin < end; begin += kSplitRowsAtOnce) {
    const int64_t stop = min(end, begin + kSplitRowsAtOnce);
    for_each_split_tile(begin, stop, Rows<E>{a, a_row}, b, panels, scratch,
                        [&](int64_t row, int64_t column, auto& acc, const auto& background) {
                          T* out = y + row * y_row;
                          if (add) add_tile(acc, out, y_row, column, b.C);
                          store_tile(acc, out, y_row, column, b.C);
                          background.advance(0, 1);
                        });
  }
}

// A matrix [K, C] of a layer, packed for `parts`, or as torch has it.
template <typename T>
struct Operand {
  const T* data;
  int64_t K, C;
  int parts;
  bool packed = true;

  INLINE Matrix<T> matrix() const { return {data, K, C, packed}; }
  INLINE SplitMatrix<T> split() const { return {data, K, C, parts}; }
  INLINE int64_t size() const { return parts ? split().size() : packed_size<T>(K, C); }

  // Packs a share of m [K, C] to out, of size() elements.
  template <typename E>
  INLINE void pack(const E* m, const Share& share, T* out) const {
    if (parts) return pack_split(m, split(), share, out);
    pack_columns(m, K, C, share, out);
  }

  // y[begin:end, C] (+)= a[begin:end, K] x its panels. `scratch` has operand_scratch() elements.
  INLINE void multiply(int64_t begin, int64_t end, const T* a, T* y, bool add, const Sweep& panels,
                       T* scratch) const {
    if constexpr (kUnit<T> != Bf16Unit::None) {
      if (parts) return multiply_rows_split(begin, end, a, K, split(), y, C, add, panels, scratch);
    }
    multiply_rows<T>(begin, end, {a, K}, matrix(), y, C, add, panels);
  }
  INLINE void multiply(int64_t begin, int64_t end, const GradGates<T>& a, T* y, bool add,
                       const Sweep& panels, T* scratch) const {
    if constexpr (kUnit<T> == Bf16Unit::DotProducts) {
      if (a.narrow)
        return multiply_rows_split(begin, end, a.narrow, K, split(), y, C, add, panels, scratch);
    }
    multiply(begin, end, a.rows, y, add, panels, scratch);
  }
  template <typename Left>
  INLINE void multiply(int64_t begin, int64_t end, const Left& a, T* y, bool add,
                       T* scratch) const {
    multiply(begin, end, a, y, add, matrix().all_panels(), scratch);
  }
};

template <typename T>
INLINE int64_t operand_scratch(int64_t K, int parts) {
  return parts ? split_size(kSplitRowsAtOnce, K, parts) : 0;
}

}  // namespace
}  // namespace lstm_fast
