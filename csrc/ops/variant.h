// The ops `variant` and `variant_backward` but for the kernels of a device: their arguments,
// checked once for every device, and their results.
#pragma once

#include "../variant.h"
#include "lstm.h"

namespace lstm_fast {

#define LSTM_FAST_VARIANT_ARGUMENTS                                                            \
  "Tensor input, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor[] params, Tensor[] norms, " \
  "bool has_biases, bool reverse, int gate_activation, int cell_activation, Tensor? reset, "   \
  "Tensor? reset_h, Tensor? reset_c, Tensor? drop_h, Tensor? zone_h, Tensor? zone_c"

constexpr char kVariantSchema[] =
    "variant(" LSTM_FAST_VARIANT_ARGUMENTS
    ", bool save, int parts=0) -> (Tensor output, Tensor h_n, Tensor c_n, "
    "Tensor cells, Tensor saved)";
constexpr char kVariantBackwardSchema[] =
    "variant_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cells, " LSTM_FAST_VARIANT_ARGUMENTS
    ", Tensor cells, Tensor saved, bool need_input, bool need_params, int parts=0) -> "
    "(Tensor grad_input, "
    "Tensor grad_h0, Tensor grad_c0, Tensor grad_reset_h, Tensor grad_reset_c, "
    "Tensor[] grad_params, Tensor[] grad_norms)";

#undef LSTM_FAST_VARIANT_ARGUMENTS

// All arguments but the activations are checked and contiguous.
struct VariantArguments {
  std::vector<int64_t> offsets;
  VariantShape shape;
  StackShape stack;  // the same as a stack of one layer
  ScalarType dtype;
  bool has_biases;
  OptionalTensor batch_sizes, reset, reset_h, reset_c, drop_h, zone_h, zone_c;
  Tensor input, h0, c0;
  std::vector<Tensor> params, norms;

  VariantArguments(const Tensor& input_, const OptionalTensor& batch_sizes_, const Tensor& h0_,
                   const Tensor& c0_, const std::vector<Tensor>& params_,
                   const std::vector<Tensor>& norms_, bool has_biases_, bool reverse,
                   int64_t gate_activation, int64_t cell_activation, const OptionalTensor& reset_,
                   const OptionalTensor& reset_h_, const OptionalTensor& reset_c_,
                   const OptionalTensor& drop_h_, const OptionalTensor& zone_h_,
                   const OptionalTensor& zone_c_)
      : shape{}, dtype(input_.scalar_type()), has_biases(has_biases_) {
    if (dtype != ScalarType::Float && dtype != ScalarType::Double)
      throw std::runtime_error("input must be of dtype float32 or float64");
    Arguments a(as_contiguous, input_, batch_sizes_, std::nullopt, std::nullopt, params_,
                has_biases, 1, false, false);
    // Pointers of the shape into the vector stay valid when it is moved.
    stack = a.shape;
    offsets = std::move(a.offsets);
    batch_sizes = a.batch_sizes;
    input = a.input;
    params = a.params;
    const int64_t B = stack.steps.B, N = stack.steps.total(), H = stack.H, P = stack.P;
    if (gate_activation < 0 || gate_activation > 1)
      throw std::runtime_error("gate_activation must be 0 or 1");
    if (cell_activation < 0 || cell_activation > 2)
      throw std::runtime_error("cell_activation must be 0, 1 or 2");
    shape = {stack.steps,
             stack.I,
             H,
             P,
             stack.projected,
             reverse,
             !norms_.empty(),
             static_cast<GateActivation>(gate_activation),
             static_cast<CellActivation>(cell_activation),
             0};
    h0 = checked("h0", h0_, {2, {B, P}});
    c0 = checked("c0", c0_, {2, {B, H}});
    if (!norms_.empty() && norms_.size() != (has_biases ? 4u : 3u)) {
      throw std::runtime_error(
          "norms must be empty or hold norm_ih, norm_hh, norm_c and, with biases, norm_bias_c");
    }
    for (size_t i = 0; i < norms_.size(); ++i)
      norms.push_back(checked("norms", norms_[i], {1, {i < 2 ? 4 * H : H}}));
    if (reset_) {
      check_device("reset", *reset_, input_);
      if (reset_->scalar_type() != ScalarType::Bool)
        throw std::runtime_error("reset must be of dtype bool");
      check_shape("reset", *reset_, {1, {N}});
      reset = as_contiguous(*reset_);
    }
    if (reset_h_) reset_h = checked("reset_h", *reset_h_, {2, {B, P}});
    if (reset_c_) reset_c = checked("reset_c", *reset_c_, {2, {B, H}});
    if (drop_h_) drop_h = checked("drop_h", *drop_h_, {2, {B, P}});
    if (zone_h_) zone_h = checked("zone_h", *zone_h_, {2, {zone_h_->size(0) == 1 ? 1 : N, P}});
    if (zone_c_) zone_c = checked("zone_c", *zone_c_, {2, {zone_c_->size(0) == 1 ? 1 : N, H}});
  }

