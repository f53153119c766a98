// c[M][N] = a[M][K] * b[K][N] in f32: 64x64x16 tiles, 256 threads, a 4x4 register tile each. M, N, K multiples of the tile.
#include "prims.cuh"

struct Params {
  const float* a;
  const float* b;
  float* c;
  int m, n, k;
};

extern "C" __global__ void __launch_bounds__(256) ffma_gemm(const __grid_constant__ Params p) {
  DYN_SHARED(float, smem);
  float *as = smem, *bs = smem + 16 * 64;  // [k][m], [k][n]
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  float acc[4][4] = {};
  pdl_wait();
  for (int k0 = 0; k0 < p.k; k0 += 16) {
    if (k0) __syncthreads();
    const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 4;
    const Vec<float, 4> a = load_vec<4>(p.a + (size_t)(m0 + row) * p.k + k0 + column);
    for (int i = 0; i < 4; ++i) as[(column + i) * 64 + row] = a[i];
    store_vec(bs + threadIdx.x / 16 * 64 + tx * 4, load_vec<4>(p.b + (size_t)(k0 + threadIdx.x / 16) * p.n + n0 + tx * 4));
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const Vec<float, 4> fa = load_vec<4>(as + k * 64 + ty * 4), fb = load_vec<4>(bs + k * 64 + tx * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(fa[i], fb[j], acc[i][j]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    Vec<float, 4> r;
    for (int j = 0; j < 4; ++j) r[j] = acc[i][j];
    store_vec(p.c + (size_t)(m0 + ty * 4 + i) * p.n + n0 + tx * 4, r);
  }
}
EXPORT_KERNEL(ffma_gemm)
