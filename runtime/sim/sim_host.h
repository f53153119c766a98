// What kernels and the runtime library use of the host's CPU: the width of its vectors and conversions of 16-bit floats.
#pragma once
#include "sim_api.h"

// The bytes of a vector register. A wider vector type would live in memory: the compiler takes only its operations apart.
#if defined(__AVX__)
#define SIM_VECTOR_BYTES 32
#else
#define SIM_VECTOR_BYTES 16
#endif

#define SIM_INLINE static inline __attribute__((always_inline))

// f16 to f32 and back, rounded to the nearest even. NaN stays NaN.
#if defined(__aarch64__)  // conversions of every aarch64 CPU
SIM_INLINE f32 f16_bits_to_f32(u16 bits) {
  __fp16 h;
  __builtin_memcpy(&h, &bits, 2);
  return (f32)h;
}
SIM_INLINE u16 f32_to_f16_bits(f32 x) {
  const __fp16 h = (__fp16)x;
  u16 bits;
  __builtin_memcpy(&bits, &h, 2);
  return bits;
}
#elif defined(__F16C__) && __has_builtin(__builtin_ia32_vcvtph2ps)
typedef short sim_half8 __attribute__((vector_size(16)));
typedef float sim_float4 __attribute__((vector_size(16)));
SIM_INLINE f32 f16_bits_to_f32(u16 bits) {
  const sim_half8 v = {(short)bits};
  return __builtin_ia32_vcvtph2ps(v)[0];
}
SIM_INLINE u16 f32_to_f16_bits(f32 x) {
  const sim_float4 v = {x};
  return (u16)__builtin_ia32_vcvtps2ph(v, 0)[0];
}
#elif defined(__F16C__)  // newer clangs have only _Float16
SIM_INLINE f32 f16_bits_to_f32(u16 bits) {
  _Float16 h;
  __builtin_memcpy(&h, &bits, 2);
  return (f32)h;
}
SIM_INLINE u16 f32_to_f16_bits(f32 x) {
  const _Float16 h = (_Float16)x;
  u16 bits;
  __builtin_memcpy(&bits, &h, 2);
  return bits;
}
#else  // by integers: _Float16 would call functions of a compiler's library that kernels are not linked with
SIM_INLINE f32 f16_bits_to_f32(u16 bits) {
  const u32 size = bits & 0x7fffu;
  u32 u = (size << 13) + (112u << 23);            // another bias of the exponent
  if (size >= 0x7c00u) u += 112u << 23;           // infinity and NaN
  if (size > 0x7c00u) u |= 0x400000u;             // a quiet one
  f32 r = (f32)(i32)size * 0x1p-24f;              // subnormal numbers
  if (size >= 0x400u) __builtin_memcpy(&r, &u, 4);
  return bits & 0x8000u ? -r : r;
}
SIM_INLINE u16 f32_to_f16_bits(f32 x) {
  u32 u;
  __builtin_memcpy(&u, &x, 4);
  const u32 sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  u32 r = (u - (112u << 23) + 0xfffu + (u >> 13 & 1u)) >> 13;
  if (u < 0x38800000u) {  // subnormal in f16: 0.5 has its last bit at 2**-24, so that adding rounds there
    f32 shifted;
    __builtin_memcpy(&shifted, &u, 4);
    shifted += 0.5f;
    __builtin_memcpy(&r, &shifted, 4);
    r -= 0x3f000000u;
  }
  if (u >= 0x477ff000u) r = 0x7c00u;  // what rounds to infinity
  if (u > 0x7f800000u) r = 0x7e00u | (u >> 13 & 0x1ffu);
  return (u16)(sign | r);
}
#endif
