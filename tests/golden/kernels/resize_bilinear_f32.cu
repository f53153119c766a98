// pointwise_resize: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const int ix0 = (i / 4) / 8;
  const int ix1 = ix0 % 32;
  const int ix2 = max((int)(0), (int)((ix1 * 32 - 16)));
  const int ix3 = min((int)(960), (int)(ix2));
  const int ix4 = ix3 / 64;
  const int ix5 = (i / 4) % 8;
  const int ix9 = (i / 4) / 256;
  const int ix11 = ix3 % 64;
  const i64 t12 = (i64)(ix11);
  const f32 t13 = (f32)t12;
  const f32 t14 = t13 / 64.0f;
  const f32 t15 = 1.0f - t14;
  const int ix28 = min((int)(15), (int)((ix4 + 1)));
  Vec<f32, 4> out0_lanes;
  #pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const int ix6 = max((int)(0), (int)((ix5 * 128 + lane * 32 - 16)));
    const int ix7 = min((int)(960), (int)(ix6));
    const int ix8 = ix7 / 64;
    const f32 t10 = p.in0[ix4 * 16 + ix8 + ix9 * 256];
    const f32 t16 = t10 * t15;
    const int ix17 = ix7 % 64;
    const i64 t18 = (i64)(ix17);
    const f32 t19 = (f32)t18;
    const f32 t20 = t19 / 64.0f;
    const f32 t21 = 1.0f - t20;
    const f32 t22 = t16 * t21;
    const int ix23 = min((int)(15), (int)((ix8 + 1)));
    const f32 t24 = p.in0[ix23 + ix4 * 16 + ix9 * 256];
    const f32 t25 = t24 * t15;
    const f32 t26 = t25 * t20;
    const f32 t27 = t22 + t26;
    const f32 t29 = p.in0[ix28 * 16 + ix8 + ix9 * 256];
    const f32 t30 = t29 * t14;
    const f32 t31 = t30 * t21;
    const f32 t32 = t27 + t31;
    const f32 t33 = p.in0[ix28 * 16 + ix23 + ix9 * 256];
    const f32 t34 = t33 * t14;
    const f32 t35 = t34 * t20;
    const f32 t36 = t32 + t35;
    out0_lanes.v[lane] = t36;
  }
  store_vec<4>(p.out0 + ((i / 4) * 4), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_resize_abf932b8(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < 8192) compute(p, first);
}
EXPORT_KERNEL(pointwise_resize_abf932b8)
