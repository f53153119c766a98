// o = softmax(q k^T * scale) v, head dimension 64, q, k, v, o: [heads][length][64] f16; 64 query rows a block.
#include "prims.cuh"

struct Params {
  const f16* q;
  const f16* k;
  const f16* v;
  f16* o;
  int length;
  float scale;
};

constexpr int D = 64, STRIDE = D + 8;

__device__ __forceinline__ void load_rows(const f16* from, f16* to, int row0, int length) {
  for (int c = threadIdx.x; c < 64 * 8; c += 128) {
    const int r = c / 8, q = c % 8 * 8, ok = row0 + r < length;
    cp_async16(smem_u32(to + r * STRIDE + q), ok ? from + (size_t)(row0 + r) * D + q : from, ok ? 16 : 0);
  }
}

extern "C" __global__ void __launch_bounds__(128) flash(const __grid_constant__ Params p) {
  DYN_SHARED(f16, smem);
  f16 *ks = smem, *vs = smem + 64 * STRIDE, *qs = smem + 128 * STRIDE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q0 = blockIdx.x * 64;
  const size_t base = (size_t)blockIdx.y * p.length * D;
  pdl_wait();
  load_rows(p.q + base, qs, q0, p.length);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  u32 fq[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) ldmatrix_x4(fq[k], smem_u32(qs + (warp * 16 + lane % 16) * STRIDE + k * 16 + lane / 16 * 8));
  float o[8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  for (int k0 = 0; k0 < p.length; k0 += 64) {
    if (k0) __syncthreads();
    load_rows(p.k + base, ks, k0, p.length);
    load_rows(p.v + base, vs, k0, p.length);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float s[8][4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        u32 r[4];
        ldmatrix_x4(r, smem_u32(ks + (j * 8 + lane % 8 + lane / 16 * 8) * STRIDE + k * 16 + lane / 8 % 2 * 8));
        const u32 b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
        mma_m16n8k16<f16>(s[j], fq[k], b0);
        mma_m16n8k16<f16>(s[j + 1], fq[k], b1);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = top[h];
#pragma unroll
      for (int j = 0; j < 8; ++j)
        for (int e = 0; e < 2; ++e) {
          float& x = s[j][2 * h + e];
          x = k0 + j * 8 + lane % 4 * 2 + e < p.length ? x * p.scale : -INFINITY;
          m = fmaxf(m, x);
        }
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      const float c = __expf(top[h] - m);
      top[h] = m;
      sum[h] *= c;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        o[j][2 * h] *= c;
        o[j][2 * h + 1] *= c;
        for (int e = 0; e < 2; ++e) sum[h] += s[j][2 * h + e] = __expf(s[j][2 * h + e] - m);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u32 a[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = pack2<f16>(s[2 * k + e / 2][e % 2 * 2], s[2 * k + e / 2][e % 2 * 2 + 1]);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        u32 r[4];
        ldmatrix_x4_trans(r, smem_u32(vs + (k * 16 + lane % 16) * STRIDE + j * 8 + lane / 16 * 8));
        const u32 b0[2] = {r[0], r[1]}, b1[2] = {r[2], r[3]};
        mma_m16n8k16<f16>(o[j], a, b0);
        mma_m16n8k16<f16>(o[j + 1], a, b1);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float total = sum[h];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int r = q0 + warp * 16 + h * 8 + lane / 4;
    if (r >= p.length) continue;
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<u32*>(p.o + base + (size_t)r * D + j * 8 + lane % 4 * 2) = pack2<f16>(o[j][2 * h] / total, o[j][2 * h + 1] / total);
  }
}
EXPORT_KERNEL(flash)
