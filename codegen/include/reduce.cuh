// Reductions over a warp and over a block, in plain CUDA C++. Include it after prims.cuh.
#pragma once

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

// Butterfly exchange of any trivially copyable T of whole 32-bit words, or of a narrower scalar.
template <class T>
ARCWELD_DEVICE T shuffle_xor(T v, int lane_mask) {
  constexpr int words = (sizeof(T) + 3) / 4;
  alignas(u32) alignas(T) u32 w[words];
  if constexpr (sizeof(T) < 4) w[0] = 0;
  *reinterpret_cast<T*>(w) = v;
#pragma unroll
  for (int i = 0; i < words; ++i) w[i] = __shfl_xor_sync(0xffffffffu, w[i], lane_mask);
  return *reinterpret_cast<T*>(w);
}
template <>
ARCWELD_DEVICE f32 shuffle_xor<f32>(f32 v, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, v, lane_mask);
}

// Combines the values of WIDTH neighbouring lanes (a power of two); every lane gets the result. op must commute.
template <int WIDTH, class T, class Op>
ARCWELD_DEVICE T lanes_reduce(T v, Op op) {
#pragma unroll
  for (int mask = WIDTH / 2; mask > 0; mask /= 2) v = op(v, shuffle_xor(v, mask));
  return v;
}
template <class T, class Op>
ARCWELD_DEVICE T warp_reduce(T v, Op op) {
  return lanes_reduce<32>(v, op);
}

// Combines the values of THREADS threads, a multiple of 32 and the whole block; every thread gets the result.
// ``scratch`` is shared memory for THREADS / 32 values of T. It may be reused by the next call: the first barrier protects it.
template <int THREADS, class T, class Op>
ARCWELD_DEVICE T block_reduce(T v, T* scratch, Op op) {
  constexpr int warps = THREADS / 32;
  v = warp_reduce(v, op);
  if constexpr (warps > 1) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) v = op(v, scratch[i]);
  }
  return v;
}
