// A stack of layers: for each an input product for all steps, then the steps, both directions of
// them at once; backward likewise, and one product for the gradients of all weights. Where forward
// has not kept the gates, backward computes them anew, for all steps at once, where the gradients
// of gates come to lie. Steps are either one launch each (two with a projection), for any size,
// dtype and device, or all in one launch where a block, a cluster or the whole grid holds the
// weights.
#pragma once

#include <algorithm>
#include <type_traits>

#include "arena.h"
#include "kernels.h"
#include "one_block.cuh"
#include "step.cuh"
#include "team.cuh"
#include "upload.cuh"
#include "weight_grad.cuh"

namespace lstm_fast::cuda {

template <typename T>
T* offset(T* p, int64_t elements) {
  return p ? p + elements : nullptr;
}

template <typename T>
const T* of(const void* p) {
  return static_cast<const T*>(p);
}
template <typename T>
T* of(void* p) {
  return static_cast<T*>(p);
}

// A type, and a number, as an argument.
template <typename T>
struct Type {
  using type = T;
};
template <int value>
constexpr std::integral_constant<int, value> constant{};

// Where the output of a layer lies.
template <typename T>
struct Output {
  Wide<T>* y;  // [N, D * P]
  T* rounded;  // the same in the caller's type, if that is another and the layer the last one
};

template <typename T, Unit kUnit>
class Stack {
  using A = Wide<T>;
  using Small = Tile<T, kUnit, 16, 32>;
  using Large = Tile<T, kUnit, 64, 64>;
  static constexpr bool kHalf = sizeof(T) == 2;

 public:
  Stack(const StackShape& shape, bool recompute_gates, const Device& device, const Plan& how,
        void* stream)
      : s_(shape),
        device_(device),
        how_(how),
        stream_(stream),
        N_(shape.steps.total()),
        width_(shape.D * shape.P),
        saved_{shape, kHalf, recompute_gates} {}

  // The steps of packed input on the device.
  struct StepArrays {
    int64_t* batch_sizes;  // [T]
    int64_t* offsets;      // [T]
  };

  // What a grid exchanges: inboxes, and flags for each layer.
  struct Exchanges {
    unsigned char* inboxes;
    unsigned* flags;
  };

  struct ForwardPlan {
    A* between[2];  // outputs of layers that are not kept, taken in turn
    A* gates;       // [D][rows of a chunk, G], when they are not kept
    A* cells;       // [D][B, H], likewise
    A* hidden;      // [D][B, H], likewise, if projected
    int64_t chunk;  // steps whose gates lie in memory at a time
    StepArrays steps;
    Exchanges exchanges;
    int64_t bytes;
  };

  ForwardPlan plan_forward(const StackForward& p) const {
    Arena arena(p.workspace);
    ForwardPlan plan{};
    plan.chunk = s_.steps.T;
    if (!keeps_gates(p)) {
      plan.chunk = steps_per_chunk(device_, s_, sizeof(A), how_.regime);
      plan.gates = arena.take<A>(s_.D * plan.chunk * s_.steps.B * 4 * s_.H);
      plan.cells = arena.take<A>(s_.D * s_.steps.B * s_.H);
      if (s_.projected) plan.hidden = arena.take<A>(s_.D * s_.steps.B * s_.H);
    }
    if (!p.saved) {
      for (int i = 0; i < 2; ++i) {
        // The last layer needs one only where its output is rounded for the caller.
        if (i < (kHalf ? s_.L : s_.L - 1)) plan.between[i] = arena.take<A>(N_ * width_);
      }
    }
    if (how_.regime != Regime::Stepwise) plan.steps = take_steps(arena);
    plan.exchanges = take_exchanges(arena, true);
    plan.bytes = arena.used();
    return plan;
  }

  void forward(const StackForward& p) const {
    const ForwardPlan plan = plan_forward(p);
    const Steps steps = on_device(plan.steps);
    clear_flags(plan.exchanges);
    Array<T> x(of<T>(p.x));
    for (int64_t l = 0; l < s_.L; ++l) {
      const Output<T> out = output(p, plan, l);
      for (int64_t s0 = 0; s0 < s_.steps.T; s0 += plan.chunk) {
        const int64_t s1 = std::min(s_.steps.T, s0 + plan.chunk);
        input_product(p.weights, l, x, s0, s1, [&](int64_t d, int64_t t0) {
          return gates(p, plan, l, d, t0, first_step(s0, plan.chunk, d));
        });
        if (forward_at_once(p, plan, l, out, steps, s0, s1)) continue;
        for (int64_t s = s0; s < s1; ++s) forward_step(p, plan, l, out, s, s0);
      }
      x = Array<T>::ours(out.y);
    }
  }

