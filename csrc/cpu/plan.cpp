#include "plan.h"

#include <algorithm>

#include "kernels.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace lstm_fast {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Recurrent and input weights of all layers.
int64_t stack_weights(const StackShape& s) {
  int64_t weights = 0;
  for (int64_t l = 0; l < s.L; ++l) weights += s.D * 4 * s.H * (s.input_size(l) + s.P);
  return weights;
}

// The product of a step: rows times [terms, columns].
struct StepProduct {
  int64_t terms, columns;
  int64_t shares;  // that the columns can be cut into

  StepProduct(const StackShape& s, Pass pass) {
    const bool forward = pass == Pass::Forward;
    terms = forward ? s.P + widest_layer(s).I : 4 * s.H;
    columns = forward ? 4 * s.H : s.P;
    shares = ceil_div(columns, 64);
  }
};

// Weights of more bytes leave the second cache.
int64_t cached_bytes(const Threads& threads) { return threads.second_cache / 4 * 3; }
constexpr int64_t kPartBytes = 2;

// Of the weights of a step of a layer.
int64_t step_bytes(const StackShape& s, int64_t element_bytes) {
  const StepProduct product(s, Pass::Forward);
  return product.terms * product.columns * element_bytes;
}

// Whether all weights, widened, are far too many for the second cache.
bool far_from_cached(const StackShape& s, const Threads& threads) {
  return stack_weights(s) * int64_t{sizeof(float)} > 4 * threads.second_cache;
}

// --- The matrix unit. A tile of 16 rows takes it as long for each product of parts as the vector
// units take for a row; it takes terms by blocks of 32. Dot products of bfloat16, measured on a Zen
// 4 core, take half as long as float32 products for any number of rows, but of one part alone.

constexpr int64_t kUnitRows[] = {0, 2, 4, 8};  // of 1, 2 and 3 parts
constexpr int64_t kMinUnitTerms = 64, kMinUnitHidden = 16;
constexpr int64_t kPairOfRowTiles = 32;
// Cores that have the unit have 2 MiB of second cache.
constexpr int64_t kUnitCachedBytes = 3 << 19;

bool enough_terms(const StackShape& s, Pass pass, int64_t rows) {
  const int64_t inputs = s.L > 1 ? std::min(s.I, s.D * s.P) : s.I;
  if (rows >= kUnitRows[s.parts] && s.H >= kMinUnitHidden && s.P + inputs >= kMinUnitTerms) {
    return true;
  }
  // Fewer are hidden behind the gates in the forward pass, if no lane of the tiles is idle and so
  // many rows are multiplied in all that packing does not count.
  constexpr int64_t few_terms = 32, many_rows = 1024, columns = 16;
  return pass == Pass::Forward && rows >= kPairOfRowTiles && s.steps.total() >= many_rows &&
         s.H % columns == 0 && s.P >= few_terms;
}

// Weights in parts that leave the cache pay when they serve enough rows each time: 32 in forward,
// 16 in backward, most of which is products over all steps.
bool unit_pays(const StackShape& s, Pass pass, int64_t rows, int64_t members) {
  if (!unit_takes(s.unit, s.parts)) return false;
  const bool plain = pass == Pass::Backward && s.steps.total() <= kFewRows;
  if (s.unit == Bf16Unit::DotProducts) {
    // Of several steps, so that the bits of a row do not depend on the batch.
    return s.H >= kMinUnitHidden && !(plain && s.steps.T == 1);
  }
  if (plain || !enough_terms(s, pass, rows)) return false;
  const int64_t bytes = 4 * s.H * (s.P + widest_layer(s).I) * s.parts * kPartBytes;
  return bytes <= kUnitCachedBytes * members ||
         rows >= (pass == Pass::Forward ? kPairOfRowTiles : kPairOfRowTiles / 2);
}

// --- Steps that multiply weights as they lie, where these are far too many for the second cache.

// Rows that a single step has at most.
constexpr int64_t kFarStepRows = 64;

struct FarWeights {
  int64_t packing;  // takes as long as so many readings of what it reads and writes
  int64_t rows;     // that several steps have in all
};

// Measured with vectors of 64 bytes on a Zen 4 and a Zen 5 core, with shorter ones on a Zen 3 core.
FarWeights far_weights(const WeightBytes& bytes, int64_t element_bytes) {
  const bool halves = bytes.plain < element_bytes;
  if (bytes.vector >= 64) return {1, halves ? 96 : 24};
  return {halves ? 1 : 2, 64};
}

// --- Teams.

// What packing so many bytes comes to, or fetching them from the thread that did, in cycles of each
// step. Measured on two Zen 5 cores, in forward; backward did not gain by counting it.
int64_t packing_cycles(const StackShape& s, int64_t bytes) {
  constexpr int64_t bytes_per_cycle = 8;
  return bytes < kBytesPerThread ? 0 : bytes / (bytes_per_cycle * std::max<int64_t>(1, s.steps.T));
}

