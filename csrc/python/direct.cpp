#include "direct.h"

#include <array>
#include <cstring>
#include <vector>

#include "../direct.h"
#include "frozen_weights.h"
#include "lock.h"
#include "ops_library.h"
#include "session.h"
#include "stream.h"

namespace py = pybind11;

namespace lstm_fast {
namespace {

// What `bind` was given and has found; never released.
struct Torch {
  Direct forward = nullptr, backward = nullptr;
  PyTypeObject *tensor, *parameter;
  PyObject* is_neg;                     // of a tensor
  PyObject *to_handles, *from_handles;  // list of tensors to list of capsules, and back
  std::vector<PyObject*> busy;          // each returns something true if the dispatcher has work
} torch;

struct Reference {
  PyObject* object;
  ~Reference() { Py_XDECREF(object); }
  explicit operator bool() const { return object != nullptr; }
};

// Tensors of an op's call on their way to handles.
class Tensors {
 public:
  explicit Tensors(Py_ssize_t count) : handles_(count), given_{PyList_New(0)} {
    positions_.reserve(count);
  }

  // False if the dispatcher has something to do for it, and on an error.
  bool add(PyObject* tensor) {
    if (Py_TYPE(tensor) != torch.tensor && Py_TYPE(tensor) != torch.parameter) return false;
    if (is_neg(tensor)) return false;
    if (PyList_Append(given_.object, tensor)) return false;
    positions_.push_back(next_++);
    return true;
  }
  // Likewise of what may be None.
  bool add_optional(PyObject* tensor) {
    if (tensor != Py_None) return add(tensor);
    ++next_;
    return true;
  }
  bool add_all(PyObject* tuple) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
      if (!add(PyTuple_GET_ITEM(tuple, i))) return false;
    }
    return true;
  }

  // The handles, which the callee owns; null on an error.
  void* const* handles() {
    const Reference capsules{PyObject_CallOneArg(torch.to_handles, given_.object)};
    if (!capsules) return nullptr;
    for (size_t i = 0; i < positions_.size(); ++i) {
      handles_[positions_[i]] = PyCapsule_GetPointer(PyList_GET_ITEM(capsules.object, i), nullptr);
    }
    return handles_.data();
  }
  int64_t count() const { return static_cast<int64_t>(handles_.size()); }

 private:
  static bool is_neg(PyObject* tensor) {
    const Reference answer{PyObject_CallOneArg(torch.is_neg, tensor)};
    return answer.object != Py_False;
  }

  std::vector<void*> handles_;
  std::vector<Py_ssize_t> positions_;
  Reference given_;
  Py_ssize_t next_ = 0;
};

// A tuple of the tensors, None for a null handle.
PyObject* tuple_of(const std::vector<void*>& handles) {
  const Reference capsules{PyList_New(0)};
  for (void* handle : handles) {
    if (!handle) continue;
    const Reference capsule{PyCapsule_New(handle, nullptr, nullptr)};
    if (!capsule || PyList_Append(capsules.object, capsule.object)) return nullptr;
  }
  const Reference tensors{PyObject_CallOneArg(torch.from_handles, capsules.object)};
  if (!tensors) return nullptr;
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(handles.size()));
  Py_ssize_t next = 0;
  for (size_t i = 0; tuple && i < handles.size(); ++i) {
    PyObject* item = handles[i] ? PyList_GET_ITEM(tensors.object, next++) : Py_None;
    Py_INCREF(item);
    PyTuple_SET_ITEM(tuple, i, item);
  }
  return tuple;
}

