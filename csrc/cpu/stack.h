// A stack of layers in one or two directions: what an op calls. Knows the kernels by their
// contracts (kernels.h), the planner (plan.h) and threads by one function.
#pragma once

#include "kernels.h"
#include "tasks.h"

namespace lstm_fast {

template <typename T>
struct StackForward {
  StackShape shape;
  // [L][D]; not used if there are halves, but by `plan` where there is a matrix unit.
  const LayerWeights<T>* weights;
  // Of a module in halves; else null.
  const LayerWeights<BFloat16>* bfloat16_weights;
  const LayerWeights<Float16>* float16_weights;
  const T* x;            // [N, I]
  const T* h0;           // [L * D, B, P], or null for zeros
  const T* c0;           // [L * D, B, H], or null for zeros
  T* y;                  // [N, D * P]
  T* h_n;                // [L * D, B, P]
  T* c_n;                // [L * D, B, H]
  T* saved;              // SavedLayout, or null; y may point into it
  bool recompute_gates;  // how `saved` is laid out
  T* workspace;          // forward_workspace_size() elements, aligned to 64 bytes
  bool plain;  // decided by `plan`: step by step, straight from torch's weights; y may be h_n if
               // there is one step
  bool sums_inputs;  // decided by `plan`: what x adds to the gates is summed for several steps at
                     // once
  // Whether packed weights serve further calls. Before `forward` their owner then gives them as
  // pack_forward writes them, [L][D], and allows no parts of weights that are not
  // `ordinary_weights`.
  bool keeps_packed;
  const T* const* packed;

  bool has_halves() const { return bfloat16_weights || float16_weights; }
  // For `divide`. Backward, which plans anew how it recomputes gates, does not know of kept
  // weights.
  bool packs() const { return !keeps_packed || recompute_gates; }
};

template <typename T>
struct StackBackward {
  StackShape shape;
  // [L][D]; beside bfloat16 ones read to recompute gates, and if plain and not bfloat16_step.
  const LayerWeights<T>* weights;
  const T* x;  // as in StackForward
  const T* h0;
  const T* c0;
  const T* y;
  const T* saved;
  bool keep_output, recompute_gates;        // how `saved` is laid out
  const T* grad_y;                          // [N, D * P], or null for zeros
  const T* grad_h_n;                        // [L * D, B, P], or null for zeros
  const T* grad_c_n;                        // [L * D, B, H], or null for zeros
  T* grad_x;                                // [N, I], or null when not wanted
  T* grad_h0;                               // [L * D, B, P], or null when not wanted
  T* grad_c0;                               // [L * D, B, H], or null when not wanted
  const LayerWeightGrads<T>* grad_weights;  // [L][D], or null when none is wanted
  // Those that the forward pass had, or null, of which its plan may depend.
  const LayerWeights<Float16>* float16_weights;
  // Of a bfloat16 module; else null. Gradients are written there instead of to grad_weights.
  const LayerWeights<BFloat16>* bfloat16_weights;
  const LayerWeightGrads<BFloat16>* bfloat16_grad_weights;
  T* workspace;        // backward_workspace_size() elements, aligned to 64 bytes
  bool plain;          // decided by `plan`: weights are used as torch has them,
  bool bfloat16_step;  // and this in bfloat16, for a single step
  int forward_parts;   // decided by `plan`, if gates are recomputed: how forward made its products,
  bool forward_plain;  // and whether it took a single step
};

// Decides how p is computed, before the other functions are called: shape.parts, given what it may
// be, becomes 0 where float32 arithmetic is faster or needed; `plain`. Given 0, results depend
// neither on the batch nor on the threads. Reads weights only where they are used.
template <typename T>
void plan(const Kernels& kernels, StackForward<T>& p, const Threads& threads);
template <typename T>
void plan(const Kernels& kernels, StackBackward<T>& p, const Threads& threads);

// Packs a share of the weights of layer and direction i of [L][D].
template <typename T>
void pack_layer(const Kernels& kernels, const StackForward<T>& p, int64_t i, const Share& share,
                T* packed);
// Packs all of those of the layers and directions [begin, end), each to its packed[i].
template <typename T>
void pack_weights(const Kernels& kernels, const StackForward<T>& p, int64_t begin, int64_t end,
                  T* const* packed, const Threads& threads);

// Whether products of these weights [L][D] can be made of several parts, where there is a unit for
// them.
template <typename T>
bool ordinary_weights(const Kernels& kernels, const StackShape& shape,
                      const LayerWeights<T>* weights, const Threads& threads);

// Whether `plan` will take a single step, or each of a few, from torch's own weights.
template <typename T>
bool takes_plain_steps(const Kernels& kernels, const StackForward<T>& p, const Threads& threads);

template <typename T>
int64_t forward_workspace_size(const Kernels& kernels, const StackForward<T>& p,
                               const Threads& threads);
template <typename T>
void forward(const Kernels& kernels, const StackForward<T>& p, const Threads& threads);

template <typename T>
int64_t backward_workspace_size(const Kernels& kernels, const StackBackward<T>& p,
                                const Threads& threads);
template <typename T>
void backward(const Kernels& kernels, const StackBackward<T>& p, const Threads& threads);

}  // namespace lstm_fast
