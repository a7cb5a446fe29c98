// Intel's AMX itself: whether this process may use it, and its instructions. Nothing else touches
// the hardware, so that tests/emulated_amx.h in the place of this file runs all that is made of it
// on a CPU that has none.
#pragma once

#include <cpuid.h>
#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../lstm.h"

namespace lstm_fast {
namespace {

// AMX needs the CPU, and the system's consent to a larger register state of this process.
inline bool amx_usable() {
#if defined(__linux__)
  constexpr unsigned kTileBf16 = 1u << 22 | 1u << 24;  // of leaf 7, edx
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kTileBf16) != kTileBf16)
    return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The shapes of a thread's tiles, in the layout of ldtilecfg. There are none before and after.
using TileConfig = uint8_t[64];
LSTM_FAST_INLINE void configure_tiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config));
}
LSTM_FAST_INLINE void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

// Tiles by number.
template <int Tile>
LSTM_FAST_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
LSTM_FAST_INLINE void tile_load(const void* p, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
LSTM_FAST_INLINE void tile_store(void* p, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(row_bytes), "i"(Tile) : "memory");
}
// Sum += Left x Right, of pairs of bfloat16.
template <int Sum, int Left, int Right>
LSTM_FAST_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
}

}  // namespace
}  // namespace lstm_fast