// None, if the dispatcher must make a call; null if a question to a tensor has raised.
PyObject* declined() {
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

// The results of a call, or None if the dispatcher must make it. `frozen`, if not null, is of the
// last tensors, in the tuple `params`.
PyObject* call(Direct function, Tensors& tensors, DirectCall& arguments, Py_ssize_t results,
               PyObject* frozen = nullptr, PyObject* params = nullptr) {
  if (PyErr_Occurred()) return nullptr;  // by an argument that is no number
  for (PyObject* busy : torch.busy) {
    const Reference answer{PyObject_CallNoArgs(busy)};
    if (!answer) return nullptr;
    if (PyObject_IsTrue(answer.object)) Py_RETURN_NONE;
  }
  std::vector<void*> of_results(results);
  arguments.tensors = tensors.handles();
  if (!arguments.tensors) return nullptr;
  arguments.count = tensors.count();
  arguments.results = of_results.data();
  Reference kept{nullptr};
  if (frozen) {
    void* const* handles = arguments.tensors + arguments.count - PyTuple_GET_SIZE(params);
    kept.object = kept_of(frozen, params, handles);
    arguments.kept = handle_of(kept.object);
  }
  arguments.save_thread = []() -> void* { return PyEval_SaveThread(); };
  arguments.restore_thread = [](void* thread) { take_lock(static_cast<PyThreadState*>(thread)); };
  if (!function(arguments)) Py_RETURN_NONE;
  return tuple_of(of_results);
}

bool truth(PyObject* object) { return PyObject_IsTrue(object) == 1; }

// The list of parameters is a module's own, which another thread may change meanwhile: each
// function goes by a copy.

// (input, batch_sizes, h0, c0, params, has_biases, num_layers, bidirectional, save, parts
// [, recompute_gates[, cell[, frozen]]])
PyObject* direct_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  constexpr int before = kDirectForwardTensors;
  if (!torch.forward || count < before + 6 || !PyList_Check(args[before])) Py_RETURN_NONE;
  const Reference params{PyList_AsTuple(args[before])};
  if (!params) return nullptr;
  Tensors tensors(before + PyTuple_GET_SIZE(params.object));
  for (int i = 0; i < before; ++i) {
    if (!tensors.add_optional(args[i])) return declined();
  }
  if (!tensors.add_all(params.object)) return declined();
  PyObject* frozen = count > before + 8 && args[before + 8] != Py_None ? args[before + 8] : nullptr;
  DirectCall arguments{};
  arguments.has_biases = truth(args[before + 1]);
  arguments.num_layers = PyLong_AsLongLong(args[before + 2]);
  arguments.bidirectional = truth(args[before + 3]);
  arguments.save = truth(args[before + 4]);
  arguments.parts = PyLong_AsLongLong(args[before + 5]);
  arguments.recompute_gates = count > before + 6 && truth(args[before + 6]);
  arguments.cell = count > before + 7 && truth(args[before + 7]);
  return call(torch.forward, tensors, arguments, kDirectForwardResults, frozen, params.object);
}

// (grad_output, grad_h_n, grad_c_n, input, batch_sizes, h0, c0, params, has_biases, num_layers,
// bidirectional, output, saved, need_input, need_hx, need_params, parts[, recompute_gates[, cell]])
PyObject* direct_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!torch.backward || count < 17 || !PyList_Check(args[7])) Py_RETURN_NONE;
  const Reference params{PyList_AsTuple(args[7])};
  if (!params) return nullptr;
  const Py_ssize_t param_count = PyTuple_GET_SIZE(params.object);
  Tensors tensors(kDirectBackwardTensors + param_count);
  for (int i : {0, 1, 2, 3, 4, 5, 6, 11, 12}) {
    if (!tensors.add_optional(args[i])) return declined();
  }
  if (!tensors.add_all(params.object)) return declined();
  DirectCall arguments{};
  arguments.has_biases = truth(args[8]);
  arguments.num_layers = PyLong_AsLongLong(args[9]);
  arguments.bidirectional = truth(args[10]);
  arguments.need_input = truth(args[13]);
  arguments.need_hx = truth(args[14]);
  arguments.need_params = truth(args[15]);
  arguments.parts = PyLong_AsLongLong(args[16]);
  arguments.recompute_gates = count > 17 && truth(args[17]);
  arguments.cell = count > 18 && truth(args[18]);
  return call(torch.backward, tensors, arguments, kDirectBackwardResults + param_count);
}

bool is_registered(PyObject* parameters, PyObject* names, PyObject* weights) {
  if (!PyDict_Check(parameters) || !PyList_Check(names) || !PyList_Check(weights)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names) && i < PyList_GET_SIZE(weights); ++i) {
    if (PyDict_GetItem(parameters, PyList_GET_ITEM(names, i)) != PyList_GET_ITEM(weights, i))
      return false;
  }
  return true;
}

