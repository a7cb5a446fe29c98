// Whether a call wakes torch's threads. For some milliseconds after a region they wait for the next
// one; then they sleep, and to wake them takes 0.06 ms at best and several where the system gives
// them the core of the thread that waits for them. A request that comes alone is answered sooner
// without them; of many that follow each other, all but the first find them awake.
#pragma once

#include <atomic>
#include <chrono>

namespace lstm_fast {

// What a process knows of the use of its threads, in microseconds of a clock.
class Wake {
 public:
  // Whether a call of so many operations, which begins now, is to use other threads.
  bool is_worth(int64_t flops) {
    const int64_t time = now(), last_call = last_call_.exchange(time, kOrder);
    if (time - last_call > kAwake) busy_since_.store(time, kOrder);
    return flops >= kLong || time - last_region_.load(kOrder) < kAwake ||
           time - busy_since_.load(kOrder) > kWaking;
  }
  // They were in use until now.
  void note_region() { last_region_.store(now(), kOrder); }

 private:
  // So long threads stay awake. Those of GCC's OpenMP did for 6 to 8 ms on two Zen 4 cores.
  static constexpr int64_t kAwake = 6000;
  // So long waking may take. Calls that have followed each other for as long will go on to.
  static constexpr int64_t kWaking = 2000;
  // A third of a millisecond for one thread at the least.
  static constexpr int64_t kLong = int64_t{1} << 25;
  static constexpr std::memory_order kOrder = std::memory_order_relaxed;

  static int64_t now() {
    using std::chrono::microseconds, std::chrono::steady_clock;
    return std::chrono::duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
  }

  std::atomic<int64_t> last_region_ = -kAwake, last_call_ = -kAwake, busy_since_ = 0;
};

inline Wake wake;

}  // namespace lstm_fast
