// What a layer with options does to the rows of a step, between its products: a block for each
// row. Formulas as in lstm_fast/reference.py; on the CPU, ../cpu/variant_forward.h and
// variant_backward.h have the same.
#pragma once

#include "../variant.h"
#include "gates.cuh"

namespace lstm_fast::cuda {

constexpr int kRowThreads = 128;
constexpr double kNormEpsilon = 1e-5;  // that of torch.nn.LayerNorm

template <typename T>
__device__ __forceinline__ T clip(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;  // not-a-number stays so
}

template <typename T>
__device__ __forceinline__ T activate(GateActivation a, T x) {
  return a == GateActivation::Sigmoid ? sigmoid(x) : clip(x + T(3), T(0), T(6)) / T(6);
}
template <typename T>
__device__ __forceinline__ T activate(CellActivation a, T x) {
  if (a == CellActivation::Tanh) return tanh(x);
  if (a == CellActivation::Relu) return x < T(0) ? T(0) : x;
  return clip(x, T(-1), T(1));
}

// Slopes of the activations, from their values. At a corner they are those of torch.
template <typename T>
__device__ __forceinline__ T slope(GateActivation a, T y) {
  if (a == GateActivation::Sigmoid) return y * (T(1) - y);
  return y <= T(0) || y >= T(1) ? T(0) : T(1) / T(6);
}
template <typename T>
__device__ __forceinline__ T slope(CellActivation a, T y) {
  if (a == CellActivation::Tanh) return T(1) - y * y;
  if (a == CellActivation::Relu) return y <= T(0) ? T(0) : T(1);
  return y <= T(-1) || y >= T(1) ? T(0) : T(1);
}

// Calls f(c) for the columns of the thread.
template <typename F>
__device__ __forceinline__ void for_columns(int64_t C, const F& f) {
  for (int64_t c = threadIdx.x; c < C; c += kRowThreads) f(c);
}

// The sum over the block's threads, added in one order. What a thread wrote to memory before, the
// others can read after.
template <typename T>
__device__ __forceinline__ T block_sum(T x) {
  T* sums = reinterpret_cast<T*>(shared_memory());
  sums[threadIdx.x] = x;
  for (int half = kRowThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  const T sum = sums[0];
  __syncthreads();
  return sum;
}

// z = (z - mean) / sqrt(variance + epsilon); returns the factor.
template <typename T>
__device__ __forceinline__ T standardise_row(T* z, int64_t C) {
  T total = 0, squares = 0;
  for_columns(C, [&](int64_t c) { total += z[c]; });
  const T mean = block_sum(total) / T(C);
  for_columns(C, [&](int64_t c) {
    z[c] -= mean;
    squares += z[c] * z[c];
  });
  const T variance = block_sum(squares) / T(C);
  // Not a number if the squares have overflowed: infinity would make a row of zeros.
  const T scale = T(1) / sqrt(variance + T(kNormEpsilon)) + T(0) * variance;
  for_columns(C, [&](int64_t c) { z[c] *= scale; });
  __syncthreads();
  return scale;
}

// The gradient of z from d(c), that of its standardised form, to grad.
template <typename T, typename F>
__device__ __forceinline__ void standardise_row_grad(const F& d, const T* standardised, T scale,
                                                     int64_t C, T* grad) {
  T total = 0, product = 0;
  for_columns(C, [&](int64_t c) {
    total += d(c);
    product += d(c) * standardised[c];
  });
  const T mean = block_sum(total) / T(C), along = block_sum(product) / T(C);
  for_columns(C, [&](int64_t c) { grad[c] = scale * (d(c) - mean - standardised[c] * along); });
  __syncthreads();
}

// Standardises the rows of sums = W_ih x, and writes what they contribute to the gates.
template <typename T>
struct InputRows {
  int64_t G;
  T* sums;                     // [rows, G]
  T* scale;                    // [rows], or null
  T* gates;                    // [rows, G]; may be sums
  const T* norm;               // [G]
  const T *bias_ih, *bias_hh;  // [G], or null
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    input_rows_kernel(const __grid_constant__ InputRows<T> p) {
  const int64_t r = blockIdx.x;
  T* sums = p.sums + r * p.G;
  const T scale = standardise_row(sums, p.G);
  if (p.scale && threadIdx.x == 0) p.scale[r] = scale;
  for_columns(p.G, [&](int64_t c) {
    const T bias = p.bias_ih ? p.bias_ih[c] + p.bias_hh[c] : T(0);
    p.gates[r * p.G + c] = sums[c] * p.norm[c] + bias;
  });
}

// One step: batch rows 0 to gridDim.x, the rows from n on of N. Buffers begin at its first row.
template <typename T>
struct StepRows {
  VariantForward<T> layer;
  int64_t n;
  T* gates;   // [rows, G]
  T* h_in;    // [rows, P]
  T* sums;    // [rows, G] W_hh h_in, if normalised
  T* fresh;   // [rows, H]
  T* hidden;  // [rows, H]; y without a projection
};

// Resets the state, and writes what W_hh is multiplied with.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    begin_rows_kernel(const __grid_constant__ StepRows<T> p) {
  const VariantForward<T>& q = p.layer;
  const StateMasks<T>& masks = q.masks;
  const int64_t b = blockIdx.x, H = q.shape.H, P = q.shape.P;
  const bool reset = masks.reset && masks.reset[p.n + b];
  for_columns(P, [&](int64_t c) {
    T* h = q.h_n + b * P + c;
    if (reset) *h = masks.reset_h ? masks.reset_h[b * P + c] : T(0);
    p.h_in[b * P + c] = masks.drop_h ? *h * masks.drop_h[b * P + c] : *h;
  });
  if (!reset) return;
  for_columns(
      H, [&](int64_t c) { q.c_n[b * H + c] = masks.reset_c ? masks.reset_c[b * H + c] : T(0); });
}

template <typename T>
__device__ __forceinline__ T zone_out(const T* zone, T state, T fresh) {
  return zone ? *zone * state + (T(1) - *zone) * fresh : fresh;
}

template <typename T>
__device__ __forceinline__ void end_row(const StepRows<T>& p, int64_t b) {
  const VariantForward<T>& q = p.layer;
  const int64_t n = p.n + b, P = q.shape.P;
  const T* zone = q.masks.zone_h ? q.masks.zone_h + n * q.masks.zone_h_row : nullptr;
  for_columns(P, [&](int64_t c) {
    T *h = q.h_n + b * P + c, *y = q.y + n * P + c;
    *h = *y = zone_out(zone ? zone + c : nullptr, *h, *y);
  });
}

// Gates and cells, from the sums; without a projection, the end of the step too.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    cell_rows_kernel(const __grid_constant__ StepRows<T> p) {
  const VariantForward<T>& q = p.layer;
  const VariantShape& s = q.shape;
  const int64_t b = blockIdx.x, n = p.n + b, H = s.H, G = 4 * H;
  T* gates = p.gates + b * G;
  if (s.normalised) {
    T* sums = p.sums + b * G;
    const T scale = standardise_row(sums, G);
    if (q.save && threadIdx.x == 0) q.saved.hh_scale[n] = scale;
    for_columns(G, [&](int64_t c) { gates[c] += sums[c] * q.norms.hh[c]; });
    __syncthreads();
  }
  const T* zone = q.masks.zone_c ? q.masks.zone_c + n * q.masks.zone_c_row : nullptr;
  T* fresh = p.fresh + b * H;
  for_columns(H, [&](int64_t u) {
    const T i = activate(s.gate, gates[u]), f = activate(s.gate, gates[H + u]);
    const T g = activate(s.cell, gates[2 * H + u]), o = activate(s.gate, gates[3 * H + u]);
    gates[u] = i;
    gates[H + u] = f;
    gates[2 * H + u] = g;
    gates[3 * H + u] = o;
    T* state = q.c_n + b * H + u;
    fresh[u] = f * *state + i * g;
    *state = zone_out(zone ? zone + u : nullptr, *state, fresh[u]);
    if (q.cells) q.cells[n * H + u] = *state;
  });
  if (s.normalised) standardise_row(fresh, H);
  for_columns(H, [&](int64_t u) {
    T c = fresh[u];
    if (s.normalised) c *= q.norms.c[u];
    if (q.norms.c_bias) c += q.norms.c_bias[u];
    p.hidden[b * H + u] = gates[3 * H + u] * activate(s.cell, c);
  });
  if (!s.projected) end_row(p, b);
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    end_rows_kernel(const __grid_constant__ StepRows<T> p) {
  end_row(p, static_cast<int64_t>(blockIdx.x));
}

// One step of backward, as StepRows.
template <typename T>
struct StepRowsGrad {
  VariantBackward<T> layer;
  int64_t n;
  const T* cells_before;  // [carried, H]: of the rows alive at the step visited before
  int64_t carried;
  T* grad_new;         // [rows, P] of the new h
  const T* grad_m;     // [rows, H]; grad_new without a projection
  T* from_h;           // [rows, H] part of the gradient of the new cell
  const T* grad_h_in;  // [rows, P]
  T* fresh;            // [rows, H], unless normalised
};

// Splits the gradient of h between the new h and the state before.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    new_rows_grad_kernel(const __grid_constant__ StepRowsGrad<T> p) {
  const VariantBackward<T>& q = p.layer;
  const int64_t b = blockIdx.x, n = p.n + b, P = q.shape.P;
  const T* zone = q.masks.zone_h ? q.masks.zone_h + n * q.masks.zone_h_row : nullptr;
  for_columns(P, [&](int64_t c) {
    T* dh = q.grad_h0 + b * P + c;
    const T d = *dh + (q.grad_y ? q.grad_y[n * P + c] : T(0));
    *dh = zone ? d * zone[c] : T(0);
    p.grad_new[b * P + c] = d - *dh;
  });
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    cell_rows_grad_kernel(const __grid_constant__ StepRowsGrad<T> p) {
  const VariantBackward<T>& q = p.layer;
  const VariantShape& s = q.shape;
  const StateMasks<T>& masks = q.masks;
  const int64_t b = blockIdx.x, n = p.n + b, H = s.H, G = 4 * H;
  const T* gates = q.saved.gates + n * G;
  T* dz = q.grad_gates + n * G;
  const T* before = b < p.carried ? p.cells_before + b * H : q.c0 + b * H;
  if (masks.reset && masks.reset[n]) before = masks.reset_c ? masks.reset_c + b * H : nullptr;
  T* fresh = s.normalised ? q.norm_c + n * H : p.fresh + b * H;
  for_columns(H, [&](int64_t u) {
    fresh[u] = gates[H + u] * (before ? before[u] : T(0)) + gates[u] * gates[2 * H + u];
  });
  const T scale = s.normalised ? standardise_row(fresh, H) : T(1);
  T* from_h = p.from_h + b * H;
  for_columns(H, [&](int64_t u) {
    T c = fresh[u];
    if (s.normalised) c *= q.norms.c[u];
    if (q.norms.c_bias) c += q.norms.c_bias[u];
    const T a = activate(s.cell, c), o = gates[3 * H + u], d = p.grad_m[b * H + u];
    dz[3 * H + u] = d * a * slope(s.gate, o);
    from_h[u] = d * o * slope(s.cell, a);
    if (s.normalised) q.grad_norm_c[n * H + u] = from_h[u];
  });
  if (s.normalised) {
    const T* grads = q.grad_norm_c + n * H;
    standardise_row_grad([&](int64_t u) { return grads[u] * q.norms.c[u]; }, fresh, scale, H,
                         from_h);
  }
  const T* zone = masks.zone_c ? masks.zone_c + n * masks.zone_c_row : nullptr;
  for_columns(H, [&](int64_t u) {
    const T i = gates[u], f = gates[H + u], g = gates[2 * H + u];
    T* dc = q.grad_c0 + b * H + u;
    const T d = *dc + (q.grad_cells ? q.grad_cells[n * H + u] : T(0));
    const T kept = zone ? d * zone[u] : T(0), d_fresh = d - kept + from_h[u];
    dz[u] = d_fresh * g * slope(s.gate, i);
    dz[H + u] = d_fresh * (before ? before[u] : T(0)) * slope(s.gate, f);
    dz[2 * H + u] = d_fresh * i * slope(s.cell, g);
    *dc = kept + d_fresh * f;
  });
  if (!s.normalised) return;
  __syncthreads();
  const auto through = [&](const T* weight, const T* standardised, T factor, T* grad) {
    standardise_row_grad([&](int64_t c) { return dz[c] * weight[c]; }, standardised + n * G, factor,
                         G, grad + n * G);
  };
  through(q.norms.ih, q.saved.ih, q.saved.ih_scale[n], q.grad_ih);
  through(q.norms.hh, q.saved.hh, q.saved.hh_scale[n], q.grad_hh);
}

// The gradient of the state before the step, or of what it was reset to.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    before_rows_grad_kernel(const __grid_constant__ StepRowsGrad<T> p) {
  const VariantBackward<T>& q = p.layer;
  const StateMasks<T>& masks = q.masks;
  const int64_t b = blockIdx.x, H = q.shape.H, P = q.shape.P;
  const bool reset = masks.reset && masks.reset[p.n + b];
  const auto move = [](T* from, T* to) {
    if (to) *to += *from;
    *from = 0;
  };
  for_columns(P, [&](int64_t c) {
    const int64_t i = b * P + c;
    q.grad_h0[i] += masks.drop_h ? p.grad_h_in[i] * masks.drop_h[i] : p.grad_h_in[i];
    if (reset) move(q.grad_h0 + i, q.grad_reset_h ? q.grad_reset_h + i : nullptr);
  });
  if (!reset) return;
  for_columns(H, [&](int64_t c) {
    const int64_t i = b * H + c;
    move(q.grad_c0 + i, q.grad_reset_c ? q.grad_reset_c + i : nullptr);
  });
}

// to = from, or zeros if it is null.
template <typename T>
struct Copy {
  const T* from;
  T* to;
  int64_t count;
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads) copy_kernel(const __grid_constant__ Copy<T> p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i < p.count) p.to[i] = p.from ? p.from[i] : T(0);
}

