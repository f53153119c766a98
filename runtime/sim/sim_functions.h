// Frequent functions of f32 without branches and calls, so that the compiler makes vectors of the loops round them.
//
// They are computed in f64 and rounded once: off by at most 0.51 units in the last place, subnormal results included. The
// polynomials are Chebyshev fits of the functions, of a degree that makes the relative error less than 1e-9.
#pragma once
#include "sim_host.h"

// ``y`` times 2^n, where n is in the last bits of ``shifted``: a whole number plus 1.5 * 2^52.
SIM_INLINE f64 sim_times_power(f64 y, f64 shifted) {
  u64 bits;
  f64 power;
  __builtin_memcpy(&bits, &shifted, 8);
  bits = (bits << 52) + 0x3ff0000000000000ull;
  __builtin_memcpy(&power, &bits, 8);
  return y * power;
}

// e^r for r in [-ln(2) / 2, ln(2) / 2].
SIM_INLINE f64 sim_exp_near_0(f64 r) {
  f64 y = 0.00019907569310848288;
  y = y * r + 0.0013948578326459795;
  y = y * r + 0.008333283538708528;
  y = y * r + 0.041666218319291945;
  y = y * r + 0.16666666786308587;
  y = y * r + 0.5000000107729166;
  y = y * r + 0.999999999995509;
  return y * r + 0.9999999999595618;
}

constexpr f64 SIM_WHOLE = 0x1.8p52, SIM_LN2 = 0.69314718055994530942;

// Beyond these bounds results are 0 or infinity in f32; NaN passes through.
SIM_INLINE f64 sim_bounded(f64 x, f64 low, f64 high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// e^x for x of moderate size.
SIM_INLINE f64 sim_exp_f64(f64 x) {
  const f64 shifted = x * (1 / SIM_LN2) + SIM_WHOLE;
  return sim_times_power(sim_exp_near_0(x - (shifted - SIM_WHOLE) * SIM_LN2), shifted);
}
SIM_INLINE f32 sim_expf(f32 x) { return (f32)sim_exp_f64(sim_bounded(x, -110, 100)); }

SIM_INLINE f32 sim_exp2f(f32 x) {
  const f64 bounded = sim_bounded(x, -160, 140), shifted = bounded + SIM_WHOLE;
  return (f32)sim_times_power(sim_exp_near_0((bounded - (shifted - SIM_WHOLE)) * SIM_LN2), shifted);
}

// (e^2x - 1) / (e^2x + 1), and the first terms of the series where that would cancel.
SIM_INLINE f32 sim_tanhf(f32 given) {
  const f64 x = sim_bounded(given, -20, 20), z = x * x, power = sim_exp_f64(2 * x);
  const f64 series = x * (1 + z * (z * (2.0 / 15) - 1.0 / 3)), ratio = (power - 1) / (power + 1);
  return (f32)(z < 4e-4 ? series : ratio);
}

// x times a polynomial in x^2, which [-4, 4] takes to [-1, 1]; beyond them the result is 1 or -1.
SIM_INLINE f32 sim_erff(f32 given) {
  const f64 x = sim_bounded(given, -4, 4), u = x * x * 0.125 - 1;
  f64 y = 9.403812402468554e-05;
  y = y * u - 0.00024642199980983505;
  y = y * u + 0.00017322967630806508;
  y = y * u - 0.00032551968560941486;
  y = y * u + 0.001410152598130207;
  y = y * u - 0.0029097128615879733;
  y = y * u + 0.0047749464891676035;
  y = y * u - 0.008384044356366693;
  y = y * u + 0.014381038603613836;
  y = y * u - 0.022562558254619065;
  y = y * u + 0.033053291738967594;
  y = y * u - 0.04574431268539967;
  y = y * u + 0.05988782957568627;
  y = y * u - 0.07473048679557817;
  y = y * u + 0.09020894134343026;
  y = y * u - 0.1077102928865076;
  y = y * u + 0.13167511777580795;
  y = y * u - 0.17657623580039056;
  y = y * u + 0.35353099564340495;
  return (f32)(x * y);
}

// The larger and the smaller number; NaN only if both are.
SIM_INLINE f32 sim_fmaxf(f32 a, f32 b) { return a < b || a != a ? b : a; }
SIM_INLINE f32 sim_fminf(f32 a, f32 b) { return a > b || a != a ? b : a; }
