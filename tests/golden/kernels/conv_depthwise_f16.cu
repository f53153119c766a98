// conv_hardswish: a filter of 3 x 3 taps over each channel on its own.
// A thread computes 8 channels of 2 neighbouring pixels,
// which share the inputs that they load.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  const f16* in0;
  const f16* in1;
  f16* out0;
  int threads;
};

constexpr int WIDTH = 8, PIXELS = 2, TAPS = 3, STRIDE = 1;
constexpr int SPAN = (PIXELS - 1) * STRIDE + TAPS;  // inputs along a row that the thread's pixels see

__device__ __forceinline__ void load_a(const Params& p, int n, int o0, int o1, int c, int tap0, int tap1, f32 (&out)[8]) {
  const bool t0 = tap0 + o0 >= 1;
  const bool t1 = tap0 + o0 < 15;
  const bool t2 = t0 && t1;
  const bool t3 = tap1 >= 1;
  const bool t4 = t2 && t3;
  const bool t5 = tap1 < 15;
  const bool t6 = t4 && t5;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t7 = t6 ? to_f32(p.in0[tap0 * 14 + o0 * 14 + n * 18816 + c * 196 + tap1 + lane * 196 - 15]) : f32(0);
    out[lane] = t7;
  }
}

__device__ __forceinline__ void load_w(const Params& p, int c, int tap0, int tap1, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in1 + (tap1 * 96 + tap0 * 288 + c));
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t1 = to_f32(v0.v[lane]);
    out[lane] = t1;
  }
}

__device__ __forceinline__ void store_out(const Params& p, int n, int o0, int o1, int c, const f32 (&acc)[8]) {
  Vec<f16, 8> out0_lanes;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) {
    const f32 t0 = acc[lane] * 0.16666667f;
    const f32 t1 = t0 + 0.5f;
    const f32 t2 = max_nan(t1, 0.0f);
    const f32 t3 = min_nan(t2, 1.0f);
    const f32 t4 = acc[lane] * t3;
    out0_lanes.v[lane] = from_f32<f16>(t4);
  }
  store_vec<8>(p.out0 + (o1 * 96 + o0 * 1344 + n * 18816 + c), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(128) conv_hardswish_19cc2929(const __grid_constant__ Params p) {
  pdl_wait();
  int index = (int)blockIdx.x * 128 + threadIdx.x;
  if (index < p.threads) {
    const int c = index % 12 * WIDTH;
    index /= 12;
    const int o1 = index % 7 * PIXELS;
    index /= 7;
    const int o0 = index % 14;
    index /= 14;
    const int n = index;
    f32 acc[PIXELS][WIDTH] = {};
#pragma unroll
    for (int tap0 = 0; tap0 < 3; ++tap0) {
      f32 w[TAPS][WIDTH];
#pragma unroll
      for (int tap1 = 0; tap1 < TAPS; ++tap1) load_w(p, c, tap0, tap1, w[tap1]);
#pragma unroll
      for (int i = 0; i < SPAN; ++i) {
        f32 x[WIDTH] = {};
        const int at = o1 * STRIDE + i;
        if (i < TAPS || at < (14 - 1) * STRIDE + TAPS) load_a(p, n, o0, o1, c, tap0, at, x);
#pragma unroll
        for (int pixel = 0; pixel < PIXELS; ++pixel) {
          const int tap = i - pixel * STRIDE;
          if (tap >= 0 && tap < TAPS)
#pragma unroll
            for (int e = 0; e < WIDTH; ++e) acc[pixel][e] += x[e] * w[tap][e];
        }
      }
    }
#pragma unroll
    for (int pixel = 0; pixel < PIXELS; ++pixel)
      if (pixel == 0 || o1 + pixel < 14) store_out(p, n, o0, o1 + pixel, c, acc[pixel]);
  }
  pdl_launch_dependents();
}
EXPORT_KERNEL(conv_hardswish_19cc2929)

// pointwise_transpose: tiles of 64 x 64 pass through shared memory; 8 neighbouring
// elements (along b) are read at a time, 4 (along a) written.
#include "prims.cuh"
#include "math.cuh"

struct Params {
  f16* out0;
  const f16* in0;
};

__device__ __forceinline__ void load_b0(const Params& p, int outer, int a, int b, f32 (&out)[8]) {
  const Vec<f16, 8> v0 = load_vec<8>(p.in0 + (outer * 18816 + a * 96 + b));
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
  store_vec<4>(p.out0 + (outer * 18816 + b * 196 + a), out0_lanes);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_transpose_17f07a30(const __grid_constant__ Params p) {
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
    if (a < 196 && b < 96) {
      load_b0(p, outer, a, b, x0[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = i * 256 + threadIdx.x;
    const int row = n / 8, column = n % 8 * 8;
    if (a0 + row < 196 && b0 + column < 96) {
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
    if (a0 + row < 196 && b0 + column < 96) {
      f32 x0[4];
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        x0[lane] = to_f32(tile_x0[(row + lane) * 66 + column]);
      }
      store_a(p, outer, a0 + row, b0 + column, x0);
    }
  }
}
EXPORT_KERNEL(pointwise_transpose_17f07a30)