  struct BackwardPlan {
    A* grad_between[2];  // gradients of the outputs of inner layers, taken in turn
    A* grad_gates;       // [D][N, G]
    A* grad_hidden;      // [D][N, P] if projected
    A* hidden;           // [D][N, H], likewise, if recomputed
    A* grad_cells;       // [D][B, H]
    StepArrays steps;
    Exchanges exchanges;
    int64_t* previous;  // [D][N]
    A* parts;           // of the weight gradients
    int64_t bytes;
  };

  BackwardPlan plan_backward(const StackBackward& p) const {
    Arena arena(p.workspace);
    BackwardPlan plan{};
    for (int64_t i = 0; i < std::min<int64_t>(2, s_.L - 1); ++i)
      plan.grad_between[i] = arena.take<A>(N_ * width_);
    plan.grad_gates = arena.take<A>(s_.D * N_ * 4 * s_.H);
    if (s_.projected) plan.grad_hidden = arena.take<A>(s_.D * N_ * s_.P);
    if (s_.projected && p.recompute_gates) plan.hidden = arena.take<A>(s_.D * N_ * s_.H);
    plan.grad_cells = arena.take<A>(s_.D * s_.steps.B * s_.H);
    if (how_.regime != Regime::Stepwise || p.grad_weights) plan.steps = take_steps(arena);
    plan.exchanges = take_exchanges(arena, false);
    if (p.grad_weights) {
      plan.previous = arena.take<int64_t>(s_.D * N_);
      int64_t most = 0;
      for (int64_t l = 0; l < s_.L; ++l) {
        for (const WeightGrads<T>& grads : {gate_weights(p, l), projection_weights()})
          most = std::max(most, s_.D * grads.parts * grads.M * grads.columns());
      }
      plan.parts = arena.take<A>(most);
    }
    plan.bytes = arena.used();
    return plan;
  }

  void backward(const StackBackward& p) const {
    const BackwardPlan plan = plan_backward(p);
    const Steps steps = on_device(plan.steps);
    clear_flags(plan.exchanges);
    if (p.grad_weights) find_previous_rows(plan, steps);
    for (int64_t l = s_.L - 1; l >= 0; --l) {
      if (p.recompute_gates) recompute(p, plan, l);
      const bool last = l == s_.L - 1;
      const Array<T> grad_y =
          last ? Array<T>(of<T>(p.grad_y)) : Array<T>::ours(plan.grad_between[l % 2]);
      if (!backward_at_once(p, plan, l, grad_y, steps)) {
        for (int64_t s = s_.steps.T - 1; s >= 0; --s) backward_step(p, plan, l, grad_y, s);
        if (p.grad_h0) grad_h0(p, plan, l);
      }
      if (l || p.grad_x) grad_x(p, plan, l);
      if (p.grad_weights) grad_weights(p, plan, l);
    }
  }

 private:
  int64_t step(int64_t s, int64_t d) const { return d ? s_.steps.T - 1 - s : s; }
  // Rows of step t that go on to the step visited after it; the others end there.
  int64_t continued(int64_t t, bool reverse) const { return s_.steps.carried(t, !reverse); }
  int64_t run(int64_t l, int64_t d) const { return l * s_.D + d; }
  static LayerWeights<T> weights(const LayerWeights<void>& w) {
    return {of<T>(w.weight_ih), of<T>(w.weight_hh), of<T>(w.bias_ih), of<T>(w.bias_hh),
            of<T>(w.weight_hr)};
  }

  StepArrays take_steps(Arena& arena) const {
    if (!s_.steps.batch_sizes) return {};
    return {arena.take<int64_t>(s_.steps.T), arena.take<int64_t>(s_.steps.T)};
  }
  // Nothing where no kernel reads them.
  Steps on_device(const StepArrays& arrays) const {
    Steps steps = s_.steps;
    if (!steps.batch_sizes) return steps;
    if (!arrays.batch_sizes) return {};
    upload(steps.batch_sizes, steps.T, arrays.batch_sizes, stream_);
    upload(steps.offsets, steps.T, arrays.offsets, stream_);
    steps.batch_sizes = arrays.batch_sizes;
    steps.offsets = arrays.offsets;
    return steps;
  }

