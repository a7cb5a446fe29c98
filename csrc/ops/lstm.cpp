// The torch ops: their schemas, and what runs them on the CPU (../cpu/stack.h). Registered with the
// stable ABI: one build for many torch versions. Checks and allocation are here and in lstm.h,
// once; below are raw pointers that are trusted.
#include "lstm.h"

#include <pthread.h>

#include <cstdlib>
#include <iterator>
#include <memory>
#include <utility>

#include "../cpu/stack.h"
#include "../direct.h"

namespace lstm_fast {
namespace {

// As the CPU kernels read it: contiguous, in the compute type.
Tensor prepare(const Tensor& t) {
  const ScalarType dtype = t.scalar_type(), type = compute_type(dtype);
  return dtype == type ? as_contiguous(t) : as_contiguous(cast(t, type));
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

// OpenMP's threads do not survive a fork, and a child that called on them would wait forever.
bool forked = false;
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Torch's own threads, so that torch.set_num_threads is obeyed and no second pool exists; in a
// forked child the calling thread alone.
Threads torch_threads() {
  if (forked) {
    return {1, [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
              for (int64_t task = 0; task < tasks; ++task) f(context, task);
            }};
  }
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
            torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) f(context, task);
            });
          }};
}

// Parts that the products of a dtype are made of, given those that float32 may be made of. Two hold
// all that a half has.
int parts_for(ScalarType dtype, int64_t parts) {
  return static_cast<int>(std::min<int64_t>(parts, is_half(dtype) ? 2 : 3));
}

// The last result is only there to be saved.
template <typename T>
ForwardResult run_forward(const Arguments& a, bool save, int parts) {
  const StackShape& s = a.shape;
  const ScalarType type = compute_type(a.dtype);
  const SavedLayout layout = saved_layout(a);
  const bool y_in_saved = save && layout.keep_output;
  Tensor y = y_in_saved ? empty({layout.size()}, type, a.input) : a.empty_output(s.D * s.P, type);
  Tensor saved = save && !y_in_saved ? empty({layout.size()}, type, a.input) : y;
  Tensor h_n = a.empty_state(s.P, type), c_n = a.empty_state(s.H, type);

  const auto weights = group_params<LayerWeights<T>>(s, a.has_biases, const_data<T>(a.params));
  StackForward<T> p{};
  p.shape = s;
  p.shape.parts = parts;
  p.weights = weights.data();
  p.x = const_data<T>(a.input);
  p.h0 = const_data<T>(a.h0);
  p.c0 = const_data<T>(a.c0);
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
    y = a.empty_output(s.D * s.P, a.dtype);
    Tensor kept = torch::stable::narrow(saved, 0, layout.output(s.L - 1), y.numel());
    torch::stable::copy_(y, torch::stable::view(kept, y.sizes()));
  }
  if (type == a.dtype) return {std::move(y), std::move(h_n), std::move(c_n), std::move(saved)};
  return {cast(y, a.dtype), cast(h_n, a.dtype), cast(c_n, a.dtype), saved};
}

ForwardResult compute_forward(const Arguments& a, bool save, int64_t parts) {
  return compute_type(a.dtype) == ScalarType::Double
             ? run_forward<double>(a, save, 0)
             : run_forward<float>(a, save, parts_for(a.dtype, parts));
}

ForwardResult lstm(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                   const OptionalTensor& c0, const std::vector<Tensor>& params, bool has_biases,
                   int64_t num_layers, bool bidirectional, bool save, int64_t parts) {
  const Arguments a(prepare, input, batch_sizes, h0, c0, params, has_biases, num_layers,
                    bidirectional);
  ForwardResult results = compute_forward(a, save, parts);
  if (!save) std::get<3>(results) = empty({0}, compute_type(a.dtype), a.input);
  return results;
}

