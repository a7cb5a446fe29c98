// Work cut into tasks for threads, and pieces of memory for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../lstm.h"

namespace lstm_fast {

// Of the second cache of a core of this machine. (plan.cpp)
int64_t second_cache_bytes();

// `run` calls f(context, task) for every task in [0, tasks), in any order, on up to `count`
// threads, and returns when all are done. Each thread has a second cache of its own.
struct Threads {
  int64_t count;
  void (*run)(int64_t tasks, void (*f)(const void* context, int64_t task), const void* context);
  int64_t second_cache = second_cache_bytes();

  Threads with_count(int64_t n) const { return {n, run, second_cache}; }
};

// A region of threads has to win back about 5 us of fork and join: 2^19 floating-point operations a
// thread take about that long (measured with 2 threads at 100 GFLOP/s each).
constexpr int64_t kFlopsPerThread = int64_t{1} << 19;

LSTM_FAST_INLINE int64_t threads_for(int64_t flops, const Threads& threads) {
  return std::max<int64_t>(1, std::min(threads.count, flops / kFlopsPerThread));
}

// Calls f(task) for every task; in the calling thread if there is one thread to use.
template <typename F>
void run(const Threads& threads, int64_t tasks, const F& f) {
  if (tasks == 1 || threads.count == 1) {
    for (int64_t task = 0; task < tasks; ++task) f(task);
    return;
  }
  threads.run(
      tasks, [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); },
      &f);
}

// Item i of [0, size) cut into `parts`: [begin(i), begin(i + 1)).
LSTM_FAST_INLINE int64_t part(int64_t size, int64_t parts, int64_t i) { return size * i / parts; }

// A share of work that is cut into some: item i of [0, size) is in one of them.
class Share {
 public:
  LSTM_FAST_INLINE Share(int64_t index, int64_t shares) : index_(index), shares_(shares) {}

  LSTM_FAST_INLINE int64_t begin(int64_t size) const { return first(size, index_); }
  LSTM_FAST_INLINE int64_t end(int64_t size) const { return first(size, index_ + 1); }

 private:
  // Divisions would be felt in steps of a row and a few units, which are of one share.
  LSTM_FAST_INLINE int64_t first(int64_t size, int64_t i) const {
    return shares_ == 1 ? size * i : size * i / shares_;
  }

  int64_t index_, shares_;
};

// Moving so many bytes takes a thread about as long as fork and join.
constexpr int64_t kBytesPerThread = 1 << 18;

// Calls f(item, Share) for shares of the items that together are all of them, and `bytes` to move.
template <typename F>
void run_shares(const Threads& threads, int64_t items, int64_t bytes, const F& f) {
  const int64_t shares = std::max<int64_t>(1, std::min(threads.count, bytes / kBytesPerThread));
  run(threads.with_count(shares), items * shares,
      [&](int64_t task) { f(task / shares, Share(task % shares, shares)); });
}

// Hands out pieces of a workspace on cache lines. From a null base it only measures.
template <typename T>
class Arena {
 public:
  LSTM_FAST_INLINE explicit Arena(T* base) : base_(base) {}

  LSTM_FAST_INLINE T* take(int64_t elements) {
    constexpr int64_t line = 64 / sizeof(T);
    T* piece = base_ ? base_ + used_ : nullptr;
    used_ += (elements + line - 1) / line * line;
    return piece;
  }
  LSTM_FAST_INLINE int64_t used() const { return used_; }

 private:
  T* base_;
  int64_t used_ = 0;
};

template <typename T>
LSTM_FAST_INLINE T* offset(T* p, int64_t elements) {
  return p ? p + elements : nullptr;
}

}  // namespace lstm_fast
