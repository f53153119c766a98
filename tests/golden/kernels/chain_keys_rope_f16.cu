// chain_rmsnorm_matmul_neg_mul_add_scatter: 1 row times a matrix that is read once,
// 8 elements at a time along k.
// A warp computes 2 columns, its lanes share out k; so do 4 warps.
// Its 4 columns are 2 runs of 2, 32 apart: what results read together.
// Every block computes the rows before it.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  const f16* in2;
  const i64* in3;
  f16* out0;
  const f16* in4;
  const f16* in5;
};

constexpr int ROWS = 1, COLUMNS = 4, WIDTH = 8;
constexpr int BATCH = 4, SPLIT = 4, THREADS = 256;
constexpr int OWN = 2;              // columns of a warp
constexpr int STEP = 32 * SPLIT * WIDTH;  // k between a thread's pieces
typedef SharedDepth<ROWS, COLUMNS, SPLIT, 32, WIDTH, 1> Shares;

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, const f16* left, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(left + k);
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_b(const Params& p, int b, int row, int k, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec_stream<8>(p.in1 + (k + row * 512));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_x(const Params& p, int _m, int _k, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in2 + _k);
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void rstd_value(const Params& p, int _m, int _k, const f32 (&x)[8], f32 (&out)[8]) {
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] * x[lane];
    out[lane] = t0;
  }
}

__device__ __forceinline__ void rstd_finish(const Params& p, int _m, f32 row_rstd, f32 (&out)[1]) {
  const f32 t0 = row_rstd / 512.0f;
  const f32 t1 = t0 + 1e-05f;
  const f32 t2 = rsqrtf(t1);
  out[0] = t2;
}

__device__ __forceinline__ void fill_row(const Params& p, int _m, int _k, const f32 (&x)[8], f32 row_rstd, f32 (&out)[8]) {
  const Vec<f16, 8> v1 = load_vec<8>(p.in0 + _k);
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] * row_rstd;
    const f32 t2 = to_f32(v1.v[lane]);
    const f32 t3 = t0 * t2;
    out[lane] = t3;
  }
}

__device__ __forceinline__ void store_part0(const Params& p, int m, int n0, const f32* tile) {
  const int ix0 = n0 % 2;
  const int ix1 = n0 / 32;
  const int ix2 = ix1 % 2;
  const f32 t3 = tile[ix0 + ix2 * 2];
  const int ix4 = n0 % 64;
  const f32 t5 = to_f32(p.in4[ix4]);
  const f32 t6 = t3 * t5;
  const bool t7 = ix4 < 32;
  const int ix8 = (ix1 + 1) % 2;
  const f32 t9 = t7 ? tile[ix0 + ix8 * 2] : f32(0);
  const f32 t10 = -t9;
  const bool t11 = ix4 > 31;
  const f32 t12 = t11 ? tile[ix0 + ix8 * 2] : f32(0);
  const f32 t13 = t7 ? t10 : t12;
  const f32 t14 = to_f32(p.in5[ix4]);
  const f32 t15 = t13 * t14;
  const f32 t16 = t6 + t15;
  const i64 t17 = p.in3[n0];
  const bool t18 = t17 < 0ll;
  const i64 t19 = t17 + 128ll;
  const i64 t20 = t18 ? t19 : t17;
  const i64 t21 = strict_index(t20, 128ll);
  const bool t22 = t21 >= 0ll;
  const bool t23 = t21 < 128ll;
  const bool t24 = t22 && t23;
  const int ix25 = n0 / 64;
  const i64 t26 = (127ll < t21 ? 127ll : t21);
  const i64 t27 = (0ll < t26 ? t26 : 0ll);
  if (t24) p.out0[ix4 + ix25 * 8192 + (int)t27 * 64] = from_f32<f16>(t16);
}

