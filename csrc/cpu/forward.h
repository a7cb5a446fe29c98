// Forward of one layer in one direction.
//
//   i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)[i, f, o]      g = tanh(...)[g]
//   c_t = f * c_{t-1} + i * g        hidden = o * tanh(c_t)        h_t = hidden, or W_hr hidden
//
// A register tile holds the four gates of a group of units for some rows, so that gates and cells
// never leave the registers. A group has kLanes units, a vector for each gate. The units that are
// left make groups of half and of a quarter as many, of which two or all four gates share a vector,
// and then as many rows share one when gates and cells are computed. Weights are packed for it: per
// group the biases [4][units] and then, for k over h and over x, [P + I][4][units]; after all
// groups come the panels of weight_hr. With a unit for bfloat16, k covers the tails of h and x
// alone, and the blocks of h and of x (split.h) follow.
#pragma once

#include "flush_denormals.h"
#include "kernels.h"
#include "math.h"
#include "split_matmul.h"

namespace lstm_fast {
namespace {

// Terms of K that are multiplied one by one, and blocks of a unit for bfloat16 for the others.
INLINE int64_t tail(const LayerShape& s, int64_t K) { return s.parts ? split_tail(K) : K; }
INLINE int64_t blocks(const LayerShape& s, int64_t K) { return s.parts ? split_blocks(K) : 0; }

// The groups of units of a layer.
template <typename T>
struct Groups {
  explicit INLINE Groups(const LayerShape& s)
      : H(s.H), full(s.H / kLanes<T>), whole(s.parts > 0 && kUnit<T> == Bf16Unit::Matrix) {
    const int64_t left = H - full * kLanes<T>;
    count = full + (left > 0) + (!whole && left > units_of(2) && left <= units_of(3));
  }

  // Most units that W vectors take with all of their gates.
  static INLINE constexpr int units_of(int W) { return W * kLanes<T> / 4; }

  // Vectors for the four gates of the group that begins at unit u: 4, 2 or 1.
  INLINE int vectors(int64_t u) const {
    const int64_t left = H - u;
    return whole || left > units_of(3) ? 4 : left > units_of(1) ? 2 : 1;
  }
  // The unit that group i begins at; H past the last one.
  INLINE int64_t unit(int64_t i) const {
    return i <= full ? i * kLanes<T> : i < count ? full * kLanes<T> + units_of(2) : H;
  }
  // The units and the idle lanes of all groups.
  INLINE int64_t packed_units() const {
    const int64_t last = unit(count - 1);
    return last + units_of(vectors(last));
  }

  int64_t H, full;
  bool whole;  // the matrix unit takes groups of four vectors alone
  int64_t count;
};

template <typename T>
INLINE Sweep all_groups(const LayerShape& s) {
  return {0, Groups<T>(s).count};
}

// Elements that are packed for each unit, idle lanes among them.
template <typename T>
INLINE int64_t unit_size(const LayerShape& s) {
  return 4 * (1 + tail(s, s.P) + tail(s, s.I)) +
         (blocks(s, s.P) + blocks(s, s.I)) * s.parts * (4 * kTileFloats / kLanes<T>);
}

template <typename T>
INLINE int64_t all_groups_size(const LayerShape& s) {
  return Groups<T>(s).packed_units() * unit_size<T>(s);
}

template <typename T>
int64_t forward_weights_size(const LayerShape& s) {
  return all_groups_size<T>(s) + (s.projected ? packed_size<T>(s.H, s.P) : 0);
}

// Asks for the rows of w [G, K] of the units from u on, gate by gate, while others are packed.
template <typename E>
struct GatesAhead {
  Ahead<E> of_gate[4] = {};

