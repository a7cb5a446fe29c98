// The gradients of weights, spread over threads.
#pragma once

#include "kernels.h"
#include "tasks.h"

namespace lstm_fast {

// Computes those of some items of a shape, of which of(item) gives the WeightGrad. `scratch` has a
// piece of scratch_size elements for each thread.
template <typename T, typename F>
void run_weight_grads(const LayerKernels<T>& k, const LayerShape& shape, int64_t items,
                      const Threads& threads, T* scratch, int64_t scratch_size, const F& of) {
  const int64_t strips = k.weight_grad_strips(shape), chunks = k.weight_grad_chunks(shape);
  const int64_t all = items * chunks * strips;
  run(threads, threads.count, [&](int64_t task) {
    const int64_t end = part(all, threads.count, task + 1);
    for (int64_t begin = part(all, threads.count, task), stop; begin < end; begin = stop) {
      const int64_t i = begin / strips;
      stop = std::min(end, (i + 1) * strips);
      k.weight_grad(of(i / chunks), i % chunks, begin - i * strips, stop - i * strips,
                    scratch + task * scratch_size);
    }
  });
  if (chunks == 1) return;
  const int64_t bytes = items * k.weight_grad_sums(shape) * sizeof(T);
  run_shares(threads, items, bytes, [&](int64_t item, const Share& share) {
    k.add_chunks(of(item), share.begin(strips), share.end(strips));
  });
}

}  // namespace lstm_fast
