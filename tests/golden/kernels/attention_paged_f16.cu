// pointwise_pagedslots: one thread computes 2 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  i32* out0;
  const i32* in0;
  const i32* in1;
  const i32* in2;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const i32 t0 = p.in0[(i / 2) + 1];
  const i64 t1 = (i64)t0;
  const i32 t2 = p.in0[(i / 2)];
  const i64 t3 = (i64)t2;
  const bool t4 = t1 > t3;
  const i64 t5 = t1 - t3;
  const i64 t6 = t5 - 1ll;
  const i64 t7 = t6 * 16ll;
  const i32 t8 = p.in1[(i / 2)];
  const i64 t9 = (i64)t8;
  const i64 t10 = t7 + t9;
  const i64 t11 = t4 ? t10 : 0ll;
  const i64 t12 = t11 + (-1ll);
  const bool t13 = t12 >= 0ll;
  const i64 t14 = (16383ll < t12 ? 16383ll : t12);
  const i64 t15 = (0ll < t14 ? t14 : 0ll);
  const int ix16 = (int)t15 / 16;
  const i64 t17 = (i64)ix16;
  const i64 t18 = t3 + t17;
  const bool t19 = t18 >= 0ll;
  const bool t20 = t18 < 1024ll;
  const bool t21 = t19 && t20;
  const bool t22 = t13 && t21;
  const i64 t24 = t13 ? t18 : 0ll;
  const i64 t25 = index_in(t24, 1024ll);
  const i32 t26 = (i32)t25;
  const i32 t27 = (1023 < t26 ? 1023 : t26);
  const i32 t28 = (0 < t27 ? t27 : 0);
  const i64 t29 = (i64)t28;
  const i32 t30 = p.in2[(int)t29];
  const i64 t31 = (i64)t30;
  const i64 t32 = t13 ? t31 : 0ll;
  const i64 t33 = index_in(t32, 2147483647ll);
  const int ix34 = (int)t15 % 16;
  const i64 t35 = (i64)ix34;
  Vec<i32, 2> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    const bool t23 = lane == 0;
    const i64 t36 = t23 ? t33 : t35;
    const i64 t37 = t22 ? t36 : (-1ll);
    const i32 t38 = (i32)t37;
    out0_lanes.v[lane] = t38;
  }
  store_vec<2>(p.out0 + i, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_pagedslots_adb51261(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 2;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(pointwise_pagedslots_adb51261)

// scatter: one thread computes 8 neighbouring elements of the outputs.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  const i32* in0;
  f16* out0;
  const f16* in1;
  int count;
};

__device__ __forceinline__ void compute(const Params& p, int i) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in1 + i);
  const int ix2 = i / 512;
  const i32 t3 = p.in0[ix2 * 2];
  const bool t4 = t3 >= 0;
  const i64 t5 = (i64)t3;
  const i64 t6 = (t5 < 0ll ? 0ll : t5);
  const i64 t7 = index_in(t6, 1024ll);
  const bool t8 = t7 < 1024ll;
  const bool t9 = t4 && t8;
  const i32 t10 = p.in0[ix2 * 2 + 1];
  const bool t11 = t10 >= 0;
  const bool t12 = t9 && t11;
  const i64 t13 = (i64)t10;
  const i64 t14 = (t13 < 0ll ? 0ll : t13);
  const i64 t15 = index_in(t14, 16ll);
  const bool t16 = t15 < 16ll;
  const bool t17 = t12 && t16;
  const int ix18 = (i / 8) % 64;
  const i64 t19 = (15ll < t15 ? 15ll : t15);
  const i64 t20 = (0ll < t19 ? t19 : 0ll);
  const i64 t21 = (1023ll < t7 ? 1023ll : t7);
  const i64 t22 = (0ll < t21 ? t21 : 0ll);
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out0_lanes.v[lane] = from_f32<f16>(t1);
  }
  if (t17) store_vec<8>(p.out0 + (ix18 * 8 + (int)t20 * 512 + (int)t22 * 8192), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) scatter_530c2d3a(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int first = ((int)blockIdx.x * 256 + threadIdx.x) * 8;
  if (first < p.count) compute(p, first);
}
EXPORT_KERNEL(scatter_530c2d3a)

