// contract_matmul_gelu: matrix product on tensor cores, f16 operands, f32 accumulation.
// A block of 8 warps computes 128 x 128, each warp 64 x 32;
// 4 tiles of k = 32 are in flight.
#include "prims.cuh"
#include "math.cuh"
#include "contract.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  f16* out0;
  int tiles_m;
  int rows;
};

typedef int Index;
typedef f16 T;
constexpr int BM = 128, BN = 128, BK = 32, WM = 64, WN = 32, STAGES = 4;
constexpr int THREADS = 256, SPLIT = 1, STRIDE = SPLIT * BK;  // STRIDE: k between tiles of a group
typedef Groups<THREADS, SPLIT> Group;

__device__ __forceinline__ bool address_a(const Params& p, int b, int row, int k, const f16*& at) {
  at = p.in0 + (k + row * 256);
  return true;
}

__device__ __forceinline__ bool address_b(const Params& p, int b, int row, int k, const f16*& at) {
  at = p.in1 + (k + row * 256);
  return true;
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[8]) {
    Vec<f16, 8> out0_lanes;
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) {
      const f32 t0 = acc[lane] * 0.5f;
      const f32 t1 = acc[lane] * 0.70710677f;
      const f32 t2 = fast_erf(t1);
      const f32 t3 = t2 + 1.0f;
      const f32 t4 = t0 * t3;
      out0_lanes.v[lane] = from_f32<f16>(t4);
    }
    store_vec<8>(p.out0 + (n + m * 1024), out0_lanes);
  };
}

// A is copied 16 bytes along k at a time.
struct OperandA {
  static constexpr int ROWS = BM;
  static constexpr bool ALONG_K = true, ROWS_FIRST = false;
  static ARCWELD_DEVICE Index rows(const Params& p) { return p.rows; }
  static ARCWELD_DEVICE const T* start(const Params& p) { return p.in0; }
  static ARCWELD_DEVICE bool address(const Params& p, Index b, Index row, Index k, const T*& at) {
    return address_a(p, b, row, k, at);
  }
};
// B is copied 16 bytes along k at a time.
struct OperandB {
  static constexpr int ROWS = BN;
  static constexpr bool ALONG_K = true, ROWS_FIRST = false;
  static ARCWELD_DEVICE Index rows(const Params& p) { return 1024; }
  static ARCWELD_DEVICE const T* start(const Params& p) { return p.in1; }
  static ARCWELD_DEVICE bool address(const Params& p, Index b, Index row, Index k, const T*& at) {
    return address_b(p, b, row, k, at);
  }
};
typedef CopiedTile<OperandA, Group, T, BK> TileA;
typedef CopiedTile<OperandB, Group, T, BK> TileB;
constexpr int STAGE = TileA::BYTES + TileB::BYTES;

// The index of a tile's row, or -1 past the last one.
__device__ __forceinline__ Index row_at(const Params& p, Index m) { return m < p.rows ? m : -1; }
// The epilogue of 16 rows x WN columns that a warp holds in mma fragments: through shared memory, so that each
// lane gets 8 neighbouring columns of one row.
__device__ __forceinline__ void store_rows(
    const Params& p, float* scratch, const float (*acc)[4], Index b, Index top, Index left) {
  const int lane = threadIdx.x % 32;
  put_fragments<WN>(scratch, acc, lane);
  constexpr int PITCH = WN + 8, ACROSS = WN / 8, PASSES = ACROSS / 2;  // accesses of a row; of each lane
#pragma unroll
  for (int pass = 0; pass < PASSES; pass += 1) {
    const int c0 = (pass + 0) * 32 + lane, column0 = c0 % ACROSS * 8;
    const Index m0 = row_at(p, top + c0 / ACROSS);
    const bool inside0 = m0 >= 0 && left + column0 < 1024;
    const auto store0 = store_out(p, b, inside0 ? m0 : 0, inside0 ? left + column0 : 0);
    if (inside0) store0(load_vec<8>(scratch + c0 / ACROSS * PITCH + column0).v);
  }
  __syncwarp();
}

extern "C" __global__ void __launch_bounds__(256) contract_matmul_gelu_ba28d640(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  const u32 base = smem_u32(smem);
  pdl_launch_dependents();
  const Tile<Index> t = tile_at<BM, BN, Index>(blockIdx.x, Parameter{p.tiles_m}, Known<8>());
  const auto depth = Known<256>();
  const Index K = 256, start = 0;
  const int warp = Group::thread() / 32, row = warp / (BN / WN) * WM, column = warp % (BN / WN) * WN;
  float acc[WM / 16][WN / 8][4] = {};
  TileA a;
  TileB b;
  // Weights depend on no earlier kernel: they are on their way before that kernel ends.
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s)
    if (start + s * STRIDE < K) b.fetch(p, base + s * STAGE + TileA::BYTES, t.b, t.n, start + s * STRIDE, depth);
  pdl_wait();
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (start + s * STRIDE < K) {
      a.fetch(p, base + s * STAGE, t.b, t.m, start + s * STRIDE, depth);
      a.stash(smem + s * STAGE);
    }
    cp_async_commit();
  }
  int now = 0, next = STAGES - 1;
  for (Index k = start; k < K; k += STRIDE) {
    cp_async_wait<STAGES - 2>();
    Group::sync();
    const Index ahead = k + (STAGES - 1) * STRIDE;
    if (ahead < K) {
      a.fetch(p, base + next * STAGE, t.b, t.m, ahead, depth);
      b.fetch(p, base + next * STAGE + TileA::BYTES, t.b, t.n, ahead, depth);
    }
    cp_async_commit();
    multiply_stage<TileA, TileB, BK, 1>(acc, smem + now * STAGE, row, column);
    if (ahead < K) {
      a.stash(smem + next * STAGE);
      b.stash(smem + next * STAGE + TileA::BYTES);
    }
    now = now + 1 == STAGES ? 0 : now + 1;
    next = next + 1 == STAGES ? 0 : next + 1;
  }
  {
    Group::sync();  // what shared memory held before becomes the epilogue's scratch
    float* scratch = reinterpret_cast<float*>(smem) + warp * 16 * (WN + 8);
#pragma unroll
    for (int i = 0; i < WM / 16; ++i) store_rows(p, scratch, acc[i], t.b, t.m + row + i * 16, t.n + column);
  }
}
EXPORT_KERNEL(contract_matmul_gelu_ba28d640)
