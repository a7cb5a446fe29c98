// A layer in one direction with options (../variant.h), spread over threads: what an op calls.
#pragma once

#include "../variant.h"
#include "kernels.h"
#include "tasks.h"

namespace lstm_fast {

// `packed` of a problem is set here, in `workspace`: *_workspace_size() elements, aligned to 64
// bytes. So are the intermediate gradients of backward.
template <typename T>
int64_t variant_forward_workspace_size(const Kernels& kernels, const VariantForward<T>& p,
                                       const Threads& threads);
template <typename T>
void variant_forward(const Kernels& kernels, VariantForward<T> p, const Threads& threads,
                     T* workspace);

template <typename T>
int64_t variant_backward_workspace_size(const Kernels& kernels, const VariantProblemBackward<T>& p,
                                        const Threads& threads);
template <typename T>
void variant_backward(const Kernels& kernels, VariantProblemBackward<T> p, const Threads& threads,
                      T* workspace);

}  // namespace lstm_fast
