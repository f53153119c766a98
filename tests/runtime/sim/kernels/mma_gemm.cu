// c[M][N] = relu(a[M][K] * b[K][N] + bias), f16 with f32 accumulation; 64x64x32 tiles, four warps of 32x32, two stages.
#include "prims.cuh"

struct Params {
  const f16* a;
  const f16* b;
  const f16* bias;
  f16* c;
  int m, n, k;
};

constexpr int BM = 64, BN = 64, BK = 32, STRIDE_A = BK + 8, STRIDE_B = BN + 8;

__device__ __forceinline__ void load_tile(const Params& p, f16* as, f16* bs, int stage, int m0, int n0, int k0) {
#pragma unroll
  for (int c = threadIdx.x; c < BM * BK / 8; c += 128) {
    const int r = c / (BK / 8), q = c % (BK / 8) * 8, ok = m0 + r < p.m && k0 + q < p.k;
    cp_async16(smem_u32(as + (stage * BM + r) * STRIDE_A + q), ok ? p.a + (size_t)(m0 + r) * p.k + k0 + q : p.a, ok ? 16 : 0);
  }
#pragma unroll
  for (int c = threadIdx.x; c < BK * BN / 8; c += 128) {
    const int r = c / (BN / 8), q = c % (BN / 8) * 8, ok = k0 + r < p.k && n0 + q < p.n;
    cp_async16(smem_u32(bs + (stage * BK + r) * STRIDE_B + q), ok ? p.b + (size_t)(k0 + r) * p.n + n0 + q : p.b, ok ? 16 : 0);
  }
  cp_async_commit();
}

extern "C" __global__ void __launch_bounds__(128) mma_gemm(const __grid_constant__ Params p) {
  DYN_SHARED(f16, smem);
  f16* as = smem;
  f16* bs = smem + 2 * BM * STRIDE_A;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
  const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, tiles = (p.k + BK - 1) / BK;
  float acc[2][4][4] = {};
  pdl_wait();
  load_tile(p, as, bs, 0, m0, n0, 0);
  for (int t = 0; t < tiles; ++t) {
    if (t + 1 < tiles) {
      load_tile(p, as, bs, (t + 1) & 1, m0, n0, (t + 1) * BK);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const f16* a = as + (t & 1) * BM * STRIDE_A;
    const f16* b = bs + (t & 1) * BK * STRIDE_B;
#pragma unroll
    for (int kk = 0; kk < BK; kk += 16) {
      u32 fa[2][4], fb[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) ldmatrix_x4(fa[i], smem_u32(a + (wm + i * 16 + lane % 16) * STRIDE_A + kk + lane / 16 * 8));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        u32 r[4];
        ldmatrix_x4_trans(r, smem_u32(b + (kk + lane % 16) * STRIDE_B + wn + j * 16 + lane / 16 * 8));
        fb[2 * j][0] = r[0], fb[2 * j][1] = r[1], fb[2 * j + 1][0] = r[2], fb[2 * j + 1][1] = r[3];
      }
      mma_tile<f16>(acc, fa, fb);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = m0 + wm + i * 16 + h * 8 + lane / 4, c = n0 + wn + j * 8 + lane % 4 * 2;
        if (r >= p.m || c >= p.n) continue;
        const Vec<f16, 2> bias = load_vec<2>(p.bias + c);
        const u32 pair = pack2<f16>(fmaxf(acc[i][j][2 * h] + to_f32(bias[0]), 0.0f), fmaxf(acc[i][j][2 * h + 1] + to_f32(bias[1]), 0.0f));
        *reinterpret_cast<u32*>(p.c + (size_t)r * p.n + c) = pair;
      }
}
EXPORT_KERNEL(mma_gemm)
