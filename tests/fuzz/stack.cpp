// Any arguments at all at the door of the stack (arguments.h), and, where it lets them in, the
// kernels behind it on buffers of exactly the promised sizes: with the sanitizers, a search for
// what reads or writes beyond, divides by zero, overflows or races. Checked as well: the bits of
// the results do not depend on the number of threads, nor on whether halves of weights are widened.
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "arguments.h"
#include "cases.h"
#include "cpu/kept_weights.h"

namespace lstm_fast {
namespace {

int64_t elements(const Dims& dims) {
  int64_t product = 1;
  for (int64_t i = 0; i < dims.dim; ++i) product *= dims.size[i];
  return product;
}

// Arguments that fit, unless the case says where they do not.
struct Case {
  StackArguments arguments;
  std::vector<int64_t> batch_sizes;
  Dims h0, c0;
  bool save, keep_output, recompute_gates, is_double, is_bfloat16, is_float16, keeps_packed;
  int64_t isa, threads, parts, second_cache;

  explicit Case(Bytes& bytes) {
    StackArguments& a = arguments;
    const int64_t L = 1 + bytes.below(3), D = 1 + bytes.flag(), width = 1 + bytes.below(44),
                  I = 1 + bytes.below(40), steps = 1 + bytes.below(6);
    const int64_t rows = 1 + bytes.below(bytes.flag() ? 20 : 2);  // few leave threads to layers
    const bool is_wide = width > 40;                              // enough for threads in teams
    const bool is_long = !is_wide && bytes.below(8) == 0;         // rows for several slices
    const int64_t H = is_wide ? 8 * width : width, B = is_long ? 40 * rows : rows,
                  T = is_wide || is_long ? steps : steps_or_many(steps);
    const bool projected = bytes.flag();
    const int64_t P = projected ? 1 + bytes.below(H) : H;
    a.num_layers = L;
    a.bidirectional = D == 2;
    a.has_biases = bytes.flag();
    if (bytes.flag()) {
      batch_sizes = falling(bytes, T, B);
      a.input = {2, {std::accumulate(batch_sizes.begin(), batch_sizes.end(), int64_t{0}), I}};
    } else {
      a.input = {3, {T, B, I}};
    }
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t d = 0; d < D; ++d) {
        a.params.push_back({2, {4 * H, l ? D * P : I}});
        a.params.push_back({2, {4 * H, P}});
        if (a.has_biases) a.params.insert(a.params.end(), 2, {1, {4 * H}});
        if (projected) a.params.push_back({2, {P, H}});
      }
    }
    h0 = {3, {L * D, B, P}};
    c0 = {3, {L * D, B, H}};
    if (bytes.flag()) a.h0 = &h0;
    if (bytes.flag()) a.c0 = &c0;
    save = bytes.flag();
    keep_output = save && bytes.flag();
    is_double = bytes.flag();
    isa = bytes.below(8);
    threads = bytes.below(8) ? 1 + bytes.below(4) : 16;  // more than a step has panels
    for (int64_t left = bytes.below(4); left > 0; --left) spoil(bytes);
    recompute_gates = bytes.flag();
    parts = bytes.below(4);
    is_bfloat16 = !is_double && bytes.flag();
    is_float16 = !is_double && !is_bfloat16 && bytes.flag();
    keeps_packed = bytes.flag();
    second_cache = bytes.flag() ? int64_t{1} << (8 + bytes.below(12)) : second_cache_bytes();
    if (!batch_sizes.empty()) {
      a.batch_sizes = batch_sizes.data();
      a.batch_sizes_length = static_cast<int64_t>(batch_sizes.size());
    }
  }

 private:
  void spoil(Bytes& bytes) {
    StackArguments& a = arguments;
    const auto spoil_dims = [&](Dims& dims) {
      if (bytes.below(4) == 0) {
        dims.dim = bytes.below(5);
      } else {
        dims.size[bytes.below(3)] = std::max<int64_t>(0, bytes.any());
      }
    };
    switch (bytes.below(7)) {
      case 0:
        return spoil_dims(a.input);
      case 1:
        return spoil_dims(h0);
      case 2:
        return spoil_dims(c0);
      case 3:
        return a.params.empty() ? void() : spoil_dims(a.params[bytes.below(a.params.size())]);
      case 4:
        return a.params.resize(bytes.below(30));
      case 5:
        a.num_layers = bytes.any();
        return;
      default:
        if (!batch_sizes.empty()) batch_sizes[bytes.below(batch_sizes.size())] = bytes.any();
    }
  }
};

