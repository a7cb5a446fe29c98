// Memory of a call, in pieces.
#pragma once

#include <cstdint>

namespace lstm_fast::cuda {

// Hands out aligned pieces of a workspace. From a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t elements) {
    constexpr int64_t alignment = 256;
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (elements * static_cast<int64_t>(sizeof(T)) + alignment - 1) / alignment * alignment;
    return reinterpret_cast<T*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace lstm_fast::cuda
