// What is launched for a problem on a device, decided from their properties alone: no measuring at
// run time, no state.
#pragma once

#include <cstdint>

#include "../lstm.h"

namespace lstm_fast::cuda {

struct Device {
  int compute_capability;  // 10 * major + minor
  int multiprocessors;
  int64_t shared_bytes;  // most shared memory of a block
  int64_t l2_bytes;
  int cluster_blocks;  // most blocks of a cluster; 1 where there are none
};

// Of the current CUDA device.
Device current_device();

// Whether products go to tensor cores. float64 has none here; TF32 needs Ampere.
enum class Element { Float32, Float64, Half };
bool uses_tensor_cores(const Device& device, Element element, bool allow_tf32);

// How the steps of a layer are run.
//   Stepwise  a launch for each step (step.cuh): everything
//   OneBlock  all steps in one launch, the weights in one block: small layers, on tensor cores
//             (one_block.cuh) or exact (team.cuh)
//   Cluster   all steps in one launch, the weights in the blocks of a cluster (team.cuh)
//   Grid      the same in blocks of the whole grid
enum class Regime { Stepwise, OneBlock, Cluster, Grid };
const char* name(Regime regime);

// Most units of a layer that one_block.cuh takes, in float32 (as TF32) and in halves. Backward at
// these sizes fills the registers of a multiprocessor.
constexpr int64_t kOneBlockUnitsTf32 = 96, kOneBlockUnitsHalf = 128;

// A team of blocks holds the recurrent weights of a layer and owns rows of the batch, in groups
// that it takes in turn at each step. What its kernels (team.cuh) are made for:
constexpr int kTeamRows = 8;     // of a group at most
constexpr int kChunkBytes = 32;  // along k, of what is multiplied at a time
constexpr int kWarpRows = 32;    // rows of weights that a warp multiplies at a time

LSTM_FAST_INLINE constexpr int team_warps(int units) { return units > 64 ? 16 : 8; }
// Chunks of weights that a warp keeps in registers, as many as the compiler finds room for without
// spilling; further ones are in shared memory.
LSTM_FAST_INLINE constexpr int register_chunks(int units) { return units > 64 ? 6 : 16; }
// Warps that share the terms of a sum: forward, where a warp has the gates of 8 units, and
// backward, where it has 32 units. A block by itself has few of these.
LSTM_FAST_INLINE constexpr int forward_slices(int units) { return team_warps(units) * 8 / units; }
LSTM_FAST_INLINE constexpr int backward_slices(int units, bool alone) {
  return alone ? team_warps(units) * kWarpRows / units : 1;
}

// Where things lie in the shared memory of a block, in bytes from its begin.
struct TeamMemory {
  int64_t inboxes;      // from other blocks, each inbox_bytes
  int64_t inbox_bytes;  //
  int64_t sums;         // of the parts of a product, or its operand
  int64_t lengths;      // int [groups]: steps
  int64_t barriers;     // [groups][2] of 8 bytes
  int64_t bytes;        // in all; the weights lie at its begin
};

struct Team {
  int units;   // of a block
  int blocks;  // of a team
  int teams;   // of each direction
  int groups;  // of rows, that a team takes in turn
  int rows;    // of a group
  TeamMemory memory;
};

// Of one pass over the layers. `team` has no units unless the regime uses one.
struct Plan {
  Regime regime;
  Team team;
};
enum class Pass { Forward, Backward };
Plan plan_steps(const Device& device, const StackShape& shape, Element element, bool allow_tf32,
                Pass pass);

// Whether a product with an output of [M, N], `count` times at once, is cut into large tiles: only
// if there are enough of them for all multiprocessors, as small ones read operands more often.
bool large_tiles(const Device& device, int64_t M, int64_t N, int64_t count);

// Parts into which the N rows of a weight gradient [M, columns] are cut, `count` gradients at once.
int64_t weight_grad_parts(const Device& device, int64_t M, int64_t columns, int64_t N,
                          int64_t count);

// Steps whose input is multiplied at once, and which a resident regime runs in a launch, when
// nothing is kept of it for backward.
int64_t steps_per_chunk(const Device& device, const StackShape& shape, int64_t bytes_per_element,
                        Regime regime);

}  // namespace lstm_fast::cuda
