#include "stack.h"

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "plan.h"
#include "run_weight_grads.h"

namespace lstm_fast {
namespace {

template <typename T>
struct ForwardPlan {
  Threads threads;
  Division division;
  std::vector<LayerForward<T>> layers;  // [L][D]
  int64_t layers_per_stage;             // that are packed, and then computed, at a time
  std::vector<T*> packed;               // [L][D] weights to be packed; none if plain or kept
  std::vector<T*> scratch;              // of the tasks of forward_rows, or of a step
  T* zeros;                             // [P]
  int64_t workspace_size;
};

template <typename T>
ForwardPlan<T> plan_forward(const Kernels& kernels, const StackForward<T>& p,
                            const Threads& threads) {
  const StackShape& s = p.shape;
  const LayerKernels<T>& k = kernels.of(T());
  const SavedLayout saved{s, false, p.recompute_gates};
  const int64_t N = saved.N(), B = s.steps.B, width = s.D * s.P;
  Arena<T> arena(p.workspace);
  ForwardPlan<T> plan;
  plan.threads = threads_of(s, Pass::Forward, threads);
  plan.division = divide(s, Pass::Forward, plan.threads, sizeof(T));
  // Rows are independent of each other through all layers, so that teams need no barrier between
  // them. With two directions, a layer waits for both of the one below. Where nothing is lost by
  // it, layers are packed one by one in the same place: less leaves the second cache.
  const bool one_slice = plan.threads.count == 1 && plan.division.slices.count() == 1;
  const bool by_layer = s.D > 1 || (one_slice && !p.keeps_packed);
  plan.layers_per_stage = by_layer ? 1 : s.L;
  plan.zeros = arena.take(s.P);
  T* between[2] = {};  // outputs of inner layers, taken in turn
  if (!p.saved) {
    for (int64_t i = 0; i < std::min<int64_t>(2, s.L - 1); ++i) between[i] = arena.take(N * width);
  }
  T* input_sums[2] = {};  // of the directions
  for (int64_t d = 0; p.sums_inputs && d < s.D; ++d)
    input_sums[d] = arena.take(k.forward_input_sums(widest_layer(s)));
  const T* x = p.x;
  for (int64_t l = 0; l < s.L; ++l) {
    T* y = l == s.L - 1 ? p.y : p.saved ? p.saved + saved.output(l) : between[l % 2];
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t i = l * s.D + d;
      LayerForward<T> layer{};
      layer.shape = s.layer(l, d);
      if (p.packed) {
        layer.weights = p.packed[i];
      } else if (!p.plain) {
        const int64_t size = k.forward_weights_size(by_layer ? widest_layer(s) : layer.shape);
        plan.packed.push_back(by_layer && l ? plan.packed[d] : arena.take(size));
        layer.weights = plan.packed.back();
      }
      layer.x = x;
      layer.h0 = offset(p.h0, i * B * s.P);
      layer.c0 = offset(p.c0, i * B * s.H);
      layer.zeros = plan.zeros;
      layer.input_sums = layer.shape.I >= min_summed_inputs(s) ? input_sums[d] : nullptr;
      layer.y = offset(y, d * s.P);
      layer.y_stride = width;
      layer.h_n = offset(p.h_n, i * B * s.P);
      layer.c_n = offset(p.c_n, i * B * s.H);
      if (p.saved) layer.cells = p.saved + saved.cells(l, d);
      if (p.saved && !p.recompute_gates) {
        layer.gates = p.saved + saved.gates(l, d);
        if (s.projected) layer.hidden = p.saved + saved.hidden(l, d);
      } else if (s.projected) {
        layer.hidden = arena.take(B * s.H);
      }
      plan.layers.push_back(layer);
    }
    x = y;
  }
  const bool dots = p.plain && s.parts;
  const int64_t scratch = dots ? k.bfloat16_step.scratch(widest_layer(s))
                               : k.forward_scratch(widest_layer(s), plan.division.slices.largest());
  const int64_t tasks = dots ? plan.threads.count : plan.division.tasks();
  for (int64_t i = 0; i < s.D * tasks; ++i) plan.scratch.push_back(arena.take(scratch));
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
  T* hidden[2];           // if gates are recomputed
  T* forward_weights[2];  // likewise, where recurrent_weights come to lie later; or, if forward
                          // took a single step,
  T* state[2];            // [B, P + 2H]
  T* zeros;               // [P]
  T* weight_sums[2];      // of the gradients of weights
  T* scratch;             // one piece a thread
  int64_t scratch_size;   // of a piece
  Threads threads;
  Division division;
  int64_t workspace_size;
};

// Whether gradients of weights are.
template <typename T>
bool wants_weights(const StackBackward<T>& p) {
  return p.grad_weights || p.bfloat16_grad_weights;
}

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
  LayerShape forward = widest;
  forward.parts = p.forward_parts;
  for (int64_t d = 0; d < s.D; ++d) {
    plan.grad_gates[d] = arena.take(N * 4 * s.H);
    if (s.projected) plan.grad_hidden[d] = arena.take(N * s.P);
    if (!p.grad_c0) plan.grad_c0[d] = arena.take(B * s.H);
    int64_t weights = p.plain ? 0 : k.backward_weights_size(widest);
    if (p.recompute_gates) {
      if (s.projected) plan.hidden[d] = arena.take(N * s.H);
      if (p.forward_plain) {
        plan.state[d] = arena.take(B * (s.P + 2 * s.H));
      } else {
        weights = std::max(weights, k.forward_weights_size(forward));
      }
    }
    plan.recurrent_weights[d] = plan.forward_weights[d] = arena.take(weights);
    if (!p.plain && (s.L > 1 || p.grad_x))
      plan.input_weights[d] = arena.take(k.input_grad_weights_size(widest));
    if (wants_weights(p)) {
      const int64_t of_inner = s.L > 1 ? k.weight_grad_sums(s.layer(1, d)) : 0;
      plan.weight_sums[d] = arena.take(std::max(of_inner, k.weight_grad_sums(s.layer(0, d))));
    }
  }
  plan.threads = threads_of(s, Pass::Backward, threads);
  plan.division = divide(s, Pass::Backward, plan.threads, sizeof(T));
  plan.scratch_size = k.backward_scratch(widest, plan.division.slices.largest());
  if (s.L > 1 || p.grad_x)
    plan.scratch_size = std::max(plan.scratch_size, k.input_grad_scratch(widest));
  if (p.recompute_gates && p.forward_plain) {
    plan.zeros = arena.take(s.P);
  } else if (p.recompute_gates) {
    plan.scratch_size = std::max(plan.scratch_size, k.recompute_scratch(forward));
  }
  if (wants_weights(p))
    plan.scratch_size = std::max(plan.scratch_size, k.weight_grad_scratch(widest));
  if (p.bfloat16_step)
    plan.scratch_size = std::max(plan.scratch_size, k.bfloat16_step.scratch(widest));
  plan.scratch_size = (plan.scratch_size + 15) / 16 * 16;  // whole cache lines
  plan.scratch = arena.take(std::max(plan.threads.count, s.D) * plan.scratch_size);
  plan.workspace_size = arena.used();
  return plan;
}