  // Inboxes of a pass in which all blocks get the same, or each its own.
  Exchanges take_exchanges(Arena& arena, bool common) const {
    if (how_.regime != Regime::Grid) return {};
    const Team& team = how_.team;
    const int64_t groups = s_.D * team.teams * team.groups;
    return {arena.take<unsigned char>(groups * 2 * (common ? 1 : team.blocks) *
                                      team.memory.inbox_bytes),
            arena.take<unsigned>(s_.L * groups * team.blocks)};
  }
  int64_t flags_of_layer() const {
    return s_.D * how_.team.teams * how_.team.groups * how_.team.blocks;
  }
  void clear_flags(const Exchanges& exchanges) const {
    if (exchanges.flags)
      clear(exchanges.flags, s_.L * flags_of_layer() * sizeof(unsigned), stream_);
  }
  // For another launch of the same layer.
  void clear_flags(const Exchanges& exchanges, int64_t l) const {
    if (exchanges.flags)
      clear(exchanges.flags + l * flags_of_layer(), flags_of_layer() * sizeof(unsigned), stream_);
  }
  Exchange exchange(const Exchanges& exchanges, int64_t l, bool common, int64_t arriving) const {
    return {how_.team, common, static_cast<int>(arriving), exchanges.inboxes,
            offset(exchanges.flags, l * flags_of_layer())};
  }

  // Calls f(way, units) with the planned way to exchange and units of a block: those that there are
  // kernels for. What it returns says whether the blocks could run together.
  template <typename F>
  bool with_team(const F& f) const {
    const auto way = [&](auto type, auto... units) {
      bool launched = false;
      ((units.value == how_.team.units ? (launched = f(type, units)) : false), ...);
      return launched;
    };
    if constexpr (kUnit == Unit::Exact) {
      if (how_.regime == Regime::OneBlock) {
        if constexpr (sizeof(T) == 8) {
          return way(Type<Alone>(), constant<64>);
        } else {
          return way(Type<Alone>(), constant<64>, constant<128>);
        }
      }
    }
    if constexpr (sizeof(T) < 8) {
      if (how_.regime == Regime::Cluster) return way(Type<Cluster>(), constant<64>);
      if (how_.regime == Regime::Grid) return way(Type<Grid>(), constant<16>, constant<32>);
    }
    return false;
  }
  template <typename Way, typename Params>
  bool launch_teams(void (*kernel)(Params), const Params& teams) const {
    const Team& team = how_.team;
    return launch_together(kernel, Way::kTogether, team.blocks,
                           tiles(team.teams * team.blocks, 1, 1, 1, s_.D),
                           team_warps(team.units) * 32, team.memory.bytes, stream_, teams);
  }

  static dim3 tiles(int64_t M, int64_t N, int64_t tile_M, int64_t tile_N, int64_t depth) {
    return {static_cast<unsigned>((M + tile_M - 1) / tile_M),
            static_cast<unsigned>((N + tile_N - 1) / tile_N), static_cast<unsigned>(depth)};
  }

  // Launches what kernel(tile type) returns on an output of [M, N] for each direction.
  template <typename Kernel, typename Params>
  void in_tiles(int64_t M, int64_t N, int64_t directions, const Params& params,
                const Kernel& kernel) const {
    if (M == 0 || N == 0) return;
    const auto launch_with = [&](auto type) {
      using Tile = typename decltype(type)::type;
      launch(kernel(type), tiles(M, N, Tile::kM, Tile::kN, directions), Tile::kThreads,
             Tile::kSharedBytes, stream_, params);
    };
    if (large_tiles(device_, M, N, directions)) {
      launch_with(Type<Large>());
    } else {
      launch_with(Type<Small>());
    }
  }
  // kByK: whether k runs fastest in the second operand.
  template <bool kByK>
  void multiply(int64_t M, int64_t N, int64_t directions, const Products<T>& products) const {
    in_tiles(M, N, directions, products,
             [](auto type) { return product_kernel<T, kByK, typename decltype(type)::type>; });
  }

  Output<T> output(const StackForward& p, const ForwardPlan& plan, int64_t l) const {
    const bool last = l == s_.L - 1;
    if (last && !kHalf) return {of<A>(p.y), nullptr};
    A* y = p.saved ? of<A>(p.saved) + saved_.output(l) : plan.between[l % 2];
    return {y, last ? of<T>(p.y) : nullptr};
  }

