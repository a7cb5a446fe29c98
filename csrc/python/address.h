// Functions of other libraries, by their addresses as Python has them.
#pragma once

#include <cstdint>

namespace lstm_fast {

template <typename F>
void set_to(F& function, uintptr_t address) {
  function = reinterpret_cast<F>(address);
}

}  // namespace lstm_fast
