// What the ops keep of the weights of a module that `lstm_fast.freeze` froze.
#pragma once

#include <pybind11/pybind11.h>

#include "ops_library.h"

namespace lstm_fast {

// A new reference to what `frozen`, an `ops.FrozenWeights`, keeps of a tuple of tensors that these
// handles are of: what it was in the last call, if they are as they were then. None if nothing may
// be kept, as they may change without torch counting it: what a gradient may be wanted of, which
// fused optimisers change so, and inference tensors. Never null.
PyObject* kept_of(PyObject* frozen, PyObject* tensors, void* const* handles);
// It as DirectCall::kept.
void* handle_of(PyObject* kept);

// Takes of torch and the ops what the above needs.
void bind_frozen_weights(const OpsLibrary&, const pybind11::object& detach,
                         const pybind11::object& is_inference);

}  // namespace lstm_fast
