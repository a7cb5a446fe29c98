// What runs the ops of a layer with options on the CPU (../cpu/variant.h).
#include "variant.h"

#include "../cpu/variant.h"
#include "cpu.h"

namespace lstm_fast {
namespace {

int unit_parts(int64_t parts) { return static_cast<int>(std::clamp<int64_t>(parts, 0, 3)); }

template <typename T>
VariantResult run_forward(const VariantArguments& a, bool save, int parts) {
  VariantResults results(a, save);
  VariantForward<T> p = results.problem<T>(a);
  p.shape.parts = parts;
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  const auto workspace = allocate<T>(variant_forward_workspace_size(kernels, p, threads));
  variant_forward(kernels, p, threads, workspace.get());
  return results.all();
}

VariantResult variant(const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
                      const Tensor& c0, const std::vector<Tensor>& params,
                      const std::vector<Tensor>& norms, bool has_biases, bool reverse,
                      int64_t gate_activation, int64_t cell_activation, const OptionalTensor& reset,
                      const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                      const OptionalTensor& drop_h, const OptionalTensor& zone_h,
                      const OptionalTensor& zone_c, bool save, int64_t parts) {
  const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                           gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                           zone_h, zone_c);
  return a.dtype == ScalarType::Double ? run_forward<double>(a, save, 0)
                                       : run_forward<float>(a, save, unit_parts(parts));
}

template <typename T>
VariantBackwardResult run_backward(const VariantArguments& a, const VariantOutputGrads& grads,
                                   const Tensor& cells, const Tensor& saved, bool need_input,
                                   bool need_params, int parts) {
  VariantGrads results(a, need_input, need_params);
  VariantProblemBackward<T> p = results.problem<T>(a, grads, cells, saved);
  p.rows.shape.parts = parts;
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  const auto workspace = allocate<T>(variant_backward_workspace_size(kernels, p, threads));
  variant_backward(kernels, p, threads, workspace.get());
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
    const Tensor& saved, bool need_input, bool need_params, int64_t parts) {
  const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                           gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                           zone_h, zone_c);
  const VariantOutputGrads grads(a, grad_output, grad_h_n, grad_c_n, grad_cells);
  const Tensor all_cells = check_saved(a, cells, saved);
  return a.dtype == ScalarType::Double
             ? run_backward<double>(a, grads, all_cells, saved, need_input, need_params, 0)
             : run_backward<float>(a, grads, all_cells, saved, need_input, need_params,
                                   unit_parts(parts));
}

}  // namespace
}  // namespace lstm_fast

STABLE_TORCH_LIBRARY_FRAGMENT(lstm_fast, m) {
  m.def(lstm_fast::kVariantSchema);
  m.def(lstm_fast::kVariantBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CPU, m) {
  m.impl("variant", TORCH_BOX(&lstm_fast::variant));
  m.impl("variant_backward", TORCH_BOX(&lstm_fast::variant_backward_op));
}