  static bool keeps_gates(const StackForward& p) { return p.saved && !p.recompute_gates; }
  // Gates of step t in direction d. Of a chunk that is not kept, `first` is the earliest step.
  A* gates(const StackForward& p, const ForwardPlan& plan, int64_t l, int64_t d, int64_t t,
           int64_t first) const {
    if (keeps_gates(p)) return of<A>(p.saved) + saved_.gates(l, d) + s_.steps.offset(t) * 4 * s_.H;
    return plan.gates +
           (d * plan.chunk * s_.steps.B + s_.steps.offset(t) - s_.steps.offset(first)) * 4 * s_.H;
  }
  int64_t first_step(int64_t s0, int64_t chunk, int64_t d) const {
    return d ? std::max<int64_t>(0, s_.steps.T - s0 - chunk) : s0;
  }

  // gates = x weight_ih^T + bias_ih + bias_hh, for the steps [s0, s1) of each direction; those from
  // step t on of direction d lie at gates_from(d, t).
  template <typename F>
  void input_product(const LayerWeights<void>* all, int64_t l, Array<T> x, int64_t s0, int64_t s1,
                     const F& gates_from) const {
    Products<T> products;
    int64_t most = 0;
    for (int64_t d = 0; d < s_.D; ++d) {
      const int64_t t0 = std::min(step(s0, d), step(s1 - 1, d));
      const int64_t t1 = std::max(step(s0, d), step(s1 - 1, d));
      const LayerWeights<T> w = weights(all[run(l, d)]);
      Product<T>& product = products.of[d];
      product.M = s_.steps.offset(t1) + s_.steps.rows(t1) - s_.steps.offset(t0);
      product.N = 4 * s_.H;
      product.K = s_.input_size(l);
      product.segment[0] = {x + s_.steps.offset(t0) * product.K, product.M, product.K, w.weight_ih,
                            product.K};
      product.bias_ih = w.bias_ih;
      product.bias_hh = w.bias_hh;
      product.output = gates_from(d, t0);
      product.output_stride = product.N;
      most = std::max(most, product.M);
    }
    multiply<true>(most, 4 * s_.H, s_.D, products);
  }

  // Step number s, in each direction's own order; s0 is the first one of its chunk.
  void forward_step(const StackForward& p, const ForwardPlan& plan, int64_t l, const Output<T>& out,
                    int64_t s, int64_t s0) const {
    const int64_t B = s_.steps.B, H = s_.H, P = s_.P;
    StepsForward<T> steps;
    Products<T> projections;
    int64_t most = 0;
    for (int64_t d = 0; d < s_.D; ++d) {
      const bool reverse = d == 1;
      const int64_t t = step(s, d), before = Steps::previous(t, reverse), i = run(l, d);
      const LayerWeights<T> w = weights(p.weights[i]);
      const int64_t row = s_.steps.offset(t), y_row = row * width_ + d * P;
      StepForward<T>& q = steps.of[d];
      q = {};
      q.rows = s_.steps.rows(t);
      q.carried = s_.steps.carried(t, reverse);
      q.ending = continued(t, reverse);
      q.H = H;
      q.P = P;
      if (q.carried) q.y_prev = out.y + s_.steps.offset(before) * width_ + d * P;
      q.y_stride = width_;
      q.h0 = offset(of<T>(p.h0), i * B * P);
      q.c0 = offset(of<T>(p.c0), i * B * H);
      q.weight_hh = w.weight_hh;
      q.gates = gates(p, plan, l, d, t, first_step(s0, plan.chunk, d));
      q.save = keeps_gates(p);
      if (p.saved) {
        A* cells = of<A>(p.saved) + saved_.cells(l, d);
        q.cells = cells + row * H;
        if (q.carried) q.cells_prev = cells + s_.steps.offset(before) * H;
      } else {
        q.cells = plan.cells + d * B * H;
        q.cells_prev = q.cells;
      }
      q.c_n = of<T>(p.c_n) + i * B * H;
      T* h_n = of<T>(p.h_n) + i * B * P;
      if (s_.projected) {
        q.hidden = keeps_gates(p) ? of<A>(p.saved) + saved_.hidden(l, d) + row * H
                                  : plan.hidden + d * B * H;
        q.hidden_stride = H;
        projections.of[d] = projection(q, w, h_n);
        projections.of[d].output = out.y + y_row;
        projections.of[d].rounded_output = offset(out.rounded, y_row);
      } else {
        q.hidden = out.y + y_row;
        q.hidden_stride = width_;
        q.rounded_hidden = offset(out.rounded, y_row);
        q.h_n = h_n;
      }
      most = std::max(most, q.rows);
    }
    in_tiles(most, 4 * H, s_.D, steps,
             [](auto type) { return step_forward_kernel<T, typename decltype(type)::type>; });
    if (s_.projected) multiply<true>(most, P, s_.D, projections);
  }

