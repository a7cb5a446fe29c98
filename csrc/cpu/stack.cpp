#include "stack.h"

#include <algorithm>
#include <vector>

#include "row_slices.h"

namespace lstm_fast {
namespace {

// Up to so many rows in all, weights are used too few times to win back their packing: in backward,
// and in a single step, which dot products suit better.
constexpr int64_t kPlainRows = 16, kPlainStepRows = 32;

// Multiply-adds of one pass over the recurrent and input weights of a layer in one direction, as
// operations.
int64_t layer_flops(const StackShape& s, int64_t layer) {
  return 2 * s.steps.total() * 4 * s.H * (s.input_size(layer) + s.P);
}

int64_t stack_flops(const StackShape& s) {
  int64_t flops = 0;
  for (int64_t l = 0; l < s.L; ++l) flops += s.D * layer_flops(s, l);
  return flops;
}

LayerShape widest_layer(const StackShape& s) {
  LayerShape widest = s.layer(0, 0);
  if (s.L > 1) widest.I = std::max(s.I, s.D * s.P);
  return widest;
}

// Of the rows, for each direction.
RowSlices row_slices(const StackShape& s, int64_t threads) { return {s.steps, threads / s.D}; }

// Whether the matrix unit is faster than packed weights and vectors. A tile of 16 rows takes it as
// long for each product of parts as the vector units take for a row; it takes terms by blocks of
// 32. Measured on Sapphire Rapids.
constexpr int64_t kUnitRowsPerSlice[] = {0, 2, 4, 8};  // of 1, 2 and 3 parts
constexpr int64_t kMinUnitTerms = 64, kMinUnitHidden = 16;
constexpr int64_t kPairOfRowTiles = 32;

bool unit_pays(const StackShape& s, int64_t slices) {
  return s.parts && s.steps.B >= kUnitRowsPerSlice[s.parts] * slices && s.H >= kMinUnitHidden &&
         s.P + (s.L > 1 ? std::min(s.I, s.D * s.P) : s.I) >= kMinUnitTerms;
}

// Fewer terms are hidden behind the gates in the forward pass, if no lane of the tiles is idle and
// so many rows are multiplied in all that packing does not count.
constexpr int64_t kFewUnitTerms = 32, kFewTermsRows = 1024, kUnitColumns = 16;

bool unit_pays_with_few_terms(const StackShape& s, int64_t slices) {
  return s.parts && s.steps.B >= kPairOfRowTiles * slices && s.steps.total() >= kFewTermsRows &&
         s.H % kUnitColumns == 0 && s.P >= kFewUnitTerms;
}

// Weights in parts that leave the second cache (2 MiB) pay when they serve enough rows each time:
// 32 in forward, 16 in backward, most of which is products over all steps.
constexpr int64_t kPartBytes = 2, kCachedSplitBytes = 3 << 19;

bool unit_weights_pay(const StackShape& s, int64_t slices, int64_t rows) {
  const int64_t bytes = 4 * s.H * (s.P + widest_layer(s).I) * s.parts * kPartBytes;
  return bytes <= kCachedSplitBytes || s.steps.B >= rows * slices;
}

template <typename T>
struct ForwardPlan {
  int64_t threads;
  RowSlices slices;
  std::vector<LayerForward<T>> layers;  // [L][D]
  std::vector<T*> packed;               // [L][D] weights of the layers; none if plain
  std::vector<T*> scratch;              // [D][slices] of forward_rows
  T* zeros;                             // [P]
  int64_t workspace_size;
};

template <typename T>
ForwardPlan<T> plan_forward(const Kernels& kernels, const StackForward<T>& p,
                            const Threads& threads) {
  const StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const SavedLayout saved{s, false};
  const int64_t N = saved.N(), B = s.steps.B, width = s.D * s.P;
  Arena<T> arena(p.workspace);
  ForwardPlan<T> plan;
  plan.threads = forward_threads(p, threads);
  plan.slices = row_slices(s, plan.threads);
  plan.zeros = arena.take(s.P);
  T* between[2] = {};  // outputs of inner layers, taken in turn
  if (!p.saved) {
    for (int64_t i = 0; i < std::min<int64_t>(2, s.L - 1); ++i) between[i] = arena.take(N * width);
  }
  const T* x = p.x;
  for (int64_t l = 0; l < s.L; ++l) {
    T* y = l == s.L - 1 ? p.y : p.saved ? p.saved + saved.output(l) : between[l % 2];
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t i = l * s.D + d;
      LayerForward<T> layer{};
      layer.shape = s.layer(l, d);
      if (!p.plain) {
        plan.packed.push_back(arena.take(k.forward_weights_size(layer.shape)));
        layer.weights = plan.packed.back();
      }
      layer.x = x;
      layer.h0 = offset(p.h0, i * B * s.P);
      layer.c0 = offset(p.c0, i * B * s.H);
      layer.zeros = plan.zeros;
      layer.y = offset(y, d * s.P);
      layer.y_stride = width;
      layer.h_n = offset(p.h_n, i * B * s.P);
      layer.c_n = offset(p.c_n, i * B * s.H);
      if (p.saved) {
        layer.gates = p.saved + saved.gates(l, d);
        layer.cells = p.saved + saved.cells(l, d);
        if (s.projected) layer.hidden = p.saved + saved.hidden(l, d);
      } else if (s.projected) {
        layer.hidden = arena.take(B * s.H);
      }
      plan.layers.push_back(layer);
    }
    x = y;
  }
  const int64_t scratch = k.forward_scratch(widest_layer(s), plan.slices.largest());
  for (int64_t i = 0; i < s.D * plan.slices.count(); ++i)
    plan.scratch.push_back(arena.take(scratch));
  plan.workspace_size = arena.used();
  return plan;
}

template <typename T>
struct BackwardPlan {
  T* grad_between[2];  // gradients of the outputs of inner layers, taken in turn
  T* grad_gates[2];    // of the directions of one layer, as all below
  T* grad_hidden[2];
  T* grad_c0[2];  // used when the caller does not want it
  T* recurrent_weights[2];
  T* input_weights[2];
  T* scratch;            // one piece a thread
  int64_t scratch_size;  // of a piece
  int64_t threads;
  RowSlices slices;
  int64_t workspace_size;
};

template <typename T>
BackwardPlan<T> plan_backward(const Kernels& kernels, const StackBackward<T>& p,
                              const Threads& threads) {
  const StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const int64_t N = s.steps.total(), B = s.steps.B;
  Arena<T> arena(p.workspace);
  BackwardPlan<T> plan{};
  for (int64_t i = 0; i < std::min<int64_t>(2, s.L - 1); ++i)
    plan.grad_between[i] = arena.take(N * s.D * s.P);
  const LayerShape widest = widest_layer(s);
  for (int64_t d = 0; d < s.D; ++d) {
    plan.grad_gates[d] = arena.take(N * 4 * s.H);
    if (s.projected) plan.grad_hidden[d] = arena.take(N * s.P);
    if (!p.grad_c0) plan.grad_c0[d] = arena.take(B * s.H);
    if (N <= kPlainRows) continue;
    plan.recurrent_weights[d] = arena.take(k.backward_weights_size(widest));
    if (s.L > 1 || p.grad_x) plan.input_weights[d] = arena.take(k.input_grad_weights_size(widest));
  }
  plan.threads = threads_for(stack_flops(s) / s.L, threads);
  plan.slices = row_slices(s, plan.threads);
  plan.scratch_size = k.backward_scratch(widest, plan.slices.largest());
  if (p.grad_weights)
    plan.scratch_size = std::max(plan.scratch_size, k.weight_grad_scratch(widest));
  plan.scratch_size = (plan.scratch_size + 15) / 16 * 16;  // whole cache lines
  plan.scratch = arena.take(std::max(plan.threads, s.D) * plan.scratch_size);
  plan.workspace_size = arena.used();
  return plan;
}

// Layer after layer, with rows or units, whichever are more, spread over the threads.
template <typename T>
void forward_single_step(const LayerKernels<T>& k, const StackForward<T>& p,
                         const ForwardPlan<T>& plan, const Threads& team) {
  const StackShape& s = p.shape;
  const int64_t groups = s.projected ? 1 : (s.H + k.unit_group - 1) / k.unit_group;
  const bool by_rows = s.steps.B > groups;
  const int64_t slices = std::max<int64_t>(1, std::min(team.count, by_rows ? s.steps.B : groups));
  for (int64_t l = 0; l < s.L; ++l) {
    run(team, s.D * slices, [&](int64_t task) {
      const int64_t i = l * s.D + task / slices, slice = task % slices;
      const LayerForward<T>& layer = plan.layers[i];
      if (by_rows) {
        const int64_t b0 = part(s.steps.B, slices, slice), b1 = part(s.steps.B, slices, slice + 1);
        k.forward_step(layer, p.weights[i], b0, b1, 0, s.H);
      } else {
        const int64_t u0 = part(groups, slices, slice) * k.unit_group;
        const int64_t u1 = std::min(s.H, part(groups, slices, slice + 1) * k.unit_group);
        k.forward_step(layer, p.weights[i], 0, s.steps.B, u0, s.projected ? s.H : u1);
      }
    });
  }
}

}  // namespace

