// Memory for who has no kept memory (../ops/kept_memory.h): aligned, not initialised.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "huge_pages.h"

namespace lstm_fast {

template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t elements)
      : memory_(static_cast<T*>(allocate_aligned(elements * int64_t{sizeof(T)}))) {
    if (elements && !memory_) throw std::bad_alloc();
  }
  T* get() { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace lstm_fast