// (parameters, names, weights): the dict of a module's parameters, and two lists.
PyObject* are_registered(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return PyBool_FromLong(count == 3 && is_registered(args[0], args[1], args[2]));
}

struct Name {
  PyObject* object;
  explicit Name(const char* name) : object(PyUnicode_InternFromString(name)) {}
};

// The attributes in the `__dict__` of a module, read without running code of Python.
class Attributes {
 public:
  explicit Attributes(PyObject* state) : state_(state) {}

  // Whether those that were asked for were all there, of the types that torch's modules give them.
  bool are_usual() const { return are_usual_; }

  // A borrowed reference; None if it is not there.
  PyObject* operator[](const Name& name) {
    PyObject* value = PyDict_GetItem(state_, name.object);
    are_usual_ &= value != nullptr;
    return value ? value : Py_None;
  }
  bool flag(const Name& name) {
    PyObject* value = (*this)[name];
    are_usual_ &= PyBool_Check(value);
    return value == Py_True;
  }
  int64_t size(const Name& name) {
    const int64_t size = whole((*this)[name]);
    are_usual_ &= size > 0;
    return size;
  }
  double probability(const Name& name) {
    PyObject* value = (*this)[name];
    return PyFloat_Check(value) ? PyFloat_AS_DOUBLE(value) : static_cast<double>(whole(value));
  }

 private:
  int64_t whole(PyObject* value) {
    int overflow = 0;
    const int64_t whole = PyLong_Check(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : 0;
    are_usual_ &= PyLong_Check(value) && !overflow;
    return whole;
  }

  PyObject* state_;
  bool are_usual_ = true;
};

// The weights of an LSTM, a tuple; null if the module is to read them anew.
PyObject* weights_of_lstm(Attributes& module) {
  static const Name parameters("_parameters"), names("_flat_weights_names"),
      flat_weights("_flat_weights");
  PyObject* weights = module[flat_weights];
  if (!is_registered(module[parameters], module[names], weights)) return nullptr;
  return PyList_AsTuple(weights);
}

// Those of an LSTMCell; null if something computes one of them.
PyObject* weights_of_cell(Attributes& module) {
  static const Name of_module("_parameters"),
      names[] = {Name("weight_ih"), Name("weight_hh"), Name("bias_ih"), Name("bias_hh")};
  PyObject* parameters = module[of_module];
  if (!PyDict_CheckExact(parameters)) return nullptr;
  PyObject* weights[4];
  for (int i = 0; i < 4; ++i) {
    weights[i] = PyDict_GetItem(parameters, names[i].object);
    if (!weights[i]) return nullptr;
  }
  if (weights[2] == Py_None && weights[3] == Py_None)
    return PyTuple_Pack(2, weights[0], weights[1]);
  return PyTuple_Pack(4, weights[0], weights[1], weights[2], weights[3]);
}

// (state, input, hx, cell, frozen, parts): what an LSTM or LSTMCell with this `__dict__` returns
// where it makes results alone; None if Python is to make the call.
PyObject* infer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  static const Name input_size("input_size"), num_layers("num_layers"), bias("bias"),
      bidirectional("bidirectional"), batch_first("batch_first"), dropout("dropout"),
      training("training");
  if (!torch.forward || count != 6 || !PyDict_Check(args[0])) Py_RETURN_NONE;
  PyObject *input = args[1], *hx = args[2], *frozen = args[4];
  Attributes module(args[0]);
  DirectCall arguments{};
  arguments.cell = truth(args[3]);
  arguments.parts = PyLong_AsLongLong(args[5]);
  arguments.input_size = module.size(input_size);
  arguments.num_layers = 1;
  bool drops = false;
  if (!arguments.cell) {
    arguments.num_layers = module.size(num_layers);
    arguments.bidirectional = module.flag(bidirectional);
    arguments.batch_first = module.flag(batch_first);
    arguments.has_biases = module.flag(bias);
    drops = module.probability(dropout) && module.flag(training) && arguments.num_layers > 1;
  }
  const Reference params{arguments.cell ? weights_of_cell(module) : weights_of_lstm(module)};
  if (!params || drops || !module.are_usual()) return declined();
  if (arguments.cell) arguments.has_biases = PyTuple_GET_SIZE(params.object) == 4;
  Tensors tensors(kDirectForwardTensors + PyTuple_GET_SIZE(params.object));
  if (!tensors.add(input) || !tensors.add_optional(Py_None)) return declined();
  if (hx == Py_None) {
    tensors.add_optional(Py_None), tensors.add_optional(Py_None);
  } else {
    if (!PyTuple_Check(hx) && !PyList_Check(hx)) Py_RETURN_NONE;
    const Reference pair{PySequence_Tuple(hx)};
    if (!pair || PyTuple_GET_SIZE(pair.object) != 2) return declined();
    for (int i = 0; i < 2; ++i) {
      if (!tensors.add(PyTuple_GET_ITEM(pair.object, i))) return declined();
    }
  }
  if (!tensors.add_all(params.object)) return declined();