template <typename T>
void plan(const Kernels& kernels, StackForward<T>& p, const Threads& threads) {
  StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  p.plain = s.steps.T == 1 && (s.steps.B <= kPlainStepRows || s.parts == 0);
  const int64_t slices = row_slices(s, forward_threads(p, threads)).count();
  const auto ordinary = [&](const T* m, int64_t n) { return !m || k.is_ordinary(m, n); };
  bool unit = k.has_matrix_unit && !p.plain &&
              (unit_pays(s, slices) || unit_pays_with_few_terms(s, slices)) &&
              unit_weights_pay(s, slices, kPairOfRowTiles) &&
              ordinary(p.x, s.steps.total() * s.I) && ordinary(p.h0, s.L * s.D * s.steps.B * s.P);
  for (int64_t i = 0; unit && i < s.L * s.D; ++i) {
    const LayerWeights<T>& w = p.weights[i];
    unit = ordinary(w.weight_ih, 4 * s.H * s.input_size(i / s.D)) &&
           ordinary(w.weight_hh, 4 * s.H * s.P) && ordinary(w.weight_hr, s.P * s.H);
  }
  if (!unit) s.parts = 0;
}

template <typename T>
void plan(const Kernels& kernels, StackBackward<T>& p, const Threads& threads) {
  StackShape& s = p.shape;
  const int64_t slices = row_slices(s, threads_for(stack_flops(s) / s.L, threads)).count();
  const bool unit = kernels.of(T()).has_matrix_unit && unit_pays(s, slices) &&
                    unit_weights_pay(s, slices, kPairOfRowTiles / 2) &&
                    s.steps.total() > kPlainRows;
  if (!unit) s.parts = 0;
}

