// All steps of a layer, or a chunk of them: the buffers of the kernels that run them in one launch,
// and what a cell reads and writes at a step. Rows of N as in ../lstm.h.
#pragma once

#include "gates.cuh"

namespace lstm_fast::cuda {

// One direction.
template <typename T>
struct LayerForward {
  const T* h0;         // [B, H], or null for zeros
  const T* c0;         // [B, H], or null for zeros
  const T* weight_hh;  // [G, H]
  Wide<T>* gates;      // [N, G], from the input; replaced by the activated gates if saved
  Wide<T>* cells;      // [N, H], or null if not saved
  Wide<T>* running;    // [B, H], the cells that go on from chunk to chunk; or null for one chunk
  Wide<T>* hidden;     // [N, H], rows hidden_stride apart
  T* rounded_hidden;   // the same, rounded, or null
  T* h_n;              // [B, H]; that of the chunk before, if there is one
  T* c_n;              // [B, H]
};

template <typename T>
struct LayersForward {
  Steps steps;      // arrays on the device
  int first, last;  // of the launch are the steps [first, last), counted as they are visited
  int H;
  int64_t hidden_stride;
  LayerForward<T> of[2];
};

template <typename T>
struct LayerBackward {
  Array<T> grad_y;       // [N, H], rows grad_y_stride apart; null for zeros
  const T* grad_h_n;     // [B, H], or null for zeros
  const T* grad_c_n;     // [B, H], or null for zeros
  const T* c0;           // [B, H], or null for zeros
  const T* weight_hh;    // [G, H]
  const Wide<T>* gates;  // [N, G]; may be grad_gates
  const Wide<T>* cells;  // [N, H]
  Wide<T>* grad_gates;   // [N, G]
  T* grad_h0;            // [B, H], or null when not wanted
  T* grad_c0;            // [B, H], or null when not wanted
};

template <typename T>
struct LayersBackward {
  Steps steps;  // arrays on the device
  int H;
  int64_t grad_y_stride;
  LayerBackward<T> of[2];
};

// Four gates of a unit of row n.
template <typename A>
__device__ __forceinline__ Gates<A> load_gates(const A* gates, int64_t n, int64_t H, int64_t unit) {
  const A* g = gates + n * 4 * H + unit;
  return {g[0], g[H], g[2 * H], g[3 * H]};
}
template <typename A>
__device__ __forceinline__ void store_gates(A* gates, int64_t n, int64_t H, int64_t unit,
                                            const Gates<A>& values) {
  A* g = gates + n * 4 * H + unit;
  g[0] = values.i;
  g[H] = values.f;
  g[2 * H] = values.g;
  g[3 * H] = values.o;
}

// What a step leaves of a cell: row n of N, row b of the batch.
template <typename T>
__device__ __forceinline__ void store_cell(const LayersForward<T>& layers, const LayerForward<T>& p,
                                           int64_t n, int64_t unit, const Gates<Wide<T>>& gates,
                                           Wide<T> c, Wide<T> h) {
  if (p.cells) {
    store_gates(p.gates, n, layers.H, unit, gates);
    p.cells[n * layers.H + unit] = c;
  }
  p.hidden[n * layers.hidden_stride + unit] = h;
  if (p.rounded_hidden) p.rounded_hidden[n * layers.hidden_stride + unit] = narrow<T>(h);
}

// What backward reads of a cell before it can compute it.
template <typename A>
struct FromForward {
  Gates<A> gates;
  A c, c_prev, grad_y;
};

// Of row b at step t.
template <typename T>
__device__ __forceinline__ FromForward<Wide<T>> load_cell(const LayersBackward<T>& layers,
                                                          const LayerBackward<T>& p, int64_t t,
                                                          bool reverse, int64_t b, int64_t unit) {
  const Steps& steps = layers.steps;
  const int64_t H = layers.H, n = steps.offset(t) + b;
  FromForward<Wide<T>> from{};
  from.gates = load_gates(p.gates, n, H, unit);
  from.c = p.cells[n * H + unit];
  if (b < steps.carried(t, reverse)) {
    from.c_prev = p.cells[(steps.offset(Steps::previous(t, reverse)) + b) * H + unit];
  } else if (p.c0) {
    from.c_prev = widen(p.c0[b * H + unit]);
  }
  if (p.grad_y.given()) from.grad_y = p.grad_y[n * layers.grad_y_stride + unit];
  return from;
}

}  // namespace lstm_fast::cuda
