// What the ops need to run kernels on the CPU: tensors as these read them, memory, torch's threads.
#pragma once

#include <pthread.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "../cpu/tasks.h"
#include "huge_pages.h"
#include "tensors.h"

namespace lstm_fast {

// As the CPU kernels read it: contiguous, in the compute type.
inline Tensor prepare(const Tensor& t) {
  const ScalarType dtype = t.scalar_type(), type = compute_type(dtype);
  return dtype == type ? as_contiguous(t) : as_contiguous(cast(t, type));
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <typename T>
std::unique_ptr<T[], Free> allocate(int64_t elements) {
  const size_t bytes = (static_cast<size_t>(elements) * sizeof(T) + 63) / 64 * 64;
  T* p = static_cast<T*>(std::aligned_alloc(64, bytes));
  if (!p) throw std::bad_alloc();
  prefer_huge_pages(p, static_cast<int64_t>(bytes));
  return std::unique_ptr<T[], Free>(p);
}

// OpenMP's threads do not survive a fork, and a child that called on them would wait forever.
inline bool forked = false;
[[maybe_unused]] inline const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Torch's own threads, so that torch.set_num_threads is obeyed and no second pool exists; in a
// forked child the calling thread alone.
inline Threads torch_threads() {
  if (forked) {
    return {1, [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
              for (int64_t task = 0; task < tasks; ++task) f(context, task);
            }};
  }
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
            torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) f(context, task);
            });
          }};
}

}  // namespace lstm_fast