// The teams of all directions; none where every task works alone.
std::vector<Team> make_teams(const StackShape& s, const Division& division) {
  if (division.members == 1) return {};
  return std::vector<Team>(s.D * division.teams, Team(division.members));
}

TeamMember member_of(std::vector<Team>& teams, const Division& division, int64_t task) {
  if (teams.empty()) return {nullptr, 0};
  return {&teams[task / division.members], task % division.members};
}

// Step i of a layer, as that of a batch of a single step. Of several, there is but one direction.
template <typename T>
LayerForward<T> step_of(const LayerForward<T>& layer, int64_t i) {
  LayerForward<T> step = layer;
  LayerShape& s = step.shape;
  const int64_t n = i * s.steps.B;
  s.steps.T = 1;
  step.x += n * s.I;
  step.y += n * step.y_stride;
  step.gates = offset(step.gates, n * 4 * s.H);
  step.cells = offset(step.cells, n * s.H);
  if (step.gates) step.hidden = offset(step.hidden, n * s.H);
  if (i > 0) {
    step.h0 = step.y - s.steps.B * step.y_stride;
    step.c0 = step.c_n;
  }
  return step;
}

// The directions of one layer, with rows or units, whichever are more, spread over the threads.
template <typename T, typename E>
void forward_single_step(const LayerKernels<T>& k, const StackShape& s,
                         const LayerForward<T>* layers, const LayerWeights<E>* weights,
                         const Threads& team, T* const* scratch = nullptr) {
  const int64_t groups = s.projected ? 1 : (s.H + k.unit_group - 1) / k.unit_group;
  const bool by_rows = s.steps.B > groups;
  const int64_t slices = std::max<int64_t>(1, std::min(team.count, by_rows ? s.steps.B : groups));
  run(team, s.D * slices, [&](int64_t task) {
    const int64_t d = task / slices, slice = task % slices;
    const auto step = [&](int64_t b0, int64_t b1, int64_t u0, int64_t u1) {
      if constexpr (std::is_same_v<E, BFloat16>) {
        T* of_task = layers[d].shape.parts ? scratch[task] : nullptr;
        k.bfloat16_step.forward(layers[d], weights[d], b0, b1, u0, u1, of_task);
      } else {
        k.forward_step(layers[d], weights[d], b0, b1, u0, u1);
      }
    };
    if (by_rows) {
      const int64_t b0 = part(s.steps.B, slices, slice), b1 = part(s.steps.B, slices, slice + 1);
      step(b0, b1, 0, s.H);
    } else {
      const int64_t u0 = part(groups, slices, slice) * k.unit_group;
      const int64_t u1 = std::min(s.H, part(groups, slices, slice + 1) * k.unit_group);
      step(0, s.steps.B, u0, s.projected ? s.H : u1);
    }
  });
}

