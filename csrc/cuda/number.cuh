// Element types. Tensors of the caller have elements T: float, double, __half or __nv_bfloat16.
// Sums, cells and everything kept between kernels have Wide<T>: float, or double for double.
#pragma once

#include "device.cuh"

namespace lstm_fast::cuda {

template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// The nearest T.
template <typename T>
__device__ __forceinline__ T narrow(Wide<T> x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// A read-only array of the caller's (T) or of ours (Wide<T>); null for none.
template <typename T>
struct Array {
  const T* narrow = nullptr;
  const Wide<T>* wide = nullptr;

  Array() = default;
  explicit Array(const T* caller) : narrow(caller) {}
  static Array ours(const Wide<T>* p) {
    Array array;
    array.wide = p;
    return array;
  }

  __device__ __forceinline__ bool given() const { return narrow || wide; }
  __device__ __forceinline__ Wide<T> operator[](int64_t i) const {
    return wide ? wide[i] : widen(narrow[i]);
  }
  Array operator+(int64_t elements) const {
    Array moved = *this;
    if (moved.narrow) moved.narrow += elements;
    if (moved.wide) moved.wide += elements;
    return moved;
  }
};

}  // namespace lstm_fast::cuda
