// conv_relu: matrix product on tensor cores, f16 operands, f32 accumulation.
// A block of 4 warps computes 128 x 64, each warp 64 x 32;
// 4 tiles of k = 32 are in flight.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  const f16* in2;
  f16* out0;
  int tiles_m;
  int rows;
};

typedef f16 T;
constexpr int BM = 128, BN = 64, BK = 32, WM = 64, WN = 32, STAGES = 4;
constexpr int THREADS = 128, PER = 16 / sizeof(T);  // PER: elements of one 16-byte piece
constexpr int STEP = 16, MI = WM / 16, NJ = WN / 8;  // k of one mma; fragments of a warp

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

struct Tile {
  int b, m, n;
};
// Neighbouring blocks share operands in the cache: they walk down GROUP rows of tiles before the next column.
__device__ __forceinline__ Tile tile_at(const Params& p, int index) {
  constexpr int GROUP = 8;
  const int rows = p.tiles_m, columns = 2, plane = rows * columns;
  const int batch = index / plane, inside = index - batch * plane;
  const int group = inside / (GROUP * columns), first = group * GROUP;
  const int left = inside - first * columns, height = rows - first < GROUP ? rows - first : GROUP;
  return {batch, (first + left % height) * BM, (left / height) * BN};
}

// 2 groups of THREADS threads compute the same tile, each from one piece of k in 2.
__device__ __forceinline__ int group_of_thread() { return threadIdx.x / THREADS; }
__device__ __forceinline__ int thread_of_group() { return threadIdx.x % THREADS; }
__device__ __forceinline__ void group_sync() { named_bar_sync(1 + group_of_thread(), THREADS); }

// Adds up the groups' sums; the result is right in group 0 only.
template <class Acc, int COUNT>
__device__ __forceinline__ void add_groups(Acc* scratch, Acc (&acc)[COUNT]) {
  __syncthreads();  // the scratch memory was the groups' buffers
  if (group_of_thread() > 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) scratch[((group_of_thread() - 1) * COUNT + i) * THREADS + thread_of_group()] = acc[i];
  }
  __syncthreads();
  if (group_of_thread() == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      for (int g = 0; g < 1; ++g) acc[i] += scratch[(g * COUNT + i) * THREADS + threadIdx.x];
  }
}

// Shared memory in lines of 16-byte pieces. Pieces change places by the line number, so that the lines which ldmatrix
// (or a warp of word reads) touches at once lie in different banks: eight lines that ldmatrix takes (SPREAD 1), or four
// lines and two pieces of each (SPREAD 2).
template <int LINES, int PIECES, int SPREAD>
struct SharedTile {
  static constexpr int BYTES = LINES * PIECES * 16, COUNT = LINES * PIECES, EACH = (COUNT + THREADS - 1) / THREADS;
  static __device__ __forceinline__ int line(int i) { return (thread_of_group() + i * THREADS) / PIECES; }
  static __device__ __forceinline__ int piece(int i) { return (thread_of_group() + i * THREADS) % PIECES; }
  static __device__ __forceinline__ bool exists(int i) {
    return COUNT % THREADS == 0 || thread_of_group() + i * THREADS < COUNT;
  }
  static __device__ __forceinline__ int offset(int line, int piece) {
    const int swap = PIECES % 8 == 0   ? line * SPREAD % 8
                     : PIECES % 4 == 0 ? line / 2 % 4
                     : PIECES % 2 == 0 ? line / 4 % 2
                                       : 0;
    return (line * PIECES + (piece ^ swap)) * 16;
  }
};
// A's tile: BM x BK, lines along k.
struct TileA : SharedTile<BM, BK / PER, 1> {
  // Neighbouring threads load neighbouring rows, which lie closer together than neighbouring k.
  static __device__ __forceinline__ int line(int i) { return (thread_of_group() + i * THREADS) % (BM); }
  static __device__ __forceinline__ int piece(int i) { return (thread_of_group() + i * THREADS) / (BM); }
  static __device__ __forceinline__ int row(int i) { return line(i); }
  static __device__ __forceinline__ int k(int i) { return piece(i) * PER; }
  Vec<T, PER> v[EACH];
  // Loads the tile at (row0, k0) to registers, 1 element at a time; zeros past the edges.
  __device__ __forceinline__ void fetch(const Params& p, u32, int b, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
#pragma unroll
      for (int e = 0; e < PER; e += 1) {
        const int r = row0 + row(i), k = k0 + this->k(i) + e;
        f32 x[1] = {};
        if (exists(i) && r < p.rows && k < 576) load_a(p, b, r, k, x);
#pragma unroll
        for (int s = 0; s < 1; ++s) v[i][e + s] = cvt<T>(x[s]);
      }
  }
  // Writes the loaded pieces to the shared tile.
  __device__ __forceinline__ void stash(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (exists(i)) store_vec<PER>(reinterpret_cast<T*>(tile + offset(line(i), piece(i))), v[i]);
  }
};

// B's tile: BN x BK, lines along k.
struct TileB : SharedTile<BN, BK / PER, 1> {
  static __device__ __forceinline__ int row(int i) { return line(i); }
  static __device__ __forceinline__ int k(int i) { return piece(i) * PER; }
  // Starts copying the tile at (row0, k0); pieces past the edges arrive as zeros.
  __device__ __forceinline__ void fetch(const Params& p, u32 tile, int b, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (exists(i)) {
        const int r = row0 + row(i), k = k0 + this->k(i);
        const T* at = p.in1;
        const bool inside = r < 128 && k < 576 && address_b(p, b, r, k, at);
        cp_async16(tile + offset(line(i), piece(i)), at, inside ? 16 : 0);
      }
  }
  __device__ __forceinline__ void stash(unsigned char*) const {}
};

