// A layer with options, step by step: the products of product.cuh, and between them a launch for
// what happens to rows (variant_rows.cuh). Any size, any device.
#include "variant.h"

#include <algorithm>

#include "arena.h"
#include "product.cuh"
#include "variant_rows.cuh"
#include "weight_grad.cuh"

namespace lstm_fast::cuda {
namespace {

template <typename T>
class Layer {
  using Small = Tile<T, Unit::Exact, 16, 32>;
  using Large = Tile<T, Unit::Exact, 64, 64>;

 public:
  Layer(const VariantShape& shape, const Device& device, void* stream)
      : s_(shape), device_(device), stream_(stream), N_(shape.steps.total()), G_(4 * shape.H) {}

  struct ForwardPlan {
    T *gates, *h_in, *sums, *fresh, *hidden;  // those that are not saved; fresh always
    int64_t chunk;                            // steps whose input is multiplied at once
    int64_t bytes;
  };

  ForwardPlan plan_forward(const VariantForward<T>& p, void* workspace) const {
    Arena arena(workspace);
    ForwardPlan plan{};
    const int64_t B = s_.steps.B;
    plan.chunk = s_.steps.T;
    plan.fresh = arena.take<T>(B * s_.H);
    if (!p.save) {
      StackShape stack{};
      stack.steps = s_.steps;
      stack.H = s_.H;
      stack.D = 1;
      plan.chunk = steps_per_chunk(device_, stack, sizeof(T), Regime::Stepwise);
      plan.gates = arena.take<T>(plan.chunk * B * G_);
      plan.h_in = arena.take<T>(B * s_.P);
      if (s_.normalised) plan.sums = arena.take<T>(B * G_);
      if (s_.projected) plan.hidden = arena.take<T>(B * s_.H);
    }
    plan.bytes = arena.used();
    return plan;
  }

  void forward(const VariantForward<T>& p, void* workspace) const {
    const ForwardPlan plan = plan_forward(p, workspace);
    const Steps& steps = s_.steps;
    copy(p.h0, p.h_n, steps.B * s_.P);
    copy(p.c0, p.c_n, steps.B * s_.H);
    for (int64_t i0 = 0; i0 < steps.T; i0 += plan.chunk) {
      const int64_t i1 = std::min(steps.T, i0 + plan.chunk);
      const int64_t first = std::min(step(i0), step(i1 - 1)),
                    last = std::max(step(i0), step(i1 - 1));
      const int64_t n0 = steps.offset(first), n1 = steps.offset(last) + steps.rows(last);
      T* gates = p.save ? p.saved.gates + n0 * G_ : plan.gates;
      input_gates(p, n0, n1, gates);
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t n = steps.offset(step(i));
        forward_step(p, plan, steps.rows(step(i)), n, gates + (n - n0) * G_);
      }
    }
  }

  struct BackwardPlan {
    T *grad_gates, *grad_ih, *grad_hh, *grad_hidden, *grad_norm_c, *norm_c;  // [N, ...]
    T *grad_new, *grad_m, *from_h, *grad_h_in, *fresh;                       // [B, ...]
    T* parts;  // of the weight gradients
    int64_t bytes;
  };

  BackwardPlan plan_backward(const VariantProblemBackward<T>& p, void* workspace) const {
    Arena arena(workspace);
    BackwardPlan plan{};
    const int64_t B = s_.steps.B, H = s_.H, P = s_.P;
    plan.grad_gates = plan.grad_ih = plan.grad_hh = arena.take<T>(N_ * G_);
    if (s_.normalised) {
      plan.grad_ih = arena.take<T>(N_ * G_);
      plan.grad_hh = arena.take<T>(N_ * G_);
      plan.grad_norm_c = arena.take<T>(N_ * H);
      plan.norm_c = arena.take<T>(N_ * H);
    }
    plan.grad_new = arena.take<T>(s_.projected ? 0 : B * P);
    if (s_.projected) plan.grad_hidden = arena.take<T>(N_ * P);
    if (s_.projected) plan.grad_m = arena.take<T>(B * H);
    plan.from_h = arena.take<T>(B * H);
    plan.grad_h_in = arena.take<T>(B * P);
    plan.fresh = arena.take<T>(B * H);
    if (p.need_weights) {
      int64_t most = 0;
      for (const WeightGrads<T>& grads : {input_weights(p), weights(G_, P), weights(P, H)})
        most = std::max(most, grads.parts * grads.M * grads.columns());
      plan.parts = arena.take<T>(most);
    }
    plan.bytes = arena.used();
    return plan;
  }