  GatesAhead(const LayerShape& s, const E* w, int64_t K, int64_t u) {
    for (int gate = 0; u < s.H && gate < 4; ++gate) of_gate[gate].next = w + (gate * s.H + u) * K;
  }
};

// The blocks of w [G, K] for the group of units that begins at u, in so many vectors.
template <typename E, typename T>
INLINE void pack_blocks(const LayerShape& s, const E* w, int64_t K, int64_t u, int vectors,
                        T* out) {
  const int lanes = Groups<T>::units_of(vectors);
  const int64_t units = min(lanes, s.H - u);
  const E* columns[4][kUnitRows] = {};
  for (int gate = 0; gate < 4; ++gate) {
    const E** of_gate = &columns[gate * lanes / kUnitRows][gate * lanes % kUnitRows];
    for (int64_t i = 0; i < units; ++i) of_gate[i] = w + (gate * s.H + u + i) * K;
  }
  // The rows of the next group are on their way meanwhile, if a vector is of one gate.
  GatesAhead<E> ahead(s, w, K, vectors == 4 ? u + lanes : s.H);
  uint16_t* block = reinterpret_cast<uint16_t*>(out);
  for (int64_t k = 0; k < blocks(s, K); ++k, block += s.parts * vectors * kTileParts) {
    for (int v = 0; v < vectors; ++v) {
      ahead.of_gate[v].advance();
      ahead.of_gate[v].advance();
      pack_block_transposed(columns[v], k * kBlockTerms, K, s.parts, block + v * kVectorParts,
                            vectors * kTileParts, pair_parts(vectors));
    }
  }
}

// From weights as memory has them: bfloat16 ones are widened, which changes none.
template <typename E, typename T = Computed<E>>
void pack_forward(const LayerShape& s, const LayerWeights<E>& w, const Share& share, T* out) {
  const Groups<T> groups(s);
  const int64_t tail_h = tail(s, s.P), tail_x = tail(s, s.I);
  for (int64_t i = share.begin(groups.count); i < share.end(groups.count); ++i) {
    const int64_t u = groups.unit(i);
    const int vectors = groups.vectors(u);
    const int64_t lanes = groups.units_of(vectors), width = 4 * lanes, units = min(lanes, s.H - u);
    T* group = out + u * unit_size<T>(s);
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * s.H + u;
      const Vec<T> bias =
          w.bias_ih ? load(w.bias_ih + row, units) + load(w.bias_hh + row, units) : Vec<T>{};
      store(group + gate * lanes, bias, lanes);
    }
    // Gates in turn for some terms: what is written stays in the first cache (16 KiB) until it has
    // its four gates. Meanwhile the rows of the next group are on their way.
    constexpr int64_t terms_at_once = (1 << 14) / (4 * kLanes<T> * sizeof(T));
    const auto pack_tail = [&](const E* m, int64_t K, int64_t terms, T* rows) {
      GatesAhead<E> ahead(s, m, K, u + lanes);
      for (int64_t k = 0; k < terms; k += terms_at_once) {
        for (int gate = 0; gate < 4; ++gate) {
          transpose_columns(m + (gate * s.H + u + 1) * K - terms + k, K, units,
                            min(terms_at_once, terms - k), rows + k * width + gate * lanes, width,
                            lanes, ahead.of_gate[gate]);
        }
      }
    };
    pack_tail(w.weight_hh, s.P, tail_h, group + width);
    pack_tail(w.weight_ih, s.I, tail_x, group + (1 + tail_h) * width);
    if constexpr (kUnit<T> != Bf16Unit::None) {
      T* of_h = group + (1 + tail_h + tail_x) * width;
      T* of_x = of_h + blocks(s, s.P) * s.parts * vectors * kTileFloats;
      pack_blocks(s, w.weight_hh, s.P, u, vectors, of_h);
      pack_blocks(s, w.weight_ih, s.I, u, vectors, of_x);
    }
  }
  if (s.projected) {
    pack_transposed_columns(w.weight_hr, s.H, s.P, share, out + all_groups_size<T>(s));
  }
}

// The rows [begin, end) of the batch at one step, and the units that are computed for them.
// Pointers are to batch row 0, row b lies b * stride further.
template <typename T>
struct ForwardRun {
  int64_t begin, end;
  Sweep groups;
  Rows<T> x, h;
  T* hidden;
  int64_t hidden_stride;
  T* gates;  // null if they are not saved
  T* cells;
  Rows<T> input_sums = {};  // of the rows, from sum_inputs; null if the step multiplies x itself
};

// Vectors that hold S rows each, side by side: the numbers of vector v of R rows, `units` of each.
template <int R, int S, typename T>
INLINE Vec<T> load_rows(int v, const T* m, int64_t stride, int64_t units) {
  if constexpr (R == 1) return load(m, units);
  Vec<T> rows[S] = {};
  for (int r = 0; r < S && v * S + r < R; ++r) rows[r] = load(m + (v * S + r) * stride, units);
  return join<T>(rows);
}
template <int R, int S, typename T>
INLINE void store_rows(int v, Vec<T> rows, T* m, int64_t stride, int64_t units) {
  unrolled<S>([&](auto r) {
    if (v * S + r < R) {
      store(m + (v * S + r) * stride, rotate<T, r * kLanes<T> / S>(rows), units);
    }
  });
}

// Gates and cells of R rows from b, units from u, of which z holds the sums before activation, S
// rows a vector. A sigmoid and the tanh that it is multiplied with share a division:
//   i g = m / ((1 + exp(-z_i)) (m + 2)) with m = expm1(2 z_g), and likewise o tanh(c)
// Rough: z are sums of products of bfloat16.
template <int R, int S, bool Rough, typename T, int V, typename Background = NoBackground>
INLINE void update_cells(const LayerForward<T>& p, const ForwardRun<T>& run, int64_t b, int64_t u,
                         const Vec<T> (&z)[V][4], const Background& background = {}) {
  static_assert(V == (R + S - 1) / S);
  constexpr int pauses = 3 * V;
  const int64_t H = p.shape.H, left = H - u, units = S > 1 ? min(kLanes<T> / S, left) : left;
  const T two = 2;
  const Vec<T> one = broadcast(T(1));
  T* c_rows = p.c_n + b * H + u;
  T* gates = run.gates ? run.gates + b * 4 * H + u : nullptr;
  Vec<T> c[V], o_inverse[V], c_exponent[V];
  // Unrolled, so that each part of the background has its place between two rows.
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    ExpParts<T, 4> e =
        exp_parts<T, 4, Rough>({sigmoid_exponent<T>(z[v][0]), sigmoid_exponent<T>(z[v][1]),
                                tanh_exponent<T>(z[v][2]), sigmoid_exponent<T>(z[v][3])});
    background.advance(2 * v, pauses, e.residue[0], e.residue[1], e.residue[2], e.residue[3]);
    const Vec<T> i_inverse = one_plus_exp(e, 0), m = expm1(e, 2);
    const Vec<T> ig_inverse = T(1) / (i_inverse * (m + two));
    const Vec<T> f = Rough ? T(1) / one_plus_exp(e, 1) : sigmoid_of_exp<T>(exp(e, 1));
    o_inverse[v] = one_plus_exp(e, 3);
    c[v] = fma(f, load_rows<R, S>(v, c_rows, H, units), m * ig_inverse);
    c_exponent[v] = tanh_exponent<T>(c[v]);
    store_rows<R, S>(v, c[v], c_rows, H, units);
    if (gates) {
      // Refined, so that a gate that is saturated is one, and passes no gradient on.
      const Vec<T> i = (m + two) * ig_inverse, g_inverse = i_inverse * ig_inverse;
      store_rows<R, S>(v, refined<T>(i, one, i_inverse, i), gates, 4 * H, units);
      store_rows<R, S>(v, f, gates + H, 4 * H, units);
      store_rows<R, S>(v, refined<T>(m * g_inverse, m, m + two, g_inverse), gates + 2 * H, 4 * H,
                       units);
      store_rows<R, S>(v, c[v], run.cells + b * H + u, H, units);
    }
    background.advance(2 * v + 1, pauses, c_exponent[v], o_inverse[v]);
  }
  ExpParts<T, V> e = exp_parts<T, V, Rough>(c_exponent);
  T* hidden = run.hidden + b * run.hidden_stride + u;
  for (int v = 0; v < V; ++v) {
    background.advance(2 * V + v, pauses, e.residue[v]);
    const Vec<T> m = expm1(e, v), h_inverse = T(1) / (o_inverse[v] * (m + two));
    store_rows<R, S>(v, m * h_inverse, hidden, run.hidden_stride, units);
    if (gates) {
      const Vec<T> o = (m + two) * h_inverse;
      store_rows<R, S>(v, refined<T>(o, one, o_inverse[v], o), gates + 3 * H, 4 * H, units);
    }
  }
}