  // y = hidden weight_hr^T
  Product<T> projection(const StepForward<T>& q, const LayerWeights<T>& w, T* h_n) const {
    Product<T> product;
    product.M = q.rows;
    product.N = s_.P;
    product.K = s_.H;
    product.segment[0] = {Array<T>::ours(q.hidden), q.rows, s_.H, w.weight_hr, s_.H};
    product.output_stride = width_;
    product.last_from = q.ending;
    product.last = h_n;
    return product;
  }

  // Calls f(chunks) with the least number of chunks along k, as a constant, that holds H units.
  template <typename F>
  void with_chunks(const F& f) const {
    constexpr int kMost = (kHalf ? kOneBlockUnitsHalf : kOneBlockUnitsTf32) / Words<T>::kChunk;
    if (s_.H <= 32) return f(std::integral_constant<int, 32 / Words<T>::kChunk>());
    if (s_.H <= 64) return f(std::integral_constant<int, 64 / Words<T>::kChunk>());
    f(std::integral_constant<int, kMost>());
  }

  LayersForward<T> layers_forward(const StackForward& p, const ForwardPlan& plan, int64_t l,
                                  const Output<T>& out, const Steps& steps, int64_t s0,
                                  int64_t s1) const {
    const int64_t B = s_.steps.B, H = s_.H;
    LayersForward<T> layers{
        steps, static_cast<int>(s0), static_cast<int>(s1), static_cast<int>(H), width_, {}};
    for (int64_t d = 0; d < s_.D; ++d) {
      const int64_t i = run(l, d);
      LayerForward<T>& q = layers.of[d];
      q.h0 = offset(of<T>(p.h0), i * B * H);
      q.c0 = offset(of<T>(p.c0), i * B * H);
      q.weight_hh = of<T>(p.weights[i].weight_hh);
      q.gates = gates(p, plan, l, d, 0, first_step(s0, plan.chunk, d));
      if (p.saved) q.cells = of<A>(p.saved) + saved_.cells(l, d);
      q.running = offset(plan.cells, d * B * H);
      q.hidden = out.y + d * H;
      q.rounded_hidden = offset(out.rounded, d * H);
      q.h_n = of<T>(p.h_n) + i * B * H;
      q.c_n = of<T>(p.c_n) + i * B * H;
    }
    return layers;
  }

  // The steps [s0, s1) of a layer in one launch, as planned. False if they are to be taken one by
  // one.
  bool forward_at_once(const StackForward& p, const ForwardPlan& plan, int64_t l,
                       const Output<T>& out, const Steps& steps, int64_t s0, int64_t s1) const {
    if (how_.regime == Regime::Stepwise) return false;
    if (N_ == 0) return true;
    const LayersForward<T> layers = layers_forward(p, plan, l, out, steps, s0, s1);
    if (how_.team.units) {
      if (s0) clear_flags(plan.exchanges, l);
      const int64_t arriving = how_.team.memory.inbox_bytes / kTeamRows * how_.team.rows;
      const TeamsForward<T> teams{layers, exchange(plan.exchanges, l, true, arriving)};
      return with_team([&](auto type, auto units) {
        using Way = typename decltype(type)::type;
        return launch_teams<Way>(team_forward_kernel<T, kUnit, units.value, Way>, teams);
      });
    }
    if constexpr (kUnit == Unit::Tensor) {
      with_chunks([&](auto chunks) {
        using Sizes = BlockForwardSizes<T, chunks.value>;
        launch(block_forward_kernel<T, chunks.value>, tiles(s_.steps.B, 1, kBlockRows, 1, s_.D),
               Sizes::threads(s_.H), Sizes::kSharedBytes, stream_, layers);
      });
    }
    return true;
  }

  // The output of a layer as forward has it, x of the next one.
  const A* output(const StackBackward& p, int64_t l) const {
    return kHalf || l < s_.L - 1 ? of<A>(p.saved) + saved_.output(l) : of<A>(p.y);
  }
  Array<T> layer_input(const StackBackward& p, int64_t l) const {
    return l ? Array<T>::ours(output(p, l - 1)) : Array<T>(of<T>(p.x));
  }
  const A* gates(const StackBackward& p, const BackwardPlan& plan, int64_t l, int64_t d) const {
    return p.recompute_gates ? plan.grad_gates + d * N_ * 4 * s_.H
                             : of<A>(p.saved) + saved_.gates(l, d);
  }

