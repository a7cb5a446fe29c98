#include "plan.h"

#include <algorithm>

namespace lstm_fast::cuda {
namespace {

constexpr int64_t kLargeTile = 64;
// Rows of a part of a weight gradient at least: with fewer, writing and adding up parts would cost
// more than the products.
constexpr int64_t kRowsPerPart = 256;
// Gates of an inference that lie in memory at a time. The L2 cache of the devices meant here has 40
// to 60 MB, so that steps mostly find their input there.
constexpr int64_t kChunkBytes = 32 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

Regime regime(const Device& device, const StackShape& s, Element element, bool allow_tf32) {
  const int64_t most = element == Element::Half ? kOneBlockUnitsHalf : kOneBlockUnitsTf32;
  const bool fits = uses_tensor_cores(device, element, allow_tf32) && !s.projected && s.H <= most;
  // A single step has nothing to keep weights for. Before Ampere, tensor cores take half the rows
  // of weights at a time, and bfloat16 not at all.
  return fits && s.steps.T > 1 && device.compute_capability >= 80 ? Regime::OneBlock
                                                                  : Regime::Stepwise;
}

const char* name(Regime regime) { return regime == Regime::OneBlock ? "one-block" : "stepwise"; }

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

int64_t steps_per_chunk(const StackShape& s, int64_t bytes_per_element) {
  const int64_t step = std::max<int64_t>(1, s.D * s.steps.B * 4 * s.H * bytes_per_element);
  return std::clamp<int64_t>(kChunkBytes / step, 1, s.steps.T);
}

}  // namespace lstm_fast::cuda
