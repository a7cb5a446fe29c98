// What setup.py says of a build. In a file of its own, so that another version or other
// architectures compile nothing else.
#pragma once

namespace lstm_fast {

extern const char* const kVersion;
extern const char* const kTorchTarget;  // the oldest torch that the build runs with
extern const char* const kCudaArchs;    // of the CUDA kernels, with spaces between; "" without them

}  // namespace lstm_fast
