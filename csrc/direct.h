// The ops past torch's dispatcher, which takes longer than a small call. The library of the ops has
// torch and no Python, that of the kernels has Python and no torch: one exports these functions,
// the other finds them in it.
#pragma once

#include <cstdint>

namespace lstm_fast {

// The arguments of the op of the same name, for tensors that are dense and on the CPU.
struct DirectCall {
  // AtenTensorHandles, which the callee releases, in the order of the schema; null where not given.
  //   forward:  input, batch_sizes, h0, c0, params...
  //   backward: grad_output, grad_h_n, grad_c_n, input, batch_sizes, h0, c0, output, saved,
  //   params...
  void* const* tensors;
  int64_t count;
  bool has_biases, bidirectional, recompute_gates;
  int64_t num_layers, parts;
  int64_t input_size;  // forward: that input must have; 0: that of the weights alone
  bool batch_first;    // forward: input and output have B before T
  bool cell;   // whose tensors lack the dimensions of T and of L * D, and whose output is h_n
  bool save;   // forward
  void* kept;  // forward: of lstm_fast_keep_weights(), for calls with these very weights; or null
  bool need_input, need_hx, need_params;  // backward
  // PyEval_SaveThread() and PyEval_RestoreThread(): in between, other threads of Python may run.
  void* (*save_thread)();
  void (*restore_thread)(void*);
  // Handles of the results in the order of the schema, which the caller releases. Set if the call
  // succeeds: null where not wanted.
  void** results;
};

constexpr int kDirectForwardTensors = 4, kDirectBackwardTensors = 9;  // before params
constexpr int kDirectForwardResults = 4, kDirectBackwardResults = 3;  // before those of params

// False if an argument is wrong; the op says which.
using Direct = bool (*)(DirectCall&);

}  // namespace lstm_fast
