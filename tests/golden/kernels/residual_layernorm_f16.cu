// rowwise_add_layernorm: 32 threads a row, 8 neighbouring elements at a time;
// the row is read once and kept in registers.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  f16* out0;
  const f16* in2;
  f16* out1;
  int row_count;
};

__device__ __forceinline__ void load_x(const Params& p, int row, int col, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (row * 768 + col));
  const Vec<f16, 8> v2 = load_vec<8>(p.in1 + (row * 768 + col));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    const f32 t3 = to_f32(v2.v[lane]);
    const f32 t4 = t1 + t3;
    out[lane] = t4;
  }
}

__device__ __forceinline__ void mean_value(const Params& p, int row, int col, const f32 (&x)[8], f32 (&out)[8]) {
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    out[lane] = x[lane];
  }
}

__device__ __forceinline__ void mean_finish(const Params& p, int row, f32 row_mean, f32 (&out)[1]) {
  const f32 t0 = row_mean / 768.0f;
  out[0] = t0;
}

__device__ __forceinline__ void rstd_value(const Params& p, int row, int col, const f32 (&x)[8], f32 row_mean, f32 (&out)[8]) {
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] - row_mean;
    const f32 t1 = t0 * t0;
    out[lane] = t1;
  }
}

__device__ __forceinline__ void rstd_finish(const Params& p, int row, f32 row_mean, f32 row_rstd, f32 (&out)[1]) {
  const f32 t0 = row_rstd / 768.0f;
  const f32 t1 = t0 + 1e-05f;
  const f32 t2 = rsqrtf(t1);
  out[0] = t2;
}

__device__ __forceinline__ void store_row(const Params& p, int row, int col, const f32 (&x)[8], f32 row_mean, f32 row_rstd) {
  const Vec<f16, 8> v2 = load_vec<8>(p.in2 + col);
  Vec<f16, 8> out0_lanes;
  Vec<f16, 8> out1_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] - row_mean;
    const f32 t1 = t0 * row_rstd;
    const f32 t3 = to_f32(v2.v[lane]);
    const f32 t4 = t1 * t3;
    const f32 t5 = t4 + t3;
    out0_lanes.v[lane] = from_f32<f16>(x[lane]);
    out1_lanes.v[lane] = from_f32<f16>(t5);
  }
  store_vec<8>(p.out0 + (row * 768 + col), out0_lanes);
  store_vec<8>(p.out1 + (row * 768 + col), out1_lanes);
}

extern "C" __global__ void __launch_bounds__(128) rowwise_add_layernorm_b5c473c0(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  const int thread = threadIdx.x % 32;
  const int own_row = blockIdx.x * 4 + threadIdx.x / 32;
  // threads past the last row stay for the shuffles: they see a row with no columns
  const int row = min(own_row, p.row_count - 1);
  const int cols = own_row < p.row_count ? 768 : 0;
  pdl_wait();

  f32 x[3][8];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const int col = i * 256 + thread * 8;
    if (col < cols) load_x(p, row, col, x[i]);
  }
  f32 row_mean[1];
  {
    f32 part = f32(0);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int col = i * 256 + thread * 8;
      if (col < cols) {
        f32 term[8];
        mean_value(p, row, col, x[i], term);
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) part = OpSum()(part, term[lane]);
      }
    }
    part = lanes_reduce<32>(part, OpSum());
    mean_finish(p, row, part, row_mean);
  }
  f32 row_rstd[1];
  {
    f32 part = f32(0);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int col = i * 256 + thread * 8;
      if (col < cols) {
        f32 term[8];
        rstd_value(p, row, col, x[i], row_mean[0], term);
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) part = OpSum()(part, term[lane]);
      }
    }
    part = lanes_reduce<32>(part, OpSum());
    rstd_finish(p, row, row_mean[0], part, row_rstd);
  }

#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const int col = i * 256 + thread * 8;
    if (col < cols) store_row(p, row, col, x[i], row_mean[0], row_rstd[0]);
  }
}
EXPORT_KERNEL(rowwise_add_layernorm_b5c473c0)
