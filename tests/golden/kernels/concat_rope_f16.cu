// pointwise_neg_mul_add: one thread computes 8 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f16* out0;
  const f16* in0;
  const f16* in1;
  const f16* in2;
  int s;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + i);
  const int ix2 = (i / 8) % (p.s * 8);
  const Vec<f16, 8> v3 = load_vec<8>(p.in1 + ix2 * 8);
  const int ix6 = (i / 8) % 8;
  const bool t7 = ix6 < 4;
  const Vec<f16, 8> v8 = t7 ? load_vec<8>(p.in0 + (i + 32)) : Vec<f16, 8>{};
  const bool t11 = ix6 > 3;
  const Vec<f16, 8> v12 = t11 ? load_vec<8>(p.in0 + (i - 32)) : Vec<f16, 8>{};
  const Vec<f16, 8> v15 = load_vec<8>(p.in2 + ix2 * 8);
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    const f32 t4 = to_f32(v3.v[lane]);
    const f32 t5 = t1 * t4;
    const f32 t9 = to_f32(v8.v[lane]);
    const f32 t10 = -t9;
    const f32 t13 = to_f32(v12.v[lane]);
    const f32 t14 = t7 ? t10 : t13;
    const f32 t16 = to_f32(v15.v[lane]);
    const f32 t17 = t14 * t16;
    const f32 t18 = t5 + t17;
    out0_lanes.v[lane] = from_f32<f16>(t18);
  }
  store_vec<8>(p.out0 + i, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_neg_mul_add_a4c24cd8(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 8;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_neg_mul_add_a4c24cd8)
