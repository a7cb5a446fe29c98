// Compiled once for each instruction set, with LSTM_FAST_ISA set to its name.
#include "kernels.h"

#include <cstddef>

#include "backward.h"
#include "forward.h"
#include "forward_step.h"
#include "halves.h"
#include "recompute.h"
#include "variant_backward.h"
#include "variant_forward.h"
#include "weight_grad.h"

namespace lstm_fast {
namespace {

constexpr StepKernels<float> bfloat16_step(float) {
  return {step_scratch, forward_bfloat16_step, step_grad_panels, step_grad,
          bfloat16_step_weight_grad};
}
constexpr StepKernels<double> bfloat16_step(double) { return {}; }

// What reads weights of halves computes in float32.
template <typename F>
constexpr F* of_halves(float, F* f) {
  return f;
}
template <typename F>
constexpr std::nullptr_t of_halves(double, F*) {
  return nullptr;
}

template <typename T>
constexpr LayerKernels<T> layer_kernels() {
  return {kUnit<T>,
          is_ordinary<T>,
          activations<T>,
          forward_weights_size<T>,
          pack_forward<T>,
          of_halves(T(), pack_forward<BFloat16>),
          of_halves(T(), pack_forward<Float16>),
          forward_scratch<T>,
          forward_input_sums<T>,
          forward_rows<T>,
          kLanes<T>,
          forward_step<T, T>,
          of_halves(T(), forward_step<float, Float16>),
          recompute_scratch<T>,
          recompute_rows<T>,
          backward_weights_size<T>,
          pack_backward<T>,
          of_halves(T(), pack_backward<BFloat16>),
          backward_scratch<T>,
          backward_rows<T>,
          input_grad_weights_size<T>,
          pack_input_grad<T>,
          of_halves(T(), pack_input_grad<BFloat16>),
          input_grad_scratch<T>,
          input_grad_rows<T>,
          weight_grad_strips<T>,
          weight_grad_chunks<T>,
          weight_grad_sums<T>,
          weight_grad_scratch<T>,
          weight_grad<T>,
          add_chunks<T>,
          bfloat16_step(T()),
          {variant_forward_weights_size<T>, variant_pack_forward<T>, variant_forward_scratch<T>,
           variant_forward_rows<T>, variant_backward_weights_size<T>, variant_pack_backward<T>,
           variant_backward_scratch<T>, variant_backward_rows<T>, column_sums<T>}};
}

}  // namespace

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME_(isa) #isa
#define NAME(isa) NAME_(isa)

extern const Kernels JOIN(kernels_, LSTM_FAST_ISA);
const Kernels JOIN(kernels_, LSTM_FAST_ISA) = {NAME(LSTM_FAST_ISA),     layer_kernels<float>(),
                                               layer_kernels<double>(), widen<BFloat16>,
                                               narrow_to_bfloat16,      widen<Float16>};

}  // namespace lstm_fast
