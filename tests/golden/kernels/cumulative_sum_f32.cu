// scan_abs_cumsum: 32 threads share a row and combine 128 elements of it at a time,
// 4 neighbouring ones each; ``before`` is the result of all that came before these.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "scan.cuh"

struct Params {
  const f32* in0;
  f32* out0;
  int row_count;
};

__device__ __forceinline__ void load_x(const Params& p, int row, int col, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (row * 256 + col));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    const f32 t2 = fabsf(t1);
    out[lane] = t2;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int row, int col, const f32 (&acc)[4]) {
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    out0_lanes.v[lane] = acc[lane];
  }
  store_vec<4>(p.out0 + (row * 256 + col), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(128) scan_abs_cumsum_cf527a90(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  f32* const scratch = nullptr;
  const int thread = threadIdx.x % 32;
  const int own_row = blockIdx.x * 4 + threadIdx.x / 32;
  // threads past the last row stay for the exchange: they see a row with no columns
  const int row = min(own_row, p.row_count - 1);
  const int cols = own_row < p.row_count ? 256 : 0;
  pdl_wait();

  f32 before = f32(0);
  for (int tile = 0; tile < 256; tile += 128) {
    const int col = tile + thread * 4;
    f32 acc[4];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) acc[lane] = f32(0);
    if (col < cols) load_x(p, row, col, acc);
#pragma unroll
    for (int lane = 1; lane < 4; ++lane) acc[lane] = OpSum()(acc[lane - 1], acc[lane]);
    const f32 start = row_scan<32>(acc[3], before, scratch, OpSum());
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) acc[lane] = OpSum()(start, acc[lane]);
    if (col < cols) store_out(p, row, col, acc);
  }
}
EXPORT_KERNEL(scan_abs_cumsum_cf527a90)
