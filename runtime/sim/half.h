// 16-bit floats, eight at a time, 8-bit floats and tf32 widened to f32.
#pragma once
#include <string.h>

#include "sim_host.h"

namespace sim {

inline float widen(u16 bits, bool bf16) {
  if (!bf16) return sim_f16_to_f32(bits);
  const u32 u = (u32)bits << 16;
  float r;
  memcpy(&r, &u, 4);
  return r;
}

template <bool BF16>
inline void widen8(float* to, const u16* from) {
  if (!BF16) return sim_f16_to_f32_eight(to, from);
  for (int i = 0; i < 8; ++i) to[i] = widen(from[i], true);
}

// The tensor core reads only the upper 19 bits of a tf32 register.
inline float tf32(u32 bits) {
  bits &= 0xffffe000u;
  float r;
  memcpy(&r, &bits, 4);
  return r;
}

// The number of an 8-bit float: f8e5m2, whose pattern is the upper half of an f16, or f8e4m3fn.
inline float widen_float8(u8 bits, bool e5m2) {
  if (e5m2) return widen((u16)(bits << 8), false);
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float magnitude = (float)(exponent ? mantissa + 8 : mantissa) * 0x1p-9f;
  for (int i = 1; i < exponent; ++i) magnitude *= 2;
  if ((bits & 127) == 127) magnitude = __builtin_nanf("");
  return bits & 128 ? -magnitude : magnitude;
}
struct Float8Table {
  float of[2][256];
  Float8Table() {
    for (int i = 0; i < 512; ++i) of[i / 256][i % 256] = widen_float8((u8)i, i >= 256);
  }
};
inline const Float8Table float8_table;  // by form and pattern

}  // namespace sim
