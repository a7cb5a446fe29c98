#include <algorithm>
#include <vector>

#include "pipeline.h"
#include "plan.h"
#include "run_single_step.h"
#include "stack.h"
#include "teams.h"

namespace lstm_fast {
namespace {

template <typename T>
struct ForwardPlan {
  Threads threads;
  Division division;
  std::vector<LayerForward<T>> layers;  // [L][D]
  int64_t layers_per_stage;             // that are packed, and then computed, at a time
  // [L][D] weights to be packed; none if plain or kept. Or, if teams pack copies of their own, as
  // many for each.
  std::vector<T*> packed;
  bool own_copies = false;
  std::vector<T*> scratch;  // of the tasks of forward_rows, or of a step
  T* zeros;                 // [P]
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
  plan.division = divide(s, Pass::Forward, plan.threads, sizeof(T), p.packs());
  // Rows are independent of each other through all layers, so that teams need no barrier between
  // them. With two directions, a layer waits for both of the one below. Where nothing is lost by
  // it, layers are packed one by one in the same place: less leaves the second cache.
  const bool one_slice = plan.threads.count == 1 && plan.division.slices.count() == 1;
  const bool by_layer = s.D > 1 || (one_slice && !p.keeps_packed);
  plan.layers_per_stage = by_layer ? 1 : s.L;
  plan.zeros = arena.take(s.P);
  // What one layer is done with when the next but one begins is taken in turn.
  const bool at_once = plan.division.shares_layers;
  std::vector<T*> between;  // outputs of inner layers
  for (int64_t i = 0; !p.saved && i < (at_once ? s.L : std::min<int64_t>(3, s.L)) - 1; ++i)
    between.push_back(arena.take(N * width));
  T* input_sums[2] = {};  // of the directions
  const T* x = p.x;
  if (!p.plain && !p.packed) {
    const int64_t largest = k.forward_weights_size(widest_layer(s));
    const auto size_of = [&](int64_t l) { return k.forward_weights_size(s.layer(l, 0)); };
    int64_t all = 0;
    for (int64_t l = 0; l < s.L; ++l) all += size_of(l);
    // Where teams go through their rows once, a layer takes the place of the one below.
    const bool once = plan.division.slices_per_team == 1;
    const int64_t teams = plan.division.teams, at_a_time = by_layer || once ? largest : all;
    plan.own_copies = !at_once && packs_own_copies(teams, at_a_time * sizeof(T), plan.threads);
    const bool in_turn = by_layer || (plan.own_copies && once);
    for (int64_t i = 0; i < (plan.own_copies ? teams : 1) * s.L * s.D; ++i) {
      const int64_t l = i / s.D % s.L;
      plan.packed.push_back(!in_turn ? arena.take(size_of(l))
                            : l == 0 ? arena.take(largest)
                                     : *(plan.packed.end() - s.D));
    }
  }
  for (int64_t l = 0; l < s.L; ++l) {
    T* y = l == s.L - 1 ? p.y : p.saved ? p.saved + saved.output(l) : between[l % between.size()];
    for (int64_t d = 0; d < s.D; ++d) {
      if (p.sums_inputs && (at_once || l == 0))
        input_sums[d] = arena.take(k.forward_input_sums(widest_layer(s)));
      const int64_t i = l * s.D + d;
      LayerForward<T> layer{};
      layer.shape = s.layer(l, d);
      layer.weights = p.packed ? p.packed[i] : p.plain ? nullptr : plan.packed[i];
      layer.x = x;
      layer.h0 = offset(p.h0, i * B * s.P);
      layer.h0_stride = s.P;
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

// The steps [begin, end) of those that a layer takes of padded rows, in the order of its direction,
// as all those of a batch of so many.
template <typename T>
LayerForward<T> steps_of(const LayerForward<T>& layer, int64_t begin, int64_t end) {
  LayerForward<T> steps = layer;
  LayerShape& s = steps.shape;
  const int64_t n = (s.reverse ? s.steps.T - end : begin) * s.steps.B;
  s.steps.T = end - begin;
  steps.x += n * s.I;
  steps.y += n * steps.y_stride;
  steps.gates = offset(steps.gates, n * 4 * s.H);
  steps.cells = offset(steps.cells, n * s.H);
  if (steps.gates) steps.hidden = offset(steps.hidden, n * s.H);
  if (begin > 0) {
    steps.h0 = steps.y + (s.reverse ? s.steps.T : -1) * s.steps.B * steps.y_stride;
    steps.h0_stride = steps.y_stride;
    steps.c0 = steps.c_n;
  }
  return steps;
}

// The layers of a stack in one direction, each behind the one below.
template <typename T>
void forward_layers_at_once(const Kernels& kernels, const StackForward<T>& p,
                            const ForwardPlan<T>& plan) {
  const StackShape& s = p.shape;
  const Division& division = plan.division;
  const Pipeline of_rows(s.L, division.members, s.steps.T, division.stage_steps);
  std::vector<Pipeline> pipelines(division.teams, of_rows);
  const auto pack = [&](int64_t begin, int64_t end, const Threads& threads) {
    if (!p.packed) pack_weights(kernels, p, begin, end, plan.packed.data(), threads);
  };
  // In a single pipeline, whoever packs a layer is likely to compute it, too.
  const bool packs_before = division.teams > 1;
  if (packs_before) pack(0, s.L, plan.threads);
  run(plan.threads, division.tasks(), [&](int64_t task) {
    const int64_t i = task / division.members;
    TeamMember alone(nullptr, 0);
    const auto prepare = [&](int64_t l) {
      if (!packs_before) pack(l, l + 1, plan.threads.with_count(1));
    };
    const auto compute = [&](int64_t l, int64_t begin, int64_t end) {
      kernels.of(T()).forward_rows(steps_of(plan.layers[l], begin, end), division.slices.begin(i),
                                   division.slices.end(i), alone, plan.scratch[task]);
    };
    pipelines[i].work(task % division.members, prepare, compute);
  });
}

}  // namespace

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
        for (int64_t d = 0; d < s.D; ++d) steps[d] = steps_of(plan.layers[l * s.D + d], i, i + 1);
        if (p.bfloat16_weights) {
          run_single_step(k, s, steps, p.bfloat16_weights + l * s.D, team, plan.scratch.data());
        } else if (p.float16_weights) {
          run_single_step(k, s, steps, p.float16_weights + l * s.D, team);
        } else {
          run_single_step(k, s, steps, p.weights + l * s.D, team);
        }
      }
    }
    return;
  }