// The gates of a layer into grad_gates, and hidden, by the arithmetic that forward took.
template <typename T>
void recompute_gates(const LayerKernels<T>& k, const StackBackward<T>& p,
                     const BackwardPlan<T>& plan, int64_t l, const Threads& team) {
  const StackShape& s = p.shape;
  const SavedLayout saved{s, p.keep_output, true};
  const int64_t B = s.steps.B;
  const LayerWeights<T>* weights = p.weights + l * s.D;
  LayerRecompute<T> layers[2];
  for (int64_t d = 0; d < s.D; ++d) {
    const int64_t i = l * s.D + d;
    LayerRecompute<T>& layer = layers[d];
    layer.shape = s.layer(l, d);
    layer.shape.parts = p.forward_parts;
    layer.weights = plan.forward_weights[d];
    layer.x = l ? p.saved + saved.output(l - 1) : p.x;
    layer.h0 = offset(p.h0, i * B * s.P);
    layer.c0 = offset(p.c0, i * B * s.H);
    layer.y = (l == s.L - 1 ? p.y : p.saved + saved.output(l)) + d * s.P;
    layer.y_stride = s.D * s.P;
    layer.cells = p.saved + saved.cells(l, d);
    layer.gates = plan.grad_gates[d];
    layer.hidden = plan.hidden[d];
  }
  if (p.forward_plain) {
    std::fill_n(plan.zeros, s.P, T(0));
    LayerForward<T> steps[2];
    for (int64_t d = 0; d < s.D; ++d) {
      LayerForward<T>& step = steps[d];
      step = {};
      step.shape = layers[d].shape;
      step.x = layers[d].x;
      step.h0 = layers[d].h0;
      step.c0 = layers[d].c0;
      step.zeros = plan.zeros;
      step.y = step.h_n = plan.state[d];
      step.y_stride = s.P;
      step.c_n = plan.state[d] + B * s.P;
      step.cells = step.c_n + B * s.H;
      step.gates = layers[d].gates;
      step.hidden = layers[d].hidden;
    }
    return forward_single_step(k, s, steps, weights, team);
  }
  const int64_t bytes = s.D * k.forward_weights_size(layers[0].shape) * sizeof(T);
  run_shares(team, s.D, bytes, [&](int64_t d, const Share& share) {
    k.pack_forward(layers[d].shape, weights[d], share, plan.forward_weights[d]);
  });
  const int64_t N = saved.N(), parts = std::max<int64_t>(1, team.count / s.D);
  run(team, s.D * parts, [&](int64_t task) {
    const int64_t i = task % parts;
    k.recompute_rows(layers[task / parts], part(N, parts, i), part(N, parts, i + 1),
                     plan.scratch + task * plan.scratch_size);
  });
}

