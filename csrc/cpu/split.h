// The operands of products of float32 matrices on a unit that multiplies bfloat16 and adds in
// float32: Intel's AMX (matrix_unit.h), or the dot products of AVX-512 (dot_products.h). A number
// is the sum of up to three bfloat16 parts, x = x1 + x2 + x3, which together have the 24 bits of a
// float32. Of the products of parts those are summed that matter:
//
//   3 parts   x1 w1 + x1 w2 + x2 w1 + x1 w3 + x2 w2 + x3 w1: errors as of float32 arithmetic
//   2 parts   x1 w1 + x1 w2 + x2 w1: 16 bits, more than TF32 has
//   1 part    x1 w1
//
// G. Henry, P. Tang, A. Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations", 2019. Infinities and numbers too large for the products have no
// such parts: who plans a product keeps them out (is_ordinary).
//
// Terms are taken by blocks of 32, 16 pairs. The matrix unit multiplies 16 rows and 16 columns of
// them at a time, dot products a pair of one row and 16 columns:
//
//   left operand    rows of parts, element (r, k) of a part at r * row + k  (SplitRows)
//   right operand   [blocks][parts][4 vectors of columns][16 pairs of k][16 columns][2] for the
//                   matrix unit, [blocks][parts][16 pairs of k][vectors of columns][16][2] for dot
//                   products: four vectors, or fewer that are gates
#pragma once

#include <cstring>

#include "tile.h"

namespace lstm_fast {
namespace {

constexpr int kBlockTerms = 32;
constexpr int kUnitRows = 16;
// Rows that are multiplied at a time, so that the right operand is read half as often.
constexpr int kPairRows = 2 * kUnitRows;
// bfloat16 numbers of a tile, and the floats that take the same room. Of a right operand of so many
// vectors of columns, the distances of these and of its pairs are kVectorParts and pair_parts.
constexpr int kTileParts = kUnitRows * kBlockTerms;
constexpr int kTileFloats = kTileParts / 2;

// The unit for products of a type.
template <typename T>
constexpr Bf16Unit kUnit = Bf16Unit::None;

#if defined(__AMX_BF16__)
template <>
constexpr Bf16Unit kUnit<float> = Bf16Unit::Matrix;
// Terms past the last block that are cheaper as float32 multiply-adds than as another block:
// measured on Sapphire Rapids, where a block of 16 rows takes as long as 12 terms of it.
constexpr int kTailTerms = 12;
constexpr int64_t kVectorParts = kTileParts;
INLINE constexpr int64_t pair_parts(int) { return kBlockTerms; }
#else
#if defined(__AVX512BF16__)
template <>
constexpr Bf16Unit kUnit<float> = Bf16Unit::DotProducts;
#endif
// Dot products take no pair that is not there.
constexpr int kTailTerms = 0;
constexpr int64_t kVectorParts = kBlockTerms;
INLINE constexpr int64_t pair_parts(int vectors) { return vectors * kBlockTerms; }
#endif

INLINE int64_t split_blocks(int64_t K) {
  return K / kBlockTerms + (K % kBlockTerms > kTailTerms ? 1 : 0);
}
// Whether all are numbers below 2^56, so that sums of products stay far from the largest float32.
template <typename T>
bool is_ordinary(const T* m, int64_t n) {
  IntVec<T> ordinary = IntVec<T>{} == IntVec<T>{};
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Vec<T> v = load(m + i, n - i);
    ordinary &= (v < broadcast(T(0x1p56))) & (v > broadcast(T(-0x1p56)));
  }
  bool all = true;
  for (int i = 0; i < kLanes<T>; ++i) all &= ordinary[i] != 0;
  return all;
}

// Terms that the blocks do not cover.
INLINE int64_t split_tail(int64_t K) { return max(0, K - split_blocks(K) * kBlockTerms); }

struct SplitRows {
  const uint16_t* data;
  int64_t row;    // distance of rows
  int64_t part;   // distance of parts
  int64_t block;  // distance of blocks
  int64_t terms;  // that the blocks have

