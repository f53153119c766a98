// What all recurrences share, in plain CUDA C++: the products of a step, and the range of its states. Include it after
// prims.cuh.
#pragma once
#include "reduce.cuh"

// Products of ROWS rows of weights with TILE vectors of CHUNKS * WIDTH elements in shared memory. LANES threads have a row
// each and go on with every LANES-th; SPLIT such groups share the chunks. ``parts`` gets [SPLIT][TILE][ROWS] sums, which are
// to be added. ``weights(row, chunk, w)`` gives WIDTH weights.
template <int ROWS, int CHUNKS, int WIDTH, int TILE, int LANES, int SPLIT, class T, class Weights>
ARCWELD_DEVICE void step_products(const Weights& weights, const T* source, T* parts) {
  const int part = threadIdx.x / LANES;
  if (part >= SPLIT) return;
  for (int row = threadIdx.x % LANES; row < ROWS; row += LANES) {
    T sum[TILE];
#pragma unroll
    for (int b = 0; b < TILE; ++b) sum[b] = 0;
    for (int chunk = part; chunk < CHUNKS; chunk += SPLIT) {
      T w[WIDTH];
      weights(row, chunk, w);
#pragma unroll
      for (int b = 0; b < TILE; ++b) {
        const Vec<T, WIDTH> h = load_vec<WIDTH>(source + (b * CHUNKS + chunk) * WIDTH);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) sum[b] += w[i] * h[i];
      }
    }
#pragma unroll
    for (int b = 0; b < TILE; ++b) parts[(part * TILE + b) * ROWS + row] = sum[b];
  }
}

// The sum of ``row`` with the vector ``b``, of what step_products left.
template <int ROWS, int TILE, int SPLIT, class T>
ARCWELD_DEVICE T total(const T* parts, int b, int row) {
  T sum = parts[b * ROWS + row];
#pragma unroll
  for (int part = 1; part < SPLIT; ++part) sum += parts[(part * TILE + b) * ROWS + row];
  return sum;
}

// The least and the greatest of ``count`` numbers and 0, for each of the block's THREADS threads. ``scratch`` is shared memory
// for a number of each warp; all have read ``x`` when it returns.
template <int THREADS, class T>
ARCWELD_DEVICE void range_of(const T* x, int count, T* scratch, T& low, T& high) {
  low = high = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    low = OpMin()(low, x[i]);
    high = OpMax()(high, x[i]);
  }
  low = block_reduce<THREADS>(low, scratch, OpMin());
  high = block_reduce<THREADS>(high, scratch, OpMax());
}