  void backward(VariantProblemBackward<T> p, void* workspace) const {
    const BackwardPlan plan = plan_backward(p, workspace);
    VariantBackward<T>& q = p.rows;
    q.grad_gates = plan.grad_gates;
    q.grad_ih = plan.grad_ih;
    q.grad_hh = plan.grad_hh;
    q.grad_hidden = plan.grad_hidden;
    q.grad_norm_c = plan.grad_norm_c;
    q.norm_c = plan.norm_c;
    const int64_t B = s_.steps.B;
    copy(q.grad_h_n, q.grad_h0, B * s_.P);
    copy(q.grad_c_n, q.grad_c0, B * s_.H);
    if (q.grad_reset_h) copy(nullptr, q.grad_reset_h, B * s_.P);
    if (q.grad_reset_c) copy(nullptr, q.grad_reset_c, B * s_.H);
    for (int64_t i = s_.steps.T - 1; i >= 0; --i) backward_step(p, plan, step(i));
    if (p.grad_x) multiply<false>(plan.grad_ih, N_, G_, p.plain.weight_ih, s_.I, p.grad_x, s_.I);
    if (p.need_weights) weight_grads(p, plan);
  }

 private:
  int64_t step(int64_t i) const { return s_.reverse ? s_.steps.T - 1 - i : i; }

