// recurrence: 12 blocks share the hidden units, 8 of 96, and 4 rows at a time.
// It keeps its weights in shared memory for all steps (Diamos et al., Persistent RNNs, 2016).
#include "prims.cuh"
#include "math.cuh"
#include "grid_barrier.cuh"
#include "recurrence.cuh"

struct Params {
  const f32* in0;
  const f32* in1;
  f32* out0;
  f32* out1;
  f32* shared_h;
  f32* own_c;
  f32* own_h;
  u32* arrivals;
  int n;
  int steps;
  int rows;
};

__device__ __forceinline__ void load_x0(const Params& p, int step, int direction, int row, int unit, f32 (&out)[1]) {
  const f32 t0 = p.in0[p.n * step * 384 + unit + row * 384];
  out[0] = t0;
}

__device__ __forceinline__ void load_x1(const Params& p, int step, int direction, int row, int unit, f32 (&out)[1]) {
  const f32 t0 = p.in0[p.n * step * 384 + unit + row * 384 + 96];
  out[0] = t0;
}

__device__ __forceinline__ void load_x2(const Params& p, int step, int direction, int row, int unit, f32 (&out)[1]) {
  const f32 t0 = p.in0[p.n * step * 384 + unit + row * 384 + 192];
  out[0] = t0;
}

__device__ __forceinline__ void load_x3(const Params& p, int step, int direction, int row, int unit, f32 (&out)[1]) {
  const f32 t0 = p.in0[p.n * step * 384 + unit + row * 384 + 288];
  out[0] = t0;
}

__device__ __forceinline__ void load_r(const Params& p, int direction, int gate, int unit, int k, f32 (&out)[4]) {
  const Vec<f32, 4> v0 = load_vec<4>(p.in1 + (unit * 96 + gate * 9216 + k));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const f32 t1 = v0.v[lane];
    out[lane] = t1;
  }
}

__device__ __forceinline__ void load_first_h(const Params& p, int direction, int row, int unit, f32 (&out)[1]) {
  out[0] = 0.0f;
}

__device__ __forceinline__ void load_first_c(const Params& p, int direction, int row, int unit, f32 (&out)[1]) {
  out[0] = 0.0f;
}

__device__ __forceinline__ void next_c(const Params& p, int direction, int unit, f32 c, f32 s0, f32 s2, f32 s3, f32 x0, f32 x2, f32 x3, f32 (&out)[1]) {
  const f32 t0 = x2 + s2;
  const f32 t1 = -t0;
  const f32 t2 = expf(t1);
  const f32 t3 = t2 + 1.0f;
  const f32 t4 = recip(t3);
  const f32 t5 = t4 * c;
  const f32 t6 = x0 + s0;
  const f32 t7 = -t6;
  const f32 t8 = expf(t7);
  const f32 t9 = t8 + 1.0f;
  const f32 t10 = recip(t9);
  const f32 t11 = x3 + s3;
  const f32 t12 = tanhf(t11);
  const f32 t13 = t10 * t12;
  const f32 t14 = t5 + t13;
  out[0] = t14;
}

__device__ __forceinline__ void next_h(const Params& p, int direction, int unit, f32 c, f32 s1, f32 x1, f32 (&out)[1]) {
  const f32 t0 = x1 + s1;
  const f32 t1 = -t0;
  const f32 t2 = expf(t1);
  const f32 t3 = t2 + 1.0f;
  const f32 t4 = recip(t3);
  const f32 t5 = tanhf(c);
  const f32 t6 = t4 * t5;
  out[0] = t6;
}

__device__ __forceinline__ void store_step(const Params& p, int step, int direction, int row, int unit, f32 h) {
  p.out0[p.n * step * 96 + unit + row * 96] = h;
}

__device__ __forceinline__ void store_last(const Params& p, int direction, int row, int unit, f32 last_c) {
  p.out1[unit + row * 96] = last_c;
}