  INLINE int64_t blocks() const { return ceil_div(terms, kBlockTerms); }
  INLINE SplitRows from(int64_t r) const { return {data + r * row, row, part, block, terms}; }
};

// Up to two left operands, side by side, and a right one with the blocks of the first and then of
// the second, of so many vectors of columns.
template <typename T>
struct SplitOperands {
  SplitRows first, second;
  const T* right;
  int parts;
  int vectors = kTileVectors;

  INLINE SplitOperands from(int64_t r) const {
    return {first.from(r), second.from(r), right, parts, vectors};
  }
};

// The distances of a left operand of `rows` rows (a multiple of kUnitRows) and K terms. An odd
// number of cache lines between rows, so that the 16 of a tile do not meet in one set of the cache.
template <typename T>
INLINE SplitRows split_layout(const T* scratch, int64_t rows, int64_t K) {
  const int64_t row = (split_blocks(K) | 1) * kBlockTerms;
  return {reinterpret_cast<const uint16_t*>(scratch), row, rows * row, kBlockTerms,
          K - split_tail(K)};
}
// Floats that it takes.
INLINE int64_t split_size(int64_t rows, int64_t K, int parts) {
  const int64_t padded = ceil_div(rows, kUnitRows) * kUnitRows;
  return parts * split_layout<float>(nullptr, padded, K).part / 2;
}

// Floats of the right operand [K, columns of a panel], and of a left one from `terms` rows of its
// transpose.
INLINE int64_t split_panel_size(int64_t K, int parts) {
  return split_blocks(K) * parts * 4 * kTileFloats;
}
INLINE int64_t transposed_size(int64_t terms, int64_t columns, int parts) {
  return ceil_div(terms, kBlockTerms) * ceil_div(columns, kUnitRows) * parts * kTileFloats;
}

// Defined where there is a unit.
template <typename T>
void store_part(BFloat16* p, Vec<T> v, int64_t n);
template <typename T>
SplitRows split_rows(const T* m, int64_t stride, int64_t rows, int64_t K, int parts, T* scratch);
template <typename E>
void pack_block_transposed(const E* const (&columns)[kUnitRows], int64_t k, int64_t K, int parts,
                           uint16_t* out, int64_t part, int64_t pair);
template <typename E, typename T, typename Background>
void pack_split_panel(const E* m, int64_t stride, int64_t K, int64_t C, int64_t blocks, int parts,
                      T* out, Background& background);
template <typename T, typename Background>
SplitRows split_transposed(const T* m, int64_t stride, int64_t terms, int64_t columns, int parts,
                           T* out, Background& background);
template <typename T>
class PanelProducts;
template <int Most, typename T, typename OperandsOf, typename F>
void for_each_product_tile(int64_t rows, int64_t panels, const OperandsOf& operands_of, const F& f);

// What a unit does while the vector units compute something: nothing, a step of a product
// (Product::Step) or many products (PanelProducts).
struct NoBackground {
  // Called by a tile for all its parts in turn; the values are those that it has computed by then
  // and goes on with.
  template <typename... Values>
  INLINE void advance(int, int, Values&...) const {}
  // Called by long work at even distances.
  INLINE void advance() const {}
};

#if defined(__AVX512BF16__)

using PartVec = __m512i;  // 32 bfloat16

// parts[p] = part p of 16 numbers of `low`, then 16 of `high`.
INLINE void split(Vec<float> low, Vec<float> high, int count, PartVec (&parts)[3]) {
  for (int p = 0; p < count; ++p) {
    parts[p] = reinterpret_cast<PartVec>(_mm512_cvtne2ps_pbh(high, low));
    if (p == count - 1) break;
    const auto widen = [](__m256i half) {
      return Vec<float>(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
    };
    low -= widen(_mm512_castsi512_si256(parts[p]));
    high -= widen(_mm512_extracti64x4_epi64(parts[p], 1));
  }
}

INLINE PartVec broadcast_pair(const uint16_t* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

INLINE Vec<float> dot(PartVec a, PartVec b, Vec<float> sums) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Element i and i + 16 side by side.
INLINE PartVec pair_up(PartVec v) {
  return _mm512_permutexvar_epi16(
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0),
      v);
}

INLINE void store_parts(uint16_t* p, PartVec v) { _mm512_storeu_si512(p, v); }

// The first part of the first n lanes.
template <typename T>
INLINE void store_part(BFloat16* p, Vec<T> v, int64_t n) {
  const auto part = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
  if (n >= kLanes<T>) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), part);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1 << n) - 1), part);
}