// Cycles that a member of a team of so many takes for the product of a step, its part of packing,
// if the call packs, and waiting.
int64_t step_cycles(const StackShape& s, Pass pass, int64_t rows, int64_t members,
                    const Threads& threads, int64_t element_bytes, bool packs) {
  const StepProduct product(s, pass);
  const bool unit = unit_pays(s, pass, rows, members);
  // Vectors read each weight once for a tile of rows, which takes as long as multiplying three.
  const bool matrix_unit = unit && s.unit == Bf16Unit::Matrix;
  const int64_t row_products = matrix_unit ? 8 * ceil_div(rows, 16)
                               : unit      ? ceil_div(std::max<int64_t>(rows, 3), 2)
                                           : std::max<int64_t>(rows, 3);
  const int64_t columns = ceil_div(product.shares, members) * product.columns / product.shares;
  const int64_t bytes = product.terms * columns * (unit ? s.parts * kPartBytes : element_bytes);
  int64_t cycles = row_products * product.terms * columns * element_bytes / 128;
  constexpr int64_t third_cache_bytes_per_cycle = 7;
  if (bytes > cached_bytes(threads)) cycles = std::max(cycles, bytes / third_cache_bytes_per_cycle);
  if (packs) cycles += packing_cycles(s, bytes * members) / members;
  // What the other members have computed comes from their caches.
  constexpr int64_t barrier = 1200;
  return cycles + (members > 1 ? barrier + rows * product.terms : 0);
}

// --- Layers one behind the other.

// What a step of a layer of one row, which takes a thread so many cycles, comes to of those that
// members take at once: fewer in the first stages and in the last ones, of so many steps each.
int64_t pipelined_cycles(const StackShape& s, Pass pass, int64_t cycles, int64_t members,
                         int64_t stage_steps) {
  const int64_t I = widest_layer(s).I;
  // Inputs, and their gradients, are multiplied for all rows of a stage at once; up to three take
  // as long as one.
  const int64_t rows = std::min<int64_t>(stage_steps, 3);
  if (pass == Pass::Backward) {
    cycles += cycles * I / (s.P * rows);
  } else if (s.steps.B == 1 && I >= min_summed_inputs(s) && !unit_pays(s, pass, 1, 1)) {
    cycles -= cycles * I / (s.P + I) * (rows - 1) / rows;
  }
  constexpr int64_t hand_over = 600;
  const int64_t stages = ceil_div(s.steps.T, stage_steps);
  return (cycles + hand_over / stage_steps) * (stages + members - 1) / (stages * members);
}

// A slice, of a quarter of the second cache, stays there from step to step. It has to be worth
// reading the weights.
constexpr int64_t kMinSliceRows = 256;

}  // namespace

LayerShape widest_layer(const StackShape& s) {
  LayerShape widest = s.layer(0, 0);
  if (s.L > 1) widest.I = std::max(s.I, s.D * s.P);
  return widest;
}

int64_t second_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 1 << 20;
}

Threads threads_of(const StackShape& s, Pass pass, const Threads& threads) {
  const int64_t flops = s.flops() / (pass == Pass::Backward ? s.L : 1);
  return threads.with_count(threads_for(flops, threads));
}

bool sums_inputs_first(const StackShape& s, const Division& division, const Threads& threads,
                       int64_t element_bytes) {
  const bool cached = step_bytes(s, element_bytes) <= cached_bytes(threads);
  // A single row waits for its own sums, more of them keep a core busy. With many, products take
  // longer than reading weights does.
  constexpr int64_t many_rows = 32;
  const int64_t B = s.steps.B;
  return s.steps.T > 1 && (B == 1 || (B > 1 && B <= many_rows && !cached)) &&
         division.keeps_steps_whole();
}

int64_t min_summed_inputs(const StackShape& s) { return s.steps.B == 1 ? 32 : 64; }

int64_t dot_step_rows(const StackShape& s, Pass pass, const Threads& threads) {
  // Measured on a Zen 4 core. Of more rows, packing what a cache holds pays in forward. In backward
  // gradients would have to be narrowed, too.
  constexpr int64_t few = 128, many = 1024;
  return pass == Pass::Backward || far_from_cached(s, threads) ? many : few;
}

int64_t plain_step_rows(const StackShape& s, bool keeps_packed, const WeightBytes& bytes,
                        const Threads& threads, int64_t element_bytes) {
  const bool far = far_from_cached(s, threads), halves = bytes.plain < element_bytes;
  if (far && (halves || !keeps_packed)) return kFarStepRows;
  if (keeps_packed) {
    // Measured on a Zen 3 core: from beyond the third cache, whose size is not known here, weights
    // are read faster as they lie, from four places at once.
    constexpr int64_t rows = 1, rows_beyond = 8, second_caches = 32;
    return stack_weights(s) * element_bytes > second_caches * threads.second_cache ? rows_beyond
                                                                                   : rows;
  }
  // Adding up the lanes of a row's sum takes as long as packing so many of its terms; measured on a
  // Zen 5 core, with vectors of 32 bytes and of 64.
  constexpr int64_t terms_of_a_row = 7, least_rows = 4, most_rows = 32;
  const int64_t terms = StepProduct(s, Pass::Forward).terms;
  return std::clamp(terms / terms_of_a_row, least_rows, most_rows);
}

