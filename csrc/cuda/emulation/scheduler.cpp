// Fibers, barriers and their order, for device.h. Compiled without instrumentation: what is shared
// between fibers here is the emulator's own and no business of the sanitizers, which are told of
// the fibers and of the order that barriers impose.
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#if defined(LSTM_FAST_EMULATION_ASAN)
#include <sanitizer/common_interface_defs.h>
#elif defined(LSTM_FAST_EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#include "device.h"

// Saves the registers that a call preserves on the stack that is left, and continues where the
// other stack was left.
extern "C" void lstm_fast_switch_stack(void** left, void* entered);
#if !defined(__x86_64__)
#error "the emulation switches stacks in x86-64 assembly"
#endif
asm(R"(
.text
.globl lstm_fast_switch_stack
.type lstm_fast_switch_stack, @function
lstm_fast_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.section .note.GNU-stack,"",@progbits
.text
)");

namespace lstm_fast::cuda::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;
// What every device since Turing grants: threads of a block, shared memory of a block (Hopper).
constexpr unsigned kMaxThreads = 1024;
constexpr int64_t kMaxSharedBytes = 227 * 1024;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

// What a stack belongs to: a fiber, or the thread that launches.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* sanitizer = nullptr;  // TSan's fiber, or ASan's fake stack
};

struct Thread;

struct Barrier {
  std::vector<Thread*> waiting;
  // Of two phases: threads that have gone on may already arrive at the next one.
  char order[2];
  int phase = 0;
};

struct Warp {
  Barrier barrier;
  void* lanes[kWarp];
};

struct Block;

// Blocks that run together, and see each other's shared memory.
struct Cluster {
  std::vector<Block> blocks;
  unsigned alive;  // threads
  Barrier barrier;
};

struct Block {
  Cluster* cluster;
  Index index;
  unsigned alive;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
};

struct Thread {
  Context context;
  Index index;
  Block* block = nullptr;
  // What it waits for that is no meeting of threads.
  bool (*is_over)(const void*, unsigned) = nullptr;
  const void* watched = nullptr;
  unsigned value = 0;
};

// What lies in the eight bytes of a barrier that counts bytes.
struct Counter {
  int32_t bytes;     // that are expected and have not come; or, below zero, the other way round
  uint8_t expected;  // whether expect() has been called in this phase
  uint8_t phase;     // 0 or 1
  char order[2];     // of the phases
};
static_assert(sizeof(Counter) == sizeof(uint64_t));

struct Grid {
  Index size, block_size;
  void (*kernel)(const void*);
  const void* params;
  char begin, end;  // addresses that stand for the order of launch and return
};

Grid* grid;
Context launcher;
Thread* current;
std::vector<Thread*> ready;
std::vector<Thread*> watching;
std::vector<std::unique_ptr<Thread>> pool;  // fibers outlive their kernel, to be used again
std::mt19937 random_numbers(std::getenv("LSTM_FAST_EMULATION_SEED")
                                ? std::strtoul(std::getenv("LSTM_FAST_EMULATION_SEED"), nullptr, 10)
                                : 0);

void released(void* order) {
#if defined(LSTM_FAST_EMULATION_TSAN)
  __tsan_release(order);
#endif
  (void)order;
}

void acquired(void* order) {
#if defined(LSTM_FAST_EMULATION_TSAN)
  __tsan_acquire(order);
#endif
  (void)order;
}

void switch_context(Context& from, Context& to) {
#if defined(LSTM_FAST_EMULATION_ASAN)
  __sanitizer_start_switch_fiber(&from.sanitizer, to.stack_bottom, to.stack_size);
#elif defined(LSTM_FAST_EMULATION_TSAN)
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  lstm_fast_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(LSTM_FAST_EMULATION_ASAN)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

void release_all(Barrier& barrier) {
  for (Thread* thread : barrier.waiting) ready.push_back(thread);
  barrier.waiting.clear();
  barrier.phase ^= 1;
}

// Waits until `expected` threads are here; the last one calls `act` before anybody goes on.
template <typename Act>
void meet(Barrier& barrier, unsigned expected, const Act& act) {
  char* order = &barrier.order[barrier.phase];
  released(order);
  if (barrier.waiting.size() + 1 < expected) {
    Thread* me = current;
    barrier.waiting.push_back(me);
    switch_context(me->context, launcher);
    acquired(order);
    return;
  }
  acquired(order);
  act();
  released(order);
  release_all(barrier);
}

// Where a fiber begins; it is never returned from.
void begin() {
#if defined(LSTM_FAST_EMULATION_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &launcher.stack_bottom, &launcher.stack_size);
#endif
  acquired(&grid->begin);
  grid->kernel(grid->params);
  released(&grid->end);
  Block& block = *current->block;
  --block.alive;
  if (block.alive && block.barrier.waiting.size() == block.alive) release_all(block.barrier);
  Cluster& cluster = *block.cluster;
  --cluster.alive;
  if (cluster.alive && cluster.barrier.waiting.size() == cluster.alive)
    release_all(cluster.barrier);
  Thread* me = current;
  current = nullptr;
  switch_context(me->context, launcher);
  fail("a thread that has ended went on");
}

std::unique_ptr<Thread> new_thread() {
  auto thread = std::make_unique<Thread>();
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) fail("no memory for stacks");
  thread->context.stack_bottom = stack;
  thread->context.stack_size = kStackBytes;
#if defined(LSTM_FAST_EMULATION_TSAN)
  thread->context.sanitizer = __tsan_create_fiber(0);
#endif
  return thread;
}

