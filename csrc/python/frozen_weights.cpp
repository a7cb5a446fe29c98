#include "frozen_weights.h"

#include <stdexcept>
#include <utility>

namespace py = pybind11;

namespace lstm_fast {
namespace {

// What `bind_frozen_weights` was given; never released.
struct Bound {
  PyObject* detach;  // of a tensor
  int32_t (*data_ptr)(void* tensor, void** data) = nullptr;
  void* (*keep)() = nullptr;
  void (*forget)(void*) = nullptr;
  PyObject *requires_grad, *version;  // names of attributes
} bound;

const void* data_of(void* handle) {
  void* data = nullptr;
  if (bound.data_ptr(handle, &data)) throw std::runtime_error("a weight has no memory");
  return data;
}

py::object attribute(PyObject* tensor, PyObject* name) {
  PyObject* value = PyObject_GetAttr(tensor, name);
  if (!value) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

long version_of(PyObject* tensor) {
  const long version = PyLong_AsLong(attribute(tensor, bound.version).ptr());
  if (version == -1 && PyErr_Occurred()) throw py::error_already_set();
  return version;
}

}  // namespace

std::shared_ptr<void> FrozenWeights::of(PyObject* tensors, void* const* handles) {
  try {
    if (is_of(tensors, handles)) return kept_;
    forget();
    std::vector<Weight> weights;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i) {
      PyObject* tensor = PyList_GET_ITEM(tensors, i);
      if (attribute(tensor, bound.requires_grad).ptr() == Py_True) return nullptr;
      PyObject* alias = PyObject_CallOneArg(bound.detach, tensor);
      if (!alias) throw py::error_already_set();
      weights.push_back({py::reinterpret_borrow<py::object>(tensor),
                         py::reinterpret_steal<py::object>(alias), data_of(handles[i]),
                         version_of(tensor)});
    }
    kept_ = std::shared_ptr<void>(bound.keep(), bound.forget);
    weights_ = std::move(weights);
    return kept_;
  } catch (const std::exception&) {  // inference tensors count no versions
    forget();
    return nullptr;
  }
}

bool FrozenWeights::has(PyObject* tensors) const {
  if (weights_.empty() || static_cast<size_t>(PyList_GET_SIZE(tensors)) != weights_.size())
    return false;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (PyList_GET_ITEM(tensors, static_cast<Py_ssize_t>(i)) != weights_[i].tensor.ptr())
      return false;
  }
  return true;
}

bool FrozenWeights::is_of(PyObject* tensors, void* const* handles) const {
  if (!has(tensors)) return false;
  for (size_t i = 0; i < weights_.size(); ++i) {
    const Weight& weight = weights_[i];
    if (data_of(handles[i]) != weight.data || version_of(weight.tensor.ptr()) != weight.version ||
        attribute(weight.tensor.ptr(), bound.requires_grad).ptr() == Py_True) {
      return false;
    }
  }
  return true;
}

void FrozenWeights::forget() {
  // Released last, as Python code may run then.
  const std::vector<Weight> weights = std::exchange(weights_, {});
  kept_.reset();
}

void add_frozen_weights(py::module_& m) {
  using py::literals::operator""_a;
  m.def(
      "bind_frozen_weights",
      [](const py::object& detach, uintptr_t data_ptr, uintptr_t keep, uintptr_t forget) {
        bound.detach = py::object(detach).release().ptr();
        bound.data_ptr = reinterpret_cast<decltype(bound.data_ptr)>(data_ptr);
        bound.keep = reinterpret_cast<decltype(bound.keep)>(keep);
        bound.forget = reinterpret_cast<decltype(bound.forget)>(forget);
        bound.requires_grad = PyUnicode_InternFromString("requires_grad");
        bound.version = PyUnicode_InternFromString("_version");
      },
      "detach"_a, "data_ptr"_a, "keep"_a, "forget"_a,
      "Takes what `FrozenWeights` needs of torch and the ops.");
  // Copies, in other modules or processes, begin anew.
  py::class_<FrozenWeights>(m, "FrozenWeights")
      .def(py::init<>())
      .def("forget", &FrozenWeights::forget)
      .def("__reduce__",
           [](const py::object& self) { return py::make_tuple(py::type::of(self), py::tuple()); });
}

}  // namespace lstm_fast
