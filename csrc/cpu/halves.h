// Halves as vectors of float32 numbers: bfloat16 is read and written as memory has it, float16
// read.
#pragma once

#include <type_traits>

#include "simd.h"

namespace lstm_fast {
namespace {

// What numbers of a type in memory are computed in.
template <typename E>
using Computed = std::conditional_t<sizeof(E) == 2, float, E>;

using Bits = uint32_t __attribute__((vector_size(kVectorBytes)));
using HalfBits = uint16_t __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// The first n lanes, or all, as of float32 numbers.
INLINE HalfBits load_bits(const uint16_t* p) { return *reinterpret_cast<const HalfBits*>(p); }
INLINE HalfBits load_bits(const uint16_t* p, int64_t n) {
  if (n >= kLanes<float>) return load_bits(p);
#if defined(__AVX512F__)
  return bit_cast<HalfBits>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#else
  uint16_t lanes[kLanes<float>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load_bits(lanes);
#endif
}

INLINE Vec<float> widen_bfloat16(HalfBits upper) {
  return bit_cast<Vec<float>>(__builtin_convertvector(upper, Bits) << 16);
}

// Subnormal numbers are widened too, in any mode of the processor.
INLINE Vec<float> widen_float16(HalfBits half) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(static_cast<__mmask16>(-1), bit_cast<__m256i>(half));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(bit_cast<__m128i>(half));
#elif defined(__aarch64__)
  return vcvt_f32_f16(bit_cast<float16x4_t>(half));
#else
  const Bits bits = __builtin_convertvector(half, Bits);
  const Bits sign = (bits & 0x8000) << 16, exponent = bits & 0x7c00, number = (bits & 0x7fff) << 13;
  constexpr uint32_t rebias = (127 - 15) << 23, smallest = (127 - 14) << 23;
  // Of a subnormal number, 2^-14 + x - 2^-14: x alone has no such exponent.
  const Vec<float> x =
      bit_cast<Vec<float>>(number + smallest) - bit_cast<Vec<float>>(smallest + Bits{});
  const Bits normal = number + rebias + (exponent == 0x7c00 ? rebias + Bits{} : Bits{});
  return bit_cast<Vec<float>>(sign | (exponent == 0 ? bit_cast<Bits>(x) : normal));
#endif
}

INLINE Vec<float> load(const BFloat16* p) { return widen_bfloat16(load_bits(&p->bits)); }
INLINE Vec<float> load(const BFloat16* p, int64_t n) {
  return widen_bfloat16(load_bits(&p->bits, n));
}
INLINE Vec<float> load(const Float16* p) { return widen_float16(load_bits(&p->bits)); }
INLINE Vec<float> load(const Float16* p, int64_t n) {
  return widen_float16(load_bits(&p->bits, n));
}

// Rounded to nearest, ties to even; not-a-number stays so.
INLINE HalfBits rounded(Vec<float> v) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits upper = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(v == v ? upper : 0x7fc0 - Bits{}, HalfBits);
}
INLINE void store(BFloat16* p, Vec<float> v) { *reinterpret_cast<HalfBits*>(p) = rounded(v); }
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

template <typename Half>
void widen(const Half* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes<float>) store(y + i, load(x + i, n - i), n - i);
}
void narrow_to_bfloat16(const float* x, int64_t n, BFloat16* y) {
  for (int64_t i = 0; i < n; i += kLanes<float>) store(y + i, load(x + i, n - i), n - i);
}

}  // namespace
}  // namespace lstm_fast