  static dim3 blocks(int64_t x, int64_t y = 1, int64_t z = 1) {
    return {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
  }
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

  template <typename Params>
  void for_rows(void (*kernel)(Params), int64_t rows, const Params& params) const {
    if (rows == 0) return;
    launch(kernel, blocks(rows), kRowThreads, kRowThreads * sizeof(T), stream_, params);
  }

  void copy(const T* from, T* to, int64_t count) const {
    if (count == 0) return;
    launch(copy_kernel<T>, blocks(ceil_div(count, kRowThreads)), kRowThreads, 0, stream_,
           Copy<T>{from, to, count});
  }

  // output [M, N] = a [M, K] b^T + bias, for b [N, K] if kByK; else a b, for b [K, N].
  template <bool kByK>
  void multiply(const T* a, int64_t M, int64_t K, const T* b, int64_t b_stride, T* output,
                int64_t N, const T* bias_ih = nullptr, const T* bias_hh = nullptr,
                bool add = false) const {
    if (M == 0 || N == 0) return;
    Products<T> products;
    Product<T>& p = products.of[0];
    p.M = M;
    p.N = N;
    p.K = K;
    p.segment[0] = {Array<T>(a), M, K, b, b_stride};
    p.bias_ih = bias_ih;
    p.bias_hh = bias_hh;
    if (add) p.addend = Array<T>(output);
    p.addend_stride = N;
    p.last_from = M;
    p.output_stride = N;
    p.output = output;
    const auto run = [&](auto tile) {
      using Tile = decltype(tile);
      launch(product_kernel<T, kByK, Tile>, blocks(ceil_div(M, Tile::kM), ceil_div(N, Tile::kN)),
             Tile::kThreads, Tile::kSharedBytes, stream_, products);
    };
    if (large_tiles(device_, M, N, 1)) {
      run(Large());
    } else {
      run(Small());
    }
  }

  // gates[n0:n1] = W_ih x, normalised or not, plus the biases. `gates` is the row n0.
  void input_gates(const VariantForward<T>& p, int64_t n0, int64_t n1, T* gates) const {
    const T* x = p.x + n0 * s_.I;
    if (!s_.normalised) {
      return multiply<true>(x, n1 - n0, s_.I, p.plain.weight_ih, s_.I, gates, G_, p.plain.bias_ih,
                            p.plain.bias_hh);
    }
    T* sums = p.save ? p.saved.ih + n0 * G_ : gates;
    multiply<true>(x, n1 - n0, s_.I, p.plain.weight_ih, s_.I, sums, G_);
    for_rows(input_rows_kernel<T>, n1 - n0,
             InputRows<T>{G_, sums, p.save ? p.saved.ih_scale + n0 : nullptr, gates, p.norms.ih,
                          p.plain.bias_ih, p.plain.bias_hh});
  }

  void forward_step(const VariantForward<T>& p, const ForwardPlan& plan, int64_t rows, int64_t n,
                    T* gates) const {
    StepRows<T> q{};
    q.layer = p;
    q.n = n;
    q.gates = gates;
    q.h_in = p.save ? p.saved.h_in + n * s_.P : plan.h_in;
    q.sums = p.save ? p.saved.hh + n * G_ : plan.sums;
    q.fresh = plan.fresh;
    q.hidden = !s_.projected ? p.y + n * s_.P : p.save ? p.saved.hidden + n * s_.H : plan.hidden;
    for_rows(begin_rows_kernel<T>, rows, q);
    multiply<true>(q.h_in, rows, s_.P, p.plain.weight_hh, s_.P, s_.normalised ? q.sums : gates, G_,
                   nullptr, nullptr, !s_.normalised);
    for_rows(cell_rows_kernel<T>, rows, q);
    if (!s_.projected) return;
    multiply<true>(q.hidden, rows, s_.H, p.plain.weight_hr, s_.H, p.y + n * s_.P, s_.P);
    for_rows(end_rows_kernel<T>, rows, q);
  }

  void backward_step(const VariantProblemBackward<T>& p, const BackwardPlan& plan,
                     int64_t t) const {
    const Steps& steps = s_.steps;
    const int64_t rows = steps.rows(t), n = steps.offset(t);
    StepRowsGrad<T> q{};
    q.layer = p.rows;
    q.n = n;
    q.carried = steps.carried(t, s_.reverse);
    if (q.carried)
      q.cells_before = p.rows.cells + steps.offset(Steps::previous(t, s_.reverse)) * s_.H;
    q.grad_new = s_.projected ? plan.grad_hidden + n * s_.P : plan.grad_new;
    q.grad_m = s_.projected ? plan.grad_m : q.grad_new;
    q.from_h = plan.from_h;
    q.grad_h_in = plan.grad_h_in;
    q.fresh = plan.fresh;
    for_rows(new_rows_grad_kernel<T>, rows, q);
    if (s_.projected)
      multiply<false>(q.grad_new, rows, s_.P, p.plain.weight_hr, s_.H, plan.grad_m, s_.H);
    for_rows(cell_rows_grad_kernel<T>, rows, q);
    multiply<false>(plan.grad_hh + n * G_, rows, G_, p.plain.weight_hh, s_.P, plan.grad_h_in, s_.P);
    for_rows(before_rows_grad_kernel<T>, rows, q);
  }

  // Sizes of the gradient of a weight [M, X], with that of the biases where there are `ones`.
  WeightGrads<T> weights(int64_t M, int64_t X, bool ones = false) const {
    WeightGrads<T> grads{};
    grads.N = N_;
    grads.M = M;
    grads.X = X;
    grads.ones = ones;
    grads.parts = static_cast<int>(weight_grad_parts(device_, M, grads.columns(), N_, 1));
    return grads;
  }
  WeightGrads<T> input_weights(const VariantProblemBackward<T>& p) const {
    return weights(G_, s_.I, p.grads.plain.bias_ih && !s_.normalised);
  }

  // weight = grad^T x over all rows; the biases with it, if there are ones.
  void weight_grad(WeightGrads<T> p, const T* grad, const T* x, T* parts, T* weight,
                   T* bias_ih = nullptr, T* bias_hh = nullptr) const {
    p.of[0].grad = grad;
    p.of[0].x = Array<T>(x);
    p.of[0].x_stride = p.X;
    p.of[0].parts = parts;
    p.of[0].weight_x = weight;
    p.of[0].bias_ih = bias_ih;
    p.of[0].bias_hh = bias_hh;
    launch(weight_grad_kernel<T, Large>,
           blocks(ceil_div(p.M, Large::kM), ceil_div(p.columns(), Large::kN), p.parts),
           Large::kThreads, Large::kSharedBytes, stream_, p);
    launch(add_parts_kernel<T>, blocks(ceil_div(p.M * p.columns(), kTileThreads)), kTileThreads, 0,
           stream_, p);
  }

  void weight_grads(const VariantProblemBackward<T>& p, const BackwardPlan& plan) const {
    const VariantWeightGrads<T>& grads = p.grads;
    const LayerWeightGrads<T>& of_layer = grads.plain;
    const VariantSaved<const T>& saved = p.rows.saved;
    weight_grad(input_weights(p), plan.grad_ih, p.x, plan.parts, of_layer.weight_ih,
                of_layer.bias_ih, of_layer.bias_hh);
    weight_grad(weights(G_, s_.P), plan.grad_hh, saved.h_in, plan.parts, of_layer.weight_hh);
    if (s_.projected) {
      weight_grad(weights(s_.P, s_.H), plan.grad_hidden, saved.hidden, plan.parts,
                  of_layer.weight_hr);
    }
    if (!s_.normalised) return;
    const auto sums = [&](const T* a, const T* b, int64_t C, T* out, T* also = nullptr) {
      if (!out) return;
      launch(column_sums_kernel<T>, blocks(ceil_div(C, kSumColumns)), kSumThreads,
             kSumThreads * sizeof(T), stream_, ColumnSums<T>{a, b, N_, C, out, also});
    };
    sums(plan.grad_gates, nullptr, G_, of_layer.bias_ih, of_layer.bias_hh);
    sums(plan.grad_gates, saved.ih, G_, grads.norm_ih);
    sums(plan.grad_gates, saved.hh, G_, grads.norm_hh);
    sums(plan.grad_norm_c, plan.norm_c, s_.H, grads.norm_c);
    sums(plan.grad_norm_c, nullptr, s_.H, grads.norm_c_bias);
  }

  VariantShape s_;
  Device device_;
  void* stream_;
  int64_t N_, G_;
};

}  // namespace

template <typename T>
int64_t variant_forward_workspace_bytes(const VariantForward<T>& p, const Device& device) {
  return Layer<T>(p.shape, device, nullptr).plan_forward(p, nullptr).bytes;
}
template <typename T>
void variant_forward(const VariantForward<T>& p, const Device& device, void* workspace,
                     void* stream) {
  Layer<T>(p.shape, device, stream).forward(p, workspace);
}
template <typename T>
int64_t variant_backward_workspace_bytes(const VariantProblemBackward<T>& p, const Device& device) {
  return Layer<T>(p.rows.shape, device, nullptr).plan_backward(p, nullptr).bytes;
}
template <typename T>
void variant_backward(VariantProblemBackward<T> p, const Device& device, void* workspace,
                      void* stream) {
  Layer<T>(p.rows.shape, device, stream).backward(p, workspace);
}

#define LSTM_FAST_VARIANT(T)                                                                 \
  template int64_t variant_forward_workspace_bytes(const VariantForward<T>&, const Device&); \
  template void variant_forward(const VariantForward<T>&, const Device&, void*, void*);      \
  template int64_t variant_backward_workspace_bytes(const VariantProblemBackward<T>&,        \
                                                    const Device&);                          \
  template void variant_backward(VariantProblemBackward<T>, const Device&, void*, void*);
LSTM_FAST_VARIANT(float)
LSTM_FAST_VARIANT(double)

}  // namespace lstm_fast::cuda
