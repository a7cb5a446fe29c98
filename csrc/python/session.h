// A stack of layers on NumPy arrays, whose weights are packed once.
#pragma once

#include <pybind11/pybind11.h>

#include "ops_library.h"

namespace lstm_fast {

// Adds the classes `SessionFloat32` and `SessionFloat64` to the module.
void add_session(pybind11::module_& m);

// Finds the functions of the ops that sessions need: their threads and their memory.
void bind_session(const OpsLibrary&);

}  // namespace lstm_fast
