// The ops `lstm` and `lstm_backward` but for the kernels of a device: their arguments, checked once
// for every device, and their results.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace lstm_fast {

// `parts`: how products of float32 may be made where a matrix unit is faster. 0: by float32
// arithmetic in one fixed order. 3: of three bfloat16 parts of each number, no less exact. 2: of
// two parts, or TF32 on CUDA; 1: of one.
//
// `recompute_gates`: `saved` has the cells and outputs alone, and backward computes the gates
// again.
constexpr char kForwardSchema[] =
    "lstm(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] params, "
    "bool has_biases, int num_layers, bool bidirectional, bool save, int parts=0, "
    "bool recompute_gates=False) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor saved)";
constexpr char kBackwardSchema[] =
    "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, "
    "Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] params, bool has_biases, "
    "int num_layers, bool bidirectional, Tensor output, Tensor saved, bool need_input, "
    "bool need_hx, bool need_params, int parts=0, bool recompute_gates=False) "
    "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_params)";

// `prepare` makes of a checked input or state what the kernels of its device read: contiguous at
// least.
using Prepare = Tensor (*)(const Tensor&);

// An uninitialised tensor of some dimensions and dtype, on the device of another.
using Empty = Tensor (*)(const Dims&, ScalarType, const Tensor&);

inline OptionalTensor prepare_optional(Prepare prepare, const OptionalTensor& t) {
  return t ? OptionalTensor(prepare(*t)) : std::nullopt;
}

// That there is memory, too: the storage of a tensor may have been freed.
inline void check_device(const char* name, const Tensor& t, const Tensor& input) {
  if (t.numel() && !t.const_data_ptr())
    throw std::runtime_error(std::string(name) + " must have memory, its storage was freed");
  if (device_type(t) != device_type(input) || t.get_device_index() != input.get_device_index())
    throw std::runtime_error(std::string(name) + " must be on the device of input");
}

inline void check_tensor(const char* name, const Tensor& t, const Tensor& input) {
  check_device(name, t, input);
  if (t.scalar_type() != input.scalar_type())
    throw std::runtime_error(std::string(name) + " must have the dtype of input");
}

inline void check_shape(const char* name, const Tensor& t, const Dims& expected) {
  if (!(dims(t) == expected)) {
    throw std::runtime_error("Expected " + std::string(name) + " size " + expected.str() +
                             ", got " + dims(t).str());
  }
}

// The arguments that both ops share.
struct Arguments {
  ScalarType dtype;
  std::vector<int64_t> offsets;
  StackShape shape;
  bool has_biases;
  bool recompute_gates;
  bool cell;  // a single step, of which the tensors lack the dimension of T, and of L * D
  OptionalTensor batch_sizes, h0, c0;
  Tensor input;
  std::vector<Tensor> params;  // contiguous, in their own dtype

  Arguments(Prepare prepare, const Tensor& input_, const OptionalTensor& batch_sizes_,
            const OptionalTensor& h0_, const OptionalTensor& c0_,
            const std::vector<Tensor>& params_, bool has_biases_, int64_t num_layers,
            bool bidirectional, bool recompute_gates_, bool cell_ = false)
      : dtype(input_.scalar_type()),
        has_biases(has_biases_),
        recompute_gates(recompute_gates_),
        cell(cell_) {
    if (dtype != ScalarType::Float && dtype != ScalarType::Double && !is_half(dtype)) {
      throw std::runtime_error("input must be of a floating dtype of 16, 32 or 64 bits");
    }
    check_device("input", input_, input_);
    if (h0_) check_tensor("h0", *h0_, input_);
    if (c0_) check_tensor("c0", *c0_, input_);
    const auto full_dims = [&](const Tensor& t) {
      const Dims d = dims(t);
      return cell ? Dims{d.dim + 1, {1, d.size[0], d.size[1]}} : d;
    };
    StackArguments a;
    a.input = full_dims(input_);
    if (batch_sizes_) {
      if (!batch_sizes_->is_cpu() || batch_sizes_->scalar_type() != ScalarType::Long ||
          batch_sizes_->dim() != 1) {
        throw std::runtime_error("batch_sizes must be a 1-D int64 tensor on the CPU");
      }
      batch_sizes = as_contiguous(*batch_sizes_);
      a.batch_sizes = const_data<int64_t>(*batch_sizes);
      a.batch_sizes_length = batch_sizes->numel();
    }
    Dims h0_dims, c0_dims;
    if (h0_) h0_dims = full_dims(*h0_), a.h0 = &h0_dims;
    if (c0_) c0_dims = full_dims(*c0_), a.c0 = &c0_dims;
    a.params.reserve(params_.size());
    for (const Tensor& t : params_) {
      check_tensor("params", t, input_);
      a.params.push_back(dims(t));
    }
    a.has_biases = has_biases;
    a.num_layers = num_layers;
    a.bidirectional = bidirectional;
    shape = infer_shape(a, offsets);

    input = prepare(input_);
    h0 = prepare_optional(prepare, h0_);
    c0 = prepare_optional(prepare, c0_);
    params.reserve(params_.size());
    for (const Tensor& t : params_) params.push_back(as_contiguous(t));
  }

