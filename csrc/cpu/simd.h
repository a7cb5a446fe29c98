// The vector of the instruction set that this translation unit is compiled for. GCC's vector
// extensions give the arithmetic; what they lack (fused multiply-add, masked tails) is written once
// per instruction set.
//
// Everything here and in the other headers that kernels.cpp includes has internal linkage: an
// inline function shared between objects of several instruction sets would be merged by the linker,
// which may keep the AVX-512 copy.
#pragma once

#include <cstdint>
#include <utility>

#include "../lstm.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lstm_fast {
namespace {

// kTileSums: vectors of sums that fit the registers beside their operands. kTileRows: most rows of
// a tile whose sums do. kFused: fma() rounds once.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 6, kTileSums = 24;
constexpr bool kFused = true;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6, kTileSums = 12;
constexpr bool kFused = true;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6, kTileSums = 24;
constexpr bool kFused = true;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4, kTileSums = 8;
constexpr bool kFused = false;
#endif
constexpr int kTileVectors = 4;

#define INLINE LSTM_FAST_INLINE

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t IntVec __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vec = typename Simd<T>::Vec;
template <typename T>
using IntVec = typename Simd<T>::IntVec;

// Lanes of a vector.
template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T>
INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <typename T>
INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

template <typename T>
INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

template <typename To, typename From>
INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return reinterpret_cast<To>(from);
}

// a * b + c, rounded once if kFused.
#if defined(__AVX512F__)
INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__AVX2__)
INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
#elif defined(__aarch64__)
INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return vfmaq_f32(c, a, b); }
INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return vfmaq_f64(c, a, b); }
#else
INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }
#endif

// x within [low, high]; not-a-number stays so.
#if defined(__AVX512F__)
// GCC's unmasked forms name an undefined operand and warn of it.
constexpr int kAllLanes = -1;

INLINE Vec<float> clamp(Vec<float> x, float low, float high) {
  const Vec<float> l = broadcast(low), h = broadcast(high);
  const Vec<float> above = _mm512_mask_max_ps(l, kAllLanes, l, x);
  return _mm512_mask_min_ps(h, kAllLanes, h, above);
}
INLINE Vec<double> clamp(Vec<double> x, double low, double high) {
  const Vec<double> l = broadcast(low), h = broadcast(high);
  const Vec<double> above = _mm512_mask_max_pd(l, kAllLanes, l, x);
  return _mm512_mask_min_pd(h, kAllLanes, h, above);
}
#elif defined(__AVX2__)
INLINE Vec<float> clamp(Vec<float> x, float low, float high) {
  return _mm256_min_ps(broadcast(high), _mm256_max_ps(broadcast(low), x));
}
INLINE Vec<double> clamp(Vec<double> x, double low, double high) {
  return _mm256_min_pd(broadcast(high), _mm256_max_pd(broadcast(low), x));
}
#elif defined(__aarch64__)
INLINE Vec<float> clamp(Vec<float> x, float low, float high) {
  return vminq_f32(vmaxq_f32(x, broadcast(low)), broadcast(high));
}
INLINE Vec<double> clamp(Vec<double> x, double low, double high) {
  return vminq_f64(vmaxq_f64(x, broadcast(low)), broadcast(high));
}
#else
template <typename V, typename T>
INLINE V clamp(V x, T low, T high) {
  x = x < low ? low - V{} : x;
  return x > high ? high - V{} : x;
}
#endif

