// The torch ops: their schemas, and what runs them on the CPU (../cpu/stack.h). Registered with the
// stable ABI: one build for many torch versions. Checks and allocation are here and in lstm.h,
// once; below are raw pointers that are trusted.
#include "lstm.h"

#include <iterator>
#include <new>
#include <utility>

#include "../cpu/kept_weights.h"
#include "../direct.h"
#include "cpu.h"

namespace lstm_fast {
namespace {

// Parts that the products of a dtype are made of, given those that float32 may be made of. States
// are rounded to as much where they enter a product, as torch does.
int parts_for(ScalarType dtype, int64_t parts) {
  const int of_float = static_cast<int>(std::min<int64_t>(parts, 3));
  return is_half(dtype) ? parts_of_halves(dtype == ScalarType::BFloat16, of_float) : of_float;
}

// For results that are computed in a type and handed out in a dtype.
Empty results_as(ScalarType type, ScalarType dtype) {
  return type == dtype ? Empty(empty) : empty_for_call;
}

// The weights of a call as both passes take them.
template <typename T>
class Weights {
 public:
  explicit Weights(const Arguments& a) : arguments_(a) {
    if (a.dtype == ScalarType::BFloat16) bfloat16_ = grouped<BFloat16>(a.params);
    if (a.dtype == ScalarType::Half) float16_ = grouped<Float16>(a.params);
  }

  // Null unless they are of this type.
  const LayerWeights<BFloat16>* bfloat16() const { return data(bfloat16_); }
  const LayerWeights<Float16>* float16() const { return data(float16_); }
  // In the compute type.
  const LayerWeights<T>* prepared() {
    if (!prepared_.empty()) return prepared_.data();
    const bool converts = is_half(arguments_.dtype);
    if (converts) {
      for (const Tensor& t : arguments_.params) params_.push_back(prepare(t));
    }
    prepared_ = grouped<T>(converts ? params_ : arguments_.params);
    return prepared_.data();
  }

 private:
  template <typename E>
  static const E* data(const std::vector<E>& weights) {
    return weights.empty() ? nullptr : weights.data();
  }

  template <typename E>
  std::vector<LayerWeights<E>> grouped(const std::vector<Tensor>& params) const {
    return group_params<LayerWeights<E>>(arguments_.shape, arguments_.has_biases,
                                         const_data<E>(params));
  }

  const Arguments& arguments_;
  std::vector<LayerWeights<BFloat16>> bfloat16_;
  std::vector<LayerWeights<Float16>> float16_;
  std::vector<Tensor> params_;
  std::vector<LayerWeights<T>> prepared_;
};

// What is kept of the weights of a module, in the compute type.
struct KeptOfModule {
  KeptWeights<float> in_float;
  KeptWeights<double> in_double;

