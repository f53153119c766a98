// reduce_argmax: 128 threads share an output and read along the reduced axes,
// 4 neighbouring elements at a time.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "arg_reduce.cuh"

struct Params {
  const f32* in0;
  i64* out0;
  int out_count;
};

__device__ __forceinline__ void load_x(const Params& p, int out_index, int step, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (out_index * 1000 + step));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int out_index, i64 acc, f32 value) {
  p.out0[out_index] = acc;
}

extern "C" __global__ void __launch_bounds__(128) reduce_argmax_7e6d48ad(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(Indexed<f32>, scratch);
  const int thread = threadIdx.x % 128;
  const int own = blockIdx.x * 1 + threadIdx.x / 128;
  // threads past the last output stay for the exchange: they have nothing to combine
  const int out_index = min(own, p.out_count - 1);
  const int steps = own < p.out_count ? 1000 : 0;
  pdl_wait();

  Indexed<f32> part[4];
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) part[lane] = no_candidate<f32, false>(-(f32)INFINITY);
#pragma unroll 4
  for (int step = thread * 4; step < steps; step += 512) {
    f32 x[4];
    load_x(p, out_index, step, x);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane)
      part[lane] = OpArg<true, false>()(part[lane], Indexed<f32>{x[lane], (i32)(step + lane)});
  }
#pragma unroll
  for (int lane = 1; lane < 4; ++lane) part[0] = OpArg<true, false>()(part[0], part[lane]);
  const Indexed<f32> total = block_reduce<128, true>(part[0], scratch, OpArg<true, false>());
  if (thread == 0 && own < p.out_count)
    store_out(p, out_index, total.index, total.value);
}
EXPORT_KERNEL(reduce_argmax_7e6d48ad)