// sums[c] of a[n, c] * b[n, c] over n < N, or of a alone; to a second place too, if there is one.
template <typename T>
struct ColumnSums {
  const T *a, *b;
  int64_t N, C;
  T *sums, *also;
};

// Of a block, which adds up every kSumThreads / kSumColumns-th row in each of as many groups: so
// many of them by themselves, since a sum of a million rows, one after the other, would lose
// digits.
constexpr int kSumThreads = 512, kSumColumns = 32, kSumRows = 128;

// Grid: columns; shared memory for a number of each thread.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    column_sums_kernel(const __grid_constant__ ColumnSums<T> p) {
  constexpr int kGroups = kSumThreads / kSumColumns;
  const int column = threadIdx.x % kSumColumns, group = threadIdx.x / kSumColumns;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kSumColumns + column;
  T sum = 0;
  for (int64_t n = group; c < p.C && n < p.N;) {
    T of_rows = 0;
    for (int i = 0; i < kSumRows && n < p.N; ++i, n += kGroups)
      of_rows += p.b ? p.a[n * p.C + c] * p.b[n * p.C + c] : p.a[n * p.C + c];
    sum += of_rows;
  }
  T* sums = reinterpret_cast<T*>(shared_memory());
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (group > 0 || c >= p.C) return;
  for (int of = 1; of < kGroups; ++of) sum += sums[of * kSumColumns + column];
  p.sums[c] = sum;
  if (p.also) p.also[c] = sum;
}

}  // namespace lstm_fast::cuda
