// The simulator's twin of lanes.cuh: the lanes meet once, and the last one that arrives computes for the whole warp.
// A switch from lane to lane costs more than the arithmetic, and one for each exchange was most of a small kernel's time.
#pragma once

template <class T, class Op>
struct SimReduced {
  T value;
  Op op;
};
template <int WIDTH, class T, class Op>
SIM_UNCHECKED static void sim_op_lanes_reduce(void** slots, u32 mask) {
  typedef SimReduced<T, Op> Slot;
  for (int first = 0; first < 32; first += WIDTH) {
    const u32 wanted = (WIDTH < 32 ? (1u << WIDTH % 32) - 1 : ~0u) << first;
    if (!(mask & wanted)) continue;  // the last warp of a block may have fewer lanes
    if ((mask & wanted) != wanted) sim_fail("lanes_reduce over %d lanes in a warp that has the lanes %08x", WIDTH, mask);
    T v[WIDTH];
    for (int i = 0; i < WIDTH; ++i) v[i] = ((const Slot*)slots[first + i])->value;
    for (int half = WIDTH / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) v[i] = ((const Slot*)slots[first])->op(v[i], v[i + half]);
    for (int i = 0; i < WIDTH; ++i) ((Slot*)slots[first + i])->value = v[0];
  }
}
// Combines the values of WIDTH neighbouring lanes (a power of two); every lane gets the result. op must commute.
template <int WIDTH, class T, class Op>
ARCWELD_DEVICE T lanes_reduce(T v, Op op) {
  SimReduced<T, Op> mine{v, op};
  if (WIDTH > 1) sim_warp_op(~0u, sim_op_lanes_reduce<WIDTH, T, Op>, &mine, "lanes_reduce");
  return mine.value;
}

template <int APART, class T, int COUNT>
SIM_UNCHECKED static void sim_op_share_sums(void** slots, u32 mask) {
  if (mask != ~0u) sim_fail("share_sums in a warp that has the lanes %08x", mask);
  T v[COUNT][32], next[32];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < COUNT; ++i) v[i][lane] = ((const T*)slots[lane])[i];
  int many = COUNT;
  for (int apart = 16; apart >= APART; apart /= 2) {
    const int given = many > 1 ? many / 2 : 0;  // the upper lanes keep the values from here on
    many = many > 1 ? many / 2 : 1;
    for (int i = 0; i < many; ++i) {
      for (int lane = 0; lane < 32; ++lane) {
        const T* const mine = v[lane & apart ? i + given : i];
        next[lane] = mine[lane] + mine[lane ^ apart];
      }
      for (int lane = 0; lane < 32; ++lane) v[i][lane] = next[lane];
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < many; ++i) ((T*)slots[lane])[i] = v[i][lane];
}
// Sums COUNT values (a power of two) over the lanes APART, 2 * APART, … further; APART is a power of two. The lanes share
// the sums out: each step hands half of the values over, so that COUNT of them take little longer than one. Afterwards
// v[0], v[1], … are the sums from the returned number on, LEFT_OF_SUMS of them; ``has_sums`` says which lanes hold them.
template <int APART, class T, int COUNT>
ARCWELD_DEVICE int share_sums(T (&v)[COUNT]) {
  int first = 0, many = COUNT;
  if (APART <= 16) sim_warp_op(~0u, sim_op_share_sums<APART, T, COUNT>, v, "share_sums");
  for (int mask = 16; mask >= APART && many > 1; mask /= 2) {
    many /= 2;
    if (threadIdx.x & mask) first += many;
  }
  return first;
}

// Vectors keep the sums in registers, where a loop over an array does not.
template <int N>
ARCWELD_DEVICE void sim_multiply_add(f32 (&acc)[N], f32 x, const f32 (&v)[N]) {
  constexpr int step = N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;
  typedef f32 Lanes __attribute__((vector_size(4 * step), may_alias, aligned(4)));
  for (int i = 0; i < N; i += step) *(Lanes*)(acc + i) += x * *(const Lanes*)(v + i);
}
template <int N, class T, class A, class B>
ARCWELD_DEVICE void sim_multiply_add(T (&acc)[N], A x, const B (&v)[N]) {
  for (int i = 0; i < N; ++i) acc[i] += x * v[i];
}
// acc[i] += x * v[i].
template <int N, class T, class A, class B>
ARCWELD_DEVICE void multiply_add(T (&acc)[N], A x, const B (&v)[N]) {
  sim_multiply_add(acc, x, v);
}