template <typename T>
BackwardResult run_backward(const Arguments& a, const OutputGrads& grads, const Tensor& output,
                            const Tensor& saved, const Needs& needs, int parts) {
  const StackShape& s = a.shape;
  const SavedLayout layout = saved_layout(a);
  ArgumentGrads results(a, needs, compute_type(a.dtype));

  const auto weights = group_params<LayerWeights<T>>(s, a.has_biases, const_data<T>(a.params));
  std::vector<LayerWeightGrads<T>> grad_weights;
  if (needs.params) {
    grad_weights = group_params<LayerWeightGrads<T>>(s, a.has_biases, results.param_pointers<T>());
  }
  const Tensor y = prepare(output);
  StackBackward<T> p{};
  p.shape = s;
  p.shape.parts = parts;
  p.weights = weights.data();
  p.x = const_data<T>(a.input);
  p.h0 = const_data<T>(a.h0);
  p.c0 = const_data<T>(a.c0);
  p.saved = const_data<T>(saved);
  p.keep_output = layout.keep_output;
  p.y = layout.keep_output ? p.saved + layout.output(s.L - 1) : const_data<T>(y);
  p.grad_y = const_data<T>(grads.output);
  p.grad_h_n = const_data<T>(grads.h_n);
  p.grad_c_n = const_data<T>(grads.c_n);
  p.grad_x = needs.input ? mutable_data<T>(results.input) : nullptr;
  p.grad_h0 = wanted_data<T>(results.h0);
  p.grad_c0 = wanted_data<T>(results.c0);
  p.grad_weights = needs.params ? grad_weights.data() : nullptr;
  const Kernels& kernels = active_kernels();
  const Threads threads = torch_threads();
  p.shape.parts = plan_parts(kernels, p, threads);
  const auto workspace = allocate<T>(backward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  backward(kernels, p, threads);

  for (Tensor& grad : results.params) grad = cast(grad, a.dtype);
  return {cast(results.input, a.dtype), cast(results.h0, a.dtype), cast(results.c0, a.dtype),
          results.params};
}

BackwardResult lstm_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const OptionalTensor& grad_c_n, const Tensor& input,
                             const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                             const OptionalTensor& c0, const std::vector<Tensor>& params,
                             bool has_biases, int64_t num_layers, bool bidirectional,
                             const Tensor& output, const Tensor& saved, bool need_input,
                             bool need_hx, bool need_params, int64_t parts) {
  const Arguments a(prepare, input, batch_sizes, h0, c0, params, has_biases, num_layers,
                    bidirectional);
  const OutputGrads grads = prepare_grads(prepare, a, output, grad_output, grad_h_n, grad_c_n);
  check_saved(a, saved);
  const Needs needs{need_input, need_hx, need_params};
  return compute_type(a.dtype) == ScalarType::Double
             ? run_backward<double>(a, grads, output, saved, needs, 0)
             : run_backward<float>(a, grads, output, saved, needs, parts_for(a.dtype, parts));
}

}  // namespace
}  // namespace lstm_fast

extern "C" __attribute__((visibility("default"))) bool lstm_fast_direct(
    lstm_fast::DirectCall& call) {
  using namespace lstm_fast;
  std::vector<Tensor> tensors;  // of all handles at once, so that each is released
  tensors.reserve(call.count);
  for (int64_t i = 0; i < call.count; ++i) {
    tensors.emplace_back(static_cast<AtenTensorHandle>(call.tensors[i]));
  }
  try {
    OptionalTensor h0, c0;
    if (call.has_states) h0 = tensors[1], c0 = tensors[2];
    const std::vector<Tensor> params(
        std::make_move_iterator(tensors.begin() + (call.has_states ? 3 : 1)),
        std::make_move_iterator(tensors.end()));
    const Arguments a(prepare, tensors[0], std::nullopt, h0, c0, params, call.has_biases,
                      call.num_layers, call.bidirectional);
    const auto results = compute_forward(a, false, call.parts);
    const Tensor* of_results[3] = {&std::get<0>(results), &std::get<1>(results),
                                   &std::get<2>(results)};
    for (int i = 0; i < 3; ++i) {
      AtenTensorHandle handle = nullptr;
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(of_results[i]->get(), &handle));
      call.results[i] = handle;
    }
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

STABLE_TORCH_LIBRARY(lstm_fast, m) {
  m.def(lstm_fast::kForwardSchema);
  m.def(lstm_fast::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm_fast::lstm));
  m.impl("lstm_backward", TORCH_BOX(&lstm_fast::lstm_backward));
}
