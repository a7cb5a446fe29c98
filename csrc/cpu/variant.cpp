#include "variant.h"

#include "plan.h"
#include "row_slices.h"
#include "run_weight_grads.h"

namespace lstm_fast {
namespace {

// Threads own rows of the batch through all steps.
RowSlices row_slices(const VariantShape& s, const Threads& threads) {
  return {s.steps, threads_for(s.flops(), threads)};
}

// All rows as those of a single step: for the products over all rows at once, in which inputs and
// states are given row by row.
LayerShape all_rows(const VariantShape& s, int64_t I, int64_t P, bool projected, int parts) {
  return {{1, s.steps.total(), nullptr, nullptr}, I, s.H, P, projected, false, parts};
}

// Whether the matrix unit is faster: for a product over all rows of so many terms or columns, and
// for those of steps, of so many rows in a slice. Measured on Sapphire Rapids.
constexpr int64_t kMinUnitRows = 32, kMinUnitColumns = 64, kMinUnitHidden = 16;
constexpr int64_t kMinStepRows = 8;

// Dot products take any number of rows, so that the bits of a row do not depend on the batch.
template <typename T>
bool are_enough(const LayerKernels<T>& k, int64_t rows, int64_t least) {
  return k.unit == Bf16Unit::DotProducts || rows >= least;
}

template <typename T>
bool unit_pays_in_steps(const LayerKernels<T>& k, const VariantShape& s, const Threads& threads) {
  return unit_takes(k.unit, s.parts) && s.steps.T > 1 &&
         are_enough(k, s.steps.B, kMinStepRows * row_slices(s, threads).count()) &&
         s.H >= kMinUnitHidden && s.P + s.I >= kMinUnitColumns;
}

// The shape with the parts that the products of steps are made of: 0 where float32 arithmetic is
// faster, or needed because a number that is multiplied may be too large or not finite.
template <typename T>
VariantShape step_shape(const LayerKernels<T>& k, const VariantForward<T>& p,
                        const Threads& threads) {
  VariantShape s = p.shape;
  const int64_t B = s.steps.B, G = 4 * s.H;
  const auto ordinary = [&](const T* m, int64_t n) {
    return !m || k.unit != Bf16Unit::Matrix || k.is_ordinary(m, n);
  };
  // A relu bounds no state.
  const bool unit = s.cell != CellActivation::Relu && unit_pays_in_steps(k, s, threads) &&
                    ordinary(p.x, s.steps.total() * s.I) && ordinary(p.h0, B * s.P) &&
                    ordinary(p.masks.reset_h, B * s.P) && ordinary(p.masks.drop_h, B * s.P) &&
                    ordinary(p.plain.weight_ih, G * s.I) && ordinary(p.plain.weight_hh, G * s.P) &&
                    ordinary(p.plain.weight_hr, s.P * s.H);
  if (!unit) s.parts = 0;
  return s;
}

template <typename T>
VariantShape step_shape(const LayerKernels<T>& k, const VariantProblemBackward<T>& p,
                        const Threads& threads) {
  VariantShape s = p.rows.shape;
  if (!unit_pays_in_steps(k, s, threads)) s.parts = 0;
  return s;
}

template <typename T>
int unit_parts(const LayerKernels<T>& k, const VariantShape& s, bool enough_rows, int64_t columns) {
  const bool pays = enough_rows && s.H >= kMinUnitHidden && columns >= kMinUnitColumns;
  return unit_takes(k.unit, s.parts) && pays ? s.parts : 0;
}

template <typename T>
LayerShape input_grad_shape(const LayerKernels<T>& k, const VariantShape& s) {
  const bool enough_rows = are_enough(k, s.steps.total(), kMinUnitRows);
  return all_rows(s, s.I, s.P, s.projected, unit_parts(k, s, enough_rows, s.I));
}

template <typename T>
LayerShape weight_grad_shape(const LayerKernels<T>& k, const VariantShape& s, int64_t I, int64_t P,
                             bool projected) {
  // Of no rows, no product of the unit would clear the gradients.
  const bool enough_rows = s.steps.total() >= kMinUnitRows;
  return all_rows(s, I, P, projected, unit_parts(k, s, enough_rows, I + P));
}

// Of all weights, or, where each product is normalised and has gradients of its own, of those of h.
template <typename T>
LayerShape h_weight_grad_shape(const LayerKernels<T>& k, const VariantShape& s) {
  return weight_grad_shape(k, s, s.normalised ? 0 : s.I, s.P, s.projected);
}
template <typename T>
LayerShape x_weight_grad_shape(const LayerKernels<T>& k, const VariantShape& s) {
  return weight_grad_shape(k, s, s.I, 0, false);
}

// What forward lays out in its workspace; null to learn how large that is.
template <typename T>
struct ForwardPlan {
  VariantShape shape;  // of the steps
  RowSlices slices;
  T *packed, *scratch;  // one piece a slice
  int64_t scratch_size, workspace_size;

