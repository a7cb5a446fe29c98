#include <algorithm>
#include <vector>

#include "pipeline.h"
#include "plan.h"
#include "run_single_step.h"
#include "run_weight_grads.h"
#include "stack.h"
#include "teams.h"

namespace lstm_fast {
namespace {

// Packed weights: a copy for all who use them, or one for each.
template <typename T>
struct PackedCopies {
  T* first = nullptr;
  int64_t size = 0;  // of a copy, in elements
  bool own = false;

  T* of(int64_t user) const { return own ? first + user * size : first; }
};

// Of a layer in one direction.
template <typename T>
struct BackwardBuffers {
  GradGates<T> grad_gates;
  T* grad_hidden;
  T* grad_c0;  // used when the caller does not want it
  T* grad_h;   // what one stage leaves to the next, if layers are computed at once
  PackedCopies<T> recurrent_weights;  // of the teams
  PackedCopies<T> input_weights;      // of the threads
  T* hidden;                          // if gates are recomputed
  T* forward_weights;  // likewise, where recurrent_weights come to lie later; or, if forward took a
                       // single step,
  T* state;            // [B, P + 2H]
  T* weight_sums;      // of the gradients of weights
};

template <typename T>
struct BackwardPlan {
  T* grad_between[2];                       // gradients of the outputs of inner layers, in turn
  std::vector<BackwardBuffers<T>> buffers;  // of all layers if they are computed at once, else of
                                            // the directions of each in turn
  T* zeros;                                 // [P]
  T* scratch;                               // one piece a thread
  int64_t scratch_size;                     // of a piece
  Threads threads;
  Division division;
  int64_t workspace_size;

