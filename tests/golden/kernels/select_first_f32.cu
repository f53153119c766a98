// select_abs_selectindices: 8 blocks of 256 threads select the first elements of a row, 1024 at a time.
// Each finds the first of its part of the row; the last block of a row finds the first of all that these have left.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "scan.cuh"
#include "sort.cuh"
#include "select.cuh"
#include "last_block.cuh"

struct Params {
  const f32* in0;
  i64* out0;
  f32* out1;
  u32* keys;
  i32* places;
  u32* arrived;
};

__device__ __forceinline__ void load_x(const Params& p, int row, int col, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (row * 32000 + col));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    const f32 t2 = fabsf(t1);
    out[lane] = t2;
  }
}

__device__ __forceinline__ void load_one(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 32000 + col];
  const f32 t1 = fabsf(t0);
  out[0] = t1;
}

__device__ __forceinline__ void store_out(const Params& p, int row, int k, const i64 (&acc)[1], const f32 (&x)[1]) {
  p.out0[row * 50 + k] = acc[0];
  p.out1[row * 50 + k] = x[0];
}

extern "C" __global__ void __launch_bounds__(256) select_abs_selectindices_3e05fe9f(const __grid_constant__ Params p) {
  constexpr int THREADS = 256, ITEMS = 4, TILE = THREADS * ITEMS;
  pdl_launch_dependents();
  using Kept = Selection<u32, 8, THREADS>;
  DYN_SHARED(Kept, shared);
  Kept& kept = shared[0];
  Kept::State state;
  const int thread = threadIdx.x, keep = 50;
  constexpr int PARTS = 8;
  const int row = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
  const int begin = min(part * 4000, 32000), end = min(begin + 4000, 32000);
  pdl_wait();

  for (int first = begin; first < end; first += TILE) {
    u32 keys[ITEMS];
    int places[ITEMS];
    bool some[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i += 4) {
      const int col = first + thread * ITEMS + i;
      f32 x[4] = {};
      if (col < end) load_x(p, row, col, x);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        some[i + lane] = col < end;
        keys[i + lane] = ~sort_key(x[lane]);
        places[i + lane] = col + lane;
      }
    }
    kept.offer(state, keep, some, keys, places);
  }
  kept.settle(state, keep);
  u32* const found_keys = p.keys + i64(row) * PARTS * keep;
  int* const found_places = p.places + i64(row) * PARTS * keep;
  for (int i = thread; i < keep; i += THREADS) {
    const bool there = i < state.count;
    found_keys[part * keep + i] = there ? kept.keys[i] : u32(0);
    found_places[part * keep + i] = there ? kept.places[i] : -1;
  }
  if (!is_last_block(p.arrived + row, PARTS, &kept.flag)) return;
  // parts follow each other as in the row: of equal keys the first ones come first here too
  state = Kept::State();
  for (int first = 0; first < PARTS * keep; first += TILE) {
    u32 keys[ITEMS];
    int places[ITEMS];
    bool some[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int at = first + thread * ITEMS + i;
      const bool inside = at < PARTS * keep;
      keys[i] = inside ? found_keys[at] : u32(0);
      places[i] = inside ? found_places[at] : -1;
      some[i] = places[i] >= 0;
    }
    kept.offer(state, keep, some, keys, places);
  }
  kept.settle(state, keep);
  for (int i = thread; i < state.count; i += THREADS) {
    const i64 acc[1] = {kept.places[i]};
    f32 x[1];
    load_one(p, row, kept.places[i], x);
    store_out(p, row, i, acc, x);
  }
}
EXPORT_KERNEL(select_abs_selectindices_3e05fe9f)
