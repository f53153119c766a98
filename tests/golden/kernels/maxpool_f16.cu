// window_maxpool: a thread combines the 9 taps of 8 neighbouring outputs.
#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct Params {
  const f16* in0;
  f16* out0;
  int out_count;
};

__device__ __forceinline__ void load_x(const Params& p, int out_index, int tap, f32 (&out)[8]) {
  const int ix0 = out_index / 1792;
  const int ix1 = ix0 % 28;
  const int ix2 = tap / 3;
  const bool t3 = ix1 * 2 + ix2 >= 1;
  const int ix4 = tap % 3;
  const int ix5 = out_index / 64;
  const int ix6 = ix5 % 28;
  const bool t7 = ix4 + ix6 * 2 >= 1;
  const bool t8 = t3 && t7;
  const int ix9 = (out_index / 8) % 8;
  const int ix10 = out_index / 50176;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t11 = t8 ? to_f32(p.in0[ix4 + ix6 * 2 + ix1 * 112 + ix9 * 25088 + ix2 * 56 + ix10 * 200704 + lane * 3136 - 57]) : f32(0);
    const f32 t12 = t8 ? t11 : (f32)-INFINITY;
    out[lane] = t12;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int out_index, const f32 (&acc)[8]) {
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    out0_lanes.v[lane] = from_f32<f16>(acc[lane]);
  }
  store_vec<8>(p.out0 + out_index, out0_lanes);
}

extern "C" __global__ void __launch_bounds__(128) window_maxpool_721f8cda(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  pdl_wait();
  const int out_index = (blockIdx.x * 128 + threadIdx.x) * 8;
  if (out_index < p.out_count) {
    f32 part[8];
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) part[lane] = -(f32)INFINITY;
#pragma unroll 9
    for (int tap = 0; tap < 9; ++tap) {
      f32 x[8];
      load_x(p, out_index, tap, x);
#pragma unroll
      for (int lane = 0; lane < 8; ++lane)
        part[lane] = OpMax()(part[lane], x[lane]);
    }
    f32 acc[8];
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) {
      acc[lane] = part[lane];
    }
    store_out(p, out_index, acc);
  }
}
EXPORT_KERNEL(window_maxpool_721f8cda)

// pointwise_transpose: tiles of 64 x 64 pass through shared memory; 8 neighbouring
// elements (along b) are read at a time, 8 (along a) written.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f16* out0;
  const f16* in0;
};

__device__ __forceinline__ void load_b0(const Params& p, int outer, int a, int b, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (outer * 50176 + a * 64 + b));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_a(const Params& p, int outer, int a, int b, const f32 (&x0)[8]) {
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    out0_lanes.v[lane] = from_f32<f16>(x0[lane]);
  }
  store_vec<8>(p.out0 + (outer * 50176 + b * 784 + a), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_transpose_57cc60cf(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  f16* tile_x0 = reinterpret_cast<f16*>(smem + 0);  // [64][66]
  const int tiles_a = 13, tiles_b = 1;
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
    if (a < 784 && b < 64) {
      load_b0(p, outer, a, b, x0[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n / 8, column = n % 8 * 8;
    if (a0 + row < 784 && b0 + column < 64) {
#pragma unroll
      for (int lane = 0; lane < 8; ++lane) {
        tile_x0[row * 66 + column + lane] = from_f32<f16>(x0[i][lane]);
      }
    }
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n % 8 * 8, column = n / 8;
    if (a0 + row < 784 && b0 + column < 64) {
      f32 x0[8];
#pragma unroll
      for (int lane = 0; lane < 8; ++lane) {
        x0[lane] = to_f32(tile_x0[(row + lane) * 66 + column]);
      }
      store_a(p, outer, a0 + row, b0 + column, x0);
    }
  }
}
EXPORT_KERNEL(pointwise_transpose_57cc60cf)
