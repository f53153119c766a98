// contract_dequantizelinear_matmul: 4 rows times a matrix that is read once, on tensor cores.
// Each warp loads pieces of 128 of k of 16 columns to registers.
// The matrix is stored as i4: as bf16 that is exact. The sum over 128 of k is multiplied by their scale.
// 8 warps share out k. A block computes 16 columns.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"
#include "few_rows.cuh"
#include "stored.cuh"

#include "storage.cuh"

struct Params {
  const bf16* in0;
  const bf16* in1;
  const i4* in2;
  bf16* out0;
};

typedef bf16 T;
typedef i4 S;  // what the matrix is stored in
constexpr int ROWS = 4, HALVES = 1, TILES = (ROWS * HALVES + 7) / 8;  // of 8 rows
constexpr int OWN = 16, SPLIT = 8, DEPTH = 128, THREADS = 256;
constexpr int COLUMNS = 16, WAVE = 16;
typedef SharedDepth<HALVES * ROWS, WAVE, SPLIT, 4, 8, 1> Shares;
constexpr int PITCH = 1056;  // between rows in shared memory
constexpr int BITS = 4, GROUP = 128, GROUPS = DEPTH / GROUP;  // k with one scale; such of a step
constexpr int NEAR = 1;  // groups whose scales are read at once
// Of a step's groups, of the columns whose sums a lane has.
struct Scales {
  Vec<bf16, 1> scale[2][GROUPS / NEAR];
};
constexpr int UNIT = 512 / BITS;  // k of the pieces of four lanes

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[8]) {
  const Vec<bf16, 8> v0 = load_vec<8>(p.in0 + (k + row * 1024));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ bool address_b(const Params& p, int b, int row, int k, const i4*& at) {
  at = p.in2 + ((k / 32) * 16 + row * 512);
  return true;
}

__device__ __forceinline__ Vec<bf16, 1> scale_of_group(const Params& p, int b, int row, int g) {
  return load_vec<1>(p.in1 + row);
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[1]) {
    p.out0[n + m * 4000] = from_f32<bf16>(acc[0]);
  };
}

// Eight elements of a column.
__device__ __forceinline__ void load_column(const Params& p, int b, int n, int k, float (&w)[8]) {
  const S* at = nullptr;
  address_b(p, b, n, k / 64 * 64, at);
  const int g = 0;
  const u32 minus = minus_zero<T, S>(0);
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

extern "C" __global__ void __launch_bounds__(THREADS, 2) contract_dequantizelinear_matmul_f74fe41f(const __grid_constant__ Params p) {
  DYN_SHARED(float, partial);  // [SPLIT][HALVES][ROWS][WAVE]
  T* const left = reinterpret_cast<T*>(reinterpret_cast<char*>(partial) + 2048);  // [HALVES][ROWS][PITCH]
  const Team<THREADS> team;  // the threads that share the work out
  pdl_launch_dependents();
  const int K = 1024;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / SPLIT, share = warp % SPLIT;
  const int steps = (K + SPLIT * DEPTH - 1) / (SPLIT * DEPTH);
  const auto column_of = [=](int tile, int j) { return tile * COLUMNS + j; };

  // Which weights this warp requests next.
  int next_tile = blockIdx.x;
  int next_step = 0;
  Piece w[DEPTH / UNIT][2];
  Scales now;
  const auto request = [&]() {
    if (next_tile >= 250) return;
    const int k0 = (next_step * SPLIT + share) * DEPTH, b = 0;
#pragma unroll
    for (int line = 0; line < 2; ++line) {
      const int n = column_of(next_tile, group * OWN + line * 8 + lane / 4);
#pragma unroll
      for (int i = 0; i < DEPTH / UNIT; ++i) {
        const int k = k0 + i * UNIT + lane % 4 * (UNIT / 4);
        const S* at;
        if (address_b(p, b, n, k, at))
          w[i][line] = load_vec_stream<4>(reinterpret_cast<const u32*>(at));
      }
    }
#pragma unroll
    for (int line = 0; line < 2; ++line) {
      const int n = column_of(next_tile, group * OWN + line * 8 + lane / 4);
#pragma unroll
      for (int g = 0; g < GROUPS / NEAR; ++g) {
        now.scale[line][g] = scale_of_group(p, b, n, 0);
      }
    }
    if (++next_step < steps) return;
    next_step = 0;
    next_tile += gridDim.x;
  };
  request();
  pdl_wait();  // weights depend on no earlier kernel
  for (int i = team.rank; i < HALVES * ROWS * (K / 8); i += team.size) {
    const int row = i / (K / 8), k = i % (K / 8) * 8;
    store_vec<4>(reinterpret_cast<u32*>(left + row * PITCH + k), piece_of_row(p, 0, row, k));
  }
  __syncthreads();
  {
    const int tile_at = blockIdx.x;
    const int n0 = column_of(tile_at, 0);
    {
      if (!team_product<Shares>(
              team, partial, HALVES * ROWS, K, 4000,
              [&](int j) { return column_of(tile_at, j); },
              [&](int row, int k, float (&x)[8]) { widen<T>(load_vec<4>(reinterpret_cast<const u32*>(left + row * PITCH + k)), x); },
              [&](int n, int k, float (&w)[8]) { load_column(p, 0, n, k, w); })) {
        // The sums of this warp's columns and its share of k.
        float acc[1][TILES][4] = {};
        for (int step = 0; step < steps; ++step) {
          const int k0 = (step * SPLIT + share) * DEPTH;
#pragma unroll
          for (int i = 0; i < DEPTH / UNIT * 2; ++i)
            w[i / 2][i % 2] = shared_out<S>(w[i / 2][i % 2], lane);
#pragma unroll
          for (int g = 0; g < GROUPS; ++g) {
            float sums[1][TILES][4] = {};
            const u32 minus0 = minus_zero<T, S>(0);
            const u32 minus1 = minus_zero<T, S>(0);
#pragma unroll
            for (int i = g * (GROUP / 32); i < (g + 1) * (GROUP / 32); ++i) {
              const int k = k0 + i * 32 + lane % 4 * 8;
              const StoredWords<S> w0 = words_of<S>(w[i * 32 / UNIT][0], i % (UNIT / 32));
              const StoredWords<S> w1 = words_of<S>(w[i * 32 / UNIT][1], i % (UNIT / 32));
              Piece x[TILES] = {};
#pragma unroll
              for (int j = 0; j < TILES; ++j) {
                const int row = j * 8 + lane / 4;
                if (row < HALVES * ROWS)
                  x[j] = load_vec<4>(reinterpret_cast<const u32*>(left + row * PITCH + k));
              }
              multiply_piece<T, TILES>(sums, unpack<T, S>(w0, minus0), unpack<T, S>(w1, minus1), x);
            }
            add_scaled<TILES>(acc, sums, to_f32(now.scale[0][g / NEAR][g % NEAR]), to_f32(now.scale[1][g / NEAR][g % NEAR]));
          }
          request();
        }
        put_sums<HALVES * ROWS, OWN, WAVE>(partial + share * HALVES * ROWS * WAVE + group * OWN, acc, lane);
      }
      __syncthreads();
      for (int o = team.rank; o < ROWS * WAVE; o += team.size) {
        float sum[1] = {partial[o]};
#pragma unroll
        for (int s = 1; s < SPLIT * HALVES; ++s) sum[0] += partial[s * ROWS * WAVE + o];
        store_out(p, 0, o / WAVE, n0 + o % WAVE)(sum);
      }
    }
  }
}
EXPORT_KERNEL(contract_dequantizelinear_matmul_f74fe41f)
