#include "kernels.h"

namespace lstm_fast::cuda {

extern const StackKernels kernels_float32, kernels_float64, kernels_float16, kernels_bfloat16;

const StackKernels& stack_kernels(Dtype dtype) {
  switch (dtype) {
    case Dtype::Float32:
      return kernels_float32;
    case Dtype::Float64:
      return kernels_float64;
    case Dtype::Float16:
      return kernels_float16;
    default:
      return kernels_bfloat16;
  }
}

}  // namespace lstm_fast::cuda
