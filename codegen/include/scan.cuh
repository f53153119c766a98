// Prefix combinations over neighbouring lanes and over a block, in plain CUDA C++. Include it after prims.cuh.
#pragma once

// The value of the lane ``apart`` below, in groups of WIDTH neighbouring lanes. Types of 8 and 16 bits travel as 32.
// Lanes that have none below get their own value.
template <int WIDTH, class T>
ARCWELD_DEVICE T lane_below(T v, int apart) {
  if constexpr (sizeof(T) < 4)
    return T(__shfl_up_sync(0xffffffffu, i32(v), apart, WIDTH));
  else
    return __shfl_up_sync(0xffffffffu, v, apart, WIDTH);
}
// The value of the last one of WIDTH neighbouring lanes.
template <int WIDTH, class T>
ARCWELD_DEVICE T last_lane(T v) {
  if constexpr (sizeof(T) < 4)
    return T(__shfl_sync(0xffffffffu, i32(v), WIDTH - 1, WIDTH));
  else
    return __shfl_sync(0xffffffffu, v, WIDTH - 1, WIDTH);
}

// A step of a linear recurrence: what was before times ``factor``, plus ``term``.
template <class T>
struct Linear {
  T factor, term;
};
// The step that takes step ``a``, and then step ``b``.
struct OpLinear {
  template <class T>
  ARCWELD_DEVICE Linear<T> operator()(Linear<T> a, Linear<T> b) const {
    return {a.factor * b.factor, a.term * b.factor + b.term};
  }
};
template <int WIDTH, class T>
ARCWELD_DEVICE Linear<T> lane_below(Linear<T> v, int apart) {
  return {lane_below<WIDTH>(v.factor, apart), lane_below<WIDTH>(v.term, apart)};
}
template <int WIDTH, class T>
ARCWELD_DEVICE Linear<T> last_lane(Linear<T> v) {
  return {last_lane<WIDTH>(v.factor), last_lane<WIDTH>(v.term)};
}

// Combines the values of WIDTH neighbouring lanes (a power of two): each lane gets the result of those up to its own.
template <int WIDTH, class T, class Op>
ARCWELD_DEVICE T lanes_scan(T v, Op op) {
  const int lane = threadIdx.x % WIDTH;
#pragma unroll
  for (int apart = 1; apart < WIDTH; apart *= 2) {
    const T below = lane_below<WIDTH>(v, apart);
    if (lane >= apart) v = op(below, v);
  }
  return v;
}

// What comes before ``v`` in a row that LANES neighbouring threads share. ``before`` is what comes before the row's first
// thread; it becomes what comes behind the last one, so that the next call goes on from there.
// LANES is a power of two up to 32, or the whole block, a multiple of 32. Then ``scratch`` is shared memory for
// LANES / 32 values of T. It may be reused by the next call: the first barrier protects it.
template <int LANES, class T, class Op>
ARCWELD_DEVICE T row_scan(T v, T& before, T* scratch, Op op) {
  T start = before;
  if constexpr (LANES == 1) {
    before = op(before, v);
    return start;
  }
  constexpr int width = LANES < 32 ? LANES : 32;
  const int lane = threadIdx.x % width;
  const T upto = lanes_scan<width>(v, op);
  const T below = lane_below<width>(upto, 1);
  if constexpr (LANES <= 32) {
    before = op(before, last_lane<width>(upto));
  } else {
    const int warp = threadIdx.x / 32;
    __syncthreads();
    if (lane == 31) scratch[warp] = upto;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < LANES / 32; ++i) {
      if (i == warp) start = before;
      before = op(before, scratch[i]);
    }
  }
  return lane == 0 ? start : op(start, below);
}
