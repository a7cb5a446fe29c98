// What runs the ops of a layer with options on CUDA devices (../../cuda/variant.h).
#include "../variant.h"

#include "../../cuda/variant.h"
#include "device.h"

namespace lstm_fast::cuda {
namespace {

class VariantOnDevice {
 public:
  explicit VariantOnDevice(const Tensor& input) : on_(input), device_(current_device()) {}

  template <typename T>
  void forward(const VariantForward<T>& p, const Tensor& input, int64_t /*parts*/) const {
    Tensor workspace =
        empty({variant_forward_workspace_bytes(p, device_)}, ScalarType::Byte, input);
    variant_forward(p, device_, mutable_data<void>(workspace), on_.stream);
  }

  template <typename T>
  void backward(const VariantProblemBackward<T>& p, const Tensor& input, int64_t /*parts*/) const {
    Tensor workspace =
        empty({variant_backward_workspace_bytes(p, device_)}, ScalarType::Byte, input);
    variant_backward(p, device_, mutable_data<void>(workspace), on_.stream);
  }

 private:
  OnDevice on_;
  Device device_;
};

}  // namespace
}  // namespace lstm_fast::cuda

#ifdef LSTM_FAST_CUDA_EMULATION

// The same code under another name, on the tensors of a torch without CUDA.
STABLE_TORCH_LIBRARY_FRAGMENT(lstm_fast_cuda_emulation, m) {
  m.def(lstm_fast::kVariantSchema);
  m.def(lstm_fast::kVariantBackwardSchema);
}
STABLE_TORCH_LIBRARY_IMPL(lstm_fast_cuda_emulation, CPU, m) {
#else

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CUDA, m) {

#endif
  using Ops = lstm_fast::VariantOps<lstm_fast::cuda::VariantOnDevice>;
  m.impl("variant", TORCH_BOX(&Ops::forward));
  m.impl("variant_backward", TORCH_BOX(&Ops::backward));
}
