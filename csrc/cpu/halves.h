// Halves as vectors of float32 numbers: bfloat16 is read and written as memory has it, float16
// read.
#pragma once

#include <cstring>
#include <type_traits>

#include "simd.h"

namespace lstm_fast {
namespace {

// What numbers of a type in memory are computed in.
template <typename E>
using Computed = std::conditional_t<sizeof(E) == 2, float, E>;

using Bits = uint32_t __attribute__((vector_size(kVectorBytes)));
using HalfBits = uint16_t __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// The first n of four. Not through an array: to read one right after its parts were written takes a
// core a dozen cycles.
INLINE uint64_t load_few(const uint16_t* p, int64_t n) {
  const auto read = [](auto bits, const uint16_t* from) {
    std::memcpy(&bits, from, sizeof(bits));
    return uint64_t{bits};
  };
  if (n >= 4) return read(uint64_t{}, p);
  const uint64_t last = n & 1 ? uint64_t{p[n - 1]} << (16 * (n - 1)) : 0;
  return n & 2 ? last | read(uint32_t{}, p) : last;
}

// The first n lanes, or all, as of float32 numbers.
INLINE HalfBits load_bits(const uint16_t* p) { return *reinterpret_cast<const HalfBits*>(p); }
INLINE HalfBits load_bits(const uint16_t* p, int64_t n) {
  if (n >= kLanes<float>) return load_bits(p);
#if defined(__AVX512F__)
  return bit_cast<HalfBits>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#elif defined(__AVX2__)
  const bool four = n >= 4;
  return bit_cast<HalfBits>(_mm_set_epi64x(four ? static_cast<int64_t>(load_few(p + 4, n - 4)) : 0,
                                           static_cast<int64_t>(load_few(p, n))));
#else
  return bit_cast<HalfBits>(load_few(p, n));
#endif
}

// GCC 12 makes five instructions of __builtin_convertvector.
INLINE Vec<float> widen_bfloat16(HalfBits upper) {
#if defined(__AVX512F__)
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(kAllLanes, bit_cast<__m256i>(upper));
  return bit_cast<Vec<float>>(bit_cast<Bits>(bits) << 16);
#elif defined(__AVX2__)
  // Each half of the register takes its four numbers, two bytes of zeros before each.
  const __m256i bytes =
      _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                       -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  const __m256i twice = _mm256_broadcastsi128_si256(bit_cast<__m128i>(upper));
  return bit_cast<Vec<float>>(_mm256_shuffle_epi8(twice, bytes));
#else
  return bit_cast<Vec<float>>(__builtin_convertvector(upper, Bits) << 16);
#endif
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