constexpr int STAGE = TileA::BYTES + TileB::BYTES;

// Fragments of A for rows [row, row + 16) and one k step.
__device__ __forceinline__ void fragment_a(u32 (&r)[4], const unsigned char* tile, int row, int k) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(r, smem_u32(tile + TileA::offset(row + lane % 16, k / PER + lane / 16)));
}
// Fragments of B for columns [column, column + 16) and one k step.
__device__ __forceinline__ void fragment_b(u32 (&r0)[2], u32 (&r1)[2], const unsigned char* tile, int column, int k) {
  const int lane = threadIdx.x % 32;
  u32 r[4];
  ldmatrix_x4(r, smem_u32(tile + TileB::offset(column + lane / 16 * 8 + lane % 8, k / PER + lane / 8 % 2)));
  r0[0] = r[0], r0[1] = r[1], r1[0] = r[2], r1[1] = r[3];
}

__device__ __forceinline__ void multiply(float (&acc)[MI][NJ][4], const unsigned char* stage, int row, int column) {
#pragma unroll
  for (int k = 0; k < BK; k += STEP) {
    u32 a[MI][4], b[NJ][2];
#pragma unroll
    for (int i = 0; i < MI; ++i) fragment_a(a[i], stage, row + i * 16, k);
#pragma unroll
    for (int j = 0; j < NJ; j += 2) fragment_b(b[j], b[j + 1], stage + TileA::BYTES, column + j * 8, k);
    mma_tile<T, MI, NJ>(acc, a, b);
  }
}

// The index of a tile's row, or -1 past the last one.
__device__ __forceinline__ int row_at(const Params& p, int m) { return m < p.rows ? m : -1; }

// The epilogue of 16 rows x WN columns that a warp holds in mma fragments: through shared memory, so that
// each lane gets 8 neighbouring columns of one row.
__device__ __forceinline__ void store_rows(
    const Params& p, float* scratch, const float (*acc)[4], int b, int top, int left) {
  constexpr int PITCH = WN + 8;  // rows start 8 banks apart
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < WN / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vec<float, 2> pair;
      pair[0] = acc[j][2 * half];
      pair[1] = acc[j][2 * half + 1];
      store_vec<2>(scratch + (lane / 4 + 8 * half) * PITCH + j * 8 + lane % 4 * 2, pair);
    }
  __syncwarp();
  constexpr int ACROSS = WN / 8, PASSES = ACROSS / 2;  // accesses of a row; of each lane
#pragma unroll
  for (int pass = 0; pass < PASSES; pass += 1) {
    const int c0 = (pass + 0) * 32 + lane, column0 = c0 % ACROSS * 8;
    const int m0 = row_at(p, top + c0 / ACROSS);
    const bool inside0 = m0 >= 0 && left + column0 < 128;
    const auto store0 = store_out(p, b, inside0 ? m0 : 0, inside0 ? left + column0 : 0);
    if (inside0) store0(load_vec<8>(scratch + c0 / ACROSS * PITCH + column0).v);
  }
  __syncwarp();
}

extern "C" __global__ void __launch_bounds__(256) conv_relu_a33848f9(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, shared);
  unsigned char* smem = shared + group_of_thread() * STAGES * STAGE;
  const u32 base = smem_u32(smem);
  const Tile t = tile_at(p, blockIdx.x);
  const int K = 576, start = group_of_thread() * BK;
  const int warp = thread_of_group() / 32, row = warp / (BN / WN) * WM, column = warp % (BN / WN) * WN;
  float acc[MI][NJ][4] = {};
  TileA a;
  TileB b;
  // Weights depend on no earlier kernel: they are on their way before that kernel ends.
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s)
    if (start + s * 2 * BK < K) b.fetch(p, base + s * STAGE + TileA::BYTES, t.b, t.n, start + s * 2 * BK);
  pdl_wait();
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (start + s * 2 * BK < K) {
      a.fetch(p, base + s * STAGE, t.b, t.m, start + s * 2 * BK);
      a.stash(smem + s * STAGE);
    }
    cp_async_commit();
  }
  int now = 0, next = STAGES - 1;
  for (int k = start; k < K; k += 2 * BK) {
    cp_async_wait<STAGES - 2>();
    group_sync();
    const int ahead = k + (STAGES - 1) * 2 * BK;
    if (ahead < K) {
      a.fetch(p, base + next * STAGE, t.b, t.m, ahead);
      b.fetch(p, base + next * STAGE + TileA::BYTES, t.b, t.n, ahead);
    }
    cp_async_commit();
    multiply(acc, smem + now * STAGE, row, column);
    if (ahead < K) {
      a.stash(smem + next * STAGE);
      b.stash(smem + next * STAGE + TileA::BYTES);
    }
    now = now + 1 == STAGES ? 0 : now + 1;
    next = next + 1 == STAGES ? 0 : next + 1;
  }
  pdl_launch_dependents();
  add_groups(reinterpret_cast<float*>(shared), reinterpret_cast<float (&)[MI * NJ * 4]>(acc));
  if (group_of_thread() == 0) {
    group_sync();  // what shared memory held before becomes the epilogue's scratch
    float* scratch = reinterpret_cast<float*>(smem) + warp * 16 * (WN + 8);
#pragma unroll
    for (int i = 0; i < MI; ++i) store_rows(p, scratch, acc[i], t.b, t.m + row + i * 16, t.n + column);
  }
}
EXPORT_KERNEL(conv_relu_a33848f9)

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
