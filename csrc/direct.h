// The forward op for inference past torch's dispatcher, which takes longer than a small call. The
// library of the ops has torch and no Python, that of the kernels has Python and no torch: one
// exports this function, the other calls it through its address.
#pragma once

#include <cstdint>

namespace lstm_fast {

struct DirectCall {
  // AtenTensorHandles, which the callee releases: input, (h0, c0), and the parameters in the order
  // of nn.LSTM._flat_weights. Dense tensors on the CPU.
  void* const* tensors;
  int64_t count;
  bool has_states, has_biases, bidirectional;
  int64_t num_layers, parts;
  // Handles of output, h_n and c_n, which the caller releases; set if the call succeeds.
  void* results[3];
};

// False if an argument is wrong; the op says which.
using DirectForward = bool (*)(DirectCall&);

}  // namespace lstm_fast
