// The module `lstm_fast._kernels`, and of it NumPy's door to the kernel floor: every instruction
// set of the host on plain arrays, without torch. For tests, for build information, for `explain`,
// and for the curious.
#include <algorithm>
#include <iterator>
#include <sstream>

#include "../cpu/plan.h"
#include "../cpu/stack.h"
#include "../cuda/plan.h"
#include "build_info.h"
#include "direct.h"
#include "numpy.h"
#include "session.h"
#include "stream.h"

namespace lstm_fast {
namespace {

std::vector<std::string> available_isas() {
  const Kernels* const* list;
  const int count = available_kernels(&list);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(list[i]->isa);
  return names;
}

template <typename T>
struct Arguments {
  std::vector<int64_t> offsets;
  StackShape shape;
  std::vector<LayerWeights<T>> weights;
  bool has_biases;

  Arguments(const Array<T>& x, const std::vector<Array<T>>& params,
            const OptionalArray<int64_t>& batch_sizes, const OptionalArray<T>& h0,
            const OptionalArray<T>& c0, bool has_biases_, int64_t num_layers, bool bidirectional)
      : has_biases(has_biases_) {
    StackArguments a = stack_arguments(params, has_biases, num_layers, bidirectional);
    a.input = dims(x);
    if (batch_sizes) {
      if (batch_sizes->ndim() != 1)
        throw std::invalid_argument("batch_sizes must have 1 dimension");
      a.batch_sizes = batch_sizes->data();
      a.batch_sizes_length = batch_sizes->size();
    }
    Dims h0_dims, c0_dims;
    if (h0) h0_dims = dims(*h0), a.h0 = &h0_dims;
    if (c0) c0_dims = dims(*c0), a.c0 = &c0_dims;
    shape = infer_shape(a, offsets);
    weights = group_params<LayerWeights<T>>(shape, has_biases, pointers(params));
  }

