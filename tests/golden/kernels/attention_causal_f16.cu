// attention: f16 on tensor cores. 4 x 1 warps of 16 queries and 64 keys a step;
// keys and values pass through a ring of 2 tiles of 64;
// online softmax in base 2, probabilities stay in registers.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "attention.cuh"

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

typedef f16 T;
constexpr int QUERY_WARPS = 4, KEY_WARPS = 1, THREADS = 32 * QUERY_WARPS * KEY_WARPS, ROWS = 16 * QUERY_WARPS;
constexpr int KEYS = 64, TILE = KEYS * KEY_WARPS, STAGES = 2;  // keys of a warp, of a stage
constexpr int DEPTH = 64, VALUE_DEPTH = 64;  // head sizes, rounded up: the rest is zeros
constexpr int GROUP = 8;  // fragments of 8 output columns that are computed together
constexpr int K_PITCH = 72, V_PITCH = 72, STAGE = TILE * (K_PITCH + V_PITCH);  // elements
constexpr f32 SCALE = 0.18033688011112042f;  // of raw scores, to units of log2

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

// The tile of keys and values from key t0 on, to one stage of the ring.
__device__ __forceinline__ void load_tile(const Params& p, int b, int h, int t0, T* k_tile, T* v_tile) {
  for (int i = threadIdx.x; i < TILE * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 8, t = t0 + row;
    const bool inside = t < p.key_count;
    const T* row_start = k_row0(p, b, h) + min(t, p.key_count - 1) * 64;
    cp_async16(smem_u32(k_tile + row * K_PITCH + col), row_start + col, inside ? 16 : 0);
  }
  for (int i = threadIdx.x; i < TILE * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 8, t = t0 + row;
    const bool inside = t < p.key_count;
    const T* row_start = v_row0(p, b, h) + min(t, p.key_count - 1) * 64;
    cp_async16(smem_u32(v_tile + row * V_PITCH + col), row_start + col, inside ? 16 : 0);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_7d4371f3(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  T* const ring = reinterpret_cast<T*>(smem + 0);  // [STAGES][STAGE]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int query_warp = warp / KEY_WARPS, key_warp = warp % KEY_WARPS;
  const int quad_row = lane / 4, quad_col = 2 * (lane % 4);  // this lane's first row and column of a fragment
  const int tile = p.query_tiles - 1 - blockIdx.x % p.query_tiles;
  const int h = blockIdx.x / p.query_tiles % 12, b = blockIdx.x / p.query_tiles / 12;
  const int s0 = tile * ROWS;
  const int s = s0 + query_warp * 16 + quad_row;  // this lane's queries are s and s + 8
  // no query of the block sees more keys
  const int visible = max(0, min(p.key_count, s0 + 63 + 1 + 0));
  const int steps = (visible + TILE - 1) / TILE;
  pdl_wait();

#pragma unroll
  for (int i = 0; i < STAGES; ++i) {
    if (i < steps) load_tile(p, b, h, i * TILE, ring + i * STAGE, ring + i * STAGE + TILE * K_PITCH);
    cp_async_commit();
  }
  u32 query[DEPTH / 16][1][4];
#pragma unroll
  for (int k = 0; k < DEPTH / 16; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = s + 8 * (j % 2), col = 16 * k + 8 * (j / 2) + quad_col;
      f32 x[2] = {};
      if (row < p.query_count && col < 64) load_q(p, b, h, row, col, x);
      query[k][0][j] = pack2<T>(x[0], x[1]);
    }
  f32 out[VALUE_DEPTH / 8 / GROUP][1][GROUP][4] = {};
  f32 top[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};  // of queries s and s + 8; the sum is this lane's share

  for (int step = 0; step < steps; ++step) {
    const int t0 = step * TILE + key_warp * KEYS;  // this warp's first key
    const T* const stage = ring + step % STAGES * STAGE;
    const T* const k_rows = stage + key_warp * KEYS * K_PITCH;
    const T* const v_rows = stage + TILE * K_PITCH + key_warp * KEYS * V_PITCH;
    cp_async_wait<STAGES - 1>();
    __syncthreads();

    f32 score[1][KEYS / 8][4] = {};  // += queries * keys^T
#pragma unroll
    for (int k = 0; k < DEPTH / 16; ++k) {
      u32 key[KEYS / 8][2];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n += 2) {
        u32 r[4];
        const int row = 8 * n + lane % 8 + lane / 16 * 8, col = 16 * k + lane / 8 % 2 * 8;
        ldmatrix_x4(r, smem_u32(k_rows + row * K_PITCH + col));
        key[n][0] = r[0], key[n][1] = r[1], key[n + 1][0] = r[2], key[n + 1][1] = r[3];
      }
      mma_tile<T, 1, KEYS / 8>(score, query[k], key);
    }
    if (t0 + KEYS > p.key_count || t0 + KEYS > s0 + query_warp * 16 + 1 + 0) {
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = t0 + 8 * n + quad_col + i % 2;
          if (t >= p.key_count || t > s + 8 * (i / 2) + 0) score[0][n][i] = -INFINITY;
        }
    }
    // online softmax: scores become probabilities; what was summed before fades
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const f32 fade = soften_row<1>(score[0], r, SCALE, top[r], total[r]);
#pragma unroll
      for (int g = 0; g < VALUE_DEPTH / 8 / GROUP; ++g) scale_row(out[g][0], r, fade);
    }

    // out += probabilities * values
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      u32 weight[1][4];  // a score fragment, rounded, is laid out as the left operand
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const f32(&fragment)[4] = score[0][2 * k + j / 2];
        weight[0][j] = pack2<T>(fragment[2 * (j % 2)], fragment[2 * (j % 2) + 1]);
      }
#pragma unroll
      for (int g = 0; g < VALUE_DEPTH / 8 / GROUP; ++g) {
        u32 value[GROUP][2];
#pragma unroll
        for (int n = 0; n < GROUP; n += 2) {
          u32 r[4];
          const int row = 16 * k + lane % 16, col = (g * GROUP + n) * 8 + lane / 16 * 8;
          ldmatrix_x4_trans(r, smem_u32(v_rows + row * V_PITCH + col));
          value[n][0] = r[0], value[n][1] = r[1], value[n + 1][0] = r[2], value[n + 1][1] = r[3];
        }
        mma_tile<T, 1, GROUP>(out[g], weight, value);
      }
    }
    if (step + STAGES < steps) {
      __syncthreads();  // every warp is done with this stage
      T* const next = ring + step % STAGES * STAGE;
      load_tile(p, b, h, (step + STAGES) * TILE, next, next + TILE * K_PITCH);
    }
    cp_async_commit();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) total[r] = lanes_reduce<4>(total[r], OpSum());

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const f32 inverse = inverse_or_zero(total[r]);
    if (s + 8 * r < p.query_count) {
#pragma unroll
      for (int g = 0; g < VALUE_DEPTH / 8 / GROUP; ++g)
#pragma unroll
        for (int n = 0; n < GROUP; ++n) {
          const int e = (g * GROUP + n) * 8 + quad_col;
          const f32 pair[2] = {out[g][0][n][2 * r] * inverse, out[g][0][n][2 * r + 1] * inverse};
          if (e < 64) store_out(p, b, h, s + 8 * r, e, pair);
        }
    }
  }
}
EXPORT_KERNEL(attention_7d4371f3)