// What `update_cells` writes, ahead of the product before it: stores that wait for their lines fill
// the store buffer. A single row writes too little for that.
template <int R, typename T>
INLINE void prefetch_results(const LayerForward<T>& p, const ForwardRun<T>& run, int64_t b,
                             int64_t u) {
  if constexpr (R > 1) {
    const int64_t H = p.shape.H;
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(run.hidden + (b + r) * run.hidden_stride + u);
    }
    for (int r = 0; run.gates && r < R; ++r) {
      for (int gate = 0; gate < 4; ++gate) {
        prefetch_row(run.gates + ((b + r) * 4 + gate) * H + u, kLanes<T>);
      }
      prefetch_row(run.cells + (b + r) * H + u, kLanes<T>);
    }
  }
}

template <int R, int W, typename T>
INLINE void add_bias(Vec<T> (&packed)[R][W], const T* bias) {
  for (int w = 0; w < W; ++w) {
    const Vec<T> b = load(bias + w * kLanes<T>);
    for (int r = 0; r < R; ++r) packed[r][w] += b;
  }
}

// R rows from b of the group of units that begins at unit u, with W vectors of gates. `sums` are
// those of a unit (load_sums), those of x and biases (Rows), or null.
template <int R, int W, typename T, typename Sums, typename Background = NoBackground>
INLINE void forward_tile(const LayerForward<T>& p, const ForwardRun<T>& run, int64_t b,
                         const T* group, int64_t u, Sums sums, const Background& background = {}) {
  constexpr int width = W * kLanes<T>;
  const int64_t P = p.shape.P, I = p.shape.I, tail_h = tail(p.shape, P), tail_x = tail(p.shape, I);
  const T* weights_h = group + width;
  const T* weights_x = weights_h + tail_h * width;
  // Terms of h are usually smaller than those of x and than the biases: added first, they are
  // rounded least.
  constexpr bool has_input_sums = std::is_same_v<Sums, Rows<T>>;
  prefetch_results<R>(p, run, b, u);
  Vec<T> packed[R][W];
  if constexpr (has_input_sums || std::is_null_pointer_v<Sums>) {
    clear_tile<R, W, T>(packed);
  } else {
    load_sums(packed, sums);
  }
  accumulate<R, W, T>(packed, {run.h.data + b * run.h.row + P - tail_h, run.h.row}, weights_h,
                      tail_h);
  if constexpr (has_input_sums) {
    add_tile<R, W, T>(packed, sums.data + b * sums.row, sums.row, 0, width);
  } else {
    accumulate<R, W, T>(packed, {run.x.data + b * run.x.row + I - tail_x, run.x.row}, weights_x,
                        tail_x);
    add_bias<R, W, T>(packed, group);
  }
  // As many rows share a vector as gates did.
  constexpr int S = 4 / W, V = (R + S - 1) / S;
  Vec<T> z[V][4];
  for (int v = 0; v < V; ++v) {
    for (int w = 0; w < W; ++w) {
      Vec<T> rows[S] = {};
      for (int r = 0; r < S && v * S + r < R; ++r) rows[r] = packed[v * S + r][w];
      transpose<T>(rows);
      for (int gate = 0; gate < S; ++gate) z[v][w * S + gate] = rows[gate];
    }
  }
  update_cells<R, S, std::is_same_v<Sums, SplitOperands<T>>>(p, run, b, u, z, background);
}

