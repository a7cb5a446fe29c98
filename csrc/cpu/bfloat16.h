// bfloat16 numbers, the upper halves of float32 ones. Plain loops, which the compiler vectorises.
#pragma once

#include <cstring>

#include "../lstm.h"

namespace lstm_fast {
namespace {

void widen_bfloat16(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = uint32_t{x[i]} << 16;
    std::memcpy(y + i, &bits, sizeof(bits));
  }
}

// Rounded to nearest, ties to even; not-a-number stays so.
void narrow_to_bfloat16(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    y[i] = static_cast<uint16_t>(is_nan ? 0x7fc0 : rounded);
  }
}

}  // namespace
}  // namespace lstm_fast
