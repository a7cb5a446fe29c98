// Threads that take the layers of a stack for the same rows, each behind the one before.
#pragma once

#include <algorithm>
#include <vector>

#include "team.h"

namespace lstm_fast {

// A layer is prepared, and then computed some steps at a time, each time after the layer before has
// been. As many layers as there are members are prepared at once, further ones after the one before
// them. Whoever is there takes what can be done: as in a team, it does not matter how many threads
// there are.
class Pipeline {
 public:
  Pipeline(int64_t layers, int64_t members, int64_t steps, int64_t stage_steps)
      : members_(members),
        steps_(steps),
        stage_steps_(stage_steps),
        stages_(1 + (steps + stage_steps - 1) / stage_steps),
        taken_(layers),
        done_(layers) {}

  // Calls prepare(layer) and compute(layer, first step, end), until all is done. A member looks
  // after its own layers first, whose weights are in the cache of its thread.
  template <typename P, typename C>
  void work(int64_t member, const P& prepare, const C& compute) {
    const auto take = [&](int64_t layer, int64_t stage) {
      if (stage == 0) return prepare(layer);
      const int64_t begin = (stage - 1) * stage_steps_;
      compute(layer, begin, std::min(steps_, begin + stage_steps_));
    };
    for (Wait wait; done_.back().value() < stages_;) {
      if (take_one(member, true, take) || take_one(member, false, take)) {
        wait = Wait();
      } else {
        wait.once();
      }
    }
  }

 private:
  // The last layer that can be, of a member's own or of the others: what it reads was written last.
  template <typename F>
  bool take_one(int64_t member, bool own, const F& take) {
    for (int64_t l = static_cast<int64_t>(done_.size()) - 1; l >= 0; --l) {
      if ((l % members_ == member) != own) continue;
      const int64_t stage = done_[l].value();
      const bool is_start = stage == 0 && l < members_;
      const bool waits = l > 0 && !is_start && done_[l - 1].value() <= stage;
      if (stage == stages_ || waits || !taken_[l].raise(stage)) continue;
      take(l, stage);
      done_[l].add_one();
      return true;
    }
    return false;
  }

  int64_t members_, steps_, stage_steps_, stages_;
  std::vector<Counter> taken_, done_;  // stages of each layer
};

}  // namespace lstm_fast
