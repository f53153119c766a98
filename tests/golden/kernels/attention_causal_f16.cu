// attention: f16 on tensor cores. 4 x 1 warps of 16 queries and 64 keys a step;
// keys and values pass through a ring of 2 tiles of 64;
// online softmax in base 2, probabilities stay in registers.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  const f16* in2;
  f16* out0;
  int s;
  int query_tiles;
  int query_count;
  int key_count;
};

__device__ __forceinline__ void load_q(const Params& p, int b, int h, int s, int d, f32 (&out)[2]) {
  const Vec<f16, 2> v0 = load_vec<2>(p.in0 + (h * p.s * 64 + b * p.s * 768 + s * 64 + d));
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int b, int h, int s, int e, const f32 (&acc)[2]) {
  Vec<f16, 2> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    out0_lanes.v[lane] = from_f32<f16>(acc[lane]);
  }
  store_vec<2>(p.out0 + (h * p.s * 64 + b * p.s * 768 + s * 64 + e), out0_lanes);
}

__device__ __forceinline__ const f16* k_row0(const Params& p, int b, int h) {
  return p.in1 + (h * p.s * 64 + b * p.s * 768);
}

__device__ __forceinline__ const f16* v_row0(const Params& p, int b, int h) {
  return p.in2 + (h * p.s * 64 + b * p.s * 768);
}

// Tile t0 / 64 of the keys and values, to one stage of the ring.
__device__ __forceinline__ void load_tile(const Params& p, int b, int h, int t0, f16* k_tile, f16* v_tile) {
  for (int i = threadIdx.x; i < 512; i += 128) {
    const int row = i / 8, col = i % 8 * 8, t = t0 + row;
    const bool inside = t < p.key_count;
    const f16* row_start = k_row0(p, b, h) + min(t, p.key_count - 1) * 64;
    cp_async16(smem_u32(k_tile + row * 72 + col), row_start + col, inside ? 16 : 0);
  }
  for (int i = threadIdx.x; i < 512; i += 128) {
    const int row = i / 8, col = i % 8 * 8, t = t0 + row;
    const bool inside = t < p.key_count;
    const f16* row_start = v_row0(p, b, h) + min(t, p.key_count - 1) * 64;
    cp_async16(smem_u32(v_tile + row * 72 + col), row_start + col, inside ? 16 : 0);
  }
}

