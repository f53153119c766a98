// What all recurrences share, in plain CUDA C++: the barrier of blocks that exchange states, the products of a step, and the
// range of its states. Include it after prims.cuh.
#pragma once
#include "prims_grid.cuh"
#include "reduce.cuh"

// The barrier of ``blocks`` blocks. ``counters``: two numbers that are zeros before the launch, and after it again. Every
// thread makes every call.
struct GridBarrier {
  u32* const counters;
  const u32 blocks;
  u32 passed = 0;

  // What the block wrote becomes visible to those that wait.
  ARCWELD_DEVICE void arrive() const {
    __syncthreads();
    if (threadIdx.x == 0) add_release(counters, 1);
  }
  // Waits until all blocks have arrived as often as this one.
  ARCWELD_DEVICE void wait() {
    ++passed;
    if (threadIdx.x == 0) wait_acquire(counters, passed * blocks);
    __syncthreads();
  }
  // After the last wait, which has seen all arrivals: the last block to leave puts the counters back to 0.
  ARCWELD_DEVICE void leave() const {
    if (threadIdx.x == 0 && atomic_inc(counters + 1, blocks - 1) == blocks - 1) *counters = 0;
  }
};

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