// Calls f(group, its first unit, Size<vectors of its gates>) for groups of units.
template <typename T, typename F>
INLINE void for_each_group(const LayerForward<T>& p, const Sweep& groups, const F& f) {
  const Groups<T> all(p.shape);
  for (int64_t i = 0; i < groups.size(); ++i) {
    const int64_t u = all.unit(groups[i]);
    const T* group = p.weights + u * unit_size<T>(p.shape);
    switch (all.vectors(u)) {
      case 1:
        f(group, u, Size<1>{});
        break;
      case 2:
        f(group, u, Size<2>{});
        break;
      default:
        f(group, u, Size<4>{});
    }
  }
}

// Calls f(first row, Size<rows>) for tiles of the rows [begin, end), whose gates take W vectors a
// row. Where rows share vectors, a tile has so many as fill them.
template <int W, typename F>
INLINE void for_each_gates_tile(int64_t begin, int64_t end, const F& f) {
  if constexpr (W == 4) {
    for_each_tile<W>(begin, end, f);
  } else {
    constexpr int most = kTileSums / W < 8 ? kTileSums / W : 8;
    for_each_tile_of<most, 4 / W>(ceil_div(end - begin, most), begin, end, f);
  }
}

// Not inlined: GCC 12 then builds `run` in pieces that loads cannot be forwarded from, and steps of
// few rows take 1.4 times as long.
template <bool HasInputSums, typename T>
__attribute__((noinline)) void forward_run_packed(const LayerForward<T>& p,
                                                  const ForwardRun<T>& run) {
  for_each_group(p, run.groups, [&](const T* group, int64_t u, auto vectors) {
    constexpr int W = decltype(vectors)::value;
    for_each_gates_tile<W>(run.begin, run.end, [&](int64_t b, auto rows) {
      constexpr int R = decltype(rows)::value;
      if constexpr (HasInputSums) {
        const Rows<T> sums = {run.input_sums.data + u * 4, run.input_sums.row};
        forward_tile<R, W>(p, run, b, group, u, sums);
      } else {
        forward_tile<R, W>(p, run, b, group, u, nullptr);
      }
    });
  });
}

