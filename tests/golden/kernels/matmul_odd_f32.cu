// contract_matmul: f32 matrix product on the ordinary arithmetic units, exact to rounding.
// A block computes 32 x 32, each thread 4 x 2;
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
constexpr int BM = 32, BN = 32, BK = 16, TM = 4, TN = 2;
constexpr int THREADS = 128, SPLIT = 1, STRIDE = SPLIT * BK;  // STRIDE: k between tiles of a group
typedef Groups<THREADS, SPLIT> Group;
typedef ThreadTile<Group, Acc, BM, BN, BK, TM, TN> Work;

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 27 + k];
  out[0] = t0;
}

__device__ __forceinline__ void load_b(const Params& p, int b, int row, int k, f32 (&out)[1]) {
  const f32 t0 = p.in1[row + k * 33];
  out[0] = t0;
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[1]) {
    p.out0[n + m * 33] = acc[0];
  };
}

// A is read one element along k at a time.
struct OperandA {
  typedef f32 Value;
  static constexpr int ROWS = BM, WIDTH = 1;
  static constexpr bool ALONG_K = true, ROWS_FIRST = false;
  static ARCWELD_DEVICE Index rows(const Params& p) { return p.rows; }
  static ARCWELD_DEVICE void load(const Params& p, Index b, Index row, Index k, Value (&x)[WIDTH]) { load_a(p, b, row, k, x); }
};
// B is read one element along the row at a time.
struct OperandB {
  typedef f32 Value;
  static constexpr int ROWS = BN, WIDTH = 1;
  static constexpr bool ALONG_K = false, ROWS_FIRST = true;
  static ARCWELD_DEVICE Index rows(const Params& p) { return 33; }
  static ARCWELD_DEVICE void load(const Params& p, Index b, Index row, Index k, Value (&x)[WIDTH]) { load_b(p, b, row, k, x); }
};
// Neighbouring columns of one row, and all that is stored of them.
struct Result {
  static constexpr int WIDTH = 1;
  static ARCWELD_DEVICE void store(const Params& p, Index b, Index m, Index n, const Acc (&x)[WIDTH]) { store_out(p, b, m, n)(x); }
};
typedef Chunks<OperandA, Group, BK> ChunksA;
typedef Chunks<OperandB, Group, BK> ChunksB;

extern "C" __global__ void __launch_bounds__(128) contract_matmul_8ad48548(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  Acc* buffers = reinterpret_cast<Acc*>(smem);
  pdl_launch_dependents();
  const Tile<Index> t = tile_at<BM, BN, Index>(blockIdx.x, Parameter{p.tiles_m}, Known<2>());
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
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const Index m = t.m + Work::row_of(i / Work::VM) + i % Work::VM;
#pragma unroll
    for (int j = 0; j < TN; j += 1) {
      const Index n = t.n + Work::column_of(j / Work::VN) + j % Work::VN;
      Acc out[1];
#pragma unroll
      for (int e = 0; e < 1; ++e) out[e] = acc[i][j + e];
      if (m < p.rows && n < 33) Result::store(p, t.b, m, n, out);
    }
  }
}
EXPORT_KERNEL(contract_matmul_8ad48548)