void narrow(const Buffer<float>& from, Buffer<BFloat16>& to) {
  kernels_of(0).narrow_to_bfloat16(from.get(), from.size(), to.get());
}
void widen(const Buffer<BFloat16>& from, Buffer<float>& to) {
  kernels_of(0).widen_bfloat16(from.get(), from.size(), to.get());
}
// Numbers of the size of weights.
void fill_float16(std::mt19937& random, Buffer<Float16>& to, Buffer<float>& widened) {
  for (int64_t i = 0; i < to.size(); ++i) to.get()[i].bits = random() & 0xb7ff;
  kernels_of(0).widen_float16(to.get(), to.size(), widened.get());
}

template <typename T>
struct Problem {
  const Case& c;
  const StackShape& s;
  int parts;
  bool keeps_packed;
  std::mt19937 random{1};
  Buffer<T> x, h0, c0, grad_y, grad_h_n, grad_c_n;
  std::vector<Buffer<T>> params;
  std::vector<LayerWeights<T>> weights;
  // Those that the weights are widened from, if there are such.
  std::vector<Buffer<BFloat16>> bfloat16_params;
  std::vector<LayerWeights<BFloat16>> bfloat16_weights;
  std::vector<Buffer<Float16>> float16_params;
  std::vector<LayerWeights<Float16>> float16_weights;

  Problem(const Case& c_, const StackShape& s_)
      : c(c_),
        s(s_),
        parts(static_cast<int>(c.parts)),
        keeps_packed(c.keeps_packed),
        x(elements(c.arguments.input), random),
        h0(c.arguments.h0 ? elements(c.h0) : 0, random),
        c0(c.arguments.c0 ? elements(c.c0) : 0, random),
        grad_y(s.steps.total() * s.D * s.P, random),
        grad_h_n(s.L * s.D * s.steps.B * s.P, random),
        grad_c_n(s.L * s.D * s.steps.B * s.H, random) {
    std::vector<const T*> pointers;
    std::vector<const BFloat16*> bfloat16_pointers;
    std::vector<const Float16*> float16_pointers;
    for (const Dims& dims : c.arguments.params) {
      params.emplace_back(elements(dims), random);
      pointers.push_back(params.back().get());
      if constexpr (std::is_same_v<T, float>) {
        if (c.is_float16) {
          float16_params.emplace_back(elements(dims));
          float16_pointers.push_back(float16_params.back().get());
          fill_float16(random, float16_params.back(), params.back());
        }
        if (!c.is_bfloat16) continue;
        bfloat16_params.emplace_back(elements(dims));
        bfloat16_pointers.push_back(bfloat16_params.back().get());
        narrow(params.back(), bfloat16_params.back());
        widen(bfloat16_params.back(), params.back());
      }
    }
    weights = group_params<LayerWeights<T>>(s, c.arguments.has_biases, pointers);
    if (c.is_bfloat16) {
      bfloat16_weights =
          group_params<LayerWeights<BFloat16>>(s, c.arguments.has_biases, bfloat16_pointers);
    }
    if (c.is_float16) {
      float16_weights =
          group_params<LayerWeights<Float16>>(s, c.arguments.has_biases, float16_pointers);
    }
  }

  const T* given(const Dims* dims, Buffer<T>& buffer) { return dims ? buffer.get() : nullptr; }

