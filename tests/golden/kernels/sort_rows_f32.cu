// sort_abs_sortindices: a block of 256 threads sorts a row: 1024 elements in shared memory.
#include "prims.cuh"
#include "math.cuh"
#include "sort.cuh"

struct Params {
  const f32* in0;
  i64* out0;
};

__device__ __forceinline__ void load_x(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 1000 + col];
  const f32 t1 = fabsf(t0);
  out[0] = t1;
}

__device__ __forceinline__ void store_out(const Params& p, int row, int col, const i64 (&acc)[1]) {
  p.out0[row * 1000 + col] = acc[0];
}

struct SortTile {
  u32 keys[1024];
  int places[1024];
};

extern "C" __global__ void __launch_bounds__(256) sort_abs_sortindices_121fa71d(const __grid_constant__ Params p) {
  constexpr int THREADS = 256, ITEMS = 4, TILE = THREADS * ITEMS;
  pdl_launch_dependents();
  DYN_SHARED(SortTile, shared);
  SortTile& tile = shared[0];
  const int thread = threadIdx.x;
  const int cols = 1000;
  const int row = blockIdx.x;
  pdl_wait();

  for (int first = 0; first < cols; first += TILE) {
    const int count = min(TILE, cols - first);
    for (int i = thread; i < count; i += THREADS) {
      f32 x[1];
      load_x(p, row, first + i, x);
      tile.keys[i] = ~sort_key(x[0]);
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
EXPORT_KERNEL(sort_abs_sortindices_121fa71d)
