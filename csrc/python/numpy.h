// Arrays of NumPy as arguments of kernels, and what stands in for torch's threads and memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../arguments.h"
#include "../cpu/kernels.h"
#include "../cpu/tasks.h"
#include "../cpu/workspace.h"

namespace py = pybind11;

namespace lstm_fast {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
template <typename T>
using OptionalArray = std::optional<Array<T>>;

inline Dims dims(const py::array& array) {
  Dims d{array.ndim(), {}};
  for (int64_t i = 0; i < d.dim && i < 3; ++i) d.size[i] = array.shape(i);
  return d;
}

// Raises TypeError for what is no array of T, of any strides.
template <typename T>
void check_array(const std::string& name, const py::handle& object) {
  if (py::isinstance<py::array_t<T, 0>>(object)) return;
  throw py::type_error(name + " must be a NumPy array of " +
                       std::string(py::str(py::dtype::of<T>())) + ", got " +
                       (py::isinstance<py::array>(object)
                            ? "one of " + std::string(py::str(object.attr("dtype")))
                            : std::string(py::str(py::type::of(object).attr("__name__")))));
}

inline bool is_pair(const py::handle& object) {
  return (PyTuple_Check(object.ptr()) || PyList_Check(object.ptr())) && py::len(object) == 2;
}

template <typename T>
const T* data(const OptionalArray<T>& array) {
  return array ? array->data() : nullptr;
}

template <typename T>
std::vector<const T*> pointers(const std::vector<Array<T>>& arrays) {
  std::vector<const T*> pointers;
  for (const auto& array : arrays) pointers.push_back(array.data());
  return pointers;
}

// But for the input and the states.
template <typename T>
StackArguments stack_arguments(const std::vector<Array<T>>& params, bool has_biases,
                               int64_t num_layers, bool bidirectional) {
  StackArguments a;
  for (const auto& param : params) a.params.push_back(dims(param));
  a.has_biases = has_biases;
  a.num_layers = num_layers;
  a.bidirectional = bidirectional;
  return a;
}

inline const Kernels& kernels_named(const std::optional<std::string>& isa) {
  if (!isa) return active_kernels();
  const Kernels* const* list;
  const int count = available_kernels(&list);
  for (int i = 0; i < count; ++i) {
    if (*isa == list[i]->isa) return *list[i];
  }
  throw std::invalid_argument("isa must be one of available_isas(), got " + *isa);
}

// One thread that plays the part of `slices`, task after task: results must not depend on their
// number.
inline Threads serial(int64_t slices) {
  if (slices < 1) throw std::invalid_argument("slices must be positive");
  return {slices, [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
            for (int64_t task = tasks - 1; task >= 0; --task) f(context, task);
          }};
}

void bind_variant(py::module_& m);  // variant.cpp

}  // namespace lstm_fast
