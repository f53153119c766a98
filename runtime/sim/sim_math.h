// libm and CUDA's built-in math functions for the simulator: same names, correctly rounded or libm accurate. Those of
// sim_functions.h take the place of libm's, for they can be computed in vectors.
#pragma once

extern "C" {
double exp(double) noexcept;
double exp2(double) noexcept;
double expm1(double) noexcept;
float expm1f(float) noexcept;
double log(double) noexcept;
float logf(float) noexcept;
double log2(double) noexcept;
float log2f(float) noexcept;
double log10(double) noexcept;
float log10f(float) noexcept;
double log1p(double) noexcept;
float log1pf(float) noexcept;
double sqrt(double) noexcept;
float sqrtf(float) noexcept;
double cbrt(double) noexcept;
float cbrtf(float) noexcept;
double sin(double) noexcept;
float sinf(float) noexcept;
double cos(double) noexcept;
float cosf(float) noexcept;
double tan(double) noexcept;
float tanf(float) noexcept;
double asin(double) noexcept;
float asinf(float) noexcept;
double acos(double) noexcept;
float acosf(float) noexcept;
double atan(double) noexcept;
float atanf(float) noexcept;
double sinh(double) noexcept;
float sinhf(float) noexcept;
double cosh(double) noexcept;
float coshf(float) noexcept;
double tanh(double) noexcept;
double asinh(double) noexcept;
float asinhf(float) noexcept;
double acosh(double) noexcept;
float acoshf(float) noexcept;
double atanh(double) noexcept;
float atanhf(float) noexcept;
double erf(double) noexcept;
double erfc(double) noexcept;
float erfcf(float) noexcept;
double tgamma(double) noexcept;
float tgammaf(float) noexcept;
double lgamma(double) noexcept;
float lgammaf(float) noexcept;
double j0(double) noexcept;
double j1(double) noexcept;
double y0(double) noexcept;
double y1(double) noexcept;
double floor(double) noexcept;
float floorf(float) noexcept;
double ceil(double) noexcept;
float ceilf(float) noexcept;
double trunc(double) noexcept;
float truncf(float) noexcept;
double round(double) noexcept;
float roundf(float) noexcept;
double rint(double) noexcept;
float rintf(float) noexcept;
double nearbyint(double) noexcept;
float nearbyintf(float) noexcept;
double fabs(double) noexcept;
float fabsf(float) noexcept;
double pow(double, double) noexcept;
float powf(float, float) noexcept;
double atan2(double, double) noexcept;
float atan2f(float, float) noexcept;
double fmod(double, double) noexcept;
float fmodf(float, float) noexcept;
double remainder(double, double) noexcept;
float remainderf(float, float) noexcept;
double fmax(double, double) noexcept;
double fmin(double, double) noexcept;
double hypot(double, double) noexcept;
float hypotf(float, float) noexcept;
double copysign(double, double) noexcept;
float copysignf(float, float) noexcept;
double fdim(double, double) noexcept;
float fdimf(float, float) noexcept;
double nextafter(double, double) noexcept;
float nextafterf(float, float) noexcept;
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
double ldexp(double, int) noexcept;
float ldexpf(float, int) noexcept;
long lrint(double) noexcept;
long lrintf(float) noexcept;
int abs(int) noexcept;
}

#include "sim_functions.h"
#define expf(x) sim_expf(x)
#define exp2f(x) sim_exp2f(x)
#define tanhf(x) sim_tanhf(x)
#define erff(x) sim_erff(x)
#define fmaxf(x, y) sim_fmaxf(x, y)
#define fminf(x, y) sim_fminf(x, y)

// Overloads by type, as CUDA has them without any header.
static inline float exp(float x) { return expf(x); }
static inline float exp2(float x) { return exp2f(x); }
static inline float expm1(float x) { return expm1f(x); }
static inline float log(float x) { return logf(x); }
static inline float log2(float x) { return log2f(x); }
static inline float log10(float x) { return log10f(x); }
static inline float log1p(float x) { return log1pf(x); }
static inline float sqrt(float x) { return sqrtf(x); }
static inline float cbrt(float x) { return cbrtf(x); }
static inline float sin(float x) { return sinf(x); }
static inline float cos(float x) { return cosf(x); }
static inline float tan(float x) { return tanf(x); }
static inline float asin(float x) { return asinf(x); }
static inline float acos(float x) { return acosf(x); }
static inline float atan(float x) { return atanf(x); }
static inline float sinh(float x) { return sinhf(x); }
static inline float cosh(float x) { return coshf(x); }
static inline float tanh(float x) { return tanhf(x); }
static inline float asinh(float x) { return asinhf(x); }
static inline float acosh(float x) { return acoshf(x); }
static inline float atanh(float x) { return atanhf(x); }
static inline float erf(float x) { return erff(x); }
static inline float erfc(float x) { return erfcf(x); }
static inline float tgamma(float x) { return tgammaf(x); }
static inline float lgamma(float x) { return lgammaf(x); }
static inline float floor(float x) { return floorf(x); }
static inline float ceil(float x) { return ceilf(x); }
static inline float trunc(float x) { return truncf(x); }
static inline float round(float x) { return roundf(x); }
static inline float rint(float x) { return rintf(x); }
static inline float nearbyint(float x) { return nearbyintf(x); }
static inline float fabs(float x) { return fabsf(x); }
static inline float pow(float x, float y) { return powf(x, y); }
static inline float atan2(float x, float y) { return atan2f(x, y); }
static inline float fmod(float x, float y) { return fmodf(x, y); }
static inline float remainder(float x, float y) { return remainderf(x, y); }
static inline float fmax(float x, float y) { return fmaxf(x, y); }
static inline float fmin(float x, float y) { return fminf(x, y); }
static inline float hypot(float x, float y) { return hypotf(x, y); }
static inline float copysign(float x, float y) { return copysignf(x, y); }
static inline float fdim(float x, float y) { return fdimf(x, y); }
static inline float nextafter(float x, float y) { return nextafterf(x, y); }
static inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
static inline float abs(float x) { return __builtin_fabsf(x); }
static inline double abs(double x) { return __builtin_fabs(x); }
static inline long long abs(long long x) { return x < 0 ? -x : x; }
static inline long long llabs(long long x) { return x < 0 ? -x : x; }
static inline bool isnan(float x) { return __builtin_isnan(x); }
static inline bool isnan(double x) { return __builtin_isnan(x); }
static inline bool isinf(float x) { return __builtin_isinf(x); }
static inline bool isinf(double x) { return __builtin_isinf(x); }
static inline bool isfinite(float x) { return __builtin_isfinite(x); }
static inline bool isfinite(double x) { return __builtin_isfinite(x); }
static inline bool signbit(float x) { return __builtin_signbit(x); }
static inline bool signbit(double x) { return __builtin_signbit(x); }

