// The steps of a layer in one launch, where teams of blocks hold the recurrent weights: block r of
// a team has the rows of weight_hh of the gates of its units [r * kUnits, (r + 1) * kUnits), in
// registers and shared memory, and computes these units through all steps for the rows of the batch
// that belong to the team. Without a projection. Both kernels leave it to a Way (exchange.cuh) how
// values get from block to block:
//
//   forward    h of each unit goes to all blocks, gates = ... + weights h
//   backward   a block multiplies the gradients of its own gates, and what that adds to the
//              gradient of h of a unit goes to the block that has this unit
//
// A team takes its groups of rows in turn at each step, so that the exchange of one is under way
// while another one is computed. The first groups of all teams come first in the batch, then their
// second ones, so that long sequences of a packed batch are spread evenly. Visit s of a group is
// the s-th step that has any of its rows, in the order of the direction; of these a launch forward
// has those of its chunk.
#pragma once

#include "exchange.cuh"
#include "layer.cuh"
#include "resident.cuh"

namespace lstm_fast::cuda {

template <typename T>
struct TeamsForward {
  LayersForward<T> layers;
  Exchange exchange;
};

template <typename T>
struct TeamsBackward {
  LayersBackward<T> layers;
  Exchange exchange;
  Wide<T>* grad_cells;  // [D][B, H], the running gradients
};

// The first row of each group of a team, and how many steps have it.
class Groups {
 public:
  __device__ __forceinline__ Groups(const Steps& steps, const Team& team, int index)
      : team_(team),
        index_(index),
        lengths_(reinterpret_cast<int*>(shared_memory() + team.memory.lengths)) {
    for (int group = threadIdx.x; group < team.groups; group += blockDim.x) {
      int64_t end = first_row(group) < steps.B ? steps.T : 0, begin = 0;
      while (begin < end) {
        const int64_t middle = (begin + end) / 2;
        if (steps.rows(middle) > first_row(group)) {
          begin = middle + 1;
        } else {
          end = middle;
        }
      }
      lengths_[group] = static_cast<int>(end);
    }
    __syncthreads();
  }
  __device__ __forceinline__ int64_t first_row(int group) const {
    return (static_cast<int64_t>(group) * team_.teams + index_) * team_.rows;
  }
  __device__ __forceinline__ int length(int group) const { return lengths_[group]; }

