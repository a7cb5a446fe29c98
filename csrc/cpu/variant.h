// A layer in one direction with options (variant_kernels.h), spread over threads: what an op calls.
#pragma once

#include "kernels.h"
#include "tasks.h"

namespace lstm_fast {

// How the buffer lies that forward keeps for backward: the members of VariantSaved, one after the
// other.
struct VariantSavedLayout {
  VariantShape shape;

  int64_t N() const { return shape.steps.total(); }
  int64_t size() const {
    const int64_t of_norms = shape.normalised ? 8 * shape.H + 2 : 0;
    return N() * (4 * shape.H + shape.P + (shape.projected ? shape.H : 0) + of_norms);
  }
  template <typename T>
  VariantSaved<T> pieces(T* p) const {
    const int64_t n = N(), H = shape.H;
    VariantSaved<T> saved{};
    const auto take = [&](int64_t columns) {
      T* piece = p;
      p += n * columns;
      return piece;
    };
    saved.gates = take(4 * H);
    saved.h_in = take(shape.P);
    if (shape.projected) saved.hidden = take(H);
    if (!shape.normalised) return saved;
    saved.ih = take(4 * H);
    saved.hh = take(4 * H);
    saved.ih_scale = take(1);
    saved.hh_scale = take(1);
    return saved;
  }
};

// Gradients of the weights; any may be null.
template <typename T>
struct VariantWeightGrads {
  LayerWeightGrads<T> plain;
  T* norm_ih;      // [G]
  T* norm_hh;      // [G]
  T* norm_c;       // [H]
  T* norm_c_bias;  // [H]
};

// `packed` of a problem is set here, in `workspace`: *_workspace_size() elements, aligned to 64
// bytes. So are the intermediate gradients of backward.
template <typename T>
int64_t variant_forward_workspace_size(const Kernels& kernels, const VariantForward<T>& p,
                                       const Threads& threads);
template <typename T>
void variant_forward(const Kernels& kernels, VariantForward<T> p, const Threads& threads,
                     T* workspace);

template <typename T>
struct VariantProblemBackward {
  VariantBackward<T> rows;
  LayerWeights<T> plain;
  const T* x;  // [N, I]
  T* grad_x;   // [N, I], or null when not wanted
  VariantWeightGrads<T> grads;
  bool need_weights;  // whether any of them is wanted
};

template <typename T>
int64_t variant_backward_workspace_size(const Kernels& kernels, const VariantProblemBackward<T>& p,
                                        const Threads& threads);
template <typename T>
void variant_backward(const Kernels& kernels, VariantProblemBackward<T> p, const Threads& threads,
                      T* workspace);

}  // namespace lstm_fast
