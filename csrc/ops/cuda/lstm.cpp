// What runs the ops on CUDA devices (../../cuda/kernels.h): on torch's current stream, with memory
// of torch's allocator. Compiled only into builds with CUDA; loads under a torch without it.
#include "../lstm.h"

#include <cstdio>

#include "../../cuda/kernels.h"
#include "device.h"

namespace lstm_fast::cuda {
namespace {

Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return Dtype::Float64;
    case ScalarType::Half:
      return Dtype::Float16;
    case ScalarType::BFloat16:
      return Dtype::BFloat16;
    default:
      return Dtype::Float32;
  }
}

class LstmOnDevice {
 public:
  static constexpr Prepare prepare = as_contiguous;
  explicit LstmOnDevice(const Tensor& input) : on_(input), device_(current_device()) {}

  ForwardResult forward(const Arguments& a, bool save, int64_t parts) const {
    const StackShape& s = a.shape;
    Tensor y = empty(a.output_dims(s.D * s.P), a.dtype, a.input);
    Tensor h_n = a.empty_state(s.P, a.dtype), c_n = a.empty_state(s.H, a.dtype);
    Tensor saved = empty({save ? saved_layout(a).size() : 0}, compute_type(a.dtype), a.input);

    const auto weights =
        group_params<LayerWeights<void>>(s, a.has_biases, const_data<void>(a.params));
    StackForward p{};
    p.shape = s;
    p.weights = weights.data();
    p.x = const_data<void>(a.input);
    p.h0 = const_data<void>(a.h0);
    p.c0 = const_data<void>(a.c0);
    p.y = mutable_data<void>(y);
    p.h_n = mutable_data<void>(h_n);
    p.c_n = mutable_data<void>(c_n);
    p.saved = save ? mutable_data<void>(saved) : nullptr;
    p.recompute_gates = a.recompute_gates;
    p.allow_tf32 = parts == 1 || parts == 2;
    const StackKernels& kernels = stack_kernels(dtype_of(a.dtype));
    Tensor workspace =
        empty({kernels.forward_workspace_bytes(p, device_)}, ScalarType::Byte, a.input);
    p.workspace = mutable_data<void>(workspace);
    kernels.forward(p, device_, on_.stream);
    return {y, h_n, c_n, saved};
  }

  BackwardResult backward(const Arguments& a, const OutputGrads& grads, const Tensor& output,
                          const Tensor& saved, const Needs& needs, int64_t parts) const {
    const StackShape& s = a.shape;
    ArgumentGrads results(a, needs, a.dtype, empty, a.dtype, empty);

    const auto weights =
        group_params<LayerWeights<void>>(s, a.has_biases, const_data<void>(a.params));
    std::vector<LayerWeightGrads<void>> grad_weights;
    if (needs.params) {
      grad_weights =
          group_params<LayerWeightGrads<void>>(s, a.has_biases, results.param_pointers<void>());
    }
    const Tensor y = as_contiguous(output);
    StackBackward p{};
    p.shape = s;
    p.weights = weights.data();
    p.x = const_data<void>(a.input);
    p.h0 = const_data<void>(a.h0);
    p.c0 = const_data<void>(a.c0);
    p.y = const_data<void>(y);
    p.saved = const_data<void>(saved);
    p.recompute_gates = a.recompute_gates;
    p.grad_y = const_data<void>(grads.output);
    p.grad_h_n = const_data<void>(grads.h_n);
    p.grad_c_n = const_data<void>(grads.c_n);
    p.grad_x = wanted_data<void>(results.input);
    p.grad_h0 = wanted_data<void>(results.h0);
    p.grad_c0 = wanted_data<void>(results.c0);
    p.grad_weights = needs.params ? grad_weights.data() : nullptr;
    p.allow_tf32 = parts == 1 || parts == 2;
    const StackKernels& kernels = stack_kernels(dtype_of(a.dtype));
    Tensor workspace =
        empty({kernels.backward_workspace_bytes(p, device_)}, ScalarType::Byte, a.input);
    p.workspace = mutable_data<void>(workspace);
    kernels.backward(p, device_, on_.stream);
    return {results.input, results.h0, results.c0, results.params};
  }

 private:
  OnDevice on_;
  Device device_;
};

}  // namespace
}  // namespace lstm_fast::cuda

// The compute capability that the kernels a device runs were compiled for, as 10 * major + minor;
// 0, and why, where it runs none.
extern "C" __attribute__((visibility("default"))) int lstm_fast_cuda_capability(int device,
                                                                                char* why,
                                                                                size_t size) {
  using namespace lstm_fast::cuda;
  try {
    const OnDevice on(device);
    return current_device().compute_capability;
  } catch (const std::exception& error) {
    std::snprintf(why, size, "%s", error.what());
    return 0;
  }
}

#ifdef LSTM_FAST_CUDA_EMULATION

// The same code under another name, on the tensors of a torch without CUDA.
STABLE_TORCH_LIBRARY(lstm_fast_cuda_emulation, m) {
  m.def(lstm_fast::kForwardSchema);
  m.def(lstm_fast::kBackwardSchema);
}
STABLE_TORCH_LIBRARY_IMPL(lstm_fast_cuda_emulation, CPU, m) {
#else

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CUDA, m) {

#endif
  using Ops = lstm_fast::LstmOps<lstm_fast::cuda::LstmOnDevice>;
  m.impl("lstm", TORCH_BOX(&Ops::forward));
  m.impl("lstm_backward", TORCH_BOX(&Ops::backward));
}
