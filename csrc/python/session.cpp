#include "session.h"

#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/kept_weights.h"
#include "lock.h"
#include "numpy.h"

namespace lstm_fast {
namespace {

// Functions of the ops, by `bind_session`.
struct Ops {
  void (*find_threads)(int64_t flops, Threads*) = nullptr;
  void* (*take_memory)(int64_t bytes) = nullptr;  // null if there is not so much
  void (*give_memory)(void*) = nullptr;
} ops;

// Contiguous, with the first two axes in the other order if they are swapped.
template <typename T>
Array<T> contiguous(const std::string& name, const py::handle& object, bool swapped = false) {
  check_array<T>(name, object);
  const py::object in_order =
      swapped ? object.attr("swapaxes")(0, 1) : py::reinterpret_borrow<py::object>(object);
  return Array<T>(in_order);
}

template <typename T>
class Session {
 public:
  // Reads the arrays as long as it lives.
  Session(std::vector<Array<T>> params, bool has_biases, int64_t num_layers, bool bidirectional,
          bool batch_first, int parts)
      : params_(std::move(params)), batch_first_(batch_first) {
    StackArguments a = stack_arguments(params_, has_biases, num_layers, bidirectional);
    a.input = {3, {1, 1, params_.empty() ? 0 : dims(params_[0]).size[1]}};
    std::vector<int64_t> offsets;
    stack_ = infer_shape(a, offsets);
    stack_.parts = parts;
    weights_ = group_params<LayerWeights<T>>(stack_, has_biases, pointers(params_));
  }

  // (output, (h_n, c_n)) as torch.nn.LSTM returns them.
  py::tuple run(const py::object& input, const py::object& hx) {
    const int64_t dim = py::isinstance<py::array>(input) ? input.cast<py::array>().ndim() : 3;
    if (dim != 2 && dim != 3) {
      throw std::invalid_argument("LSTM: Expected input to be 2D or 3D, got " +
                                  std::to_string(dim) + "D instead");
    }
    const bool batched = dim == 3, swapped = batched && batch_first_;
    const Array<T> x = contiguous<T>("input", input, swapped);
    const bool has_state = !hx.is_none();
    Array<T> h0, c0;
    Dims h0_dims, c0_dims;
    if (has_state) {
      if (!is_pair(hx)) throw py::type_error("hx must be a pair of arrays, (h_0, c_0)");
      h0 = contiguous<T>("hx[0]", hx[py::int_(0)]), c0 = contiguous<T>("hx[1]", hx[py::int_(1)]);
      if (h0.ndim() != dim || c0.ndim() != dim) {
        throw std::runtime_error("For " + std::string(batched ? "batched 3-D" : "unbatched 2-D") +
                                 " input, hx and cx should also be " + std::to_string(dim) +
                                 "-D but got (" + std::to_string(h0.ndim()) + "-D, " +
                                 std::to_string(c0.ndim()) + "-D) arrays");
      }
      h0_dims = as_batch(dims(h0)), c0_dims = as_batch(dims(c0));
    }
    StackForward<T> p{};
    p.shape = infer_shape(stack_, as_batch(dims(x)), has_state ? &h0_dims : nullptr,
                          has_state ? &c0_dims : nullptr);
    const StackShape& s = p.shape;
    const auto result = [&](int64_t rows, int64_t columns) {
      return batched ? Array<T>({rows, s.steps.B, columns}) : Array<T>({rows, columns});
    };
    Array<T> y = result(s.steps.T, s.D * s.P), h_n = result(s.L * s.D, s.P),
             c_n = result(s.L * s.D, s.H);
    p.x = x.data();
    p.h0 = has_state ? h0.data() : nullptr;
    p.c0 = has_state ? c0.data() : nullptr;
    p.y = y.mutable_data();
    p.h_n = h_n.mutable_data();
    p.c_n = c_n.mutable_data();
    if (s.steps.B) compute(p);
    py::object output = std::move(y);
    if (swapped) output = output.attr("swapaxes")(0, 1);
    return py::make_tuple(output, py::make_tuple(h_n, c_n));
  }

 private:
  // With an axis of one row where there is none.
  static Dims as_batch(const Dims& d) {
    return d.dim == 3 ? d : Dims{3, {d.size[0], 1, d.size[1]}};
  }

  void compute(StackForward<T>& p) {
    const Kernels& kernels = active_kernels();
    Threads threads;
    ops.find_threads(p.shape.flops(), &threads);
    p.weights = weights_.data();
    kept_.plan(kernels, p, threads, [this] { return weights_.data(); });
    const int64_t elements = forward_workspace_size(kernels, p, threads);
    const std::unique_ptr<void, void (*)(void*)> workspace(
        ops.take_memory(elements * static_cast<int64_t>(sizeof(T))), ops.give_memory);
    if (!workspace) throw std::bad_alloc();
    p.workspace = static_cast<T*>(workspace.get());
    const OthersMayRun scope;
    forward(kernels, p, threads);
  }

  std::vector<Array<T>> params_;
  bool batch_first_;
  StackShape stack_{};  // but for the steps of a call; parts that products may be made of
  std::vector<LayerWeights<T>> weights_;
  KeptWeights<T> kept_;
};

template <typename T>
void add(py::module_& m, const char* name) {
  using py::literals::operator""_a;
  py::class_<Session<T>>(m, name)
      .def(py::init<std::vector<Array<T>>, bool, int64_t, bool, bool, int>(), "params"_a,
           "has_biases"_a, "num_layers"_a, "bidirectional"_a, "batch_first"_a, "parts"_a)
      .def("run", &Session<T>::run, "input"_a, "hx"_a);
}

}  // namespace

void bind_session(const OpsLibrary& library) {
  library.find(ops.find_threads, "lstm_fast_find_threads");
  library.find(ops.take_memory, "lstm_fast_take_memory");
  library.find(ops.give_memory, "lstm_fast_give_memory");
}

void add_session(py::module_& m) {
  add<float>(m, "SessionFloat32");
  add<double>(m, "SessionFloat64");
}

}  // namespace lstm_fast