// The gradients of a layer but for those of its gates, which there are: of its inputs, to grad_x,
// of its initial states and of its weights. Panels of columns are spread over the threads.
template <typename T>
void bfloat16_step_grads(const LayerKernels<T>& k, const StackBackward<T>& p,
                         const BackwardPlan<T>& plan, int64_t l, T* grad_x, const Threads& team) {
  const StackShape& s = p.shape;
  const StepKernels<T>& step = k.bfloat16_step;
  const SavedLayout saved{s, p.keep_output, p.recompute_gates};
  const int64_t B = s.steps.B, I = s.input_size(l);
  const auto grad = [&](int64_t d, int64_t C, const BFloat16* w, T* y, bool add, int64_t begin,
                        int64_t end, T* scratch) {
    step.grad({B, 4 * s.H, C, s.parts, plan.grad_gates[d], w, y, add}, begin, end, scratch);
  };
  const auto of_input = [&](int64_t begin, int64_t end, T* scratch) {
    for (int64_t d = 0; d < s.D; ++d) {
      grad(d, I, p.bfloat16_weights[l * s.D + d].weight_ih, grad_x, d > 0, begin, end, scratch);
    }
  };
  const auto of_state = [&](int64_t d, int64_t begin, int64_t end, T* scratch) {
    const int64_t i = l * s.D + d;
    grad(d, s.P, p.bfloat16_weights[i].weight_hh, p.grad_h0 + i * B * s.P, false, begin, end,
         scratch);
  };
  const auto of_weights = [&](int64_t d, int64_t begin, int64_t end, T* scratch) {
    const int64_t i = l * s.D + d;
    WeightGrad<T> weight{};
    weight.shape = s.layer(l, d);
    weight.grad_gates = plan.grad_gates[d];
    weight.x = l ? p.saved + saved.output(l - 1) : p.x;
    weight.h0 = offset(p.h0, i * B * s.P);
    weight.bfloat16_grads = &p.bfloat16_grad_weights[i];
    step.weight_grad(weight, begin, end, scratch);
  };
  const int64_t panels_x = grad_x ? step.grad_panels(I) : 0;
  const int64_t panels_h = p.grad_h0 ? step.grad_panels(s.P) : 0;
  const int64_t panels_w = p.bfloat16_grad_weights ? step.grad_panels(4 * s.H) : 0;
  const int64_t all = panels_x + s.D * (panels_h + panels_w);
  run(team, team.count, [&](int64_t task) {
    T* scratch = plan.scratch + task * plan.scratch_size;
    const int64_t first = part(all, team.count, task), last = part(all, team.count, task + 1);
    int64_t offset = 0;
    // Those of the next so many panels that are this task's.
    const auto take = [&](int64_t panels, const auto& compute) {
      const int64_t begin = std::clamp<int64_t>(first - offset, 0, panels);
      const int64_t end = std::clamp<int64_t>(last - offset, 0, panels);
      if (begin < end) compute(begin, end);
      offset += panels;
    };
    take(panels_x, [&](int64_t begin, int64_t end) { of_input(begin, end, scratch); });
    for (int64_t d = 0; d < s.D; ++d) {
      take(panels_h, [&](int64_t begin, int64_t end) { of_state(d, begin, end, scratch); });
      take(panels_w, [&](int64_t begin, int64_t end) { of_weights(d, begin, end, scratch); });
    }
  });
}

// Whether a single step makes its products of bfloat16 weights as they are. Gates are recomputed
// from widened ones.
template <typename T>
bool multiplies_bfloat16(const Kernels& kernels, const StackForward<T>& p) {
  return p.bfloat16_weights && p.shape.parts && !p.recompute_gates &&
         kernels.of(T()).unit != Bf16Unit::None;
}

template <typename T>
bool is_ordinary(const Kernels& kernels, const T* m, int64_t n, const Threads& threads) {
  if (!m) return true;
  std::atomic<bool> ordinary = true;
  run_shares(threads, 1, n * sizeof(T), [&](int64_t, const Share& share) {
    const int64_t begin = share.begin(n);
    if (!kernels.of(T()).is_ordinary(m + begin, share.end(n) - begin)) ordinary = false;
  });
  return ordinary;
}

// Whether products of x and h0 can be made of several parts. Dot products take whatever bfloat16
// holds.
template <typename T, typename Problem>
bool ordinary_inputs(const Kernels& kernels, const Problem& p, const Threads& threads) {
  const StackShape& s = p.shape;
  return s.unit != Bf16Unit::Matrix ||
         (is_ordinary(kernels, p.x, s.steps.total() * s.I, threads) &&
          is_ordinary(kernels, p.h0, s.L * s.D * s.steps.B * s.P, threads));
}

}  // namespace

