// A stack of layers that runs step by step on NumPy arrays and keeps its state.
#pragma once

#include <pybind11/pybind11.h>

#include "ops_library.h"

namespace lstm_fast {

// Adds the class `Stream` to the module.
void add_stream(pybind11::module_& m);

// Finds the functions of torch that streams need, as it may move weights that they read.
void bind_stream(const OpsLibrary&);

}  // namespace lstm_fast
