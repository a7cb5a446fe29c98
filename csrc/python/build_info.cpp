#include "build_info.h"

namespace lstm_fast {

const char* const kVersion = LSTM_FAST_VERSION;
const char* const kTorchTarget = LSTM_FAST_TORCH_TARGET;
const char* const kIsas = LSTM_FAST_ISAS;
const char* const kCudaArchs = LSTM_FAST_CUDA_ARCHS;

}  // namespace lstm_fast
