// window_averagepool: a thread combines the 9 taps of 4 neighbouring outputs.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f32* in0;
  f32* out0;
  int out_count;
};

__device__ __forceinline__ void load_x(const Params& p, int out_index, int tap, f32 (&out)[4]) {
  const int ix0 = out_index / 448;
  const int ix1 = ix0 % 7;
  const int ix2 = tap / 3;
  const bool t3 = ix1 * 2 + ix2 >= 1;
  const bool t4 = ix1 * 2 + ix2 < 14;
  const bool t5 = t3 && t4;
  const int ix6 = tap % 3;
  const int ix7 = out_index / 64;
  const int ix8 = ix7 % 7;
  const bool t9 = ix6 + ix8 * 2 >= 1;
  const bool t10 = t5 && t9;
  const bool t11 = ix6 + ix8 * 2 < 14;
  const bool t12 = t10 && t11;
  const int ix13 = (out_index / 4) % 16;
  const int ix14 = out_index / 3136;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t15 = t12 ? p.in0[ix6 + ix8 * 2 + ix1 * 26 + ix13 * 676 + ix2 * 13 + ix14 * 10816 + lane * 169 - 14] : f32(0);
    out[lane] = t15;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int out_index, const f32 (&acc)[4]) {
  const int ix0 = out_index / 448;
  const int ix1 = ix0 % 7;
  const int ix2 = min(-ix1 * 2 + 14, 3);
  const int ix3 = out_index / 64;
  const int ix4 = ix3 % 7;
  const int ix5 = min(-ix4 * 2 + 14, 3);
  const int ix6 = max(-ix4 * 2 + 1, 0);
  const int ix7 = max(-ix1 * 2 + 1, 0);
  const f32 t8 = (f32)(ix2 * ix5 - ix6 * ix2 - ix7 * ix5 + ix7 * ix6);
  Vec<f32, 4> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t9 = acc[lane] / t8;
    out0_lanes.v[lane] = t9;
  }
  store_vec<4>(p.out0 + out_index, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(128) window_averagepool_d07d31af(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int out_index = (blockIdx.x * 128 + threadIdx.x) * 4;
  if (out_index < p.out_count) {
    f32 part[4];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) part[lane] = f32(0);
#pragma unroll 9
    for (int tap = 0; tap < 9; ++tap) {
      f32 x[4];
      load_x(p, out_index, tap, x);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane)
        part[lane] = OpSum()(part[lane], x[lane]);
    }
    f32 acc[4];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      acc[lane] = part[lane];
    }
    store_out(p, out_index, acc);
  }
}
EXPORT_KERNEL(window_averagepool_d07d31af)

// pointwise_transpose: tiles of 32 x 32 pass through shared memory; 4 neighbouring
// elements (along b) are read at a time, 1 (along a) written.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f32* out0;
  const f32* in0;
};

__device__ __forceinline__ void load_b0(const Params& p, int outer, int a, int b, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in0 + (outer * 3136 + a * 64 + b));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_a(const Params& p, int outer, int a, int b, const f32 (&x0)[1]) {
  p.out0[outer * 3136 + b * 49 + a] = x0[0];
}

extern "C" __global__ void __launch_bounds__(256) pointwise_transpose_700f8abf(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  f32* tile_x0 = reinterpret_cast<f32*>(smem + 0);  // [32][33]
  const int tiles_a = 2, tiles_b = 2;
  const int a0 = blockIdx.x % tiles_a * 32;
  const int b0 = blockIdx.x / tiles_a % tiles_b * 32;
  const int outer = blockIdx.x / tiles_a / tiles_b;
  pdl_wait();

  // all reads of the tile are in flight before the first one is needed
  f32 x0[1][4];
#pragma unroll
  for (int i = 0; i < 1; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int a = a0 + n / 8, b = b0 + n % 8 * 4;
    if (a < 49 && b < 64) {
      load_b0(p, outer, a, b, x0[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 1; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n / 8, column = n % 8 * 4;
    if (a0 + row < 49 && b0 + column < 64) {
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        tile_x0[row * 33 + column + lane] = (x0[i][lane]);
      }
    }
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n % 32 * 1, column = n / 32;
    if (a0 + row < 49 && b0 + column < 64) {
      f32 x0[1];
#pragma unroll
      for (int lane = 0; lane < 1; ++lane) {
        x0[lane] = (tile_x0[(row + lane) * 33 + column]);
      }
      store_a(p, outer, a0 + row, b0 + column, x0);
    }
  }
}
EXPORT_KERNEL(pointwise_transpose_700f8abf)
