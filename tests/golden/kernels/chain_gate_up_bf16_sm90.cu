// chain_rmsnorm_matmul_silu_mul: 2 rows times a matrix that is read once, on tensor cores.
// Each warp copies pieces of 128 of k of 8 columns to shared memory; 4 of them are in flight.
// 4 warps share out k. A block computes 16 columns, then those of further tiles.
// Each element of a row is the sum of two bf16 numbers: it is not rounded to one.
// The columns are 2 runs of 8, 2048 apart: what results read together.
// Every block computes the rows before it.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"
#include "ring.cuh"
#include "few_rows.cuh"

struct Params {
  const bf16* in0;
  const bf16* in1;
  const bf16* in2;
  bf16* out0;
};

typedef bf16 T;
constexpr int ROWS = 2, HALVES = 2, TILES = (ROWS * HALVES + 7) / 8;  // of 8 rows
constexpr int OWN = 8, SPLIT = 4, DEPTH = 128, THREADS = 256;
constexpr int COLUMNS = 16, WAVE = 16;
typedef SharedDepth<HALVES * ROWS, WAVE, SPLIT, 4, 8, 1> Shares;
constexpr int PITCH = 544;  // between rows in shared memory
constexpr int STAGES = 4, LINE = DEPTH * 2 + 64, STAGE = OWN * LINE;  // bytes

__device__ __forceinline__ bool address_b(const Params& p, int b, int row, int k, const bf16*& at) {
  at = p.in1 + (k + row * 512);
  return true;
}

__device__ __forceinline__ void load_x(const Params& p, int _m, int _k, f32 (&out)[8]) {
  const Vec<bf16, 8> v0 = load_vec<8>(p.in2 + (_k + _m * 512));
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
  const Vec<bf16, 8> v1 = load_vec<8>(p.in0 + _k);
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = x[lane] * row_rstd;
    const f32 t2 = to_f32(v1.v[lane]);
    const f32 t3 = t0 * t2;
    out[lane] = t3;
  }
}

__device__ __forceinline__ void store_part0(const Params& p, int m, int n0, const f32* tile) {
  const int ix0 = n0 % 8;
  const f32 t1 = tile[ix0 + m * 16];
  const f32 t2 = -t1;
  const f32 t3 = __expf(t2);
  const f32 t4 = t3 + 1.0f;
  const f32 t5 = recip(t4);
  const f32 t6 = t1 * t5;
  const f32 t7 = tile[ix0 + m * 16 + 8];
  const f32 t8 = t6 * t7;
  p.out0[n0 + m * 2048] = from_f32<bf16>(t8);
}

