// Products by the dot products of AVX-512 (vdpbf16ps), of the operands of split.h, of one part. An
// instruction multiplies a pair of terms where a float32 multiply-add takes one. Every element is
// summed pair after pair, whatever the tile.
#pragma once

#include "split.h"

namespace lstm_fast {
namespace {

// acc[R][W] += left x right, which has so many vectors of columns.
template <int R, int W>
INLINE void accumulate_pairs(Vec<float> (&acc)[R][W], const SplitRows& left, const float* right,
                             int vectors) {
  const auto* y_row = reinterpret_cast<const uint16_t*>(right);
  const uint16_t* block = left.data;
  for (int64_t pairs = ceil_div(left.terms, 2); pairs > 0; pairs -= kBlockTerms / 2) {
    const uint16_t* x_row[R];
    for (int r = 0; r < R; ++r) x_row[r] = block + r * left.row;
    const int64_t n = min(pairs, kBlockTerms / 2);
#pragma GCC unroll 4
    for (int64_t i = 0; i < n; ++i, y_row += pair_parts(vectors)) {
      PartVec y[W];
      for (int w = 0; w < W; ++w) y[w] = _mm512_loadu_si512(y_row + w * kVectorParts);
      for (int r = 0; r < R; ++r) {
        const PartVec x = broadcast_pair(x_row[r] + 2 * i);
        for (int w = 0; w < W; ++w) acc[r][w] = dot(x, y[w], acc[r][w]);
      }
    }
    block += left.block;
  }
}

// The sums of a tile are computed where they are loaded.
template <int R, int W, typename T>
INLINE void load_sums(Vec<T> (&acc)[R][W], const SplitOperands<T>& operands) {
  clear_tile<R, W, T>(acc);
  const int vectors = operands.vectors;
  accumulate_pairs(acc, operands.first, operands.right, vectors);
  accumulate_pairs(acc, operands.second,
                   operands.right + operands.first.blocks() * vectors * kTileFloats, vectors);
}

// Calls f(row, panel, Size<tile rows>, sums, background) for tiles that cover the products of
// `rows` rows with each of `panels` panels, whose operands are operands_of(panel); load_sums gives
// the sums of the tile.
template <int Most, typename T, typename OperandsOf, typename F>
INLINE void for_each_product_tile(int64_t rows, int64_t panels, const OperandsOf& operands_of,
                                  const F& f) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    const SplitOperands<T> operands = operands_of(panel);
    for_each_tile<kTileVectors>(0, rows, [&](int64_t row, auto size) {
      f(row, panel, size, operands.from(row), NoBackground{});
    });
  }
}

// sums[rows, 4 vectors] = (sums if add) + the product of the operands; all of it in finish(), since
// there is no unit that would work beside other work.
template <typename T>
class PanelProducts {
 public:
  PanelProducts(const SplitOperands<T>& operands, int64_t rows, T* sums, bool add, int64_t)
      : operands_(operands), rows_(rows), sums_(sums), add_(add) {}

  INLINE void advance() {}
  INLINE void finish() {
    for_each_tile<kTileVectors>(0, rows_, [&](int64_t row, auto size) {
      constexpr int R = decltype(size)::value;
      Vec<T> acc[R][kTileVectors];
      T* out = sums_ + row * kPanel<T>;
      load_sums(acc, operands_.from(row));
      if (add_) add_tile(acc, out, kPanel<T>, 0, kPanel<T>);
      store_tile(acc, out, kPanel<T>, 0, kPanel<T>);
    });
  }

 private:
  SplitOperands<T> operands_;
  int64_t rows_;
  T* sums_;
  bool add_;
};

}  // namespace
}  // namespace lstm_fast
