#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace lstm_fast {

extern const Kernels kernels_baseline;
#if defined(LSTM_FAST_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

struct Available {
  const Kernels* list[3];
  int count = 0;

  Available() {
    list[count++] = &kernels_baseline;
#if defined(LSTM_FAST_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2) list[count++] = &kernels_avx2;
    if (avx2 && avx512) list[count++] = &kernels_avx512;
#endif
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

const Kernels& choose() {
  const Available& kernels = available();
  const char* wanted = std::getenv("LSTM_FAST_ISA");
  if (!wanted || !*wanted) return *kernels.list[kernels.count - 1];
  std::string names;
  for (int i = 0; i < kernels.count; ++i) {
    if (!std::strcmp(wanted, kernels.list[i]->isa)) return *kernels.list[i];
    names += std::string(i ? ", " : "") + kernels.list[i]->isa;
  }
  throw std::runtime_error("LSTM_FAST_ISA must be one of " + names + " on this machine, got " +
                           wanted);
}

}  // namespace

int available_kernels(const Kernels* const** first) {
  *first = available().list;
  return available().count;
}

const Kernels& active_kernels() {
  static const Kernels& kernels = choose();
  return kernels;
}

}  // namespace lstm_fast
