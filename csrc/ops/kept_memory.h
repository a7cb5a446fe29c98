// Large buffers of the ops on the CPU. What is given back is kept for the next call: from the
// operating system, memory comes page by page, each cleared first, which was up to a third of a
// training step (1024 rows of 12 steps, H 128, two layers). The C library gives large blocks back
// to it as soon as they are free, and smaller ones if enough of them lie together.
#pragma once

#include <cstdint>

namespace lstm_fast {

// Blocks that are kept; smaller ones have few pages.
constexpr int64_t kLargeBytes = 1 << 16;

// How long memory is needed: for a call, which any large enough block serves, or until backward.
enum class Need { Call, Backward };

// At least so many bytes, at a multiple of 64. Throws std::runtime_error.
void* take_memory(int64_t bytes, Need need);
void give_memory(void* p);

}  // namespace lstm_fast
