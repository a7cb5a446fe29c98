// The rows of a batch cut into slices, one a thread, that have about the same number of steps.
#pragma once

#include <algorithm>
#include <vector>

#include "../lstm.h"
#include "tasks.h"

namespace lstm_fast {

class RowSlices {
 public:
  RowSlices() = default;
  // Up to `count` slices, at least one.
  RowSlices(const Steps& steps, int64_t count)
      : rows_(steps.B), count_(std::max<int64_t>(1, std::min(steps.B, count))) {
    if (steps.batch_sizes && count_ > 1) cut_by_steps(steps);
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t slice) const {
    return begins_.empty() ? part(rows_, count_, slice) : begins_[slice];
  }
  int64_t end(int64_t slice) const { return begin(slice + 1); }
  // Rows of the largest one.
  int64_t largest() const {
    int64_t rows = 0;
    for (int64_t i = 0; i < count_; ++i) rows = std::max(rows, end(i) - begin(i));
    return rows;
  }

 private:
  // Rows of a packed sequence are sorted: the first are the longest.
  void cut_by_steps(const Steps& steps) {
    int64_t length = steps.T, before = 0;  // of a row; steps of the rows before it
    for (int64_t row = 0; row < rows_; ++row) {
      while (static_cast<int64_t>(begins_.size()) < count_ &&
             before >= part(steps.total(), count_, begins_.size())) {
        begins_.push_back(row);
      }
      while (length > 0 && steps.rows(length - 1) <= row) --length;
      before += length;
    }
    begins_.resize(count_ + 1, rows_);
  }

  int64_t rows_ = 0, count_ = 1;
  std::vector<int64_t>
      begins_;  // of the slices, and the end of the last; empty where rows are alike
};

}  // namespace lstm_fast
