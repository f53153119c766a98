// A barrier of all blocks of a cooperative launch, in plain CUDA C++. Include it after prims.cuh.
#pragma once
#include "prims_grid.cuh"

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
