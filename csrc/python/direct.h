// Python's side of ../direct.h.
#pragma once

#include <pybind11/pybind11.h>

namespace lstm_fast {

// Adds `bind`, `infer`, `direct_forward`, `direct_backward` and `are_registered` to the module.
void add_direct(pybind11::module_& m);

}  // namespace lstm_fast
