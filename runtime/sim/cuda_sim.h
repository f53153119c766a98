// CUDA C++ on a CPU: force-included when a generated kernel is compiled by a host compiler for the sim device.
// It includes no system header (that alone would double a kernel's compile time) and declares what it needs of libm.
#pragma once
#ifndef ARCWELD_SIM
#define ARCWELD_SIM 1
#endif
#include "sim_api.h"

typedef __SIZE_TYPE__ size_t;
#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")

// ---------------------------------------------------------------- qualifiers
#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#ifdef __clang__  // which instruments atomics in spite of no_sanitize
#define SIM_UNCHECKED __attribute__((no_sanitize("thread"), disable_sanitizer_instrumentation))
#else
#define SIM_UNCHECKED __attribute__((no_sanitize("thread")))
#endif

// ---------------------------------------------------------------- vector types
#define SIM_VECTOR_TYPE(T, NAME, ALIGN2, ALIGN4)                                                                       \
  struct NAME##1 { T x; };                                                                                             \
  struct __attribute__((aligned(ALIGN2))) NAME##2 { T x, y; };                                                         \
  struct __attribute__((aligned(ALIGN4))) NAME##4 { T x, y, z, w; };                                                   \
  static inline NAME##1 make_##NAME##1(T x) { return {x}; }                                                            \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                                    \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIM_VECTOR_TYPE(float, float, 8, 16)
SIM_VECTOR_TYPE(int, int, 8, 16)
SIM_VECTOR_TYPE(unsigned, uint, 8, 16)
SIM_VECTOR_TYPE(short, short, 4, 8)
SIM_VECTOR_TYPE(unsigned short, ushort, 4, 8)
SIM_VECTOR_TYPE(signed char, char, 2, 4)
SIM_VECTOR_TYPE(unsigned char, uchar, 2, 4)
SIM_VECTOR_TYPE(double, double, 16, 16)
SIM_VECTOR_TYPE(long long, longlong, 16, 16)
SIM_VECTOR_TYPE(unsigned long long, ulonglong, 16, 16)
#undef SIM_VECTOR_TYPE

// ---------------------------------------------------------------- where a thread is
#define threadIdx (sim_current->index)
#define blockIdx sim_place.block_index
#define blockDim sim_place.block_dim
#define gridDim sim_place.grid_dim
#define warpSize 32

// ---------------------------------------------------------------- barriers, shuffles, votes
#define SIM_TEXT2(x) #x
#define SIM_TEXT(x) SIM_TEXT2(x)
#define __syncthreads() sim_syncthreads(__FILE__ ":" SIM_TEXT(__LINE__))
static inline void __syncwarp(unsigned mask = 0xffffffffu) { sim_warp_op(mask, sim_op_syncwarp, nullptr, "__syncwarp"); }
static inline void __threadfence() { sim_threadfence(); }
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) {}
[[noreturn]] static inline void __trap() { sim_fail("__trap()"); }

template <class T>
SIM_UNCHECKED static inline T sim_shuffle(unsigned mask, T v, int operand, int mode, int width, const char* name) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  SimShuffle s;
  s.value = 0;
  __builtin_memcpy(&s.value, &v, sizeof(T));
  s.operand = operand;
  s.mode = mode;
  s.width = width;
  sim_warp_op(mask, sim_op_shuffle, &s, name);
  T r;
  __builtin_memcpy(&r, &s.result, sizeof(T));
  return r;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return sim_shuffle(mask, v, lane, 0, width, "__shfl_sync");
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return sim_shuffle(mask, v, (int)delta, 1, width, "__shfl_up_sync");
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return sim_shuffle(mask, v, (int)delta, 2, width, "__shfl_down_sync");
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32) {
  return sim_shuffle(mask, v, lane_mask, 3, width, "__shfl_xor_sync");
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  SimVote v{predicate, 0};
  sim_warp_op(mask, sim_op_vote, &v, "vote");
  return v.ballot;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// ---------------------------------------------------------------- atomics: blocks run on several host threads
// A function T NAME(T* p, T v) that replaces ``old``, the value at p, by EXPRESSION and returns it.
#define SIM_ATOMIC(T, NAME, EXPRESSION)                                \
  SIM_UNCHECKED static __attribute__((noinline)) T NAME(T* p, T v) {   \
    sim_atomic_access(p, sizeof(T));                                   \
    T old, wanted;                                                     \
    __atomic_load(p, &old, __ATOMIC_RELAXED);                          \
    do wanted = (EXPRESSION);                                          \
    while (!__atomic_compare_exchange(p, &old, &wanted, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)); \
    return old;                                                        \
  }
template <class T> SIM_ATOMIC(T, atomicAdd, old + v)
template <class T> SIM_ATOMIC(T, atomicSub, old - v)
template <class T> SIM_ATOMIC(T, atomicMax, v > old ? v : old)
template <class T> SIM_ATOMIC(T, atomicMin, v < old ? v : old)
template <class T> SIM_ATOMIC(T, atomicExch, v)
template <class T> SIM_ATOMIC(T, atomicAnd, old & v)
template <class T> SIM_ATOMIC(T, atomicOr, old | v)
template <class T> SIM_ATOMIC(T, atomicXor, old ^ v)
template <class T> SIM_ATOMIC(T, atomicInc, old >= v ? 0 : old + 1)
template <class T>
SIM_UNCHECKED static __attribute__((noinline)) T atomicCAS(T* p, T expected, T desired) {
  sim_atomic_access(p, sizeof(T));
  __atomic_compare_exchange(p, &expected, &desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

// ---------------------------------------------------------------- loads and stores with cache hints
#define SIM_LOAD(NAME) template <class T> static inline T NAME(const T* p) { return *p; }
#define SIM_STORE(NAME) template <class T> static inline void NAME(T* p, T v) { *p = v; }
SIM_LOAD(__ldg) SIM_LOAD(__ldcg) SIM_LOAD(__ldca)
SIM_STORE(__stcs) SIM_STORE(__stcg) SIM_STORE(__stwb)
// What is read once is read in tiles: the next tile's part of this row is on its way while this tile is computed.
template <class T> static inline T __ldcs(const T* p) {
  __builtin_prefetch((const char*)p + 64);
  return *p;
}
#undef SIM_LOAD
#undef SIM_STORE

#include "sim_math.h"

// ---------------------------------------------------------------- the host's entry: NAME__sim(const Params*)
template <class P>
SIM_UNCHECKED static inline void sim_call(void (*kernel)(P), const void* params) {
#if defined(__aarch64__)
  // A struct of this size is passed by the address of a copy, which GCC aligns to no more than 16 bytes: too few for a tensor map.
  if constexpr (alignof(P) > 16) {
    const P copy = *(const P*)params;
    ((void (*)(const P*))kernel)(&copy);
    return;
  }
#endif
  kernel(*(const P*)params);
}
#define EXPORT_KERNEL(name)                                                                  \
  extern "C" SIM_UNCHECKED __attribute__((visibility("default"))) void name##__sim(const void* params) { \
    sim_call(&name, params);                                                                 \
  }
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(sim_place.dynamic_shared)
