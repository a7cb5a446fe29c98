// Runs the CUDA kernels of a layer with options, emulated, as run_stack.cpp does those of a stack.
//
// Input: the numbers below in this order, then, each if it is given, batch_sizes, x, h0, c0, the
// parameters, the norms, reset, reset_h, reset_c, drop_h, zone_h, zone_c, and the gradients of
// output, h_n, c_n and cells. Output: output, h_n, c_n, cells, the gradients of x, h0, c0, reset_h,
// reset_c, parameters and norms, and the output of a run that keeps nothing for backward.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../../csrc/arguments.h"
#include "../../csrc/cuda/variant.h"

namespace lstm_fast::cuda {
namespace {

struct Header {
  double is_double, T, B, I, H, P, projected, biases, packed, reverse, normalised, gate, cell,
      reset, first, drop, zone_rows, multiprocessors;
};

// Arrays in allocations of their own, of exactly their size. Filled with not-a-number until
// written.
template <typename T>
class Memory {
 public:
  T* allocate(int64_t elements) {
    blocks_.emplace_back(new T[elements]);
    for (int64_t i = 0; i < elements; ++i) blocks_.back()[i] = static_cast<T>(std::nan(""));
    return blocks_.back().get();
  }
  T* allocate(const double*& from, int64_t elements) {
    T* to = allocate(elements);
    for (int64_t i = 0; i < elements; ++i) to[i] = static_cast<T>(*from++);
    return to;
  }