  Tensor checked(const char* name, const Tensor& t, const Dims& expected) const {
    check_tensor(name, t, input);
    check_shape(name, t, expected);
    return as_contiguous(t);
  }

  int64_t N() const { return shape.steps.total(); }
  // [T, B, columns], or [N, columns] for packed input.
  Dims rows_dims(int64_t columns) const {
    const Steps& steps = shape.steps;
    return batch_sizes ? Dims{2, {steps.total(), columns}} : Dims{3, {steps.T, steps.B, columns}};
  }
  Tensor empty_rows(int64_t columns) const { return empty(rows_dims(columns), dtype, input); }
  Tensor empty_state(int64_t columns) const {
    return empty({shape.steps.B, columns}, dtype, input);
  }

  template <typename T>
  StateMasks<T> masks() const {
    StateMasks<T> m{};
    m.reset = const_data<uint8_t>(reset);
    m.reset_h = const_data<T>(reset_h);
    m.reset_c = const_data<T>(reset_c);
    m.drop_h = const_data<T>(drop_h);
    m.zone_h = const_data<T>(zone_h);
    m.zone_c = const_data<T>(zone_c);
    m.zone_h_row = zone_h && zone_h->size(0) == N() ? shape.P : 0;
    m.zone_c_row = zone_c && zone_c->size(0) == N() ? shape.H : 0;
    return m;
  }
  template <typename T>
  NormWeights<T> norm_weights() const {
    if (norms.empty()) return {};
    return {const_data<T>(norms[0]), const_data<T>(norms[1]), const_data<T>(norms[2]),
            norms.size() > 3 ? const_data<T>(norms[3]) : nullptr};
  }
  template <typename T>
  LayerWeights<T> weights() const {
    return group_params<LayerWeights<T>>(stack, has_biases, const_data<T>(params))[0];
  }
};

using VariantResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using VariantBackwardResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

// Uninitialised results, and the kernels' view of them and of the arguments.
struct VariantResults {
  Tensor output, h_n, c_n, cells, saved;
  bool save;

  VariantResults(const VariantArguments& a, bool save_)
      : output(a.empty_rows(a.shape.P)),
        h_n(a.empty_state(a.shape.P)),
        c_n(a.empty_state(a.shape.H)),
        cells(a.empty_rows(a.shape.H)),
        saved(empty({save_ ? VariantSavedLayout{a.shape}.size() : 0}, a.dtype, a.input)),
        save(save_) {}

  template <typename T>
  VariantForward<T> problem(const VariantArguments& a) {
    VariantForward<T> p{};
    p.shape = a.shape;
    p.plain = a.weights<T>();
    p.norms = a.norm_weights<T>();
    p.masks = a.masks<T>();
    p.x = const_data<T>(a.input);
    p.h0 = const_data<T>(a.h0);
    p.c0 = const_data<T>(a.c0);
    p.y = mutable_data<T>(output);
    p.h_n = mutable_data<T>(h_n);
    p.c_n = mutable_data<T>(c_n);
    p.cells = mutable_data<T>(cells);
    p.save = save;
    if (save) p.saved = VariantSavedLayout{a.shape}.pieces(mutable_data<T>(saved));
    return p;
  }

  VariantResult all() const { return {output, h_n, c_n, cells, saved}; }
};

struct VariantOutputGrads {
  OptionalTensor output, h_n, c_n, cells;

  VariantOutputGrads(const VariantArguments& a, const OptionalTensor& output_,
                     const OptionalTensor& h_n_, const OptionalTensor& c_n_,
                     const OptionalTensor& cells_)
      : output(of(a, "grad_output", output_, a.rows_dims(a.shape.P))),
        h_n(of(a, "grad_h_n", h_n_, {2, {a.shape.steps.B, a.shape.P}})),
        c_n(of(a, "grad_c_n", c_n_, {2, {a.shape.steps.B, a.shape.H}})),
        cells(of(a, "grad_cells", cells_, a.rows_dims(a.shape.H))) {}

 private:
  static OptionalTensor of(const VariantArguments& a, const char* name, const OptionalTensor& t,
                           const Dims& expected) {
    return t ? OptionalTensor(a.checked(name, *t, expected)) : std::nullopt;
  }
};

// The cells as the kernels read them, once both results of forward are found to be such.
inline Tensor check_saved(const VariantArguments& a, const Tensor& cells, const Tensor& saved) {
  check_device("saved", saved, a.input);
  if (saved.numel() != VariantSavedLayout{a.shape}.size() || saved.scalar_type() != a.dtype) {
    throw std::runtime_error("saved must be what the forward op returned for the same arguments");
  }
  return a.checked("cells", cells, a.rows_dims(a.shape.H));
}

// Uninitialised gradients; of no elements, or none at all, where not needed.
struct VariantGrads {
  Tensor input, h0, c0, reset_h, reset_c;
  std::vector<Tensor> params, norms;

