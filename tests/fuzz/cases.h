// What the programs of this folder share. A case is a string of bytes that choose sizes, options
// and numbers. LLVMFuzzerTestOneInput, which each program defines, is called by libFuzzer, which
// looks for strings that reach new code, or by main below with random ones
// (-DLSTM_FAST_RANDOM_CASES).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/tasks.h"

namespace lstm_fast {
namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// The case: numbers out of its bytes, zeros when they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  int64_t below(int64_t bound) { return byte() % bound; }
  bool flag() { return byte() & 1; }

  // Mostly small; now and then what nobody should pass.
  int64_t any() {
    constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
    constexpr int64_t kOdd[] = {-1, -kMax - 1, kMax, kMax / 2 + 1, int64_t{1} << 32};
    const int64_t kind = below(24);
    return kind < 5 ? kOdd[kind] : below(20);
  }

 private:
  uint8_t byte() { return data_ < end_ ? *data_++ : 0; }
  const uint8_t* data_;
  const uint8_t* end_;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Exactly so many elements: sanitizers watch the borders.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size, int fill = 0, bool aligned = false) : size_(size) {
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    void* p = aligned ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : std::malloc(bytes);
    data_.reset(static_cast<T*>(p));
    std::memset(p, fill, bytes);
  }
  Buffer(int64_t size, std::mt19937& random) : Buffer(size) {
    constexpr float kSpecial[] = {0, 1e30f, -1e30f, 1e-40f, std::numeric_limits<float>::infinity()};
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t bits = random();
      data_[i] = bits % 97 < 5 ? kSpecial[bits % 97] : static_cast<float>(bits) * 4.7e-10f - 1;
    }
  }
  T* get() const { return size_ ? data_.get() : nullptr; }
  int64_t size() const { return size_; }
  // The same bits, but for those of NaN, which carry no promise.
  bool equals(const Buffer& other) const {
    for (int64_t i = 0; i < size_; ++i) {
      const T a = data_[i], b = other.data_[i];
      if (std::memcmp(&a, &b, sizeof(T)) != 0 && (a == a || b == b)) return false;
    }
    return true;
  }

 private:
  int64_t size_;
  std::unique_ptr<T[], Free> data_;
};

void on_threads(int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < std::min<int64_t>(tasks, 4); ++i) {
    threads.emplace_back([&] {
      for (int64_t task; (task = next++) < tasks;) f(context, task);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void on_this_thread(int64_t tasks, void (*f)(const void*, int64_t), const void* context) {
  for (int64_t task = 0; task < tasks; ++task) f(context, task);
}

// As many as are given, or enough for gradients of weights in several chunks.
int64_t steps_or_many(int64_t steps) { return steps == 6 ? 100 : steps; }

// Rows of the steps of a packed sequence: B at first, and not more later.
std::vector<int64_t> falling(Bytes& bytes, int64_t T, int64_t B) {
  std::vector<int64_t> batch_sizes;
  for (int64_t t = 0; t < T; ++t) {
    batch_sizes.push_back(B);
    B -= std::min(B - 1, bytes.below(3));
  }
  return batch_sizes;
}

const Kernels& kernels_of(int64_t isa) {
  const Kernels* const* list;
  const int count = available_kernels(&list);
  return *list[isa % count];
}

template <typename T>
void check_equal(const std::vector<Buffer<T>>& a, const std::vector<Buffer<T>>& b,
                 const char* failure) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].equals(b[i])) fail(failure);
  }
}

// Runs a problem on one thread and on several. Memory is filled with one byte or another before, so
// that what is read or left unwritten shows when the results of both are compared. Where results
// may depend on the number of threads, one does the work of all.
template <typename Problem>
void run_twice(Problem&& problem, int64_t threads, bool may_depend = false) {
  const auto alone = problem.run({may_depend ? threads : 1, on_this_thread}, 0xff);
  const auto together = problem.run({threads, on_threads}, 0x40);
  check_equal(alone, together, "the result depends on the number of threads");
}

}  // namespace
}  // namespace lstm_fast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#ifdef LSTM_FAST_RANDOM_CASES
// So many random cases, and those of files.
int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 1000;
  std::mt19937 random(2);
  std::vector<uint8_t> data(96);
  for (long i = 0; i < count; ++i) {
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  std::printf("%ld random cases and %d known ones, nothing found\n", count, std::max(0, argc - 2));
}
#endif