// attention_less: 4 queries of heads that share their keys, f16 on tensor cores.
// The keys of a head are divided among 17 blocks of 8 warps, 32 keys a step;
// the last block to finish merges their results.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"
#include "attention.cuh"
#include "tiles.cuh"
#include "last_block.cuh"

struct Params {
  const f16* in0;
  const i32* in1;
  const i32* in2;
  const i32* in3;
  const f16* in4;
  const f16* in5;
  f16* out0;
  f32* partial;
  f32* partial_state;
  u32* arrived;
};

typedef f16 T;
constexpr int WARPS = 8, THREADS = 32 * WARPS, SPLITS = 17, KEYS = 32, ROWS = 4;
constexpr int SLICES = 8, PITCH = 64;  // parts of a block's keys; elements of a row of their results
constexpr int EIGHTS = (ROWS + 7) / 8, DEPTH = 64, VALUE_DEPTH = 64;  // head sizes, rounded up: the rest is zeros
constexpr f32 SCALE = 1.f;  // the softmax takes scores that are scaled already
constexpr f32 UNIT = 1.0f;  // of scores, in units of log2

__device__ __forceinline__ void load_q(const Params& p, int b, int h, int s, int d, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (s * 64 + h * 256 + b * 2048 + d));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_mask(const Params& p, int b, int h, int s, int t, bool (&out)[1]) {
  const i64 t0 = (i64)t;
  const i32 t1 = p.in1[b + 1];
  const i64 t2 = (i64)t1;
  const i32 t3 = p.in1[b];
  const i64 t4 = (i64)t3;
  const bool t5 = t2 > t4;
  const i64 t6 = t2 - t4;
  const i64 t7 = t6 - 1ll;
  const i64 t8 = t7 * 16ll;
  const i32 t9 = p.in2[b];
  const i64 t10 = (i64)t9;
  const i64 t11 = t8 + t10;
  const i64 t12 = t5 ? t11 : 0ll;
  const bool t13 = t0 < t12;
  out[0] = t13;
}

__device__ __forceinline__ void store_out(const Params& p, int b, int h, int s, int e, const f32 (&acc)[2]) {
  Vec<f16, 2> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    out0_lanes.v[lane] = from_f32<f16>(acc[lane]);
  }
  store_vec<2>(p.out0 + (s * 64 + h * 256 + b * 2048 + e), out0_lanes);
}

__device__ __forceinline__ void load_end(const Params& p, int b, int h, int s, i64 (&out)[1]) {
  const i32 t0 = p.in1[b + 1];
  const i64 t1 = (i64)t0;
  const i32 t2 = p.in1[b];
  const i64 t3 = (i64)t2;
  const bool t4 = t1 > t3;
  const i64 t5 = t1 - t3;
  const i64 t6 = t5 - 1ll;
  const i64 t7 = t6 * 16ll;
  const i32 t8 = p.in2[b];
  const i64 t9 = (i64)t8;
  const i64 t10 = t7 + t9;
  const i64 t11 = t4 ? t10 : 0ll;
  const i64 t12 = t11 - 0ll;
  const i64 t13 = t12 + 0ll;
  out[0] = t13;
}

