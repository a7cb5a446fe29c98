// Small things to do with tensors, through the stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../arguments.h"
#include "../cpu/huge_pages.h"

// Of torch; null in the oldest one that this is built for, which lacks it.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) const char*
torch_exception_get_what_without_backtrace();

namespace lstm_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Dims dims(const Tensor& t) {
  Dims d{t.dim(), {}};
  for (int64_t i = 0; i < d.dim && i < 3; ++i) d.size[i] = t.size(i);
  return d;
}

inline bool is_half(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// The type that the kernels compute a dtype in.
inline ScalarType compute_type(ScalarType dtype) {
  return is_half(dtype) ? ScalarType::Float : dtype;
}

inline int32_t device_type(const Tensor& t) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

inline int32_t aoti_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
         : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
         : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
         : dtype == ScalarType::Byte     ? aoti_torch_dtype_uint8()
                                         : aoti_torch_dtype_float32();
}

inline int64_t bytes_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : is_half(dtype) ? 2 : dtype == ScalarType::Byte ? 1 : 4;
}

// The strides of a contiguous tensor, and its elements.
struct Contiguous {
  explicit Contiguous(const Dims& dims) {
    int64_t stride = 1;
    for (int64_t i = dims.dim - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= std::max<int64_t>(1, dims.size[i]);
      elements *= dims.size[i];
    }
  }

  int64_t strides[3], elements = 1;
};

// What torch's allocators say, where callers may look for their words.
[[noreturn]] inline void throw_out_of_memory(int64_t bytes, const Tensor& like) {
  if (torch_exception_get_what_without_backtrace)
    throw std::runtime_error(torch_exception_get_what_without_backtrace());
  const std::string words = like.is_cpu() ? "DefaultCPUAllocator: can't allocate memory: you tried"
                                          : "CUDA out of memory. Tried";
  throw std::runtime_error(words + " to allocate " + std::to_string(bytes) + " bytes");
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty(const Dims& dims, ScalarType dtype, const Tensor& like) {
  const Contiguous layout(dims);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(dims.dim, dims.size, layout.strides, aoti_dtype(dtype),
                               device_type(like), like.get_device_index(), &handle);
  if (error) throw_out_of_memory(layout.elements * bytes_of(dtype), like);
  Tensor t(handle);
  // Small buffers are left alone: an allocator hands their memory out again without the kernel.
  const int64_t bytes = layout.elements * bytes_of(dtype);
  if (bytes >= kHugePage && t.is_cpu()) prefer_huge_pages(t.mutable_data_ptr(), bytes);
  return t;
}
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  Dims dims{static_cast<int64_t>(sizes.size()), {}};
  std::copy(sizes.begin(), sizes.end(), dims.size);
  return empty(dims, dtype, like);
}

inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

template <typename T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* const_data(const OptionalTensor& t) {
  return t ? const_data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// A null pointer rather than that of an empty tensor, for outputs that are not wanted.
template <typename T>
T* wanted_data(Tensor& t) {
  return t.numel() ? mutable_data<T>(t) : nullptr;
}

template <typename T>
std::vector<const T*> const_data(const std::vector<Tensor>& tensors) {
  std::vector<const T*> pointers;
  pointers.reserve(tensors.size());
  for (const Tensor& t : tensors) pointers.push_back(const_data<T>(t));
  return pointers;
}

}  // namespace lstm_fast