  const Reference results{call(torch.forward, tensors, arguments, kDirectForwardResults,
                               frozen == Py_None ? nullptr : frozen, params.object)};
  if (!results) return nullptr;
  if (results.object == Py_None) Py_RETURN_NONE;
  PyObject* states = PyTuple_GetSlice(results.object, 1, 3);  // h_n and c_n
  if (arguments.cell || !states) return states;
  const Reference held{states};
  return PyTuple_Pack(2, PyTuple_GET_ITEM(results.object, 0), states);
}

template <typename F>
PyCFunction method(F* f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

// Without pybind11, whose conversions would take as long as the rest.
PyMethodDef methods[] = {
    {"direct_forward", method(direct_forward), METH_FASTCALL,
     "The op `lstm` past torch's dispatcher: its results, or None if the dispatcher must call it."},
    {"direct_backward", method(direct_backward), METH_FASTCALL, "Likewise `lstm_backward`."},
    {"infer", method(infer), METH_FASTCALL,
     "A module's whole call, if it makes results alone; None if Python is to make it."},
    {"are_registered", method(are_registered), METH_FASTCALL,
     "Whether the parameters of these names are those weights."},
    {nullptr, nullptr, 0, nullptr}};

void bind(const std::string& path, const py::type& tensor, const py::type& parameter,
          const py::object& is_neg, const py::object& to_handles, const py::object& from_handles,
          const py::list& busy, const py::object& detach, const py::object& is_inference) {
  const OpsLibrary ops(path);
  const char* (*headers)();
  ops.find(headers, "lstm_fast_headers");
  if (std::strcmp(headers(), LSTM_FAST_HEADERS)) {
    throw py::import_error(
        "the _kernels of this Python are of another build of lstm_fast than the _ops beside them");
  }
  ops.find(torch.forward, "lstm_fast_direct_forward");
  ops.find(torch.backward, "lstm_fast_direct_backward");
  torch.tensor = reinterpret_cast<PyTypeObject*>(py::type(tensor).release().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(py::type(parameter).release().ptr());
  torch.is_neg = py::object(is_neg).release().ptr();
  torch.to_handles = py::object(to_handles).release().ptr();
  torch.from_handles = py::object(from_handles).release().ptr();
  torch.busy.clear();
  for (const py::handle& function : busy) torch.busy.push_back(function.inc_ref().ptr());
  bind_frozen_weights(ops, detach, is_inference);
  bind_session(ops);
  bind_stream(ops);
}

}  // namespace

void add_direct(py::module_& m) {
  using py::literals::operator""_a;
  m.def("bind", &bind, "ops"_a, "tensor"_a, "parameter"_a, "is_neg"_a, "to_handles"_a,
        "from_handles"_a, "busy"_a, "detach"_a, "is_inference"_a,
        "Takes the path of the library of the ops, which is loaded, and what is needed of torch.");
  PyModule_AddFunctions(m.ptr(), methods);
}

}  // namespace lstm_fast
