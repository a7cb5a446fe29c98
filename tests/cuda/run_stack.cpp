// Runs the CUDA kernels, emulated, on a problem from standard input and writes the results to
// standard output; a process of its own, so that sanitizers watch the kernels and nothing else.
//
// Input and output are arrays of float64. Input: the numbers below in this order, then, each if it
// is given, batch_sizes, x, h0, c0, grad_y, grad_h_n, grad_c_n, and the parameters in torch's
// order. Output: y, h_n, c_n, the gradients of x, h0, c0 and the parameters, and the y, h_n, c_n of
// a run that keeps nothing for backward.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../../csrc/arguments.h"
#include "../../csrc/cuda/kernels.h"
#include "../../csrc/cuda/number.cuh"

namespace lstm_fast::cuda {
namespace {

struct Header {
  double dtype, T, B, I, H, P, L, D, projected, biases, states, packed, allow_tf32, recompute_gates,
      compute_capability, multiprocessors, shared_bytes, l2_bytes, cluster_blocks;
};

std::vector<double> read_all() {
  std::vector<double> numbers;
  double block[4096];
  while (const size_t n = std::fread(block, sizeof(double), 4096, stdin))
    numbers.insert(numbers.end(), block, block + n);
  return numbers;
}

// Arrays of the element type, each in an allocation of its own, of exactly its size: the address
// sanitizer sees what goes beyond it. Filled with not-a-number until written.
template <typename T>
class Memory {
 public:
  T* allocate(int64_t elements) {
    blocks_.emplace_back(new T[elements]);
    for (int64_t i = 0; i < elements; ++i) blocks_.back()[i] = T(std::nanf(""));
    return blocks_.back().get();
  }
  T* allocate(const double*& from, int64_t elements) {
    T* to = allocate(elements);
    for (int64_t i = 0; i < elements; ++i) to[i] = T(*from++);
    return to;
  }

 private:
  std::vector<std::unique_ptr<T[]>> blocks_;
};

template <typename T>
class Run {
 public:
  Run(Dtype dtype, const std::vector<double>& numbers) : kernels_(stack_kernels(dtype)) {
    const double* next = numbers.data();
    const Header h = *reinterpret_cast<const Header*>(next);
    next += sizeof(Header) / sizeof(double);
    device_ = {static_cast<int>(h.compute_capability), static_cast<int>(h.multiprocessors),
               static_cast<int64_t>(h.shared_bytes), static_cast<int64_t>(h.l2_bytes),
               static_cast<int>(h.cluster_blocks)};
    allow_tf32_ = h.allow_tf32 != 0;
    recompute_gates_ = h.recompute_gates != 0;
    biases_ = h.biases != 0;
    s_.steps = {static_cast<int64_t>(h.T), static_cast<int64_t>(h.B), nullptr, nullptr};
    s_.I = static_cast<int64_t>(h.I);
    s_.H = static_cast<int64_t>(h.H);
    s_.P = static_cast<int64_t>(h.P);
    s_.projected = h.projected != 0;
    s_.L = static_cast<int64_t>(h.L);
    s_.D = static_cast<int64_t>(h.D);
    if (h.packed != 0) {
      int64_t total = 0;
      for (int64_t t = 0; t < s_.steps.T; ++t) {
        batch_sizes_.push_back(static_cast<int64_t>(*next++));
        offsets_.push_back(total);
        total += batch_sizes_.back();
      }
      s_.steps.batch_sizes = batch_sizes_.data();
      s_.steps.offsets = offsets_.data();
    }
    const int64_t N = s_.steps.total(), runs = s_.L * s_.D, B = s_.steps.B;
    y_size_ = N * s_.D * s_.P;
    h_size_ = runs * B * s_.P;
    c_size_ = runs * B * s_.H;
    x_ = memory_.allocate(next, N * s_.I);
    if (h.states != 0) {
      h0_ = memory_.allocate(next, h_size_);
      c0_ = memory_.allocate(next, c_size_);
    }
    grad_y_ = memory_.allocate(next, y_size_);
    grad_h_n_ = memory_.allocate(next, h_size_);
    grad_c_n_ = memory_.allocate(next, c_size_);
    for (int64_t l = 0; l < s_.L; ++l) {
      for (int64_t d = 0; d < s_.D; ++d) {
        const int64_t G = 4 * s_.H;
        std::vector<int64_t> sizes = {G * s_.input_size(l), G * s_.P};
        if (biases_) sizes.insert(sizes.end(), {G, G});
        if (s_.projected) sizes.push_back(s_.P * s_.H);
        for (const int64_t size : sizes) {
          params_.push_back(memory_.allocate(next, size));
          grads_.push_back(memory_.allocate(size));
          sizes_.push_back(size);
        }
      }
    }
    if (next != numbers.data() + numbers.size()) throw std::runtime_error("input of a wrong size");
  }

