// reduce_exp_sum: 256 threads share an output and read along the reduced axes,
// 4 neighbouring elements at a time.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f32* in0;
  f32* out0;
  int out_count;
};

__device__ __forceinline__ void load_x(const Params& p, int out_index, int step, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (out_index * 1024 + step));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    const f32 t2 = expf(t1);
    out[lane] = t2;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int out_index, f32 acc) {
  p.out0[out_index] = acc;
}

extern "C" __global__ void __launch_bounds__(256) reduce_exp_sum_0f859f50(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(f32, scratch);
  const int thread = threadIdx.x % 256;
  const int own = blockIdx.x * 1 + threadIdx.x / 256;
  // threads past the last output stay for the exchange: they have nothing to combine
  const int out_index = min(own, p.out_count - 1);
  const int steps = own < p.out_count ? 1024 : 0;
  pdl_wait();

  f32 part[4];
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) part[lane] = f32(0);
#pragma unroll 4
  for (int step = thread * 4; step < steps; step += 1024) {
    f32 x[4];
    load_x(p, out_index, step, x);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane)
      part[lane] = OpSum()(part[lane], x[lane]);
  }
#pragma unroll
  for (int lane = 1; lane < 4; ++lane) part[0] = OpSum()(part[0], part[lane]);
  const f32 total = block_reduce<256, true>(part[0], scratch, OpSum());
  if (thread == 0 && own < p.out_count)
    store_out(p, out_index, total);
}
EXPORT_KERNEL(reduce_exp_sum_0f859f50)