  // Whether each row of step t comes from the same row of the step before it, and this is as far
  // away as the rows are many.
  bool follows(int64_t t, bool reverse) const {
    const int64_t before = Steps::previous(t, reverse);
    return before >= 0 && before < s_.steps.T && s_.steps.rows(before) == s_.steps.rows(t);
  }

  // The gates of a layer, and hidden, from x, y and cells of all steps. Steps of as many rows as
  // those before them are like one step of all these rows.
  void recompute(const StackBackward& p, const BackwardPlan& plan, int64_t l) const {
    const int64_t B = s_.steps.B, H = s_.H, P = s_.P, G = 4 * H;
    input_product(p.weights, l, layer_input(p, l), 0, s_.steps.T,
                  [&](int64_t d, int64_t) { return plan.grad_gates + d * N_ * G; });
    for (int64_t d = 0; d < s_.D; ++d) {
      const bool reverse = d == 1;
      const int64_t i = run(l, d);
      int64_t end;
      for (int64_t t = 0; t < s_.steps.T; t = end) {
        end = t + 1;
        while (end < s_.steps.T && follows(t, reverse) && follows(end, reverse) &&
               s_.steps.rows(end) == s_.steps.rows(t))
          ++end;
        StepsForward<T> steps;
        StepForward<T>& q = steps.of[0];
        const int64_t row = d * N_ + s_.steps.offset(t);
        q = {};
        q.rows = (end - t) * s_.steps.rows(t);
        q.carried = follows(t, reverse) ? q.rows : s_.steps.carried(t, reverse);
        q.ending = q.rows;  // the final states are known
        q.H = H;
        q.P = P;
        if (q.carried) {
          const int64_t before = s_.steps.offset(Steps::previous(t, reverse));
          q.y_prev = output(p, l) + before * width_ + d * P;
          q.cells_prev = of<A>(p.saved) + saved_.cells(l, d) + before * H;
        }
        q.y_stride = width_;
        q.h0 = offset(of<T>(p.h0), i * B * P);
        q.c0 = offset(of<T>(p.c0), i * B * H);
        q.weight_hh = of<T>(p.weights[i].weight_hh);
        q.gates = plan.grad_gates + row * G;
        q.save = true;
        if (s_.projected) q.hidden = plan.hidden + row * H;
        q.hidden_stride = H;
        in_tiles(q.rows, G, 1, steps,
                 [](auto type) { return step_forward_kernel<T, typename decltype(type)::type>; });
      }
    }
  }

  LayersBackward<T> layers_backward(const StackBackward& p, const BackwardPlan& plan, int64_t l,
                                    Array<T> grad_y, const Steps& steps) const {
    const int64_t B = s_.steps.B, H = s_.H;
    LayersBackward<T> layers{steps, static_cast<int>(H), width_, {}};
    for (int64_t d = 0; d < s_.D; ++d) {
      const int64_t i = run(l, d);
      LayerBackward<T>& q = layers.of[d];
      q.grad_y = grad_y + d * H;
      q.grad_h_n = offset(of<T>(p.grad_h_n), i * B * H);
      q.grad_c_n = offset(of<T>(p.grad_c_n), i * B * H);
      q.c0 = offset(of<T>(p.c0), i * B * H);
      q.weight_hh = of<T>(p.weights[i].weight_hh);
      q.gates = gates(p, plan, l, d);
      q.cells = of<A>(p.saved) + saved_.cells(l, d);
      q.grad_gates = plan.grad_gates + d * N_ * 4 * H;
      q.grad_h0 = offset(of<T>(p.grad_h0), i * B * H);
      q.grad_c0 = offset(of<T>(p.grad_c0), i * B * H);
    }
    return layers;
  }

  bool backward_at_once(const StackBackward& p, const BackwardPlan& plan, int64_t l,
                        Array<T> grad_y, const Steps& steps) const {
    if (how_.regime == Regime::Stepwise) return false;
    if (N_ == 0) return true;
    const LayersBackward<T> layers = layers_backward(p, plan, l, grad_y, steps);
    if (how_.team.units) {
      // A pair of rows travels together.
      const int64_t arriving = how_.team.blocks * ((how_.team.rows + 1) / 2) * 2 * sizeof(A);
      const TeamsBackward<T> teams{layers, exchange(plan.exchanges, l, false, arriving),
                                   plan.grad_cells};
      return with_team([&](auto type, auto units) {
        using Way = typename decltype(type)::type;
        return launch_teams<Way>(team_backward_kernel<T, kUnit, units.value, Way>, teams);
      });
    }
    if constexpr (kUnit == Unit::Tensor) {
      with_chunks([&](auto chunks) {
        using Sizes = BlockBackwardSizes<T, chunks.value>;
        launch(block_backward_kernel<T, chunks.value>, tiles(s_.steps.B, 1, kBlockRows, 1, s_.D),
               Sizes::threads(s_.H), Sizes::kSharedBytes, stream_, layers);
      });
    }
    return true;
  }

