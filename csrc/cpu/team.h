// Threads that share the units of each step of the same rows, and wait for each other after it.
#pragma once

#include <sched.h>

#include "tasks.h"

namespace lstm_fast {

// The work of a team goes round by round, cut into as many shares as it has members. A share
// belongs to a member, but whoever is there takes it if nobody has: the team makes progress with
// any number of its members, so that it does not matter how many threads there are to run them.
class Team {
 public:
  static constexpr int64_t kMostMembers = 16;

  explicit Team(int64_t size) : size_(size) {}

  LSTM_FAST_INLINE int64_t size() const { return size_; }

  LSTM_FAST_INLINE bool take(int64_t share, int64_t round) {
    return __atomic_compare_exchange_n(&taken_[share].value, &round, round + 1, false,
                                       __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
  }
  LSTM_FAST_INLINE void done() { __atomic_add_fetch(&done_.value, 1, __ATOMIC_RELEASE); }

  // Returns when all shares of a round are done.
  LSTM_FAST_INLINE void wait(int64_t round) const {
    const int64_t shares = (round + 1) * size_;
    for (int spins = 0; __atomic_load_n(&done_.value, __ATOMIC_ACQUIRE) < shares;) {
      if (spins < kSpins) {
        ++spins;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        sched_yield();
      }
    }
  }

 private:
  // About as long as a fork and join of threads takes.
  static constexpr int kSpins = 200;
  struct alignas(64) Counter {
    int64_t value = 0;
  };
  int64_t size_;
  Counter taken_[kMostMembers];  // rounds in which a share has been taken
  Counter done_;                 // shares of all rounds
};

// A thread's place in a team; without one (null) it works alone.
class TeamMember {
 public:
  LSTM_FAST_INLINE TeamMember(Team* team, int64_t index) : team_(team), index_(index) {}

  LSTM_FAST_INLINE int64_t team_size() const { return team_ ? team_->size() : 1; }

  // Calls f(Share) for what is to do in the next round; all of it is done on return.
  template <typename F>
  LSTM_FAST_INLINE void round(const F& f) {
    const int64_t size = team_size();
    for (int64_t i = 0; i < size; ++i) {
      const int64_t share = index_ + i < size ? index_ + i : index_ + i - size;
      if (team_ && !team_->take(share, round_)) continue;
      f(Share(share, size));
      if (team_) team_->done();
    }
    if (team_) team_->wait(round_);
    ++round_;
  }

 private:
  Team* team_;
  int64_t index_, round_ = 0;
};

}  // namespace lstm_fast
