// pointwise_transpose: tiles of 64 x 64 pass through shared memory; 8 neighbouring
// elements (along b) are read at a time, 8 (along a) written.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f16* out0;
  const f16* in0;
  int s;
  int tiles_b;
  int extent_b;
};

__device__ __forceinline__ void load_b0(const Params& p, int outer, int a, int b, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (outer * p.s * 64 + a * p.s + b));
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
  store_vec<8>(p.out0 + (outer * p.s * 64 + b * 64 + a), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_transpose_2b212387(const __grid_constant__ Params p) {
  pdl_launch_dependents();
  DYN_SHARED(unsigned char, smem);
  f16* tile_x0 = reinterpret_cast<f16*>(smem + 0);  // [64][66]
  const int tiles_a = 1, tiles_b = p.tiles_b;
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
    if (a < 64 && b < p.extent_b) {
      load_b0(p, outer, a, b, x0[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n / 8, column = n % 8 * 8;
    if (a0 + row < 64 && b0 + column < p.extent_b) {
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
    if (a0 + row < 64 && b0 + column < p.extent_b) {
      f32 x0[8];
#pragma unroll
      for (int lane = 0; lane < 8; ++lane) {
        x0[lane] = to_f32(tile_x0[(row + lane) * 66 + column]);
      }
      store_a(p, outer, a0 + row, b0 + column, x0);
    }
  }
}
EXPORT_KERNEL(pointwise_transpose_2b212387)