// min and max: by type, and the floating ones drop a NaN as fminf and fmaxf do.
template <class T>
static inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static inline T max(T a, T b) {
  return a < b ? b : a;
}
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline unsigned umin(unsigned a, unsigned b) { return b < a ? b : a; }
static inline unsigned umax(unsigned a, unsigned b) { return a < b ? b : a; }

// Functions that only CUDA has.
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
static inline float exp10f(float x) { return (float)pow(10.0, (double)x); }
// The x with erfc(x) = y for y up to 1, by Newton's method for log(erfc(x)) = log(y).
static inline double erfcinv_below(double y) {
  if (y == 0.0) return __builtin_inf();
  double x = sqrt(-log(y));
  for (int k = 0; k < 12; ++k) {
    const double tail = erfc(x);
    if (tail == 0.0) {
      x -= 0.25;
      continue;
    }
    x += (log(tail) - log(y)) * tail * exp(x * x) * 0.88622692545275801365;
  }
  return x;
}
static inline double erfinv(double x) {
  const double size = fabs(x);
  if (!(size <= 1.0)) return __builtin_nan("");
  if (size > 0.5) return copysign(erfcinv_below(1.0 - size), x);
  double z = x * 0.88622692545275801365;
  for (int k = 0; k < 5; ++k) z -= (erf(z) - x) * exp(z * z) * 0.88622692545275801365;
  return z;
}
static inline double normcdfinv(double p) {
  if (!(p >= 0.0 && p <= 1.0)) return __builtin_nan("");
  if (p > 0.25 && p < 0.75) return 1.41421356237309504880 * erfinv(2.0 * p - 1.0);
  return 1.41421356237309504880 * (p < 0.5 ? -erfcinv_below(2.0 * p) : erfcinv_below(2.0 * (1.0 - p)));
}
static inline float normcdff(float x) { return 0.5f * erfcf(-0.70710678118654752f * x); }
static inline float sinpif(float x) { return (float)sin(3.14159265358979323846 * fmod((double)x, 2.0)); }
static inline float cospif(float x) { return (float)cos(3.14159265358979323846 * fmod((double)x, 2.0)); }
static inline void sincosf(float x, float* s, float* c) {
  *s = sinf(x);
  *c = cosf(x);
}
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return rsqrtf(x); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
// A volatile result keeps the compiler from contracting these into a fused multiply-add.
static inline float __fmul_rn(float a, float b) {
  volatile float r = a * b;
  return r;
}
static inline float __fadd_rn(float a, float b) {
  volatile float r = a + b;
  return r;
}
static inline float __fsub_rn(float a, float b) {
  volatile float r = a - b;
  return r;
}

// Bit casts, integer conversions and bit counting.
#define SIM_BIT_CAST(NAME, FROM, TO)             \
  static inline TO NAME(FROM x) {                \
    TO r;                                        \
    __builtin_memcpy(&r, &x, sizeof(r));         \
    return r;                                    \
  }
SIM_BIT_CAST(__float_as_uint, float, unsigned)
SIM_BIT_CAST(__uint_as_float, unsigned, float)
SIM_BIT_CAST(__float_as_int, float, int)
SIM_BIT_CAST(__int_as_float, int, float)
SIM_BIT_CAST(__double_as_longlong, double, long long)
SIM_BIT_CAST(__longlong_as_double, long long, double)
#undef SIM_BIT_CAST
// Out-of-range values saturate and NaN becomes 0, as the GPU's conversions do.
static inline int sim_to_int(float x) {
  return isnan(x) ? 0 : x >= 2147483648.0f ? 2147483647 : x <= -2147483648.0f ? -2147483647 - 1 : (int)x;
}
static inline int __float2int_rn(float x) { return sim_to_int(rintf(x)); }
static inline int __float2int_rz(float x) { return sim_to_int(x); }
static inline int __float2int_rd(float x) { return sim_to_int(floorf(x)); }
static inline int __float2int_ru(float x) { return sim_to_int(ceilf(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long pair = (unsigned long long)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i), byte = (unsigned)(pair >> (8 * (pick & 7))) & 0xffu;
    r |= (pick & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return (unsigned)((((unsigned long long)hi << 32 | lo) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return (unsigned)(((unsigned long long)hi << 32 | lo) >> (shift & 31));
}
static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += (int)(signed char)(a >> (8 * i)) * (int)(signed char)(b >> (8 * i));
  return c;
}