 private:
  const Team& team_;
  int index_;
  int* lengths_;
};

// What a thread has of a group: two neighbouring units, counted in the block, of one row. There may
// be more threads than these, and fewer units or rows.
template <int kUnits>
struct Cells {
  static constexpr int kThreads = kUnits / 2 * kTeamRows;
  static __device__ __forceinline__ int row() { return threadIdx.x % kTeamRows; }
  static __device__ __forceinline__ int unit() { return threadIdx.x / kTeamRows * 2; }
};

// Where two neighbours along k lie in an operand, in bytes.
template <typename L>
__device__ __forceinline__ int64_t pair_at(int k, int row) {
  return (k / L::kAlong * L::kChunk + row * L::kAlong + k % L::kAlong) *
         static_cast<int64_t>(sizeof(typename L::S));
}

// Whether the device that is compiled for has what a kernel needs.
template <Unit kUnit, typename Way>
__device__ constexpr bool runs_here() {
  if (Way::kTogether == Together::Cluster) return kHopper;
  return kAmpere || (kUnit == Unit::Exact && Way::kTogether == Together::Alone);
}

template <typename T, Unit kUnit, int kUnits, typename Way>
__device__ __forceinline__ void team_forward(const TeamsForward<T>& teams) {
  using L = Lane<T, kUnit>;
  using Store = Stored<T, kUnit>;
  using A = typename L::A;
  using S = typename L::S;
  using Mine = Cells<kUnits>;
  constexpr int kSlices = forward_slices(kUnits);
  const Team& team = teams.exchange.team;
  const LayersForward<T>& layers = teams.layers;
  const LayerForward<T>& p = layers.of[blockIdx.z];
  const Steps& steps = layers.steps;
  const bool reverse = blockIdx.z == 1;
  const int H = layers.H, warp = threadIdx.x / 32, slice = warp % kSlices;

  Way way(teams.exchange, H);
  const int unit0 = way.rank() * kUnits;
  const Groups groups(steps, team, way.team());
  unsigned char* const shared = shared_memory();
  const int chunks = (H + L::kAlong - 1) / L::kAlong;

  Resident<T, kUnit, register_chunks(kUnits), kAllItems> weights;
  weights.load((chunks - slice + kSlices - 1) / kSlices, shared, shared + team.memory.sums,
               [&](int item, int r, int k) {
                 const int unit = unit0 + warp / kSlices * 8 + r % 8, gate = r / 8;
                 const int from = (item * kSlices + slice) * L::kAlong + k;
                 return unit < H && from < H
                            ? widen(p.weight_hh[(static_cast<int64_t>(gate) * H + unit) * H + from])
                            : A(0);
               });
  __syncthreads();

  const int row = Mine::row();
  const bool mine = static_cast<int>(threadIdx.x) < Mine::kThreads && row < team.rows;
  const auto post = [&](int group, int exchange, A h0, A h1) {
    const int unit = unit0 + Mine::unit();
    if (mine && unit < chunks * L::kAlong)
      way.post_all(group, exchange, pair_at<L>(unit, row), Pair<S>{Store::of(h0), Store::of(h1)});
    way.posted(group, exchange);
  };
  const auto begin = [&](int64_t b, int unit) {
    return p.h0 && mine && b < steps.B && unit < H ? widen(p.h0[b * H + unit]) : A(0);
  };

  // Of the visits of a group, the first in this launch, and how many are; the latter do not grow
  // from group to group.
  const auto before_group = [&](int group) {
    return reverse ? static_cast<int>(steps.T) - groups.length(group) : 0;
  };
  const auto first_visit = [&](int group) {
    const int visit = layers.first - before_group(group);
    return visit > 0 ? visit : 0;
  };
  const auto visits = [&](int group) {
    const int end = layers.last - before_group(group), length = groups.length(group);
    return (end < length ? end : length) - first_visit(group);
  };

  for (int group = 0; group < team.groups; ++group) {
    if (visits(group) <= 0) break;
    const int64_t b = groups.first_row(group) + row;
    const int visit = first_visit(group), unit = unit0 + Mine::unit();
    const int64_t t = reverse ? groups.length(group) - 1 - visit : visit;
    const bool goes_on = mine && b < steps.carried(t, reverse);
    A h[2];
    for (int j = 0; j < 2; ++j) {
      h[j] = !goes_on || unit + j >= H
                 ? begin(b, unit + j)
                 : p.hidden[(steps.offset(Steps::previous(t, reverse)) + b) * layers.hidden_stride +
                            unit + j];
    }
    post(group, 0, h[0], h[1]);
  }
  int copy = 0;
  for (int exchange = 0; exchange < visits(0); ++exchange) {
    for (int group = 0; group < team.groups; ++group) {
      const int count = visits(group);
      if (exchange >= count) break;
      const int visit = first_visit(group) + exchange;
      const int64_t t = reverse ? groups.length(group) - 1 - visit : visit;
      const int64_t b = groups.first_row(group) + row, n = steps.offset(t) + b;
      const bool alive = mine && b < steps.rows(t);
      // On their way while others are awaited.
      Gates<A> gates[2] = {};
      A c[2] = {}, h[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int unit = unit0 + Mine::unit() + j;
        // Rows that begin later are h0 still; what becomes of those that have ended is no matter.
        h[j] = alive ? A(0) : begin(b, unit);
        if (!alive || unit >= H) continue;
        gates[j] = load_gates(p.gates, n, H, unit);
        if (b < steps.carried(t, reverse)) {
          c[j] = p.cells ? p.cells[(steps.offset(Steps::previous(t, reverse)) + b) * H + unit]
                         : p.running[b * H + unit];
        } else if (p.c0) {
          c[j] = widen(p.c0[b * H + unit]);
        }
      }
      const S* operand = reinterpret_cast<const S*>(way.await(group, exchange));
      // [warp][kWarpRows][kTeamRows]
      A* sums = reinterpret_cast<A*>(shared + team.memory.sums) +
                copy * team_warps(kUnits) * kWarpRows * kTeamRows;
      copy ^= 1;
      weights.multiply(
          team.rows, [&](int item) { return operand + (item * kSlices + slice) * L::kChunk; },
          [&](int, const A(&of_lane)[kTeamRows]) {
#pragma unroll
            for (int v = 0; v < kTeamRows; ++v)
              sums[(warp * kWarpRows + L::sum_row(v)) * kTeamRows + L::sum_column(v)] = of_lane[v];
          });
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int in_block = Mine::unit() + j, unit = unit0 + in_block;
        if (!alive || unit >= H) continue;
        const A* of_unit =
            sums + (in_block / 8 * kSlices * kWarpRows + in_block % 8) * kTeamRows + row;
        const auto sum = [&](int gate, A from_input) {
#pragma unroll
          for (int s = 0; s < kSlices; ++s)
            from_input += of_unit[(s * kWarpRows + gate * 8) * kTeamRows];
          return from_input;
        };
        gates[j] = activate(Gates<A>{sum(0, gates[j].i), sum(1, gates[j].f), sum(2, gates[j].g),
                                     sum(3, gates[j].o)});
        c[j] = next_cell(gates[j], c[j]);
        h[j] = hidden(gates[j], c[j]);
        store_cell(layers, p, n, unit, gates[j], c[j], h[j]);
        if (!p.cells) p.running[b * H + unit] = c[j];
        if (b >= steps.carried(t, !reverse)) {
          p.h_n[b * H + unit] = narrow<T>(h[j]);
          p.c_n[b * H + unit] = narrow<T>(c[j]);
        }
      }
      if (exchange + 1 < count) post(group, exchange + 1, h[0], h[1]);
    }
  }
  way.leave();
}

