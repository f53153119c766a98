// pointwise_resize: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const int ix0 = i / 32;
  const int ix1 = ix0 % 32;
  const int ix2 = max(0, ix1 * 32 - 16);
  const int ix3 = min(960, ix2);
  const int ix4 = ix3 / 64;
  const int ix5 = (i / 4) % 8;
  const int ix9 = i / 1024;
  const int ix11 = ix3 % 64;
  const f32 t12 = (f32)ix11;
  const f32 t13 = t12 / 64.0f;
  const f32 t14 = 1.0f - t13;
  const int ix26 = min(15, ix4 + 1);
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const int ix6 = max(0, ix5 * 128 + lane * 32 - 16);
    const int ix7 = min(960, ix6);
    const int ix8 = ix7 / 64;
    const f32 t10 = p.in0[ix4 * 16 + ix8 + ix9 * 256];
    const f32 t15 = t10 * t14;
    const int ix16 = ix7 % 64;
    const f32 t17 = (f32)ix16;
    const f32 t18 = t17 / 64.0f;
    const f32 t19 = 1.0f - t18;
    const f32 t20 = t15 * t19;
    const int ix21 = min(15, ix8 + 1);
    const f32 t22 = p.in0[ix21 + ix4 * 16 + ix9 * 256];
    const f32 t23 = t22 * t14;
    const f32 t24 = t23 * t18;
    const f32 t25 = t20 + t24;
    const f32 t27 = p.in0[ix26 * 16 + ix8 + ix9 * 256];
    const f32 t28 = t27 * t13;
    const f32 t29 = t28 * t19;
    const f32 t30 = t25 + t29;
    const f32 t31 = p.in0[ix26 * 16 + ix21 + ix9 * 256];
    const f32 t32 = t31 * t13;
    const f32 t33 = t32 * t18;
    const f32 t34 = t30 + t33;
    out0_lanes.v[lane] = t34;
  }
  store_vec<4>(p.out0 + i, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_resize_d56ceba2(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < 8192) compute(p, first);
}
EXPORT_KERNEL(pointwise_resize_d56ceba2)
