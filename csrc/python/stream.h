// A stack of layers that runs step by step on NumPy arrays and keeps its state.
#pragma once

#include <pybind11/pybind11.h>

namespace lstm_fast {

// Adds the class `Stream` to the module.
void add_stream(pybind11::module_& m);

}  // namespace lstm_fast