template <typename T>
int64_t forward_threads(const StackForward<T>& p, const Threads& threads) {
  return threads_for(stack_flops(p.shape), threads);
}

template <typename T>
int64_t forward_workspace_size(const Kernels& kernels, const StackForward<T>& p,
                               const Threads& threads) {
  return plan_forward(kernels, p, threads).workspace_size;
}

template <typename T>
void forward(const Kernels& kernels, const StackForward<T>& p, const Threads& threads) {
  const StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const ForwardPlan<T> plan = plan_forward(kernels, p, threads);
  std::fill_n(plan.zeros, s.P, T(0));
  const Threads team{plan.threads, threads.run};

  if (p.plain) return forward_single_step(k, p, plan, team);

  run(team, s.L * s.D,
      [&](int64_t i) { k.pack_forward(plan.layers[i].shape, p.weights[i], plan.packed[i]); });

  // Rows are independent of each other through all layers, so that one direction needs no barrier
  // at all. With two, a layer waits for both directions of the one below.
  const RowSlices& slices = plan.slices;
  const int64_t stages = s.D == 1 ? 1 : s.L, layers_per_stage = s.L / stages;
  for (int64_t stage = 0; stage < stages; ++stage) {
    run(team, s.D * slices.count(), [&](int64_t task) {
      const int64_t d = task / slices.count(), slice = task % slices.count();
      const int64_t b0 = slices.begin(slice), b1 = slices.end(slice);
      for (int64_t l = stage * layers_per_stage; l < (stage + 1) * layers_per_stage; ++l) {
        k.forward_rows(plan.layers[l * s.D + d], b0, b1, plan.scratch[task]);
      }
    });
  }
}

template <typename T>
int64_t backward_workspace_size(const Kernels& kernels, const StackBackward<T>& p,
                                const Threads& threads) {
  return plan_backward(kernels, p, threads).workspace_size;
}

