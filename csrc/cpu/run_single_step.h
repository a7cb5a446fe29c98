// A single step of a layer on threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.h"
#include "tasks.h"

namespace lstm_fast {

// The directions of one layer, with rows or units, whichever are more, spread over the threads.
template <typename T, typename E>
void run_single_step(const LayerKernels<T>& k, const StackShape& s, const LayerForward<T>* layers,
                     const LayerWeights<E>* weights, const Threads& team,
                     T* const* scratch = nullptr) {
  const int64_t groups = s.projected ? 1 : (s.H + k.unit_group - 1) / k.unit_group;
  const bool by_rows = s.steps.B > groups;
  const int64_t slices = std::max<int64_t>(1, std::min(team.count, by_rows ? s.steps.B : groups));
  run(team, s.D * slices, [&](int64_t task) {
    const int64_t d = task / slices, slice = task % slices;
    const auto step = [&](int64_t b0, int64_t b1, int64_t u0, int64_t u1) {
      if constexpr (std::is_same_v<E, BFloat16>) {
        T* of_task = layers[d].shape.parts ? scratch[task] : nullptr;
        k.bfloat16_step.forward(layers[d], weights[d], b0, b1, u0, u1, of_task);
      } else if constexpr (std::is_same_v<E, Float16>) {
        k.forward_step_float16(layers[d], weights[d], b0, b1, u0, u1);
      } else {
        k.forward_step(layers[d], weights[d], b0, b1, u0, u1);
      }
    };
    if (by_rows) {
      const int64_t b0 = part(s.steps.B, slices, slice), b1 = part(s.steps.B, slices, slice + 1);
      step(b0, b1, 0, s.H);
    } else {
      const int64_t u0 = part(groups, slices, slice) * k.unit_group;
      const int64_t u1 = std::min(s.H, part(groups, slices, slice + 1) * k.unit_group);
      step(0, s.steps.B, u0, s.projected ? s.H : u1);
    }
  });
}

}  // namespace lstm_fast