// What x adds to the gates, bias and all, for the rows of several steps at once: more rows share a
// weight than a step has, and from step to step only the weights of h have to stay in the cache.
constexpr int64_t kInputSumsRows = 96;

template <typename T>
INLINE int64_t input_sums_row(const LayerShape& s) {
  return Groups<T>(s).packed_units() * 4;
}
template <typename T>
int64_t forward_input_sums(const LayerShape& s) {
  return max(kInputSumsRows, s.steps.B) * input_sums_row<T>(s);
}

// Of the rows [begin, end) of N, to p.input_sums.
template <typename T>
__attribute__((noinline)) void sum_inputs(const LayerForward<T>& p, int64_t begin, int64_t end) {
  const LayerShape& s = p.shape;
  const int64_t stride = input_sums_row<T>(s);
  for_each_group(p, all_groups<T>(s), [&](const T* group, int64_t u, auto vectors) {
    constexpr int W = decltype(vectors)::value;
    const T* weights = group + (1 + s.P) * W * kLanes<T>;
    for_each_tile<W>(begin, end, [&](int64_t row, auto rows) {
      constexpr int R = decltype(rows)::value;
      Vec<T> sums[R][W];
      clear_tile<R, W, T>(sums);
      accumulate<R, W, T>(sums, {p.x + row * s.I, s.I}, weights, s.I);
      add_bias<R, W, T>(sums, group);
      store_tile<R, W, T>(sums, p.input_sums + (row - begin) * stride, stride, u * 4, stride);
    });
  });
}

// The same with a unit for bfloat16.
template <typename T>
INLINE void forward_run_split(const LayerForward<T>& p, const ForwardRun<T>& run, T* scratch) {
  const LayerShape& s = p.shape;
  const int64_t rows = run.end - run.begin;
  const SplitRows h =
      split_rows(run.h.data + run.begin * run.h.row, run.h.row, rows, s.P, s.parts, scratch);
  const SplitRows x = split_rows(run.x.data + run.begin * run.x.row, run.x.row, rows, s.I, s.parts,
                                 scratch + split_size(rows, s.P, s.parts));
  const auto operands_of = [&](const T* group, int vectors) {
    const T* right = group + (1 + split_tail(s.P) + split_tail(s.I)) * vectors * kLanes<T>;
    return SplitOperands<T>{h, x, right, s.parts, vectors};
  };
  if constexpr (kUnit<T> == Bf16Unit::DotProducts) {
    for_each_group(p, run.groups, [&](const T* group, int64_t u, auto vectors) {
      constexpr int W = decltype(vectors)::value;
      const SplitOperands<T> operands = operands_of(group, W);
      for_each_gates_tile<W>(0, rows, [&](int64_t row, auto tile_rows) {
        forward_tile<decltype(tile_rows)::value, W>(p, run, run.begin + row, group, u,
                                                    operands.from(row));
      });
    });
  } else {
    const auto unit_of = [&](int64_t i) { return run.groups[i] * kLanes<T>; };
    const auto group_of = [&](int64_t i) { return p.weights + unit_of(i) * unit_size<T>(s); };
    for_each_product_tile<kTileRows, T>(
        rows, run.groups.size(), [&](int64_t i) { return operands_of(group_of(i), 4); },
        [&](int64_t row, int64_t i, auto tile_rows, const auto& sums, const auto& background) {
          forward_tile<decltype(tile_rows)::value, 4>(p, run, run.begin + row, group_of(i),
                                                      unit_of(i), sums, background);
        });
  }
}

template <typename T>
int64_t forward_scratch(const LayerShape& s, int64_t rows) {
  return s.parts ? split_size(rows, s.P, s.parts) + split_size(rows, s.I, s.parts) : 0;
}