template <typename T>
void backward(const Kernels& kernels, const StackBackward<T>& p, const Threads& threads) {
  const StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const BackwardPlan<T> plan = plan_backward(kernels, p, threads);
  const SavedLayout saved{s, p.keep_output};
  const int64_t N = saved.N(), B = s.steps.B, width = s.D * s.P;

  const Threads team{plan.threads, threads.run};
  const bool plain = N <= kPlainRows;
  for (int64_t l = s.L - 1; l >= 0; --l) {
    const T* grad_y = l == s.L - 1 ? p.grad_y : plan.grad_between[l % 2];
    T* grad_x = l ? plan.grad_between[(l - 1) % 2] : p.grad_x;

    if (!plain) {
      run(team, s.D, [&](int64_t d) {
        const LayerWeights<T>& weights = p.weights[l * s.D + d];
        k.pack_backward(s.layer(l, d), weights, plan.recurrent_weights[d]);
        if (grad_x) k.pack_input_grad(s.layer(l, d), weights.weight_ih, plan.input_weights[d]);
      });
    }

    const RowSlices& slices = plan.slices;
    run(team, s.D * slices.count(), [&](int64_t task) {
      const int64_t d = task / slices.count(), slice = task % slices.count(), i = l * s.D + d;
      LayerBackward<T> layer{};
      layer.shape = s.layer(l, d);
      layer.weights = plan.recurrent_weights[d];
      layer.plain = plain ? &p.weights[i] : nullptr;
      layer.c0 = offset(p.c0, i * B * s.H);
      layer.gates = p.saved + saved.gates(l, d);
      layer.cells = p.saved + saved.cells(l, d);
      layer.grad_y = offset(grad_y, d * s.P);
      layer.grad_y_stride = width;
      layer.grad_h_n = offset(p.grad_h_n, i * B * s.P);
      layer.grad_c_n = offset(p.grad_c_n, i * B * s.H);
      layer.grad_gates = plan.grad_gates[d];
      layer.grad_hidden = plan.grad_hidden[d];
      layer.grad_h0 = offset(p.grad_h0, i * B * s.P);
      layer.grad_c0 = p.grad_c0 ? p.grad_c0 + i * B * s.H : plan.grad_c0[d];
      k.backward_rows(layer, slices.begin(slice), slices.end(slice),
                      plan.scratch + task * plan.scratch_size);
    });

    if (grad_x) {
      InputGrad<T> input{};
      input.shape = s.layer(l, 0);
      input.directions = static_cast<int>(s.D);
      input.packed = !plain;
      for (int64_t d = 0; d < s.D; ++d) {
        input.weights[d] = plain ? p.weights[l * s.D + d].weight_ih : plan.input_weights[d];
        input.grad_gates[d] = plan.grad_gates[d];
      }
      input.grad_x = grad_x;
      run(team, team.count, [&](int64_t task) {
        k.input_grad_rows(input, part(N, team.count, task), part(N, team.count, task + 1),
                          plan.scratch + task * plan.scratch_size);
      });
    }

    if (p.grad_weights) {
      const int64_t panels = k.weight_grad_panels(s.layer(l, 0));
      run(team, team.count, [&](int64_t task) {
        int64_t begin = part(s.D * panels, team.count, task);
        const int64_t end = part(s.D * panels, team.count, task + 1);
        while (begin < end) {
          const int64_t d = begin / panels, i = l * s.D + d, stop = std::min(end, (d + 1) * panels);
          const LayerWeightGrads<T>& grads = p.grad_weights[i];
          WeightGrad<T> weight{};
          weight.shape = s.layer(l, d);
          weight.grad_gates = plan.grad_gates[d];
          weight.grad_hidden = plan.grad_hidden[d];
          weight.hidden = s.projected ? p.saved + saved.hidden(l, d) : nullptr;
          weight.x = l ? p.saved + saved.output(l - 1) : p.x;
          weight.h0 = offset(p.h0, i * B * s.P);
          weight.y = (l == s.L - 1 ? p.y : p.saved + saved.output(l)) + d * s.P;
          weight.y_stride = width;
          weight.weight_ih = grads.weight_ih;
          weight.weight_hh = grads.weight_hh;
          weight.bias_ih = grads.bias_ih;
          weight.bias_hh = grads.bias_hh;
          weight.weight_hr = grads.weight_hr;
          k.weight_grad(weight, begin - d * panels, stop - d * panels,
                        plan.scratch + task * plan.scratch_size);
          begin = stop;
        }
      });
    }
  }
}

template void plan(const Kernels&, StackForward<float>&, const Threads&);
template void plan(const Kernels&, StackForward<double>&, const Threads&);
template void plan(const Kernels&, StackBackward<float>&, const Threads&);
template void plan(const Kernels&, StackBackward<double>&, const Threads&);
template int64_t forward_threads(const StackForward<float>&, const Threads&);
template int64_t forward_threads(const StackForward<double>&, const Threads&);
template int64_t forward_workspace_size(const Kernels&, const StackForward<float>&, const Threads&);
template int64_t forward_workspace_size(const Kernels&, const StackForward<double>&,
                                        const Threads&);
template void forward(const Kernels&, const StackForward<float>&, const Threads&);
template void forward(const Kernels&, const StackForward<double>&, const Threads&);
template int64_t backward_workspace_size(const Kernels&, const StackBackward<float>&,
                                         const Threads&);
template int64_t backward_workspace_size(const Kernels&, const StackBackward<double>&,
                                         const Threads&);
template void backward(const Kernels&, const StackBackward<float>&, const Threads&);
template void backward(const Kernels&, const StackBackward<double>&, const Threads&);

}  // namespace lstm_fast
