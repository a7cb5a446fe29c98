// The CUDA kernels of a stack of layers: what an op calls. No torch and no CUDA header: pointers to
// the memory of the current device, and a stream. Shapes and layouts: ../lstm.h.
//
// - Calls return when the work is on the stream: no waiting, no allocation, and nothing that a CUDA
//   graph cannot capture. Arrays of the host are read before a call returns.
// - T is the element type of the call's dtype; Wide is float, or double for float64.
// - A pointer is read-only or written completely; nothing needs initialising, and no two buffers
//   overlap. Buffers are aligned to their elements, the workspace to 16 bytes.
// - No atomics and one order of additions for given arguments and device: results are the same to
//   the bit in every run.
#pragma once

#include "../lstm.h"
#include "plan.h"

namespace lstm_fast::cuda {

enum class Dtype { Float32, Float64, Float16, BFloat16 };

struct StackForward {
  StackShape shape;                   // its arrays are the host's
  const LayerWeights<void>* weights;  // [L][D], of T
  const void* x;                      // T [N, I]
  const void* h0;                     // T [L * D, B, P], or null for zeros
  const void* c0;                     // T [L * D, B, H], or null for zeros
  void* y;                            // T [N, D * P]
  void* h_n;                          // T [L * D, B, P]
  void* c_n;                          // T [L * D, B, H]
  void* saved;                        // Wide, SavedLayout with keep_output for halves; or null
  bool recompute_gates;               // how `saved` is laid out
  void* workspace;                    // forward_workspace_bytes()
  bool allow_tf32;                    // TF32 may stand for float32 in products
};

struct StackBackward {
  StackShape shape;
  const LayerWeights<void>* weights;  // as in StackForward
  const void* x;
  const void* h0;
  const void* c0;
  const void* y;
  const void* saved;
  bool recompute_gates;
  const void* grad_y;                          // T [N, D * P], or null for zeros
  const void* grad_h_n;                        // T [L * D, B, P], or null for zeros
  const void* grad_c_n;                        // T [L * D, B, H], or null for zeros
  void* grad_x;                                // T [N, I], or null when not wanted
  void* grad_h0;                               // T [L * D, B, P], or null when not wanted
  void* grad_c0;                               // T [L * D, B, H], or null when not wanted
  const LayerWeightGrads<void>* grad_weights;  // [L][D], of T; or null when none is wanted
  void* workspace;                             // backward_workspace_bytes()
  bool allow_tf32;
};

// The kernels of one dtype; each is compiled on its own (kernels.cu).
struct StackKernels {
  int64_t (*forward_workspace_bytes)(const StackForward&, const Device&);
  void (*forward)(const StackForward&, const Device&, void* stream);
  int64_t (*backward_workspace_bytes)(const StackBackward&, const Device&);
  void (*backward)(const StackBackward&, const Device&, void* stream);
};

const StackKernels& stack_kernels(Dtype dtype);

}  // namespace lstm_fast::cuda
