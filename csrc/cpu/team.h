// Threads that share the units of each step of the same rows, and wait for each other after it.
#pragma once

#include <sched.h>

#include "tasks.h"

namespace lstm_fast {

// A number that threads raise together, on a cache line of its own.
class alignas(64) Counter {
 public:
  // What the thread that raised it to this number had written can be read afterwards.
  LSTM_FAST_INLINE int64_t value() const { return __atomic_load_n(&value_, __ATOMIC_ACQUIRE); }
  LSTM_FAST_INLINE void add_one() { __atomic_add_fetch(&value_, 1, __ATOMIC_RELEASE); }
  // By one, if it is `from`; whether it was.
  LSTM_FAST_INLINE bool raise(int64_t from) {
    return __atomic_compare_exchange_n(&value_, &from, from + 1, false, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
  }

 private:
  int64_t value_ = 0;
};

// Waiting for other threads, which may have no core yet.
class Wait {
 public:
  LSTM_FAST_INLINE void once() {
    if (spins_ < kSpins) {
      ++spins_;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      sched_yield();
    }
  }

 private:
  // About as long as a fork and join of threads takes.
  static constexpr int kSpins = 200;
  int spins_ = 0;
};

// The work of a team goes round by round, cut into as many shares as it has members. A share
// belongs to a member, but whoever is there takes it if nobody has: the team makes progress with
// any number of its members, so that it does not matter how many threads there are to run them.
class Team {
 public:
  static constexpr int64_t kMostMembers = 16;

  explicit Team(int64_t size) : size_(size) {}

  LSTM_FAST_INLINE int64_t size() const { return size_; }

  LSTM_FAST_INLINE bool take(int64_t share, int64_t round) { return taken_[share].raise(round); }
  LSTM_FAST_INLINE void done() { done_.add_one(); }

  // Returns when all shares of a round are done.
  LSTM_FAST_INLINE void wait(int64_t round) const {
    const int64_t shares = (round + 1) * size_;
    for (Wait wait; done_.value() < shares;) wait.once();
  }

 private:
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
