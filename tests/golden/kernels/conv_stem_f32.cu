// conv: f32 matrix product on the ordinary arithmetic units, exact to rounding.
// A block computes 64 x 32, each thread 4 x 4;
// tiles of k = 16 alternate between two shared buffers.
#include "prims.cuh"
#include "math.cuh"
#include "contract.cuh"
#include "ffma.cuh"
#include "tiles.cuh"

struct Params {
  const f32* in0;
  const f32* in1;
  f32* out0;
  int tiles_m;
  int rows;
};

typedef int Index;
typedef f32 Acc;
constexpr int BM = 64, BN = 32, BK = 16, TM = 4, TN = 4;
constexpr int THREADS = 128, SPLIT = 1, STRIDE = SPLIT * BK;  // STRIDE: k between tiles of a group
typedef Groups<THREADS, SPLIT> Group;
typedef ThreadTile<Group, Acc, BM, BN, BK, TM, TN> Work;

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[1]) {
  const int ix0 = row / 32;
  const int ix1 = ix0 % 32;
  const int ix2 = k / 9;
  const bool t3 = ix1 + ix2 >= 1;
  const bool t4 = ix1 + ix2 < 33;
  const bool t5 = t3 && t4;
  const int ix6 = k / 3;
  const int ix7 = ix6 % 3;
  const int ix8 = row % 32;
  const bool t9 = ix7 + ix8 >= 1;
  const bool t10 = t5 && t9;
  const bool t11 = ix7 + ix8 < 33;
  const bool t12 = t10 && t11;
  const int ix13 = row % 1024;
  const int ix14 = k % 3;
  const int ix15 = row / 1024;
  const f32 t16 = t12 ? p.in0[ix7 + ix13 + ix14 * 1024 + ix15 * 3072 + ix2 * 32 - 33] : f32(0);
  out[0] = t16;
}

__device__ __forceinline__ void load_b(const Params& p, int b, int row, int k, f32 (&out)[1]) {
  const f32 t0 = p.in1[row * 27 + k];
  out[0] = t0;
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[4]) {
    Vec<f32, 4> out0_lanes;
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      out0_lanes.v[lane] = acc[lane];
    }
    store_vec<4>(p.out0 + (n + m * 16), out0_lanes);
  };
}

// A is read one element along k at a time.
struct OperandA {
  typedef f32 Value;
  static constexpr int ROWS = BM, WIDTH = 1;
  static constexpr bool ALONG_K = true, ROWS_FIRST = true;
  static ARCWELD_DEVICE Index rows(const Params& p) { return p.rows; }
  static ARCWELD_DEVICE void load(const Params& p, Index b, Index row, Index k, Value (&x)[WIDTH]) { load_a(p, b, row, k, x); }
};
// B is read one element along k at a time.
struct OperandB {
  typedef f32 Value;
  static constexpr int ROWS = BN, WIDTH = 1;
  static constexpr bool ALONG_K = true, ROWS_FIRST = false;
  static ARCWELD_DEVICE Index rows(const Params& p) { return 16; }
  static ARCWELD_DEVICE void load(const Params& p, Index b, Index row, Index k, Value (&x)[WIDTH]) { load_b(p, b, row, k, x); }
};
// Neighbouring columns of one row, and all that is stored of them.
struct Result {
  static constexpr int WIDTH = 4;
  static ARCWELD_DEVICE void store(const Params& p, Index b, Index m, Index n, const Acc (&x)[WIDTH]) { store_out(p, b, m, n)(x); }
};
typedef Chunks<OperandA, Group, BK> ChunksA;
typedef Chunks<OperandB, Group, BK> ChunksB;

extern "C" __global__ void __launch_bounds__(128) conv_72e97ce1(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  Acc* buffers = reinterpret_cast<Acc*>(smem);
  const Tile<Index> t = tile_at<BM, BN, Index>(blockIdx.x, Parameter{p.tiles_m}, Known<1>());
  const auto depth = Known<27>();
  const Index K = 27, start = 0;
  if (block_product<Work, Group, OperandA, OperandB, Result, BK>(p, t, p.rows, K)) return;
  Acc acc[TM][TN] = {};
  ChunksA a;
  ChunksB b;
  b.fetch(p, t.b, t.n, start, depth);
  pdl_wait();
  a.fetch(p, t.b, t.m, start, depth);
  stash(buffers, Work::PITCH_A, a, ChunksA::ROW_STEP, ChunksA::K_STEP);
  stash(buffers + Work::TILE_A, Work::PITCH_B, b, ChunksB::ROW_STEP, ChunksB::K_STEP);
  Group::sync();
  int current = 0;
  for (Index k = start; k < K; k += STRIDE) {
    const bool more = k + STRIDE < K;
    if (more) {
      a.fetch(p, t.b, t.m, k + STRIDE, depth);
      b.fetch(p, t.b, t.n, k + STRIDE, depth);
    }
    Work::multiply(acc, buffers + current * Work::BUFFER);
    current ^= 1;
    if (more) {
      stash(buffers + current * Work::BUFFER, Work::PITCH_A, a, ChunksA::ROW_STEP, ChunksA::K_STEP);
      stash(buffers + current * Work::BUFFER + Work::TILE_A, Work::PITCH_B, b, ChunksB::ROW_STEP, ChunksB::K_STEP);
    }
    Group::sync();
  }
  pdl_launch_dependents();
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const Index m = t.m + Work::row_of(i / Work::VM) + i % Work::VM;
#pragma unroll
    for (int j = 0; j < TN; j += 4) {
      const Index n = t.n + Work::column_of(j / Work::VN) + j % Work::VN;
      Acc out[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = acc[i][j + e];
      if (m < p.rows && n < 16) Result::store(p, t.b, m, n, out);
    }
  }
}
EXPORT_KERNEL(conv_72e97ce1)

// pointwise_transpose: tiles of 64 x 16 pass through shared memory; 4 neighbouring
// elements (along b) are read at a time, 4 (along a) written.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
};

__device__ __forceinline__ void load_b0(const Params& p, int outer, int a, int b, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (outer * 16384 + a * 16 + b));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_a(const Params& p, int outer, int a, int b, const f32 (&x0)[4]) {
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    out0_lanes.v[lane] = x0[lane];
  }
  store_vec<4>(p.out0 + (outer * 16384 + b * 1024 + a), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_transpose_eeb9940f(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  f32* tile_x0 = reinterpret_cast<f32*>(smem + 0);  // [64][17]
  const int tiles_a = 16, tiles_b = 1;
  const int a0 = blockIdx.x % tiles_a * 64;
  const int b0 = blockIdx.x / tiles_a % tiles_b * 16;
  const int outer = blockIdx.x / tiles_a / tiles_b;
  pdl_wait();

  // all reads of the tile are in flight before the first one is needed
  f32 x0[1][4];
#pragma unroll
  for (int i = 0; i < 1; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int a = a0 + n / 4, b = b0 + n % 4 * 4;
    if (a < 1024 && b < 16) {
      load_b0(p, outer, a, b, x0[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 1; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n / 4, column = n % 4 * 4;
    if (a0 + row < 1024 && b0 + column < 16) {
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        tile_x0[row * 17 + column + lane] = (x0[i][lane]);
      }
    }
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < 1; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n % 16 * 4, column = n / 16;
    if (a0 + row < 1024 && b0 + column < 16) {
      f32 x0[4];
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        x0[lane] = (tile_x0[(row + lane) * 17 + column]);
      }
      store_a(p, outer, a0 + row, b0 + column, x0);
    }
  }
}
EXPORT_KERNEL(pointwise_transpose_eeb9940f)
