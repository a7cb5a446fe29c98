// What runs the ops of a layer with options on the CPU (../cpu/variant.h).
#include "variant.h"

#include <type_traits>

#include "../cpu/variant.h"
#include "cpu.h"

namespace lstm_fast {
namespace {

class VariantOnCpu {
 public:
  explicit VariantOnCpu(const Tensor&) {}

  template <typename T>
  void forward(VariantForward<T> p, const Tensor&, int64_t parts) const {
    p.shape.parts = unit_parts<T>(parts);
    const Threads threads = torch_threads(p.shape.flops());
    const auto workspace = allocate<T>(variant_forward_workspace_size(kernels_, p, threads));
    variant_forward(kernels_, p, threads, workspace.get());
  }

  template <typename T>
  void backward(VariantProblemBackward<T> p, const Tensor&, int64_t parts) const {
    p.rows.shape.parts = unit_parts<T>(parts);
    const Threads threads = torch_threads(2 * p.rows.shape.flops());
    const auto workspace = allocate<T>(variant_backward_workspace_size(kernels_, p, threads));
    variant_backward(kernels_, p, threads, workspace.get());
  }

 private:
  template <typename T>
  static int unit_parts(int64_t parts) {
    return std::is_same_v<T, double> ? 0 : static_cast<int>(std::clamp<int64_t>(parts, 0, 3));
  }

  const Kernels& kernels_ = active_kernels();
};

}  // namespace
}  // namespace lstm_fast

STABLE_TORCH_LIBRARY_FRAGMENT(lstm_fast, m) {
  m.def(lstm_fast::kVariantSchema);
  m.def(lstm_fast::kVariantBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fast, CPU, m) {
  using Ops = lstm_fast::VariantOps<lstm_fast::VariantOnCpu>;
  m.impl("variant", TORCH_BOX(&Ops::forward));
  m.impl("variant_backward", TORCH_BOX(&Ops::backward));
}