// Eight elements of a column.
__device__ __forceinline__ void load_column(const Params& p, int b, int n, int k, float (&w)[8]) {
  const T* at = nullptr;
  if (address_b(p, b, n, k, at)) widen<T>(load_vec_stream<4>(reinterpret_cast<const u32*>(at)), w);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) chain_rmsnorm_matmul_silu_mul_11face2c(const __grid_constant__ Params p) {
  DYN_SHARED(float, partial);  // [SPLIT][HALVES][ROWS][WAVE]
  f32* const tile = reinterpret_cast<f32*>(reinterpret_cast<char*>(partial) + 1024);  // [2][16]
  bf16* const left = reinterpret_cast<bf16*>(reinterpret_cast<char*>(partial) + 1152);  // [4][544]
  const Team<THREADS> team;  // the threads that share the work out
  pdl_launch_dependents();
  const int K = 512;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / SPLIT, share = warp % SPLIT;
  const int steps = (K + SPLIT * DEPTH - 1) / (SPLIT * DEPTH);
  constexpr int RUN = 8, STRIDE = 2048, MEMBERS = 2;
  const auto column_of = [=](int tile, int j) {  // members of its units one after another
    const int unit = tile * RUN + j % RUN;
    return unit / STRIDE * (STRIDE * MEMBERS) + j / RUN * STRIDE + unit % STRIDE;
  };

  // Which weights this warp requests next.
  int next_tile = blockIdx.x;
  int next_step = 0;
  unsigned char* const stages = reinterpret_cast<unsigned char*>(partial) + 5504 + warp * (STAGES * STAGE);
  const u32 full = smem_u32(partial) + 87424 + warp * (STAGES * 8);
  if (lane == 31) {
    for (int i = 0; i < STAGES; ++i) mbar_init(full + 8 * i, OWN);
    fence_mbar_init();
    fence_proxy_async();
  }
  __syncwarp();
  const u64 policy = evict_first_policy();
  const auto request = [&](int stage) {
    if (next_tile >= 256) return;
    const int k0 = (next_step * SPLIT + share) * DEPTH, b = 0;
    if (lane < OWN) {
      const int n = column_of(next_tile, group * OWN + lane);
      const int bytes = DEPTH * 2;
      mbar_expect_tx(full + 8 * stage, bytes);
      const T* at;
      if (address_b(p, b, n, k0, at))
        bulk_load(smem_u32(stages + stage * STAGE + lane * LINE), at, bytes, full + 8 * stage, policy);
    }
    if (++next_step < steps) return;
    next_step = 0;
    next_tile += gridDim.x;
  };
  if (team.size > 1)
    for (int i = 0; i < STAGES; ++i) request(i);
  pdl_wait();  // weights depend on no earlier kernel
  for (int row = team.warp; row < ROWS; row += team.warps) {
    f32 row_rstd[1];
    const f32 part_rstd = row_reduce<32, 8>(
        team, f32(0), K, partial, OpSum(), [&](int col, f32 (&term)[8]) {
          f32 x[8];
          load_x(p, row, col, x);
          rstd_value(p, row, col, x, term);
        });
    rstd_finish(p, row, part_rstd, row_rstd);
    for (int col = team.lane * 8; col < K; col += team.lanes * 8) {
      f32 x[8], filled[8];
      load_x(p, row, col, x);
      fill_row(p, row, col, x, row_rstd[0], filled);
      Vec<bf16, 8> stored;
#pragma unroll
      for (int e = 0; e < 8; ++e) stored.v[e] = from_f32<bf16>(filled[e]);
      store_vec<8>(left + row * PITCH + col, stored);
#pragma unroll
      for (int e = 0; e < 8; ++e)
        stored.v[e] = from_f32<bf16>(remainder_of<bf16>(filled[e]));
      store_vec<8>(left + (row + ROWS) * PITCH + col, stored);
    }
  }
  __syncthreads();
  Ring<STAGES> ring(full, 0);
  for (int tile_at = blockIdx.x; tile_at < 256; tile_at += gridDim.x) {
    const auto column_at = [=](int j) { return column_of(tile_at, j); };
    {
      if (!team_product<Shares>(
              team, partial, HALVES * ROWS, K, 4096,
              [&](int j) { return column_of(tile_at, j); },
              [&](int row, int k, float (&x)[8]) { widen<T>(load_vec<4>(reinterpret_cast<const u32*>(left + row * PITCH + k)), x); },
              [&](int n, int k, float (&w)[8]) { load_column(p, 0, n, k, w); })) {
        // The sums of this warp's columns and its share of k.
        float acc[1][TILES][4] = {};
        for (int step = 0; step < steps; ++step) {
          const int k0 = (step * SPLIT + share) * DEPTH;
          ring.wait_full();
          const unsigned char* const stage = stages + ring.stage * STAGE;
#pragma unroll
          for (int i = 0; i < DEPTH / 32; ++i) {
            const int k = k0 + i * 32 + lane % 4 * 8;
            Piece w[1];
            w[0] = load_vec<4>(reinterpret_cast<const u32*>(stage + (0 + lane / 4) * LINE + (i * 4 + lane % 4) * 16));
            Piece x[TILES] = {};
#pragma unroll
            for (int j = 0; j < TILES; ++j) {
              const int row = j * 8 + lane / 4;
              if (row < HALVES * ROWS)
                x[j] = load_vec<4>(reinterpret_cast<const u32*>(left + row * PITCH + k));
            }
            multiply_piece<T, TILES>(acc, w[0], Piece{}, x);
          }
          __syncwarp();  // all lanes have read the stage: it may be filled again
          request(ring.stage);
          ring.advance();
        }
        put_sums<HALVES * ROWS, OWN, WAVE>(partial + share * HALVES * ROWS * WAVE + group * OWN, acc, lane);
      }
      __syncthreads();
      for (int o = team.rank; o < ROWS * WAVE; o += team.size) {
        float sum[1] = {partial[o]};
#pragma unroll
        for (int s = 1; s < SPLIT * HALVES; ++s) sum[0] += partial[s * ROWS * WAVE + o];
        tile[o] = sum[0];
      }
      __syncthreads();
    }
    for (int o = team.rank; o < ROWS * COLUMNS; o += team.size) {
      const int m = o / COLUMNS;
      const int n = column_at(o % COLUMNS);
      if (n < 2048) store_part0(p, m, n, tile);
    }
  }
}
EXPORT_KERNEL(chain_rmsnorm_matmul_silu_mul_11face2c)