  // Step number s, in each direction's own order.
  void backward_step(const StackBackward& p, const BackwardPlan& plan, int64_t l, Array<T> grad_y,
                     int64_t s) const {
    const int64_t B = s_.steps.B, H = s_.H, P = s_.P, G = 4 * H;
    StepsBackward<T> steps;
    Products<T> products;
    int64_t most = 0;
    for (int64_t d = 0; d < s_.D; ++d) {
      const bool reverse = d == 1;
      const int64_t t = step(s, d), after = Steps::previous(t, !reverse);
      const int64_t before = Steps::previous(t, reverse), i = run(l, d);
      const int64_t row = s_.steps.offset(t);
      const LayerWeights<T> w = weights(p.weights[i]);
      const A* cells = of<A>(p.saved) + saved_.cells(l, d);
      A* grad_gates = plan.grad_gates + d * N_ * G;
      StepBackward<T>& q = steps.of[d];
      q = {};
      q.rows = s_.steps.rows(t);
      q.carried = s_.steps.carried(t, reverse);
      q.ending = continued(t, reverse);
      q.H = H;
      q.grad_c_n = offset(of<T>(p.grad_c_n), i * B * H);
      q.gates = gates(p, plan, l, d) + row * G;
      q.cells = cells + row * H;
      if (q.carried) q.cells_prev = cells + s_.steps.offset(before) * H;
      q.c0 = offset(of<T>(p.c0), i * B * H);
      q.grad_cells = plan.grad_cells + d * B * H;
      q.grad_gates = grad_gates + row * G;
      q.grad_c0 = offset(of<T>(p.grad_c0), i * B * H);

      // From the step after: the gradient of y [rows, P].
      const Segment<T> recurrent{
          Array<T>::ours(q.ending ? grad_gates + s_.steps.offset(after) * G : grad_gates), q.ending,
          G, w.weight_hh, P};
      const Array<T> from_above = grad_y + (row * width_ + d * P);
      const T* grad_h_n = offset(of<T>(p.grad_h_n), i * B * P);
      if (s_.projected) {
        Product<T>& product = products.of[d];
        product.M = q.rows;
        product.N = P;
        product.K = G;
        product.segment[0] = recurrent;
        product.addend = from_above;
        product.addend_stride = width_;
        product.last_from = q.ending;
        product.last_addend = grad_h_n;
        product.output = plan.grad_hidden + (d * N_ + row) * P;
        product.output_stride = P;
        q.K = P;
        q.product = {Array<T>::ours(product.output), q.rows, P, w.weight_hr, H};
      } else {
        q.K = G;
        q.product = recurrent;
        q.grad_y = from_above;
        q.grad_y_stride = width_;
        q.grad_h_n = grad_h_n;
      }
      most = std::max(most, q.rows);
    }
    if (s_.projected) multiply<false>(most, P, s_.D, products);
    in_tiles(most, H, s_.D, steps,
             [](auto type) { return step_backward_kernel<T, typename decltype(type)::type>; });
  }

  // grad_h0 = grad_gates weight_hh, of the first step of each row.
  void grad_h0(const StackBackward& p, const BackwardPlan& plan, int64_t l) const {
    for (int64_t d = 0; d < s_.D; ++d) {
      const int64_t i = run(l, d);
      for (int64_t t = 0; t < s_.steps.T; ++t) {
        const int64_t carried = s_.steps.carried(t, d == 1), M = s_.steps.rows(t) - carried;
        Products<T> products;
        Product<T>& product = products.of[0];
        product.M = M;
        product.N = s_.P;
        product.K = 4 * s_.H;
        product.segment[0] = {
            Array<T>::ours(plan.grad_gates + (d * N_ + s_.steps.offset(t) + carried) * product.K),
            M, product.K, of<T>(p.weights[i].weight_hh), s_.P};
        product.rounded_output = of<T>(p.grad_h0) + (i * s_.steps.B + carried) * s_.P;
        product.output_stride = s_.P;
        multiply<false>(M, s_.P, 1, products);
      }
    }
  }

