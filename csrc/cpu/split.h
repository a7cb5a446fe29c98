// Products of float32 matrices on a matrix unit that multiplies bfloat16 and adds in float32
// (Intel's AMX). A number is the sum of up to three bfloat16 parts, x = x1 + x2 + x3, which
// together have the 24 bits of a float32. Of the products of parts those are summed that matter:
//
//   3 parts   x1 w1 + x1 w2 + x2 w1 + x1 w3 + x2 w2 + x3 w1: errors as of float32 arithmetic
//   2 parts   x1 w1 + x1 w2 + x2 w1: 16 bits, more than TF32 has
//   1 part    x1 w1
//
// G. Henry, P. Tang, A. Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations", 2019. Infinities and numbers too large for the products have no
// such parts: the caller keeps them out (is_ordinary).
//
// The unit takes 32 terms (a block) of 16 rows and 16 columns at a time:
//
//   left operand    rows of parts, element (r, k) of a part at r * row + k  (SplitRows)
//   right operand   [blocks][parts][4 vectors of columns] tiles of [16 pairs of k][16 columns][2]
#pragma once

#include "tile.h"

namespace lstm_fast {
namespace {

constexpr int kBlockTerms = 32;
constexpr int kUnitRows = 16;
// Rows that are multiplied at a time, so that the right operand is read half as often.
constexpr int kPairRows = 2 * kUnitRows;
// bfloat16 numbers of a tile, and the floats that take the same room.
constexpr int kTileParts = kUnitRows * kBlockTerms;
constexpr int kTileFloats = kTileParts / 2;

// Terms past the last block that are cheaper as float32 multiply-adds than as another block:
// measured on Sapphire Rapids, where a block of 16 rows takes as long as 12 terms of it.
constexpr int kTailTerms = 12;

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

