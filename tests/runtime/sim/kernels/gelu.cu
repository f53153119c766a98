// y = gelu(x + bias), eight f16 a thread.
#include "prims.cuh"

struct Params {
  const f16* x;
  const f16* bias;
  f16* y;
  int n, columns;
};

extern "C" __global__ void __launch_bounds__(256) bias_gelu(const __grid_constant__ Params p) {
  pdl_wait();
  const int i = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (i >= p.n) return;
  Vec<f16, 8> x = load_vec_stream<8>(p.x + i);
  const Vec<f16, 8> b = load_vec<8>(p.bias + i % p.columns);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float v = to_f32(x[k]) + to_f32(b[k]);
    x[k] = from_f32<f16>(0.5f * v * (1.0f + erff(v * 0.70710678f)));
  }
  store_vec_stream(p.y + i, x);
}
EXPORT_KERNEL(bias_gelu)
