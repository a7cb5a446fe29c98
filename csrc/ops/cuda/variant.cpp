// What runs the ops of a layer with options on CUDA devices (../../cuda/variant.h).
#include "../variant.h"

#include "../../cuda/variant.h"
#include "device.h"

namespace lstm_fast::cuda {
namespace {

template <typename T>
VariantResult run_forward(const VariantArguments& a, bool save, void* stream) {
  VariantResults results(a, save);
  const VariantForward<T> p = results.problem<T>(a);
  const Device device = current_device();
  Tensor workspace = empty({variant_forward_workspace_bytes(p, device)}, ScalarType::Byte, a.input);
  variant_forward(p, device, mutable_data<void>(workspace), stream);
  return results.all();
}

VariantResult variant(const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
                      const Tensor& c0, const std::vector<Tensor>& params,
                      const std::vector<Tensor>& norms, bool has_biases, bool reverse,
                      int64_t gate_activation, int64_t cell_activation, const OptionalTensor& reset,
                      const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                      const OptionalTensor& drop_h, const OptionalTensor& zone_h,
                      const OptionalTensor& zone_c, bool save, int64_t /*parts*/) {
  const OnDevice on(input);
  const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                           gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                           zone_h, zone_c);
  return a.dtype == ScalarType::Double ? run_forward<double>(a, save, on.stream)
                                       : run_forward<float>(a, save, on.stream);
}

template <typename T>
VariantBackwardResult run_backward(const VariantArguments& a, const VariantOutputGrads& grads,
                                   const Tensor& cells, const Tensor& saved, bool need_input,
                                   bool need_params, void* stream) {
  VariantGrads results(a, need_input, need_params);
  const VariantProblemBackward<T> p = results.problem<T>(a, grads, cells, saved);
  const Device device = current_device();
  Tensor workspace =
      empty({variant_backward_workspace_bytes(p, device)}, ScalarType::Byte, a.input);
  variant_backward(p, device, mutable_data<void>(workspace), stream);
  return results.all();
}

VariantBackwardResult variant_backward_op(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
    const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells, const Tensor& input,
    const OptionalTensor& batch_sizes, const Tensor& h0, const Tensor& c0,
    const std::vector<Tensor>& params, const std::vector<Tensor>& norms, bool has_biases,
    bool reverse, int64_t gate_activation, int64_t cell_activation, const OptionalTensor& reset,
    const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& drop_h,
    const OptionalTensor& zone_h, const OptionalTensor& zone_c, const Tensor& cells,
    const Tensor& saved, bool need_input, bool need_params, int64_t /*parts*/) {
  const OnDevice on(input);
  const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                           gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                           zone_h, zone_c);
  const VariantOutputGrads grads(a, grad_output, grad_h_n, grad_c_n, grad_cells);
  const Tensor all_cells = check_saved(a, cells, saved);
  return a.dtype == ScalarType::Double
             ? run_backward<double>(a, grads, all_cells, saved, need_input, need_params, on.stream)
             : run_backward<float>(a, grads, all_cells, saved, need_input, need_params, on.stream);
}

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
  m.impl("variant", TORCH_BOX(&lstm_fast::cuda::variant));
  m.impl("variant_backward", TORCH_BOX(&lstm_fast::cuda::variant_backward_op));
}
