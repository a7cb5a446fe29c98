// How what a block has computed gets to the other blocks of its team. Each block has an inbox for
// each group of rows, in two slots that are used in turn by the exchanges of the group, which are
// numbered from 0. The three ways have these functions in common, which all threads call:
//
//   post       puts a value into the inbox of a block of the team
//   post_all   puts it into those of all
//   posted     says that the block has posted all that it posts in an exchange
//   await      returns what has come in an exchange when all blocks have posted it
//   leave      at the end
//
// Two slots are enough because a block posts in an exchange only after it has got all of the one
// before, and after all its threads have read that of the one before that: nobody is then more than
// one behind. Every exchange that is posted is awaited.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace lstm_fast::cuda {

struct Exchange {
  Team team;
  bool common;             // all blocks get the same
  int arriving;            // bytes that arrive: in all, or for each unit of a block if not common
  unsigned char* inboxes;  // of a grid: [D][teams][groups][2][1 if common, else blocks]
  unsigned* flags;         // of a grid: [D][teams][groups][blocks], zero
};

// A pair of neighbours, which travels as a whole.
template <typename V>
struct alignas(2 * sizeof(V)) Pair {
  V first, second;
};

// One block is the team.
class Alone {
 public:
  static constexpr Together kTogether = Together::Alone;
  __device__ __forceinline__ Alone(const Exchange& exchange, int /*H*/) : team_(exchange.team) {
    __syncthreads();
  }
  static __device__ __forceinline__ int rank() { return 0; }
  __device__ __forceinline__ int team() const { return blockIdx.x; }

  template <typename V>
  __device__ __forceinline__ void post(int, int group, int number, int64_t at, const V& value) {
    *reinterpret_cast<V*>(inbox(group, number) + at) = value;
  }
  template <typename V>
  __device__ __forceinline__ void post_all(int group, int number, int64_t at, const V& value) {
    post(0, group, number, at, value);
  }
  __device__ __forceinline__ void posted(int, int) {}
  __device__ __forceinline__ const unsigned char* await(int group, int number) {
    __syncthreads();
    return inbox(group, number);
  }
  __device__ __forceinline__ void leave() {}

 private:
  __device__ __forceinline__ unsigned char* inbox(int group, int number) const {
    return shared_memory() + team_.memory.inboxes +
           (group * 2 + number % 2) * team_.memory.inbox_bytes;
  }
  const Team& team_;
};

// The blocks are a cluster: values go straight into the shared memory of another block, which waits
// for their number at a barrier of its own. Nobody waits for his stores to arrive.
class Cluster {
 public:
  static constexpr Together kTogether = Together::Cluster;
  __device__ __forceinline__ Cluster(const Exchange& exchange, int H) : team_(exchange.team) {
    const int units = H - rank() * team_.units;
    bytes_ = exchange.arriving * (exchange.common ? 1 : units < team_.units ? units : team_.units);
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * team_.groups; ++i) {
        init_barrier(barrier(0, 0) + i);
        expect(barrier(0, 0) + i, bytes_);
      }
      show_barriers();
    }
    sync_cluster();
  }
  static __device__ __forceinline__ int rank() { return block_of_cluster(); }
  __device__ __forceinline__ int team() const { return blockIdx.x / team_.blocks; }

  template <typename V>
  __device__ __forceinline__ void post(int to, int group, int number, int64_t at, const V& value) {
    lstm_fast::cuda::post(reinterpret_cast<V*>(inbox(group, number) + at), barrier(group, number),
                          to, value);
  }
  template <typename V>
  __device__ __forceinline__ void post_all(int group, int number, int64_t at, const V& value) {
    for (int to = 0; to < team_.blocks; ++to) post(to, group, number, at, value);
  }
  __device__ __forceinline__ void posted(int, int) {}
  __device__ __forceinline__ const unsigned char* await(int group, int number) {
    wait(barrier(group, number), number / 2 % 2);
    reconverge();
    if (threadIdx.x == 0) expect(barrier(group, number), bytes_);  // of the next but one
    return inbox(group, number);
  }
  // No block ends while another one may still refer to its shared memory.
  __device__ __forceinline__ void leave() { sync_cluster(); }

 private:
  __device__ __forceinline__ unsigned char* inbox(int group, int number) const {
    return shared_memory() + team_.memory.inboxes +
           (group * 2 + number % 2) * team_.memory.inbox_bytes;
  }
  __device__ __forceinline__ Barrier* barrier(int group, int number) const {
    return reinterpret_cast<Barrier*>(shared_memory() + team_.memory.barriers) + group * 2 +
           number % 2;
  }
  const Team& team_;
  int bytes_;
};

// The blocks are anywhere on the device: inboxes are in its memory, which is to say in the L2
// cache, and each block has a flag that counts what it has posted. An inbox is copied to shared
// memory before it is read.
class Grid {
 public:
  static constexpr Together kTogether = Together::Grid;
  __device__ __forceinline__ Grid(const Exchange& exchange, int /*H*/) : exchange_(exchange) {
    __syncthreads();
  }
  __device__ __forceinline__ int rank() const { return blockIdx.x % exchange_.team.blocks; }
  __device__ __forceinline__ int team() const { return blockIdx.x / exchange_.team.blocks; }

  template <typename V>
  __device__ __forceinline__ void post(int to, int group, int number, int64_t at, const V& value) {
    *reinterpret_cast<V*>(inbox(to, group, number) + at) = value;
  }
  template <typename V>
  __device__ __forceinline__ void post_all(int group, int number, int64_t at, const V& value) {
    post(0, group, number, at, value);
  }
  __device__ __forceinline__ void posted(int group, int number) {
    __syncthreads();
    if (threadIdx.x == 0) store_flag(flags(group) + rank(), number + 1);
  }
  __device__ __forceinline__ const unsigned char* await(int group, int number) {
    for (int block = threadIdx.x; block < exchange_.team.blocks; block += blockDim.x)
      wait_for_flag(flags(group) + block, number + 1);
    __syncthreads();
    const TeamMemory& memory = exchange_.team.memory;
    const auto* from =
        reinterpret_cast<const uint4*>(inbox(exchange_.common ? 0 : rank(), group, number));
    auto* to = reinterpret_cast<uint4*>(shared_memory() + memory.inboxes);
    const int words = static_cast<int>(memory.inbox_bytes / sizeof(uint4));
#pragma unroll 4
    for (int i = threadIdx.x; i < words; i += blockDim.x) to[i] = load_shared_by_blocks(from + i);
    __syncthreads();
    return shared_memory() + memory.inboxes;
  }
  __device__ __forceinline__ void leave() {}

 private:
  __device__ __forceinline__ int64_t first(int group) const {
    const Team& t = exchange_.team;
    return (static_cast<int64_t>(blockIdx.z) * t.teams + team()) * t.groups + group;
  }
  __device__ __forceinline__ unsigned char* inbox(int block, int group, int number) const {
    const int64_t boxes = exchange_.common ? 1 : exchange_.team.blocks;
    return exchange_.inboxes +
           ((first(group) * 2 + number % 2) * boxes + block) * exchange_.team.memory.inbox_bytes;
  }
  __device__ __forceinline__ unsigned* flags(int group) const {
    return exchange_.flags + first(group) * exchange_.team.blocks;
  }
  const Exchange& exchange_;
};

}  // namespace lstm_fast::cuda
