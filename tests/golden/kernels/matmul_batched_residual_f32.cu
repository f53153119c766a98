// contract_matmul_add: f32 matrix product on the ordinary arithmetic units, exact to rounding.
// A block computes 64 x 64, each thread 4 x 4;
// tiles of k = 16 alternate between two shared buffers.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  const f32* in0;
  const f32* in1;
  const f32* in2;
  f32* out0;
};

constexpr int BM = 64, BN = 64, BK = 16, TM = 4, TN = 4, THREADS = 256;
constexpr int VM = 4, VN = 4;  // a thread's rows and columns come in groups of neighbours
constexpr int PITCH_A = BM + 4, PITCH_B = BN + 4, BUFFER = BK * (PITCH_A + PITCH_B);

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

struct Tile {
  int b, m, n;
};
// Neighbouring blocks share operands in the cache: they walk down GROUP rows of tiles before the next column.
__device__ __forceinline__ Tile tile_at(const Params& p, int index) {
  constexpr int GROUP = 8;
  const int rows = 1, columns = 1, plane = rows * columns;
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

// Chunks of 4 neighbouring elements of A along k; zero past the edges.
struct ChunksA {
  static constexpr int WIDTH = 4, COUNT = BM * BK / WIDTH, EACH = (COUNT + THREADS - 1) / THREADS;
  f32 v[EACH][WIDTH];
  // The row and the k, inside the tile, of this thread's i-th chunk.
  static __device__ __forceinline__ int row(int i) {
    return (thread_of_group() + i * THREADS) / (BK / WIDTH);
  }
  static __device__ __forceinline__ int k(int i) {
    return (thread_of_group() + i * THREADS) % (BK / WIDTH) * WIDTH;
  }
  static __device__ __forceinline__ bool exists(int i) {
    return COUNT % THREADS == 0 || thread_of_group() + i * THREADS < COUNT;
  }
  __device__ __forceinline__ void fetch(const Params& p, int b, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (exists(i) && row0 + row(i) < 64 && k0 + k(i) < 128) {
        load_a(p, b, row0 + row(i), k0 + k(i), v[i]);
      } else {
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) v[i][e] = f32(0);
      }
    }
  }
};

// Chunks of 4 neighbouring elements of B along the row; zero past the edges.
struct ChunksB {
  static constexpr int WIDTH = 4, COUNT = BN * BK / WIDTH, EACH = (COUNT + THREADS - 1) / THREADS;
  f32 v[EACH][WIDTH];
  // The row and the k, inside the tile, of this thread's i-th chunk.
  static __device__ __forceinline__ int row(int i) {
    return (thread_of_group() + i * THREADS) % (BN / WIDTH) * WIDTH;
  }
  static __device__ __forceinline__ int k(int i) {
    return (thread_of_group() + i * THREADS) / (BN / WIDTH);
  }
  static __device__ __forceinline__ bool exists(int i) {
    return COUNT % THREADS == 0 || thread_of_group() + i * THREADS < COUNT;
  }
  __device__ __forceinline__ void fetch(const Params& p, int b, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (exists(i) && row0 + row(i) < 64 && k0 + k(i) < 128) {
        load_b(p, b, row0 + row(i), k0 + k(i), v[i]);
      } else {
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) v[i][e] = f32(0);
      }
    }
  }
};

// Registers to shared memory, with k outermost: the inner loop then reads neighbouring rows at once.
template <class Chunks>
__device__ __forceinline__ void stash(f32* tile, int pitch, const Chunks& c, int row_step, int k_step) {
#pragma unroll
  for (int i = 0; i < Chunks::EACH; ++i)
    if (Chunks::exists(i)) {
#pragma unroll
      for (int e = 0; e < Chunks::WIDTH; ++e)
        tile[(Chunks::k(i) + e * k_step) * pitch + Chunks::row(i) + e * row_step] = (f32)c.v[i][e];
    }
}

// First row (or column) of a thread's group: groups lie a whole stripe apart, so that a warp reads neighbouring banks.
__device__ __forceinline__ int row_of(int group) { return group * (BM / (TM / VM)) + thread_of_group() / (BN / TN) * VM; }
__device__ __forceinline__ int column_of(int group) { return group * (BN / (TN / VN)) + thread_of_group() % (BN / TN) * VN; }

__device__ __forceinline__ void multiply(f32 (&acc)[TM][TN], const f32* tile) {
#pragma unroll
  for (int k = 0; k < BK; ++k) {
    f32 a[TM], b[TN];
#pragma unroll
    for (int g = 0; g < TM / VM; ++g) {
      const Vec<f32, VM> v = load_vec<VM>(tile + k * PITCH_A + row_of(g));
#pragma unroll
      for (int e = 0; e < VM; ++e) a[g * VM + e] = v[e];
    }
#pragma unroll
    for (int g = 0; g < TN / VN; ++g) {
      const Vec<f32, VN> v = load_vec<VN>(tile + BK * PITCH_A + k * PITCH_B + column_of(g));
#pragma unroll
      for (int e = 0; e < VN; ++e) b[g * VN + e] = v[e];
    }
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) acc[i][j] += a[i] * b[j];
  }
}

extern "C" __global__ void __launch_bounds__(512) contract_matmul_add_75a2c0ab(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  f32* buffers = reinterpret_cast<f32*>(smem) + group_of_thread() * 2 * BUFFER;
  pdl_launch_dependents();
  const Tile t = tile_at(p, blockIdx.x);
  const int K = 128, start = group_of_thread() * BK;
  f32 acc[TM][TN] = {};
  ChunksA a;
  ChunksB b;
  pdl_wait();
  b.fetch(p, t.b, t.n, start);
  a.fetch(p, t.b, t.m, start);
  stash(buffers, PITCH_A, a, 0, 1);
  stash(buffers + BK * PITCH_A, PITCH_B, b, 1, 0);
  group_sync();
  int current = 0;
  for (int k = start; k < K; k += 2 * BK) {
    const bool more = k + 2 * BK < K;
    if (more) {
      a.fetch(p, t.b, t.m, k + 2 * BK);
      b.fetch(p, t.b, t.n, k + 2 * BK);
    }
    multiply(acc, buffers + current * BUFFER);
    current ^= 1;
    if (more) {
      stash(buffers + current * BUFFER, PITCH_A, a, 0, 1);
      stash(buffers + current * BUFFER + BK * PITCH_A, PITCH_B, b, 1, 0);
    }
    group_sync();
  }
  add_groups(reinterpret_cast<f32*>(smem), reinterpret_cast<f32 (&)[TM * TN]>(acc));
  if (group_of_thread() > 0) return;
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int m = t.m + row_of(i / VM) + i % VM;
#pragma unroll
    for (int j = 0; j < TN; j += 4) {
      const int n = t.n + column_of(j / VN) + j % VN;
      f32 out[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = acc[i][j + e];
      if (m < 64 && n < 64) store_out(p, t.b, m, n)(out);
    }
  }
}
EXPORT_KERNEL(contract_matmul_add_75a2c0ab)