 private:
  std::vector<std::unique_ptr<T[]>> blocks_;
};

template <typename T>
void write(const T* from, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i) {
    const double number = static_cast<double>(from[i]);
    std::fwrite(&number, sizeof number, 1, stdout);
  }
}

template <typename T>
void run(const std::vector<double>& numbers) {
  const double* next = numbers.data();
  const Header h = *reinterpret_cast<const Header*>(next);
  next += sizeof(Header) / sizeof(double);
  const auto integer = [](double number) { return static_cast<int64_t>(number); };
  StackShape stack{};
  stack.steps = {integer(h.T), integer(h.B), nullptr, nullptr};
  stack.projected = h.projected != 0;
  stack.L = stack.D = 1;
  std::vector<int64_t> batch_sizes, offsets;
  if (h.packed != 0) {
    int64_t total = 0;
    for (int64_t t = 0; t < stack.steps.T; ++t) {
      batch_sizes.push_back(integer(*next++));
      offsets.push_back(total);
      total += batch_sizes.back();
    }
    stack.steps.batch_sizes = batch_sizes.data();
    stack.steps.offsets = offsets.data();
  }
  const int64_t N = stack.steps.total(), B = stack.steps.B;
  const int64_t I = integer(h.I), H = integer(h.H), P = integer(h.P), G = 4 * H;
  const bool biases = h.biases != 0, normalised = h.normalised != 0;

  Memory<T> memory;
  Memory<uint8_t> bytes;
  const auto take = [&](int64_t elements) { return memory.allocate(next, elements); };
  VariantForward<T> f{};
  f.shape = {stack.steps,
             I,
             H,
             P,
             stack.projected,
             h.reverse != 0,
             normalised,
             static_cast<GateActivation>(integer(h.gate)),
             static_cast<CellActivation>(integer(h.cell)),
             0};
  f.x = take(N * I);
  f.h0 = take(B * P);
  f.c0 = take(B * H);
  std::vector<int64_t> sizes = {G * I, G * P};
  if (biases) sizes.insert(sizes.end(), {G, G});
  if (stack.projected) sizes.push_back(P * H);
  const size_t params = sizes.size();
  if (normalised) sizes.insert(sizes.end(), {G, G, H});
  if (normalised && biases) sizes.push_back(H);
  std::vector<const T*> weights;
  std::vector<T*> grads;
  for (const int64_t size : sizes) {
    weights.push_back(take(size));
    grads.push_back(memory.allocate(size));
  }
  f.plain = group_params<LayerWeights<T>>(stack, biases, weights)[0];
  const T** const norms[] = {&f.norms.ih, &f.norms.hh, &f.norms.c, &f.norms.c_bias};
  for (size_t i = params; i < sizes.size(); ++i) *norms[i - params] = weights[i];
  if (h.reset != 0) f.masks.reset = bytes.allocate(next, N);
  if (h.first != 0) f.masks.reset_h = take(B * P), f.masks.reset_c = take(B * H);
  if (h.drop != 0) f.masks.drop_h = take(B * P);
  if (const int64_t rows = integer(h.zone_rows)) {
    f.masks.zone_h = take(rows * P);
    f.masks.zone_c = take(rows * H);
    f.masks.zone_h_row = rows == N ? P : 0;
    f.masks.zone_c_row = rows == N ? H : 0;
  }
  VariantProblemBackward<T> b{};
  b.rows.grad_y = take(N * P);
  b.rows.grad_h_n = take(B * P);
  b.rows.grad_c_n = take(B * H);
  b.rows.grad_cells = take(N * H);
  if (next != numbers.data() + numbers.size()) throw std::runtime_error("input of a wrong size");

  Device device{};  // no more is asked of one
  device.compute_capability = 90;
  device.multiprocessors = static_cast<int>(h.multiprocessors);
  const VariantSavedLayout layout{f.shape};
  Memory<char> workspaces;
  const auto forward = [&](bool save) {
    f.y = memory.allocate(N * P);
    f.h_n = memory.allocate(B * P);
    f.c_n = memory.allocate(B * H);
    f.cells = save ? memory.allocate(N * H) : nullptr;
    f.save = save;
    if (save) f.saved = layout.pieces(memory.allocate(layout.size()));
    variant_forward(f, device, workspaces.allocate(variant_forward_workspace_bytes(f, device)),
                    nullptr);
  };
  forward(true);
  write(f.y, N * P);
  write(f.h_n, B * P);
  write(f.c_n, B * H);
  write(f.cells, N * H);

  b.rows.shape = f.shape;
  b.rows.norms = f.norms;
  b.rows.masks = f.masks;
  b.rows.c0 = f.c0;
  b.rows.cells = f.cells;
  b.rows.saved = layout.pieces(static_cast<const T*>(f.saved.gates));
  b.rows.grad_h0 = memory.allocate(B * P);
  b.rows.grad_c0 = memory.allocate(B * H);
  if (h.first != 0) {
    b.rows.grad_reset_h = memory.allocate(B * P);
    b.rows.grad_reset_c = memory.allocate(B * H);
  }
  b.plain = f.plain;
  b.x = f.x;
  b.grad_x = memory.allocate(N * I);
  b.need_weights = true;
  b.grads.plain = group_params<LayerWeightGrads<T>>(stack, biases, grads)[0];
  T** const of_norms[] = {&b.grads.norm_ih, &b.grads.norm_hh, &b.grads.norm_c,
                          &b.grads.norm_c_bias};
  for (size_t i = params; i < sizes.size(); ++i) *of_norms[i - params] = grads[i];
  variant_backward(b, device, workspaces.allocate(variant_backward_workspace_bytes(b, device)),
                   nullptr);
  write(b.grad_x, N * I);
  write(b.rows.grad_h0, B * P);
  write(b.rows.grad_c0, B * H);
  if (h.first != 0) write(b.rows.grad_reset_h, B * P), write(b.rows.grad_reset_c, B * H);
  for (size_t i = 0; i < grads.size(); ++i) write(grads[i], sizes[i]);

  forward(false);
  write(f.y, N * P);
}

}  // namespace
}  // namespace lstm_fast::cuda

int main() {
  std::vector<double> numbers;
  double block[4096];
  while (const size_t n = std::fread(block, sizeof(double), 4096, stdin))
    numbers.insert(numbers.end(), block, block + n);
  if (numbers.size() * sizeof(double) < sizeof(lstm_fast::cuda::Header)) return EXIT_FAILURE;
  numbers[0] != 0 ? lstm_fast::cuda::run<double>(numbers) : lstm_fast::cuda::run<float>(numbers);
  return EXIT_SUCCESS;
}