template <typename T>
void pack_weights(const Kernels& kernels, const StackForward<T>& p, int64_t begin, int64_t end,
                  T* const* packed, const Threads& threads) {
  const LayerKernels<T>& k = kernels.of(T());
  const auto layer = [&](int64_t i) { return p.shape.layer(i / p.shape.D, i % p.shape.D); };
  int64_t size = 0;
  for (int64_t i = begin; i < end; ++i) size += k.forward_weights_size(layer(i));
  run_shares(threads, end - begin, size * sizeof(T), [&](int64_t item, const Share& share) {
    const int64_t i = begin + item;
    if (p.bfloat16_weights) {
      k.pack_forward_bfloat16(layer(i), p.bfloat16_weights[i], share, packed[i]);
    } else {
      k.pack_forward(layer(i), p.weights[i], share, packed[i]);
    }
  });
}

template <typename T>
bool ordinary_weights(const Kernels& kernels, const StackShape& s, const LayerWeights<T>* weights,
                      const Threads& threads) {
  if (kernels.of(T()).unit != Bf16Unit::Matrix) return true;
  for (int64_t i = 0; i < s.L * s.D; ++i) {
    const LayerWeights<T>& w = weights[i];
    if (!is_ordinary(kernels, w.weight_ih, 4 * s.H * s.input_size(i / s.D), threads) ||
        !is_ordinary(kernels, w.weight_hh, 4 * s.H * s.P, threads) ||
        !is_ordinary(kernels, w.weight_hr, s.P * s.H, threads)) {
      return false;
    }
  }
  return true;
}

template <typename T>
bool takes_plain_steps(const Kernels& kernels, const StackForward<T>& p, const Threads& threads) {
  const StackShape& s = p.shape;
  const Bf16Unit unit = kernels.of(T()).unit;
  if (s.steps.T > 1) {
    return s.parts && !p.keeps_packed && !p.recompute_gates && is_few_steps(s, threads, sizeof(T));
  }
  if (s.steps.T < 1) return false;
  // By parts of 0, a row is summed as in any batch, and in a packed one others may be longer.
  if (!s.parts) return !s.steps.batch_sizes;
  if (unit == Bf16Unit::DotProducts && multiplies_bfloat16(kernels, p)) {
    return s.steps.B <= dot_step_rows(s, Pass::Forward, threads);
  }
  return s.steps.B <= plain_step_rows(s, p.keeps_packed, p.bfloat16_weights, threads, sizeof(T));
}

template <typename T>
void plan(const Kernels& kernels, StackForward<T>& p, const Threads& threads) {
  StackShape& s = p.shape;
  s.unit = kernels.of(T()).unit;
  p.plain = takes_plain_steps(kernels, p, threads);
  const Threads team = threads_of(s, Pass::Forward, threads);
  const Division division = divide(s, Pass::Forward, team, sizeof(T));
  bool unit = !p.plain && unit_pays(s, Pass::Forward, division);
  unit = unit && ordinary_inputs<T>(kernels, p, team) &&
         (p.keeps_packed || ordinary_weights(kernels, s, p.weights, team));
  // Another order of sums than that of parts 0. Recomputed gates are to be those of the forward
  // pass, bit for bit.
  const bool may = s.parts && !unit && !p.plain && !p.recompute_gates &&
                   widest_layer(s).I >= min_summed_inputs(s);
  if (!unit && !(p.plain && multiplies_bfloat16(kernels, p))) s.parts = 0;
  p.sums_inputs =
      may && sums_inputs_first(s, divide(s, Pass::Forward, team, sizeof(T)), team, sizeof(T));
}