  const BackwardBuffers<T>& of(int64_t l, int64_t d) const {
    return buffers[division.shares_layers ? l : d];
  }
};

// Elements that begin and end with cache lines.
inline int64_t whole_lines(int64_t elements) { return (elements + 15) / 16 * 16; }

// Narrow where kernels take them so: not those that use torch's own weights, and not in the place
// of gates that are recomputed.
template <typename T>
GradGates<T> take_grad_gates(const LayerKernels<T>& k, const StackBackward<T>& p, Arena<T>& arena) {
  const int64_t elements = p.shape.steps.total() * 4 * p.shape.H;
  const bool narrow = k.unit == Bf16Unit::DotProducts && p.shape.parts && !p.plain &&
                      !p.bfloat16_step && !p.recompute_gates;
  if (!narrow) return {arena.take(elements), nullptr};
  return {nullptr, reinterpret_cast<BFloat16*>(arena.take((elements + 1) / 2))};
}

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
  plan.threads = threads_of(s, Pass::Backward, threads);
  plan.division = divide(s, Pass::Backward, plan.threads, sizeof(T), false);
  plan.buffers.resize(plan.division.shares_layers ? s.L : s.D);
  for (BackwardBuffers<T>& of : plan.buffers) {
    of.grad_gates = take_grad_gates(k, p, arena);
    if (s.projected) of.grad_hidden = arena.take(N * s.P);
    if (!p.grad_c0) of.grad_c0 = arena.take(B * s.H);
    if (plan.division.shares_layers) of.grad_h = arena.take(B * s.P);
    int64_t forward_size = 0;
    if (p.recompute_gates) {
      if (s.projected) of.hidden = arena.take(N * s.H);
      if (p.forward_plain) {
        of.state = arena.take(B * (s.P + 2 * s.H));
      } else {
        forward_size = k.forward_weights_size(forward);
      }
    }
    // One thread packs all before: input weights that were packed right before their use took
    // longer.
    const auto take_copies = [&](int64_t users, int64_t size, int64_t at_least) {
      size = whole_lines(size);
      const bool own = !plan.division.shares_layers && plan.threads.count > 1 &&
                       packs_own_copies(users, s.D * size * sizeof(T), plan.threads);
      return PackedCopies<T>{arena.take(std::max(at_least, size * (own ? users : 1))), size, own};
    };
    const int64_t recurrent_size = p.plain ? 0 : k.backward_weights_size(widest);
    of.recurrent_weights = take_copies(plan.division.teams, recurrent_size, forward_size);
    of.forward_weights = of.recurrent_weights.first;
    if (!p.plain && (s.L > 1 || p.grad_x))
      of.input_weights = take_copies(plan.threads.count, k.input_grad_weights_size(widest), 0);
    if (wants_weights(p)) {
      const int64_t of_inner = s.L > 1 ? k.weight_grad_sums(s.layer(1, 0)) : 0;
      of.weight_sums = arena.take(std::max(of_inner, k.weight_grad_sums(s.layer(0, 0))));
    }
  }
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
  plan.scratch_size = whole_lines(plan.scratch_size);
  plan.scratch = arena.take(std::max(plan.threads.count, s.D) * plan.scratch_size);
  plan.workspace_size = arena.used();
  return plan;
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
    layer.weights = plan.of(l, d).forward_weights;
    layer.x = l ? p.saved + saved.output(l - 1) : p.x;
    layer.h0 = offset(p.h0, i * B * s.P);
    layer.c0 = offset(p.c0, i * B * s.H);
    layer.y = (l == s.L - 1 ? p.y : p.saved + saved.output(l)) + d * s.P;
    layer.y_stride = s.D * s.P;
    layer.cells = p.saved + saved.cells(l, d);
    layer.gates = plan.of(l, d).grad_gates.rows;
    layer.hidden = plan.of(l, d).hidden;
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
      step.h0_stride = s.P;
      step.c0 = layers[d].c0;
      step.zeros = plan.zeros;
      step.y = step.h_n = plan.of(l, d).state;
      step.y_stride = s.P;
      step.c_n = step.y + B * s.P;
      step.cells = step.c_n + B * s.H;
      step.gates = layers[d].gates;
      step.hidden = layers[d].hidden;
    }
    return run_single_step(k, s, steps, weights, team);
  }
  const int64_t bytes = s.D * k.forward_weights_size(layers[0].shape) * sizeof(T);
  run_shares(team, s.D, bytes, [&](int64_t d, const Share& share) {
    k.pack_forward(layers[d].shape, weights[d], share, plan.of(l, d).forward_weights);
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
    const T* grad_gates = plan.of(l, d).grad_gates.rows;
    step.grad({B, 4 * s.H, C, s.parts, grad_gates, w, y, add}, begin, end, scratch);
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
    weight.grad_gates = plan.of(l, d).grad_gates;
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

// Of the outputs of layer l, and of its inputs; null if there is or is wanted none.
template <typename T>
const T* grad_of_outputs(const StackBackward<T>& p, const BackwardPlan<T>& plan, int64_t l) {
  return l == p.shape.L - 1 ? p.grad_y : plan.grad_between[l % 2];
}
template <typename T>
T* grad_of_inputs(const StackBackward<T>& p, const BackwardPlan<T>& plan, int64_t l) {
  return l ? plan.grad_between[(l - 1) % 2] : p.grad_x;
}

// Pack a share of the weights of layer l in direction d.
template <typename T>
void pack_recurrent_weights(const LayerKernels<T>& k, const StackBackward<T>& p, int64_t l,
                            int64_t d, const Share& share, T* packed) {
  const LayerShape layer = p.shape.layer(l, 0);
  const int64_t i = l * p.shape.D + d;
  if (p.bfloat16_weights) {
    k.pack_backward_bfloat16(layer, p.bfloat16_weights[i], share, packed);
  } else {
    k.pack_backward(layer, p.weights[i], share, packed);
  }
}
template <typename T>
void pack_input_weights(const LayerKernels<T>& k, const StackBackward<T>& p, int64_t l, int64_t d,
                        const Share& share, T* packed) {
  const LayerShape layer = p.shape.layer(l, 0);
  const int64_t i = l * p.shape.D + d;
  if (p.bfloat16_weights) {
    k.pack_input_grad_bfloat16(layer, p.bfloat16_weights[i].weight_ih, share, packed);
  } else {
    k.pack_input_grad(layer, p.weights[i].weight_ih, share, packed);
  }
}

template <typename T>
LayerBackward<T> backward_of(const StackBackward<T>& p, const BackwardPlan<T>& plan, int64_t l,
                             int64_t d, int64_t team) {
  const StackShape& s = p.shape;
  const SavedLayout saved{s, p.keep_output, p.recompute_gates};
  const BackwardBuffers<T>& buffers = plan.of(l, d);
  const int64_t i = l * s.D + d, B = s.steps.B;
  LayerBackward<T> layer{};
  layer.shape = s.layer(l, d);
  layer.weights = buffers.recurrent_weights.of(team);
  layer.plain = p.plain && !p.bfloat16_step ? &p.weights[i] : nullptr;
  layer.c0 = offset(p.c0, i * B * s.H);
  layer.gates = p.recompute_gates ? buffers.grad_gates.rows : p.saved + saved.gates(l, d);
  layer.cells = p.saved + saved.cells(l, d);
  layer.grad_y = offset(grad_of_outputs(p, plan, l), d * s.P);
  layer.grad_y_stride = s.D * s.P;
  layer.grad_h_n = offset(p.grad_h_n, i * B * s.P);
  layer.grad_c_n = offset(p.grad_c_n, i * B * s.H);
  layer.grad_gates = buffers.grad_gates;
  layer.grad_hidden = buffers.grad_hidden;
  layer.grad_h0 = p.bfloat16_step ? nullptr : offset(p.grad_h0, i * B * s.P);
  layer.grad_c0 = p.grad_c0 ? p.grad_c0 + i * B * s.H : buffers.grad_c0;
  return layer;
}

template <typename T>
InputGrad<T> input_grad_of(const StackBackward<T>& p, const BackwardPlan<T>& plan, int64_t l,
                           int64_t thread) {
  const StackShape& s = p.shape;
  InputGrad<T> input{};
  input.shape = s.layer(l, 0);
  input.directions = static_cast<int>(s.D);
  input.packed = !p.plain;
  for (int64_t d = 0; d < s.D; ++d) {
    const BackwardBuffers<T>& buffers = plan.of(l, d);
    input.weights[d] =
        p.plain ? p.weights[l * s.D + d].weight_ih : buffers.input_weights.of(thread);
    input.grad_gates[d] = buffers.grad_gates;
  }
  input.grad_x = grad_of_inputs(p, plan, l);
  return input;
}

template <typename T>
void weight_grads(const LayerKernels<T>& k, const StackBackward<T>& p, const BackwardPlan<T>& plan,
                  int64_t l) {
  const StackShape& s = p.shape;
  const SavedLayout saved{s, p.keep_output, p.recompute_gates};
  const auto weight_grad_of = [&](int64_t d) {
    const BackwardBuffers<T>& buffers = plan.of(l, d);
    const int64_t i = l * s.D + d;
    WeightGrad<T> weight{};
    weight.shape = s.layer(l, d);
    weight.grad_gates = buffers.grad_gates;
    weight.grad_hidden = buffers.grad_hidden;
    if (s.projected) {
      weight.hidden = p.recompute_gates ? buffers.hidden : p.saved + saved.hidden(l, d);
    }
    weight.x = l ? p.saved + saved.output(l - 1) : p.x;
    weight.h0 = offset(p.h0, i * s.steps.B * s.P);
    weight.y = (l == s.L - 1 ? p.y : p.saved + saved.output(l)) + d * s.P;
    weight.y_stride = s.D * s.P;
    weight.sums = buffers.weight_sums;
    if (p.bfloat16_grad_weights) {
      weight.bfloat16_grads = &p.bfloat16_grad_weights[i];
    } else {
      weight.grads = p.grad_weights[i];
    }
    return weight;
  };
  run_weight_grads(k, s.layer(l, 0), s.D, plan.threads, plan.scratch, plan.scratch_size,
                   weight_grad_of);
}

// The steps [begin, end) of a layer of padded rows in one direction, as all those of a batch of so
// many: what a step leaves to the one before, of these steps and of those after them, is in grad_h
// and grad_c0.
template <typename T>
LayerBackward<T> steps_of(const LayerBackward<T>& layer, T* grad_h, int64_t begin, int64_t end) {
  LayerBackward<T> steps = layer;
  LayerShape& s = steps.shape;
  const int64_t n = begin * s.steps.B;
  if (end < s.steps.T) {
    steps.grad_h_n = grad_h;
    steps.grad_c_n = steps.grad_c0;
  }
  if (begin > 0) {
    steps.grad_h0 = grad_h;
    steps.c0 = steps.cells + (n - s.steps.B) * s.H;
  }
  s.steps.T = end - begin;
  steps.gates += n * 4 * s.H;
  steps.cells += n * s.H;
  steps.grad_y = offset(steps.grad_y, n * steps.grad_y_stride);
  steps.grad_gates = steps.grad_gates.from(n * 4 * s.H);
  steps.grad_hidden = offset(steps.grad_hidden, n * s.P);
  return steps;
}

// The layers of a stack in one direction and of one row, each behind the one above.
template <typename T>
void backward_layers_at_once(const LayerKernels<T>& k, const StackBackward<T>& p,
                             const BackwardPlan<T>& plan) {
  const StackShape& s = p.shape;
  const Division& division = plan.division;
  for (int64_t l = 0; p.recompute_gates && l < s.L; ++l)
    recompute_gates(k, p, plan, l, plan.threads);
  Pipeline pipeline(s.L, division.members, s.steps.T, division.stage_steps);
  run(plan.threads, division.members, [&](int64_t task) {
    T* scratch = plan.scratch + task * plan.scratch_size;
    TeamMember alone(nullptr, 0);
    const auto prepare = [&](int64_t i) {
      const int64_t l = s.L - 1 - i;
      if (p.plain) return;
      pack_recurrent_weights(k, p, l, 0, Share(0, 1), plan.of(l, 0).recurrent_weights.first);
      if (grad_of_inputs(p, plan, l))
        pack_input_weights(k, p, l, 0, Share(0, 1), plan.of(l, 0).input_weights.first);
    };
    const auto compute = [&](int64_t i, int64_t after_begin, int64_t after_end) {
      const int64_t l = s.L - 1 - i, begin = s.steps.T - after_end, end = s.steps.T - after_begin;
      const LayerBackward<T> layer = backward_of(p, plan, l, 0, 0);
      k.backward_rows(steps_of(layer, plan.of(l, 0).grad_h, begin, end), 0, 1, alone, scratch);
      if (grad_of_inputs(p, plan, l)) {
        k.input_grad_rows(input_grad_of(p, plan, l, 0), begin, end, scratch);
      }
    };
    pipeline.work(task, prepare, compute);
  });
  for (int64_t l = 0; wants_weights(p) && l < s.L; ++l) weight_grads(k, p, plan, l);
}

}  // namespace

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
  const Division& division = plan.division;
  const Threads& team = plan.threads;
  if (division.shares_layers) return backward_layers_at_once(k, p, plan);
  for (int64_t l = s.L - 1; l >= 0; --l) {
    T* grad_x = grad_of_inputs(p, plan, l);
    if (p.recompute_gates) recompute_gates(k, p, plan, l, team);
    // Of weights that all threads have one copy of.
    const bool shares_recurrent = !p.plain && !plan.of(l, 0).recurrent_weights.own;
    const bool shares_input = !p.plain && grad_x && !plan.of(l, 0).input_weights.own;
    if (shares_recurrent || shares_input) {
      const LayerShape layer = s.layer(l, 0);
      const int64_t of_h = shares_recurrent ? k.backward_weights_size(layer) : 0;
      const int64_t of_x = shares_input ? k.input_grad_weights_size(layer) : 0;
      run_shares(team, s.D, s.D * (of_h + of_x) * sizeof(T), [&](int64_t d, const Share& share) {
        const BackwardBuffers<T>& to = plan.of(l, d);
        if (of_h) pack_recurrent_weights(k, p, l, d, share, to.recurrent_weights.first);
        if (of_x) pack_input_weights(k, p, l, d, share, to.input_weights.first);
      });
    }
    Teams teams(s.D * division.teams, division.members);
    run(team, s.D * division.tasks(), [&](int64_t task) {
      const int64_t d = task / division.tasks(), i = task / division.members % division.teams;
      const LayerBackward<T> layer = backward_of(p, plan, l, d, i);
      TeamMember member = teams.member(task);
      if (!p.plain && !shares_recurrent) {
        member.round([&](const Share& share) {
          pack_recurrent_weights(k, p, l, d, share, plan.of(l, d).recurrent_weights.of(i));
        });
      }
      division.for_each_slice(i, [&](int64_t b0, int64_t b1) {
        k.backward_rows(layer, b0, b1, member, plan.scratch + task * plan.scratch_size);
      });
    });
    if (p.bfloat16_step) {
      bfloat16_step_grads(k, p, plan, l, grad_x, team);
      continue;
    }
    if (grad_x) {
      const int64_t N = s.steps.total();
      run(team, team.count, [&](int64_t task) {
        for (int64_t d = 0; !p.plain && !shares_input && d < s.D; ++d)
          pack_input_weights(k, p, l, d, Share(0, 1), plan.of(l, d).input_weights.of(task));
        const InputGrad<T> input = input_grad_of(p, plan, l, task);
        k.input_grad_rows(input, part(N, team.count, task), part(N, team.count, task + 1),
                          plan.scratch + task * plan.scratch_size);
      });
    }
    if (wants_weights(p)) weight_grads(k, p, plan, l);
  }
}

template int64_t backward_workspace_size(const Kernels&, const StackBackward<float>&,
                                         const Threads&);
template int64_t backward_workspace_size(const Kernels&, const StackBackward<double>&,
                                         const Threads&);
template void backward(const Kernels&, const StackBackward<float>&, const Threads&);
template void backward(const Kernels&, const StackBackward<double>&, const Threads&);

}  // namespace lstm_fast