bool suits_plain_steps(const StackShape& s, bool keeps_packed, const WeightBytes& bytes,
                       const Threads& threads, int64_t element_bytes) {
  if (s.steps.batch_sizes) return false;
  StackShape step = s;
  step.steps.T = 1;
  // Packed weights are for threads that a single step is too short for.
  if (threads_of(step, Pass::Forward, threads).count < threads_of(s, Pass::Forward, threads).count)
    return false;
  const int64_t T = s.steps.T, B = s.steps.B;
  if (far_from_cached(s, threads)) {
    // To read weights takes longer than to multiply them by a few rows. A unit for bfloat16 takes
    // its weights packed as they are, and inputs step by step; others sum inputs before the steps.
    const bool halves = bytes.plain < element_bytes, on_unit = bytes.packed < element_bytes;
    const FarWeights far = far_weights(bytes, element_bytes);
    const int64_t all = stack_weights(s), recurrent = s.L * s.D * 4 * s.H * s.P;
    const int64_t packing = keeps_packed ? 0 : far.packing * (bytes.plain + 2 * bytes.packed) * all;
    const int64_t of_packed = packing + T * bytes.packed * (on_unit ? all : recurrent);
    if (T * bytes.plain * all >= of_packed) return false;
    if (halves && !on_unit && B == 1) return true;
    constexpr int64_t most_steps = 32;
    return !keeps_packed && T <= most_steps && T * B <= far.rows;
  }
  // Measured on a Zen 4 core.
  constexpr int64_t few_rows = 24, few_steps = 4, steps_of_a_row = 8, steps_of_a_small_row = 2;
  constexpr int64_t small = 1 << 17;
  if (keeps_packed) return false;
  const int64_t of_step = step_bytes(s, element_bytes);
  if (B == 1) return T <= (of_step < small ? steps_of_a_small_row : steps_of_a_row);
  return T <= few_steps && T * B <= few_rows && of_step > cached_bytes(threads);
}

Division divide(const StackShape& s, Pass pass, const Threads& threads, int64_t element_bytes,
                bool packs) {
  const int64_t B = std::max<int64_t>(1, s.steps.B);
  const int64_t of_direction = std::max<int64_t>(1, threads.count / s.D);
  const auto teams_of = [&](int64_t members) { return std::min(B, of_direction / members); };
  Division division;
  int64_t least = 0;
  const int64_t most_members = s.projected ? 1 : std::min(of_direction, Team::kMostMembers);
  for (int64_t members = 1; members <= most_members; members *= 2) {
    const int64_t rows = ceil_div(B, teams_of(members));
    const int64_t cycles =
        of_direction > 1 ? step_cycles(s, pass, rows, members, threads, element_bytes, packs) : 0;
    if (members > 1 && cycles >= least) continue;
    least = cycles;
    division.members = members;
  }
  // Threads that rows leave idle take layers, by turns if there are more of these.
  const int64_t layers = std::min(s.L, of_direction / B);
  const bool may_share =
      s.D == 1 && !s.steps.batch_sizes && layers > 1 && (pass == Pass::Forward || B == 1) &&
      (layers == s.L || stack_weights(s) * element_bytes <= threads.second_cache);
  const auto alone = [&](bool counts_packing) {
    return may_share ? step_cycles(s, pass, 1, 1, threads, element_bytes, counts_packing) : 0;
  };
  const int64_t of_step = alone(false), packing = alone(packs) - of_step;
  for (int64_t steps = 1; may_share && steps < s.steps.T; steps *= 2) {
    const int64_t cycles = pipelined_cycles(s, pass, of_step, layers, steps) + packing / layers;
    if (cycles >= least) continue;
    least = cycles;
    division.members = layers;
    division.shares_layers = true;
    division.stage_steps = steps;
  }
  division.teams = teams_of(division.members);
  const int64_t row_bytes =
      StepProduct(s, pass).terms * (s.parts ? s.parts * kPartBytes : element_bytes);
  const int64_t rows =
      std::max(kMinSliceRows, threads.second_cache / 4 / std::max<int64_t>(1, row_bytes));
  division.slices_per_team = ceil_div(B, division.teams * rows);
  division.slices = {s.steps, division.teams * division.slices_per_team};
  return division;
}

bool packs_own_copies(int64_t users, int64_t bytes, const Threads& threads) {
  return users == 1 || bytes <= cached_bytes(threads);
}

bool unit_pays(const StackShape& s, Pass pass, const Division& division) {
  const int64_t rows = s.steps.B / division.teams;
  return unit_pays(s, pass, rows, division.shares_layers ? 1 : division.members);
}

}  // namespace lstm_fast