  INLINE SplitRows from(int64_t r) const { return {data + r * row, row, part, block}; }
  INLINE SplitRows from_block(int64_t k) const { return {data + k * block, row, part, block}; }
};

// The distances of a left operand of `rows` rows (a multiple of kUnitRows) and K terms. An odd
// number of cache lines between rows, so that the 16 of a tile do not meet in one set of the cache.
template <typename T>
INLINE SplitRows split_layout(const T* scratch, int64_t rows, int64_t K) {
  const int64_t row = (split_blocks(K) | 1) * kBlockTerms;
  return {reinterpret_cast<const uint16_t*>(scratch), row, rows * row, kBlockTerms};
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
SplitRows split_rows(const T* m, int64_t stride, int64_t rows, int64_t K, int parts, T* scratch);
template <typename T>
void pack_block_transposed(const T* w, int64_t stride, int64_t columns, int64_t left, int parts,
                           uint16_t* out, int64_t part);
template <typename T, typename Background>
void pack_split_panel(const T* m, int64_t stride, int64_t K, int64_t C, int64_t blocks, int parts,
                      T* out, Background& background);
template <typename T, typename Background>
SplitRows split_transposed(const T* m, int64_t stride, int64_t terms, int64_t columns, int parts,
                           T* out, Background& background);
template <typename T>
class Product;
template <typename T>
class PanelProducts;

// What the matrix unit does while the vector units compute something: nothing, a step of a product
// (Product::Step) or many products (PanelProducts).
struct NoBackground {
  // Called by a tile for all its parts in turn; the values are those that it has computed by then
  // and goes on with.
  template <typename... Values>
  INLINE void advance(int, int, Values&...) const {}
  // Called by long work at even distances.
  INLINE void advance() const {}
};

#if defined(__AMX_BF16__)

template <typename T>
constexpr bool kHasMatrixUnit = std::is_same_v<T, float>;

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

// Element i and i + 16 side by side.
INLINE PartVec pair_up(PartVec v) {
  return _mm512_permutexvar_epi16(
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0),
      v);
}

INLINE void store_parts(uint16_t* p, PartVec v) { _mm512_storeu_si512(p, v); }

INLINE Vec<float> load_some(const float* p, int64_t n) { return n > 0 ? load(p, n) : Vec<float>{}; }

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

// 16 vectors of pairs become tiles of 16 rows, once transposed.
INLINE void store_transposed(const PartVec (&pairs)[16], uint16_t* tile) {
  Vec<float> square[16];
  for (int i = 0; i < 16; ++i) square[i] = bit_cast<Vec<float>>(pairs[i]);
  transpose<float>(square);
  for (int i = 0; i < 16; ++i) {
    store_parts(tile + i * kBlockTerms, bit_cast<PartVec>(square[i]));
  }
}

// A block of a right operand from its transpose w [columns, left], rows `stride` apart: a tile of
// each part, `part` apart.
template <typename T>
INLINE void pack_block_transposed(const T* w, int64_t stride, int64_t columns, int64_t left,
                                  int parts, uint16_t* out, int64_t part) {
  PartVec v[3][kUnitRows] = {};
  for (int64_t i = 0; i < columns; ++i) {
    PartVec row[3];
    split(load(w + i * stride, left), load_some(w + i * stride + 16, left - 16), parts, row);
    for (int p = 0; p < parts; ++p) v[p][i] = row[p];
  }
  for (int p = 0; p < parts; ++p) store_transposed(v[p], out + p * part);
}

// Blocks of a right operand: those of m [K, C], rows `stride` apart, C up to four vectors. Zero
// beyond K and C. Advances the background split_panel_advances times.
INLINE int64_t split_panel_advances(int64_t blocks) { return blocks * kUnitRows * 4; }

template <typename T, typename Background>
INLINE void pack_split_panel(const T* m, int64_t stride, int64_t K, int64_t C, int64_t blocks,
                             int parts, T* out, Background& background) {
  uint16_t* tile = reinterpret_cast<uint16_t*>(out);
  for (int64_t k0 = 0; k0 < blocks * kBlockTerms; k0 += kBlockTerms) {
    for (int64_t pair = 0; pair < kUnitRows; ++pair) {
      const int64_t k = k0 + 2 * pair;
      for (int v = 0; v < 4; ++v) {
        const int64_t c = v * kLanes<T>;
        // The next panel of the same rows, which lie too far apart for the hardware to see it
        // coming.
        __builtin_prefetch(m + k * stride + c + 4 * kLanes<T>);
        __builtin_prefetch(m + (k + 1) * stride + c + 4 * kLanes<T>);
        PartVec of_pair[3];
        split(k < K ? load_some(m + k * stride + c, C - c) : Vec<T>{},
              k + 1 < K ? load_some(m + (k + 1) * stride + c, C - c) : Vec<T>{}, parts, of_pair);
        for (int p = 0; p < parts; ++p) {
          store_parts(tile + (p * 4 + v) * kTileParts + pair * kBlockTerms, pair_up(of_pair[p]));
        }
        background.advance();
      }
    }
    tile += parts * 4 * kTileParts;
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
                          blocks * tiles * kTileParts, tiles * kTileParts};
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
        store_transposed(v[p], tile + p * rows.part);
        background.advance();
      }
    }
  }
  return rows;
}

