// Reductions over a warp and over a block, in plain CUDA C++. Include it after prims.cuh.
#pragma once
#include "lanes.cuh"

struct OpSum {
  template <class T>
  ARCWELD_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct OpProd {
  template <class T>
  ARCWELD_DEVICE T operator()(T a, T b) const {
    return a * b;
  }
};
// A NaN in either operand wins, as in numpy's maximum and minimum.
struct OpMax {
  template <class T>
  ARCWELD_DEVICE T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};
struct OpMin {
  template <class T>
  ARCWELD_DEVICE T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};

template <class T, class Op>
ARCWELD_DEVICE T warp_reduce(T v, Op op) {
  return lanes_reduce<32>(v, op);
}

// ``sum`` plus the N products of 8-bit integers, four at a time.
template <int N, class A, class B>
ARCWELD_DEVICE i32 add_products(i32 sum, const A* a, const B* b) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      u32 left = 0, right = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) left |= (u32)(u8)a[i + e] << 8 * e, right |= (u32)(u8)b[i + e] << 8 * e;
      sum = dp4a<A, B>(left, right, sum);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) sum += (i32)a[i] * (i32)b[i];
  }
  return sum;
}

// ``sum`` plus N 8-bit integers, four at a time.
template <int N, class A>
ARCWELD_DEVICE i32 add_elements(i32 sum, const A* a) {
  u8 ones[N];
#pragma unroll
  for (int i = 0; i < N; ++i) ones[i] = 1;
  return add_products<N>(sum, a, ones);
}

// How many sums share_sums() leaves a lane, and whether ``lane`` is one of those that hold them.
template <int COUNT, int APART>
constexpr int LEFT_OF_SUMS = COUNT * APART > 32 ? COUNT * APART / 32 : 1;

template <int APART, int COUNT>
ARCWELD_DEVICE bool has_sums(int lane) {
  constexpr int alike = COUNT < 32 ? 32 / COUNT - 1 : 0;  // the lanes' bits that the last steps did not use
  return (lane & alike & ~(APART - 1)) == 0;
}

// Combines the values of THREADS threads, a multiple of 32 and the whole block; every thread gets the result.
// ``scratch`` is shared memory for THREADS / 32 values of T. It may be reused by the next call: the first barrier protects it,
// unless it is ``FRESH``: nothing has touched it.
template <int THREADS, bool FRESH = false, class T, class Op>
ARCWELD_DEVICE T block_reduce(T v, T* scratch, Op op) {
  constexpr int warps = THREADS / 32;
  v = warp_reduce(v, op);
  if constexpr (warps > 1) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if constexpr (!FRESH) __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) v = op(v, scratch[i]);
  }
  return v;
}

// Combines the WIDTH values of threads ACROSS apart: SLICES of them (a power of two) share each value, and those of slice 0
// get the result. ``scratch`` is shared memory for WIDTH * ACROSS * SLICES values, each of which is written once.
template <int SLICES, int ACROSS, int WIDTH, class T, class Op>
ARCWELD_DEVICE void slices_reduce(T (&v)[WIDTH], T* scratch, int slice, Op op) {
  constexpr int THREADS = ACROSS * SLICES;
  // the upper half of the slices hands over to the lower half
#pragma unroll
  for (int half = SLICES / 2; half > 0; half /= 2) {
    if (slice >= half && slice < 2 * half) {
#pragma unroll
      for (int lane = 0; lane < WIDTH; ++lane) scratch[lane * THREADS + threadIdx.x] = v[lane];
    }
    __syncthreads();
    if (slice < half) {
#pragma unroll
      for (int lane = 0; lane < WIDTH; ++lane)
        v[lane] = op(v[lane], scratch[lane * THREADS + threadIdx.x + half * ACROSS]);
    }
  }
}
