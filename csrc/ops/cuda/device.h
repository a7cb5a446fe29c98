// The device and the stream that the ops on CUDA devices work on.
#pragma once

#include "../tensors.h"

#ifndef LSTM_FAST_CUDA_EMULATION
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#endif

namespace lstm_fast::cuda {

#ifdef LSTM_FAST_CUDA_EMULATION

struct OnDevice {
  void* stream = nullptr;
  explicit OnDevice(int32_t /*index*/) {}
  explicit OnDevice(const Tensor&) {}
};

#else

// A device, or that of a tensor, as the current one for as long as this lives, and its current
// stream.
struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit OnDevice(int32_t index) : guard(index) {
    STABLE_TORCH_ERROR_CODE_CHECK(current_stream()(index, &stream));
  }
  explicit OnDevice(const Tensor& t) : OnDevice(t.get_device_index()) {}

 private:
  using CurrentStream = int32_t (*)(int32_t device, void** stream);

  // Looked up in the library that torch has loaded: linking it would tie this one to CUDA builds of
  // torch, and the stable ABI has a header for it only in torch 2.13.
  static CurrentStream current_stream() {
    static const CurrentStream function = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
      void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
      if (!symbol) throw std::runtime_error("this torch has no CUDA");
      return reinterpret_cast<CurrentStream>(symbol);
    }();
    return function;
  }
};

#endif

}  // namespace lstm_fast::cuda