// The first n lanes, n >= 1; the others read as zero and are not written. No memory past lane n is
// touched.
#if defined(__AVX512F__)
INLINE Vec<float> load(const float* p, int64_t n) {
  return n >= 16 ? load(p)
                 : Vec<float>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
INLINE Vec<double> load(const double* p, int64_t n) {
  return n >= 8 ? load(p)
                : Vec<double>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
INLINE void store(float* p, Vec<float> v, int64_t n) {
  if (n >= 16) return store(p, v);
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
INLINE void store(double* p, Vec<double> v, int64_t n) {
  if (n >= 8) return store(p, v);
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
}
#elif defined(__AVX2__)
// Elements from (kLanes - n) on: n ones, then zeros.
alignas(64) constexpr int32_t kFirstFloats[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
alignas(64) constexpr int64_t kFirstDoubles[8] = {-1, -1, -1, -1};

INLINE Vec<float> load(const float* p, int64_t n) {
  if (n >= 8) return load(p);
  const void* mask = kFirstFloats + (8 - n);
  return _mm256_maskload_ps(p, _mm256_loadu_si256(static_cast<const __m256i*>(mask)));
}
INLINE Vec<double> load(const double* p, int64_t n) {
  if (n >= 4) return load(p);
  const void* mask = kFirstDoubles + (4 - n);
  return _mm256_maskload_pd(p, _mm256_loadu_si256(static_cast<const __m256i*>(mask)));
}
// By halves, since masked stores take dozens of cycles on AMD's cores before Zen 4.
INLINE void store(float* p, Vec<float> v, int64_t n) {
  if (n >= 8) return store(p, v);
  __m128 rest = _mm256_castps256_ps128(v);
  if (n & 4) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps(v, 1), p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
    rest = _mm_movehl_ps(rest, rest), p += 2;
  }
  if (n & 1) _mm_store_ss(p, rest);
}
INLINE void store(double* p, Vec<double> v, int64_t n) {
  if (n >= 4) return store(p, v);
  __m128d rest = _mm256_castpd256_pd128(v);
  if (n & 2) {
    _mm_storeu_pd(p, rest);
    rest = _mm256_extractf128_pd(v, 1), p += 2;
  }
  if (n & 1) _mm_store_sd(p, rest);
}
#else
template <typename T>
INLINE Vec<T> load(const T* p, int64_t n) {
  if (n >= kLanes<T>) return load(p);
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
INLINE void store(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) return store(p, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// Of each 16 bytes of a and b the lower (Half == 0) or upper lanes, taken alternately: no lane
// crosses the 128-bit parts of a register, which costs more.
template <int Half, typename T, int... Lane>
INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = kLanes<T>, part = 16 / sizeof(T);
  return __builtin_shufflevector(
      a, b, (Lane / part * part + Half * part / 2 + Lane % part / 2 + Lane % 2 * lanes)...);
}

template <int Shift, typename V, int... Lane>
INLINE V rotate(V v, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(v, v, ((Lane + Shift) % static_cast<int>(sizeof...(Lane)))...);
}

// Lane i of the result is lane (i + Shift) modulo kLanes of v.
template <typename T, int Shift>
INLINE Vec<T> rotate(Vec<T> v) {
  return rotate<Shift>(v, std::make_integer_sequence<int, kLanes<T>>{});
}

// The sum of the 128-bit parts of v, in each of them.
template <typename T, int Shift = kLanes<T> / 2>
INLINE Vec<T> sum_parts(Vec<T> v) {
  if constexpr (Shift * sizeof(T) < 16) {
    return v;
  } else {
    return sum_parts<T, Shift / 2>(v + rotate<T, Shift>(v));
  }
}

// The lanes of a and b, two by two: sums of a and of b over and over.
template <typename T>
INLINE Vec<T> sum_pairs(Vec<T> a, Vec<T> b) {
  using Lanes = std::make_integer_sequence<int, kLanes<T>>;
  return interleave<0, T>(a, b, Lanes{}) + interleave<1, T>(a, b, Lanes{});
}

// The sums over the lanes of four vectors, in the order of the arguments; always added in the same
// order.
template <typename T>
INLINE void sum_lanes(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, T (&sums)[4]) {
  const Vec<T> ac = sum_pairs<T>(a, c), bd = sum_pairs<T>(b, d);
  if constexpr (sizeof(T) == 8) {
    const Vec<T> of_ac = sum_parts<T>(ac), of_bd = sum_parts<T>(bd);
    sums[0] = of_ac[0], sums[1] = of_bd[0], sums[2] = of_ac[1], sums[3] = of_bd[1];
  } else {
    const Vec<T> abcd = sum_parts<T>(sum_pairs<T>(ac, bd));
    for (int i = 0; i < 4; ++i) sums[i] = abcd[i];
  }
}

// One of two rows of squares of `Block` x `Block` lanes, after the odd squares of the upper row
// have changed places with the even ones of the lower.
template <int Block, bool Upper, typename V, int... Lane>
INLINE V exchange(V upper, V lower, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = sizeof...(Lane);
  return __builtin_shufflevector(upper, lower,
                                 (Upper ? (Lane & Block ? lanes + Lane - Block : Lane)
                                        : (Lane & Block ? lanes + Lane : Lane + Block))...);
}

// Transposes a square of N x N pieces of vectors, of kLanes / N lanes each: its four quarters
// change places, then those of each quarter, and so on. Only the first exchanges cross the 128-bit
// halves of registers, which costs more.
template <typename T, int N, int Half = N / 2>
INLINE void transpose(Vec<T> (&rows)[N]) {
  if constexpr (Half > 0) {
    constexpr int block = Half * kLanes<T> / N;
    using Lanes = std::make_integer_sequence<int, kLanes<T>>;
    for (int i = 0; i < N; ++i) {
      if (i & Half) continue;
      const Vec<T> upper = rows[i], lower = rows[i + Half];
      rows[i] = exchange<block, true>(upper, lower, Lanes{});
      rows[i + Half] = exchange<block, false>(upper, lower, Lanes{});
    }
    transpose<T, N, Half / 2>(rows);
  }
}

// The first kLanes / N lanes of N vectors side by side, in the order of `rows`.
template <typename T, int N>
INLINE Vec<T> join(const Vec<T> (&rows)[N]) {
  if constexpr (N == 1) {
    return rows[0];
  } else {
    constexpr int block = kLanes<T> / N;
    Vec<T> pairs[N / 2];
    for (int i = 0; i < N / 2; ++i) {
      pairs[i] = exchange<block, true>(rows[2 * i], rows[2 * i + 1],
                                       std::make_integer_sequence<int, kLanes<T>>{});
    }
    return join<T>(pairs);
  }
}

}  // namespace
}  // namespace lstm_fast