extern "C" __global__ void __launch_bounds__(128, 1) attention_d8b351c7(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  f16* const ring = reinterpret_cast<f16*>(smem + 0);  // [2] stages of 18432 bytes: k, then v
  const int warp = threadIdx.x / 32, lane_id = threadIdx.x % 32;
  const int query_warp = warp / 1, key_warp = warp % 1;
  const int quad_row = lane_id / 4, quad_col = 2 * (lane_id % 4);  // this lane's first row and column of a fragment
  const int tile = p.query_tiles - 1 - blockIdx.x % p.query_tiles;
  const int h = blockIdx.x / p.query_tiles % 12, b = blockIdx.x / p.query_tiles / 12;
  const int s0 = tile * 64;
  const int s = s0 + query_warp * 16 + quad_row;  // this lane's queries are s and s + 8
  // no query of the block sees more keys
  const int visible = max(0, min(p.key_count, s0 + 63 + 1 + 0));
  const int steps = (visible + 63) / 64;
  pdl_wait();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    f16* const stage = ring + i * 9216;
    if (i < steps) load_tile(p, b, h, i * 64, stage, stage + 4608);
    cp_async_commit();
  }
  u32 query[4][1][4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = s + 8 * (j % 2), col = 16 * k + 8 * (j / 2) + quad_col;
      f32 x[2] = {};
      if (row < p.query_count && col < 64) load_q(p, b, h, row, col, x);
      query[k][0][j] = pack2<f16>(x[0], x[1]);
    }
  f32 out[1][1][8][4] = {};
  f32 top[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};  // of queries s and s + 8; the sum is this lane's share

  for (int step = 0; step < steps; ++step) {
    const int t0 = step * 64 + key_warp * 64;  // this warp's first key
    const f16* const stage = ring + step % 2 * 9216;
    const f16* const k_rows = stage + key_warp * 4608;
    const f16* const v_rows = stage + 4608 + key_warp * 4608;
    cp_async_wait<1>();
    __syncthreads();

    f32 score[1][8][4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u32 key[8][2];
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        u32 r[4];
        const int row = 8 * n + lane_id % 8 + lane_id / 16 * 8, col = 16 * k + lane_id / 8 % 2 * 8;
        ldmatrix_x4(r, smem_u32(k_rows + row * 72 + col));
        key[n][0] = r[0], key[n][1] = r[1], key[n + 1][0] = r[2], key[n + 1][1] = r[3];
      }
      mma_tile<f16, 1, 8>(score, query[k], key);
    }
    if (t0 + 64 > p.key_count || t0 + 64 > s0 + query_warp * 16 + 1 + 0) {
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int t = t0 + 8 * n + quad_col + j % 2;
          if (t >= p.key_count || t > s + 8 * (j / 2) + 0) score[0][n][j] = -INFINITY;
        }
    }

    // online softmax: the row's largest score so far, and what that makes of the sums so far
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      f32 best = top[r];
#pragma unroll
      for (int n = 0; n < 8; ++n) best = fmaxf(best, fmaxf(score[0][n][2 * r], score[0][n][2 * r + 1]));
      best = lanes_reduce<4>(best, OpMax());
      const f32 base = best == -INFINITY ? 0.f : best * 0.18033688011112042f;  // no key yet: all terms stay 0
      const f32 fade = ex2_approx(top[r] * 0.18033688011112042f - base);
      top[r] = best;
      f32 sum = 0.f;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 2 * r; c < 2 * r + 2; ++c) {
          score[0][n][c] = ex2_approx(score[0][n][c] * 0.18033688011112042f - base);
          sum += score[0][n][c];
        }
      total[r] = total[r] * fade + sum;
#pragma unroll
      for (int g = 0; g < 1; ++g)
#pragma unroll
        for (int n = 0; n < 8; ++n) out[g][0][n][2 * r] *= fade, out[g][0][n][2 * r + 1] *= fade;
    }

    // the score fragments, rounded, are the left operand of the product with the values
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u32 weight[1][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const f32(&pair)[4] = score[0][2 * k + j / 2];
        weight[0][j] = pack2<f16>(pair[2 * (j % 2)], pair[2 * (j % 2) + 1]);
      }
#pragma unroll
      for (int g = 0; g < 1; ++g) {
        u32 value[8][2];
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          u32 r[4];
          const int row = 16 * k + lane_id % 16, col = (g * 8 + n) * 8 + lane_id / 16 * 8;
          ldmatrix_x4_trans(r, smem_u32(v_rows + row * 72 + col));
          value[n][0] = r[0], value[n][1] = r[1], value[n + 1][0] = r[2], value[n + 1][1] = r[3];
        }
        mma_tile<f16, 1, 8>(out[g], weight, value);
      }
    }
    if (step + 2 < steps) {
      __syncthreads();  // every warp is done with this stage
      f16* const next = ring + step % 2 * 9216;
      load_tile(p, b, h, (step + 2) * 64, next, next + 4608);
    }
    cp_async_commit();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) total[r] = lanes_reduce<4>(total[r], OpSum());

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const f32 inverse = total[r] == 0.f ? 0.f : 1.f / total[r];  // a query without keys gives zeros
    if (s + 8 * r < p.query_count) {
#pragma unroll
      for (int g = 0; g < 1; ++g)
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int e = (g * 8 + n) * 8 + quad_col;
          const f32 pair[2] = {out[g][0][n][2 * r] * inverse, out[g][0][n][2 * r + 1] * inverse};
          if (e < 64) store_out(p, b, h, s + 8 * r, e, pair);
        }
    }
  }
}
EXPORT_KERNEL(attention_d8b351c7)
