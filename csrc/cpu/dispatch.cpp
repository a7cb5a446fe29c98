#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(LSTM_FAST_AMX)
#include "amx.h"
#endif

namespace lstm_fast {

extern const Kernels kernels_baseline;
#if defined(LSTM_FAST_AVX2)
extern const Kernels kernels_avx2;
#endif
#if defined(LSTM_FAST_AVX512)
extern const Kernels kernels_avx512;
#endif
#if defined(LSTM_FAST_AVX512_BF16)
extern const Kernels kernels_avx512_bf16;
#endif
#if defined(LSTM_FAST_AMX)
extern const Kernels kernels_amx;
#endif

namespace {

#if defined(LSTM_FAST_AVX2) || defined(LSTM_FAST_AVX512) || defined(LSTM_FAST_AVX512_BF16) || \
    defined(LSTM_FAST_AMX)
[[maybe_unused]] bool has_avx2() {
  constexpr unsigned kF16c = 1u << 29;  // of leaf 1, ecx; older compilers have no name for it
  unsigned eax, ebx, ecx, edx;
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & kF16c);
}
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#if defined(LSTM_FAST_AVX512_BF16) || defined(LSTM_FAST_AMX)
bool has_avx512_bf16() {
  constexpr unsigned kAvx512Bf16 = 1u << 5;  // of leaf 7.1, eax
  unsigned eax, ebx, ecx, edx;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvx512Bf16);
}
#endif

struct Available {
  const Kernels* list[5];
  int count = 0;

  Available() {
    list[count++] = &kernels_baseline;
#if defined(LSTM_FAST_AVX2)
    if (has_avx2()) list[count++] = &kernels_avx2;
#endif
#if defined(LSTM_FAST_AVX512)
    if (has_avx512()) list[count++] = &kernels_avx512;
#endif
#if defined(LSTM_FAST_AVX512_BF16)
    if (has_avx512_bf16()) list[count++] = &kernels_avx512_bf16;
#endif
#if defined(LSTM_FAST_AMX)
    if (has_avx512_bf16() && amx_usable()) list[count++] = &kernels_amx;
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
  throw std::runtime_error("LSTM_FAST_ISA must be one of " + names +
                           " in this build on this machine, got " + wanted);
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
