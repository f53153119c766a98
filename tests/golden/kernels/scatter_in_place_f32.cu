// copy_scatter: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + i);
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out0_lanes.v[lane] = t1;
  }
  store_vec<4>(p.out0 + i, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) copy_scatter_a9a6fea1(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(copy_scatter_a9a6fea1)

// scatter: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  const i64* in0;
  f32* out0;
  const f32* in1;
  int s;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in1 + i);
  const int ix2 = i / 64;
  const i64 t3 = p.in0[ix2];
  const bool t4 = t3 < 0ll;
  const i64 t5 = (i64)p.s;
  const i64 t6 = t3 + t5;
  const i64 t7 = t4 ? t6 : t3;
  const i64 t8 = index_in(t7, t5);
  const bool t9 = t8 >= 0ll;
  const bool t10 = t8 < t5;
  const bool t11 = t9 && t10;
  const int ix12 = (i / 4) % 16;
  const i64 t13 = (i64)(p.s - 1);
  const i64 t14 = (t13 < t8 ? t13 : t8);
  const i64 t15 = (0ll < t14 ? t14 : 0ll);
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    if (t11) atomic_add(p.out0 + (ix12 * 4 + (int)t15 * 64 + lane), t1);
  }
}

extern "C" __global__ void __launch_bounds__(256) scatter_1a83be1e(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < 32000) compute(p, first);
}
EXPORT_KERNEL(scatter_1a83be1e)
