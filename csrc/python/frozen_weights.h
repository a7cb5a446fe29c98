// What the ops keep of the weights of a module that `lstm_fast.freeze` froze.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace lstm_fast {

// Used by who has Python's lock.
class FrozenWeights {
 public:
  // DirectCall::kept for these tensors, of which there are handles: what it was in the last call if
  // they are as they were then. Null for weights that may change without torch counting it: those
  // that a gradient may be wanted of, since fused optimisers do so, and inference tensors.
  std::shared_ptr<void> of(PyObject* tensors, void* const* handles);
  // Whether these were the tensors of the last call.
  bool has(PyObject* tensors) const;
  void forget();

 private:
  struct Weight {
    pybind11::object tensor;
    pybind11::object alias;  // so that no other memory comes to lie there
    const void* data;
    long version;
  };
  bool is_of(PyObject* tensors, void* const* handles) const;  // as they were then

  std::vector<Weight> weights_;
  std::shared_ptr<void> kept_;
};

void add_frozen_weights(pybind11::module_& m);

}  // namespace lstm_fast