template <typename E>
INLINE Vec<float> load_some(const E* p, int64_t n) {
  return n > 0 ? load(p, n) : Vec<float>{};
}

// Writes a left operand: the blocks of m [rows, K] with rows `stride` apart.
template <typename T>
INLINE SplitRows split_rows(const T* m, int64_t stride, int64_t rows, int64_t K, int parts,
                            T* scratch) {
  const SplitRows out = split_layout(scratch, ceil_div(rows, kUnitRows) * kUnitRows, K);
  uint16_t* data = reinterpret_cast<uint16_t*>(scratch);
  const int64_t blocks = split_blocks(K);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float* terms = m + r * stride + b * kBlockTerms;
      const int64_t left = K - b * kBlockTerms;
      PartVec v[3];
      split(load(terms, left), load_some(terms + 16, left - 16), parts, v);
      for (int p = 0; p < parts; ++p) {
        store_parts(data + p * out.part + r * out.row + b * kBlockTerms, v[p]);
      }
    }
  }
  return out;
}

// 16 vectors of pairs become 16 rows, once transposed.
INLINE void store_transposed(const PartVec (&pairs)[16], uint16_t* out, int64_t distance) {
  Vec<float> square[16];
  for (int i = 0; i < 16; ++i) square[i] = bit_cast<Vec<float>>(pairs[i]);
  transpose<float>(square);
  for (int i = 0; i < 16; ++i) {
    store_parts(out + i * distance, bit_cast<PartVec>(square[i]));
  }
}

// A vector of columns of the block of a right operand that begins at term k of K, from the columns
// themselves, zeros for null: that of each part, `part` apart, with pairs `pair` apart.
template <typename E>
INLINE void pack_block_transposed(const E* const (&columns)[kUnitRows], int64_t k, int64_t K,
                                  int parts, uint16_t* out, int64_t part, int64_t pair) {
  PartVec v[3][kUnitRows] = {};
  for (int64_t i = 0; i < kUnitRows; ++i) {
    if (!columns[i]) continue;
    PartVec column[3];
    split(load(columns[i] + k, K - k), load_some(columns[i] + k + 16, K - k - 16), parts, column);
    for (int p = 0; p < parts; ++p) v[p][i] = column[p];
  }
  for (int p = 0; p < parts; ++p) store_transposed(v[p], out + p * part, pair);
}

// parts[p] = part p of the first n numbers of `low`, then of `high`; zeros for null.
template <typename E>
INLINE void split_some(const E* low, const E* high, int64_t n, int count, PartVec (&parts)[3]) {
  split(low ? load_some(low, n) : Vec<E>{}, high ? load_some(high, n) : Vec<E>{}, count, parts);
}
// A bfloat16 number is its own first part.
INLINE void split_some(const BFloat16* low, const BFloat16* high, int64_t n, int,
                       PartVec (&parts)[3]) {
  const auto bits = [&](const BFloat16* p) {
    return p && n > 0 ? bit_cast<__m256i>(load_bits(&p->bits, n)) : __m256i{};
  };
  parts[0] = _mm512_inserti64x4(_mm512_castsi256_si512(bits(low)), bits(high), 1);
  parts[1] = parts[2] = PartVec{};
}

