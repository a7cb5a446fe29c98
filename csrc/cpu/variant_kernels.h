// The kernels of a layer with options (../variant.h); the rules of kernels.h hold.
#pragma once

#include "../variant.h"

namespace lstm_fast {

template <typename T>
struct VariantKernels {
  int64_t (*forward_weights_size)(const VariantShape&);
  void (*pack_forward)(const VariantShape&, const LayerWeights<T>&, const Share&, T* packed);
  // `scratch` of forward_scratch(shape, b1 - b0, save) elements.
  int64_t (*forward_scratch)(const VariantShape&, int64_t rows, bool save);
  void (*forward_rows)(const VariantForward<T>&, int64_t b0, int64_t b1, T* scratch);

  int64_t (*backward_weights_size)(const VariantShape&);
  void (*pack_backward)(const VariantShape&, const LayerWeights<T>&, const Share&, T* packed);
  int64_t (*backward_scratch)(const VariantShape&, int64_t rows);
  void (*backward_rows)(const VariantBackward<T>&, int64_t b0, int64_t b1, T* scratch);

  // sums[c] of a[n, c] * b[n, c] over n < N, for the columns [c0, c1) of C; of a alone if b is
  // null.
  void (*column_sums)(const T* a, const T* b, int64_t N, int64_t C, int64_t c0, int64_t c1,
                      T* sums);
};

}  // namespace lstm_fast
