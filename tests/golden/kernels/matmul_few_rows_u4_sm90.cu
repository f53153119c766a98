// contract_dequantizelinear_matmul: up to 16 rows times a matrix that is read once, on tensor cores.
// Each warp copies pieces of 256 of k of 16 columns to shared memory; 4 of them are in flight.
// The matrix is stored as u4 less a zero point: as f16 that is exact. The sum over 32 of k is multiplied by their scale.
// 4 warps share out k. A block computes 32 columns.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"
#include "ring.cuh"
#include "few_rows.cuh"
#include "stored.cuh"

#include "storage.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  const u4* in2;
  const u4* in3;
  f16* out0;
  int rows;
};

typedef f16 T;
typedef u4 S;  // what the matrix is stored in
constexpr int ROWS = 16, HALVES = 1, TILES = (ROWS * HALVES + 7) / 8;  // of 8 rows
constexpr int OWN = 16, SPLIT = 4, DEPTH = 256, THREADS = 256;
constexpr int COLUMNS = 32, WAVE = 32;
typedef SharedDepth<HALVES * ROWS, WAVE, SPLIT, 4, 8, 1> Shares;
constexpr int PITCH = 1056;  // between rows in shared memory
constexpr int BITS = 4, GROUP = 32, GROUPS = DEPTH / GROUP;  // k with one scale; such of a step
constexpr int NEAR = 8;  // groups whose scales are read at once
// Of a step's groups, of the columns whose sums a lane has.
struct Scales {
  Vec<f16, 8> scale[2][GROUPS / NEAR];
  PackedVec<u4, 8> zero[2][GROUPS / NEAR];
};
constexpr int STAGES = 4, LINE = DEPTH * BITS / 8 + 16, STAGE = OWN * LINE;  // bytes

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (k + row * 1024));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ bool address_b(const Params& p, int b, int row, int k, const u4*& at) {
  at = p.in2 + ((k / 32) * 16 + row * 512);
  return true;
}

__device__ __forceinline__ Vec<f16, 8> scale_of_group(const Params& p, int b, int row, int g) {
  return load_vec<8>(p.in1 + (g + row * 32));
}

__device__ __forceinline__ PackedVec<u4, 8> zero_of_group(const Params& p, int b, int row, int g) {
  return load_packed<8>(p.in3 + ((g / 8) * 4 + row * 16));
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[1]) {
    p.out0[n + m * 4000] = from_f32<f16>(acc[0]);
  };
}

// Eight elements of a column.
__device__ __forceinline__ void load_column(const Params& p, int b, int n, int k, float (&w)[8]) {
  const S* at = nullptr;
  address_b(p, b, n, k / 64 * 64, at);
  const int g = k / 32;
  const u32 minus = minus_zero<T, S>(zero_of_group(p, b, n, g / NEAR * NEAR)[g % NEAR]);
  widen<T>(unpack<T, S>(load_stored<S>(reinterpret_cast<const unsigned char*>(at), k % 64 / 32, k / 8), minus), w);
  const float scale = to_f32(scale_of_group(p, b, n, g / NEAR * NEAR)[g % NEAR]);
#pragma unroll
  for (int e = 0; e < 8; ++e) w[e] *= scale;
}