// Blocks of a right operand: those of m [K, C], rows `stride` apart, C up to four vectors. Zero
// beyond K and C. Advances the background split_panel_advances times.
INLINE int64_t split_panel_advances(int64_t blocks) { return blocks * kUnitRows * 4; }

template <typename E, typename T, typename Background>
INLINE void pack_split_panel(const E* m, int64_t stride, int64_t K, int64_t C, int64_t blocks,
                             int parts, T* out, Background& background) {
  uint16_t* block = reinterpret_cast<uint16_t*>(out);
  for (int64_t k0 = 0; k0 < blocks * kBlockTerms; k0 += kBlockTerms) {
    for (int64_t pair = 0; pair < kUnitRows; ++pair) {
      const int64_t k = k0 + 2 * pair;
      for (int v = 0; v < 4; ++v) {
        const int64_t c = v * kLanes<T>;
        // The next panel of the same rows, which lie too far apart for the hardware to see it
        // coming.
        __builtin_prefetch(m + k * stride + c + 4 * kLanes<T>);
        __builtin_prefetch(m + (k + 1) * stride + c + 4 * kLanes<T>);
        const auto row = [&](int64_t i) { return i < K ? m + i * stride + c : nullptr; };
        PartVec of_pair[3];
        split_some(row(k), row(k + 1), C - c, parts, of_pair);
        for (int p = 0; p < parts; ++p) {
          store_parts(block + p * 4 * kTileParts + v * kVectorParts + pair * pair_parts(4),
                      pair_up(of_pair[p]));
        }
        background.advance();
      }
    }
    block += parts * 4 * kTileParts;
  }
}

// A left operand from its transpose m [terms, columns], rows `stride` apart: the columns as rows,
// the terms up to a multiple of 32, zero where there is none. Takes transposed_size floats,
// advances the background transposed_advances times.
INLINE int64_t transposed_advances(int64_t terms, int64_t columns, int parts) {
  return ceil_div(terms, kBlockTerms) * ceil_div(columns, kUnitRows) * (kUnitRows + parts);
}

template <typename T, typename Background>
INLINE SplitRows split_transposed(const T* m, int64_t stride, int64_t terms, int64_t columns,
                                  int parts, T* out, Background& background) {
  const int64_t tiles = ceil_div(columns, kUnitRows), blocks = ceil_div(terms, kBlockTerms);
  const SplitRows rows = {reinterpret_cast<const uint16_t*>(out), kBlockTerms,
                          blocks * tiles * kTileParts, tiles * kTileParts, terms};
  uint16_t* tile = reinterpret_cast<uint16_t*>(out);
  for (int64_t k0 = 0; k0 < terms; k0 += kBlockTerms) {
    for (int64_t c = 0; c < columns; c += kUnitRows, tile += kTileParts) {
      PartVec v[3][kUnitRows];
      for (int64_t pair = 0; pair < kUnitRows; ++pair) {
        const int64_t k = k0 + 2 * pair;
        PartVec of_pair[3];
        split(k < terms ? load(m + k * stride + c, columns - c) : Vec<T>{},
              k + 1 < terms ? load(m + (k + 1) * stride + c, columns - c) : Vec<T>{}, parts,
              of_pair);
        for (int p = 0; p < parts; ++p) v[p][pair] = pair_up(of_pair[p]);
        background.advance();
      }
      for (int p = 0; p < parts; ++p) {
        store_transposed(v[p], tile + p * rows.part, kBlockTerms);
        background.advance();
      }
    }
  }
  return rows;
}

#endif

#if !defined(__AMX_BF16__)
class UnitScope {
 public:
  explicit UnitScope(bool) {}
  ~UnitScope() {}
};
#endif

}  // namespace
}  // namespace lstm_fast
