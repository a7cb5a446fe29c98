// What the ops need to run kernels on the CPU: tensors as these read them, memory, torch's threads.
#pragma once

#include <pthread.h>

#include <memory>

#include "../cpu/kernels.h"
#include "kept_memory.h"
#include "tensors.h"
#include "wake.h"

// Of torch: makes a tensor of given memory. Null before torch 2.11.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);

namespace lstm_fast {

struct GiveMemory {
  void operator()(void* p) const { give_memory(p); }
};

template <typename T>
std::unique_ptr<T[], GiveMemory> allocate(int64_t elements) {
  return std::unique_ptr<T[], GiveMemory>(
      static_cast<T*>(take_memory(elements * static_cast<int64_t>(sizeof(T)), Need::Call)));
}

// An uninitialised tensor of float32 or float64 on the CPU that no user sees.
inline Tensor empty_kept(const Dims& dims, ScalarType dtype, const Tensor& like, Need need) {
  const Contiguous layout(dims);
  const int64_t bytes = layout.elements * bytes_of(dtype);
  if (bytes < kLargeBytes || !torch_from_blob) return empty(dims, dtype, like);
  void* memory = take_memory(bytes, need);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = torch_from_blob(
      memory, dims.dim, dims.size, layout.strides, 0, aoti_dtype(dtype),
      aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
      [](void* data, void*) { give_memory(data); }, nullptr);
  if (error) give_memory(memory);
  STABLE_TORCH_ERROR_CODE_CHECK(error);
  return Tensor(handle);
}
inline Tensor empty_for_call(const Dims& dims, ScalarType dtype, const Tensor& like) {
  return empty_kept(dims, dtype, like, Need::Call);
}

// OpenMP's threads do not survive a fork, and a child that called on them would wait forever.
inline bool forked = false;
[[maybe_unused]] inline const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Torch's own threads for so many operations, so that torch.set_num_threads is obeyed and no second
// pool exists; in a forked child the calling thread alone. If it is not worth waking them, this one
// does the work of all, so that no bit of a result depends on the time.
inline Threads torch_threads(int64_t flops) {
  using Task = void (*)(const void* context, int64_t task);
  const auto alone = [](int64_t tasks, Task f, const void* context) {
    for (int64_t task = 0; task < tasks; ++task) f(context, task);
  };
  const auto together = [](int64_t tasks, Task f, const void* context) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) f(context, task);
    });
    wake.note_region();
  };
  if (forked) return {1, alone};
  const auto count = static_cast<int64_t>(torch::stable::get_num_threads());
  return {count, count == 1 || !wake.is_worth(flops) ? +alone : +together};
}

// Copies t to a contiguous tensor of another dtype. Torch's own conversion takes three times as
// long where there is little to convert.
inline void convert(const Tensor& t, Tensor& result) {
  const ScalarType from = t.scalar_type(), to = result.scalar_type();
  const bool widens = is_half(from) && to == ScalarType::Float;
  const bool narrows = from == ScalarType::Float && to == ScalarType::BFloat16;
  if (!(widens || narrows) || !t.is_contiguous()) {
    torch::stable::copy_(result, t);
    return;
  }
  const Kernels& kernels = active_kernels();
  const int64_t n = t.numel();
  const Threads threads = torch_threads(n);
  constexpr int64_t elements_of_thread = 1 << 15;
  const int64_t parts = std::clamp<int64_t>(n / elements_of_thread, 1, threads.count);
  run(threads, parts, [&](int64_t i) {
    const int64_t begin = part(n, parts, i), size = part(n, parts, i + 1) - begin;
    if (from == ScalarType::Half) {
      kernels.widen_float16(const_data<Float16>(t) + begin, size,
                            mutable_data<float>(result) + begin);
    } else if (widens) {
      kernels.widen_bfloat16(const_data<BFloat16>(t) + begin, size,
                             mutable_data<float>(result) + begin);
    } else {
      kernels.narrow_to_bfloat16(const_data<float>(t) + begin, size,
                                 mutable_data<BFloat16>(result) + begin);
    }
  });
}

// A result as its user gets it.
inline Tensor cast(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  Tensor result = empty(dims(t), dtype, t);
  convert(t, result);
  return result;
}

// As the CPU kernels read it: contiguous, in the compute type.
inline Tensor prepare(const Tensor& t) {
  const ScalarType type = compute_type(t.scalar_type());
  if (t.scalar_type() == type && t.is_contiguous()) return t;
  Tensor result = empty_for_call(dims(t), type, t);
  convert(t, result);
  return result;
}

}  // namespace lstm_fast