template <typename T>
void plan(const Kernels& kernels, StackBackward<T>& p, const Threads& threads) {
  StackShape& s = p.shape;
  if (p.recompute_gates) {
    StackForward<T> forward{};
    forward.shape = s;
    forward.weights = p.weights;
    forward.bfloat16_weights = p.bfloat16_weights;
    forward.x = p.x;
    forward.h0 = p.h0;
    forward.recompute_gates = true;
    plan(kernels, forward, threads);
    p.forward_parts = forward.shape.parts;
    p.forward_plain = forward.plain;
  }
  s.unit = kernels.of(T()).unit;
  if (!s.steps.total()) s.parts = 0;  // no product clears the gradients of weights then
  const Threads team = threads_of(s, Pass::Backward, threads);
  const Division division = divide(s, Pass::Backward, team, sizeof(T));
  const bool step = p.bfloat16_weights && s.steps.T == 1 && !s.projected && !p.recompute_gates;
  const int64_t dot_rows = s.unit == Bf16Unit::None ? 0
                           : s.unit == Bf16Unit::DotProducts
                               ? dot_step_rows(s, Pass::Backward, threads)
                               : kFewRows;
  const bool dots = step && s.parts && s.steps.B <= dot_rows;
  const bool unit = unit_pays(s, Pass::Backward, division) && ordinary_inputs<T>(kernels, p, team);
  if (!dots && !unit) s.parts = 0;
  // Used too seldom to win back packing.
  p.plain = dots || (s.steps.total() <= kFewRows && !s.parts);
  p.bfloat16_step = step && p.plain;
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
  const Threads& team = plan.threads;

  if (p.plain) {
    for (int64_t l = 0; l < s.L; ++l) {
      for (int64_t i = 0; i < s.steps.T; ++i) {
        LayerForward<T> steps[2];
        for (int64_t d = 0; d < s.D; ++d) steps[d] = step_of(plan.layers[l * s.D + d], i);
        if (p.bfloat16_weights) {
          forward_single_step(k, s, steps, p.bfloat16_weights + l * s.D, team, plan.scratch.data());
        } else {
          forward_single_step(k, s, steps, p.weights + l * s.D, team);
        }
      }
    }
    return;
  }

  const Division& division = plan.division;
  for (int64_t l0 = 0; l0 < s.L; l0 += plan.layers_per_stage) {
    const int64_t l1 = l0 + plan.layers_per_stage;
    if (!p.packed) pack_weights(kernels, p, l0 * s.D, l1 * s.D, plan.packed.data(), team);
    std::vector<Team> teams = make_teams(s, division);
    run(team, s.D * division.tasks(), [&](int64_t task) {
      const int64_t i = task / division.members, d = i / division.teams;
      TeamMember member = member_of(teams, division, task);
      division.for_each_slice(i % division.teams, [&](int64_t b0, int64_t b1) {
        for (int64_t l = l0; l < l1; ++l) {
          k.forward_rows(plan.layers[l * s.D + d], b0, b1, member, plan.scratch[task]);
        }
      });
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
  const SavedLayout saved{s, p.keep_output, p.recompute_gates};
  const int64_t N = saved.N(), B = s.steps.B, width = s.D * s.P;

  const Threads& team = plan.threads;
  for (int64_t l = s.L - 1; l >= 0; --l) {
    const T* grad_y = l == s.L - 1 ? p.grad_y : plan.grad_between[l % 2];
    T* grad_x = l ? plan.grad_between[(l - 1) % 2] : p.grad_x;

    if (p.recompute_gates) recompute_gates(k, p, plan, l, team);
    if (!p.plain) {
      const LayerShape layer = s.layer(l, 0);
      const int64_t of_x = grad_x ? k.input_grad_weights_size(layer) : 0;
      const int64_t bytes = s.D * (k.backward_weights_size(layer) + of_x) * sizeof(T);
      run_shares(team, s.D, bytes, [&](int64_t d, const Share& share) {
        const int64_t i = l * s.D + d;
        T *recurrent = plan.recurrent_weights[d], *input = plan.input_weights[d];
        if (p.bfloat16_weights) {
          const LayerWeights<BFloat16>& weights = p.bfloat16_weights[i];
          k.pack_backward_bfloat16(layer, weights, share, recurrent);
          if (grad_x) k.pack_input_grad_bfloat16(layer, weights.weight_ih, share, input);
        } else {
          const LayerWeights<T>& weights = p.weights[i];
          k.pack_backward(layer, weights, share, recurrent);
          if (grad_x) k.pack_input_grad(layer, weights.weight_ih, share, input);
        }
      });
    }

    const Division& division = plan.division;
    std::vector<Team> teams = make_teams(s, division);
    run(team, s.D * division.tasks(), [&](int64_t task) {
      const int64_t team_of = task / division.members, d = team_of / division.teams;
      const int64_t i = l * s.D + d;
      LayerBackward<T> layer{};
      layer.shape = s.layer(l, d);
      layer.weights = plan.recurrent_weights[d];
      layer.plain = p.plain && !p.bfloat16_step ? &p.weights[i] : nullptr;
      layer.c0 = offset(p.c0, i * B * s.H);
      layer.gates = p.recompute_gates ? plan.grad_gates[d] : p.saved + saved.gates(l, d);
      layer.cells = p.saved + saved.cells(l, d);
      layer.grad_y = offset(grad_y, d * s.P);
      layer.grad_y_stride = width;
      layer.grad_h_n = offset(p.grad_h_n, i * B * s.P);
      layer.grad_c_n = offset(p.grad_c_n, i * B * s.H);
      layer.grad_gates = plan.grad_gates[d];
      layer.grad_hidden = plan.grad_hidden[d];
      layer.grad_h0 = p.bfloat16_step ? nullptr : offset(p.grad_h0, i * B * s.P);
      layer.grad_c0 = p.grad_c0 ? p.grad_c0 + i * B * s.H : plan.grad_c0[d];
      TeamMember member = member_of(teams, division, task);
      division.for_each_slice(team_of % division.teams, [&](int64_t b0, int64_t b1) {
        k.backward_rows(layer, b0, b1, member, plan.scratch + task * plan.scratch_size);
      });
    });

    if (p.bfloat16_step) {
      bfloat16_step_grads(k, p, plan, l, grad_x, team);
      continue;
    }

    if (grad_x) {
      InputGrad<T> input{};
      input.shape = s.layer(l, 0);
      input.directions = static_cast<int>(s.D);
      input.packed = !p.plain;
      for (int64_t d = 0; d < s.D; ++d) {
        input.weights[d] = p.plain ? p.weights[l * s.D + d].weight_ih : plan.input_weights[d];
        input.grad_gates[d] = plan.grad_gates[d];
      }
      input.grad_x = grad_x;
      run(team, team.count, [&](int64_t task) {
        k.input_grad_rows(input, part(N, team.count, task), part(N, team.count, task + 1),
                          plan.scratch + task * plan.scratch_size);
      });
    }

    if (wants_weights(p)) {
      const auto weight_grad_of = [&](int64_t d) {
        const int64_t i = l * s.D + d;
        WeightGrad<T> weight{};
        weight.shape = s.layer(l, d);
        weight.grad_gates = plan.grad_gates[d];
        weight.grad_hidden = plan.grad_hidden[d];
        if (s.projected) {
          weight.hidden = p.recompute_gates ? plan.hidden[d] : p.saved + saved.hidden(l, d);
        }
        weight.x = l ? p.saved + saved.output(l - 1) : p.x;
        weight.h0 = offset(p.h0, i * B * s.P);
        weight.y = (l == s.L - 1 ? p.y : p.saved + saved.output(l)) + d * s.P;
        weight.y_stride = width;
        weight.sums = plan.weight_sums[d];
        if (p.bfloat16_grad_weights) {
          weight.bfloat16_grads = &p.bfloat16_grad_weights[i];
        } else {
          weight.grads = p.grad_weights[i];
        }
        return weight;
      };
      run_weight_grads(k, s.layer(l, 0), s.D, team, plan.scratch, plan.scratch_size,
                       weight_grad_of);
    }
  }
}

template void pack_weights(const Kernels&, const StackForward<float>&, int64_t, int64_t,
                           float* const*, const Threads&);
template void pack_weights(const Kernels&, const StackForward<double>&, int64_t, int64_t,
                           double* const*, const Threads&);
template bool ordinary_weights(const Kernels&, const StackShape&, const LayerWeights<float>*,
                               const Threads&);
template bool ordinary_weights(const Kernels&, const StackShape&, const LayerWeights<double>*,
                               const Threads&);
template bool takes_plain_steps(const Kernels&, const StackForward<float>&, const Threads&);
template bool takes_plain_steps(const Kernels&, const StackForward<double>&, const Threads&);
template void plan(const Kernels&, StackForward<float>&, const Threads&);
template void plan(const Kernels&, StackForward<double>&, const Threads&);
template void plan(const Kernels&, StackBackward<float>&, const Threads&);
template void plan(const Kernels&, StackBackward<double>&, const Threads&);
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
