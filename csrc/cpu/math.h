// The gate functions on vectors. Exponentials come from Cody-Waite range reduction, x = n ln 2 + r,
// and a polynomial fitted on |r| <= ln 2 / 2 for the smallest relative error of exp.
//
// Largest error in units in the last place, over all arguments (tests/test_kernels.py): tanh 3,
// sigmoid 4, below -50 up to 6. The parts of a sigmoid and a tanh that are multiplied are at hand
// too, so that both can share a division: with AVX-512 it keeps the divider of Intel's cores busy
// for 16 cycles, as long as the rest of a gate takes.
#pragma once

#include "simd.h"

namespace lstm_fast {
namespace {

template <typename T>
struct MathConstants;

template <>
struct MathConstants<float> {
  // Adding it leaves the nearest integer, and the bias of exponents, in the low bits.
  static constexpr float kRound = 0x1.8p23f + 127;
  // A fused product with n is exact. ln 2 happens to lie so close to a float32 that the rest, which
  // would take a tenth of the time of a gate, adds 2 units in the last place at n = 126. Other
  // products need room for n in the upper part.
  static constexpr float kLn2High = kFused ? 0x1.62e43p-1f : 0x1.62e4p-1f;
  static constexpr float kLn2Low = kFused ? 0.f : 0x1.7f7d1cp-20f;
  static constexpr int kMantissaBits = 23;
  // tanh(x) rounds to one beyond kTanhLimit / 2; smaller sigmoids than that of -kSigmoidLimit are
  // subnormal.
  static constexpr float kTanhLimit = 18.5f;
  static constexpr float kSigmoidLimit = 87.f;
  static constexpr float kExpm1[] = {0.499999934517084336f, 0.166665206898330188f,
                                     0.0416683873612611455f, 0.00836870982417119432f,
                                     0.00138146132607797708f};
  // For products of bfloat16, whose errors are 2^-9: that of exp is 2^-17.5.
  static constexpr float kRoughExpm1[] = {0.50005116f, 0.167535139f, 0.0412777476f};
};

template <>
struct MathConstants<double> {
  static constexpr double kRound = 0x1.8p52 + 1023;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Low = 5.4979230187083711747e-14;
  static constexpr int kMantissaBits = 52;
  static constexpr double kTanhLimit = 38.5;
  static constexpr double kSigmoidLimit = 708.;
  static constexpr double kExpm1[] = {0.50000000000000127272,     0.16666666666666482434,
                                      0.041666666666516322379,    0.0083333333334514329145,
                                      0.0013888888946678827123,   0.0001984126959711890376,
                                      0.000024801490346235071109, 2.7557507285412289794e-6,
                                      2.7631125446226205028e-7,   2.5024645209649299235e-8};
};

// exp(x) = scale + scale * expm1(r), for |x| within the exponent range. Not-a-number stays so. N
// vectors take each operation in turn: one of them alone would wait for its own results.
template <typename T, int N>
struct ExpParts {
  Vec<T> scale[N];    // 2^n
  Vec<T> residue[N];  // expm1(r)
};

template <typename T, int N, int Terms>
INLINE ExpParts<T, N> exp_parts(const Vec<T> (&x)[N], const T (&coefficients)[Terms]) {
  using C = MathConstants<T>;
  ExpParts<T, N> e;
  Vec<T> n[N], r[N], p[N];
  const auto for_all = [](const auto& f) {
    for (int i = 0; i < N; ++i) f(i);
  };
  for_all([&](int i) {
    e.scale[i] = fma(x[i], broadcast(T(1.4426950408889634074)), broadcast(C::kRound));
  });
  for_all([&](int i) { n[i] = e.scale[i] - C::kRound; });
  for_all([&](int i) { r[i] = fma(n[i], broadcast(-C::kLn2High), x[i]); });
  if constexpr (C::kLn2Low != 0) {
    for_all([&](int i) { r[i] = fma(n[i], broadcast(-C::kLn2Low), r[i]); });
  }
  for_all([&](int i) { p[i] = broadcast(coefficients[Terms - 1]); });
  for (int k = Terms - 2; k >= 0; --k) {
    for_all([&](int i) { p[i] = fma(p[i], r[i], broadcast(coefficients[k])); });
  }
  for_all([&](int i) { e.residue[i] = fma(r[i] * r[i], p[i], r[i]); });
  for_all([&](int i) {
    e.scale[i] = bit_cast<Vec<T>>(bit_cast<IntVec<T>>(e.scale[i]) << C::kMantissaBits);
  });
  return e;
}

template <typename T, int N, bool Rough = false>
INLINE ExpParts<T, N> exp_parts(const Vec<T> (&x)[N]) {
  if constexpr (Rough) return exp_parts<T, N>(x, MathConstants<T>::kRoughExpm1);
  return exp_parts<T, N>(x, MathConstants<T>::kExpm1);
}

// What the functions hand to the exponential: -x and 2x, where they are not saturated.
template <typename T>
INLINE Vec<T> sigmoid_exponent(Vec<T> x) {
  constexpr T limit = MathConstants<T>::kSigmoidLimit;
  return -clamp(x, -limit, limit);
}
template <typename T>
INLINE Vec<T> tanh_exponent(Vec<T> x) {
  constexpr T limit = MathConstants<T>::kTanhLimit;
  return clamp(x + x, -limit, limit);
}

template <typename T, int N>
INLINE Vec<T> exp(const ExpParts<T, N>& e, int i) {
  return fma(e.scale[i], e.residue[i], e.scale[i]);
}
// The reciprocal of the sigmoid.
template <typename T, int N>
INLINE Vec<T> one_plus_exp(const ExpParts<T, N>& e, int i) {
  return T(1) + exp(e, i);
}
// m = expm1(2x), of which tanh(x) is m / (m + 2): no cancellation near zero.
template <typename T, int N>
INLINE Vec<T> expm1(const ExpParts<T, N>& e, int i) {
  return fma(e.scale[i], e.residue[i], e.scale[i] - T(1));
}

// The quotient n / d from one that is off by some roundings, given 1 / d likewise.
template <typename T>
INLINE Vec<T> refined(Vec<T> quotient, Vec<T> n, Vec<T> d, Vec<T> d_inverse) {
  return fma(fma(-quotient, d, n), d_inverse, quotient);
}

// The sigmoid, of exp(-x). Near one, 1 + exp is rounded mostly to one side: a cell that such a gate
// keeps for thousands of steps would drift.
template <typename T>
INLINE Vec<T> sigmoid_of_exp(Vec<T> e) {
  const Vec<T> s = T(1) / (T(1) + e);
  return fma(fma(-s, e, T(1) - s), s, s);
}

template <typename T>
INLINE Vec<T> sigmoid(Vec<T> x) {
  return sigmoid_of_exp<T>(exp(exp_parts<T, 1>({sigmoid_exponent<T>(x)}), 0));
}

template <typename T, int N>
INLINE void tanh(const Vec<T> (&x)[N], Vec<T> (&y)[N]) {
  for (int i = 0; i < N; ++i) y[i] = tanh_exponent<T>(x[i]);
  const ExpParts<T, N> e = exp_parts<T, N>(y);
  for (int i = 0; i < N; ++i) y[i] = expm1(e, i);
  for (int i = 0; i < N; ++i) y[i] = y[i] / (y[i] + T(2));
}

template <typename T>
void activations(const T* x, int64_t n, T* s, T* h) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Vec<T> v = load(x + i, n - i);
    store(s + i, sigmoid<T>(v), n - i);
    Vec<T> y[1];
    tanh<T, 1>({v}, y);
    store(h + i, y[0], n - i);
  }
}

}  // namespace
}  // namespace lstm_fast
