#include "kept_memory.h"

#include <pthread.h>

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/huge_pages.h"

namespace lstm_fast {
namespace {

// Of all free blocks. The ones that have been free longest are given up first.
constexpr int64_t kMostKeptBytes = int64_t{256} << 20;
constexpr int64_t kLine = 64;

// Stands before a block.
struct Header {
  int64_t bytes;
};
static_assert(sizeof(Header) <= kLine);

char* block_of(void* p) { return static_cast<char*>(p) - kLine; }
int64_t size_of(void* p) { return reinterpret_cast<Header*>(block_of(p))->bytes; }

void* allocate_block(int64_t bytes) {
  bytes = (bytes + kLine - 1) / kLine * kLine;
  void* block = allocate_aligned(kLine + bytes);
  if (!block) {
    throw std::runtime_error(  // the words of torch's allocator
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
        std::to_string(bytes) + " bytes");
  }
  new (block) Header{bytes};
  return static_cast<char*>(block) + kLine;
}

// A block that is free; its size stands here too, as its own memory may have left the cache.
struct Block {
  void* memory;
  int64_t bytes;
};

struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;  // the latest last
  int64_t bytes = 0;

  // The smallest block of at least so many bytes, not much more of them if it is to be away for
  // long; or null.
  void* take(int64_t wanted, Need need) {
    const std::lock_guard lock(mutex);
    const size_t none = blocks.size();
    size_t best = none, smaller = none;
    for (size_t i = blocks.size(); i-- > 0;) {
      const int64_t size = blocks[i].bytes;
      if (size < wanted) {
        if (smaller == none || size > blocks[smaller].bytes) smaller = i;
      } else if (need == Need::Call || size / 2 <= wanted) {
        if (best == none || size < blocks[best].bytes) best = i;
      }
    }
    if (best != none) return remove(best);
    // The new block will serve the calls that a smaller one has served: as much as a call needs is
    // kept for calls once, not for each size of them.
    if (need == Need::Call && smaller != none && wanted <= kMostKeptBytes)
      std::free(block_of(remove(smaller)));
    return nullptr;
  }

  void give(void* p) {
    const std::lock_guard lock(mutex);
    blocks.push_back({p, size_of(p)});
    bytes += size_of(p);
    release(kMostKeptBytes);
  }

  void release_all() {
    const std::lock_guard lock(mutex);
    release(0);
  }

 private:
  // Gives up blocks until no more than so many bytes are left.
  void release(int64_t most) {
    while (bytes > most) std::free(block_of(remove(0)));
  }

  void* remove(size_t i) {
    void* p = blocks[i].memory;
    bytes -= blocks[i].bytes;
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
    return p;
  }
};

// Never destroyed: tensors may end after everything else.
Kept& kept() {
  static Kept* const instance = [] {
    auto* kept = new Kept;
    // A child must not find a lock taken by a thread that it does not have.
    pthread_atfork([] { lstm_fast::kept().mutex.lock(); }, [] { lstm_fast::kept().mutex.unlock(); },
                   [] { lstm_fast::kept().mutex.unlock(); });
    return kept;
  }();
  return *instance;
}

}  // namespace

void* take_memory(int64_t bytes, Need need) {
  if (bytes >= kLargeBytes) {
    if (void* p = kept().take(bytes, need)) return p;
  }
  return allocate_block(bytes);
}

void give_memory(void* p) {
  const int64_t size = size_of(p);
  // What could not be kept drives out nothing that is.
  if (size < kLargeBytes || size > kMostKeptBytes) return std::free(block_of(p));
  kept().give(p);
}

}  // namespace lstm_fast

extern "C" __attribute__((visibility("default"))) void* lstm_fast_take_memory(int64_t bytes) {
  try {
    return lstm_fast::take_memory(bytes, lstm_fast::Need::Call);
  } catch (const std::exception&) {
    return nullptr;
  }
}

extern "C" __attribute__((visibility("default"))) void lstm_fast_give_memory(void* p) {
  lstm_fast::give_memory(p);
}

extern "C" __attribute__((visibility("default"))) void lstm_fast_empty_cache() {
  lstm_fast::kept().release_all();
}
