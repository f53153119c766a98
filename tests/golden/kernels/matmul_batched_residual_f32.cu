// contract_matmul_add: f32 matrix product on the ordinary arithmetic units, exact to rounding.
// A block computes 64 x 64, each thread 4 x 4;
// tiles of k = 16 alternate between two shared buffers, of each of 2 groups of threads.
#include "prims.cuh"
#include "math.cuh"
#include "contract.cuh"
#include "ffma.cuh"
#include "tiles.cuh"

struct Params {
  const f32* in0;
  const f32* in1;
  const f32* in2;
  f32* out0;
};

typedef int Index;
typedef f32 Acc;
constexpr int BM = 64, BN = 64, BK = 16, TM = 4, TN = 4;
constexpr int THREADS = 256, SPLIT = 2, STRIDE = SPLIT * BK;  // STRIDE: k between tiles of a group
typedef Groups<THREADS, SPLIT> Group;
typedef ThreadTile<Group, Acc, BM, BN, BK, TM, TN> Work;

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (k + row * 128 + b * 8192));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_b(const Params& p, int b, int row, int k, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in1 + (row + k * 64 + b * 8192));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in2 + (n + m * 64 + b * 4096));
  return [=, &p](const f32 (&acc)[4]) {
    Vec<f32, 4> out0_lanes;
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const f32 t1 = v0.v[lane];
      const f32 t2 = acc[lane] + t1;
      out0_lanes.v[lane] = t2;
    }
    store_vec<4>(p.out0 + (n + m * 64 + b * 4096), out0_lanes);
  };
}

// A is read 4 neighbouring elements along k at a time.
struct OperandA {
  typedef f32 Value;
  static constexpr int ROWS = BM, WIDTH = 4;
  static constexpr bool ALONG_K = true, ROWS_FIRST = false;
  static ARCWELD_DEVICE Index rows(const Params& p) { return 64; }
  static ARCWELD_DEVICE void load(const Params& p, Index b, Index row, Index k, Value (&x)[WIDTH]) { load_a(p, b, row, k, x); }
};
// B is read 4 neighbouring elements along the row at a time.
struct OperandB {
  typedef f32 Value;
  static constexpr int ROWS = BN, WIDTH = 4;
  static constexpr bool ALONG_K = false, ROWS_FIRST = true;
  static ARCWELD_DEVICE Index rows(const Params& p) { return 64; }
  static ARCWELD_DEVICE void load(const Params& p, Index b, Index row, Index k, Value (&x)[WIDTH]) { load_b(p, b, row, k, x); }
};
// Neighbouring columns of one row, and all that is stored of them.
struct Result {
  static constexpr int WIDTH = 4;
  static ARCWELD_DEVICE void store(const Params& p, Index b, Index m, Index n, const Acc (&x)[WIDTH]) { store_out(p, b, m, n)(x); }
};
typedef Chunks<OperandA, Group, BK> ChunksA;
typedef Chunks<OperandB, Group, BK> ChunksB;

extern "C" __global__ void __launch_bounds__(512) contract_matmul_add_a342ea83(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  Acc* buffers = reinterpret_cast<Acc*>(smem) + Group::group() * 2 * Work::BUFFER;
  pdl_launch_dependents();
  const Tile<Index> t = tile_at<BM, BN, Index>(blockIdx.x, Known<1>(), Known<1>());
  const auto depth = Known<128>();
  const Index K = 128, start = Group::group() * BK;
  if (block_product<Work, Group, OperandA, OperandB, Result, BK>(p, t, 64, K)) return;
  Acc acc[TM][TN] = {};
  ChunksA a;
  ChunksB b;
  pdl_wait();
  b.fetch(p, t.b, t.n, start, depth);
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
  Group::add_up(reinterpret_cast<Acc*>(smem), reinterpret_cast<Acc (&)[TM * TN]>(acc));
  if (Group::group() > 0) return;
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const Index m = t.m + Work::row_of(i / Work::VM) + i % Work::VM;
#pragma unroll
    for (int j = 0; j < TN; j += 4) {
      const Index n = t.n + Work::column_of(j / Work::VN) + j % Work::VN;
      Acc out[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = acc[i][j + e];
      if (m < 64 && n < 64) Result::store(p, t.b, m, n, out);
    }
  }
}
EXPORT_KERNEL(contract_matmul_add_a342ea83)
