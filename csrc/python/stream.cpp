#include "stream.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/kept_weights.h"
#include "numpy.h"

namespace lstm_fast {
namespace {

// Functions of torch's C interface, by `bind_stream`.
struct Torch {
  int32_t (*data_ptr)(void* tensor, void** data) = nullptr;
  int32_t (*release)(void* tensor) = nullptr;
  int32_t (*dtype)(void* tensor, int32_t* dtype) = nullptr;
  int32_t (*device_type)(void* tensor, int32_t* type) = nullptr;
  int32_t (*numel)(void* tensor, int64_t* numel) = nullptr;
  int32_t (*is_contiguous)(void* tensor, bool* is_contiguous) = nullptr;
} torch;

// A tensor of torch, by a handle of its own.
class Tensor {
 public:
  explicit Tensor(const py::capsule& handle)
      : handle_(handle.get_pointer()), layout_(layout_now()) {}
  Tensor(Tensor&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), layout_(other.layout_) {}
  ~Tensor() {
    if (handle_) torch.release(handle_);
  }

  const void* data() const {
    void* data;
    if (torch.data_ptr(handle_, &data))
      throw std::runtime_error("the memory of a weight cannot be found");
    return data;
  }

  // Torch may give a tensor other memory.
  bool keeps_layout() const { return layout_now() == layout_; }

 private:
  using Layout = std::tuple<int32_t, int32_t, int64_t, bool>;
  Layout layout_now() const {
    int32_t dtype, device_type;
    int64_t numel;
    bool is_contiguous;
    if (torch.dtype(handle_, &dtype) || torch.device_type(handle_, &device_type) ||
        torch.numel(handle_, &numel) || torch.is_contiguous(handle_, &is_contiguous)) {
      throw std::runtime_error("the layout of a weight cannot be found");
    }
    return {dtype, device_type, numel, is_contiguous};
  }

  void* handle_;
  Layout layout_;  // when the stream was made
};

template <typename T>
class Stream {
 public:
  // Takes over the handles, which are of the tensors that the arrays show.
  Stream(const std::vector<Array<T>>& params, const std::vector<py::capsule>& handles,
         bool has_biases, int64_t num_layers, int64_t input_size, int64_t batch_size, int parts)
      : tensors_(handles.begin(), handles.end()),
        pointers_(params.size()),
        packed_params_(params.size()),
        has_biases_(has_biases),
        parts_(parts) {
    StackArguments a = stack_arguments(params, has_biases, num_layers, false);
    a.input = {3, {1, batch_size, input_size}};
    for (const auto& param : params) sizes_.push_back(param.size());
    std::vector<int64_t> offsets;
    p_.shape = infer_shape(a, offsets);
    // Before the plan, whose sums a batch too large for any memory would overflow.
    for (State& state : states_) {
      state.h.resize(num_layers * batch_size * p_.shape.P);
      state.c.resize(num_layers * batch_size * p_.shape.H);
    }
    find_weights();
    p_.shape.parts = parts;
    // As if they were packed at every step: to see whether they have changed takes about as long.
    plan(active_kernels(), p_, serial(1));
    is_plain_ = p_.plain;
    if (is_plain_) allocate();
  }

  Array<T> step(const py::handle& input) {
    const StackShape& s = p_.shape;
    if (!py::isinstance<Array<T>>(input)) {
      check_array<T>("input", input);
      throw py::type_error("input must be C-contiguous, as numpy.ascontiguousarray(input) is");
    }
    const auto x = py::reinterpret_borrow<Array<T>>(input);
    if (x.ndim() != 2 || x.shape(0) != s.steps.B || x.shape(1) != s.I) {
      throw std::invalid_argument("input must be of shape [" + std::to_string(s.steps.B) + ", " +
                                  std::to_string(s.I) + "]");
    }
    Array<T> y({s.steps.B, s.P});
    p_.x = x.data();
    p_.y = y.mutable_data();
    p_.h0 = states_[0].h.data();
    p_.c0 = states_[0].c.data();
    p_.h_n = states_[1].h.data();
    p_.c_n = states_[1].c.data();
    find_weights();
    if (!is_plain_) pack();
    forward(active_kernels(), p_, serial(1));
    std::swap(states_[0], states_[1]);
    return y;
  }

  void reset() {
    std::fill(states_[0].h.begin(), states_[0].h.end(), T(0));
    std::fill(states_[0].c.begin(), states_[0].c.end(), T(0));
  }

