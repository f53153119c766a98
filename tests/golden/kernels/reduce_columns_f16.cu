// reduce_max: threads lie along the outputs, 8 neighbouring ones each;
// 32 threads share an output's elements.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f16* in0;
  f16* out0;
  int step_count;
};

__device__ __forceinline__ void load_x(const Params& p, int out_index, int step, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (step * 256 + out_index));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int out_index, const f32 (&acc)[8]) {
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    out0_lanes.v[lane] = from_f32<f16>(acc[lane]);
  }
  store_vec<8>(p.out0 + out_index, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) reduce_max_a435395c(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(f32, handed_over);  // [lane][thread]
  const int slice = threadIdx.x / 8;
  const int out_index = (blockIdx.x * 8 + threadIdx.x % 8) * 8;
  pdl_wait();

  f32 part[8];
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) part[lane] = -(f32)INFINITY;
  if (out_index < 256) {
#pragma unroll 4
    for (int step = slice; step < p.step_count; step += 32) {
      f32 x[8];
      load_x(p, out_index, step, x);
#pragma unroll
      for (int lane = 0; lane < 8; ++lane)
        part[lane] = OpMax()(part[lane], x[lane]);
    }
  }

  slices_reduce<32, 8>(part, handed_over, slice, OpMax());

  if (slice == 0 && out_index < 256) {
    f32 acc[8];
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) {
      acc[lane] = part[lane];
    }
    store_out(p, out_index, acc);
  }
}
EXPORT_KERNEL(reduce_max_a435395c)
