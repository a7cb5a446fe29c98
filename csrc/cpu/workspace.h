// Memory that begins on a cache line, for who has no kept memory (../ops/kept_memory.h).
#pragma once

#include <cstdint>
#include <vector>

namespace lstm_fast {

template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t elements) : storage_(elements + 64 / sizeof(T)) {}
  T* get() {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    return storage_.data() + ((address + 63) / 64 * 64 - address) / sizeof(T);
  }

 private:
  std::vector<T> storage_;
};

}  // namespace lstm_fast
