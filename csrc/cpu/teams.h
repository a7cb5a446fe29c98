// The teams that the tasks of a region belong to.
#pragma once

#include <vector>

#include "team.h"

namespace lstm_fast {

class Teams {
 public:
  Teams(int64_t count, int64_t members)
      : members_(members), teams_(members > 1 ? count : 0, Team(members)) {}

  // The tasks of a team come one after another; a team of one is none.
  TeamMember member(int64_t task) {
    if (teams_.empty()) return {nullptr, 0};
    return {&teams_[task / members_], task % members_};
  }

 private:
  int64_t members_;
  std::vector<Team> teams_;
};

}  // namespace lstm_fast
