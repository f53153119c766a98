// One row a block: y = (x - mean) / sqrt(var + eps) * gain + shift, in two passes over the row.
#include "prims.cuh"
#include "reduce.cuh"

struct Params {
  const f16* x;
  const float* gain;
  const float* shift;
  f16* y;
  int columns;
  float eps;
};

__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_reduce(v, OpSum());
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  return scratch[0] + scratch[1] + scratch[2] + scratch[3];
}

extern "C" __global__ void __launch_bounds__(128) layernorm(const __grid_constant__ Params p) {
  DYN_SHARED(float, scratch);
  pdl_wait();
  const f16* x = p.x + (size_t)blockIdx.x * p.columns;
  f16* y = p.y + (size_t)blockIdx.x * p.columns;
  float sum = 0;
  for (int i = threadIdx.x; i < p.columns; i += 128) sum += to_f32(x[i]);
  const float mean = block_sum(sum, scratch) / p.columns;
  float squares = 0;
  for (int i = threadIdx.x; i < p.columns; i += 128) {
    const float d = to_f32(x[i]) - mean;
    squares += d * d;
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / p.columns + p.eps);
  for (int i = threadIdx.x; i < p.columns; i += 128)
    y[i] = from_f32<f16>((to_f32(x[i]) - mean) * scale * p.gain[i] + p.shift[i]);
}
EXPORT_KERNEL(layernorm)
