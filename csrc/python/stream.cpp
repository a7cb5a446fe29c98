#include "stream.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../cpu/stack.h"

namespace py = pybind11;

namespace lstm_fast {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

Threads calling_thread() {
  return {1, [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
            for (int64_t task = 0; task < tasks; ++task) f(context, task);
          }};
}

template <typename T>
class Stream {
 public:
  Stream(const std::vector<Array<T>>& params, bool has_biases, int64_t num_layers,
         int64_t input_size, int64_t batch_size)
      : params_(params) {
    StackArguments a;
    a.input = {3, {1, batch_size, input_size}};
    std::vector<const T*> pointers;
    for (const auto& param : params_) {
      Dims d{param.ndim(), {}};
      for (int64_t i = 0; i < d.dim && i < 3; ++i) d.size[i] = param.shape(i);
      a.params.push_back(d);
      pointers.push_back(param.data());
    }
    a.has_biases = has_biases;
    a.num_layers = num_layers;
    std::vector<int64_t> offsets;
    p_.shape = infer_shape(a, offsets);
    weights_ = group_params<LayerWeights<T>>(p_.shape, has_biases, pointers);
    p_.weights = weights_.data();
    plan(active_kernels(), p_, calling_thread());
    workspace_.resize(forward_workspace_size(active_kernels(), p_, calling_thread()) + kLine);
    p_.workspace = workspace_.data();
    while (reinterpret_cast<uintptr_t>(p_.workspace) % 64) ++p_.workspace;
    for (State& state : states_) {
      state.h.resize(num_layers * batch_size * p_.shape.P);
      state.c.resize(num_layers * batch_size * p_.shape.H);
    }
  }

  Array<T> step(const Array<T>& x) {
    const StackShape& s = p_.shape;
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
    forward(active_kernels(), p_, calling_thread());
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
  void set_state(const std::pair<Array<T>, Array<T>>& state) {
    const StackShape& s = p_.shape;
    const auto expect = [&](const char* name, const Array<T>& a, int64_t columns) {
      if (a.ndim() != 3 || a.shape(0) != s.L || a.shape(1) != s.steps.B || a.shape(2) != columns) {
        throw std::invalid_argument(std::string(name) + " must be of shape [" +
                                    std::to_string(s.L) + ", " + std::to_string(s.steps.B) + ", " +
                                    std::to_string(columns) + "]");
      }
    };
    expect("h", state.first, s.P);
    expect("c", state.second, s.H);
    std::copy_n(state.first.data(), state.first.size(), states_[0].h.begin());
    std::copy_n(state.second.data(), state.second.size(), states_[0].c.begin());
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);

  struct State {
    std::vector<T> h, c;
  };

  std::vector<Array<T>> params_;  // kept alive
  std::vector<LayerWeights<T>> weights_;
  std::vector<T> workspace_;
  StackForward<T> p_{};  // parts are 0: a row's bits do not depend on the others
  State states_[2];      // before and after a step
};

template <typename T>
void add(py::module_& m, const char* name) {
  using py::literals::operator""_a;
  py::class_<Stream<T>>(m, name)
      .def(py::init<const std::vector<Array<T>>&, bool, int64_t, int64_t, int64_t>(), "params"_a,
           "has_biases"_a, "num_layers"_a, "input_size"_a, "batch_size"_a)
      .def("step", &Stream<T>::step, "input"_a.noconvert())
      .def("reset", &Stream<T>::reset)
      .def_property("state", &Stream<T>::state, &Stream<T>::set_state);
}

}  // namespace

void add_stream(py::module_& m) {
  add<float>(m, "StreamFloat32");
  add<double>(m, "StreamFloat64");
}

}  // namespace lstm_fast
