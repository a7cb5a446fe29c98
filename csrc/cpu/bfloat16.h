// bfloat16 numbers as vectors of float32 ones: read and written as memory has them.
#pragma once

#include "simd.h"

namespace lstm_fast {
namespace {

// What numbers of a type in memory are computed in.
template <typename E>
struct ComputedType {
  using Type = E;
};
template <>
struct ComputedType<BFloat16> {
  using Type = float;
};
template <typename E>
using Computed = typename ComputedType<E>::Type;

using Bits = uint32_t __attribute__((vector_size(kVectorBytes)));
using HalfBits = uint16_t __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

INLINE Vec<float> load(const BFloat16* p) {
  const HalfBits upper = *reinterpret_cast<const HalfBits*>(p);
  return bit_cast<Vec<float>>(__builtin_convertvector(upper, Bits) << 16);
}

// Rounded to nearest, ties to even; not-a-number stays so.
INLINE HalfBits rounded(Vec<float> v) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits upper = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(v == v ? upper : 0x7fc0 - Bits{}, HalfBits);
}
INLINE void store(BFloat16* p, Vec<float> v) { *reinterpret_cast<HalfBits*>(p) = rounded(v); }

// The first n lanes, as of float32 numbers.
INLINE Vec<float> load(const BFloat16* p, int64_t n) {
  if (n >= kLanes<float>) return load(p);
#if defined(__AVX512F__)
  const __m256i upper = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
#else
  BFloat16 lanes[kLanes<float>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}
INLINE void store(BFloat16* p, Vec<float> v, int64_t n) {
  if (n >= kLanes<float>) return store(p, v);
#if defined(__AVX512F__)
  const auto first = static_cast<__mmask16>((1u << n) - 1);
  return _mm256_mask_storeu_epi16(p, first, bit_cast<__m256i>(rounded(v)));
#endif
  BFloat16 lanes[kLanes<float>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

void widen_bfloat16(const BFloat16* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes<float>) store(y + i, load(x + i, n - i), n - i);
}
void narrow_to_bfloat16(const float* x, int64_t n, BFloat16* y) {
  for (int64_t i = 0; i < n; i += kLanes<float>) store(y + i, load(x + i, n - i), n - i);
}

}  // namespace
}  // namespace lstm_fast
