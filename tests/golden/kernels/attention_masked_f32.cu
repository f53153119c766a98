// attention: 128 queries a block, 64 keys a step, f32 on the ordinary pipelines.
// Online softmax in base 2; the probabilities pass through shared memory, in rows that one warp owns.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "attention.cuh"
#include "tiles.cuh"

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
constexpr int THREADS = 256, ACROSS = 8, DOWN = THREADS / ACROSS;  // threads that share a query; rows of such threads
constexpr int ROW_TILE = 4, KEY_TILE = 8, GROUPS = 1;  // of a thread: queries, keys, and 4 columns of the result
constexpr int ROWS = DOWN * ROW_TILE, KEYS = ACROSS * KEY_TILE, DEPTH = 32;
constexpr int K_PITCH = 36, V_PITCH = 32, P_PITCH = 68;  // elements
constexpr int K_AT = 4608, V_AT = 6912, P_AT = 8960;
constexpr T UNIT = 1.4426950408889634;  // of scores, in units of log2

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

// What is this kernel's own: how operands are read, what becomes of a score, where results go.
struct Attention {
  typedef T Number;
  static constexpr int ROWS = ::ROWS, SIZE = 32, VALUE_SIZE = 32;
  static constexpr int Q_WIDTH = 4, K_WIDTH = 4, V_WIDTH = 4, OUT_WIDTH = 4;
  static constexpr T UNIT = ::UNIT;
  static ARCWELD_DEVICE void query(const Params& p, int b, int h, int s, int d, T (&x)[Q_WIDTH]) { load_q(p, b, h, s, d, x); }
  static ARCWELD_DEVICE void key(const Params& p, int b, int h, int t, int d, Number (&x)[K_WIDTH]) {
    const T* const row = k_row0(p, b, h) + t * 32;
    const Vec<T, K_WIDTH> v = load_vec<K_WIDTH>(row + d);
#pragma unroll
    for (int lane = 0; lane < K_WIDTH; ++lane) x[lane] = v[lane];
  }
  static ARCWELD_DEVICE void value(const Params& p, int b, int h, int t, int d, Number (&x)[V_WIDTH]) {
    const T* const row = v_row0(p, b, h) + t * 32;
    const Vec<T, V_WIDTH> v = load_vec<V_WIDTH>(row + d);
#pragma unroll
    for (int lane = 0; lane < V_WIDTH; ++lane) x[lane] = v[lane];
  }
  // The score of query s and key t, both of which exist, from the product of the two.
  static ARCWELD_DEVICE T score(const Params& p, int b, int h, int s, int t, T score) {
    score *= T(0.125);
    bool mask[1];
    load_mask(p, b, h, s, t, mask);
    return mask[0] ? score : -(f32)INFINITY;
  }
  // A probability as the values are multiplied with it.
  static ARCWELD_DEVICE T weight(T probability) { return probability; }
  // The end of the keys that query s sees, of ``visible``.
  static ARCWELD_DEVICE int seen(const Params& p, int s, int visible) { return visible; }
  // The score of a sink, or minus infinity.
  static ARCWELD_DEVICE T sink(const Params& p, int b, int h, int s) {
    return -(T)INFINITY;
  }
  static ARCWELD_DEVICE void store(const Params& p, int b, int h, int s, int e, const T (&x)[OUT_WIDTH]) { store_out(p, b, h, s, e, x); }
};