// The unit's registers, by number.
template <int Tile>
INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
INLINE void tile_load(const void* p, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
INLINE void tile_store(void* p, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Sum, int Left, int Right>
INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
}

// sums[rows, 4 vectors] = (sums if add) + the blocks of up to two left operands times those of a
// right one that has both one after the other. Needs UnitScope; rows up to a multiple of 16 are
// written.
//
// Done in steps of up to 24 tile products, 384 cycles, and a step in pieces of four: vector work
// between two pieces is hidden by them, as far as it takes one of the two ports of the vector units
// (the other is the unit's). Between steps it is not, since a core looks ahead by 512 operations.
template <typename T>
class Product {
 public:
  Product(const SplitRows& first, int64_t first_blocks, const SplitRows& second,
          int64_t second_blocks, const T* right, int parts, int64_t rows, T* sums, bool add = false)
      : first_(first),
        second_(second),
        first_blocks_(first_blocks),
        blocks_(first_blocks + second_blocks),
        right_(right),
        parts_(parts),
        sums_(sums),
        add_(add),
        pair_(rows > kUnitRows),
        steps_(pair_ ? 2 * blocks_ : blocks_) {}

  int64_t steps_left() const { return steps_ - step_; }
  // Whether a step is long enough to be done in pieces: with one part it is but one of them.
  bool has_pieces() const { return parts_ > 1; }

  // Does the next step.
  INLINE void advance() {
    piece<0>();
    piece<1>();
    piece<2>();
    piece<3>();
    piece<4>();
    piece<5>();
    // The first store of a tile after more than about 2000 cycles of tile products alone takes 900
    // cycles instead of 50: measured on Sapphire Rapids, whatever else is stored meanwhile.
    constexpr int64_t steps_a_store[] = {0, 24, 8, 4};  // of 1, 2 and 3 parts
    if (step_ % steps_a_store[parts_] == 0) tile_store<0>(sum(0), kRowBytes);
  }

  // The pieces of a step, to be done in turn.
  static constexpr int kPieces = 6;
  INLINE void piece(int i) {
    switch (i) {
      case 0:
        return piece<0>();
      case 1:
        return piece<1>();
      case 2:
        return piece<2>();
      case 3:
        return piece<3>();
      case 4:
        return piece<4>();
      case 5:
        return piece<5>();
    }
  }

  // The next step as a background (see NoBackground).
  struct Step {
    Product& product;

    template <typename... Values>
    INLINE void advance(int part, int parts, Values&... values) const {
      // Neither does the compiler move what it computes across the unit's instructions.
      (keep_in_place(values), ...);
      for (int i = kPieces * part / parts; i < kPieces * (part + 1) / parts; ++i) product.piece(i);
    }
    static INLINE void keep_in_place(Vec<T>& v) { asm volatile("" : "+v"(v)); }
  };

 private:
  static constexpr int64_t kLine = 64, kWidth = 4 * kLanes<T>, kRowBytes = kWidth * sizeof(T);

  template <int I>
  INLINE void piece() {
    if constexpr (I == 0) begin_step();
    if (pair_) {
      multiply_32<I>();
    } else {
      multiply_16<I>();
    }
    if constexpr (I == kPieces - 1) end_step();
  }
  INLINE void begin_step() {
    half_ = step_ >= blocks_;
    const int64_t k = step_ - half_ * blocks_;
    const bool in_first = k < first_blocks_;
    const SplitRows& a = in_first ? first_ : second_;
    left_ = a.from_block(in_first ? k : k - first_blocks_);
    of_block_ = right_ + (k * parts_ * 4 + 2 * half_) * kTileFloats;
    if (k > 0) return;
    if (!add_) {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
    } else {
      unrolled<4>([&](auto i) { tile_load<decltype(i)::value>(sum(i), kRowBytes); });
    }
  }
  INLINE void end_step() {
    ++step_;
    if (step_ != blocks_ && step_ != steps_) return;
    unrolled<4>([&](auto i) { tile_store<decltype(i)::value>(sum(i), kRowBytes); });
  }
  // Where tile i of the sums lies: side by side for 16 rows, in a square for 32.
  INLINE T* sum(int64_t i) const {
    return pair_ ? sums_ + i / 2 * kUnitRows * kWidth + (2 * half_ + i % 2) * kLanes<T>
                 : sums_ + i * kLanes<T>;
  }

  template <int Tile>
  INLINE void load_left(int part, int64_t row) const {
    tile_load<Tile>(left_.from(row).data + part * left_.part, left_.row * sizeof(uint16_t));
  }
  template <int Tile>
  INLINE void load_right(int part, int64_t vector) const {
    tile_load<Tile>(of_block_ + (part * 4 + vector) * kTileFloats, kLine);
  }

  // 16 rows, 4 vectors: the parts of the left operand stay in tiles 4, 5, 6. Pieces 0 and 1, 2 and
  // 3, 4 and 5 have a part of the right operand each.
  template <int I>
  INLINE void multiply_16() const {
    constexpr int part = 2 - I / 2;
    if (part >= parts_) return;
    if constexpr (I == 0 || I == 2 || I == 4) {
      if (part == parts_ - 1) {
        load_left<4>(0, 0);
        if (parts_ > 1) load_left<5>(1, 0);
        if (parts_ > 2) load_left<6>(2, 0);
      }
    }
    unrolled<2>([&](auto i) {
      constexpr int vector = I % 2 * 2 + decltype(i)::value;
      load_right<7>(part, vector);
      if (parts_ - part > 2) tile_multiply<vector, 6, 7>();
      if (parts_ - part > 1) tile_multiply<vector, 5, 7>();
      tile_multiply<vector, 4, 7>();
    });
  }

  // 32 rows, 2 vectors: a product of parts in each piece, in an order that loads few of them twice.
  // The left operand goes through tiles 4 and 5, the right one through 6 and 7.
  template <int I>
  INLINE void multiply_32() const {
    constexpr int left[] = {0, 0, 1, 1, 2, 0}, right[] = {2, 1, 1, 0, 0, 0};
    if (left[I] + right[I] >= parts_) return;
    const bool first = left[I] == 0 && right[I] == parts_ - 1;
    if (first || I == 2 || (I == 3 && parts_ == 2) || I == 4 || I == 5) {
      load_left<4>(left[I], 0);
      load_left<5>(left[I], kUnitRows);
    }
    if (first || I == 1 || I == 3) {
      load_right<6>(right[I], 0);
      load_right<7>(right[I], 1);
    }
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  }

  SplitRows first_, second_;
  int64_t first_blocks_, blocks_;
  const T* right_;
  int parts_;
  T* sums_;
  bool add_, pair_;
  int64_t steps_, step_ = 0;
  // Of the step under way:
  int64_t half_ = 0;  // of the columns, if a pair
  SplitRows left_{};
  const T* of_block_ = nullptr;
};

// sums[rows, 4 vectors] = (sums if add) + left x right for any number of rows, as a background of
// work that calls advance() `advances` times.
template <typename T>
class PanelProducts {
 public:
  PanelProducts(const SplitRows& left, int64_t blocks, const T* right, int parts, int64_t rows,
                T* sums, bool add, int64_t advances)
      : left_(left),
        blocks_(blocks),
        right_(right),
        parts_(parts),
        rows_(rows),
        sums_(sums),
        add_(add),
        advances_(advances),
        product_(of_rows(0)) {
    pieces_ = ceil_div(rows, kPairRows) * product_.steps_left() * Product<T>::kPieces;
  }

  INLINE void advance() {
    for (due_ += pieces_; due_ >= advances_; due_ -= advances_) next_piece();
  }
  INLINE void finish() {
    while (row_ < rows_) next_piece();
  }

 private:
  INLINE Product<T> of_rows(int64_t row) const {
    return Product<T>(left_.from(row), blocks_, {}, 0, right_, parts_, min(kPairRows, rows_ - row),
                      sums_ + row * 4 * kLanes<T>, add_);
  }
  INLINE void next_piece() {
    if (row_ >= rows_) return;
    product_.piece(piece_);
    if (++piece_ < Product<T>::kPieces) return;
    piece_ = 0;
    if (product_.steps_left()) return;
    row_ += kPairRows;
    if (row_ < rows_) product_ = of_rows(row_);
  }

  SplitRows left_;
  int64_t blocks_;
  const T* right_;
  int parts_;
  int64_t rows_;
  T* sums_;
  bool add_;
  int64_t advances_;
  Product<T> product_;
  int64_t pieces_, due_ = 0, row_ = 0;
  int piece_ = 0;
};

// While an object lives, all tiles of its thread's unit are 16 rows of 64 bytes.
class UnitScope {
 public:
  explicit UnitScope(bool used) : used_(used) {
    if (!used) return;
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // palette
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;     // bytes of a row
      config[48 + tile] = kUnitRows;  // rows
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~UnitScope() {
    if (used_) asm volatile("tilerelease" ::: "memory");
  }

 private:
  bool used_;
};

#else

template <typename T>
constexpr bool kHasMatrixUnit = false;

class UnitScope {
 public:
  explicit UnitScope(bool) {}
  ~UnitScope() {}
};

#endif

}  // namespace
}  // namespace lstm_fast
