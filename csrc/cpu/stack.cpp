#include "stack.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "plan.h"

namespace lstm_fast {
namespace {

// Whether a single step makes its products of bfloat16 weights as they are. Gates are recomputed
// from widened ones.
template <typename T>
bool multiplies_bfloat16(const Kernels& kernels, const StackForward<T>& p) {
  return p.bfloat16_weights && p.shape.parts && !p.recompute_gates &&
         kernels.of(T()).unit != Bf16Unit::None;
}

template <typename T>
bool is_ordinary(const Kernels& kernels, const T* m, int64_t n, const Threads& threads) {
  if (!m) return true;
  std::atomic<bool> ordinary = true;
  run_shares(threads, 1, n * sizeof(T), [&](int64_t, const Share& share) {
    const int64_t begin = share.begin(n);
    if (!kernels.of(T()).is_ordinary(m + begin, share.end(n) - begin)) ordinary = false;
  });
  return ordinary;
}

// Whether products of x and h0 can be made of several parts. Dot products take whatever bfloat16
// holds.
template <typename T, typename Problem>
bool ordinary_inputs(const Kernels& kernels, const Problem& p, const Threads& threads) {
  const StackShape& s = p.shape;
  return s.unit != Bf16Unit::Matrix ||
         (is_ordinary(kernels, p.x, s.steps.total() * s.I, threads) &&
          is_ordinary(kernels, p.h0, s.L * s.D * s.steps.B * s.P, threads));
}

}  // namespace

template <typename T>
void pack_layer(const Kernels& kernels, const StackForward<T>& p, int64_t i, const Share& share,
                T* packed) {
  const LayerKernels<T>& k = kernels.of(T());
  const LayerShape layer = p.shape.layer(i / p.shape.D, i % p.shape.D);
  if (p.bfloat16_weights) {
    k.pack_forward_bfloat16(layer, p.bfloat16_weights[i], share, packed);
  } else if (p.float16_weights) {
    k.pack_forward_float16(layer, p.float16_weights[i], share, packed);
  } else {
    k.pack_forward(layer, p.weights[i], share, packed);
  }
}

template <typename T>
void pack_weights(const Kernels& kernels, const StackForward<T>& p, int64_t begin, int64_t end,
                  T* const* packed, const Threads& threads) {
  const LayerKernels<T>& k = kernels.of(T());
  const StackShape& s = p.shape;
  int64_t size = 0;
  for (int64_t i = begin; i < end; ++i) size += k.forward_weights_size(s.layer(i / s.D, i % s.D));
  run_shares(threads, end - begin, size * sizeof(T), [&](int64_t item, const Share& share) {
    pack_layer(kernels, p, begin + item, share, packed[begin + item]);
  });
}

template <typename T>
bool ordinary_weights(const Kernels& kernels, const StackShape& s, const LayerWeights<T>* weights,
                      const Threads& threads) {
  if (kernels.of(T()).unit != Bf16Unit::Matrix) return true;
  for (int64_t i = 0; i < s.L * s.D; ++i) {
    const LayerWeights<T>& w = weights[i];
    if (!is_ordinary(kernels, w.weight_ih, 4 * s.H * s.input_size(i / s.D), threads) ||
        !is_ordinary(kernels, w.weight_hh, 4 * s.H * s.P, threads) ||
        !is_ordinary(kernels, w.weight_hr, s.P * s.H, threads)) {
      return false;
    }
  }
  return true;
}

template <typename T>
bool takes_plain_steps(const Kernels& kernels, const StackForward<T>& p, const Threads& threads) {
  const StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const bool on_unit = p.bfloat16_weights && unit_takes(k.unit, s.parts);
  constexpr int64_t half = sizeof(BFloat16), whole = sizeof(T);
  const WeightBytes bytes = {p.has_halves() ? half : whole, on_unit ? half : whole,
                             k.unit_group * whole};
  if (s.steps.T > 1) {
    return s.parts && !p.recompute_gates &&
           suits_plain_steps(s, p.keeps_packed, bytes, threads, sizeof(T));
  }
  if (s.steps.T < 1) return false;
  // By parts of 0, a row is summed as in any batch, and in a packed one others may be longer.
  if (!s.parts) return !s.steps.batch_sizes;
  if (k.unit == Bf16Unit::DotProducts && multiplies_bfloat16(kernels, p)) {
    return s.steps.B <= dot_step_rows(s, Pass::Forward, threads);
  }
  return s.steps.B <= plain_step_rows(s, p.keeps_packed, bytes, threads, sizeof(T));
}

template <typename T>
void plan(const Kernels& kernels, StackForward<T>& p, const Threads& threads) {
  StackShape& s = p.shape;
  s.unit = kernels.of(T()).unit;
  p.plain = takes_plain_steps(kernels, p, threads);
  const Threads team = threads_of(s, Pass::Forward, threads);
  const auto division = [&] { return divide(s, Pass::Forward, team, sizeof(T), p.packs()); };
  bool unit = !p.plain && unit_pays(s, Pass::Forward, division());
  unit = unit && ordinary_inputs<T>(kernels, p, team) &&
         (p.keeps_packed || ordinary_weights(kernels, s, p.weights, team));
  // Another order of sums than that of parts 0. Recomputed gates are to be those of the forward
  // pass, bit for bit.
  const bool may = s.parts && !unit && !p.plain && !p.recompute_gates &&
                   widest_layer(s).I >= min_summed_inputs(s);
  if (!unit && !(p.plain && multiplies_bfloat16(kernels, p))) s.parts = 0;
  p.sums_inputs = may && sums_inputs_first(s, division(), team, sizeof(T));
}

template <typename T>
void plan(const Kernels& kernels, StackBackward<T>& p, const Threads& threads) {
  StackShape& s = p.shape;
  if (p.recompute_gates) {
    StackForward<T> forward{};
    forward.shape = s;
    forward.weights = p.weights;
    forward.bfloat16_weights = p.bfloat16_weights;
    forward.float16_weights = p.float16_weights;
    forward.x = p.x;
    forward.h0 = p.h0;
    forward.recompute_gates = true;
    plan(kernels, forward, threads);
    p.forward_parts = forward.shape.parts;
    p.forward_plain = forward.plain;
  }
  s.unit = kernels.of(T()).unit;
  if (!s.steps.total()) s.parts = 0;  // no product clears the gradients of weights then
  const Threads team = threads_of(s, Pass::Backward, threads);
  const Division division = divide(s, Pass::Backward, team, sizeof(T), false);
  const bool step = p.bfloat16_weights && s.steps.T == 1 && !s.projected && !p.recompute_gates;
  const int64_t dot_rows = s.unit == Bf16Unit::None ? 0
                           : s.unit == Bf16Unit::DotProducts
                               ? dot_step_rows(s, Pass::Backward, threads)
                               : kFewRows;
  const bool dots = step && s.parts && s.steps.B <= dot_rows;
  const bool unit = unit_pays(s, Pass::Backward, division) && ordinary_inputs<T>(kernels, p, team);
  if (!dots && !unit) s.parts = 0;
  // Used too seldom to win back packing.
  p.plain = dots || (s.steps.total() <= kFewRows && !s.parts);
  p.bfloat16_step = step && p.plain;
}

template void pack_layer(const Kernels&, const StackForward<float>&, int64_t, const Share&, float*);
template void pack_layer(const Kernels&, const StackForward<double>&, int64_t, const Share&,
                         double*);
template void pack_weights(const Kernels&, const StackForward<float>&, int64_t, int64_t,
                           float* const*, const Threads&);
template void pack_weights(const Kernels&, const StackForward<double>&, int64_t, int64_t,
                           double* const*, const Threads&);
template bool ordinary_weights(const Kernels&, const StackShape&, const LayerWeights<float>*,
                               const Threads&);
template bool ordinary_weights(const Kernels&, const StackShape&, const LayerWeights<double>*,
                               const Threads&);
template bool takes_plain_steps(const Kernels&, const StackForward<float>&, const Threads&);
template bool takes_plain_steps(const Kernels&, const StackForward<double>&, const Threads&);
template void plan(const Kernels&, StackForward<float>&, const Threads&);
template void plan(const Kernels&, StackForward<double>&, const Threads&);
template void plan(const Kernels&, StackBackward<float>&, const Threads&);
template void plan(const Kernels&, StackBackward<double>&, const Threads&);

}  // namespace lstm_fast