  std::vector<py::ssize_t> output_shape(int64_t columns) const {
    const Steps& steps = shape.steps;
    if (steps.batch_sizes) return {steps.total(), columns};
    return {steps.T, steps.B, columns};
  }
  std::vector<py::ssize_t> state_shape(int64_t columns) const {
    return {shape.L * shape.D, shape.steps.B, columns};
  }
};

template <typename T>
py::tuple lstm(const Array<T>& x, const std::vector<Array<T>>& params,
               const OptionalArray<int64_t>& batch_sizes, const OptionalArray<T>& h0,
               const OptionalArray<T>& c0, bool has_biases, int64_t num_layers, bool bidirectional,
               bool save, const std::optional<std::string>& isa, int64_t slices, int parts,
               bool recompute_gates) {
  const Arguments<T> a(x, params, batch_sizes, h0, c0, has_biases, num_layers, bidirectional);
  const Kernels& kernels = kernels_named(isa);
  const Threads threads = serial(slices);
  const StackShape& s = a.shape;
  Array<T> y(a.output_shape(s.D * s.P)), h_n(a.state_shape(s.P)), c_n(a.state_shape(s.H));
  Array<T> saved(save ? SavedLayout{s, false, recompute_gates}.size() : 0);
  StackForward<T> p{};
  p.shape = s;
  p.weights = a.weights.data();
  p.x = x.data();
  p.h0 = data(h0);
  p.c0 = data(c0);
  p.y = y.mutable_data();
  p.h_n = h_n.mutable_data();
  p.c_n = c_n.mutable_data();
  p.saved = save ? saved.mutable_data() : nullptr;
  p.recompute_gates = recompute_gates;
  p.shape.parts = parts;
  plan(kernels, p, threads);
  Workspace<T> workspace(forward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  forward(kernels, p, threads);
  return py::make_tuple(y, h_n, c_n, saved);
}

template <typename T>
py::tuple lstm_backward(const OptionalArray<T>& grad_y, const OptionalArray<T>& grad_h_n,
                        const OptionalArray<T>& grad_c_n, const Array<T>& x,
                        const std::vector<Array<T>>& params,
                        const OptionalArray<int64_t>& batch_sizes, const OptionalArray<T>& h0,
                        const OptionalArray<T>& c0, const Array<T>& y, const Array<T>& saved,
                        bool has_biases, int64_t num_layers, bool bidirectional,
                        const std::optional<std::string>& isa, int64_t slices, int parts,
                        bool recompute_gates) {
  const Arguments<T> a(x, params, batch_sizes, h0, c0, has_biases, num_layers, bidirectional);
  const Kernels& kernels = kernels_named(isa);
  const Threads threads = serial(slices);
  const StackShape& s = a.shape;
  const auto expect = [](const char* name, const OptionalArray<T>& array,
                         const std::vector<py::ssize_t>& shape) {
    if (array &&
        !std::equal(shape.begin(), shape.end(), array->shape(), array->shape() + array->ndim())) {
      throw std::invalid_argument(std::string(name) +
                                  " does not have the shape of what it belongs to");
    }
  };
  expect("grad_y", grad_y, a.output_shape(s.D * s.P));
  expect("grad_h_n", grad_h_n, a.state_shape(s.P));
  expect("grad_c_n", grad_c_n, a.state_shape(s.H));
  expect("y", y, a.output_shape(s.D * s.P));
  expect("saved", saved, {SavedLayout{s, false, recompute_gates}.size()});

  Array<T> grad_x(a.output_shape(s.I)), grad_h0(a.state_shape(s.P)), grad_c0(a.state_shape(s.H));
  std::vector<Array<T>> grad_params;
  std::vector<T*> pointers;
  for (const auto& param : params) {
    grad_params.emplace_back(std::vector<py::ssize_t>(param.shape(), param.shape() + param.ndim()));
    pointers.push_back(grad_params.back().mutable_data());
  }
  const auto grad_weights = group_params<LayerWeightGrads<T>>(s, has_biases, pointers);
  StackBackward<T> p{};
  p.shape = s;
  p.weights = a.weights.data();
  p.x = x.data();
  p.h0 = data(h0);
  p.c0 = data(c0);
  p.y = y.data();
  p.saved = saved.data();
  p.recompute_gates = recompute_gates;
  p.grad_y = data(grad_y);
  p.grad_h_n = data(grad_h_n);
  p.grad_c_n = data(grad_c_n);
  p.grad_x = grad_x.mutable_data();
  p.grad_h0 = grad_h0.mutable_data();
  p.grad_c0 = grad_c0.mutable_data();
  p.grad_weights = grad_weights.data();
  p.shape.parts = parts;
  plan(kernels, p, threads);
  Workspace<T> workspace(backward_workspace_size(kernels, p, threads));
  p.workspace = workspace.get();
  backward(kernels, p, threads);
  return py::make_tuple(grad_x, grad_h0, grad_c0, grad_params);
}

template <typename T>
py::tuple activations(const Array<T>& x, const std::optional<std::string>& isa) {
  Array<T> s(x.size()), h(x.size());
  kernels_named(isa).of(T()).activations(x.data(), x.size(), s.mutable_data(), h.mutable_data());
  return py::make_tuple(s, h);
}

Array<float> widen_float16(const Array<uint16_t>& bits, const std::optional<std::string>& isa) {
  static_assert(sizeof(Float16) == sizeof(uint16_t));
  Array<float> result(bits.size());
  kernels_named(isa).widen_float16(reinterpret_cast<const Float16*>(bits.data()), bits.size(),
                                   result.mutable_data());
  return result;
}

py::dict build_info() {
  const auto words = [](const char* text) {
    std::istringstream stream(text);
    return std::vector<std::string>(std::istream_iterator<std::string>(stream), {});
  };
  py::dict info;
  info["version"] = kVersion;
  info["isas_built"] = words(kIsas);
  info["isa"] = active_kernels().isa;
  info["compiler"] = __VERSION__;
  const std::vector<std::string> cuda_archs = words(kCudaArchs);
  info["cuda"] = !cuda_archs.empty();
  info["cuda_archs"] = cuda_archs;
  info["torch_target"] = kTorchTarget;
  return info;
}

template <typename T>
py::dict cpu_plan_of(const StackShape& shape, const Threads& threads, bool keeps_packed,
                     const std::string& dtype) {
  const std::vector<LayerWeights<T>> weights(shape.L * shape.D);
  const LayerWeights<BFloat16> bfloat16{};
  const LayerWeights<Float16> float16{};
  StackForward<T> p{};
  p.shape = shape;
  p.weights = weights.data();
  p.keeps_packed = keeps_packed;
  if (dtype == "bfloat16") p.bfloat16_weights = &bfloat16;
  if (dtype == "float16") p.float16_weights = &float16;
  plan(active_kernels(), p, threads);
  py::dict result;
  const char* plain = shape.steps.T == 1 ? "single step" : "single steps";
  result["path"] = p.plain                            ? plain
                   : !p.shape.parts                   ? "packed weights"
                   : p.shape.unit == Bf16Unit::Matrix ? "matrix unit"
                                                      : "bfloat16 dot products";
  const auto division_of = [&](const StackShape& s, Pass pass, bool packs) {
    return divide(s, pass, threads_of(s, pass, threads), sizeof(T), packs);
  };
  const Division forward = p.plain ? Division() : division_of(p.shape, Pass::Forward, p.packs());
  StackShape s = shape;
  s.unit = p.shape.unit;
  const Division backward = division_of(s, Pass::Backward, false);
  const int64_t count = threads_of(shape, Pass::Forward, threads).count;
  result["sums_inputs"] = p.sums_inputs;
  result["threads"] = p.plain ? count : std::min(count, s.D * forward.tasks());
  result["members"] = forward.members;
  result["shares_layers"] = forward.shares_layers;
  result["backward_members"] = backward.members;
  result["backward_shares_layers"] = backward.shares_layers;
  return result;
}

// What the CPU's planner decides, numbers beyond the matrix unit aside.
py::dict cpu_plan(const std::string& dtype, const std::vector<int64_t>& batch_sizes, int64_t I,
                  int64_t H, std::optional<int64_t> P, int64_t L, int64_t D, int parts,
                  int64_t threads, std::optional<int64_t> second_cache, bool packed,
                  bool keeps_packed) {
  if (batch_sizes.empty()) throw std::invalid_argument("batch_sizes must not be empty");
  std::vector<int64_t> offsets = {0};
  for (const int64_t rows : batch_sizes) offsets.push_back(offsets.back() + rows);
  StackShape s{};
  s.steps = {static_cast<int64_t>(batch_sizes.size()), batch_sizes[0], nullptr, nullptr};
  if (packed) s.steps.batch_sizes = batch_sizes.data(), s.steps.offsets = offsets.data();
  s.I = I;
  s.H = H;
  s.P = P.value_or(H);
  s.projected = P.has_value();
  s.L = L;
  s.D = D;
  s.parts = parts;
  Threads available = serial(threads);
  if (second_cache) available.second_cache = *second_cache;
  if (dtype == "float64") return cpu_plan_of<double>(s, available, keeps_packed, dtype);
  const bool is_bfloat16 = dtype == "bfloat16";
  if (is_bfloat16 || dtype == "float16") s.parts = parts_of_halves(is_bfloat16, parts);
  return cpu_plan_of<float>(s, available, keeps_packed, dtype);
}

// What the CUDA planner decides for a device that need not be there.
py::dict cuda_plan(const std::string& dtype, int64_t T, int64_t B, int64_t I, int64_t H,
                   std::optional<int64_t> P, int64_t L, int64_t D, bool allow_tf32,
                   int compute_capability, int multiprocessors, int64_t shared_bytes,
                   int64_t l2_bytes, int cluster_blocks) {
  const bool half = dtype == "float16" || dtype == "bfloat16";
  if (!half && dtype != "float32" && dtype != "float64")
    throw std::invalid_argument("dtype must be a floating dtype of 16, 32 or 64 bits");
  const cuda::Element element = half                 ? cuda::Element::Half
                                : dtype == "float32" ? cuda::Element::Float32
                                                     : cuda::Element::Float64;
  const cuda::Device device{compute_capability, multiprocessors, shared_bytes, l2_bytes,
                            cluster_blocks};
  StackShape s{};
  s.steps = {T, B, nullptr, nullptr};
  s.I = I;
  s.H = H;
  s.P = P.value_or(H);
  s.projected = P.has_value();
  s.L = L;
  s.D = D;
  py::dict plan;
  for (const bool backward : {false, true}) {
    const cuda::Plan steps = cuda::plan_steps(
        device, s, element, allow_tf32, backward ? cuda::Pass::Backward : cuda::Pass::Forward);
    const cuda::Team& team = steps.team;
    py::dict pass;
    pass["regime"] = cuda::name(steps.regime);
    pass["units"] = team.units;
    pass["blocks"] = team.blocks;
    pass["teams"] = team.teams;
    pass["groups"] = team.groups;
    pass["rows"] = team.rows;
    pass["shared_bytes"] = team.memory.bytes;
    plan[backward ? "backward" : "forward"] = pass;
  }
  plan["tensor_cores"] = cuda::uses_tensor_cores(device, element, allow_tf32);
  plan["large_input_tiles"] = cuda::large_tiles(device, T * B, 4 * H, D);
  plan["large_step_tiles"] = cuda::large_tiles(device, B, 4 * H, D);
  plan["weight_grad_parts"] = cuda::weight_grad_parts(device, 4 * H, I + 1 + s.P, T * B, D);
  const cuda::Plan forward = cuda::plan_steps(device, s, element, allow_tf32, cuda::Pass::Forward);
  plan["steps_per_chunk"] =
      cuda::steps_per_chunk(device, s, element == cuda::Element::Float64 ? 8 : 4, forward.regime);
  return plan;
}

template <typename T>
void bind(py::module_& m) {
  using py::literals::operator""_a;
  m.def("lstm", &lstm<T>, "x"_a.noconvert(), "params"_a, "batch_sizes"_a = py::none(),
        "h0"_a = py::none(), "c0"_a = py::none(), "has_biases"_a = true, "num_layers"_a = 1,
        "bidirectional"_a = false, "save"_a = false, "isa"_a = py::none(), "slices"_a = 1,
        "parts"_a = 0, "recompute_gates"_a = false,
        "Forward of a stack: (y, h_n, c_n, saved). float32 or float64 arrays in the shapes of "
        "torch.nn.LSTM; `slices` "
        "is the number of threads to lay the work out for (it runs on one).");
  m.def(
      "lstm_backward", &lstm_backward<T>, "grad_y"_a, "grad_h_n"_a, "grad_c_n"_a, "x"_a.noconvert(),
      "params"_a, "batch_sizes"_a, "h0"_a, "c0"_a, "y"_a, "saved"_a, "has_biases"_a = true,
      "num_layers"_a = 1, "bidirectional"_a = false, "isa"_a = py::none(), "slices"_a = 1,
      "parts"_a = 0, "recompute_gates"_a = false,
      "Backward of a stack: (grad_x, grad_h0, grad_c0, grad_params), given what `lstm` returned.");
  m.def("activations", &activations<T>, "x"_a.noconvert(), "isa"_a = py::none(),
        "(sigmoid(x), tanh(x)) as the gates compute them.");
}

}  // namespace
}  // namespace lstm_fast

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The kernels of lstm-fast on NumPy arrays.";
  m.def("build_info", &lstm_fast::build_info,
        "What was built, and what is in use on this machine.");
  using py::literals::operator""_a;
  m.def("cpu_plan", &lstm_fast::cpu_plan, "dtype"_a, "batch_sizes"_a, "I"_a, "H"_a,
        "P"_a = py::none(), "L"_a = 1, "D"_a = 1, "parts"_a = 3, "threads"_a = 1,
        "second_cache"_a = py::none(), "packed"_a = false, "keeps_packed"_a = false,
        "How the CPU kernels compute a problem on this machine.");
  m.def("cuda_plan", &lstm_fast::cuda_plan, "dtype"_a, "T"_a, "B"_a, "I"_a, "H"_a,
        "P"_a = py::none(), "L"_a = 1, "D"_a = 1, "allow_tf32"_a = true,
        "compute_capability"_a = 90, "multiprocessors"_a = 132, "shared_bytes"_a = 227 << 10,
        "l2_bytes"_a = 50 << 20, "cluster_blocks"_a = 8,
        "How the CUDA kernels would compute a problem on a device of these properties.");
  m.def("available_isas", &lstm_fast::available_isas,
        "Instruction sets built in that this machine has, best last.");
  m.def("widen_float16", &lstm_fast::widen_float16, "bits"_a.noconvert(), "isa"_a = py::none(),
        "The float32 numbers of float16 ones, as weights and inputs are read.");
  lstm_fast::add_direct(m);
  lstm_fast::add_session(m);
  lstm_fast::add_stream(m);
  lstm_fast::bind<float>(m);
  lstm_fast::bind<double>(m);
  lstm_fast::bind_variant(m);
}