  ForwardPlan(const LayerKernels<T>& k, const VariantForward<T>& p, const Threads& threads,
              T* workspace)
      : shape(step_shape(k, p, threads)), slices(row_slices(p.shape, threads)) {
    Arena<T> arena(workspace);
    packed = arena.take(k.variant.forward_weights_size(shape));
    scratch_size = k.variant.forward_scratch(shape, slices.largest(), p.save);
    scratch = arena.take(slices.count() * scratch_size);
    workspace_size = arena.used();
  }
};

// Likewise for backward.
template <typename T>
struct BackwardPlan {
  VariantShape shape;  // of the steps
  RowSlices slices;
  int64_t threads;
  T *packed, *packed_input{};
  T *grad_gates, *grad_ih, *grad_hh, *grad_hidden{}, *grad_norm_c{}, *norm_c{};
  T* weight_sums;
  T* scratch;  // one piece a thread
  int64_t scratch_size, workspace_size;

  BackwardPlan(const LayerKernels<T>& k, const VariantProblemBackward<T>& p, const Threads& team,
               T* workspace)
      : shape(step_shape(k, p, team)),
        slices(row_slices(p.rows.shape, team)),
        threads(threads_for(p.rows.shape.flops(), team)) {
    const VariantShape& s = p.rows.shape;
    const int64_t N = s.steps.total();
    Arena<T> arena(workspace);
    packed = arena.take(k.variant.backward_weights_size(shape));
    if (p.grad_x) packed_input = arena.take(k.input_grad_weights_size(input_grad_shape(k, s)));
    grad_ih = grad_hh = grad_gates = arena.take(N * 4 * s.H);
    if (s.projected) grad_hidden = arena.take(N * s.P);
    if (s.normalised) {
      grad_ih = arena.take(N * 4 * s.H);
      grad_hh = arena.take(N * 4 * s.H);
      grad_norm_c = arena.take(N * s.H);
      norm_c = arena.take(N * s.H);
    }
    const int64_t of_x = s.normalised ? k.weight_grad_sums(x_weight_grad_shape(k, s)) : 0;
    weight_sums = arena.take(std::max(of_x, k.weight_grad_sums(h_weight_grad_shape(k, s))));
    scratch_size =
        std::max({k.variant.backward_scratch(shape, slices.largest()),
                  k.input_grad_scratch(input_grad_shape(k, s)),
                  k.weight_grad_scratch(weight_grad_shape(k, s, s.I, s.P, s.projected))});
    scratch_size = (scratch_size + 63) / 64 * 64;
    scratch = arena.take(std::max(slices.count(), threads) * scratch_size);
    workspace_size = arena.used();
  }
};

template <typename T>
void weight_grads(const LayerKernels<T>& k, WeightGrad<T> grads, const BackwardPlan<T>& plan,
                  const Threads& team) {
  grads.sums = plan.weight_sums;
  run_weight_grads(k, grads.shape, 1, team, plan.scratch, plan.scratch_size,
                   [&](int64_t) { return grads; });
}

// The sums over all rows that are the gradients of biases and norms.
template <typename T>
void norm_grads(const VariantKernels<T>& k, const VariantProblemBackward<T>& p,
                const BackwardPlan<T>& plan, const Threads& team) {
  const VariantShape& s = p.rows.shape;
  const int64_t N = s.steps.total();
  const VariantWeightGrads<T>& grads = p.grads;
  const auto sums = [&](const T* a, const T* b, int64_t C, T* out) {
    if (!out) return;
    run(team, team.count, [&](int64_t task) {
      k.column_sums(a, b, N, C, part(C, team.count, task), part(C, team.count, task + 1), out);
    });
  };
  sums(plan.grad_gates, nullptr, 4 * s.H, grads.plain.bias_ih);
  if (grads.plain.bias_ih && grads.plain.bias_hh)
    std::copy_n(grads.plain.bias_ih, 4 * s.H, grads.plain.bias_hh);
  sums(plan.grad_gates, p.rows.saved.ih, 4 * s.H, grads.norm_ih);
  sums(plan.grad_gates, p.rows.saved.hh, 4 * s.H, grads.norm_hh);
  sums(plan.grad_norm_c, plan.norm_c, s.H, grads.norm_c);
  sums(plan.grad_norm_c, nullptr, s.H, grads.norm_c_bias);
}

}  // namespace

template <typename T>
int64_t variant_forward_workspace_size(const Kernels& kernels, const VariantForward<T>& p,
                                       const Threads& threads) {
  return ForwardPlan<T>(kernels.of(T()), p, threads, nullptr).workspace_size;
}

template <typename T>
void variant_forward(const Kernels& kernels, VariantForward<T> p, const Threads& threads,
                     T* workspace) {
  const LayerKernels<T>& k = kernels.of(T());
  const ForwardPlan<T> plan(k, p, threads, workspace);
  p.shape = plan.shape;
  p.packed = plan.packed;
  const int64_t bytes = k.variant.forward_weights_size(p.shape) * sizeof(T);
  const Threads team = threads.with_count(threads_for(p.shape.flops(), threads));
  run_shares(team, 1, bytes, [&](int64_t, const Share& share) {
    k.variant.pack_forward(p.shape, p.plain, share, plan.packed);
  });
  run(threads.with_count(plan.slices.count()), plan.slices.count(), [&](int64_t task) {
    k.variant.forward_rows(p, plan.slices.begin(task), plan.slices.end(task),
                           plan.scratch + task * plan.scratch_size);
  });
}

template <typename T>
int64_t variant_backward_workspace_size(const Kernels& kernels, const VariantProblemBackward<T>& p,
                                        const Threads& threads) {
  return BackwardPlan<T>(kernels.of(T()), p, threads, nullptr).workspace_size;
}

template <typename T>
void variant_backward(const Kernels& kernels, VariantProblemBackward<T> p, const Threads& threads,
                      T* workspace) {
  const VariantShape s = p.rows.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const BackwardPlan<T> plan(k, p, threads, workspace);
  const int64_t N = s.steps.total();
  const Threads team = threads.with_count(plan.threads);

  const int64_t bytes = k.variant.backward_weights_size(plan.shape) * sizeof(T);
  run_shares(team, 1, bytes, [&](int64_t, const Share& share) {
    k.variant.pack_backward(plan.shape, p.plain, share, plan.packed);
  });
  p.rows.shape = plan.shape;
  p.rows.packed = plan.packed;
  p.rows.grad_gates = plan.grad_gates;
  p.rows.grad_ih = plan.grad_ih;
  p.rows.grad_hh = plan.grad_hh;
  p.rows.grad_hidden = plan.grad_hidden;
  p.rows.grad_norm_c = plan.grad_norm_c;
  p.rows.norm_c = plan.norm_c;
  run(threads.with_count(plan.slices.count()), plan.slices.count(), [&](int64_t task) {
    k.variant.backward_rows(p.rows, plan.slices.begin(task), plan.slices.end(task),
                            plan.scratch + task * plan.scratch_size);
  });

  if (p.grad_x) {
    InputGrad<T> input{};
    input.shape = input_grad_shape(k, s);
    input.directions = 1;
    input.packed = true;
    const int64_t bytes = k.input_grad_weights_size(input.shape) * sizeof(T);
    run_shares(team, 1, bytes, [&](int64_t, const Share& share) {
      k.pack_input_grad(input.shape, p.plain.weight_ih, share, plan.packed_input);
    });
    input.weights[0] = plan.packed_input;
    input.grad_gates[0].rows = plan.grad_ih;
    input.grad_x = p.grad_x;
    run(team, team.count, [&](int64_t task) {
      k.input_grad_rows(input, part(N, team.count, task), part(N, team.count, task + 1),
                        plan.scratch + task * plan.scratch_size);
    });
  }
  if (!p.need_weights) return;

  WeightGrad<T> of_h{};
  of_h.shape = h_weight_grad_shape(k, s);
  of_h.grad_gates.rows = plan.grad_hh;
  of_h.grad_hidden = plan.grad_hidden;
  of_h.hidden = p.rows.saved.hidden;
  of_h.x = p.x;
  of_h.h0 = p.rows.saved.h_in;
  of_h.grads = p.grads.plain;
  if (!s.normalised) return weight_grads(k, of_h, plan, team);
  WeightGrad<T> of_x{};
  of_x.shape = x_weight_grad_shape(k, s);
  of_x.grad_gates.rows = plan.grad_ih;
  of_x.x = p.x;
  of_x.grads.weight_ih = p.grads.plain.weight_ih;
  weight_grads(k, of_x, plan, team);
  of_h.grads.weight_ih = of_h.grads.bias_ih = of_h.grads.bias_hh = nullptr;
  weight_grads(k, of_h, plan, team);
  norm_grads(k.variant, p, plan, team);
}

template int64_t variant_forward_workspace_size(const Kernels&, const VariantForward<float>&,
                                                const Threads&);
template int64_t variant_forward_workspace_size(const Kernels&, const VariantForward<double>&,
                                                const Threads&);
template void variant_forward(const Kernels&, VariantForward<float>, const Threads&, float*);
template void variant_forward(const Kernels&, VariantForward<double>, const Threads&, double*);
template int64_t variant_backward_workspace_size(const Kernels&,
                                                 const VariantProblemBackward<float>&,
                                                 const Threads&);
template int64_t variant_backward_workspace_size(const Kernels&,
                                                 const VariantProblemBackward<double>&,
                                                 const Threads&);
template void variant_backward(const Kernels&, VariantProblemBackward<float>, const Threads&,
                               float*);
template void variant_backward(const Kernels&, VariantProblemBackward<double>, const Threads&,
                               double*);

}  // namespace lstm_fast
