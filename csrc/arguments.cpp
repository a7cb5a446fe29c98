#include "arguments.h"

#include <stdexcept>

namespace lstm_fast {
namespace {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string message;
  ((message += parts), ...);
  throw std::runtime_error(message);
}

void expect(const std::string& name, const Dims& expected, const Dims& got) {
  if (!(expected == got)) fail("Expected ", name, " size ", expected.str(), ", got ", got.str());
}

// The steps of the batch; for packed input `offsets` is filled.
Steps infer_steps(const StackArguments& a, std::vector<int64_t>& offsets) {
  if (!a.batch_sizes) {
    if (a.input.dim != 3) fail("input must have 3 dimensions, got ", std::to_string(a.input.dim));
    if (a.input.size[0] == 0) fail("Expected sequence length to be larger than 0 in RNN");
    return {a.input.size[0], a.input.size[1], nullptr, nullptr};
  }
  if (a.input.dim != 2) fail("input must have 2 dimensions, got ", std::to_string(a.input.dim));
  if (a.batch_sizes_length == 0) fail("batch_sizes must not be empty");
  int64_t total = 0;
  offsets.reserve(a.batch_sizes_length);
  for (int64_t t = 0; t < a.batch_sizes_length; ++t) {
    const int64_t rows = a.batch_sizes[t];
    if (rows <= 0 || (t && rows > a.batch_sizes[t - 1]))
      fail("batch_sizes must be positive and not increase");
    if (rows > a.input.size[0] - total) {
      fail("batch_sizes must sum up to input.size(0). Expected ", std::to_string(a.input.size[0]),
           ", got more");
    }
    offsets.push_back(total);
    total += rows;
  }
  if (total != a.input.size[0]) {
    fail("batch_sizes must sum up to input.size(0). Expected ", std::to_string(a.input.size[0]),
         ", got ", std::to_string(total));
  }
  return {a.batch_sizes_length, a.batch_sizes[0], a.batch_sizes, offsets.data()};
}

void check_params(const StackArguments& a, const StackShape& s) {
  const int64_t G = 4 * s.H;
  auto param = a.params.begin();
  for (int64_t l = 0; l < s.L; ++l) {
    for (int64_t d = 0; d < s.D; ++d) {
      const std::string suffix = "_l" + std::to_string(l) + (d ? "_reverse" : "");
      expect("weight_ih" + suffix, {2, {G, s.input_size(l)}}, *param++);
      expect("weight_hh" + suffix, {2, {G, s.P}}, *param++);
      if (a.has_biases) {
        expect("bias_ih" + suffix, {1, {G}}, *param++);
        expect("bias_hh" + suffix, {1, {G}}, *param++);
      }
      if (s.projected) expect("weight_hr" + suffix, {2, {s.P, s.H}}, *param++);
    }
  }
}

void check_states(const StackShape& s, const Dims* h0, const Dims* c0) {
  if (h0) expect("hidden[0]", {3, {s.L * s.D, s.steps.B, s.P}}, *h0);
  if (c0) expect("hidden[1]", {3, {s.L * s.D, s.steps.B, s.H}}, *c0);
}

}  // namespace

bool Dims::operator==(const Dims& other) const {
  if (dim != other.dim || dim > 3) return false;
  for (int64_t i = 0; i < dim; ++i) {
    if (size[i] != other.size[i]) return false;
  }
  return true;
}

std::string Dims::str() const {
  std::string text = "[";
  for (int64_t i = 0; i < dim && i < 3; ++i) text += (i ? ", " : "") + std::to_string(size[i]);
  return text + (dim > 3 ? ", ...]" : "]");
}

StackShape infer_shape(const StackArguments& a, std::vector<int64_t>& offsets) {
  StackShape s{};
  s.steps = infer_steps(a, offsets);
  s.I = a.input.size[a.input.dim - 1];
  s.L = a.num_layers;
  s.D = a.bidirectional ? 2 : 1;
  if (s.L < 1) fail("num_layers must be greater than zero");

  const int64_t count = static_cast<int64_t>(a.params.size());
  if (s.L > count) {
    fail("params must hold tensors for ", std::to_string(s.L), " layers, got ",
         std::to_string(count));
  }
  const int64_t plain = s.L * s.D * params_per_layer(a.has_biases, false);
  s.projected = count == plain + s.L * s.D;
  if (count != plain && !s.projected) {
    fail("params must hold ", std::to_string(plain), " tensors, or ",
         std::to_string(plain + s.L * s.D), " with projections, got ", std::to_string(count));
  }
  const Dims& weight_hh = a.params[1];
  if (weight_hh.dim != 2 || weight_hh.size[0] % 4 != 0 || weight_hh.size[0] == 0 ||
      weight_hh.size[1] == 0) {
    fail("weight_hh_l0 must have size [4 * hidden_size, ",
         s.projected ? "proj_size" : "hidden_size", "], got ", weight_hh.str());
  }
  s.H = weight_hh.size[0] / 4;
  s.P = s.projected ? weight_hh.size[1] : s.H;
  if (s.I == 0) fail("input.size(-1) must be greater than zero");
  check_params(a, s);
  check_states(s, a.h0, a.c0);
  return s;
}

StackShape infer_shape(const StackShape& stack, const Dims& input, const Dims* h0, const Dims* c0) {
  StackArguments a;
  a.input = input;
  std::vector<int64_t> offsets;
  StackShape s = stack;
  s.steps = infer_steps(a, offsets);
  if (input.size[2] != s.I) {
    fail("input.size(-1) must be equal to input_size. Expected ", std::to_string(s.I), ", got ",
         std::to_string(input.size[2]));
  }
  check_states(s, h0, c0);
  return s;
}

}  // namespace lstm_fast