  VariantGrads(const VariantArguments& a, bool need_input, bool need_params)
      : input(need_input ? a.empty_rows(a.shape.I) : empty({0}, a.dtype, a.input)),
        h0(a.empty_state(a.shape.P)),
        c0(a.empty_state(a.shape.H)),
        reset_h(a.reset_h ? a.empty_state(a.shape.P) : empty({0}, a.dtype, a.input)),
        reset_c(a.reset_c ? a.empty_state(a.shape.H) : empty({0}, a.dtype, a.input)) {
    if (!need_params) return;
    const auto like = [&](const Tensor& t) { return empty(dims(t), a.dtype, a.input); };
    for (const Tensor& t : a.params) params.push_back(like(t));
    for (const Tensor& t : a.norms) norms.push_back(like(t));
  }

  template <typename T>
  VariantProblemBackward<T> problem(const VariantArguments& a, const VariantOutputGrads& grads,
                                    const Tensor& cells, const Tensor& saved) {
    VariantProblemBackward<T> p{};
    p.rows.shape = a.shape;
    p.rows.norms = a.norm_weights<T>();
    p.rows.masks = a.masks<T>();
    p.rows.c0 = const_data<T>(a.c0);
    p.rows.cells = const_data<T>(cells);
    p.rows.saved = VariantSavedLayout{a.shape}.pieces(const_data<T>(saved));
    p.rows.grad_y = const_data<T>(grads.output);
    p.rows.grad_h_n = const_data<T>(grads.h_n);
    p.rows.grad_c_n = const_data<T>(grads.c_n);
    p.rows.grad_cells = const_data<T>(grads.cells);
    p.rows.grad_h0 = mutable_data<T>(h0);
    p.rows.grad_c0 = mutable_data<T>(c0);
    p.rows.grad_reset_h = wanted_data<T>(reset_h);
    p.rows.grad_reset_c = wanted_data<T>(reset_c);
    p.plain = a.weights<T>();
    p.x = const_data<T>(a.input);
    p.grad_x = wanted_data<T>(input);
    p.need_weights = !params.empty();
    if (!p.need_weights) return p;
    std::vector<T*> pointers;
    for (Tensor& grad : params) pointers.push_back(mutable_data<T>(grad));
    p.grads.plain = group_params<LayerWeightGrads<T>>(a.stack, a.has_biases, pointers)[0];
    T** const of_norms[] = {&p.grads.norm_ih, &p.grads.norm_hh, &p.grads.norm_c,
                            &p.grads.norm_c_bias};
    for (size_t i = 0; i < norms.size(); ++i) *of_norms[i] = mutable_data<T>(norms[i]);
    return p;
  }

  VariantBackwardResult all() const { return {input, h0, c0, reset_h, reset_c, params, norms}; }
};

// The ops `variant` and `variant_backward` of a device. A Device is made of an input on it, and its
// forward(problem, input, parts) and backward(problem, input, parts) run its kernels.
template <typename Device>
struct VariantOps {
  static VariantResult forward(const Tensor& input, const OptionalTensor& batch_sizes,
                               const Tensor& h0, const Tensor& c0,
                               const std::vector<Tensor>& params, const std::vector<Tensor>& norms,
                               bool has_biases, bool reverse, int64_t gate_activation,
                               int64_t cell_activation, const OptionalTensor& reset,
                               const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                               const OptionalTensor& drop_h, const OptionalTensor& zone_h,
                               const OptionalTensor& zone_c, bool save, int64_t parts) {
    const Device device(input);
    const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                             gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                             zone_h, zone_c);
    VariantResults results(a, save);
    if (a.dtype == ScalarType::Double) {
      device.forward(results.problem<double>(a), a.input, parts);
    } else {
      device.forward(results.problem<float>(a), a.input, parts);
    }
    return results.all();
  }

  static VariantBackwardResult backward(
      const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
      const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells, const Tensor& input,
      const OptionalTensor& batch_sizes, const Tensor& h0, const Tensor& c0,
      const std::vector<Tensor>& params, const std::vector<Tensor>& norms, bool has_biases,
      bool reverse, int64_t gate_activation, int64_t cell_activation, const OptionalTensor& reset,
      const OptionalTensor& reset_h, const OptionalTensor& reset_c, const OptionalTensor& drop_h,
      const OptionalTensor& zone_h, const OptionalTensor& zone_c, const Tensor& cells,
      const Tensor& saved, bool need_input, bool need_params, int64_t parts) {
    const Device device(input);
    const VariantArguments a(input, batch_sizes, h0, c0, params, norms, has_biases, reverse,
                             gate_activation, cell_activation, reset, reset_h, reset_c, drop_h,
                             zone_h, zone_c);
    const VariantOutputGrads grads(a, grad_output, grad_h_n, grad_c_n, grad_cells);
    const Tensor all_cells = check_saved(a, cells, saved);
    // Hooks on saved tensors may give back other strides.
    const Tensor kept = as_contiguous(saved);
    VariantGrads results(a, need_input, need_params);
    if (a.dtype == ScalarType::Double) {
      device.backward(results.problem<double>(a, grads, all_cells, kept), a.input, parts);
    } else {
      device.backward(results.problem<float>(a, grads, all_cells, kept), a.input, parts);
    }
    return results.all();
  }
};

}  // namespace lstm_fast
