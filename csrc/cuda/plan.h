// What is launched for a problem on a device, decided from their properties alone: no measuring at
// run time, no state.
#pragma once

#include <cstdint>

#include "../lstm.h"

namespace lstm_fast::cuda {

struct Device {
  int compute_capability;  // 10 * major + minor
  int multiprocessors;
};

// Of the current CUDA device.
Device current_device();

// Whether products go to tensor cores. float64 has none here; TF32 needs Ampere.
enum class Element { Float32, Float64, Half };
bool uses_tensor_cores(const Device& device, Element element, bool allow_tf32);

// How the steps of a layer are run.
//   Stepwise  a launch for each step (step.cuh): everything
//   OneBlock  all steps in one launch, weights in the registers of a block (one_block.cuh): small
//             layers without a projection, on tensor cores
enum class Regime { Stepwise, OneBlock };
Regime regime(const Device& device, const StackShape& shape, Element element, bool allow_tf32);
const char* name(Regime regime);

// Most units of a layer that OneBlock takes, in float32 (as TF32) and in halves. Backward at these
// sizes fills the registers of a multiprocessor.
constexpr int64_t kOneBlockUnitsTf32 = 96, kOneBlockUnitsHalf = 128;

// Whether a product with an output of [M, N], `count` times at once, is cut into large tiles: only
// if there are enough of them for all multiprocessors, as small ones read operands more often.
bool large_tiles(const Device& device, int64_t M, int64_t N, int64_t count);

// Parts into which the N rows of a weight gradient [M, columns] are cut, `count` gradients at once.
int64_t weight_grad_parts(const Device& device, int64_t M, int64_t columns, int64_t N,
                          int64_t count);

// Steps whose input is multiplied at once when nothing is kept of it for backward.
int64_t steps_per_chunk(const StackShape& shape, int64_t bytes_per_element);

}  // namespace lstm_fast::cuda
