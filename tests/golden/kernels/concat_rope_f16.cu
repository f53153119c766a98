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
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + ((i / 8) * 8));
  const int ix2 = (i / 8) % (p.s * 8);
  const Vec<f16, 8> v3 = load_vec<8>(p.in1 + (ix2 * 8));
  const int ix6 = (i / 8) % 8;
  const i64 t7 = (i64)(ix6);
  const bool t8 = t7 < 4ll;
  const Vec<f16, 8> v9 = t8 ? load_vec<8>(p.in0 + ((i / 8) * 8 + 32)) : Vec<f16, 8>{};
  const i64 t12 = (i64)(-ix6);
  const bool t13 = t12 < (-3ll);
  const Vec<f16, 8> v14 = t13 ? load_vec<8>(p.in0 + ((i / 8) * 8 - 32)) : Vec<f16, 8>{};
  const Vec<f16, 8> v17 = load_vec<8>(p.in2 + (ix2 * 8));
  Vec<f16, 8> out0_lanes;
  #pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    const f32 t4 = to_f32(v3.v[lane]);
    const f32 t5 = t1 * t4;
    const f32 t10 = to_f32(v9.v[lane]);
    const f32 t11 = -t10;
    const f32 t15 = to_f32(v14.v[lane]);
    const f32 t16 = t8 ? t11 : t15;
    const f32 t18 = to_f32(v17.v[lane]);
    const f32 t19 = t16 * t18;
    const f32 t20 = t5 + t19;
    out0_lanes.v[lane] = from_f32<f16>(t20);
  }
  store_vec<8>(p.out0 + ((i / 8) * 8), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_neg_mul_add_572ebd81(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 8;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_neg_mul_add_572ebd81)
