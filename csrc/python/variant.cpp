// NumPy's door to the kernels of a layer with options.
#include "../cpu/variant.h"

#include "numpy.h"

namespace lstm_fast {
namespace {

template <typename T>
const T* checked(const char* name, const OptionalArray<T>& array, int64_t size) {
  if (!array) return nullptr;
  if (array->size() != size)
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                " elements, got " + std::to_string(array->size()));
  return array->data();
}

// Forward and backward. Rows of all steps are [N, columns].
template <typename T>
py::list variant(const Array<T>& x, const std::vector<Array<T>>& params,
                 const std::vector<Array<T>>& norms, const OptionalArray<int64_t>& batch_sizes,
                 const OptionalArray<T>& h0, const OptionalArray<T>& c0,
                 const OptionalArray<bool>& reset, const OptionalArray<T>& reset_h,
                 const OptionalArray<T>& reset_c, const OptionalArray<T>& drop_h,
                 const OptionalArray<T>& zone_h, const OptionalArray<T>& zone_c,
                 const OptionalArray<T>& grad_y, const OptionalArray<T>& grad_h_n,
                 const OptionalArray<T>& grad_c_n, const OptionalArray<T>& grad_cells,
                 bool has_biases, bool reverse, int64_t gate, int64_t cell,
                 const std::optional<std::string>& isa, int64_t slices, int parts) {
  StackArguments a;
  a.input = dims(x);
  if (batch_sizes) {
    a.batch_sizes = batch_sizes->data();
    a.batch_sizes_length = batch_sizes->size();
  }
  std::vector<const T*> pointers;
  for (const auto& param : params) {
    a.params.push_back(dims(param));
    pointers.push_back(param.data());
  }
  a.has_biases = has_biases;
  std::vector<int64_t> offsets;
  const StackShape stack = infer_shape(a, offsets);
  const int64_t B = stack.steps.B, N = stack.steps.total(), H = stack.H, P = stack.P;
  const VariantShape shape = {stack.steps,
                              stack.I,
                              H,
                              P,
                              stack.projected,
                              reverse,
                              !norms.empty(),
                              static_cast<GateActivation>(gate),
                              static_cast<CellActivation>(cell),
                              parts};
  const auto rows = [](int64_t count, int64_t columns) {
    return Array<T>(std::vector<py::ssize_t>{count, columns});
  };
  NormWeights<T> norm_weights{};
  const T** const of_norms[] = {&norm_weights.ih, &norm_weights.hh, &norm_weights.c,
                                &norm_weights.c_bias};
  for (size_t i = 0; i < norms.size() && i < 4; ++i)
    *of_norms[i] = checked<T>("norms", norms[i], i < 2 ? 4 * H : H);
  StateMasks<T> masks{};
  masks.reset = reinterpret_cast<const uint8_t*>(checked<bool>("reset", reset, N));
  masks.reset_h = checked("reset_h", reset_h, B * P);
  masks.reset_c = checked("reset_c", reset_c, B * H);
  masks.drop_h = checked("drop_h", drop_h, B * P);
  masks.zone_h_row = zone_h && zone_h->size() == P ? 0 : P;
  masks.zone_h = checked("zone_h", zone_h, masks.zone_h_row ? N * P : P);
  masks.zone_c_row = zone_c && zone_c->size() == H ? 0 : H;
  masks.zone_c = checked("zone_c", zone_c, masks.zone_c_row ? N * H : H);

  const Kernels& kernels = kernels_named(isa);
  const Threads threads = serial(slices);
  const VariantSavedLayout layout{shape};
  Array<T> y = rows(N, P), h_n = rows(B, P), c_n = rows(B, H), cells = rows(N, H);
  Array<T> saved(layout.size());
  VariantForward<T> f{};
  f.shape = shape;
  f.plain = group_params<LayerWeights<T>>(stack, has_biases, pointers)[0];
  f.norms = norm_weights;
  f.masks = masks;
  f.x = x.data();
  f.h0 = checked("h0", h0, B * P);
  f.c0 = checked("c0", c0, B * H);
  f.y = y.mutable_data();
  f.h_n = h_n.mutable_data();
  f.c_n = c_n.mutable_data();
  const auto run_forward = [&] {
    Workspace<T> workspace(variant_forward_workspace_size(kernels, f, threads));
    variant_forward(kernels, f, threads, workspace.get());
  };
  run_forward();
  const Array<T> inferred(y.size(), y.data());
  f.cells = cells.mutable_data();
  f.save = true;
  f.saved = layout.pieces(saved.mutable_data());
  run_forward();

  Array<T> grad_x = rows(N, stack.I), grad_h0 = rows(B, P), grad_c0 = rows(B, H);
  Array<T> grad_reset_h = rows(B, P), grad_reset_c = rows(B, H);
  py::list results;
  for (const auto& result :
       {y, h_n, c_n, cells, grad_x, grad_h0, grad_c0, grad_reset_h, grad_reset_c})
    results.append(result);
  std::vector<T*> grads;
  const auto append = [&](const Array<T>& like) {
    Array<T> grad(std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
    grads.push_back(grad.mutable_data());
    results.append(grad);
  };
  for (const auto& param : params) append(param);
  for (const auto& norm : norms) append(norm);
  VariantProblemBackward<T> b{};
  b.rows.shape = shape;
  b.rows.norms = norm_weights;
  b.rows.masks = masks;
  b.rows.c0 = f.c0;
  b.rows.cells = cells.data();
  b.rows.saved = layout.pieces(saved.data());
  b.rows.grad_y = checked("grad_y", grad_y, N * P);
  b.rows.grad_h_n = checked("grad_h_n", grad_h_n, B * P);
  b.rows.grad_c_n = checked("grad_c_n", grad_c_n, B * H);
  b.rows.grad_cells = checked("grad_cells", grad_cells, N * H);
  b.rows.grad_h0 = grad_h0.mutable_data();
  b.rows.grad_c0 = grad_c0.mutable_data();
  b.rows.grad_reset_h = grad_reset_h.mutable_data();
  b.rows.grad_reset_c = grad_reset_c.mutable_data();
  b.plain = f.plain;
  b.x = f.x;
  b.grad_x = grad_x.mutable_data();
  b.need_weights = true;
  b.grads.plain = group_params<LayerWeightGrads<T>>(stack, has_biases, grads)[0];
  T** const of_grads[] = {&b.grads.norm_ih, &b.grads.norm_hh, &b.grads.norm_c,
                          &b.grads.norm_c_bias};
  for (size_t i = 0; i < norms.size() && i < 4; ++i) *of_grads[i] = grads[params.size() + i];
  Workspace<T> workspace(variant_backward_workspace_size(kernels, b, threads));
  variant_backward(kernels, b, threads, workspace.get());
  results.append(inferred);
  return results;
}

template <typename T>
void bind(py::module_& m) {
  using py::literals::operator""_a;
  m.def("variant", &variant<T>, "x"_a.noconvert(), "params"_a, "norms"_a, "batch_sizes"_a, "h0"_a,
        "c0"_a, "reset"_a, "reset_h"_a, "reset_c"_a, "drop_h"_a, "zone_h"_a, "zone_c"_a, "grad_y"_a,
        "grad_h_n"_a, "grad_c_n"_a, "grad_cells"_a, "has_biases"_a, "reverse"_a,
        "gate_activation"_a, "cell_activation"_a, "isa"_a = py::none(), "slices"_a = 1,
        "parts"_a = 0,
        "Forward and backward of a layer with options: y, h_n, c_n, cells, the gradients of x, h0, "
        "c0, reset_h, reset_c, params and norms, and y again as computed without saving.");
}

}  // namespace

void bind_variant(py::module_& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace lstm_fast
