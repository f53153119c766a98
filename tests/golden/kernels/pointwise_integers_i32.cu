// pointwise_div_mod: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  i32* out0;
  const i32* in0;
  const i32* in1;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const Vec<i32, 4> v0 = load_vec<4>(p.in0 + i);
  const int ix2 = (i / 4) % 2;
  const Vec<i32, 4> v3 = load_vec<4>(p.in1 + ix2 * 4);
  Vec<i32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const i32 t1 = v0.v[lane];
    const i32 t4 = v3.v[lane];
    const i32 t5 = checked_divisor(t4);
    const i32 t6 = div_or_0(t1, t5);
    const i32 t7 = mod_or_0(t6, t5);
    out0_lanes.v[lane] = t7;
  }
  store_vec<4>(p.out0 + i, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_div_mod_d7e088ae(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_div_mod_d7e088ae)
