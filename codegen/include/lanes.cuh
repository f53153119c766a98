// Inner loops that run on the simulator in another form: what a warp's lanes compute together, and vectors of one lane.
// This side is CUDA. The simulator's twin, sim_lanes.h, declares the same names. Include it after prims.cuh.
#pragma once
#ifdef ARCWELD_SIM
#include "sim_lanes.h"
#else

// Butterfly exchange of any trivially copyable T of whole 32-bit words, or of a narrower scalar.
template <class T>
ARCWELD_DEVICE T shuffle_xor_impl(T v, int lane_mask) {
  constexpr int words = (sizeof(T) + 3) / 4;
  alignas(u32) alignas(T) u32 w[words];
  if constexpr (sizeof(T) < 4) w[0] = 0;
  *reinterpret_cast<T*>(w) = v;
#pragma unroll
  for (int i = 0; i < words; ++i) w[i] = __shfl_xor_sync(0xffffffffu, w[i], lane_mask);
  return *reinterpret_cast<T*>(w);
}
template <>
ARCWELD_DEVICE f32 shuffle_xor_impl<f32>(f32 v, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, v, lane_mask);
}

// Combines the values of WIDTH neighbouring lanes (a power of two); every lane gets the result. op must commute.
template <int WIDTH, class T, class Op>
ARCWELD_DEVICE T lanes_reduce(T v, Op op) {
#pragma unroll
  for (int mask = WIDTH / 2; mask > 0; mask /= 2) v = op(v, shuffle_xor_impl(v, mask));
  return v;
}

// Sums COUNT values (a power of two) over the lanes APART, 2 * APART, … further; APART is a power of two. The lanes share
// the sums out: each step hands half of the values over, so that COUNT of them take little longer than one. Afterwards
// v[0], v[1], … are the sums from the returned number on, LEFT_OF_SUMS of them; ``has_sums`` says which lanes hold them.
template <int APART, class T, int COUNT>
ARCWELD_DEVICE int share_sums(T (&v)[COUNT]) {
  int first = 0, many = COUNT;
#pragma unroll
  for (int mask = 16; mask >= APART; mask /= 2) {
    if (many == 1) {
      v[0] += shuffle_xor_impl(v[0], mask);
      continue;
    }
    many /= 2;
    const bool upper = threadIdx.x & mask;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i)
      if (i < many) {
        const T given = upper ? v[i] : v[i + many], kept = upper ? v[i + many] : v[i];
        v[i] = kept + shuffle_xor_impl(given, mask);
      }
    if (upper) first += many;
  }
  return first;
}

// acc[i] += x * v[i].
template <int N, class T, class A, class B>
ARCWELD_DEVICE void multiply_add(T (&acc)[N], A x, const B (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) acc[i] += x * v[i];
}

#endif  // ARCWELD_SIM
