// The weights of a stack, packed once for any number of calls.
#pragma once

#include <atomic>
#include <vector>

#include "stack.h"
#include "workspace.h"

namespace lstm_fast {

template <typename T>
class PackedWeights {
 public:
  // Those of p for calls of its shape.parts, of any number of rows and steps.
  PackedWeights(const Kernels& kernels, const StackForward<T>& p, const Threads& threads)
      : memory_(lay_out(kernels, p.shape, nullptr)) {
    lay_out(kernels, p.shape, memory_.get());
    pack_weights(kernels, p, 0, pieces_.size(), pieces_.data(), threads);
  }

  // As StackForward::packed.
  const T* const* pieces() const { return pieces_.data(); }

 private:
  int64_t lay_out(const Kernels& kernels, const StackShape& s, T* memory) {
    Arena<T> arena(memory);
    pieces_.clear();
    for (int64_t i = 0; i < s.L * s.D; ++i) {
      pieces_.push_back(
          arena.take(kernels.of(T()).forward_weights_size(s.layer(i / s.D, i % s.D))));
    }
    return arena.used();
  }

  std::vector<T*> pieces_;
  Workspace<T> memory_;
};

// Weights that do not change, packed when a call first needs them so. Calls may be made by several
// threads, and in a child that was forked meanwhile: there is no lock.
template <typename T>
class KeptWeights {
 public:
  KeptWeights() = default;
  KeptWeights(const KeptWeights&) = delete;
  KeptWeights& operator=(const KeptWeights&) = delete;
  ~KeptWeights() {
    for (const auto& packed : packed_) delete packed.load();
  }

  // `plan`, which gives p what it needs of the weights. `weights` returns those that StackForward
  // has unless there are halves.
  template <typename GetWeights>
  void plan(const Kernels& kernels, StackForward<T>& p, const Threads& threads,
            const GetWeights& weights) {
    p.keeps_packed = true;
    if (p.shape.parts && !is_ordinary(kernels, p.shape, weights, threads)) p.shape.parts = 0;
    lstm_fast::plan(kernels, p, threads);
    const bool is_packed = !p.plain && packed_[p.shape.parts].load();
    if (!is_packed && !p.has_halves()) p.weights = weights();
    p.packed = p.plain ? nullptr : packed(kernels, p, threads).pieces();
  }

 private:
  template <typename GetWeights>
  bool is_ordinary(const Kernels& kernels, const StackShape& shape, const GetWeights& weights,
                   const Threads& threads) {
    if (kernels.of(T()).unit != Bf16Unit::Matrix) return true;
    enum { Unknown, Ordinary, Other };
    if (kind_ == Unknown)
      kind_ = ordinary_weights(kernels, shape, weights(), threads) ? Ordinary : Other;
    return kind_ == Ordinary;
  }

  const PackedWeights<T>& packed(const Kernels& kernels, const StackForward<T>& p,
                                 const Threads& threads) {
    std::atomic<const PackedWeights<T>*>& kept = packed_[p.shape.parts];
    if (!kept.load()) {
      const auto* made = new PackedWeights<T>(kernels, p, threads);
      const PackedWeights<T>* none = nullptr;
      if (!kept.compare_exchange_strong(none, made)) delete made;
    }
    return *kept.load();
  }

  std::atomic<int> kind_{0};
  std::atomic<const PackedWeights<T>*> packed_[4] = {};  // by their parts
};

}  // namespace lstm_fast