void start(Thread& thread, Block& block, unsigned i) {
  thread.block = &block;
  thread.index = {i, 0, 0};
#if defined(LSTM_FAST_EMULATION_ASAN)
  thread.context.sanitizer = nullptr;
#endif
  // As lstm_fast_switch_stack expects it: six registers, where to go on, and above that the
  // return address that a function finds on entry.
  auto** top = reinterpret_cast<void**>(
      static_cast<char*>(const_cast<void*>(thread.context.stack_bottom)) + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&begin);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  thread.context.stack_pointer = top;
  ready.push_back(&thread);
}

// Moves the thread at `i` of those that watch to those that can go on, if its wait is over.
bool look(size_t i) {
  Thread* thread = watching[i];
  if (!thread->is_over(thread->watched, thread->value)) return false;
  ready.push_back(thread);
  watching[i] = watching.back();
  watching.pop_back();
  return true;
}

void run_until_all_ended() {
  for (;;) {
    if (!watching.empty()) look(random_numbers() % watching.size());
    for (size_t i = 0; ready.empty() && i < watching.size(); ++i) look(i);
    if (ready.empty()) break;
    std::swap(ready[random_numbers() % ready.size()], ready.back());
    current = ready.back();
    ready.pop_back();
    switch_context(launcher, current->context);
  }
  if (!watching.empty()) fail("threads wait for what never comes");
}

// Waits until is_over(watched, value).
void watch(bool (*is_over)(const void*, unsigned), const void* watched, unsigned value) {
  Thread* me = current;
  me->is_over = is_over;
  me->watched = watched;
  me->value = value;
  watching.push_back(me);
  switch_context(me->context, launcher);
}

void prepare(Block& block, Index index, int64_t shared_bytes) {
  const unsigned threads = grid->block_size.x;
  block.index = index;
  block.alive = threads;
  block.warps.resize(threads / kWarp);
  // Fibers allocate nothing: the sanitizers would see that.
  block.barrier.waiting.reserve(threads);
  for (Warp& warp : block.warps) warp.barrier.waiting.reserve(kWarp);
  void* shared = nullptr;
  if (shared_bytes && posix_memalign(&shared, 128, shared_bytes)) fail("no shared memory");
  if (shared) std::memset(shared, 0xff, shared_bytes);
  block.shared.reset(static_cast<unsigned char*>(shared));
}

void run_cluster(Cluster& cluster, size_t set) {
  const unsigned threads = cluster.alive;
  ready.reserve(threads);
  watching.reserve(threads);
  while (pool.size() < (set + 1) * threads) pool.push_back(new_thread());
  size_t next = set * threads;
  for (Block& block : cluster.blocks)
    for (unsigned i = 0; i < grid->block_size.x; ++i) start(*pool[next++], block, i);
  run_until_all_ended();
  if (cluster.alive) fail("a barrier was not reached by all threads");
}

}  // namespace

const Index& thread_index() { return current->index; }
const Index& block_index() { return current->block->index; }
const Index& block_size() { return grid->block_size; }
const Index& grid_size() { return grid->size; }
unsigned char* shared_memory() { return current->block->shared.get(); }

void sync_block() {
  Block& block = *current->block;
  meet(block.barrier, block.alive, [] {});
}

unsigned rank_together() {
  return static_cast<unsigned>(current->block - current->block->cluster->blocks.data());
}

unsigned char* shared_memory_of(unsigned rank) {
  Cluster& cluster = *current->block->cluster;
  if (rank >= cluster.blocks.size()) fail("there is no such block in the cluster");
  return cluster.blocks[rank].shared.get();
}

