// What is launched for a problem on a device, decided from their properties alone: no measuring at
// run time, no state.
#pragma once

#include <cstdint>

#include "../lstm.h"

namespace lstm_fast::cuda {

struct Device {
  int compute_capability;     // 10 * major + minor
  int multiprocessors;
  int64_t shared_bytes;       // that a block can ask for
};

// Of the current CUDA device.
Device current_device();

// Whether products go to tensor cores. float64 has none here; TF32 needs Ampere.
enum class Element { Float32, Float64, Half };
bool uses_tensor_cores(const Device& device, Element element, bool allow_tf32);

// Whether a product with an output of [M, N], `count` times at once, is cut into large tiles: only
// if there are enough of them for all multiprocessors, as small ones read operands more often.
bool large_tiles(const Device& device, int64_t M, int64_t N, int64_t count);

// Parts into which the N rows of a weight gradient [M, columns] are cut, `count` gradients at once.
int64_t weight_grad_parts(const Device& device, int64_t M, int64_t columns, int64_t N,
                          int64_t count);

// Steps whose input is multiplied at once when nothing is kept of it for backward.
int64_t steps_per_chunk(const StackShape& shape, int64_t bytes_per_element);

}  // namespace lstm_fast::cuda
