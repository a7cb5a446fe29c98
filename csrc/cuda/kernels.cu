// The kernels of one dtype: compiled once for each, with LSTM_FAST_DTYPE (float32, float64, float16
// or bfloat16) and LSTM_FAST_ELEMENT (its C++ type) given by the build.
#include "kernels.h"
#include "stack.cuh"

namespace lstm_fast::cuda {
namespace {

using T = LSTM_FAST_ELEMENT;

constexpr Element kElement = sizeof(T) == 2   ? Element::Half
                             : sizeof(T) == 4 ? Element::Float32
                                              : Element::Float64;

// Calls f with the stack that the planner chooses.
template <typename Problem, typename F>
auto with_stack(const Problem& p, const Device& device, void* stream, const F& f) {
  constexpr Pass pass = std::is_same_v<Problem, StackForward> ? Pass::Forward : Pass::Backward;
  const Plan how = plan_steps(device, p.shape, kElement, p.allow_tf32, pass);
  if constexpr (kElement == Element::Float64) {
    return f(Stack<T, Unit::Exact>(p.shape, p.recompute_gates, device, how, stream));
  } else if constexpr (kElement == Element::Half) {
    return f(Stack<T, Unit::Tensor>(p.shape, p.recompute_gates, device, how, stream));
  } else {
    return uses_tensor_cores(device, kElement, p.allow_tf32)
               ? f(Stack<T, Unit::Tensor>(p.shape, p.recompute_gates, device, how, stream))
               : f(Stack<T, Unit::Exact>(p.shape, p.recompute_gates, device, how, stream));
  }
}

int64_t forward_workspace_bytes(const StackForward& p, const Device& device) {
  return with_stack(p, device, nullptr, [&](auto stack) { return stack.plan_forward(p).bytes; });
}

void forward(const StackForward& p, const Device& device, void* stream) {
  with_stack(p, device, stream, [&](auto stack) { stack.forward(p); });
}

int64_t backward_workspace_bytes(const StackBackward& p, const Device& device) {
  return with_stack(p, device, nullptr, [&](auto stack) { return stack.plan_backward(p).bytes; });
}

void backward(const StackBackward& p, const Device& device, void* stream) {
  with_stack(p, device, stream, [&](auto stack) { stack.backward(p); });
}

}  // namespace

#define LSTM_FAST_JOIN(a, b) a##b
#define LSTM_FAST_KERNELS_OF(dtype) LSTM_FAST_JOIN(kernels_, dtype)
extern const StackKernels LSTM_FAST_KERNELS_OF(LSTM_FAST_DTYPE);
const StackKernels LSTM_FAST_KERNELS_OF(LSTM_FAST_DTYPE) = {forward_workspace_bytes, forward,
                                                            backward_workspace_bytes, backward};

}  // namespace lstm_fast::cuda
