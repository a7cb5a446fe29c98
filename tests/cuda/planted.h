// Included before the sources that tests/test_cuda_kernels.py plants its faults in. A program has
// all of them; which one is in force, by its number from 1, is chosen when it starts.
#pragma once

#include <cstdlib>

namespace lstm_fast::cuda {

inline int chosen_fault() {
  const char* number = std::getenv("LSTM_FAST_PLANTED_FAULT");
  return number ? std::atoi(number) : 0;
}
inline const int planted_fault = chosen_fault();

}  // namespace lstm_fast::cuda