void sync_together() {
  Cluster& cluster = *current->block->cluster;
  meet(cluster.barrier, cluster.alive, [] {});
}

void store_flag(unsigned* flag, unsigned value) {
  released(flag);
  *flag = value;
}

void wait_for_flag(const unsigned* flag, unsigned at_least) {
  watch([](const void* p, unsigned value) { return *static_cast<const unsigned*>(p) >= value; },
        flag, at_least);
  acquired(const_cast<unsigned*>(flag));
}

void init_barrier(uint64_t* barrier) { *reinterpret_cast<Counter*>(barrier) = {}; }

namespace {

void end_phase(Counter& counter) {
  if (!counter.expected || counter.bytes) return;
  counter.expected = 0;
  counter.phase ^= 1;
}

}  // namespace

void expect(uint64_t* barrier, int bytes) {
  auto& counter = *reinterpret_cast<Counter*>(barrier);
  if (counter.expected) fail("a barrier was told twice what to expect");
  released(&counter.order[counter.phase]);
  counter.expected = 1;
  counter.bytes += bytes;
  if (counter.bytes < 0) fail("more was posted than a barrier expects");
  end_phase(counter);
}

void complete(uint64_t* barrier, int bytes) {
  auto& counter = *reinterpret_cast<Counter*>(barrier);
  released(&counter.order[counter.phase]);
  counter.bytes -= bytes;
  if (counter.expected && counter.bytes < 0) fail("more was posted than a barrier expects");
  end_phase(counter);
}

void wait(uint64_t* barrier, int parity) {
  watch([](const void* p,
           unsigned of_phase) { return static_cast<const Counter*>(p)->phase != of_phase; },
        barrier, static_cast<unsigned>(parity));
  acquired(&reinterpret_cast<Counter*>(barrier)->order[parity]);
}

unsigned resident_blocks() {
  const char* given = std::getenv("LSTM_FAST_EMULATION_RESIDENT_BLOCKS");
  return given ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : ~0u;
}

void collective(void* mine, void (*all)(void* const*)) {
  const unsigned lane = current->index.x % kWarp;
  Warp& warp = current->block->warps[current->index.x / kWarp];
  warp.lanes[lane] = mine;
  meet(warp.barrier, kWarp, [&] { all(warp.lanes); });
}

void run(Index size, Index block_size, unsigned together, int64_t shared_bytes,
         void (*kernel)(const void*), const void* params) {
  if (block_size.y != 1 || block_size.z != 1 || block_size.x % kWarp || block_size.x == 0)
    fail("a block must be a row of whole warps");
  if (block_size.x > kMaxThreads) fail("too many threads in a block");
  if (shared_bytes > kMaxSharedBytes) fail("too much shared memory");
  if (size.x == 0 || size.y == 0 || size.z == 0 || size.y > 65535 || size.z > 65535)
    fail("a grid that a device refuses");
  Grid g{size, block_size, kernel, params, 0, 0};
  grid = &g;
#if defined(LSTM_FAST_EMULATION_TSAN)
  launcher.sanitizer = __tsan_get_current_fiber();
#endif
  // All memory is there before the first thread starts and until the last one has ended, so that
  // nothing orders the accesses of one block before those of another.
  std::vector<Index> indices;
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x) indices.push_back({x, y, z});
  if (together == 0 || indices.size() % together) fail("a grid of clusters and a rest");
  std::vector<std::unique_ptr<Cluster>> clusters(indices.size() / together);
  for (size_t i = 0; i < indices.size(); ++i) {
    std::unique_ptr<Cluster>& cluster = clusters[i / together];
    if (!cluster) {
      cluster = std::make_unique<Cluster>();
      cluster->blocks = std::vector<Block>(together);
      cluster->alive = together * block_size.x;
      cluster->barrier.waiting.reserve(cluster->alive);
    }
    Block& block = cluster->blocks[i % together];
    block.cluster = cluster.get();
    prepare(block, indices[i], shared_bytes);
  }
  std::shuffle(clusters.begin(), clusters.end(), random_numbers);
  released(&g.begin);
  // Blocks that follow each other have other fibers, so that a conflict between them is seen. Fewer
  // where they are many: the thread sanitizer's time grows with them.
  const size_t sets = together * block_size.x <= 128 ? 4 : 2;
  for (size_t i = 0; i < clusters.size(); ++i) run_cluster(*clusters[i], i % sets);
  acquired(&g.end);
  grid = nullptr;
}

}  // namespace lstm_fast::cuda::emulation