__device__ __forceinline__ const f16* k_row(const Params& p, int b, int h, int t) {
  const i64 t0 = (i64)t;
  const i32 t1 = p.in1[b + 1];
  const i64 t2 = (i64)t1;
  const i32 t3 = p.in1[b];
  const i64 t4 = (i64)t3;
  const bool t5 = t2 > t4;
  const i64 t6 = t2 - t4;
  const i64 t7 = t6 - 1ll;
  const i64 t8 = t7 * 16ll;
  const i32 t9 = p.in2[b];
  const i64 t10 = (i64)t9;
  const i64 t11 = t8 + t10;
  const i64 t12 = t5 ? t11 : 0ll;
  const bool t13 = t0 < t12;
  const int ix14 = t % 16;
  const int ix15 = t / 16;
  const i64 t16 = (i64)ix15;
  const i64 t17 = t4 + t16;
  const i64 t18 = t13 ? t17 : 0ll;
  const i64 t19 = index_in(t18, 1024ll);
  const i32 t20 = (i32)t19;
  const i32 t21 = (1023 < t20 ? 1023 : t20);
  const i32 t22 = (0 < t21 ? t21 : 0);
  const i64 t23 = (i64)t22;
  const i32 t24 = p.in3[(int)t23];
  const i64 t25 = (i64)t24;
  const i64 t26 = t13 ? t25 : 0ll;
  const i64 t27 = index_in(t26, 1024ll);
  const i32 t28 = (i32)t27;
  const i32 t29 = (1023 < t28 ? 1023 : t28);
  const i32 t30 = (0 < t29 ? t29 : 0);
  const i64 t31 = (i64)t30;
  return t13 ? p.in4 + (ix14 * 512 + h * 64 + (int)t31 * 8192) : nullptr;
}

__device__ __forceinline__ const f16* v_row(const Params& p, int b, int h, int t) {
  const i64 t0 = (i64)t;
  const i32 t1 = p.in1[b + 1];
  const i64 t2 = (i64)t1;
  const i32 t3 = p.in1[b];
  const i64 t4 = (i64)t3;
  const bool t5 = t2 > t4;
  const i64 t6 = t2 - t4;
  const i64 t7 = t6 - 1ll;
  const i64 t8 = t7 * 16ll;
  const i32 t9 = p.in2[b];
  const i64 t10 = (i64)t9;
  const i64 t11 = t8 + t10;
  const i64 t12 = t5 ? t11 : 0ll;
  const bool t13 = t0 < t12;
  const int ix14 = t % 16;
  const int ix15 = t / 16;
  const i64 t16 = (i64)ix15;
  const i64 t17 = t4 + t16;
  const i64 t18 = t13 ? t17 : 0ll;
  const i64 t19 = index_in(t18, 1024ll);
  const i32 t20 = (i32)t19;
  const i32 t21 = (1023 < t20 ? 1023 : t20);
  const i32 t22 = (0 < t21 ? t21 : 0);
  const i64 t23 = (i64)t22;
  const i32 t24 = p.in3[(int)t23];
  const i64 t25 = (i64)t24;
  const i64 t26 = t13 ? t25 : 0ll;
  const i64 t27 = index_in(t26, 1024ll);
  const i32 t28 = (i32)t27;
  const i32 t29 = (1023 < t28 ? 1023 : t28);
  const i32 t30 = (0 < t29 ? t29 : 0);
  const i64 t31 = (i64)t30;
  return t13 ? p.in5 + (ix14 * 512 + h * 64 + (int)t31 * 8192) : nullptr;
}

__device__ __forceinline__ void q_words(const Params& p, int b, int h, int s, int col, u32 (&word)[4]) {
  f32 x[8];
#pragma unroll
  for (int u = 0; u < 8; u += 8) {
    f32 some[8] = {};
    load_q(p, b, h, s, col + u, some);
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) x[u + lane] = some[lane];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
}
__device__ __forceinline__ void k_words(const Params& p, int b, int h, int t, int col, u32 (&word)[4]) {
  Vec<u32, 4> found = {};
  const T* const start = k_row(p, b, h, t);
  if (start != nullptr) found = load_vec<4>(reinterpret_cast<const u32*>(start + col));
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = found[i];
}
__device__ __forceinline__ void v_words(const Params& p, int b, int h, int t, int col, u32 (&word)[4]) {
  Vec<u32, 4> found = {};
  const T* const start = v_row(p, b, h, t);
  if (start != nullptr) found = load_vec<4>(reinterpret_cast<const u32*>(start + col));
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = found[i];
}

