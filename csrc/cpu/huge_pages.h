// Large buffers in huge pages, which the kernel hands out several times faster than small ones.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lstm_fast {

constexpr int64_t kHugePage = int64_t{1} << 21;

// Asks for them for memory that was just allocated, not read or written yet, where whole ones fit.
inline void prefer_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  const auto begin = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHugePage * kHugePage;
  if (begin >= end) return;
  // A refusal costs time alone.
  [[maybe_unused]] const int refused =
      madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Memory that begins on a cache line, in huge pages as far as whole ones fit, for std::free; or
// null.
inline void* allocate_aligned(int64_t bytes) {
  constexpr int64_t line = 64;
  void* memory = nullptr;
  if (posix_memalign(&memory, bytes < kHugePage ? line : kHugePage, bytes)) return nullptr;
  prefer_huge_pages(memory, bytes);
  return memory;
}

}  // namespace lstm_fast
