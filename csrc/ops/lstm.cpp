// The torch ops over the CPU stack (../cpu/stack.h), registered with the stable ABI: one build for
// many torch versions. Checks and allocation are here, once; below are raw pointers that are
// trusted.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../cpu/arguments.h"
#include "../cpu/stack.h"

namespace lstm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

Dims dims(const Tensor& t) {
  Dims d{t.dim(), {}};
  for (int64_t i = 0; i < d.dim && i < 3; ++i) d.size[i] = t.size(i);
  return d;
}

bool is_half(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// The type that the kernels compute a dtype in.
ScalarType compute_type(ScalarType dtype) { return is_half(dtype) ? ScalarType::Float : dtype; }

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[3], size = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = size;
    size *= std::max<int64_t>(1, sizes.begin()[i]);
  }
  const int32_t type = dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                                                       : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.begin(), strides, type,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor cast(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// As the kernels read it: contiguous, in the compute type.
Tensor prepare(const Tensor& t) {
  const Tensor computed = cast(t, compute_type(t.scalar_type()));
  return computed.is_contiguous() ? computed : torch::stable::contiguous(computed);
}

OptionalTensor prepare(const OptionalTensor& t) {
  return t ? OptionalTensor(prepare(*t)) : std::nullopt;
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// A null pointer rather than that of an empty tensor, for outputs that are not wanted.
template <typename T>
T* wanted_data(Tensor& t) {
  return t.numel() ? mutable_data<T>(t) : nullptr;
}

template <typename T>
std::vector<const T*> data(const std::vector<Tensor>& tensors) {
  std::vector<const T*> pointers;
  pointers.reserve(tensors.size());
  for (const Tensor& t : tensors) pointers.push_back(data<T>(t));
  return pointers;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <typename T>
std::unique_ptr<T[], Free> allocate(int64_t elements) {
  const size_t bytes = (static_cast<size_t>(elements) * sizeof(T) + 63) / 64 * 64;
  T* p = static_cast<T*>(std::aligned_alloc(64, bytes));
  if (!p) throw std::bad_alloc();
  return std::unique_ptr<T[], Free>(p);
}

// Torch's own threads, so that torch.set_num_threads is obeyed and no second pool exists.
Threads torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
            torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) f(context, task);
            });
          }};
}

void check_tensor(const char* name, const Tensor& t, ScalarType dtype) {
  if (!t.is_cpu()) throw std::runtime_error(std::string(name) + " must be on the CPU, as input is");
  if (t.scalar_type() != dtype)
    throw std::runtime_error(std::string(name) + " must have the dtype of input");
}

// The arguments that both ops share, checked and as the kernels read them.
struct Arguments {
  ScalarType dtype;
  std::vector<int64_t> offsets;
  StackShape shape;
  bool has_biases;
  OptionalTensor batch_sizes, h0, c0;
  Tensor input;
  std::vector<Tensor> params;

  Arguments(const Tensor& input_, const OptionalTensor& batch_sizes_, const OptionalTensor& h0_,
            const OptionalTensor& c0_, const std::vector<Tensor>& params_, bool has_biases_,
            int64_t num_layers, bool bidirectional)
      : dtype(input_.scalar_type()), has_biases(has_biases_) {
    if (dtype != ScalarType::Float && dtype != ScalarType::Double && !is_half(dtype)) {
      throw std::runtime_error("input must be of a floating dtype of 16, 32 or 64 bits");
    }
    check_tensor("input", input_, dtype);
    if (h0_) check_tensor("h0", *h0_, dtype);
    if (c0_) check_tensor("c0", *c0_, dtype);
    StackArguments a;
    a.input = dims(input_);
    if (batch_sizes_) {
      if (!batch_sizes_->is_cpu() || batch_sizes_->scalar_type() != ScalarType::Long ||
          batch_sizes_->dim() != 1) {
        throw std::runtime_error("batch_sizes must be a 1-D int64 tensor on the CPU");
      }
      batch_sizes = prepare_sizes(*batch_sizes_);
      a.batch_sizes = data<int64_t>(*batch_sizes);
      a.batch_sizes_length = batch_sizes->numel();
    }
    Dims h0_dims, c0_dims;
    if (h0_) h0_dims = dims(*h0_), a.h0 = &h0_dims;
    if (c0_) c0_dims = dims(*c0_), a.c0 = &c0_dims;
    for (const Tensor& t : params_) {
      check_tensor("params", t, dtype);
      a.params.push_back(dims(t));
    }
    a.has_biases = has_biases;
    a.num_layers = num_layers;
    a.bidirectional = bidirectional;
    shape = infer_shape(a, offsets);

    input = prepare(input_);
    h0 = prepare(h0_);
    c0 = prepare(c0_);
    params.reserve(params_.size());
    for (const Tensor& t : params_) params.push_back(prepare(t));
  }