  // [T, B, columns]; [N, columns] of packed input, [B, columns] of a cell.
  Dims output_dims(int64_t columns) const {
    const Steps& steps = shape.steps;
    if (batch_sizes || cell) return {2, {steps.total(), columns}};
    return {3, {steps.T, steps.B, columns}};
  }
  // [L * D, B, columns]; [B, columns] of a cell.
  Dims state_dims(int64_t columns) const {
    if (cell) return {2, {shape.steps.B, columns}};
    return {3, {shape.L * shape.D, shape.steps.B, columns}};
  }
  Tensor empty_state(int64_t columns, ScalarType type) const {
    return empty(state_dims(columns), type, input);
  }
};

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

struct OutputGrads {
  OptionalTensor output, h_n, c_n;
};

struct Needs {
  bool input, hx, params;
};

// Uninitialised gradients of the arguments; of no elements, or none at all, where not needed.
struct ArgumentGrads {
  Tensor input, h0, c0;
  std::vector<Tensor> params;

  // Those of params have a type and a function of their own.
  ArgumentGrads(const Arguments& a, const Needs& needs, ScalarType type, Empty empty_result,
                ScalarType params_type, Empty empty_param)
      : input(needs.input ? empty_result(a.output_dims(a.shape.I), type, a.input)
                          : empty({0}, type, a.input)),
        h0(needs.hx ? a.empty_state(a.shape.P, type) : empty({0}, type, a.input)),
        c0(needs.hx ? a.empty_state(a.shape.H, type) : empty({0}, type, a.input)) {
    if (!needs.params) return;
    params.reserve(a.params.size());
    for (const Tensor& param : a.params) {
      params.push_back(empty_param(dims(param), params_type, a.input));
    }
  }

  template <typename T>
  std::vector<T*> param_pointers() {
    std::vector<T*> pointers;
    for (Tensor& grad : params) pointers.push_back(mutable_data<T>(grad));
    return pointers;
  }
};

// A gradient as the kernels read it, after a check against the output that it belongs to.
inline OptionalTensor prepare_grad(Prepare prepare, const char* name, const OptionalTensor& grad,
                                   const Dims& expected, const Tensor& input) {
  if (!grad) return std::nullopt;
  check_tensor(name, *grad, input);
  check_shape(name, *grad, expected);
  return prepare(*grad);
}

// What forward keeps for backward; the output itself only for halves, which the kernels read back
// as computed, not as rounded.
inline SavedLayout saved_layout(const Arguments& a) {
  return {a.shape, is_half(a.dtype), a.recompute_gates};
}

inline void check_saved(const Arguments& a, const Tensor& saved) {
  check_device("saved", saved, a.input);
  if (saved.numel() != saved_layout(a).size() || saved.scalar_type() != compute_type(a.dtype)) {
    throw std::runtime_error("saved must be what the forward op returned for the same arguments");
  }
}

// The gradients that reach backward, after all checks of what it gets beside forward's arguments.
inline OutputGrads prepare_grads(Prepare prepare, const Arguments& a, const Tensor& output,
                                 const Tensor& saved, const OutputGrads& grads) {
  const StackShape& s = a.shape;
  const Dims y = a.output_dims(s.D * s.P);
  check_device("output", output, a.input);
  if (output.scalar_type() != a.dtype)
    throw std::runtime_error("output must have the dtype of input");
  check_shape("output", output, y);
  check_saved(a, saved);
  return {prepare_grad(prepare, "grad_output", grads.output, y, output),
          prepare_grad(prepare, "grad_h_n", grads.h_n, a.state_dims(s.P), output),
          prepare_grad(prepare, "grad_c_n", grads.c_n, a.state_dims(s.H), output)};
}

// The ops `lstm` and `lstm_backward` of a device. A Device is made of an input on it and has a
// static `prepare`; its forward(arguments, save, parts) and backward(arguments, grads, output,
// saved, needs, parts) run its kernels.
template <typename Device>
struct LstmOps {
  static ForwardResult forward(const Tensor& input, const OptionalTensor& batch_sizes,
                               const OptionalTensor& h0, const OptionalTensor& c0,
                               const std::vector<Tensor>& params, bool has_biases,
                               int64_t num_layers, bool bidirectional, bool save, int64_t parts,
                               bool recompute_gates) {
    const Device device(input);
    const Arguments a(Device::prepare, input, batch_sizes, h0, c0, params, has_biases, num_layers,
                      bidirectional, recompute_gates);
    return device.forward(a, save, parts);
  }

  static BackwardResult backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const Tensor& input,
                                 const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                 const OptionalTensor& c0, const std::vector<Tensor>& params,
                                 bool has_biases, int64_t num_layers, bool bidirectional,
                                 const Tensor& output, const Tensor& saved, bool need_input,
                                 bool need_hx, bool need_params, int64_t parts,
                                 bool recompute_gates) {
    const Device device(input);
    const Arguments a(Device::prepare, input, batch_sizes, h0, c0, params, has_biases, num_layers,
                      bidirectional, recompute_gates);
    return backward_of(device, a, {grad_output, grad_h_n, grad_c_n}, output, saved,
                       {need_input, need_hx, need_params}, parts);
  }

  // Of gradients that are not checked yet.
  static BackwardResult backward_of(const Device& device, const Arguments& a,
                                    const OutputGrads& grads, const Tensor& output,
                                    const Tensor& saved, const Needs& needs, int64_t parts) {
    const OutputGrads prepared = prepare_grads(Device::prepare, a, output, saved, grads);
    // Hooks on saved tensors may give back other strides.
    return device.backward(a, prepared, output, as_contiguous(saved), needs, parts);
  }
};

}  // namespace lstm_fast
