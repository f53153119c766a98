// pointwise_sigmoid: one thread computes one element of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const f32 t0 = p.in0[i];
  const f32 t1 = -t0;
  const f32 t2 = expf(t1);
  const f32 t3 = t2 + 1.0f;
  const f32 t4 = recip(t3);
  p.out0[i] = t4;
}

extern "C" __global__ void __launch_bounds__(256) pointwise_sigmoid_11df0003(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 1;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_sigmoid_11df0003)