  // All results of forward and backward.
  std::vector<Buffer<T>> run(Threads threads, int fill) {
    threads.second_cache = c.second_cache;
    const Kernels& kernels = kernels_of(c.isa);
    const SavedLayout layout{s, c.keep_output, c.recompute_gates};
    const int64_t N = s.steps.total(), rows = s.L * s.D * s.steps.B;
    std::vector<Buffer<T>> out;
    out.reserve(7 + params.size());
    const auto add = [&](int64_t size) {
      out.emplace_back(size, fill);
      return out.back().get();
    };

    StackForward<T> f{};
    f.shape = s;
    f.shape.parts = parts;
    f.recompute_gates = c.recompute_gates;
    if (!bfloat16_weights.empty()) f.bfloat16_weights = bfloat16_weights.data();
    if (!float16_weights.empty()) f.float16_weights = float16_weights.data();
    KeptWeights<T> kept;
    f.x = x.get();
    f.h0 = given(c.arguments.h0, h0);
    f.c0 = given(c.arguments.c0, c0);
    f.saved = c.save ? add(layout.size()) : nullptr;
    f.y = c.keep_output ? f.saved + layout.output(s.L - 1) : add(N * s.D * s.P);
    f.h_n = add(rows * s.P);
    f.c_n = add(rows * s.H);
    if (keeps_packed) {
      kept.plan(kernels, f, threads, [&] { return weights.data(); });
    } else {
      if (!f.has_halves() || !takes_plain_steps(kernels, f, threads)) f.weights = weights.data();
      plan(kernels, f, threads);
    }
    Buffer<T> forward_workspace(forward_workspace_size(kernels, f, threads), fill, true);
    f.workspace = forward_workspace.get();
    forward(kernels, f, threads);
    if (!c.save) return out;

    StackBackward<T> b{};
    b.shape = s;
    b.shape.parts = parts;
    b.weights = weights.data();
    b.bfloat16_weights = f.bfloat16_weights;
    b.float16_weights = f.float16_weights;
    b.x = f.x;
    b.h0 = f.h0;
    b.c0 = f.c0;
    b.y = f.y;
    b.saved = f.saved;
    b.keep_output = c.keep_output;
    b.recompute_gates = c.recompute_gates;
    b.grad_y = grad_y.get();
    b.grad_h_n = given(c.arguments.h0, grad_h_n);
    b.grad_c_n = given(c.arguments.c0, grad_c_n);
    if (c.threads != 2) b.grad_x = add(N * s.I);
    if (c.threads != 3) {
      b.grad_h0 = add(rows * s.P);
      b.grad_c0 = add(rows * s.H);
    }
    plan(kernels, b, threads);
    if (b.bfloat16_step) b.weights = nullptr;
    const size_t first_grad = out.size();
    std::vector<T*> pointers;
    std::vector<BFloat16*> bfloat16_pointers;
    std::vector<Buffer<BFloat16>> bfloat16_grads;
    for (const Dims& dims : c.arguments.params) {
      pointers.push_back(add(elements(dims)));
      bfloat16_grads.emplace_back(elements(dims), fill);
      bfloat16_pointers.push_back(bfloat16_grads.back().get());
    }
    const auto grads = group_params<LayerWeightGrads<T>>(s, c.arguments.has_biases, pointers);
    const auto grads_of_step =
        group_params<LayerWeightGrads<BFloat16>>(s, c.arguments.has_biases, bfloat16_pointers);
    b.grad_weights = b.bfloat16_step ? nullptr : grads.data();
    b.bfloat16_grad_weights = b.bfloat16_step ? grads_of_step.data() : nullptr;
    Buffer<T> backward_workspace(backward_workspace_size(kernels, b, threads), fill, true);
    b.workspace = backward_workspace.get();
    backward(kernels, b, threads);
    if constexpr (std::is_same_v<T, float>) {
      for (size_t i = 0; c.is_bfloat16 && i < bfloat16_grads.size(); ++i) {
        if (!b.bfloat16_step) narrow(out[first_grad + i], bfloat16_grads[i]);
        widen(bfloat16_grads[i], out[first_grad + i]);
      }
    }
    return out;
  }
};

}  // namespace
}  // namespace lstm_fast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lstm_fast;
  Bytes bytes(data, size);
  const Case c(bytes);
  std::vector<int64_t> offsets;
  StackShape shape;
  try {
    shape = infer_shape(c.arguments, offsets);
  } catch (const std::runtime_error&) {
    return 0;
  }
  if (shape.steps.T < 0 || shape.steps.B < 0 || shape.I < 1 || shape.H < 1 || shape.P < 1)
    fail("a shape that cannot be was let in");
  // Sizes that are no tensor's, as nothing shows them to be wrong, or too large to be run here.
  constexpr int64_t kLimit = 1 << 10;
  if (shape.steps.T > kLimit || shape.steps.B > kLimit || shape.I > kLimit) return 0;
  if (c.is_double) {
    run_twice(Problem<double>(c, shape), c.threads, c.parts > 0);
    return 0;
  }
  Problem<float> problem(c, shape);
  run_twice(problem, c.threads, c.parts > 0);
  if (c.is_bfloat16 || c.is_float16) {
    problem.parts = 0;
    const auto as_they_are = problem.run({c.threads, on_this_thread}, 0);
    problem.bfloat16_weights.clear();
    problem.float16_weights.clear();
    problem.keeps_packed = !c.keeps_packed;
    check_equal(as_they_are, problem.run({c.threads, on_this_thread}, 0),
                "the result depends on how halves of weights are read");
  }
  return 0;
}
