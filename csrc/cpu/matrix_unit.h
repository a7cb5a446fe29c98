// Products on Intel's matrix unit (AMX), of the operands of split.h.
#pragma once

#include "amx.h"
#include "split.h"

namespace lstm_fast {
namespace {

// sums[rows, 4 vectors] = (sums if add) + the product of the operands. Needs UnitScope; rows up to
// a multiple of 16 are written.
//
// Done in steps of up to 24 tile products, 384 cycles, and a step in pieces of four: vector work
// between two pieces is hidden by them, as far as it takes one of the two ports of the vector units
// (the other is the unit's). Between steps it is not, since a core looks ahead by 512 operations.
template <typename T>
class Product {
 public:
  Product(const SplitOperands<T>& operands, int64_t rows, T* sums, bool add = false)
      : first_(operands.first),
        second_(operands.second),
        first_blocks_(first_.blocks()),
        blocks_(first_blocks_ + second_.blocks()),
        right_(operands.right),
        parts_(operands.parts),
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
    left_ = in_first ? first_ : second_;
    left_.data += (in_first ? k : k - first_blocks_) * left_.block;
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
  PanelProducts(const SplitOperands<T>& operands, int64_t rows, T* sums, bool add, int64_t advances)
      : operands_(operands),
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
    return Product<T>(operands_.from(row), min(kPairRows, rows_ - row), sums_ + row * kPanel<T>,
                      add_);
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

  SplitOperands<T> operands_;
  int64_t rows_;
  T* sums_;
  bool add_;
  int64_t advances_;
  Product<T> product_;
  int64_t pieces_, due_ = 0, row_ = 0;
  int piece_ = 0;
};

// Sums [rows][kPanel] of a tile.
template <typename T>
struct StoredSums {
  const T* data;
};

template <int R, int W, typename T>
INLINE void load_sums(Vec<T> (&acc)[R][W], const StoredSums<T>& sums) {
  load_tile<R, W, T>(acc, sums.data, kPanel<T>, 0, kPanel<T>);
}

// Products of `rows` rows with each of `panels` panels, whose operands are operands_of(panel).
// Calls f(row, panel, Size<tile rows>, sums, background) for tiles that cover them; load_sums gives
// the sums of the tile. The unit multiplies for the next rows or panel while f works on up to
// `Most` rows at a time.
template <int Most, typename T, typename OperandsOf, typename F>
INLINE void for_each_product_tile(int64_t rows, int64_t panels, const OperandsOf& operands_of,
                                  const F& f) {
  const int64_t row_blocks = ceil_div(rows, kPairRows), items = panels * row_blocks;
  if (items == 0) return;  // the share of a member of a team that has more members than panels
  alignas(64) T sums[2][kPairRows * kPanel<T>];
  const auto row_of = [&](int64_t item) { return item % row_blocks * kPairRows; };
  const auto start = [&](int64_t item) {
    const int64_t row = row_of(item);
    return Product<T>(operands_of(item / row_blocks).from(row), min(kPairRows, rows - row),
                      sums[item % 2]);
  };
  Product<T> first = start(0);
  while (first.steps_left()) first.advance();
  for (int64_t item = 0; item < items; ++item) {
    const int64_t panel = item / row_blocks, begin = row_of(item);
    const int64_t end = min(begin + kPairRows, rows);
    const auto tile = [&](int64_t row, auto size, const auto& background) {
      f(row, panel, size, StoredSums<T>{sums[item % 2] + (row - begin) * kPanel<T>}, background);
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

// While an object lives, all tiles of its thread's unit are 16 rows of 64 bytes.
class UnitScope {
 public:
  explicit UnitScope(bool used) : used_(used) {
    if (!used) return;
    alignas(64) TileConfig config = {};
    config[0] = 1;  // palette
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;     // bytes of a row
      config[48 + tile] = kUnitRows;  // rows
    }
    configure_tiles(config);
  }
  ~UnitScope() {
    if (used_) release_tiles();
  }

 private:
  bool used_;
};

}  // namespace
}  // namespace lstm_fast
