// sort_abs_sortindices: a block of 1024 threads sorts a row: tiles of 1024 in shared memory, then runs of tiles (none here).
// Each element finds its place in the merged run by halving the other run.
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
  u32 keys[2][1024];
  int places[2][1024];
};

extern "C" __global__ void __launch_bounds__(1024) sort_abs_sortindices_8dc3a5eb(const __grid_constant__ Params p) {
  constexpr int THREADS = 1024, TILE = 1024;
  pdl_launch_dependents();
  DYN_SHARED(SortTile, shared);
  SortTile& tile = shared[0];
  const int thread = threadIdx.x, row = blockIdx.x;
  const int cols = 1000;
  pdl_wait();

  for (int first = 0; first < cols; first += TILE) {
    const int count = min(TILE, cols - first);
    for (int i = thread; i < count; i += THREADS) {
      f32 x[1];
      load_x(p, row, first + i, x);
      tile.keys[0][i] = ~sort_key(x[0]);
      tile.places[0][i] = first + i;
    }
    __syncthreads();
    int from = 0;
    for (int length = 1; length < count; length *= 2, from ^= 1) {
      for (int i = thread; i < count; i += THREADS) {
        const int place = merged_place(tile.keys[from], count, length, i);
        tile.keys[from ^ 1][place] = tile.keys[from][i];
        tile.places[from ^ 1][place] = tile.places[from][i];
      }
      __syncthreads();
    }
    for (int i = thread; i < count; i += THREADS) {
      const i64 acc[1] = {tile.places[from][i]};
      store_out(p, row, first + i, acc);
    }  // the next tile's elements are loaded by the threads that have read these here
  }
}
EXPORT_KERNEL(sort_abs_sortindices_8dc3a5eb)
