#include "plan.h"

#include <algorithm>

namespace lstm_fast::cuda {
namespace {

constexpr int64_t kLargeTile = 64;
// Rows of a part of a weight gradient at least: with fewer, writing and adding up parts would cost
// more than the products.
constexpr int64_t kRowsPerPart = 256;
// Rows of an input product at least: with fewer, the weights would be read too often.
constexpr int64_t kRowsPerChunk = 256;
// What the choice between Grid and Stepwise rests on, in nanoseconds and bytes. ESTIMATES for A100
// and H100, from what is published of them; nothing here has been measured. `make gpu` measures a
// launch that waits for the one before (`launch` in its JSON) and an exchange by flags in the L2
// cache
// (`grid_exchange`): put these here. The others: what a multiprocessor reads of the L2 cache, its
// share of what all read of memory (`bandwidth`), and what it reads of its shared memory.
constexpr double kLaunchNs = 3000, kExchangeNs = 1500;
constexpr double kL2BytesPerNs = 40, kMemoryBytesPerNs = 20, kSharedBytesPerNs = 200;
// Multiprocessors of a part of the device that a cluster cannot leave, at least.
constexpr int64_t kTogetherForClusters = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A problem as teams see it.
struct Layer {
  const Device& device;
  const StackShape& shape;
  Pass pass;
  bool tensor;        // products on tensor cores
  int64_t read_size;  // bytes of an element that products read
  int64_t wide_size;  // of an element of a sum