  void operator()() {
    using A = Wide<T>;
    Memory<A> kept;
    Memory<char> workspaces;
    const SavedLayout layout{s_, sizeof(T) == 2, recompute_gates_};
    A* saved = kept.allocate(layout.size());
    T* y = forward(saved, workspaces);

    StackBackward p{};
    p.shape = s_;
    const auto weights = group_params<LayerWeights<void>>(
        s_, biases_, std::vector<const void*>(params_.begin(), params_.end()));
    const auto grads = group_params<LayerWeightGrads<void>>(
        s_, biases_, std::vector<void*>(grads_.begin(), grads_.end()));
    const int64_t x_size = s_.steps.total() * s_.I;
    T *grad_x = memory_.allocate(x_size), *grad_h0 = memory_.allocate(h_size_),
      *grad_c0 = memory_.allocate(c_size_);
    p.weights = weights.data();
    p.x = x_;
    p.h0 = h0_;
    p.c0 = c0_;
    p.y = y;
    p.saved = saved;
    p.recompute_gates = recompute_gates_;
    p.grad_y = grad_y_;
    p.grad_h_n = grad_h_n_;
    p.grad_c_n = grad_c_n_;
    p.grad_x = grad_x;
    p.grad_h0 = grad_h0;
    p.grad_c0 = grad_c0;
    p.grad_weights = grads.data();
    p.allow_tf32 = allow_tf32_;
    p.workspace = workspaces.allocate(kernels_.backward_workspace_bytes(p, device_));
    kernels_.backward(p, device_, nullptr);
    write(grad_x, x_size);
    write(grad_h0, h_size_);
    write(grad_c0, c_size_);
    for (size_t i = 0; i < grads_.size(); ++i) write(grads_[i], sizes_[i]);

    forward(nullptr, workspaces);
  }

 private:
  T* forward(Wide<T>* saved, Memory<char>& workspaces) {
    StackForward p{};
    const auto weights = group_params<LayerWeights<void>>(
        s_, biases_, std::vector<const void*>(params_.begin(), params_.end()));
    T *y = memory_.allocate(y_size_), *h_n = memory_.allocate(h_size_),
      *c_n = memory_.allocate(c_size_);
    p.shape = s_;
    p.weights = weights.data();
    p.x = x_;
    p.h0 = h0_;
    p.c0 = c0_;
    p.y = y;
    p.h_n = h_n;
    p.c_n = c_n;
    p.saved = saved;
    p.recompute_gates = recompute_gates_;
    p.allow_tf32 = allow_tf32_;
    p.workspace = workspaces.allocate(kernels_.forward_workspace_bytes(p, device_));
    kernels_.forward(p, device_, nullptr);
    write(y, y_size_);
    write(h_n, h_size_);
    write(c_n, c_size_);
    return y;
  }

  static void write(const T* from, int64_t elements) {
    for (int64_t i = 0; i < elements; ++i) {
      const double number = static_cast<double>(widen(from[i]));
      std::fwrite(&number, sizeof number, 1, stdout);
    }
  }

  const StackKernels& kernels_;
  Device device_;
  StackShape s_{};
  bool allow_tf32_, recompute_gates_, biases_;
  std::vector<int64_t> batch_sizes_, offsets_;
  int64_t y_size_, h_size_, c_size_;
  Memory<T> memory_;
  T *x_ = nullptr, *h0_ = nullptr, *c0_ = nullptr;
  T *grad_y_ = nullptr, *grad_h_n_ = nullptr, *grad_c_n_ = nullptr;
  std::vector<T*> params_, grads_;
  std::vector<int64_t> sizes_;
};

}  // namespace
}  // namespace lstm_fast::cuda

int main() {
  using namespace lstm_fast::cuda;
  const std::vector<double> numbers = read_all();
  if (numbers.size() * sizeof(double) < sizeof(Header)) return EXIT_FAILURE;
  switch (const auto dtype = static_cast<Dtype>(static_cast<int>(numbers[0])); dtype) {
    case Dtype::Float32:
      Run<float>(dtype, numbers)();
      break;
    case Dtype::Float64:
      Run<double>(dtype, numbers)();
      break;
    case Dtype::Float16:
      Run<__half>(dtype, numbers)();
      break;
    case Dtype::BFloat16:
      Run<__nv_bfloat16>(dtype, numbers)();
      break;
  }
  return EXIT_SUCCESS;
}