// The runs of a step: with a unit for bfloat16 or without.
template <typename T>
INLINE void forward_run(const LayerForward<T>& p, const ForwardRun<T>& run, T* scratch) {
  if constexpr (kUnit<T> != Bf16Unit::None) {
    if (p.shape.parts) return forward_run_split(p, run, scratch);
  }
  if (run.input_sums.data) return forward_run_packed<true>(p, run);
  forward_run_packed<false>(p, run);
}

// Copies the units [u0, u1) of the cells of rows [b0, b1) to those kept of a step, whose rows begin
// at row n of N.
template <typename T>
INLINE void keep_cells(const LayerForward<T>& p, int64_t n, int64_t b0, int64_t b1, int64_t u0,
                       int64_t u1) {
  const int64_t H = p.shape.H;
  for (int64_t b = b0; b < b1; ++b)
    copy_row(p.c_n + b * H + u0, p.cells + (n + b) * H + u0, u1 - u0);
}

template <typename T>
void forward_rows(const LayerForward<T>& p, int64_t b0, int64_t b1, TeamMember& member,
                  T* scratch) {
  const FlushDenormals scope;
  const UnitScope unit(p.shape.parts > 0);
  const LayerShape& s = p.shape;
  const Steps& steps = s.steps;
  const Groups<T> groups(s);
  const Matrix<T> weight_hr = {p.weights + all_groups_size<T>(s), s.H, s.P, true};
  const Rows<T> h0 = p.h0 ? Rows<T>{p.h0, p.h0_stride} : Rows<T>{p.zeros, 0};
  member.round([&](const Share& share) {
    copy_rows(b0 + share.begin(b1 - b0), b0 + share.end(b1 - b0), p.c0, s.H, p.c_n, s.H);
  });
  const int64_t steps_summed = p.input_sums ? max(1, kInputSumsRows / steps.B) : steps.T;
  int64_t summed = 0;  // the row of N that input_sums begins with
  for (int64_t i = 0; i < steps.T; ++i) {
    const int64_t t = s.reverse ? steps.T - 1 - i : i;
    const int64_t end = min(b1, steps.rows(t));
    if (b0 >= end) continue;
    const int64_t n = steps.offset(t);
    if (p.input_sums && i % steps_summed == 0) {
      const int64_t other =
          s.reverse ? max(0, t + 1 - steps_summed) : min(steps.T, t + steps_summed) - 1;
      const int64_t first = min(t, other), last = max(t, other);
      summed = steps.offset(first);
      sum_inputs(p, summed, steps.offset(last) + steps.rows(last));
    }
    T* y = p.y + n * p.y_stride;
    ForwardRun<T> run;
    run.x = {p.x + n * s.I, s.I};
    if (p.input_sums) {
      const int64_t row = input_sums_row<T>(s);
      run.input_sums = {p.input_sums + (n - summed) * row, row};
    }
    run.hidden = !s.projected ? y : p.gates ? p.hidden + n * s.H : p.hidden;
    run.hidden_stride = s.projected ? s.H : p.y_stride;
    run.gates = p.gates ? p.gates + n * 4 * s.H : nullptr;
    run.cells = p.gates ? p.cells + n * s.H : nullptr;

    member.round([&](const Share& share) {
      run.groups = {share.begin(groups.count), share.end(groups.count), i % 2 > 0};
      const int64_t carried = min(max(b0, steps.carried(t, s.reverse)), end);
      if (b0 < carried) {
        run.begin = b0, run.end = carried;
        run.h = {p.y + steps.offset(Steps::previous(t, s.reverse)) * p.y_stride, p.y_stride};
        forward_run(p, run, scratch);
      }
      if (carried < end) {
        run.begin = carried, run.end = end;
        run.h = h0;
        forward_run(p, run, scratch);
      }
      const int64_t first_unit = groups.unit(run.groups.first);
      const int64_t last_unit = groups.unit(run.groups.last);
      if (p.cells && !p.gates) keep_cells(p, n, b0, end, first_unit, last_unit);
      if (s.projected) {
        multiply_rows<T>(b0, end, {run.hidden, s.H}, weight_hr, y, p.y_stride, false);
      }
      const int64_t ending = max(b0, steps.carried(t, !s.reverse));
      const int64_t first = s.projected ? 0 : first_unit, last = s.projected ? s.P : last_unit;
      for (int64_t b = ending; b < end; ++b) {
        copy_row(y + b * p.y_stride + first, p.h_n + b * s.P + first, last - first);
      }
    });
  }
}

}  // namespace
}  // namespace lstm_fast