// Eight columns from ``col`` on of this lane's four keys of a fragment, of which t is the first; of the last key instead of those past it.
__device__ __forceinline__ void read_values(const Params& p, int b, int h, int t, int end, int col, u32 (&value)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v_words(p, b, h, min(t + i / 2 * 8 + i % 2, end - 1), col, value[i]);
}

typedef bool Mask[KEYS / 8][1][2];  // the same for all rows of a fragment
// Reads the mask of queries s and s + 8 and of the keys from ``first`` on, this lane's first one; zeros where there are none.
__device__ __forceinline__ void read_mask(const Params& p, int b, int h, int s, int first, Mask& mask) {
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
    for (int r = 0; r < 1; ++r) {
      const int t = first + 8 * n;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        bool one[1] = {};
        if (t + u < 4096) load_mask(p, b, h, 0, t + u, one);
        mask[n][r][u] = one[0];
      }
    }
}

// What is this kernel's own: how operands are read and what becomes of a score.
struct Attention {
  typedef f32 Number;
  static constexpr int ROWS = ::ROWS, SIZE = 64, VALUE_SIZE = 64;
  static constexpr int Q_WIDTH = 8, K_WIDTH = 8, V_WIDTH = 8;
  static constexpr f32 UNIT = SCALE, TOP_UNIT = SCALE;  // of scores, in units of log2; of the largest one as a state has it
  static ARCWELD_DEVICE void query(const Params& p, int b, int h, int s, int d, f32 (&x)[Q_WIDTH]) {
    load_q(p, b, h, s, d, x);
#pragma unroll
    for (int lane = 0; lane < Q_WIDTH; ++lane) x[lane] = to_f32(from_f32<T>(x[lane]));
  }
  static ARCWELD_DEVICE void key(const Params& p, int b, int h, int t, int d, Number (&x)[K_WIDTH]) {
    const T* const row = k_row(p, b, h, t);
    const Vec<T, K_WIDTH> v = row ? load_vec<K_WIDTH>(row + d) : Vec<T, K_WIDTH>{};
#pragma unroll
    for (int lane = 0; lane < K_WIDTH; ++lane) x[lane] = to_f32(v[lane]);
  }
  static ARCWELD_DEVICE void value(const Params& p, int b, int h, int t, int d, Number (&x)[V_WIDTH]) {
    const T* const row = v_row(p, b, h, t);
    const Vec<T, V_WIDTH> v = row ? load_vec<V_WIDTH>(row + d) : Vec<T, V_WIDTH>{};
#pragma unroll
    for (int lane = 0; lane < V_WIDTH; ++lane) x[lane] = to_f32(v[lane]);
  }
  // The score of query s and key t, both of which exist, from the product of the two.
  static ARCWELD_DEVICE f32 score(const Params& p, int b, int h, int s, int t, f32 score) {
    score = score * 0.18033688011112042f;
    bool mask[1];
    load_mask(p, b, h, s, t, mask);
    return with_mask(score, mask[0], -(f32)INFINITY);
  }
  // A probability as the values are multiplied with it.
  static ARCWELD_DEVICE f32 weight(f32 probability) { return to_f32(from_f32<T>(probability)); }
  // The end of the keys that query s sees, of those before ``end``.
  static ARCWELD_DEVICE int seen(const Params& p, int s, int end) { return end; }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_less_8234f7f8(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  const Team<THREADS> team;  // the threads that share the work out
  DYN_SHARED(unsigned char, smem);
  f32* const results = reinterpret_cast<f32*>(smem);  // [SLICES][ROWS][PITCH]
  f32* const states = reinterpret_cast<f32*>(smem + 8192);  // [SLICES][ROWS]
  f32* const share = reinterpret_cast<f32*>(smem + 8448);  // [SLICES or SPLITS][ROWS]
  f32* const whole = reinterpret_cast<f32*>(smem + 8720);  // [ROWS]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int split = blockIdx.x % SPLITS, head = blockIdx.x / SPLITS;
  const int h = head % 8, b = head / 8;
  int visible = 4096;
  pdl_wait();
  {  // the mask admits no key from the last query's end on
    i64 last = 0, first = 1;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      i64 end[1];
      load_end(p, b, h, row, end);
      last = max(last, end[0]), first = min(first, end[0]);
    }
    visible = (int)min((i64)visible, last);
  }
  const int each = block_keys(team, ((visible + SPLITS - 1) / SPLITS + KEYS - 1) / KEYS * KEYS);  // keys of a block
  const int begin = min(split * each, visible), end = min(begin + each, visible);

