// conv_relu: matrix product on tensor cores, f16 operands, f32 accumulation.
// A block of 8 warps computes 128 x 64, each warp 64 x 32 of one piece of k in 2;
// 4 tiles of k = 32 are in flight.
#include "prims.cuh"
#include "math.cuh"
#include "contract.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  const f16* in2;
  f16* out0;
  int tiles_m;
  int rows;
};

typedef int Index;
typedef f16 T;
constexpr int BM = 128, BN = 64, BK = 32, WM = 64, WN = 32, STAGES = 4;
constexpr int THREADS = 128, SPLIT = 2, STRIDE = SPLIT * BK;  // STRIDE: k between tiles of a group
typedef Groups<THREADS, SPLIT> Group;

__device__ __forceinline__ void load_a(const Params& p, int b, int row, int k, f32 (&out)[1]) {
  const int ix0 = row / 14;
  const int ix1 = ix0 % 14;
  const int ix2 = k / 192;
  const bool t3 = ix1 * 2 + ix2 >= 1;
  const int ix4 = k / 64;
  const int ix5 = ix4 % 3;
  const int ix6 = row % 14;
  const bool t7 = ix5 + ix6 * 2 >= 1;
  const bool t8 = t3 && t7;
  const int ix9 = k % 64;
  const int ix10 = row / 196;
  const f32 t11 = t8 ? to_f32(p.in0[ix1 * 56 + ix5 + ix6 * 2 + ix9 * 784 + ix10 * 50176 + ix2 * 28 - 29]) : f32(0);
  out[0] = t11;
}

__device__ __forceinline__ bool address_b(const Params& p, int b, int row, int k, const f16*& at) {
  at = p.in1 + (k + row * 576);
  return true;
}

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in2 + n);
  return [=, &p](const f32 (&acc)[8]) {
    Vec<f16, 8> out0_lanes;
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) {
      const f32 t1 = to_f32(v0.v[lane]);
      const f32 t2 = acc[lane] + t1;
      const f32 t3 = max_nan(t2, 0.0f);
      out0_lanes.v[lane] = from_f32<f16>(t3);
    }
    store_vec<8>(p.out0 + (n + m * 128), out0_lanes);
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
// B is copied 16 bytes along k at a time.
struct OperandB {
  static constexpr int ROWS = BN;
  static constexpr bool ALONG_K = true, ROWS_FIRST = false;
  static ARCWELD_DEVICE Index rows(const Params& p) { return 128; }
  static ARCWELD_DEVICE const T* start(const Params& p) { return p.in1; }
  static ARCWELD_DEVICE bool address(const Params& p, Index b, Index row, Index k, const T*& at) {
    return address_b(p, b, row, k, at);
  }
};
typedef LoadedTile<OperandA, Group, T, BK> TileA;
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
    const bool inside0 = m0 >= 0 && left + column0 < 128;
    const auto store0 = store_out(p, b, inside0 ? m0 : 0, inside0 ? left + column0 : 0);
    if (inside0) store0(load_vec<8>(scratch + c0 / ACROSS * PITCH + column0).v);
  }
  __syncwarp();
}

extern "C" __global__ void __launch_bounds__(256) conv_relu_e720e0e0(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, shared);
  unsigned char* smem = shared + Group::group() * STAGES * STAGE;
  const u32 base = smem_u32(smem);
  const Tile<Index> t = tile_at<BM, BN, Index>(blockIdx.x, Parameter{p.tiles_m}, Known<2>());
  const auto depth = Known<576>();
  const Index K = 576, start = Group::group() * BK;
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
  pdl_launch_dependents();
  Group::add_up(reinterpret_cast<float*>(shared), reinterpret_cast<float (&)[WM / 16 * (WN / 8) * 4]>(acc));
  if (Group::group() == 0) {
    Group::sync();  // what shared memory held before becomes the epilogue's scratch
    float* scratch = reinterpret_cast<float*>(smem) + warp * 16 * (WN + 8);
#pragma unroll
    for (int i = 0; i < WM / 16; ++i) store_rows(p, scratch, acc[i], t.b, t.m + row + i * 16, t.n + column);
  }
}
EXPORT_KERNEL(conv_relu_e720e0e0)

// pointwise_transpose: tiles of 64 x 64 pass through shared memory; 8 neighbouring
// elements (along b) are read at a time, 4 (along a) written.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f16* out0;
  const f16* in0;
};

__device__ __forceinline__ void load_b0(const Params& p, int outer, int a, int b, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (outer * 25088 + a * 128 + b));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_a(const Params& p, int outer, int a, int b, const f32 (&x0)[4]) {
  Vec<f16, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    out0_lanes.v[lane] = from_f32<f16>(x0[lane]);
  }
  store_vec<4>(p.out0 + (outer * 25088 + b * 196 + a), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_transpose_5faf86ed(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  f16* tile_x0 = reinterpret_cast<f16*>(smem + 0);  // [64][66]
  const int tiles_a = 4, tiles_b = 2;
  const int a0 = blockIdx.x % tiles_a * 64;
  const int b0 = blockIdx.x / tiles_a % tiles_b * 64;
  const int outer = blockIdx.x / tiles_a / tiles_b;
  pdl_wait();

  // all reads of the tile are in flight before the first one is needed
  f32 x0[2][8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int a = a0 + n / 8, b = b0 + n % 8 * 8;
    if (a < 196 && b < 128) {
      load_b0(p, outer, a, b, x0[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n / 8, column = n % 8 * 8;
    if (a0 + row < 196 && b0 + column < 128) {
#pragma unroll
      for (int lane = 0; lane < 8; ++lane) {
        tile_x0[row * 66 + column + lane] = from_f32<f16>(x0[i][lane]);
      }
    }
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n % 16 * 4, column = n / 16;
    if (a0 + row < 196 && b0 + column < 128) {
      f32 x0[4];
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        x0[lane] = to_f32(tile_x0[(row + lane) * 66 + column]);
      }
      store_a(p, outer, a0 + row, b0 + column, x0);
    }
  }
}
EXPORT_KERNEL(pointwise_transpose_5faf86ed)
