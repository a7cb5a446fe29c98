// The shape of a stack, worked out from the shapes of its arguments and checked against all of
// them. Shared by all doors into the kernels, so that they say the same
// about a wrong argument.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lstm.h"

namespace lstm_fast {

// The dimensions of an array; `dim` is the true number of dimensions, of which three are recorded.
struct Dims {
  int64_t dim = 0;
  int64_t size[3] = {};

  bool operator==(const Dims& other) const;
  std::string str() const;  // "[5, 3, 8]"
};

struct StackArguments {
  Dims input;                            // [T, B, I], or [N, I] with batch_sizes
  const int64_t* batch_sizes = nullptr;  // [T]
  int64_t batch_sizes_length = 0;
  const Dims* h0 = nullptr;  // null: not given
  const Dims* c0 = nullptr;
  std::vector<Dims> params;
  bool has_biases = true;
  int64_t num_layers = 1;
  bool bidirectional = false;
};

// Throws std::runtime_error, as nn.LSTM does, naming the argument at fault. `offsets` receives what
// the shape points to for packed input.
StackShape infer_shape(const StackArguments& arguments, std::vector<int64_t>& offsets);

// Likewise for the padded input and the states of a further call of a stack of this shape.
StackShape infer_shape(const StackShape& stack, const Dims& input, const Dims* h0, const Dims* c0);

// Parameters of a layer in one direction, in nn.LSTM's order: weight_ih, weight_hh, (bias_ih,
// bias_hh), (weight_hr).
inline int64_t params_per_layer(bool has_biases, bool projected) {
  return 2 + 2 * has_biases + projected;
}

// params: pointers in the order of StackArguments::params. Weights is LayerWeights or
// LayerWeightGrads.
template <typename Weights, typename Pointer>
std::vector<Weights> group_params(const StackShape& s, bool has_biases,
                                  const std::vector<Pointer>& params) {
  std::vector<Weights> layers(s.L * s.D);
  auto next = params.begin();
  for (Weights& layer : layers) {
    layer.weight_ih = *next++;
    layer.weight_hh = *next++;
    layer.bias_ih = has_biases ? *next++ : nullptr;
    layer.bias_hh = has_biases ? *next++ : nullptr;
    layer.weight_hr = s.projected ? *next++ : nullptr;
  }
  return layers;
}

}  // namespace lstm_fast
