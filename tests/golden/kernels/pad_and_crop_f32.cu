// pointwise_slice: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const int ix10 = (i / 4) / 36;
  Vec<f32, 4> out0_lanes;
  #pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const int ix0 = ((i / 4) * 4 + lane) / 18;
    const int ix1 = ix0 % 8;
    const i64 t2 = (i64)(-ix1 * 2 + 14);
    const bool t3 = t2 < 14ll;
    const int ix4 = ((i / 4) * 4 + lane) % 18;
    const i64 t5 = (i64)(ix4 - 1);
    const bool t6 = (-1ll) < t5;
    const bool t7 = t5 < 16ll;
    const bool t8 = t6 && t7;
    const bool t9 = t3 && t8;
    const f32 t11 = t9 ? p.in0[-ix1 * 32 + ix4 + ix10 * 224 + 223] : f32(0);
    const f32 t12 = t9 ? t11 : 0.5f;
    out0_lanes.v[lane] = t12;
  }
  store_vec<4>(p.out0 + ((i / 4) * 4), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_slice_74ffb56b(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_slice_74ffb56b)