  const bool at_once = team_attention<Attention, PITCH>(team, p, b, h, begin, end, results, states);
  if (!at_once) {
    const int quad_row = lane / 4, quad_col = 2 * (lane % 4);  // this lane's first row and column of a fragment
    // Lane n of a quad takes elements 32 j + 8 n … + 7 of a row: which of them an instruction takes for its n-th is free, as
    // long as queries and keys agree.
    u32 query[DEPTH / 16][1][4] = {};
#pragma unroll
    for (int j = 0; j < DEPTH / 32; ++j)
#pragma unroll
      for (int r = 0; r < EIGHTS; ++r) {
        u32 word[4] = {};
        if (quad_row + 8 * r < ROWS) q_words(p, b, h, quad_row + 8 * r, 32 * j + 4 * quad_col, word);
#pragma unroll
        for (int i = 0; i < 4; ++i) query[2 * j + i / 2][0][i % 2 * 2 + r] = word[i];
      }
    f32 out[VALUE_DEPTH / 64][4][EIGHTS][4] = {};
    f32 top[2] = {-INFINITY, -INFINITY}, total[2] = {};  // of queries quad_row and quad_row + 8; the sum is this lane's share
    for (int t0 = begin + warp * KEYS; t0 < end; t0 += WARPS * KEYS) {
      Mask mask = {};
      read_mask(p, b, h, quad_row, t0 + quad_col, mask);
      u32 key[DEPTH / 32][KEYS / 8][4];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int j = 0; j < DEPTH / 32; ++j) k_words(p, b, h, min(t0 + 8 * n + quad_row, end - 1), 32 * j + 4 * quad_col, key[j][n]);
      u32 value[KEYS / 16][VALUE_DEPTH / 64][4][4];
#pragma unroll
      for (int k = 0; k < KEYS / 16; ++k)
#pragma unroll
        for (int j = 0; j < VALUE_DEPTH / 64; ++j) read_values(p, b, h, t0 + 16 * k + quad_col, end, 64 * j + 8 * quad_row, value[k][j]);
      f32 score[1][KEYS / 8][4] = {};
#pragma unroll
      for (int j = 0; j < DEPTH / 16; ++j) {
        u32 part[KEYS / 8][2];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) part[n][0] = key[j / 2][n][j % 2 * 2], part[n][1] = key[j / 2][n][j % 2 * 2 + 1];
        mma_tile<T, 1, KEYS / 8>(score, query[j], part);
      }
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2 * EIGHTS; ++i) {
          score[0][n][i] = with_mask(score[0][n][i] * 0.18033688011112042f, mask[n][0][i % 2], -(f32)INFINITY);
          const int t = t0 + 8 * n + quad_col + i % 2;
          if (t >= end) score[0][n][i] = -INFINITY;
        }
      // online softmax: scores become probabilities; what was summed before fades
#pragma unroll
      for (int r = 0; r < EIGHTS; ++r) {
        const f32 fade = soften_row<1>(score[0], r, SCALE, top[r], total[r]);
        // the results' columns are queries: this lane's are those of rows quad_col and quad_col + 1
        const f32 even = __shfl_sync(0xffffffffu, fade, 4 * quad_col), odd = __shfl_sync(0xffffffffu, fade, 4 * quad_col + 4);
#pragma unroll
        for (int j = 0; j < VALUE_DEPTH / 64; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            out[j][i][r][0] *= even, out[j][i][r][1] *= odd;
            out[j][i][r][2] *= even, out[j][i][r][3] *= odd;
          }
      }
