// attention: 4 queries of heads that share their keys, bf16 on tensor cores.
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
  const bf16* in0;
  const bf16* in1;
  const bf16* in2;
  const bool* in3;
  bf16* out0;
  f32* partial;
  f32* partial_state;
  u32* arrived;
};

typedef bf16 T;
constexpr int WARPS = 8, THREADS = 32 * WARPS, SPLITS = 17, KEYS = 32, ROWS = 4;
constexpr int SLICES = 8, PITCH = 64;  // parts of a block's keys; elements of a row of their results
constexpr int EIGHTS = (ROWS + 7) / 8, DEPTH = 64, VALUE_DEPTH = 64;  // head sizes, rounded up: the rest is zeros
constexpr f32 SCALE = 1.f;  // the softmax takes scores that are scaled already
constexpr f32 UNIT = 1.0f;  // of scores, in units of log2

__device__ __forceinline__ void load_q(const Params& p, int b, int h, int s, int d, f32 (&out)[8]) {
  const Vec<bf16, 8> v0 = load_vec<8>(p.in0 + (s * 64 + h * 256 + d));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_mask(const Params& p, int b, int h, int s, int t, bool (&out)[2]) {
  const Vec<bool, 2> v0 = load_vec<2>(p.in3 + t);
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    const bool t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int b, int h, int s, int e, const f32 (&acc)[2]) {
  Vec<bf16, 2> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 2; ++lane) {
    out0_lanes.v[lane] = from_f32<bf16>(acc[lane]);
  }
  store_vec<2>(p.out0 + (s * 64 + h * 256 + e), out0_lanes);
}

__device__ __forceinline__ const bf16* k_row0(const Params& p, int b, int h) {
  return p.in1 + h * 262144;
}

__device__ __forceinline__ const bf16* v_row0(const Params& p, int b, int h) {
  return p.in2 + h * 262144;
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
  found = load_vec<4>(reinterpret_cast<const u32*>(k_row0(p, b, h) + t * 64 + col));
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = found[i];
}
__device__ __forceinline__ void v_words(const Params& p, int b, int h, int t, int col, u32 (&word)[4]) {
  Vec<u32, 4> found = {};
  found = load_vec<4>(reinterpret_cast<const u32*>(v_row0(p, b, h) + t * 64 + col));
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
      if (t < 4096) load_mask(p, b, h, 0, t, mask[n][r]);
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
    const T* const row = k_row0(p, b, h) + t * 64;
    const Vec<T, K_WIDTH> v = load_vec<K_WIDTH>(row + d);
#pragma unroll
    for (int lane = 0; lane < K_WIDTH; ++lane) x[lane] = to_f32(v[lane]);
  }
  static ARCWELD_DEVICE void value(const Params& p, int b, int h, int t, int d, Number (&x)[V_WIDTH]) {
    const T* const row = v_row0(p, b, h) + t * 64;
    const Vec<T, V_WIDTH> v = load_vec<V_WIDTH>(row + d);
#pragma unroll
    for (int lane = 0; lane < V_WIDTH; ++lane) x[lane] = to_f32(v[lane]);
  }
  // The score of query s and key t, both of which exist, from the product of the two.
  static ARCWELD_DEVICE f32 score(const Params& p, int b, int h, int s, int t, f32 score) {
    score = score * 0.18033688011112042f;
    bool mask[2];
    load_mask(p, b, h, s, t - t % 2, mask);
    return with_mask(score, mask[t % 2], -(f32)INFINITY);
  }
  // A probability as the values are multiplied with it.
  static ARCWELD_DEVICE f32 weight(f32 probability) { return to_f32(from_f32<T>(probability)); }
  // The end of the keys that query s sees, of those before ``end``.
  static ARCWELD_DEVICE int seen(const Params& p, int s, int end) { return end; }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_159dd661(const __grid_constant__ Params p) {
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
  const int visible = 4096;
  const int each = block_keys(team, ((visible + SPLITS - 1) / SPLITS + KEYS - 1) / KEYS * KEYS);  // keys of a block
  const int begin = min(split * each, visible), end = min(begin + each, visible);
  pdl_wait();

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
EXPORT_KERNEL(attention_159dd661)
