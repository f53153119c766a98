// conv: f32 matrix product on the ordinary arithmetic units, exact to rounding.
// A block computes 64 x 32, each thread 4 x 4;
// tiles of k = 16 alternate between two shared buffers.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  const f32* in0;
  const f32* in1;
  f32* out0;
  int tiles_m;
  int rows;
};

constexpr int BM = 64, BN = 32, BK = 16, TM = 4, TN = 4, THREADS = 128;
constexpr int VM = 4, VN = 4;  // a thread's rows and columns come in groups of neighbours
constexpr int PITCH_A = BM + 4, PITCH_B = BN + 4, BUFFER = BK * (PITCH_A + PITCH_B);

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

struct Tile {
  int b, m, n;
};
// Neighbouring blocks share operands in the cache: they walk down GROUP rows of tiles before the next column.
__device__ __forceinline__ Tile tile_at(const Params& p, int index) {
  constexpr int GROUP = 8;
  const int rows = p.tiles_m, columns = 1, plane = rows * columns;
  const int batch = index / plane, inside = index - batch * plane;
  const int group = inside / (GROUP * columns), first = group * GROUP;
  const int left = inside - first * columns, height = rows - first < GROUP ? rows - first : GROUP;
  return {batch, (first + left % height) * BM, (left / height) * BN};
}

__device__ __forceinline__ int group_of_thread() { return 0; }
__device__ __forceinline__ int thread_of_group() { return threadIdx.x; }
__device__ __forceinline__ void group_sync() { __syncthreads(); }

// Chunks of one element of A along k; zero past the edges.
struct ChunksA {
  static constexpr int WIDTH = 1, COUNT = BM * BK / WIDTH, EACH = (COUNT + THREADS - 1) / THREADS;
  f32 v[EACH][WIDTH];
  // The row and the k, inside the tile, of this thread's i-th chunk.
  static __device__ __forceinline__ int row(int i) {
    return (thread_of_group() + i * THREADS) % (BM / WIDTH) * WIDTH;
  }
  static __device__ __forceinline__ int k(int i) {
    return (thread_of_group() + i * THREADS) / (BM / WIDTH);
  }
  static __device__ __forceinline__ bool exists(int i) {
    return COUNT % THREADS == 0 || thread_of_group() + i * THREADS < COUNT;
  }
  __device__ __forceinline__ void fetch(const Params& p, int b, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (exists(i) && row0 + row(i) < p.rows && k0 + k(i) < 27) {
        load_a(p, b, row0 + row(i), k0 + k(i), v[i]);
      } else {
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) v[i][e] = f32(0);
      }
    }
  }
};

// Chunks of one element of B along k; zero past the edges.
struct ChunksB {
  static constexpr int WIDTH = 1, COUNT = BN * BK / WIDTH, EACH = (COUNT + THREADS - 1) / THREADS;
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
      if (exists(i) && row0 + row(i) < 16 && k0 + k(i) < 27) {
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

extern "C" __global__ void __launch_bounds__(128) conv_9c739a1e(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  f32* buffers = reinterpret_cast<f32*>(smem);
  const Tile t = tile_at(p, blockIdx.x);
  const int K = 27;
  f32 acc[TM][TN] = {};
  ChunksA a;
  ChunksB b;
  b.fetch(p, t.b, t.n, 0);
  pdl_wait();
  a.fetch(p, t.b, t.m, 0);
  stash(buffers, PITCH_A, a, 0, 1);
  stash(buffers + BK * PITCH_A, PITCH_B, b, 0, 1);
  group_sync();
  int current = 0;
  for (int k = 0; k < K; k += BK) {
    const bool more = k + BK < K;
    if (more) {
      a.fetch(p, t.b, t.m, k + BK);
      b.fetch(p, t.b, t.n, k + BK);
    }
    multiply(acc, buffers + current * BUFFER);
    current ^= 1;
    if (more) {
      stash(buffers + current * BUFFER, PITCH_A, a, 0, 1);
      stash(buffers + current * BUFFER + BK * PITCH_A, PITCH_B, b, 0, 1);
    }
    group_sync();
  }
  pdl_launch_dependents();
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int m = t.m + row_of(i / VM) + i % VM;
#pragma unroll
    for (int j = 0; j < TN; j += 4) {
      const int n = t.n + column_of(j / VN) + j % VN;
      f32 out[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = acc[i][j + e];
      if (m < p.rows && n < 16) store_out(p, t.b, m, n)(out);
    }
  }
}
EXPORT_KERNEL(conv_9c739a1e)

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
