// What kernels and the runtime library use of the host's CPU: the width of its vectors and conversions of 16-bit floats.
#pragma once
#include "sim_api.h"

// The bytes of a vector register. A wider vector type would live in memory: the compiler takes only its operations apart.
#if defined(__AVX__)
#define SIM_VECTOR_BYTES 32
#else
#define SIM_VECTOR_BYTES 16
#endif

#if defined(__F16C__) && __has_builtin(__builtin_ia32_vcvtph2ps256)  // newer clangs lack them
#define SIM_F16C
typedef short sim_half8 __attribute__((vector_size(16)));
typedef float sim_float4 __attribute__((vector_size(16)));
typedef float sim_float8 __attribute__((vector_size(32)));
#endif

#define SIM_INLINE static inline __attribute__((always_inline))

SIM_INLINE f32 sim_float_of(u32 bits) {
  f32 r;
  __builtin_memcpy(&r, &bits, 4);
  return r;
}
SIM_INLINE u32 sim_bits_of(f32 x) {
  u32 r;
  __builtin_memcpy(&r, &x, 4);
  return r;
}

// f16 to f32 and back, rounded to the nearest even; NaN stays NaN.
#if defined(__aarch64__)  // every CPU converts, vectors too
SIM_INLINE f32 sim_f16_to_f32(u16 bits) {
  __fp16 h;
  __builtin_memcpy(&h, &bits, 2);
  return (f32)h;
}
SIM_INLINE u16 sim_f32_to_f16(f32 x) {
  const __fp16 h = (__fp16)x;
  u16 bits;
  __builtin_memcpy(&bits, &h, 2);
  return bits;
}
#else
// By integers and without branches: of a loop over eight lanes the compiler makes vectors, which it does not of F16C's
// instructions. Those are for pairs and where eight numbers are at hand.
SIM_INLINE f32 sim_f16_to_f32(u16 bits) {
  const u32 size = (u32)(bits & 0x7fff) << 13;
  const u32 number = sim_bits_of(sim_float_of(size) * 0x1p112f);  // another bias; subnormal ones become normal
  const u32 endless = size > 0x0f800000u ? size | 0x7fc00000u : 0x7f800000u;
  return sim_float_of((size < 0x0f800000u ? number : endless) | (u32)(bits & 0x8000) << 16);
}
SIM_INLINE u16 sim_f32_to_f16(f32 x) {
  const u32 u = sim_bits_of(x), size = u & 0x7fffffffu;
  // Subnormal in f16: 0.5 and what is near it have their last bit at 2**-24, so that adding rounds there.
  const u32 small = sim_bits_of(sim_float_of(size) + 0.5f) - 0x3f000000u;
  u32 r = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
  r = r < 0x7c00u ? r : 0x7c00u;  // what rounds to infinity
  r = size < 0x38800000u ? small : r;
  r = size > 0x7f800000u ? 0x7e00u | (size >> 13 & 0x1ffu) : r;
  return (u16)(r | (u >> 16 & 0x8000u));
}
#endif

// Two of them in one register.
SIM_INLINE u32 sim_f32_to_f16_pair(f32 lo, f32 hi) {
#if defined(SIM_F16C)
  const sim_float4 v = {lo, hi};
  typedef int Int4 __attribute__((vector_size(16)));
  return (u32)((Int4)__builtin_ia32_vcvtps2ph(v, 0))[0];
#else
  return (u32)sim_f32_to_f16(lo) | (u32)sim_f32_to_f16(hi) << 16;
#endif
}

// Eight of them in memory.
SIM_INLINE void sim_f16_to_f32_eight(f32* to, const u16* from) {
#if defined(SIM_F16C)
  sim_half8 h;
  __builtin_memcpy(&h, from, 16);
  const sim_float8 f = __builtin_ia32_vcvtph2ps256(h);
  __builtin_memcpy(to, &f, 32);
#else
  for (int i = 0; i < 8; ++i) to[i] = sim_f16_to_f32(from[i]);
#endif
}