  KeptWeights<float>* of(float) { return &in_float; }
  KeptWeights<double>* of(double) { return &in_double; }
};

// The last result is only there to be saved. With `kept`, weights are those that it is of.
template <typename T>
ForwardResult run_forward(const Arguments& a, bool save, int parts, KeptOfModule* kept) {
  const StackShape& s = a.shape;
  const ScalarType type = compute_type(a.dtype);
  const SavedLayout layout = saved_layout(a);
  const bool y_in_saved = save && layout.keep_output;
  Tensor h_n = a.empty_state(s.P, type), c_n = a.empty_state(s.H, type);
  const auto empty_saved = [&] {
    return empty_kept({1, {layout.size()}}, type, a.input, Need::Backward);
  };
  Tensor y = y_in_saved ? empty_saved()
             : a.cell   ? h_n
                        : results_as(type, a.dtype)(a.output_dims(s.D * s.P), type, a.input);
  Tensor saved = save && !y_in_saved ? empty_saved() : y;

  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads(s.flops());
  Weights<T> weights(a);
  StackForward<T> p{};
  p.shape = s;
  p.shape.parts = parts;
  p.bfloat16_weights = weights.bfloat16();
  p.float16_weights = weights.float16();
  p.recompute_gates = a.recompute_gates;
  p.x = const_data<T>(a.input);
  p.h0 = const_data<T>(a.h0);
  p.c0 = const_data<T>(a.c0);
  p.saved = save ? mutable_data<T>(saved) : nullptr;
  p.y = y_in_saved ? p.saved + layout.output(s.L - 1) : mutable_data<T>(y);
  p.h_n = mutable_data<T>(h_n);
  p.c_n = mutable_data<T>(c_n);
  if (kept) {
    kept->of(T())->plan(kernels, p, threads, [&] { return weights.prepared(); });
  } else {
    const bool is_read =
        kernels.of(T()).unit == Bf16Unit::Matrix && !takes_plain_steps(kernels, p, threads);
    if (!p.has_halves() || is_read) p.weights = weights.prepared();
    plan(kernels, p, threads);
  }
  const auto workspace = allocate<T>(forward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  forward(kernels, p, threads);

  if (a.cell) {
    y = h_n;
  } else if (y_in_saved) {
    y = empty(a.output_dims(s.D * s.P), a.dtype, a.input);
    Tensor kept = torch::stable::narrow(saved, 0, layout.output(s.L - 1), y.numel());
    torch::stable::copy_(y, torch::stable::view(kept, y.sizes()));
  }
  if (type == a.dtype) return {std::move(y), std::move(h_n), std::move(c_n), std::move(saved)};
  h_n = cast(h_n, a.dtype);
  return {a.cell ? h_n : cast(y, a.dtype), h_n, cast(c_n, a.dtype), saved};
}

ForwardResult compute_forward(const Arguments& a, bool save, int64_t parts,
                              KeptOfModule* kept = nullptr) {
  return compute_type(a.dtype) == ScalarType::Double
             ? run_forward<double>(a, save, static_cast<int>(parts), kept)
             : run_forward<float>(a, save, parts_for(a.dtype, parts), kept);
}

template <typename T>
BackwardResult run_backward(const Arguments& a, const OutputGrads& grads, const Tensor& output,
                            const Tensor& saved, const Needs& needs, int parts) {
  const StackShape& s = a.shape;
  const SavedLayout layout = saved_layout(a);
  const ScalarType type = compute_type(a.dtype);
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads(2 * s.flops());
  Weights<T> weights(a);
  const OptionalTensor y = layout.keep_output ? std::nullopt : OptionalTensor(prepare(output));
  StackBackward<T> p{};
  p.shape = s;
  p.shape.parts = parts;
  p.bfloat16_weights = weights.bfloat16();
  p.float16_weights = weights.float16();
  p.x = const_data<T>(a.input);
  p.h0 = const_data<T>(a.h0);
  p.c0 = const_data<T>(a.c0);
  p.saved = const_data<T>(saved);
  p.keep_output = layout.keep_output;
  p.recompute_gates = a.recompute_gates;
  if (p.recompute_gates || !p.bfloat16_weights) p.weights = weights.prepared();
  plan(kernels, p, threads);
  if (!p.weights && p.plain && !p.bfloat16_step) p.weights = weights.prepared();

  const ScalarType params_type = p.bfloat16_weights ? a.dtype : type;
  ArgumentGrads results(a, needs, type, results_as(type, a.dtype), params_type,
                        results_as(params_type, a.dtype));
  std::vector<LayerWeightGrads<T>> grad_weights;
  std::vector<LayerWeightGrads<BFloat16>> bfloat16_grad_weights;
  if (needs.params && p.bfloat16_weights) {
    bfloat16_grad_weights = group_params<LayerWeightGrads<BFloat16>>(
        s, a.has_biases, results.param_pointers<BFloat16>());
    p.bfloat16_grad_weights = bfloat16_grad_weights.data();
  } else if (needs.params) {
    grad_weights = group_params<LayerWeightGrads<T>>(s, a.has_biases, results.param_pointers<T>());
    p.grad_weights = grad_weights.data();
  }
  p.y = layout.keep_output ? p.saved + layout.output(s.L - 1) : const_data<T>(y);
  p.grad_y = const_data<T>(grads.output);
  p.grad_h_n = const_data<T>(grads.h_n);
  p.grad_c_n = const_data<T>(grads.c_n);
  p.grad_x = needs.input ? mutable_data<T>(results.input) : nullptr;
  p.grad_h0 = wanted_data<T>(results.h0);
  p.grad_c0 = wanted_data<T>(results.c0);
  const auto workspace = allocate<T>(backward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  backward(kernels, p, threads);

  for (Tensor& grad : results.params) grad = cast(grad, a.dtype);
  return {cast(results.input, a.dtype), cast(results.h0, a.dtype), cast(results.c0, a.dtype),
          results.params};
}

struct LstmOnCpu {
  static constexpr Prepare prepare = lstm_fast::prepare;
  explicit LstmOnCpu(const Tensor&) {}

  ForwardResult forward(const Arguments& a, bool save, int64_t parts) const {
    ForwardResult results = compute_forward(a, save, parts);
    if (!save) std::get<3>(results) = empty({0}, compute_type(a.dtype), a.input);
    return results;
  }

  BackwardResult backward(const Arguments& a, const OutputGrads& grads, const Tensor& output,
                          const Tensor& saved, const Needs& needs, int64_t parts) const {
    return compute_type(a.dtype) == ScalarType::Double
               ? run_backward<double>(a, grads, output, saved, needs, 0)
               : run_backward<float>(a, grads, output, saved, needs, parts_for(a.dtype, parts));
  }
};

using OpsOnCpu = LstmOps<LstmOnCpu>;

// The tensors of a direct call, released whatever happens. That they are on the device of the input
// and have memory, which only the dispatcher can give to some, is checked with their shapes.
std::vector<OptionalTensor> own(const DirectCall& call) {
  std::vector<OptionalTensor> tensors(call.count);
  for (int64_t i = 0; i < call.count; ++i) {
    if (call.tensors[i]) tensors[i] = Tensor(static_cast<AtenTensorHandle>(call.tensors[i]));
  }
  return tensors;
}

// Lets other threads of Python run as long as it lives, unless the call is over before that pays:
// each tensor that Python knows takes Python's lock when it is released, half a microsecond for
// those of a single step that takes five.
class OthersMayRun {
 public:
  OthersMayRun(const DirectCall& call, const Tensor& input,
               const std::vector<OptionalTensor>& tensors, int before)
      : call_(call) {
    int64_t weights = 0;
    for (size_t i = before; i < tensors.size(); ++i) weights += tensors[i].value().numel();
    const int64_t dim = input.dim(), columns = dim ? input.size(dim - 1) : 0;
    if (input.numel() * weights >= kLong * columns) thread_ = call.save_thread();
  }
  OthersMayRun(const OthersMayRun&) = delete;
  OthersMayRun& operator=(const OthersMayRun&) = delete;
  ~OthersMayRun() {
    if (thread_) call_.restore_thread(thread_);
  }

 private:
  static constexpr int64_t kLong = 1 << 17;  // products, of which a core does ten in a nanosecond

  const DirectCall& call_;
  void* thread_ = nullptr;
};

std::vector<Tensor> params_of(std::vector<OptionalTensor>& tensors, int before) {
  std::vector<Tensor> params;
  params.reserve(tensors.size() - before);
  for (size_t i = before; i < tensors.size(); ++i) params.push_back(std::move(tensors[i].value()));
  return params;
}

// With the first two of three dimensions in the other order, in the same memory. Autograd does not
// see it.
Tensor transposed(const Tensor& t) {
  if (t.dim() != 3) throw std::runtime_error("input must have three dimensions");
  const int64_t sizes[] = {t.size(1), t.size(0), t.size(2)};
  const int64_t strides[] = {t.stride(1), t.stride(0), t.stride(2)};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 3, sizes, strides, 0, &handle));
  return Tensor(handle);
}

void* give(const Tensor& t) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(t.get(), &handle));
  return handle;
}

}  // namespace
}  // namespace lstm_fast