  const Division& division = plan.division;
  if (division.shares_layers) return forward_layers_at_once(kernels, p, plan);
  for (int64_t l0 = 0; l0 < s.L; l0 += plan.layers_per_stage) {
    const int64_t l1 = l0 + plan.layers_per_stage;
    if (!p.packed && !plan.own_copies)
      pack_weights(kernels, p, l0 * s.D, l1 * s.D, plan.packed.data(), team);
    Teams teams(s.D * division.teams, division.members);
    run(team, s.D * division.tasks(), [&](int64_t task) {
      const int64_t d = task / division.tasks(), i = task / division.members % division.teams;
      T* const* own = plan.own_copies ? &plan.packed[i * s.L * s.D] : nullptr;
      TeamMember member = teams.member(task);
      bool packs = own;
      division.for_each_slice(i, [&](int64_t b0, int64_t b1) {
        for (int64_t l = l0; l < l1; ++l) {
          const int64_t of_layer = l * s.D + d;
          LayerForward<T> layer = plan.layers[of_layer];
          if (own) layer.weights = own[of_layer];
          if (packs) {
            member.round([&](const Share& share) {
              pack_layer(kernels, p, of_layer, share, own[of_layer]);
            });
          }
          k.forward_rows(layer, b0, b1, member, plan.scratch[task]);
        }
        packs = false;  // they serve further slices
      });
    });
  }
}

template int64_t forward_workspace_size(const Kernels&, const StackForward<float>&, const Threads&);
template int64_t forward_workspace_size(const Kernels&, const StackForward<double>&,
                                        const Threads&);
template void forward(const Kernels&, const StackForward<float>&, const Threads&);
template void forward(const Kernels&, const StackForward<double>&, const Threads&);

}  // namespace lstm_fast
