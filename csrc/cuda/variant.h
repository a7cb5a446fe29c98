// The CUDA kernels of a layer with options: what an op calls. The rules of kernels.h hold; elements
// T are float or double, and products are exact.
#pragma once

#include "../variant.h"
#include "plan.h"

namespace lstm_fast::cuda {

// `packed` and the intermediate gradients of a problem are not used, or set here in `workspace`,
// of so many bytes.
template <typename T>
int64_t variant_forward_workspace_bytes(const VariantForward<T>& p, const Device& device);
template <typename T>
void variant_forward(const VariantForward<T>& p, const Device& device, void* workspace,
                     void* stream);

template <typename T>
int64_t variant_backward_workspace_bytes(const VariantProblemBackward<T>& p, const Device& device);
template <typename T>
void variant_backward(VariantProblemBackward<T> p, const Device& device, void* workspace,
                      void* stream);

}  // namespace lstm_fast::cuda
