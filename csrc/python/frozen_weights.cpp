#include "frozen_weights.h"

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace lstm_fast {
namespace {

// What `bind_frozen_weights` was given and has found; never released.
struct Bound {
  PyObject *detach, *is_inference;  // of a tensor
  int32_t (*data_ptr)(void* tensor, void** data) = nullptr;
  int32_t (*dtype)(void* tensor, int32_t* dtype) = nullptr;
  int32_t (*dim)(void* tensor, int64_t* dim) = nullptr;
  int32_t (*sizes)(void* tensor, int64_t** sizes) = nullptr;
  int32_t (*strides)(void* tensor, int64_t** strides) = nullptr;
  void* (*keep)() = nullptr;
  void (*forget)(void*) = nullptr;
  PyObject *requires_grad, *version, *kept;  // names of attributes
} bound;

py::object attribute(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object, name);
  if (!value) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

py::object call(PyObject* function, PyObject* tensor) {
  PyObject* result = PyObject_CallOneArg(function, tensor);
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// All that tells a tensor from what it was before.
struct Weight {
  void* data;
  int32_t dtype;
  int64_t dim, sizes[2] = {}, strides[2] = {};
  long version;
  bool may_be_trained;

  Weight(PyObject* tensor, void* handle) {
    int64_t *of_sizes, *of_strides;
    if (bound.data_ptr(handle, &data) || bound.dtype(handle, &dtype) || bound.dim(handle, &dim) ||
        bound.sizes(handle, &of_sizes) || bound.strides(handle, &of_strides) || dim > 2) {
      throw std::runtime_error("no weight of ours");
    }
    for (int64_t i = 0; i < dim; ++i) sizes[i] = of_sizes[i], strides[i] = of_strides[i];
    version = PyLong_AsLong(attribute(tensor, bound.version).ptr());
    if (version == -1 && PyErr_Occurred()) throw py::error_already_set();
    may_be_trained = attribute(tensor, bound.requires_grad).ptr() == Py_True;
  }

  bool operator==(const Weight& other) const {
    return data == other.data && dtype == other.dtype && dim == other.dim &&
           sizes[0] == other.sizes[0] && sizes[1] == other.sizes[1] &&
           strides[0] == other.strides[0] && strides[1] == other.strides[1] &&
           version == other.version && may_be_trained == other.may_be_trained;
  }
};

struct Kept {
  std::vector<Weight> weights;
  void* handle = bound.keep();

  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() { bound.forget(handle); }
};

// `kept` of an `ops.FrozenWeights` is a tuple, which Python's collector sees through.
enum : Py_ssize_t { kTensors, kAliases, kCapsule };

const Kept& kept_in(PyObject* tuple) {
  return *static_cast<Kept*>(PyCapsule_GetPointer(PyTuple_GET_ITEM(tuple, kCapsule), nullptr));
}

bool are_same(PyObject* kept, PyObject* tensors) {
  if (kept == Py_None) return false;
  PyObject* before = PyTuple_GET_ITEM(kept, kTensors);
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors);
  if (PyTuple_GET_SIZE(before) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (PyTuple_GET_ITEM(before, i) != PyTuple_GET_ITEM(tensors, i)) return false;
  }
  return true;
}

std::vector<Weight> weights_of(PyObject* tensors, void* const* handles) {
  std::vector<Weight> weights;
  weights.reserve(PyTuple_GET_SIZE(tensors));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i)
    weights.emplace_back(PyTuple_GET_ITEM(tensors, i), handles[i]);
  return weights;
}

py::object keep(PyObject* tensors, std::vector<Weight> weights) {
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors);
  py::tuple aliases(count);  // so that no other memory comes to lie where that of the weights does
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(tensors, i);
    // Torch counts no changes to inference tensors, even where it tells a version of them.
    if (weights[i].may_be_trained || call(bound.is_inference, tensor).ptr() == Py_True)
      return py::none();
    aliases[i] = call(bound.detach, tensor);
  }
  auto* kept = new Kept;
  const py::capsule capsule(kept, [](void* p) { delete static_cast<Kept*>(p); });
  kept->weights = std::move(weights);
  return py::make_tuple(py::handle(tensors), aliases, capsule);
}

}  // namespace

PyObject* kept_of(PyObject* frozen, PyObject* tensors, void* const* handles) {
  try {
    py::object kept = attribute(frozen, bound.kept);
    std::vector<Weight> weights = weights_of(tensors, handles);
    if (!are_same(kept.ptr(), tensors) || !(kept_in(kept.ptr()).weights == weights)) {
      kept = keep(tensors, std::move(weights));
      py::setattr(frozen, bound.kept, kept);
    }
    return kept.release().ptr();
  } catch (const std::exception&) {
    return py::none().release().ptr();
  }
}

void* handle_of(PyObject* kept) { return kept == Py_None ? nullptr : kept_in(kept).handle; }

void bind_frozen_weights(const OpsLibrary& ops, const py::object& detach,
                         const py::object& is_inference) {
  bound.detach = py::object(detach).release().ptr();
  bound.is_inference = py::object(is_inference).release().ptr();
  ops.find(bound.data_ptr, "aoti_torch_get_data_ptr");
  ops.find(bound.dtype, "aoti_torch_get_dtype");
  ops.find(bound.dim, "aoti_torch_get_dim");
  ops.find(bound.sizes, "aoti_torch_get_sizes");
  ops.find(bound.strides, "aoti_torch_get_strides");
  ops.find(bound.keep, "lstm_fast_keep_weights");
  ops.find(bound.forget, "lstm_fast_forget_weights");
  bound.requires_grad = PyUnicode_InternFromString("requires_grad");
  bound.version = PyUnicode_InternFromString("_version");
  bound.kept = PyUnicode_InternFromString("kept");
}

}  // namespace lstm_fast