  std::pair<Array<T>, Array<T>> state() const {
    const StackShape& s = p_.shape;
    return {Array<T>({s.L, s.steps.B, s.P}, states_[0].h.data()),
            Array<T>({s.L, s.steps.B, s.H}, states_[0].c.data())};
  }
  void set_state(const py::object& state) {
    const StackShape& s = p_.shape;
    if (!is_pair(state)) throw py::type_error("state must be a pair of arrays, (h, c)");
    const auto given = [&](const char* name, int i, int64_t columns) {
      const py::object array = state[py::int_(i)];
      check_array<T>(name, array);
      const Array<T> a(array);
      if (a.ndim() != 3 || a.shape(0) != s.L || a.shape(1) != s.steps.B || a.shape(2) != columns) {
        throw std::invalid_argument(std::string(name) + " must be of shape [" +
                                    std::to_string(s.L) + ", " + std::to_string(s.steps.B) + ", " +
                                    std::to_string(columns) + "]");
      }
      return a;
    };
    const Array<T> h = given("h", 0, s.P), c = given("c", 1, s.H);
    std::copy_n(h.data(), h.size(), states_[0].h.begin());
    std::copy_n(c.data(), c.size(), states_[0].c.begin());
  }

 private:
  struct State {
    std::vector<T> h, c;
  };

  // Torch moves the memory of a tensor that it shares with other processes, say.
  void find_weights() {
    bool moved = false;
    for (size_t i = 0; i < tensors_.size(); ++i) moved |= tensors_[i].data() != pointers_[i];
    if (!moved) return;
    for (const Tensor& tensor : tensors_) {
      if (!tensor.keeps_layout()) {
        throw std::runtime_error(
            "a weight of the module has another dtype, device, size or strides than at first");
      }
    }
    for (size_t i = 0; i < tensors_.size(); ++i)
      pointers_[i] = static_cast<const T*>(tensors_[i].data());
    weights_ = group_params<LayerWeights<T>>(p_.shape, has_biases_, pointers_);
    p_.weights = weights_.data();
  }

  // Packs the weights if they are not those that were packed, and plans the step anew, as the
  // numbers that it reads may ask for.
  void pack() {
    // For want of memory, a step may have left off in the middle.
    bool changed = !is_packed_;
    is_packed_ = false;
    for (size_t i = 0; i < pointers_.size(); ++i) {
      const T* now = pointers_[i];
      std::vector<T>& before = packed_params_[i];
      if (!before.empty() && !std::memcmp(now, before.data(), sizes_[i] * sizeof(T))) continue;
      before.assign(now, now + sizes_[i]);
      changed = true;
    }
    if (changed) kept_.emplace();
    const bool was_plain = p_.plain;
    const int parts_before = p_.shape.parts;
    p_.shape.parts = parts_;
    kept_->plan(active_kernels(), p_, serial(1), [this] { return p_.weights; });
    if (changed || p_.plain != was_plain || p_.shape.parts != parts_before) allocate();
    is_packed_ = true;
  }

  void allocate() {
    workspace_ = Workspace<T>(forward_workspace_size(active_kernels(), p_, serial(1)));
    p_.workspace = workspace_.get();
  }

  std::vector<Tensor> tensors_;  // the parameters
  std::vector<const T*> pointers_;
  std::vector<int64_t> sizes_;
  std::vector<std::vector<T>> packed_params_;  // copies of those that were packed
  std::optional<KeptWeights<T>> kept_;
  bool is_packed_ = false;  // and all that a step needs was made of them
  bool has_biases_;
  int parts_;      // that products may be made of
  bool is_plain_;  // of so few rows that no weights are packed, whatever they are
  std::vector<LayerWeights<T>> weights_;
  Workspace<T> workspace_{0};
  StackForward<T> p_{};
  State states_[2];  // before and after a step
};

template <typename T>
void add(py::module_& m, const char* name) {
  using py::literals::operator""_a;
  py::class_<Stream<T>>(m, name)
      .def(py::init<const std::vector<Array<T>>&, const std::vector<py::capsule>&, bool, int64_t,
                    int64_t, int64_t, int>(),
           "params"_a, "handles"_a, "has_biases"_a, "num_layers"_a, "input_size"_a, "batch_size"_a,
           "parts"_a)
      .def("step", &Stream<T>::step, "input"_a)
      .def("reset", &Stream<T>::reset)
      .def_property("state", &Stream<T>::state, &Stream<T>::set_state);
}

}  // namespace

void bind_stream(const OpsLibrary& ops) {
  ops.find(torch.data_ptr, "aoti_torch_get_data_ptr");
  ops.find(torch.release, "aoti_torch_delete_tensor_object");
  ops.find(torch.dtype, "aoti_torch_get_dtype");
  ops.find(torch.device_type, "aoti_torch_get_device_type");
  ops.find(torch.numel, "aoti_torch_get_numel");
  ops.find(torch.is_contiguous, "aoti_torch_is_contiguous");
}

void add_stream(py::module_& m) {
  add<float>(m, "StreamFloat32");
  add<double>(m, "StreamFloat64");
}

}  // namespace lstm_fast
