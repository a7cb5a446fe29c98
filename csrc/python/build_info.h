// What setup.py says of a build. In a file of its own, so that another version or other
// architectures compile nothing else.
#pragma once

namespace lstm_fast {

extern const char* const kVersion;
extern const char* const kTorchTarget;  // the oldest torch that the build runs with
extern const char* const kIsas;         // instruction sets, with spaces between
extern const char* const kCudaArchs;    // likewise those of CUDA kernels; "" without them

}  // namespace lstm_fast