extern "C" __global__ void __launch_bounds__(THREADS) chain_rmsnorm_matmul_neg_mul_add_scatter_b31673e0(const __grid_constant__ Params p) {
  DYN_SHARED(float, partial);  // [SPLIT][ROWS][COLUMNS]
  f32* const tile = reinterpret_cast<f32*>(reinterpret_cast<char*>(partial) + 64);  // [1][4]
  f16* const left = reinterpret_cast<f16*>(reinterpret_cast<char*>(partial) + 80);  // [1][512]
  const Team<THREADS> team;  // the threads that share the work out
  pdl_launch_dependents();
  constexpr int RUN = 2, STRIDE = 32, MEMBERS = 2;
  const int b = 0, K = 512;
  const auto column_at = [=](int j) {  // of the tile: members of its units one after another
    const int unit = blockIdx.x * RUN + j % RUN;
    return unit / STRIDE * (STRIDE * MEMBERS) + j / RUN * STRIDE + unit % STRIDE;
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = warp / SPLIT, share = warp % SPLIT;
  int column[OWN];
#pragma unroll
  for (int c = 0; c < OWN; ++c) column[c] = column_at(group * OWN + c);
  const int first = (share * 32 + lane) * WIDTH;
  float acc[ROWS][OWN] = {}, w[BATCH][OWN][WIDTH];
  const auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
#pragma unroll
      for (int c = 0; c < OWN; ++c) {
        const int k = k0 + i * STEP;
        if (k < K && column[c] < 256) {
          load_b(p, b, column[c], k, w[i][c]);
        } else {
#pragma unroll
          for (int e = 0; e < WIDTH; ++e) w[i][c][e] = 0.0f;
        }
      }
  };
  const auto multiply = [&](int k0) {
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int k = k0 + i * STEP;
      if (k < K) {
#pragma unroll
        for (int m = 0; m < ROWS; ++m)
#pragma unroll
          for (int e0 = 0; e0 < WIDTH; e0 += 8) {
            f32 x[8];
            load_a(p, b, m, k + e0, left, x);
#pragma unroll
            for (int c = 0; c < OWN; ++c)
#pragma unroll
              for (int e = 0; e < 8; ++e) acc[m][c] += x[e] * w[i][c][e0 + e];
          }
      }
    }
  };
  fetch(first);  // weights depend on no earlier kernel
  pdl_wait();
  for (int row = 0; row < ROWS; row += 1) {
    f32 row_rstd[1];
    const f32 part_rstd = row_reduce<THREADS, 8, true>(
        team, f32(0), K, partial, OpSum(), [&](int col, f32 (&term)[8]) {
          f32 x[8];
          load_x(p, row, col, x);
          rstd_value(p, row, col, x, term);
        });
    rstd_finish(p, row, part_rstd, row_rstd);
    for (int col = team.rank * 8; col < K; col += team.size * 8) {
      f32 x[8], filled[8];
      load_x(p, row, col, x);
      fill_row(p, row, col, x, row_rstd[0], filled);
      Vec<f16, 8> stored;
#pragma unroll
      for (int e = 0; e < 8; ++e) stored.v[e] = from_f32<f16>(filled[e]);
      store_vec<8>(left + row * K + col, stored);
    }
  }
  __syncthreads();
  if (!team_product<Shares>(
          team, partial, ROWS, K, 256, [&](int j) { return column_at(j); },
          [&](int m, int k, f32 (&x)[8]) { load_a(p, b, m, k, left, x); },
          [&](int n, int k, float (&w)[WIDTH]) { load_b(p, b, n, k, w); })) {
    for (int k = first; k < K; k += BATCH * STEP) {
      multiply(k);
      fetch(k + BATCH * STEP);
    }
    constexpr int ACROSS = OWN, SUMS = 2;  // of a row; of all, and more up to a power of two
    float sums[SUMS] = {};
#pragma unroll
    for (int i = 0; i < ROWS * ACROSS; ++i) sums[i] = acc[i / ACROSS][i % ACROSS];
    const int from = share_sums<1>(sums);
#pragma unroll
    for (int i = 0; i < LEFT_OF_SUMS<SUMS, 1>; ++i) {
      const int m = (from + i) / ACROSS, c = (from + i) % ACROSS;
      if (m < ROWS && has_sums<1, SUMS>(lane))
        partial[(share * ROWS + m) * COLUMNS + group * OWN + c] = sums[i];
    }
  }

  if (warp > 0) {
    named_bar_arrive(1, THREADS);  // only the warp that adds up waits
  } else {
    named_bar_sync(1, THREADS);
    for (int o = team.rank; o < ROWS * COLUMNS; o += team.size) {
      float sum[1] = {partial[o]};
#pragma unroll
      for (int s = 1; s < SPLIT; ++s) sum[0] += partial[s * ROWS * COLUMNS + o];
      tile[o] = sum[0];
    }
    __syncwarp();
    for (int o = team.rank; o < ROWS * COLUMNS; o += team.size) {
      const int m = o / COLUMNS;
      const int n = column_at(o % COLUMNS);
      if (n < 256) store_part0(p, m, n, tile);
    }
  }
}
EXPORT_KERNEL(chain_rmsnorm_matmul_neg_mul_add_scatter_b31673e0)
