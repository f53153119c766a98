// reduce_scatter: 2 threads share an output and read along the reduced axes,
// 2 neighbouring elements at a time.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const i64* in0;
  const f32* in1;
  const f32* in2;
  f32* out0;
  int s;
  int out_count;
};

__device__ __forceinline__ void load_x(const Params& p, int out_index, int step, i64 (&out)[2]) {
  const Vec<i64, 2> v0 = load_vec<2>(p.in0 + step);
  const i64 t3 = (i64)p.s;
  const int ix7 = out_index / 64;
  const i64 t8 = (i64)ix7;
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    const i64 t1 = v0.v[lane];
    const bool t2 = t1 < 0ll;
    const i64 t4 = t1 + t3;
    const i64 t5 = t2 ? t4 : t1;
    const i64 t6 = index_in(t5, t3);
    const bool t9 = t6 == t8;
    const i64 t10 = (i64)(step + lane);
    const i64 t11 = t9 ? t10 : (-1ll);
    out[lane] = t11;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int out_index, i64 acc) {
  const bool t0 = acc >= 0ll;
  const int ix1 = out_index % 64;
  const i64 t2 = (3ll < acc ? 3ll : acc);
  const i64 t3 = (0ll < t2 ? t2 : 0ll);
  const f32 t4 = t0 ? p.in1[ix1 + (int)t3 * 64] : f32(0);
  const f32 t5 = p.in2[out_index];
  const f32 t6 = t0 ? t4 : t5;
  p.out0[out_index] = t6;
}

extern "C" __global__ void __launch_bounds__(128) reduce_scatter_f3fc2d8a(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  const int thread = threadIdx.x % 2;
  const int own = blockIdx.x * 64 + threadIdx.x / 2;
  // threads past the last output stay for the exchange: they have nothing to combine
  const int out_index = min(own, p.out_count - 1);
  const int steps = own < p.out_count ? 4 : 0;
  pdl_wait();

  i64 part[2];
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) part[lane] = i64((-9223372036854775807ll - 1));
#pragma unroll 4
  for (int step = thread * 2; step < steps; step += 4) {
    i64 x[2];
    load_x(p, out_index, step, x);
#pragma unroll
    for (int lane = 0; lane < 2; ++lane)
      part[lane] = OpMax()(part[lane], x[lane]);
  }
#pragma unroll
  for (int lane = 1; lane < 2; ++lane) part[0] = OpMax()(part[0], part[lane]);
  const i64 total = lanes_reduce<2>(part[0], OpMax());
  if (thread == 0 && own < p.out_count)
    store_out(p, out_index, total);
}
EXPORT_KERNEL(reduce_scatter_f3fc2d8a)
