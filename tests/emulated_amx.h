// Intel's AMX in plain C++, in the place of csrc/cpu/amx.h: what the instructions do according to
// Intel's manual, and an end of the process where a CPU would raise an exception. A load or a store
// touches the memory that the instruction touches, for the address sanitizer to judge.
//
// Not modelled: time, and which of several not-a-numbers a sum becomes.
#pragma once

#include <xmmintrin.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../lstm.h"

namespace lstm_fast {
namespace {

inline bool amx_usable() { return true; }

struct EmulatedTile {
  int rows, row_bytes;
  uint8_t data[16][64];
};

struct EmulatedUnit {
  bool configured;
  EmulatedTile tiles[8];
};

inline void require(bool holds, const char* rule) {
  if (holds) return;
  std::fprintf(stderr, "emulated AMX: %s\n", rule);
  std::abort();
}

inline EmulatedUnit& emulated_unit() {
  static thread_local EmulatedUnit unit{};
  return unit;
}

inline EmulatedTile& emulated_tile(int number) {
  EmulatedUnit& unit = emulated_unit();
  require(unit.configured, "a tile is used while none is configured");
  require(number >= 0 && number < 8, "there are eight tiles");
  EmulatedTile& tile = unit.tiles[number];
  require(tile.rows > 0, "a tile without a shape is used");
  return tile;
}

using TileConfig = uint8_t[64];
inline void configure_tiles(const TileConfig& config) {
  require(config[0] == 1, "the palette must be 1");
  require(config[1] == 0, "a fresh configuration starts at row 0");
  EmulatedUnit& unit = emulated_unit();
  unit = {};
  unit.configured = true;
  for (int i = 2; i < 64; ++i) {
    const bool reserved = i < 16 || (i >= 32 && i < 48) || i >= 56;
    require(!reserved || config[i] == 0, "reserved bytes of a configuration must be zero");
  }
  for (int i = 0; i < 8; ++i) {
    EmulatedTile& tile = unit.tiles[i];
    tile.row_bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8;
    tile.rows = config[48 + i];
    require(tile.rows <= 16 && tile.row_bytes <= 64, "a tile has up to 16 rows of 64 bytes");
    require((tile.rows == 0) == (tile.row_bytes == 0), "a tile has rows and columns, or neither");
  }
}
inline void release_tiles() { emulated_unit() = {}; }

// None of these is inlined: the compiler may move arithmetic across a change of MXCSR, but no call,
// and kernels with all of this in them would take longer to compile.
#define NOT_INLINED __attribute__((noinline)) inline

NOT_INLINED void emulate_zero(int number) {
  EmulatedTile& tile = emulated_tile(number);
  std::memset(tile.data, 0, sizeof(tile.data));
}

NOT_INLINED void emulate_load(int number, const void* p, int64_t row_bytes) {
  emulate_zero(number);
  EmulatedTile& tile = emulated_tile(number);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(tile.data[row], static_cast<const uint8_t*>(p) + row * row_bytes, tile.row_bytes);
  }
}

NOT_INLINED void emulate_store(int number, void* p, int64_t row_bytes) {
  const EmulatedTile& tile = emulated_tile(number);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(p) + row * row_bytes, tile.data[row], tile.row_bytes);
  }
}

// The even or the odd ones of a row of bfloat16 numbers.
inline void widen_half_of_pairs(const uint8_t (&row)[64], bool odd, float (&out)[16]) {
  uint32_t pairs[16];
  std::memcpy(pairs, row, sizeof(pairs));
  for (uint32_t& pair : pairs) pair = odd ? pair & 0xffff0000 : pair << 16;
  std::memcpy(out, pairs, sizeof(pairs));
}

NOT_INLINED void multiply_pairs(EmulatedTile& sum, const EmulatedTile& left,
                                const EmulatedTile& right) {
  const int pairs = left.row_bytes / 4, columns = sum.row_bytes / 4;
  float rights[2][16][16];
  for (int k = 0; k < pairs; ++k) {
    for (int odd = 0; odd < 2; ++odd) widen_half_of_pairs(right.data[k], odd, rights[odd][k]);
  }
  for (int m = 0; m < sum.rows; ++m) {
    float of_pairs[2][16] = {};
    for (int odd = 0; odd < 2; ++odd) {
      float lefts[16];
      widen_half_of_pairs(left.data[m], odd, lefts);
      for (int k = 0; k < pairs; ++k) {
        for (int n = 0; n < columns; ++n) {
          of_pairs[odd][n] = __builtin_fmaf(lefts[k], rights[odd][k][n], of_pairs[odd][n]);
        }
      }
    }
    float sums[16];
    std::memcpy(sums, sum.data[m], sizeof(sums));
    for (int n = 0; n < columns; ++n) sums[n] += of_pairs[0][n] + of_pairs[1][n];
    std::memcpy(sum.data[m], sums, sizeof(sums));
  }
}

NOT_INLINED void emulate_multiply(int sum_number, int left_number, int right_number) {
  require(sum_number != left_number && left_number != right_number && sum_number != right_number,
          "the tiles of a product must be different ones");
  EmulatedTile& sum = emulated_tile(sum_number);
  const EmulatedTile &left = emulated_tile(left_number), &right = emulated_tile(right_number);
  require(sum.row_bytes % 4 == 0 && left.row_bytes % 4 == 0, "rows must be of whole pairs");
  require(
      sum.rows == left.rows && sum.row_bytes == right.row_bytes && left.row_bytes == 4 * right.rows,
      "the shapes of a product must fit");
  // Whatever the mode of the thread is: rounding to nearest, subnormal numbers as zero, inputs and
  // results alike, and no exceptions.
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  multiply_pairs(sum, left, right);
  _mm_setcsr(saved);
}

#undef NOT_INLINED

template <int Tile>
void tile_zero() {
  emulate_zero(Tile);
}
template <int Tile>
void tile_load(const void* p, int64_t row_bytes) {
  emulate_load(Tile, p, row_bytes);
}
template <int Tile>
void tile_store(void* p, int64_t row_bytes) {
  emulate_store(Tile, p, row_bytes);
}
template <int Sum, int Left, int Right>
void tile_multiply() {
  emulate_multiply(Sum, Left, Right);
}

}  // namespace
}  // namespace lstm_fast