  // grad_x = sum over directions of grad_gates weight_ih
  void grad_x(const StackBackward& p, const BackwardPlan& plan, int64_t l) const {
    Products<T> products;
    Product<T>& product = products.of[0];
    product.M = N_;
    product.N = s_.input_size(l);
    product.K = 4 * s_.H;
    product.segments = static_cast<int>(s_.D);
    for (int64_t d = 0; d < s_.D; ++d) {
      product.segment[d] = {Array<T>::ours(plan.grad_gates + d * N_ * product.K), N_, product.K,
                            of<T>(p.weights[run(l, d)].weight_ih), product.N};
    }
    if (l) {
      product.output = plan.grad_between[(l - 1) % 2];
    } else {
      product.rounded_output = of<T>(p.grad_x);
    }
    product.output_stride = product.N;
    multiply<false>(N_, product.N, 1, products);
  }

  void find_previous_rows(const BackwardPlan& plan, const Steps& steps) const {
    if (N_ == 0) return;
    launch(previous_rows_kernel, tiles(N_, s_.D, kTileThreads, 1, 1), kTileThreads, 0, stream_,
           PreviousRows{steps, plan.previous, N_});
  }

  // Sizes of the gradients of weight_ih, the biases and weight_hh, of all directions of a layer.
  WeightGrads<T> gate_weights(const StackBackward& p, int64_t l) const {
    WeightGrads<T> grads{};
    grads.M = 4 * s_.H;
    grads.X = s_.input_size(l);
    grads.P = s_.P;
    grads.ones = p.weights[0].bias_ih;
    return in_parts(grads);
  }
  WeightGrads<T> projection_weights() const {
    WeightGrads<T> grads{};
    if (!s_.projected) return grads;
    grads.M = s_.P;
    grads.X = s_.H;
    return in_parts(grads);
  }
  WeightGrads<T> in_parts(WeightGrads<T> grads) const {
    grads.N = N_;
    grads.parts = static_cast<int>(weight_grad_parts(device_, grads.M, grads.columns(), N_, s_.D));
    return grads;
  }

  void grad_weights(const StackBackward& p, const BackwardPlan& plan, int64_t l) const {
    WeightGrads<T> gates = gate_weights(p, l), projections = projection_weights();
    for (int64_t d = 0; d < s_.D; ++d) {
      const int64_t i = run(l, d);
      const LayerWeightGrads<void>& results = p.grad_weights[i];
      WeightGrad<T>& g = gates.of[d];
      g.grad = plan.grad_gates + d * N_ * gates.M;
      g.x = layer_input(p, l);
      g.x_stride = gates.X;
      g.previous = plan.previous + d * N_;
      g.y = output(p, l) + d * s_.P;
      g.y_stride = width_;
      g.h0 = offset(of<T>(p.h0), i * s_.steps.B * s_.P);
      g.weight_x = of<T>(results.weight_ih);
      g.bias_ih = of<T>(results.bias_ih);
      g.bias_hh = of<T>(results.bias_hh);
      g.weight_h = of<T>(results.weight_hh);
      if (!s_.projected) continue;
      WeightGrad<T>& r = projections.of[d];
      r.grad = plan.grad_hidden + d * N_ * s_.P;
      r.x = Array<T>::ours(p.recompute_gates ? plan.hidden + d * N_ * s_.H
                                             : of<A>(p.saved) + saved_.hidden(l, d));
      r.x_stride = s_.H;
      r.weight_x = of<T>(results.weight_hr);
    }
    weight_grad(gates, plan.parts);
    if (s_.projected) weight_grad(projections, plan.parts);
  }

  void weight_grad(WeightGrads<T> grads, A* parts) const {
    const int64_t size = grads.M * grads.columns();
    for (int64_t d = 0; d < s_.D; ++d) grads.of[d].parts = parts + d * grads.parts * size;
    launch(weight_grad_kernel<T, Large>,
           tiles(grads.M, grads.columns(), Large::kM, Large::kN, grads.parts * s_.D),
           Large::kThreads, Large::kSharedBytes, stream_, grads);
    launch(add_parts_kernel<T>, tiles(size, 1, kTileThreads, 1, s_.D), kTileThreads, 0, stream_,
           grads);
  }

  StackShape s_;
  Device device_;
  Plan how_;
  void* stream_;
  int64_t N_, width_;
  SavedLayout saved_;
};

}  // namespace lstm_fast::cuda
