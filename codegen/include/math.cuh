// Scalar helpers that expressions print: integer floor division, sign, rounding, and the like. No inline PTX.
#pragma once

// Division that rounds towards minus infinity, and its remainder, which has the divisor's sign.
template <class T> __device__ __forceinline__ T floor_div(T a, T b) {
  const T q = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
template <class T> __device__ __forceinline__ T floor_mod(T a, T b) {
  const T r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
__device__ __forceinline__ float floor_mod(float a, float b) {
  const float r = fmodf(a, b);
  return r != 0.f && (r < 0.f) != (b < 0.f) ? r + b : r;
}
__device__ __forceinline__ double floor_mod(double a, double b) {
  const double r = fmod(a, b);
  return r != 0. && (r < 0.) != (b < 0.) ? r + b : r;
}
// Integer division of what the model computes. By zero it gives 0, as in numpy: a masked read may put a 0 there. Nothing
// overflows: the least number divided by -1 is itself.
template <class T> __device__ __forceinline__ bool is_minus_one(T x) { return T(-1) < T(0) && T(~x) == T(0); }
template <class T> __device__ __forceinline__ T div_or_0(T a, T b) {
  if (b == T(0)) return T(0);
  return is_minus_one(b) ? T(u64(0) - u64(a)) : T(a / b);
}
template <class T> __device__ __forceinline__ T rem_or_0(T a, T b) {
  return b == T(0) || is_minus_one(b) ? T(0) : T(a % b);
}
template <class T> __device__ __forceinline__ T mod_or_0(T a, T b) {
  const T r = rem_or_0(a, b);
  return r != T(0) && ((r < T(0)) != (b < T(0))) ? T(r + b) : r;
}
// C's remainder: the sign of the dividend
template <class T> __device__ __forceinline__ T trunc_mod(T a, T b) { return a % b; }
__device__ __forceinline__ float trunc_mod(float a, float b) { return fmodf(a, b); }
__device__ __forceinline__ double trunc_mod(double a, double b) { return fmod(a, b); }

// NaN propagates, as numpy, ONNX and torch have it; fmaxf would drop it
template <class T> __device__ __forceinline__ T max_nan(T a, T b) { return (a > b || a != a) ? a : b; }
template <class T> __device__ __forceinline__ T min_nan(T a, T b) { return (a < b || a != a) ? a : b; }
template <class T> __device__ __forceinline__ T sign_of(T x) { return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x); }
template <class T> __device__ __forceinline__ T abs_int(T x) { return x < T(0) ? T(-x) : x; }
template <class T> __device__ __forceinline__ T pow_int(T base, T exponent) {
  if (exponent < T(0)) return base == T(1) ? T(1) : (base == T(-1) ? (exponent % 2 ? T(-1) : T(1)) : T(0));
  u64 result = 1, factor = (u64)base;  // unsigned: overflow wraps round
  for (u64 e = (u64)exponent; e; e >>= 1, factor *= factor)
    if (e & 1) result *= factor;
  return T(result);
}
template <class T> __device__ __forceinline__ T gcd_int(T a, T b) {
  while (b != T(0)) {
    const T rest = rem_or_0(a, b);
    a = b;
    b = rest;
  }
  return abs_int(a);
}
// For results that are stored in 16 bits. erf as tanh(x Q(x^2)), Q fitted to atanh(erf(x)) / x: 4e-5 beside tanh's own
// error.
__device__ __forceinline__ float fast_erf(float x) {
  const float s = x * x < 20.0f ? x * x : 20.0f;
  return tanh_approx(x * ((-1.78649e-3f * s + 0.10408121f) * s + 1.12814337f));
}
__device__ __forceinline__ float recip(float x) { return 1.0f / x; }
__device__ __forceinline__ double recip(double x) { return 1.0 / x; }
__device__ __forceinline__ double rsqrt_f64(double x) { return 1.0 / sqrt(x); }
