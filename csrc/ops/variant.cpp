// What runs the ops of a layer with options on the CPU (../cpu/variant.h).
#include "variant.h"

#include "../cpu/variant.h"
#include "cpu.h"

namespace lstm_fast {
namespace {

template <typename T>
VariantResult run_forward(const VariantArguments& a, bool save) {
  const VariantShape& s = a.shape;
  const VariantSavedLayout layout{s};
  Tensor y = a.empty_rows(s.P), h_n = a.empty_state(s.P), c_n = a.empty_state(s.H);
  Tensor cells = a.empty_rows(s.H);
  Tensor saved = empty({save ? layout.size() : 0}, a.dtype, a.input);

  VariantForward<T> p{};
  p.shape = s;
  p.plain = a.weights<T>();
  p.norms = a.norm_weights<T>();
  p.masks = a.masks<T>();
  p.x = const_data<T>(a.input);
  p.h0 = const_data<T>(a.h0);
  p.c0 = const_data<T>(a.c0);
  p.y = mutable_data<T>(y);
  p.h_n = mutable_data<T>(h_n);
  p.c_n = mutable_data<T>(c_n);
  p.cells = mutable_data<T>(cells);
  p.save = save;
  if (save) p.saved = layout.pieces(mutable_data<T>(saved));
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  const auto workspace = allocate<T>(variant_forward_workspace_size(kernels, p, threads));
  variant_forward(kernels, p, threads, workspace.get());
  return {y, h_n, c_n, cells, saved};
}

VariantResult variant(const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
                      const Tensor& c0, const std::vector<Tensor>& params,
                      const std::vector<Tensor>& norms, bool has_biases, bool reverse,
                      int64_t gate_activation, int64_t cell_activation, const OptionalTensor& reset,
                      const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                      const OptionalTensor& drop_h, const OptionalTensor& zone_h,
                      const OptionalTensor& zone_c, bool save) {
  const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                           gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                           zone_h, zone_c);
  return a.dtype == ScalarType::Double ? run_forward<double>(a, save) : run_forward<float>(a, save);
}

template <typename T>
VariantBackwardResult run_backward(const VariantArguments& a, const VariantOutputGrads& grads,
                                   const Tensor& cells, const Tensor& saved, bool need_input,
                                   bool need_params, int parts) {
  VariantShape s = a.shape;
  s.parts = parts;
  VariantGrads results(a, need_input, need_params);
  VariantProblemBackward<T> p{};
  p.rows.shape = s;
  p.rows.norms = a.norm_weights<T>();
  p.rows.masks = a.masks<T>();
  p.rows.c0 = const_data<T>(a.c0);
  p.rows.cells = const_data<T>(cells);
  p.rows.saved = VariantSavedLayout{s}.pieces(const_data<T>(saved));
  p.rows.grad_y = const_data<T>(grads.output);
  p.rows.grad_h_n = const_data<T>(grads.h_n);
  p.rows.grad_c_n = const_data<T>(grads.c_n);
  p.rows.grad_cells = const_data<T>(grads.cells);
  p.rows.grad_h0 = mutable_data<T>(results.h0);
  p.rows.grad_c0 = mutable_data<T>(results.c0);
  p.rows.grad_reset_h = wanted_data<T>(results.reset_h);
  p.rows.grad_reset_c = wanted_data<T>(results.reset_c);
  p.plain = a.weights<T>();
  p.x = const_data<T>(a.input);
  p.grad_x = need_input ? mutable_data<T>(results.input) : nullptr;
  p.need_weights = need_params;
  if (need_params) {
    p.grads.plain = group_params<LayerWeightGrads<T>>(a.stack, a.has_biases,
                                                      results.template param_pointers<T>())[0];
    T** norms[] = {&p.grads.norm_ih, &p.grads.norm_hh, &p.grads.norm_c, &p.grads.norm_c_bias};
    for (size_t i = 0; i < results.norms.size(); ++i) *norms[i] = mutable_data<T>(results.norms[i]);
  }
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  const auto workspace = allocate<T>(variant_backward_workspace_size(kernels, p, threads));
  variant_backward(kernels, p, threads, workspace.get());
  return {results.input,   results.h0,     results.c0,   results.reset_h,
          results.reset_c, results.params, results.norms};
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
  const Tensor all_cells = a.checked("cells", cells, a.rows_dims(a.shape.H));
  if (saved.numel() != VariantSavedLayout{a.shape}.size() || saved.scalar_type() != a.dtype ||
      !saved.is_contiguous()) {
    throw std::runtime_error("saved must be what the forward op returned for the same arguments");
  }
  return a.dtype == ScalarType::Double
             ? run_backward<double>(a, grads, all_cells, saved, need_input, need_params, 0)
             : run_backward<float>(a, grads, all_cells, saved, need_input, need_params,
                                   static_cast<int>(std::min<int64_t>(parts, 3)));
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