#pragma unroll
      for (int k = 0; k < KEYS / 16; ++k) {
        u32 weight[EIGHTS][2];
#pragma unroll
        for (int r = 0; r < EIGHTS; ++r)
#pragma unroll
          for (int i = 0; i < 2; ++i) weight[r][i] = pack2<T>(score[0][2 * k + i][2 * r], score[0][2 * k + i][2 * r + 1]);
#pragma unroll
        for (int j = 0; j < VALUE_DEPTH / 64; ++j) {
          const u32(&v)[4][4] = value[k][j];
          u32 column[4][4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            column[i][0] = low_halves(v[0][i], v[1][i]), column[i][1] = high_halves(v[0][i], v[1][i]);
            column[i][2] = low_halves(v[2][i], v[3][i]), column[i][3] = high_halves(v[2][i], v[3][i]);
          }
          mma_tile<T, 4, EIGHTS>(out[j], column, weight);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < EIGHTS; ++r) {
      total[r] = lanes_reduce<4>(total[r], OpSum());
      const int row = quad_row + 8 * r;
      if (lane % 4 == 0 && row < ROWS) store_vec(states + (warp * ROWS + row) * 2, State{{top[r] * SCALE, total[r]}});
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int to = quad_col + u + 8 * r;
#pragma unroll
        for (int j = 0; j < VALUE_DEPTH / 64; ++j) {
          const int e = 64 * j + 8 * quad_row;
          if (to >= ROWS || e >= PITCH) continue;
          f32* const place = results + (warp * ROWS + to) * PITCH + e;
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const Vec<f32, 4> some = {{out[j][i][r][u], out[j][i][r][2 + u], out[j][i + 1][r][u], out[j][i + 1][r][2 + u]}};
            store_vec(place + 2 * i, some);
          }
        }
      }
    }
  }
  const int slices = at_once ? 1 : SLICES;
  __syncthreads();
  part_shares<ROWS>(team, states, slices, UNIT, share, whole);
  __syncthreads();
  const int used = visible > 0 ? (visible + each - 1) / each : 0;  // blocks of the head that have keys
  f32* const parts = p.partial + (i64)head * (SPLITS * ROWS * PITCH);
  f32* const part_states = p.partial_state + (i64)head * (SPLITS * ROWS * 2);
  if (split < used) {
    for (int i = team.rank; i < ROWS * (PITCH / 4); i += team.size) {
      const int row = i / (PITCH / 4), e = i % (PITCH / 4) * 4;
      store_vec(parts + (split * ROWS + row) * PITCH + e, merged<4, ROWS, PITCH>(results, share, slices, row, e));
      if (e == 0) store_vec(part_states + (split * ROWS + row) * 2, load_vec<2>(whole + row * 2));
    }
  }
  if (!is_last_block(p.arrived + head, SPLITS, reinterpret_cast<u32*>(smem + 8752))) return;
  part_shares<ROWS>(team, part_states, used, UNIT, share, whole);
  __syncthreads();
  constexpr int PER_ROW = (64 + 1) / 2;
  for (int i = team.rank; i < ROWS * PER_ROW; i += team.size) {
    const int row = i / PER_ROW, e = i % PER_ROW * 2;
    const Vec<f32, 2> sum = merged<2, ROWS, PITCH>(parts, share, used, row, e);
    const f32 inverse = inverse_or_zero(whole[row * 2 + 1]);
    f32 acc[2];
#pragma unroll
    for (int lane = 0; lane < 2; ++lane) acc[lane] = sum[lane] * inverse;
    store_out(p, b, h, row, e, acc);
  }
}
EXPORT_KERNEL(attention_less_8234f7f8)