// Eight elements of row m as numbers of type T.
__device__ __forceinline__ Piece piece_of_row(const Params& p, int b, int m, int k) {
  float x[8];
#pragma unroll
  for (int e = 0; e < 8; e += 8) {
    f32 part[8];
    load_a(p, b, m, k + e, part);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[e + i] = part[i];
  }
  return rounded<T>(x);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) contract_dequantizelinear_matmul_d48efc4d(const __grid_constant__ Params p) {
  DYN_SHARED(float, partial);  // [SPLIT][HALVES][ROWS][WAVE]
  T* const left = reinterpret_cast<T*>(reinterpret_cast<char*>(partial) + 8192);  // [HALVES][ROWS][PITCH]
  const Team<THREADS> team;  // the threads that share the work out
  pdl_launch_dependents();
  const int K = 1024;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / SPLIT, share = warp % SPLIT;
  const int M = p.rows;  // rows that there are
  const int steps = (K + SPLIT * DEPTH - 1) / (SPLIT * DEPTH);
  const auto column_of = [=](int tile, int j) { return tile * COLUMNS + j; };

  // Which weights this warp requests next.
  int next_tile = blockIdx.x;
  int next_step = 0;
  unsigned char* const stages = reinterpret_cast<unsigned char*>(partial) + 41984 + warp * (STAGES * STAGE);
  const u32 full = smem_u32(partial) + 115712 + warp * (STAGES * 8);
  if (lane == 31) {
    for (int i = 0; i < STAGES; ++i) mbar_init(full + 8 * i, OWN);
    fence_mbar_init();
    fence_proxy_async();
  }
  __syncwarp();
  const u64 policy = evict_first_policy();
  Scales next;
  const auto request = [&](int stage) {
    if (next_tile >= 125) return;
    const int k0 = (next_step * SPLIT + share) * DEPTH, b = 0;
    if (lane < OWN) {
      const int n = column_of(next_tile, group * OWN + lane);
      const int bytes = DEPTH * BITS / 8;
      mbar_expect_tx(full + 8 * stage, bytes);
      const S* at;
      if (address_b(p, b, n, k0, at))
        bulk_load(smem_u32(stages + stage * STAGE + lane * LINE), at, bytes, full + 8 * stage, policy);
    }
    if (++next_step < steps) return;
    next_step = 0;
    next_tile += gridDim.x;
  };
  // The scales of this warp's next step are requested while it multiplies another.
  int scales_tile = blockIdx.x;
  int scales_step = 0;
  const auto request_scales = [&] {
    if (scales_tile >= 125) return;
    const int k0 = (scales_step * SPLIT + share) * DEPTH, b = 0;
#pragma unroll
    for (int line = 0; line < 2; ++line) {
      const int n = column_of(scales_tile, group * OWN + line * 8 + lane / 4);
#pragma unroll
      for (int g = 0; g < GROUPS / NEAR; ++g) {
        next.scale[line][g] = scale_of_group(p, b, n, k0 / 32 + g * NEAR);
        next.zero[line][g] = zero_of_group(p, b, n, k0 / 32 + g * NEAR);
      }
    }
    if (++scales_step < steps) return;
    scales_step = 0;
    scales_tile += gridDim.x;
  };
  if (team.size > 1)
    for (int i = 0; i < STAGES; ++i) request(i);
  request_scales();
  pdl_wait();  // weights depend on no earlier kernel
  for (int i = team.rank; i < HALVES * M * (K / 8); i += team.size) {
    const int row = i / (K / 8), k = i % (K / 8) * 8;
    store_vec<4>(reinterpret_cast<u32*>(left + row * PITCH + k), piece_of_row(p, 0, row, k));
  }
  __syncthreads();
  Ring<STAGES> ring(full, 0);
  {
    const int tile_at = blockIdx.x;
    const int n0 = column_of(tile_at, 0);
    {
      if (!team_product<Shares>(
              team, partial, HALVES * ROWS, K, 4000,
              [&](int j) { return column_of(tile_at, j); },
              [&](int row, int k, float (&x)[8]) { widen<T>(row % ROWS < M ? load_vec<4>(reinterpret_cast<const u32*>(left + row * PITCH + k)) : Piece{}, x); },
              [&](int n, int k, float (&w)[8]) { load_column(p, 0, n, k, w); })) {
        // The sums of this warp's columns and its share of k.
        float acc[1][TILES][4] = {};
        for (int step = 0; step < steps; ++step) {
          const int k0 = (step * SPLIT + share) * DEPTH;
          ring.wait_full();
          const unsigned char* const stage = stages + ring.stage * STAGE;
          const Scales now = next;
          request_scales();
#pragma unroll
          for (int g = 0; g < GROUPS; ++g) {
            float sums[1][TILES][4] = {};
            const u32 minus0 = minus_zero<T, S>(now.zero[0][g / NEAR][g % NEAR]);
            const u32 minus1 = minus_zero<T, S>(now.zero[1][g / NEAR][g % NEAR]);
#pragma unroll
            for (int i = g * (GROUP / 32); i < (g + 1) * (GROUP / 32); ++i) {
              const int k = k0 + i * 32 + lane % 4 * 8;
              const StoredWords<S> w0 = load_stored<S>(stage + (0 + lane / 4) * LINE, i, lane);
              const StoredWords<S> w1 = load_stored<S>(stage + (8 + lane / 4) * LINE, i, lane);
              Piece x[TILES] = {};
#pragma unroll
              for (int j = 0; j < TILES; ++j) {
                const int row = j * 8 + lane / 4, m = row % ROWS;
                if (row < HALVES * ROWS && m < M)
                  x[j] = load_vec<4>(reinterpret_cast<const u32*>(left + row * PITCH + k));
              }
              multiply_piece<T, TILES>(sums, unpack<T, S>(w0, minus0), unpack<T, S>(w1, minus1), x);
            }
            add_scaled<TILES>(acc, sums, to_f32(now.scale[0][g / NEAR][g % NEAR]), to_f32(now.scale[1][g / NEAR][g % NEAR]));
          }
          __syncwarp();  // all lanes have read the stage: it may be filled again
          request(ring.stage);
          ring.advance();
        }
        put_sums<HALVES * ROWS, OWN, WAVE>(partial + share * HALVES * ROWS * WAVE + group * OWN, acc, lane);
      }
      __syncthreads();
      for (int o = team.rank; o < M * WAVE; o += team.size) {
        float sum[1] = {partial[o]};
#pragma unroll
        for (int s = 1; s < SPLIT * HALVES; ++s) sum[0] += partial[s * ROWS * WAVE + o];
        store_out(p, 0, o / WAVE, n0 + o % WAVE)(sum);
      }
    }
  }
}
EXPORT_KERNEL(contract_dequantizelinear_matmul_d48efc4d)
