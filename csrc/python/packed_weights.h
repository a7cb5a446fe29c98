// The weights of a stack, packed once for any number of calls.
#pragma once

#include <utility>
#include <vector>

#include "../cpu/stack.h"
#include "numpy.h"

namespace lstm_fast {

template <typename T>
class PackedWeights {
 public:
  // For calls of shape.parts, of any number of rows and steps.
  PackedWeights(const Kernels& kernels, const StackShape& shape,
                const std::vector<LayerWeights<T>>& weights)
      : parts_(shape.parts), memory_(lay_out(kernels, shape, nullptr)) {
    lay_out(kernels, shape, memory_.get());
    for (size_t i = 0; i < weights.size(); ++i)
      kernels.of(T()).pack_forward(layer(shape, i), weights[i], pieces_[i]);
  }

  int parts() const { return parts_; }
  // As StackForward::packed.
  const T* const* pieces() const { return pieces_.data(); }

 private:
  static LayerShape layer(const StackShape& s, int64_t i) { return s.layer(i / s.D, i % s.D); }

  int64_t lay_out(const Kernels& kernels, const StackShape& s, T* memory) {
    Arena<T> arena(memory);
    pieces_.clear();
    for (int64_t i = 0; i < s.L * s.D; ++i)
      pieces_.push_back(arena.take(kernels.of(T()).forward_weights_size(layer(s, i))));
    return arena.used();
  }

  int parts_;
  std::vector<T*> pieces_;
  Workspace<T> memory_;
};

}  // namespace lstm_fast