 private:
  static Tensor prepare_sizes(const Tensor& t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
  }
};

// [T, B, columns], or [N, columns] for packed input.
Tensor empty_output(const Arguments& a, int64_t columns, ScalarType dtype) {
  const Steps& steps = a.shape.steps;
  return a.batch_sizes ? empty({steps.total(), columns}, dtype)
                       : empty({steps.T, steps.B, columns}, dtype);
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename T>
ForwardResult run_forward(const Arguments& a, bool save) {
  const StackShape& s = a.shape;
  const ScalarType type = compute_type(a.dtype);
  // The kernels read y back in backward, so that for halves it is kept as computed, not as rounded.
  const SavedLayout layout{s, is_half(a.dtype)};
  Tensor saved = empty({save ? layout.size() : 0}, type);
  const bool y_in_saved = save && layout.keep_output;
  Tensor y = y_in_saved ? saved : empty_output(a, s.D * s.P, type);
  Tensor h_n = empty({s.L * s.D, s.steps.B, s.P}, type),
         c_n = empty({s.L * s.D, s.steps.B, s.H}, type);

  const auto weights = group_params<LayerWeights<T>>(s, a.has_biases, data<T>(a.params));
  StackForward<T> p{};
  p.shape = s;
  p.shape.parts = 3;
  p.weights = weights.data();
  p.x = data<T>(a.input);
  p.h0 = data<T>(a.h0);
  p.c0 = data<T>(a.c0);
  p.saved = save ? mutable_data<T>(saved) : nullptr;
  p.y = y_in_saved ? p.saved + layout.output(s.L - 1) : mutable_data<T>(y);
  p.h_n = mutable_data<T>(h_n);
  p.c_n = mutable_data<T>(c_n);
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  p.shape.parts = plan_parts(kernels, p, threads);
  const auto workspace = allocate<T>(forward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  forward(kernels, p, threads);

  if (y_in_saved) {
    y = empty_output(a, s.D * s.P, a.dtype);
    Tensor kept = torch::stable::narrow(saved, 0, layout.output(s.L - 1), y.numel());
    torch::stable::copy_(y, torch::stable::view(kept, y.sizes()));
  }
  return {cast(y, a.dtype), cast(h_n, a.dtype), cast(c_n, a.dtype), saved};
}

ForwardResult lstm(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                   const OptionalTensor& c0, const std::vector<Tensor>& params, bool has_biases,
                   int64_t num_layers, bool bidirectional, bool save) {
  const Arguments a(input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional);
  return compute_type(a.dtype) == ScalarType::Double ? run_forward<double>(a, save)
                                                     : run_forward<float>(a, save);
}

using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

struct OutputGrads {
  OptionalTensor output, h_n, c_n;
};

struct Needs {
  bool input, hx, params;
};

template <typename T>
BackwardResult run_backward(const Arguments& a, const OutputGrads& grads, const Tensor& output,
                            const Tensor& saved, const Needs& needs) {
  const StackShape& s = a.shape;
  const ScalarType type = compute_type(a.dtype);
  const SavedLayout layout{s, is_half(a.dtype)};
  if (saved.numel() != layout.size() || saved.scalar_type() != type || !saved.is_contiguous()) {
    throw std::runtime_error("saved must be what the forward op returned for the same arguments");
  }
  Tensor grad_input = needs.input ? empty_output(a, s.I, type) : empty({0}, type);
  Tensor grad_h0 = needs.hx ? empty({s.L * s.D, s.steps.B, s.P}, type) : empty({0}, type);
  Tensor grad_c0 = needs.hx ? empty({s.L * s.D, s.steps.B, s.H}, type) : empty({0}, type);
  std::vector<Tensor> grad_params;
  std::vector<T*> grad_pointers;
  if (needs.params) {
    grad_params.reserve(a.params.size());
    for (const Tensor& param : a.params) {
      grad_params.push_back(param.dim() == 1 ? empty({param.size(0)}, type)
                                             : empty({param.size(0), param.size(1)}, type));
      grad_pointers.push_back(mutable_data<T>(grad_params.back()));
    }
  }

  const auto weights = group_params<LayerWeights<T>>(s, a.has_biases, data<T>(a.params));
  std::vector<LayerWeightGrads<T>> grad_weights;
  if (needs.params)
    grad_weights = group_params<LayerWeightGrads<T>>(s, a.has_biases, grad_pointers);
  const Tensor y = prepare(output);
  StackBackward<T> p{};
  p.shape = s;
  p.shape.parts = 3;
  p.weights = weights.data();
  p.x = data<T>(a.input);
  p.h0 = data<T>(a.h0);
  p.c0 = data<T>(a.c0);
  p.saved = data<T>(saved);
  p.keep_output = layout.keep_output;
  p.y = layout.keep_output ? p.saved + layout.output(s.L - 1) : data<T>(y);
  p.grad_y = data<T>(grads.output);
  p.grad_h_n = data<T>(grads.h_n);
  p.grad_c_n = data<T>(grads.c_n);
  p.grad_x = needs.input ? mutable_data<T>(grad_input) : nullptr;
  p.grad_h0 = wanted_data<T>(grad_h0);
  p.grad_c0 = wanted_data<T>(grad_c0);
  p.grad_weights = needs.params ? grad_weights.data() : nullptr;
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  p.shape.parts = plan_parts(kernels, p, threads);
  const auto workspace = allocate<T>(backward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  backward(kernels, p, threads);

  for (Tensor& grad : grad_params) grad = cast(grad, a.dtype);
  return {cast(grad_input, a.dtype), cast(grad_h0, a.dtype), cast(grad_c0, a.dtype), grad_params};
}

// A gradient as the kernels read it, after a check against the output that it belongs to.
OptionalTensor prepare_grad(const char* name, const OptionalTensor& grad, const Dims& expected,
                            ScalarType dtype) {
  if (!grad) return std::nullopt;
  check_tensor(name, *grad, dtype);
  const Dims got = dims(*grad);
  if (!(got == expected)) {
    throw std::runtime_error("Expected " + std::string(name) + " size " + expected.str() +
                             ", got " + got.str());
  }
  return prepare(grad);
}

BackwardResult lstm_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const OptionalTensor& grad_c_n, const Tensor& input,
                             const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                             const OptionalTensor& c0, const std::vector<Tensor>& params,
                             bool has_biases, int64_t num_layers, bool bidirectional,
                             const Tensor& output, const Tensor& saved, bool need_input,
                             bool need_hx, bool need_params) {
  const Arguments a(input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional);
  const StackShape& s = a.shape;
  const int64_t width = s.D * s.P;
  const Dims y =
      a.batch_sizes ? Dims{2, {s.steps.total(), width}} : Dims{3, {s.steps.T, s.steps.B, width}};
  check_tensor("output", output, a.dtype);
  if (!(dims(output) == y))
    throw std::runtime_error("Expected output size " + y.str() + ", got " + dims(output).str());
  const OutputGrads grads{
      prepare_grad("grad_output", grad_output, y, a.dtype),
      prepare_grad("grad_h_n", grad_h_n, {3, {s.L * s.D, s.steps.B, s.P}}, a.dtype),
      prepare_grad("grad_c_n", grad_c_n, {3, {s.L * s.D, s.steps.B, s.H}}, a.dtype)};
  const Needs needs{need_input, need_hx, need_params};
  return compute_type(a.dtype) == ScalarType::Double
             ? run_backward<double>(a, grads, output, saved, needs)
             : run_backward<float>(a, grads, output, saved, needs);
}

}  // namespace
}  // namespace lstm_fast

STABLE_TORCH_LIBRARY(lstm_fast, m) {
  m.def(
      "lstm(Tensor input, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] params, bool "
      "has_biases, "
      "int num_layers, bool bidirectional, bool save) -> (Tensor output, Tensor h_n, Tensor c_n, "
      "Tensor saved)");
  m.def(
      "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, "
      "Tensor? batch_sizes, "
      "Tensor? h0, Tensor? c0, Tensor[] params, bool has_biases, int num_layers, bool "
      "bidirectional, Tensor output, "
      "Tensor saved, bool need_input, bool need_hx, bool need_params) "
      "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_params)");
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm_fast::lstm));
  m.impl("lstm_backward", TORCH_BOX(&lstm_fast::lstm_backward));
}