// The weights of the gates of a pass: 4 neighbours of a row.
template <int FIRST>
struct Weights {
  const Params& p;
  const int direction, first_unit;
  const f32* const kept;
  ARCWELD_DEVICE void operator()(int row, int chunk, f32 (&w)[4]) const {
    const auto found = load_vec<4>(kept + (chunk * 32 + FIRST + row) * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = cvt<f32>(found[i]);
  }
};

extern "C" __global__ void __launch_bounds__(256, 1) recurrence_85c3e5ce(const __grid_constant__ Params p) {
  DYN_SHARED(f32, source);                        // the states that the weights multiply: [4][96]
  f32* const parts = source + 384;  // sums, see step_products
  const int direction = 0, first_unit = blockIdx.x * 8;
  f32* const kept = reinterpret_cast<f32*>(parts + 1024);
  for (int i = threadIdx.x; i < 768; i += 256) {
    const int row = i / 24, k = i % 24 * 4, unit = first_unit + row % 8;
    f32 r[4] = {};
    load_r(p, direction, row / 8, unit, k, r);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane)
      kept[(k / 4 * 32 + row) * 4 + k % 4 + lane] = cvt<f32>(r[lane]);
  }
  GridBarrier barrier{p.arrivals + 2 * direction, 12};
  for (int base = 0; base < p.rows; base += 4) {
#pragma unroll
    for (int n = 0; n < 1; ++n) {
      const int item = threadIdx.x + n * 256;
      const int b = item / 8, row = base + b, unit = first_unit + item % 8;
      if (item < 32 && row < p.rows) {
        f32 first_h[1];
        load_first_h(p, direction, row, unit, first_h);
        p.own_h[row * 96 + unit] = first_h[0];
        f32 first_c[1];
        load_first_c(p, direction, row, unit, first_c);
        p.own_c[row * 96 + unit] = first_c[0];
        (p.shared_h + 0 * p.rows * 96)[row * 96 + unit] = first_h[0];
      }
    }
  }
  barrier.arrive();

  for (int step = 0; step < p.steps; ++step) {
    barrier.wait();
    for (int base = 0; base < p.rows; base += 4) {
      f32 x0[1][1];
      f32 x1[1][1];
      f32 x2[1][1];
      f32 x3[1][1];
      int at[1];
#pragma unroll
      for (int n = 0; n < 1; ++n) {
        const int item = threadIdx.x + n * 256;
        const int b = item / 8, row = base + b, unit = first_unit + item % 8;
        if (item < 32 && row < p.rows) {
          at[n] = step;

          load_x0(p, at[n], direction, row, unit, x0[n]);
          load_x1(p, at[n], direction, row, unit, x1[n]);
          load_x2(p, at[n], direction, row, unit, x2[n]);
          load_x3(p, at[n], direction, row, unit, x3[n]);
        }
      }
      const f32* const from = p.shared_h + (step & 1) * p.rows * 96;
      for (int i = threadIdx.x * 4; i < 384; i += 1024) {
        const int row = base + i / 96, k = i % 96;
        Vec<f32, 4> found = {};
        if (row < p.rows) found = load_vec<4>(from + row * 96 + k);
        store_vec(source + i, found);
      }
      __syncthreads();
      const Weights<0> weights{p, direction, first_unit, kept};
      step_products<32, 24, 4, 4, 32, 8>(weights, source, parts);
      __syncthreads();
#pragma unroll
      for (int n = 0; n < 1; ++n) {
        const int item = threadIdx.x + n * 256;
        const int b = item / 8, row = base + b, unit = first_unit + item % 8;
        if (item < 32 && row < p.rows) {
          const f32 s0 = total<32, 4, 8>(parts, b, item % 8);
          const f32 s1 = total<32, 4, 8>(parts, b, 8 + item % 8);
          const f32 s2 = total<32, 4, 8>(parts, b, 16 + item % 8);
          const f32 s3 = total<32, 4, 8>(parts, b, 24 + item % 8);
          f32 c = p.own_c[row * 96 + unit];
          f32 h = p.own_h[row * 96 + unit];
          {
            f32 next[1];
            next_c(p, direction, unit, c, s0, s2, s3, x0[n][0], x2[n][0], x3[n][0], next);
            c = next[0];
            next_h(p, direction, unit, c, s1, x1[n][0], next);
            h = next[0];
          }
          p.own_c[row * 96 + unit] = c;
          p.own_h[row * 96 + unit] = h;
          (p.shared_h + ((step + 1) & 1) * p.rows * 96)[row * 96 + unit] = h;
          store_step(p, at[n], direction, row, unit, h);
          if (step == p.steps - 1) store_last(p, direction, row, unit, c);
        }
      }
    }
    if (step + 1 < p.steps) barrier.arrive();
  }
  barrier.leave();
}
EXPORT_KERNEL(recurrence_85c3e5ce)
