// attention: 128 queries a block, 64 keys a step, f32 on the ordinary pipelines.
// Online softmax in base 2; the probabilities pass through shared memory, in rows that one warp owns.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "attention.cuh"

struct Params {
  const f32* in0;
  const f32* in1;
  const f32* in2;
  const bool* in3;
  f32* out0;
  int s;
  int query_tiles;
  int query_count;
  int key_count;
};

typedef f32 T;
constexpr int ROWS = 128, THREADS = 256;

__device__ __forceinline__ void load_q(const Params& p, int b, int h, int s, int d, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (h * p.s * 32 + b * p.s * 128 + s * 32 + d));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_mask(const Params& p, int b, int h, int s, int t, bool (&out)[1]) {
  const bool t0 = p.in3[b * p.s + t];
  out[0] = t0;
}

__device__ __forceinline__ void store_out(const Params& p, int b, int h, int s, int e, const f32 (&acc)[4]) {
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    out0_lanes.v[lane] = acc[lane];
  }
  store_vec<4>(p.out0 + (h * p.s * 32 + b * p.s * 128 + s * 32 + e), out0_lanes);
}

__device__ __forceinline__ const f32* k_row0(const Params& p, int b, int h) {
  const int ix0 = h / 2;
  return p.in1 + (ix0 * p.s * 32 + b * p.s * 64);
}

__device__ __forceinline__ const f32* v_row0(const Params& p, int b, int h) {
  const int ix0 = h / 2;
  return p.in2 + (ix0 * p.s * 32 + b * p.s * 64);
}

// A tile of keys or values from key t0 on, to shared memory: asynchronous where the operand lies in memory as it is needed.
__device__ __forceinline__ void fetch_k(const Params& p, int b, int h, int t0, f32* k_tile) {
  for (int i = threadIdx.x; i < 64 * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 4, t = t0 + row;
    const bool inside = t < p.key_count;
    const T* row_start = k_row0(p, b, h) + min(t, p.key_count - 1) * 32;
    cp_async16(smem_u32(k_tile + row * 36 + col), row_start + col, inside ? 16 : 0);
  }
}
__device__ __forceinline__ void fetch_v(const Params& p, int b, int h, int t0, f32* v_tile) {
  for (int i = threadIdx.x; i < 64 * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 4, t = t0 + row;
    const bool inside = t < p.key_count;
    const T* row_start = v_row0(p, b, h) + min(t, p.key_count - 1) * 32;
    cp_async16(smem_u32(v_tile + row * 32 + col), row_start + col, inside ? 16 : 0);
  }
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_bb33dc6e(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(f32, smem);
  f32* const q_tile = smem;                     // [128][36]
  f32* const k_tile = smem + 4608;      // [64][36]
  f32* const v_tile = smem + 6912;      // [64][32]
  f32* const p_tile = smem + 8960;      // [128][68]
  const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
  const int tile = blockIdx.x % p.query_tiles;
  const int h = blockIdx.x / p.query_tiles % 4, b = blockIdx.x / p.query_tiles / 4;
  const int s0 = tile * ROWS;
  const int visible = p.key_count;
  pdl_wait();

  if (visible > 0) fetch_k(p, b, h, 0, k_tile);
  cp_async_commit();
  if (visible > 0) fetch_v(p, b, h, 0, v_tile);
  cp_async_commit();
#pragma unroll 4
  for (int i = threadIdx.x; i < 1024; i += 256) {
    const int row = i / 8, col = i % 8 * 4;
    f32 x[4] = {};
    if (s0 + row < p.query_count && col < 32) load_q(p, b, h, s0 + row, col, x);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) q_tile[row * 36 + col + lane] = x[lane];
  }
  f32 out[4][1][4] = {};
  f32 top[4], total[4];  // of each query: the largest score, and this thread's share of the sum
#pragma unroll
  for (int i = 0; i < 4; ++i) top[i] = -(f32)INFINITY, total[i] = 0;

  for (int t0 = 0; t0 < visible; t0 += 64) {
    cp_async_wait<1>();
    __syncthreads();  // the keys are there; the values may still be on their way

    // scores: query ty + 32 i, key tx + 8 j
    f32 score[4][8] = {};
#pragma unroll 4
    for (int d = 0; d < 32; d += 4) {
      Vec<f32, 4> key[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) key[j] = load_vec<4>(k_tile + (tx + 8 * j) * 36 + d);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<f32, 4> query = load_vec<4>(q_tile + (ty + 32 * i) * 36 + d);
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int u = 0; u < 4; ++u) score[i][j] += query.v[u] * key[j].v[u];
      }
    }
    __syncthreads();  // every thread is done with the keys
    if (t0 + 64 < visible) fetch_k(p, b, h, t0 + 64, k_tile);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int s = s0 + ty + 32 * i;
      f32 best = top[i];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int t = t0 + tx + 8 * j;
        score[i][j] *= f32(0.18033688011112042);
        if (t < p.key_count && s < p.query_count) {
          bool mask[1];
          load_mask(p, b, h, s, t, mask);
          score[i][j] = with_mask(score[i][j], mask[0]);
        }
        if (t >= p.key_count) score[i][j] = -(f32)INFINITY;
        best = score[i][j] > best ? score[i][j] : best;
      }
      best = lanes_reduce<8>(best, OpMax());
      const f32 base = best == -(f32)INFINITY ? f32(0) : best;  // no key yet: all terms stay 0
      const f32 fade = exp2f(top[i] - base);
      top[i] = best;
      total[i] *= fade;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const f32 probability = exp2f(score[i][j] - base);
        total[i] += probability;
        p_tile[(ty + 32 * i) * 68 + tx + 8 * j] = probability;
      }
#pragma unroll
      for (int g = 0; g < 1; ++g)
#pragma unroll
        for (int c = 0; c < 4; ++c) out[i][g][c] *= fade;
    }
    cp_async_wait<1>();
    __syncthreads();  // the values are there, and so are the probabilities

    // out: query ty + 32 i, columns 4 (tx + 8 g) and the next three
#pragma unroll 4
    for (int n = 0; n < 64; n += 4) {
      Vec<f32, 4> weight[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) weight[i] = load_vec<4>(p_tile + (ty + 32 * i) * 68 + n);
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int g = 0; g < 1; ++g) {
          const Vec<f32, 4> value = load_vec<4>(v_tile + (n + u) * 32 + 4 * (tx + 8 * g));
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int c = 0; c < 4; ++c) out[i][g][c] += weight[i].v[u] * value.v[c];
        }
    }
    __syncthreads();  // every thread is done with the values
    if (t0 + 64 < visible) fetch_v(p, b, h, t0 + 64, v_tile);
    cp_async_commit();
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int s = s0 + ty + 32 * i;
    const f32 sum = lanes_reduce<8>(total[i], OpSum());
    const f32 inverse = sum == f32(0) ? f32(0) : f32(1) / sum;  // a query without keys gives zeros
    if (s < p.query_count) {
#pragma unroll
      for (int g = 0; g < 1; ++g)
#pragma unroll
        for (int c = 0; c < 4; c += 4) {
          const int e = 4 * (tx + 8 * g) + c;
          f32 acc[4];
#pragma unroll
          for (int lane = 0; lane < 4; ++lane) acc[lane] = out[i][g][c + lane] * inverse;
          if (e < 32) store_out(p, b, h, s, e, acc);
        }
    }
  }
}
EXPORT_KERNEL(attention_bb33dc6e)