  int64_t chunks(int64_t elements) const { return ceil_div(elements * read_size, kChunkBytes); }
  int64_t blocks(int units) const { return ceil_div(shape.H, units); }
};

// Bytes of shared memory for weights, beyond those in registers.
int64_t weight_bytes(const Layer& layer, int units, bool alone) {
  const int warps = team_warps(units);
  int64_t chunks = 0;  // of a warp
  if (layer.pass == Pass::Forward) {
    chunks = ceil_div(layer.chunks(layer.shape.H), forward_slices(units));
  } else {
    const int slices = backward_slices(units, alone);
    chunks = ceil_div(ceil_div(layer.shape.H, kWarpRows), warps / slices) *
             (layer.chunks(4 * units) / slices);
  }
  return std::max<int64_t>(0, chunks - register_chunks(units)) * warps * kWarpRows * kChunkBytes;
}

TeamMemory team_memory(const Layer& layer, Regime regime, int units, int groups) {
  const bool alone = regime == Regime::OneBlock, forward = layer.pass == Pass::Forward;
  const int64_t threads = team_warps(units) * 32;
  int64_t used = weight_bytes(layer, units, alone);
  const auto take = [&used](int64_t bytes) {
    const int64_t at = used;
    used += ceil_div(bytes, 128) * 128;
    return at;
  };
  TeamMemory memory{};
  // Forward, h of all units; backward, a part of the gradient of h from each who has one.
  memory.inbox_bytes = forward ? layer.chunks(layer.shape.H) * kChunkBytes * kTeamRows
                               : layer.blocks(units) * backward_slices(units, alone) * units *
                                     kTeamRows * layer.wide_size;
  // A grid's inboxes are in the memory of the device; here is a copy of the one that is read.
  memory.inboxes = take(memory.inbox_bytes * (regime == Regime::Grid ? 1 : 2 * groups));
  // Two copies, one of which is written while the other one may still be read.
  const int64_t operands = 4 * units * kTeamRows * layer.read_size;
  memory.sums = take(std::max(2 * (forward ? threads * kTeamRows * layer.wide_size : operands),
                              threads * 2 * kChunkBytes));  // on the way of weights to registers
  memory.lengths = take(groups * sizeof(int));
  memory.barriers = take(groups * 2 * sizeof(int64_t));
  memory.bytes = used;
  return memory;
}

// The team whose blocks have so many units, if it fits the device; one without units otherwise.
Team team(const Layer& layer, Regime regime, int units) {
  const int64_t B = layer.shape.steps.B, D = layer.shape.D;
  const int64_t blocks = layer.blocks(units);
  // Teams of a direction that run at the same time.
  const int64_t SMs = layer.device.multiprocessors;
  const int64_t part = std::min(SMs, kTogetherForClusters);
  const int64_t most =
      (regime == Regime::Cluster ? SMs / part * (part / blocks) : SMs / blocks) / D;
  if (regime == Regime::Grid && most == 0) return {};
  Team team{units, static_cast<int>(blocks), 1, 1, kTeamRows, {}};
  // Tensor cores take 8 rows in the time of one; otherwise rows spread over all there is.
  if (!layer.tensor)
    team.rows =
        static_cast<int>(std::clamp<int64_t>(ceil_div(B, std::max<int64_t>(1, most)), 1, 8));
  const int64_t groups = std::max<int64_t>(1, ceil_div(B, team.rows));
  // Teams that work at the same time; those of a cluster or block may also wait for their turn.
  team.teams = static_cast<int>(std::clamp<int64_t>(most, 1, groups));
  team.groups = static_cast<int>(ceil_div(groups, team.teams));
  const auto fits = [&] {
    team.memory = team_memory(layer, regime, units, team.groups);
    return team.memory.bytes <= layer.device.shared_bytes;
  };
  while (!fits()) {
    if (regime == Regime::Grid || team.groups == 1) return {};
    --team.groups;
  }
  team.teams = static_cast<int>(ceil_div(groups, team.groups));
  return team;
}

// Nanoseconds of a step of all rows in both directions: latency, and what is read of the L2 cache
// and of shared memory on the way to the products, which themselves are the same everywhere.
double grid_step(const Layer& layer, const Team& team) {
  const double H = layer.shape.H, rows = layer.shape.D * layer.shape.steps.B;
  const double from_others = team.blocks * rows * H *
                             (layer.pass == Pass::Forward ? layer.read_size : 2 * layer.wide_size);
  const double weights = 4 * H * team.units * layer.read_size;
  return kExchangeNs + from_others / (layer.device.multiprocessors * kL2BytesPerNs) +
         team.groups * weights / kSharedBytesPerNs;
}

double single_step(const Layer& layer) {
  const StackShape& s = layer.shape;
  const int64_t SMs = layer.device.multiprocessors, B = s.steps.B, D = s.D;
  const double weights = static_cast<double>(D * 4 * s.H * s.H * layer.read_size);
  const double rate = weights <= layer.device.l2_bytes ? kL2BytesPerNs : kMemoryBytesPerNs;
  // Of a tile (tile.cuh), for each term: what its warps read, and what was written there for them.
  const bool large = large_tiles(layer.device, B, 4 * s.H, D);
  const int64_t terms = s.H * layer.read_size;
  const double tile = (large ? 4 * (32 + 32) + 64 + 64 : 4 * (16 + 8) + 16 + 32) * terms;
  const int64_t tiles =
      large ? ceil_div(B, 64) * ceil_div(4 * s.H, 64) : ceil_div(B, 16) * ceil_div(4 * s.H, 32);
  return kLaunchNs + weights * ceil_div(B, kLargeTile) / (SMs * rate) +
         ceil_div(tiles * D, SMs) * tile / kSharedBytesPerNs;
}

}  // namespace

bool uses_tensor_cores(const Device& device, Element element, bool allow_tf32) {
  switch (element) {
    case Element::Half:
      return true;
    case Element::Float32:
      return allow_tf32 && device.compute_capability >= 80;
    case Element::Float64:
      return false;
  }
  return false;
}

Plan plan_steps(const Device& device, const StackShape& s, Element element, bool allow_tf32,
                Pass pass) {
  const Plan stepwise{Regime::Stepwise, {}};
  // A single step has nothing to keep weights for.
  if (s.projected || s.steps.T <= 1) return stepwise;
  const bool half = element == Element::Half, wide = element == Element::Float64;
  const bool ampere = device.compute_capability >= 80;
  const Layer layer{
      device,      s, pass, uses_tensor_cores(device, element, allow_tf32), half ? 2 : wide ? 8 : 4,
      wide ? 8 : 4};
  // Before Ampere, tensor cores take half the rows of weights at a time, and bfloat16 not at all.
  if (layer.tensor && !ampere) return stepwise;
  if (layer.tensor) {
    if (s.H <= (half ? kOneBlockUnitsHalf : kOneBlockUnitsTf32)) return {Regime::OneBlock, {}};
  } else {
    for (const int units : {64, 128}) {
      // float64 has no kernel for 128.
      if (s.H > units || (wide && units > 64)) continue;
      if (const Team t = team(layer, Regime::OneBlock, units); t.units)
        return {Regime::OneBlock, t};
    }
  }
  if (wide) return stepwise;
  if (device.cluster_blocks > 1 && layer.blocks(64) <= device.cluster_blocks) {
    if (const Team t = team(layer, Regime::Cluster, 64); t.units) return {Regime::Cluster, t};
  }
  if (ampere) {
    for (const int units : {32, 16}) {
      const Team t = team(layer, Regime::Grid, units);
      if (t.units && grid_step(layer, t) <= single_step(layer)) return {Regime::Grid, t};
    }
  }
  return stepwise;
}

const char* name(Regime regime) {
  switch (regime) {
    case Regime::OneBlock:
      return "one-block";
    case Regime::Cluster:
      return "cluster";
    case Regime::Grid:
      return "grid-resident";
    default:
      return "stepwise";
  }
}

bool large_tiles(const Device& device, int64_t M, int64_t N, int64_t count) {
  return M >= kLargeTile &&
         ceil_div(M, kLargeTile) * ceil_div(N, kLargeTile) * count >= device.multiprocessors;
}

int64_t weight_grad_parts(const Device& device, int64_t M, int64_t columns, int64_t N,
                          int64_t count) {
  const int64_t tiles = ceil_div(M, kLargeTile) * ceil_div(columns, kLargeTile) * count;
  // Two blocks for each multiprocessor hide the latency of each other's loads.
  const int64_t wanted = ceil_div(2 * device.multiprocessors, tiles);
  return std::max<int64_t>(1, std::min(wanted, N / kRowsPerPart));
}

int64_t steps_per_chunk(const Device& device, const StackShape& s, int64_t bytes_per_element,
                        Regime regime) {
  const int64_t step = std::max<int64_t>(1, s.D * s.steps.B * 4 * s.H * bytes_per_element);
  // Single steps mostly find their input in the L2 cache. A launch that loads the weights first is
  // to have more steps, which read ahead of their use.
  const int64_t bytes = regime == Regime::Stepwise ? device.l2_bytes / 2 : 2 * device.l2_bytes;
  const int64_t least = ceil_div(kRowsPerChunk, std::max<int64_t>(1, s.steps.B));
  return std::clamp<int64_t>(std::max(bytes / step, least), 1, std::max<int64_t>(1, s.steps.T));
}

}  // namespace lstm_fast::cuda
