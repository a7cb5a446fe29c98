// The gate functions on vectors. Exponentials come from Cody-Waite range reduction, x = n ln 2 + r,
// and a polynomial fitted on |r| <= ln 2 / 2 for the smallest relative error of exp.
//
// Largest error in units in the last place, over all arguments (tests/test_kernels.py): sigmoid 3,
// tanh 3. A sigmoid and a tanh that are multiplied could share a division; measured, that saves no
// time on Zen 4, where divisions run beside the multiply-adds, and costs half a unit more of error.
#pragma once

#include "simd.h"

namespace lstm_fast {
namespace {

template <typename T>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr float kRound =
      0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kExponentBias = 127;
  // tanh(x) rounds to one beyond kTanhLimit / 2; smaller sigmoids than that of -kSigmoidLimit are
  // subnormal.
  static constexpr float kTanhLimit = 18.5f;
  static constexpr float kSigmoidLimit = 87.f;
  static constexpr float kExpm1[] = {0.499999934517084336f, 0.166665206898330188f,
                                     0.0416683873612611455f, 0.00836870982417119432f,
                                     0.00138146132607797708f};
};

template <>
struct MathConstants<double> {
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Low = 5.4979230187083711747e-14;
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kExponentBias = 1023;
  static constexpr double kTanhLimit = 38.5;
  static constexpr double kSigmoidLimit = 708.;
  static constexpr double kExpm1[] = {0.50000000000000127272,     0.16666666666666482434,
                                      0.041666666666516322379,    0.0083333333334514329145,
                                      0.0013888888946678827123,   0.0001984126959711890376,
                                      0.000024801490346235071109, 2.7557507285412289794e-6,
                                      2.7631125446226205028e-7,   2.5024645209649299235e-8};
};

// exp(x) = scale + scale * expm1(r), for |x| within the exponent range. Not-a-number stays so.
template <typename T>
struct ExpParts {
  Vec<T> scale;    // 2^n
  Vec<T> residue;  // expm1(r)
};

template <typename T>
INLINE ExpParts<T> exp_parts(Vec<T> x) {
  using C = MathConstants<T>;
  const Vec<T> shifted = fma(x, broadcast(T(1.4426950408889634074)), broadcast(C::kRound));
  const Vec<T> n = shifted - C::kRound;
  Vec<T> r = fma(n, broadcast(-C::kLn2High), x);
  r = fma(n, broadcast(-C::kLn2Low), r);
  constexpr int terms = sizeof(C::kExpm1) / sizeof(T);
  Vec<T> p = broadcast(C::kExpm1[terms - 1]);
  for (int i = terms - 2; i >= 0; --i) p = fma(p, r, broadcast(C::kExpm1[i]));
  const IntVec<T> exponent = bit_cast<IntVec<T>>(shifted) + C::kExponentBias;
  return {bit_cast<Vec<T>>(exponent << C::kMantissaBits), fma(r * r, p, r)};
}

template <typename T>
INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}

template <typename T>
INLINE Vec<T> sigmoid(Vec<T> x) {
  constexpr T limit = MathConstants<T>::kSigmoidLimit;
  const ExpParts<T> e = exp_parts<T>(clamp<T>(-x, -limit, limit));
  return T(1) / (T(1) + fma(e.scale, e.residue, e.scale));
}

// expm1(2x) / (expm1(2x) + 2): no cancellation near zero.
template <typename T>
INLINE Vec<T> tanh(Vec<T> x) {
  constexpr T limit = MathConstants<T>::kTanhLimit;
  const ExpParts<T> e = exp_parts<T>(clamp<T>(x + x, -limit, limit));
  const Vec<T> m = fma(e.scale, e.residue, e.scale - T(1));
  return m / (m + T(2));
}

template <typename T>
void activations(const T* x, int64_t n, T* s, T* h) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Vec<T> v = load(x + i, n - i);
    store(s + i, sigmoid<T>(v), n - i);
    store(h + i, tanh<T>(v), n - i);
  }
}

}  // namespace
}  // namespace lstm_fast