extern "C" __attribute__((visibility("default"))) const char* lstm_fast_headers() {
  return LSTM_FAST_HEADERS;
}

extern "C" __attribute__((visibility("default"))) bool lstm_fast_direct_forward(
    lstm_fast::DirectCall& call) {
  using namespace lstm_fast;
  try {
    std::vector<OptionalTensor> t = own(call);
    if (!t.at(0).value().is_cpu()) return false;
    const OthersMayRun others_may_run(call, *t[0], t, kDirectForwardTensors);
    const Tensor input = call.batch_first ? transposed(*t[0]) : *t[0];
    const Arguments a(prepare, input, t[1], t[2], t[3], params_of(t, kDirectForwardTensors),
                      call.has_biases, call.num_layers, call.bidirectional, call.recompute_gates,
                      call.cell);
    if (call.input_size && call.input_size != a.shape.I) return false;
    const auto [output, h_n, c_n, saved] =
        compute_forward(a, call.save, call.parts, static_cast<KeptOfModule*>(call.kept));
    if (!call.cell) call.results[0] = give(call.batch_first ? transposed(output) : output);
    call.results[1] = give(h_n);
    call.results[2] = give(c_n);
    if (call.save) call.results[3] = give(saved);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

extern "C" __attribute__((visibility("default"))) bool lstm_fast_direct_backward(
    lstm_fast::DirectCall& call) {
  using namespace lstm_fast;
  try {
    std::vector<OptionalTensor> t = own(call);
    if (!t.at(3).value().is_cpu()) return false;
    const OthersMayRun others_may_run(call, *t[3], t, kDirectBackwardTensors);
    const Arguments a(prepare, *t[3], t[4], t[5], t[6], params_of(t, kDirectBackwardTensors),
                      call.has_biases, call.num_layers, call.bidirectional, call.recompute_gates,
                      call.cell);
    const auto [input, h0, c0, params] =
        OpsOnCpu::backward_of(LstmOnCpu(a.input), a, {t[0], t[1], t[2]}, t[7].value(), t[8].value(),
                              {call.need_input, call.need_hx, call.need_params}, call.parts);
    if (call.need_input) call.results[0] = give(input);
    if (call.need_hx) call.results[1] = give(h0), call.results[2] = give(c0);
    for (size_t i = 0; i < params.size(); ++i)
      call.results[kDirectBackwardResults + i] = give(params[i]);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

extern "C" __attribute__((visibility("default"))) void* lstm_fast_keep_weights() {
  return new (std::nothrow) lstm_fast::KeptOfModule;
}

extern "C" __attribute__((visibility("default"))) void lstm_fast_forget_weights(void* kept) {
  delete static_cast<lstm_fast::KeptOfModule*>(kept);
}

extern "C" __attribute__((visibility("default"))) void lstm_fast_find_threads(
    int64_t flops, lstm_fast::Threads* threads) {
  *threads = lstm_fast::torch_threads(flops);
}

STABLE_TORCH_LIBRARY(lstm_fast, m) {
  m.def(lstm_fast::kForwardSchema);
  m.def(lstm_fast::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm_fast::OpsOnCpu::forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_fast::OpsOnCpu::backward));
}
