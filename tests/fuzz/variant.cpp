// Layers with options (variant.h) of any shape, on buffers of exactly the promised sizes: with the
// sanitizers, a search for what reads or writes beyond or races. Checked as well: the bits of the
// results do not depend on the number of threads.
#include "cpu/variant.h"

#include <numeric>

#include "arguments.h"
#include "cases.h"

namespace lstm_fast {
namespace {

struct Case {
  StackArguments arguments;
  std::vector<int64_t> batch_sizes, offsets;
  StackShape stack;
  VariantShape shape;
  bool reset, reset_state, drop, zone_h, zone_c, share, save, keep_cells, grads, is_double;
  int64_t isa, threads;

  explicit Case(Bytes& bytes) {
    StackArguments& a = arguments;
    const int64_t H = 1 + bytes.below(40), I = 1 + bytes.below(40),
                  T = steps_or_many(1 + bytes.below(6)), B = 1 + bytes.below(20);
    const bool projected = bytes.flag();
    const int64_t P = projected ? 1 + bytes.below(H) : H;
    a.has_biases = bytes.flag();
    a.input = {3, {T, B, I}};
    if (bytes.flag()) {
      batch_sizes = falling(bytes, T, B);
      a.input = {2, {std::accumulate(batch_sizes.begin(), batch_sizes.end(), int64_t{0}), I}};
      a.batch_sizes = batch_sizes.data();
      a.batch_sizes_length = T;
    }
    a.params = {{2, {4 * H, I}}, {2, {4 * H, P}}};
    if (a.has_biases) a.params.insert(a.params.end(), 2, {1, {4 * H}});
    if (projected) a.params.push_back({2, {P, H}});
    stack = infer_shape(a, offsets);
    shape = {stack.steps,
             I,
             H,
             P,
             projected,
             bytes.flag(),
             bytes.flag(),
             static_cast<GateActivation>(bytes.below(2)),
             static_cast<CellActivation>(bytes.below(3)),
             0};
    for (bool* choice : {&reset, &reset_state, &drop, &zone_h, &zone_c, &share, &save, &keep_cells,
                         &grads, &is_double})
      *choice = bytes.flag();
    isa = bytes.below(8);
    threads = 1 + bytes.below(4);
    shape.parts = static_cast<int>(bytes.below(4));
  }
};

template <typename T>
struct Problem {
  const Case& c;
  const VariantShape& s = c.shape;
  const int64_t N = s.steps.total(), B = s.steps.B, zone_rows = c.share ? 1 : N;
  std::mt19937 random{1};
  std::vector<Buffer<T>> inputs;
  Buffer<uint8_t> reset{c.reset ? N : 0};
  VariantForward<T> forward{};
  VariantProblemBackward<T> back{};

  explicit Problem(const Case& c_) : c(c_) {
    std::vector<const T*> params;
    for (const Dims& dims : c.arguments.params) {
      params.push_back(draw(dims.size[0] * (dims.dim > 1 ? dims.size[1] : 1)));
    }
    for (int64_t i = 0; c.reset && i < N; ++i) reset.get()[i] = random() & 1;
    forward.shape = s;
    forward.plain = group_params<LayerWeights<T>>(c.stack, c.arguments.has_biases, params)[0];
    if (s.normalised) {
      forward.norms = {draw(4 * s.H), draw(4 * s.H), draw(s.H),
                       c.arguments.has_biases ? draw(s.H) : nullptr};
    }
    forward.masks = {reset.get(),
                     c.reset_state ? draw(B * s.P) : nullptr,
                     c.reset_state ? draw(B * s.H) : nullptr,
                     c.drop ? draw(B * s.P) : nullptr,
                     c.zone_h ? draw(zone_rows * s.P) : nullptr,
                     c.zone_c ? draw(zone_rows * s.H) : nullptr,
                     c.share ? 0 : s.P,
                     c.share ? 0 : s.H};
    forward.x = draw(N * s.I);
    forward.h0 = draw(B * s.P);
    forward.c0 = draw(B * s.H);
    forward.save = c.save;
    back.plain = forward.plain;
    back.x = forward.x;
    back.need_weights = c.threads != 3;
    back.rows.shape = s;
    back.rows.norms = forward.norms;
    back.rows.masks = forward.masks;
    back.rows.c0 = forward.c0;
    back.rows.grad_y = draw(N * s.P);
    if (!c.grads) return;
    back.rows.grad_h_n = draw(B * s.P);
    back.rows.grad_c_n = draw(B * s.H);
    back.rows.grad_cells = draw(N * s.H);
  }

  const T* draw(int64_t size) {
    inputs.emplace_back(size, random);
    return inputs.back().get();
  }

  // All results of forward and backward.
  std::vector<Buffer<T>> run(const Threads& threads, int fill) {
    const Kernels& kernels = kernels_of(c.isa);
    const VariantSavedLayout layout{s};
    std::vector<Buffer<T>> out;
    const auto add = [&](int64_t size) {
      out.emplace_back(size, fill);
      return out.back().get();
    };

    VariantForward<T> f = forward;
    f.y = add(N * s.P);
    f.h_n = add(B * s.P);
    f.c_n = add(B * s.H);
    if (c.save || c.keep_cells) f.cells = add(N * s.H);
    T* saved = c.save ? add(layout.size()) : nullptr;
    if (c.save) f.saved = layout.template pieces<T>(saved);
    Buffer<T> forward_workspace(variant_forward_workspace_size(kernels, f, threads), fill, true);
    variant_forward(kernels, f, threads, forward_workspace.get());
    if (!c.save) return out;

    VariantProblemBackward<T> b = back;
    b.rows.cells = f.cells;
    b.rows.saved = layout.template pieces<const T>(saved);
    b.rows.grad_h0 = add(B * s.P);
    b.rows.grad_c0 = add(B * s.H);
    if (c.reset_state) {
      b.rows.grad_reset_h = add(B * s.P);
      b.rows.grad_reset_c = add(B * s.H);
    }
    if (c.threads != 2) b.grad_x = add(N * s.I);
    if (b.need_weights) {
      std::vector<T*> params;
      for (const Dims& dims : c.arguments.params) {
        params.push_back(add(dims.size[0] * (dims.dim > 1 ? dims.size[1] : 1)));
      }
      b.grads.plain = group_params<LayerWeightGrads<T>>(c.stack, c.arguments.has_biases, params)[0];
      if (s.normalised) {
        b.grads.norm_ih = add(4 * s.H);
        b.grads.norm_hh = add(4 * s.H);
        b.grads.norm_c = add(s.H);
        if (c.arguments.has_biases) b.grads.norm_c_bias = add(s.H);
      }
    }
    Buffer<T> backward_workspace(variant_backward_workspace_size(kernels, b, threads), fill, true);
    variant_backward(kernels, b, threads, backward_workspace.get());
    return out;
  }
};

}  // namespace
}  // namespace lstm_fast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lstm_fast;
  Bytes bytes(data, size);
  const Case c(bytes);
  const bool parts = c.shape.parts > 0;
  c.is_double ? run_twice(Problem<double>(c), c.threads, parts)
              : run_twice(Problem<float>(c), c.threads, parts);
  return 0;
}
