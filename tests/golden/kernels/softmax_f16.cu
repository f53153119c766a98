// rowwise_softmax: 32 threads a row, 8 neighbouring elements at a time;
// the row is read once and kept in registers.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f16* in0;
  f16* out0;
  int s;
  int row_count;
  int col_count;
};

__device__ __forceinline__ void load_x(const Params& p, int row, int col, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (row * p.s + col));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void max_value(const Params& p, int row, int col, const f32 (&x)[8], f32 (&out)[8]) {
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    out[lane] = x[lane];
  }
}

__device__ __forceinline__ void sum_value(const Params& p, int row, int col, const f32 (&x)[8], f32 row_max, f32 (&out)[8]) {
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] - row_max;
    const f32 t1 = expf(t0);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_row(const Params& p, int row, int col, const f32 (&x)[8], f32 row_max, f32 row_sum) {
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] - row_max;
    const f32 t1 = expf(t0);
    const f32 t2 = t1 / row_sum;
    out0_lanes.v[lane] = from_f32<f16>(t2);
  }
  store_vec<8>(p.out0 + (row * p.s + col), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(128) rowwise_softmax_2af703fb(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  const int thread = threadIdx.x % 32;
  const int own_row = blockIdx.x * 4 + threadIdx.x / 32;
  // threads past the last row stay for the shuffles: they see a row with no columns
  const int row = min(own_row, p.row_count - 1);
  const int cols = own_row < p.row_count ? p.col_count : 0;
  pdl_wait();

  f32 x[2][8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int col = i * 256 + thread * 8;
    if (col < cols) load_x(p, row, col, x[i]);
  }
  f32 row_max[1];
  {
    f32 part = -(f32)INFINITY;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int col = i * 256 + thread * 8;
      if (col < cols) {
        f32 term[8];
        max_value(p, row, col, x[i], term);
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) part = OpMax()(part, term[lane]);
      }
    }
    part = lanes_reduce<32>(part, OpMax());
    row_max[0] = part;
  }
  f32 row_sum[1];
  {
    f32 part = f32(0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int col = i * 256 + thread * 8;
      if (col < cols) {
        f32 term[8];
        sum_value(p, row, col, x[i], row_max[0], term);
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) part = OpSum()(part, term[lane]);
      }
    }
    part = lanes_reduce<32>(part, OpSum());
    row_sum[0] = part;
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int col = i * 256 + thread * 8;
    if (col < cols) store_row(p, row, col, x[i], row_max[0], row_sum[0]);
  }
}
EXPORT_KERNEL(rowwise_softmax_2af703fb)
