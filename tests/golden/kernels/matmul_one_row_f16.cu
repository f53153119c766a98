// contract_matmul_silu: 1 row times a matrix that is read once,
// 8 elements at a time along k.
// A warp computes 2 columns, its lanes share out k.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  f16* out0;
};

constexpr int ROWS = 1, COLUMNS = 16, WIDTH = 8;
constexpr int BATCH = 4, SPLIT = 1, THREADS = 256;
constexpr int OWN = 2;              // columns of a warp
constexpr int STEP = 32 * SPLIT * WIDTH;  // k between a thread's pieces
typedef SharedDepth<ROWS, COLUMNS, SPLIT, 32, WIDTH, 1> Shares;

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + k);
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_b(const Params& p, int b, int row, int k, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec_stream<8>(p.in1 + (k + row * 1024));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[1]) {
    const f32 t0 = -acc[0];
    const f32 t1 = __expf(t0);
    const f32 t2 = t1 + 1.0f;
    const f32 t3 = recip(t2);
    const f32 t4 = acc[0] * t3;
    p.out0[n] = from_f32<f16>(t4);
  };
}

extern "C" __global__ void __launch_bounds__(THREADS) contract_matmul_silu_c03430bb(const __grid_constant__ Params p) {
  DYN_SHARED(float, partial);  // [SPLIT][ROWS][COLUMNS]
  const Team<THREADS> team;  // the threads that share the work out
  pdl_launch_dependents();
  const int b = blockIdx.x / 256, n0 = blockIdx.x % 256 * COLUMNS, K = 1024;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = warp / SPLIT, share = warp % SPLIT;
  const int n = n0 + group * OWN, first = (share * 32 + lane) * WIDTH;
  float acc[ROWS][OWN] = {}, w[BATCH][OWN][WIDTH];
  const auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
#pragma unroll
      for (int c = 0; c < OWN; ++c) {
        const int k = k0 + i * STEP;
        if (k < K && n + c < 4096) {
          load_b(p, b, n + c, k, w[i][c]);
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
            load_a(p, b, m, k + e0, x);
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
  if (!team_product<Shares>(
          team, partial, ROWS, K, 4096, [&](int j) { return n0 + j; },
          [&](int m, int k, f32 (&x)[8]) { load_a(p, b, m, k, x); },
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
      if (n0 + o % COLUMNS < 4096) store_out(p, b, o / COLUMNS, n0 + o % COLUMNS)(sum);
    }
  }
}
EXPORT_KERNEL(contract_matmul_silu_c03430bb)
