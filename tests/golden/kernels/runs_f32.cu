// sort_sortindices: a block of 32 threads sorts a row: 128 elements in shared memory.
#include "prims.cuh"
#include "math.cuh"
#include "sort.cuh"

struct Params {
  const f32* in0;
  i64* out0;
  int col_count;
};

__device__ __forceinline__ void load_x(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[col];
  out[0] = t0;
}

__device__ __forceinline__ void store_out(const Params& p, int row, int col, const i64 (&acc)[1]) {
  p.out0[col] = acc[0];
}

struct SortTile {
  u32 keys[128];
  int places[128];
};

extern "C" __global__ void __launch_bounds__(32) sort_sortindices_b46c79e0(const __grid_constant__ Params p) {
  constexpr int THREADS = 32, ITEMS = 4, TILE = THREADS * ITEMS;
  pdl_launch_dependents();
  DYN_SHARED(SortTile, shared);
  SortTile& tile = shared[0];
  const int thread = threadIdx.x;
  const int cols = p.col_count;
  const int row = blockIdx.x;
  pdl_wait();

  for (int first = 0; first < cols; first += TILE) {
    const int count = min(TILE, cols - first);
    for (int i = thread; i < count; i += THREADS) {
      f32 x[1];
      load_x(p, row, first + i, x);
      tile.keys[i] = sort_key(x[0]);
      tile.places[i] = first + i;
    }
    __syncthreads();
    sort_in_block<THREADS, ITEMS>(tile.keys, tile.places, count);
    for (int i = thread; i < count; i += THREADS) {
      const i64 acc[1] = {tile.places[i]};
      store_out(p, row, first + i, acc);
    }  // the next tile's elements are loaded by the threads that have read these here
  }
}
EXPORT_KERNEL(sort_sortindices_b46c79e0)

// runs_equalruns: the runs of equal elements of a vector in order, numbered by where each is first.
// A block of 256 threads, with barriers of the grid.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "scan.cuh"
#include "sort.cuh"
#include "grid_barrier.cuh"

struct Params {
  const f32* in0;
  const i64* in1;
  f32* out0;
  i64* out1;
  i64* out2;
  i64* out3;
  i64* out4;
  i32* sums;
  i32* starts;
  i32* kinds;
  i32* firsts;
  i32* numbers;
  u32* arrivals;
  int part;
  int col_count;
};

__device__ __forceinline__ void load_x(const Params& p, int c, f32 (&out)[1]) {
  const f32 t0 = p.in0[c];
  out[0] = t0;
}

__device__ __forceinline__ void load_order(const Params& p, int c, i64 (&out)[1]) {
  const i64 t0 = p.in1[c];
  out[0] = t0;
}

__device__ __forceinline__ void store_value(const Params& p, int g, f32 value) {
  p.out0[g] = value;
}

__device__ __forceinline__ void store_first(const Params& p, int g, i64 first) {
  p.out1[g] = first;
}

__device__ __forceinline__ void store_counts(const Params& p, int g, i64 counts) {
  p.out3[g] = counts;
}

__device__ __forceinline__ void store_kind(const Params& p, int c, i64 kind) {
  p.out2[c] = kind;
}

__device__ __forceinline__ void store_number(const Params& p, i64 number) {
  p.out4[0] = number;
}

// Where the element lies that is the ``i``-th in order.
__device__ __forceinline__ int place_of(const Params& p, int i) {
  i64 place[1];
  load_order(p, i, place);
  return int(place[0]);
}

__device__ __forceinline__ u32 key_at(const Params& p, int place) {
  f32 x[1];
  load_x(p, place, x);
  return sort_key(x[0]);
}

// Whether another element comes before the ``i``-th in order, or none.
__device__ __forceinline__ bool begins(const Params& p, int i) {
  return i == 0 || key_at(p, place_of(p, i)) != key_at(p, place_of(p, i - 1));
}

// Whether the element at ``place`` is the first of its run.
__device__ __forceinline__ bool is_first(const Params& p, int place) { return p.firsts[p.kinds[place]] == place; }

// How many elements the ``run``-th of ``number`` runs has, in order.
__device__ __forceinline__ i64 size_of(const Params& p, int run, int number) {
  return (run + 1 < number ? p.starts[run + 1] : p.col_count) - p.starts[run];
}

extern "C" __global__ void __launch_bounds__(256) runs_equalruns_9fae74aa(const __grid_constant__ Params p) {
  constexpr int THREADS = 256, BLOCKS = 1;
  DYN_SHARED(int, scratch);
  const int thread = threadIdx.x, count = p.col_count;
  const int begin = min(int(blockIdx.x) * p.part, count), end = min(begin + p.part, count);
  GridBarrier barrier{p.arrivals, BLOCKS};

  int found, before, number;
  found = 0;
  for (int i = begin + thread; i < end; i += THREADS) found += begins(p, i);
  found = block_reduce<THREADS, true>(found, scratch, OpSum());
  if (thread == 0) p.sums[blockIdx.x] = found;
  barrier.arrive();
  barrier.wait();
  before = number = 0;
  for (int block = 0; block < BLOCKS; ++block) {
    const int other = p.sums[block];
    if (block < blockIdx.x) before += other;
    number += other;
  }
  for (int tile = begin; tile < end; tile += THREADS) {
    const int i = tile + thread;
    const bool first = i < end && begins(p, i);
    const int kind = row_scan<THREADS>(int(first), before, scratch, OpSum()) + int(first) - 1;
    if (i >= end) continue;
    const int place = place_of(p, i);
    p.kinds[place] = kind;
    if (first) {
      p.starts[kind] = i;
      p.firsts[kind] = place;
    }
  }
  barrier.arrive();
  barrier.wait();
  found = 0;
  for (int i = begin + thread; i < end; i += THREADS) found += is_first(p, i);
  found = block_reduce<THREADS, true>(found, scratch, OpSum());
  if (thread == 0) p.sums[BLOCKS + blockIdx.x] = found;
  barrier.arrive();
  barrier.wait();
  before = number = 0;
  for (int block = 0; block < BLOCKS; ++block) {
    const int other = p.sums[BLOCKS + block];
    if (block < blockIdx.x) before += other;
    number += other;
  }
  for (int tile = begin; tile < end; tile += THREADS) {
    const int place = tile + thread;
    const bool first = place < end && is_first(p, place);
    const int kind = row_scan<THREADS>(int(first), before, scratch, OpSum());
    if (!first) continue;
    const int run = p.kinds[place];
    p.numbers[run] = kind;
    store_first(p, kind, place);
    f32 x[1];
    load_x(p, place, x);
    store_value(p, kind, x[0]);
    store_counts(p, kind, size_of(p, run, number));
  }
  barrier.arrive();
  barrier.wait();
  for (int place = begin + thread; place < end; place += THREADS) store_kind(p, place, p.numbers[p.kinds[place]]);
  for (int run = number + blockIdx.x * THREADS + thread; run < count; run += BLOCKS * THREADS) {  // there are no more
    store_first(p, run, 0);
    store_value(p, run, f32(0));
    store_counts(p, run, 0);
  }
  if (blockIdx.x == 0 && thread == 0) store_number(p, number);
  barrier.leave();
}
EXPORT_KERNEL(runs_equalruns_9fae74aa)
