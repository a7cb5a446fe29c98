// The rules of the planner: which kernels pay for a stack, and which thread computes what of it.
// They know shapes, the number of threads and the size of their second caches alone. Thresholds
// were measured on a Xeon of the Sapphire Rapids generation with two cores, 48 KiB of first and 2
// MiB of second cache each, on two Zen 3 cores with 32 and 512 KiB, on two Zen 4 cores with 32 KiB
// and 1 MiB, and on two Zen 5 cores with 48 KiB and 1 MiB.
#pragma once

#include "row_slices.h"
#include "tasks.h"

namespace lstm_fast {

enum class Pass { Forward, Backward };

// Who computes what of a direction: teams take rows, slice after slice through all steps, and the
// members of a team share the units of a step (team.h) or the layers, some steps after others
// (pipeline.h).
struct Division {
  int64_t teams = 1, members = 1;
  bool shares_layers = false;
  int64_t stage_steps = 0;  // if so
  int64_t slices_per_team = 1;
  RowSlices slices;

  int64_t tasks() const { return teams * members; }
  // Whether a thread computes all of each step of a layer.
  bool keeps_steps_whole() const { return slices.count() == 1 && (members == 1 || shares_layers); }
  // Calls f(first row, last row) for the slices of a team.
  template <typename F>
  void for_each_slice(int64_t team, const F& f) const {
    for (int64_t i = team * slices_per_team; i < (team + 1) * slices_per_team; ++i) {
      f(slices.begin(i), slices.end(i));
    }
  }
};

// Threads that are used, of those there are.
Threads threads_of(const StackShape&, Pass, const Threads&);

// How all of them divide the work. The elements of the stack have element_bytes; `packs` tells of a
// forward pass whether it packs its weights.
Division divide(const StackShape&, Pass, const Threads&, int64_t element_bytes, bool packs);

// Whether those who use so many bytes of packed weights pack a copy each. To fetch what another
// core has written takes longer than packing does, as long as the second cache holds the copy.
bool packs_own_copies(int64_t users, int64_t bytes, const Threads&);

// Whether products can be made of so many parts on a unit.
inline bool unit_takes(Bf16Unit unit, int parts) {
  return unit == Bf16Unit::Matrix ? parts > 0 : unit == Bf16Unit::DotProducts && parts == 1;
}

// Whether a unit for bfloat16, which shape.parts > 0 allows, is faster than float32 arithmetic.
bool unit_pays(const StackShape&, Pass, const Division&);

// Whether what x adds to the gates is summed for several steps at once, before them. Another order
// of sums, so that it is not done without shape.parts.
bool sums_inputs_first(const StackShape&, const Division&, const Threads&, int64_t element_bytes);
// In layers with so many inputs.
int64_t min_summed_inputs(const StackShape&);

// Of a weight as it lies in memory, of one that is packed, and of a vector that multiplies them.
struct WeightBytes {
  int64_t plain, packed, vector;
};

// Up to so many rows, a single step suits dot products better than packed weights. These may be
// kept for further steps; of halves, they have to be widened first.
int64_t plain_step_rows(const StackShape&, bool keeps_packed, const WeightBytes&, const Threads&,
                        int64_t element_bytes);

// Whether each of several steps suits dot products, too: their weights are used too few times to
// win back packing, or are halves, which packed as float32 would be twice as much to read.
bool suits_plain_steps(const StackShape&, bool keeps_packed, const WeightBytes&, const Threads&,
                       int64_t element_bytes);

// Up to so many rows, a single step multiplies bfloat16 weights as they are where the unit is dot
// products.
int64_t dot_step_rows(const StackShape&, Pass, const Threads&);

// The shape of the layer with most inputs.
LayerShape widest_layer(const StackShape&);

}  // namespace lstm_fast
