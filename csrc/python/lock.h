// Python's lock, which others may have while a kernel computes.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>
#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace lstm_fast {

// Takes it back. When Python shuts down, it ends a thread that asks for its lock by unwinding the
// stack, which no destructor of C++ on the way allows: the process would abort. The thread waits
// for the end here instead, as it does by itself from Python 3.14 on.
inline void take_lock(PyThreadState* thread) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(thread);
  } catch (const abi::__forced_unwind&) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else
  PyEval_RestoreThread(thread);
#endif
}

// Gives it up as long as it lives.
class OthersMayRun {
 public:
  OthersMayRun() : thread_(PyEval_SaveThread()) {}
  OthersMayRun(const OthersMayRun&) = delete;
  OthersMayRun& operator=(const OthersMayRun&) = delete;
  ~OthersMayRun() { take_lock(thread_); }

 private:
  PyThreadState* thread_;
};

}  // namespace lstm_fast