// A tile of keys or values from key t0 on, to shared memory: asynchronous where the operand lies in memory as it is needed.
__device__ __forceinline__ void fetch_k(const Params& p, int b, int h, int t0, T* k_tile) {
  for (int i = threadIdx.x; i < KEYS * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 4, t = t0 + row;
    const bool inside = t < p.key_count;
    const T* row_start = k_row0(p, b, h) + min(t, p.key_count - 1) * 32;
    cp_async16(smem_u32(k_tile + row * K_PITCH + col), row_start + col, inside ? 16 : 0);
  }
}
__device__ __forceinline__ void fetch_v(const Params& p, int b, int h, int t0, T* v_tile) {
  for (int i = threadIdx.x; i < KEYS * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 4, t = t0 + row;
    const bool inside = t < p.key_count;
    const T* row_start = v_row0(p, b, h) + min(t, p.key_count - 1) * 32;
    cp_async16(smem_u32(v_tile + row * V_PITCH + col), row_start + col, inside ? 16 : 0);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_30eccdf0(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(T, smem);
  T* const q_tile = smem;         // [ROWS][K_PITCH]
  T* const k_tile = smem + K_AT;  // [KEYS][K_PITCH]
  T* const v_tile = smem + V_AT;  // [KEYS][V_PITCH]
  T* const p_tile = smem + P_AT;  // [ROWS][P_PITCH]
  const int tx = threadIdx.x % ACROSS, ty = threadIdx.x / ACROSS;
  const int tile = blockIdx.x % p.query_tiles;
  const int h = blockIdx.x / p.query_tiles % 4, b = blockIdx.x / p.query_tiles / 4;
  const int s0 = tile * ROWS;
  const int visible = p.key_count;
  pdl_wait();
  if (block_attention<Attention>(p, b, h, s0, p.query_count, visible)) return;

  if (visible > 0) fetch_k(p, b, h, 0, k_tile);
  cp_async_commit();
  if (visible > 0) fetch_v(p, b, h, 0, v_tile);
  cp_async_commit();
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * 8; i += THREADS) {
    const int row = i / 8, col = i % 8 * 4;
    T x[4] = {};
    if (s0 + row < p.query_count && col < 32) load_q(p, b, h, s0 + row, col, x);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) q_tile[row * K_PITCH + col + lane] = x[lane];
  }
  T out[ROW_TILE][GROUPS][4] = {};
  T top[ROW_TILE], total[ROW_TILE];  // of each query: the largest score, and this thread's share of the sum
#pragma unroll
  for (int i = 0; i < ROW_TILE; ++i) top[i] = -(T)INFINITY, total[i] = 0;

  for (int t0 = 0; t0 < visible; t0 += KEYS) {
    cp_async_wait<1>();
    __syncthreads();  // the keys are there; the values may still be on their way

    // scores: query ty + DOWN i, key tx + ACROSS j
    T score[ROW_TILE][KEY_TILE] = {};
#pragma unroll 4
    for (int d = 0; d < DEPTH; d += 4) {
      Vec<T, 4> key[KEY_TILE];
#pragma unroll
      for (int j = 0; j < KEY_TILE; ++j) key[j] = load_vec<4>(k_tile + (tx + ACROSS * j) * K_PITCH + d);
#pragma unroll
      for (int i = 0; i < ROW_TILE; ++i) {
        const Vec<T, 4> query = load_vec<4>(q_tile + (ty + DOWN * i) * K_PITCH + d);
#pragma unroll
        for (int j = 0; j < KEY_TILE; ++j)
#pragma unroll
          for (int u = 0; u < 4; ++u) score[i][j] += query.v[u] * key[j].v[u];
      }
    }
    __syncthreads();  // every thread is done with the keys
    if (t0 + KEYS < visible) fetch_k(p, b, h, t0 + KEYS, k_tile);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < ROW_TILE; ++i) {
      const int s = s0 + ty + DOWN * i;
      T best = top[i];
#pragma unroll
      for (int j = 0; j < KEY_TILE; ++j) {
        const int t = t0 + tx + ACROSS * j;
        if (t < p.key_count && s < p.query_count) score[i][j] = Attention::score(p, b, h, s, t, score[i][j]);
        if (t >= p.key_count) score[i][j] = -(T)INFINITY;
        best = score[i][j] > best ? score[i][j] : best;
      }
      best = lanes_reduce<ACROSS>(best, OpMax());
      const T base = best == -(T)INFINITY ? T(0) : best;  // no key yet: all terms stay 0
      const T fade = exp2f((top[i] - base) * UNIT);
      top[i] = best;
      total[i] *= fade;
#pragma unroll
      for (int j = 0; j < KEY_TILE; ++j) {
        const T probability = exp2f((score[i][j] - base) * UNIT);
        total[i] += probability;
        p_tile[(ty + DOWN * i) * P_PITCH + tx + ACROSS * j] = probability;
      }
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int c = 0; c < 4; ++c) out[i][g][c] *= fade;
    }
    cp_async_wait<1>();
    __syncthreads();  // the values are there, and so are the probabilities

    // out: query ty + DOWN i, columns 4 (tx + ACROSS g) and the next three
#pragma unroll 4
    for (int n = 0; n < KEYS; n += 4) {
      Vec<T, 4> weight[ROW_TILE];
#pragma unroll
      for (int i = 0; i < ROW_TILE; ++i) weight[i] = load_vec<4>(p_tile + (ty + DOWN * i) * P_PITCH + n);
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
          const Vec<T, 4> value = load_vec<4>(v_tile + (n + u) * V_PITCH + 4 * (tx + ACROSS * g));
#pragma unroll
          for (int i = 0; i < ROW_TILE; ++i)
#pragma unroll
            for (int c = 0; c < 4; ++c) out[i][g][c] += weight[i].v[u] * value.v[c];
        }
    }
    __syncthreads();  // every thread is done with the values
    if (t0 + KEYS < visible) fetch_v(p, b, h, t0 + KEYS, v_tile);
    cp_async_commit();
  }

#pragma unroll
  for (int i = 0; i < ROW_TILE; ++i) {
    const int s = s0 + ty + DOWN * i;
    const T sum = lanes_reduce<ACROSS>(total[i], OpSum());
    const T inverse = inverse_or_zero(sum);
    if (s < p.query_count) {
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int c = 0; c < 4; c += 4) {
          const int e = 4 * (tx + ACROSS * g) + c;
          T acc[4];
#pragma unroll
          for (int lane = 0; lane < 4; ++lane) acc[lane] = out[i][g][c + lane] * inverse;
          if (e < 32) Attention::store(p, b, h, s, e, acc);
        }
    }
  }
}
EXPORT_KERNEL(attention_30eccdf0)