// Grid: blocks of all teams, 1, directions.
template <typename T, Unit kUnit, int kUnits, typename Way>
__global__ void __launch_bounds__(team_warps(kUnits) * 32, 1)
    team_forward_kernel(const __grid_constant__ TeamsForward<T> teams) {
  if constexpr (runs_here<kUnit, Way>()) {
    team_forward<T, kUnit, kUnits, Way>(teams);
  } else {
    left_out();
  }
}

template <typename T, Unit kUnit, int kUnits, typename Way>
__device__ __forceinline__ void team_backward(const TeamsBackward<T>& teams) {
  using L = Lane<T, kUnit>;
  using Store = Stored<T, kUnit>;
  using A = typename L::A;
  using S = typename L::S;
  using Mine = Cells<kUnits>;
  constexpr int kSlices = backward_slices(kUnits, Way::kTogether == Together::Alone);
  constexpr int kChunks = 4 * kUnits / L::kAlong;  // of the operand: gates [4][kUnits] of 8 rows
  constexpr int kPerSum = kChunks / kSlices;
  constexpr int kParts = team_warps(kUnits) / kSlices;  // of the rows of weights, to warps
  const Team& team = teams.exchange.team;
  const LayersBackward<T>& layers = teams.layers;
  const LayerBackward<T>& p = layers.of[blockIdx.z];
  const Steps& steps = layers.steps;
  const bool reverse = blockIdx.z == 1;
  const int H = layers.H, warp = threadIdx.x / 32, slice = warp % kSlices, part = warp / kSlices;

  Way way(teams.exchange, H);
  const int unit0 = way.rank() * kUnits;
  const Groups groups(steps, team, way.team());
  unsigned char* const shared = shared_memory();

  // The weights' rows are units now: those of part, part + kParts, ... in 32s.
  const int all = (H + kWarpRows - 1) / kWarpRows;
  Resident<T, kUnit, register_chunks(kUnits), kPerSum> weights;
  weights.load(part < all ? (all - part + kParts - 1) / kParts * kPerSum : 0, shared,
               shared + team.memory.sums, [&](int item, int r, int k) {
                 const int to = (part + item / kPerSum * kParts) * kWarpRows + r;
                 const int from = (slice * kPerSum + item % kPerSum) * L::kAlong + k;
                 const int gate = from / kUnits, unit = unit0 + from % kUnits;
                 return to < H && unit < H
                            ? widen(p.weight_hh[(static_cast<int64_t>(gate) * H + unit) * H + to])
                            : A(0);
               });
  __syncthreads();

  const int row = Mine::row(), sources = team.blocks * kSlices;
  const bool mine = static_cast<int>(threadIdx.x) < Mine::kThreads && row < team.rows;
  // The gradient of h that has come back from the step visited before, or of h0 after the last one.
  const auto await = [&](int group, int visit, A(&dh)[2]) {
    const A* inbox = reinterpret_cast<const A*>(way.await(group, visit));
    dh[0] = dh[1] = 0;
    if (!mine) return;
    // [sources][kUnits][kTeamRows]
    const A* from = inbox + Mine::unit() * kTeamRows + row;
    const bool both = unit0 + Mine::unit() + 1 < H;
    if (unit0 + Mine::unit() >= H) return;
#pragma unroll 4
    for (int source = 0; source < sources; ++source, from += kUnits * kTeamRows) {
      dh[0] += from[0];
      if (both) dh[1] += from[kTeamRows];
    }
  };

  int copy = 0;
  const int after = p.grad_h0 ? 1 : 0;
  for (int visit = 0; visit < groups.length(0) + after; ++visit) {
    for (int group = 0; group < team.groups; ++group) {
      const int length = groups.length(group);
      if (length == 0 || visit >= length + after) break;
      const auto step = [&](int v) { return reverse ? v : length - 1 - v; };
      const int64_t t = step(visit), b = groups.first_row(group) + row;
      const bool alive = mine && visit < length && b < steps.rows(t);
      FromForward<A> from[2] = {};
      A dc[2] = {}, dm[2] = {};
      const auto last = [&] { return b >= steps.carried(t, !reverse); };
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int unit = unit0 + Mine::unit() + j;
        if (!alive || unit >= H) continue;
        from[j] = load_cell(layers, p, t, reverse, b, unit);
        if (!last()) {
          dc[j] = teams.grad_cells[(blockIdx.z * steps.B + b) * H + unit];
        } else if (p.grad_c_n) {
          dc[j] = widen(p.grad_c_n[b * H + unit]);
        }
      }
      if (visit > 0) {
        await(group, visit - 1, dm);
        const int64_t before = step(visit - 1);
        if (p.grad_h0 && mine && b < steps.rows(before) && b >= steps.carried(before, reverse)) {
          for (int j = 0; j < 2; ++j) {
            const int unit = unit0 + Mine::unit() + j;
            if (unit < H) p.grad_h0[b * H + unit] = narrow<T>(dm[j]);
          }
        }
      }
      if (visit == length) continue;
      // [kChunks][kTeamRows][kAlong]
      unsigned char* operand = shared + team.memory.sums + copy * kChunks * L::kChunk * sizeof(S);
      copy ^= 1;
      Gates<A> da[2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int unit = unit0 + Mine::unit() + j;
        if (!alive || unit >= H) continue;
        dm[j] += from[j].grad_y;
        if (last() && p.grad_h_n) dm[j] += widen(p.grad_h_n[b * H + unit]);
        da[j] = gate_gradients(from[j].gates, from[j].c, from[j].c_prev, dm[j], dc[j]);
        store_gates(p.grad_gates, steps.offset(t) + b, H, unit, da[j]);
        teams.grad_cells[(blockIdx.z * steps.B + b) * H + unit] = dc[j];
        if (b >= steps.carried(t, reverse) && p.grad_c0) p.grad_c0[b * H + unit] = narrow<T>(dc[j]);
      }
      if (static_cast<int>(threadIdx.x) < Mine::kThreads) {
        const A pairs[4][2] = {
            {da[0].i, da[1].i}, {da[0].f, da[1].f}, {da[0].g, da[1].g}, {da[0].o, da[1].o}};
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          *reinterpret_cast<Pair<S>*>(operand + pair_at<L>(gate * kUnits + Mine::unit(), row)) = {
              Store::of(pairs[gate][0]), Store::of(pairs[gate][1])};
        }
      }
      __syncthreads();
      if (visit + 1 == length + after) continue;  // nobody asks
      const S* mine_of_all = reinterpret_cast<const S*>(operand) + slice * kPerSum * L::kChunk;
      weights.multiply(
          team.rows, [&](int item) { return mine_of_all + item % kPerSum * L::kChunk; },
          [&](int index, const A(&sums)[kTeamRows]) {
            const int source = way.rank() * kSlices + slice;
#pragma unroll
            for (int v = 0; v < kTeamRows; v += 2) {
              const int to = (part + index * kParts) * kWarpRows + L::sum_row(v);
              const int column = L::sum_column(v);
              if (to >= H || column >= team.rows) continue;
              const int64_t at = ((source * kUnits + to % kUnits) * kTeamRows + column) *
                                 static_cast<int64_t>(sizeof(A));
              way.post(to / kUnits, group, visit, at, Pair<A>{sums[v], sums[v + 1]});
            }
          });
      way.posted(group, visit);
    }
  }
  way.leave();
}

// Grid: blocks of all teams, 1, directions.
template <typename T, Unit kUnit, int kUnits, typename Way>
__global__ void __launch_bounds__(team_warps(kUnits) * 32, 1)
    team_backward_kernel(const __grid_constant__ TeamsBackward<T> teams) {
  if constexpr (runs_here<kUnit, Way>()) {
    team_backward<T, kUnit, kUnits, Way>(teams);
  } else {
    left_out();
  }
}

}  // namespace lstm_fast::cuda
