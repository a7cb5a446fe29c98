// The arithmetic of one cell at one step, forward and backward: the only place that has it.
// Formulas as in lstm_fast/reference.py.
#pragma once

#include "number.cuh"

namespace lstm_fast::cuda {

// Within 2 units in the last place of expf and tanhf (CUDA C++ Programming Guide, mathematical
// functions); both saturate, and hand not-a-number on.
template <typename A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (A(1) + exp(-x));
}

template <typename A>
struct Gates {
  A i, f, g, o;
};

template <typename A>
__device__ __forceinline__ Gates<A> activate(const Gates<A>& a) {
  return {sigmoid(a.i), sigmoid(a.f), tanh(a.g), sigmoid(a.o)};
}

template <typename A>
__device__ __forceinline__ A next_cell(const Gates<A>& gates, A c_prev) {
  return gates.f * c_prev + gates.i * gates.g;
}

template <typename A>
__device__ __forceinline__ A hidden(const Gates<A>& gates, A c) {
  return gates.o * tanh(c);
}

// Gradients before the activations, from those of the hidden value (dm) and of the cell (dc, which
// leaves as that of the previous cell).
template <typename A>
__device__ __forceinline__ Gates<A> gate_gradients(const Gates<A>& gates, A c, A c_prev, A dm,
                                                   A& dc) {
  const A tanh_c = tanh(c);
  const A d = dc + dm * gates.o * (A(1) - tanh_c * tanh_c);
  dc = d * gates.f;
  return {d * gates.g * gates.i * (A(1) - gates.i), d * c_prev * gates.f * (A(1) - gates.f),
          d * gates.i * (A(1) - gates.g * gates.g), dm * tanh_c * gates.o * (A(1) - gates.o)};
}

}  // namespace lstm_fast::cuda
