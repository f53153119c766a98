// pointwise_pad_slice: one thread computes 4 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const int ix8 = i / 144;
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const int ix0 = (i + lane) / 18;
    const int ix1 = ix0 % 8;
    const bool t2 = ix1 > 0;
    const int ix3 = (i + lane) % 18;
    const bool t4 = ix3 > 0;
    const bool t5 = ix3 < 17;
    const bool t6 = t4 && t5;
    const bool t7 = t2 && t6;
    const f32 t9 = t7 ? p.in0[-ix1 * 32 + ix3 + ix8 * 224 + 223] : f32(0);
    const f32 t10 = t7 ? t9 : 0.5f;
    out0_lanes.v[lane] = t10;
  }
  store_vec<4>(p.out0 + i, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_pad_slice_9878600b(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 4;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_pad_slice_9878600b)
