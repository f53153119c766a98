// Special functions, in f64 for all types: one implementation each, right to the last bits of f32. No inline PTX.
#pragma once

namespace special {

constexpr double PI = 3.14159265358979323846;
__device__ inline double infinity() { return (double)INFINITY; }
__device__ inline double undefined() { return (double)NAN; }

// ------------------------------------------------------------------------------------------ the gamma function's kin

// Hurwitz's zeta function: terms up to 10, the rest by Euler's and Maclaurin's formula with B(2j) / (2j)!.
__device__ inline double zeta(double s, double q) {
  if (s == 1.0) return infinity();
  if (!(s > 1.0) || q != q) return undefined();
  if (q <= 0.0 && q == floor(q)) return infinity();
  if (q <= 0.0 && s != floor(s)) return undefined();
  double sum = 0.0, a = q;
  for (; a < 10.0; a += 1.0) sum += pow(a, -s);
  const double last = pow(a, -s);
  if (last == 0.0) return sum;
  constexpr double weights[] = {
      0.08333333333333333,     -0.001388888888888889,  3.306878306878307e-05,  -8.267195767195768e-07,
      2.08767569878681e-08,    -5.284190138687493e-10, 1.3382536530684679e-11, -3.3896802963225827e-13,
      8.586062056277845e-15,   -2.174868698558062e-16};
  sum += last * (a / (s - 1.0) + 0.5);
  double factor = s / a;  // s (s + 1) … (s + 2j - 2) / a^(2j - 1)
  for (int j = 0; j < 10; ++j) {
    sum += last * factor * weights[j];
    factor *= ((s + 2 * j + 1) / a) * ((s + 2 * j + 2) / a);
  }
  return sum;
}

// The logarithmic derivative of the gamma function: reflected, raised to 10, then Stirling's series with B(2j) / 2j.
__device__ inline double digamma(double x) {
  if (x == 0.0) return copysign(infinity(), -x);
  if (x < 0.0 && x == floor(x)) return undefined();
  double result = 0.0;
  if (x < 0.0) {
    result = -PI / tan(PI * fmod(x, 1.0));
    x = 1.0 - x;
  }
  for (; x < 10.0; x += 1.0) result -= 1.0 / x;
  if (x == infinity()) return infinity();
  constexpr double weights[] = {0.08333333333333333, -0.008333333333333333, 0.003968253968253968, -0.004166666666666667,
                                0.007575757575757576, -0.021092796092796094, 0.08333333333333333};
  const double inverse = 1.0 / (x * x);
  double series = 0.0, power = inverse;
  for (int j = 0; j < 7; ++j, power *= inverse) series += weights[j] * power;
  return result + log(x) - 0.5 / x - series;
}

// The n-th derivative of digamma.
__device__ inline double polygamma(double n, double x) {
  if (n == 0.0) return digamma(x);
  const double size = exp(lgamma(n + 1.0)) * zeta(n + 1.0, x);
  return fmod(n, 2.0) != 0.0 ? size : -size;
}

// The part of the gamma integral below (``upper``: above) x: a series left of the maximum, a continued fraction right.
__device__ inline double incomplete_gamma(double a, double x, bool upper) {
  if (!(a >= 0.0) || !(x >= 0.0) || (a == 0.0 && x == 0.0) || (a == infinity() && x == infinity())) return undefined();
  if (x == 0.0 || a == infinity()) return upper ? 1.0 : 0.0;
  if (a == 0.0 || x == infinity()) return upper ? 0.0 : 1.0;
  const double scale = exp(a * log(x) - x - lgamma(a));
  if (x < a + 1.0) {
    double term = 1.0 / a, sum = term;
    for (double k = a + 1.0; term > sum * 1e-17; k += 1.0) sum += term *= x / k;
    return upper ? 1.0 - scale * sum : scale * sum;
  }
  double b = x + 1.0 - a, c = 1e300, d = 1.0 / b, h = d;  // Lentz's method
  for (int k = 1; k < 100000; ++k) {
    const double an = k * (a - k);
    b += 2.0;
    d = an * d + b;
    c = b + an / c;
    d = 1.0 / (d == 0.0 ? 1e-300 : d);
    const double change = c * d;
    h *= change;
    if (fabs(change - 1.0) < 1e-16) break;
  }
  return upper ? scale * h : 1.0 - scale * h;
}
__device__ inline double igamma(double a, double x) { return incomplete_gamma(a, x, false); }
__device__ inline double igammac(double a, double x) { return incomplete_gamma(a, x, true); }

// -------------------------------------------------------------------------------------------- the error function's kin

// exp(x^2) erfc(x): a product, or the continued fraction of what is left for large x.
__device__ inline double erfcx(double x) {
  if (x < 6.0) return x < -27.0 ? infinity() : exp(x * x) * erfc(x);
  double fraction = x;
  for (int k = 24; k > 0; --k) fraction = x + 0.5 * k / fraction;
  return 0.56418958354775628695 / fraction;
}

// The quantile of the normal distribution.
__device__ inline double ndtri(double p) { return p >= 0.0 && p <= 1.0 ? normcdfinv(p) : undefined(); }

// -------------------------------------------------------------------------------------------------- Bessel functions

// exp(-|x|) times the modified function of the first kind of the order 0 or 1: its power series, or Hankel's.
template <int ORDER> __device__ inline double scaled_i(double x) {
  const double size = fabs(x);
  if (x != x) return x;
  double sum = 1.0, term = 1.0;
  if (size < 25.0) {
    const double square = 0.25 * size * size;
    for (int k = 1; term > sum * 1e-17; ++k) sum += term *= square / (k * (double)(k + ORDER));
    sum *= exp(-size) * (ORDER ? 0.5 * size : 1.0);
  } else {
    for (int k = 1; k < 25; ++k) sum += term *= ((2 * k - 1) * (2 * k - 1) - 4 * ORDER) / (8.0 * k * size);
    sum /= sqrt(2.0 * PI) * sqrt(size);
  }
  return ORDER && x < 0.0 ? -sum : sum;
}
template <int ORDER> __device__ inline double unscaled_i(double x) {
  const double scaled = scaled_i<ORDER>(x), half = exp(0.5 * fabs(x));  // whose square may be too large
  if (scaled == 0.0 && x != 0.0) return ORDER ? x : fabs(x);  // infinite
  return scaled * half * half;
}
__device__ inline double i0(double x) { return unscaled_i<0>(x); }
__device__ inline double i0e(double x) { return scaled_i<0>(x); }
__device__ inline double i1(double x) { return unscaled_i<1>(x); }
__device__ inline double i1e(double x) { return scaled_i<1>(x); }

// exp(x) times that of the second kind: the trapezoidal rule for the integral of exp(x - x cosh t) cosh(order t).
__device__ inline double scaled_k(double order, double x) {
  if (!(x >= 0.0)) return undefined();
  if (x == 0.0) return infinity();
  if (x > 1e8) return sqrt(0.5 * PI / x);  // a step would be lost beside 1
  const double step = x < 4.0 ? 0.125 : 0.25 / sqrt(x);
  double sum = 0.5;
  for (double t = step;; t += step) {
    const double half = sinh(0.5 * t), depth = 2.0 * x * half * half;
    if (depth > order * t + 45.0) break;
    sum += exp(-depth) * cosh(order * t);
  }
  return sum * step;
}
__device__ inline double k0e(double x) { return scaled_k(0.0, x); }
__device__ inline double k1e(double x) { return scaled_k(1.0, x); }
__device__ inline double k0(double x) { return x == infinity() ? 0.0 : scaled_k(0.0, x) * exp(-x); }
__device__ inline double k1(double x) { return x == infinity() ? 0.0 : scaled_k(1.0, x) * exp(-x); }

// Airy's function: its power series near 0, else by K(1/3) to the right and by its asymptotic series to the left.
__device__ inline double airy_ai(double x) {
  if (x != x) return x;
  const double size = fabs(x), root = sqrt(size), phase = size * root * (2.0 / 3.0);
  if (x == -infinity()) return undefined();
  if (x > 1.0) return phase > 750.0 ? 0.0 : root * exp(-phase) * scaled_k(1.0 / 3.0, phase) / (PI * 1.7320508075688772);
  if (x > -7.0) {
    double f = 1.0, g = x, a = 1.0, b = x;
    for (int k = 1; k < 60; ++k) {
      a *= x * x * x / ((3 * k - 1) * (3.0 * k));
      b *= x * x * x / ((3 * k) * (3.0 * k + 1));
      f += a;
      g += b;
    }
    return 0.35502805388781723926 * f - 0.25881940379280679841 * g;
  }
  double even = 1.0, odd = 0.0, term = 1.0;
  for (int k = 1; k < 14; ++k) {
    term *= (6 * k - 5) * (6.0 * k - 1) / (72.0 * k * phase);
    const double signed_term = k & 2 ? -term : term;
    if (k & 1) odd += signed_term; else even += signed_term;
  }
  const double angle = phase + 0.25 * PI;
  return (sin(angle) * even - cos(angle) * odd) / (sqrt(PI) * sqrt(root));
}

// -------------------------------------------------------------------------------------------- orthogonal polynomials

// p(0) = 1, p(1) = a x + b, p(k) = ((a(k) x + b(k)) p(k - 1) - c(k) p(k - 2)) / d(k)
template <class First, class Next> __device__ inline double polynomial(double x, double n, First first, Next next) {
  if (n != n) return undefined();
  if (!(n > -1.0 && n < 9e18)) return 0.0;
  double before = 1.0, now = first(x);
  if (n < 1.0) return 1.0;
  for (double k = 2.0; k <= n && now == now; k += 1.0) {
    const double after = next(x, k, now, before);
    before = now;
    now = after;
  }
  return now;
}
template <class First> __device__ inline double chebyshev(double x, double n, First first) {
  return polynomial(x, n, first, [](double y, double, double p, double q) { return 2.0 * y * p - q; });
}
__device__ inline double chebyshev_t(double x, double n) {
  return chebyshev(x, n, [](double y) { return y; });
}
__device__ inline double chebyshev_u(double x, double n) {
  return chebyshev(x, n, [](double y) { return 2.0 * y; });
}
__device__ inline double chebyshev_v(double x, double n) {
  return chebyshev(x, n, [](double y) { return 2.0 * y - 1.0; });
}
__device__ inline double chebyshev_w(double x, double n) {
  return chebyshev(x, n, [](double y) { return 2.0 * y + 1.0; });
}
__device__ inline double hermite_h(double x, double n) {
  return polynomial(x, n, [](double y) { return 2.0 * y; },
                    [](double y, double k, double p, double q) { return 2.0 * (y * p - (k - 1.0) * q); });
}
__device__ inline double hermite_he(double x, double n) {
  return polynomial(x, n, [](double y) { return y; },
                    [](double y, double k, double p, double q) { return y * p - (k - 1.0) * q; });
}
__device__ inline double laguerre_l(double x, double n) {
  return polynomial(x, n, [](double y) { return 1.0 - y; }, [](double y, double k, double p, double q) {
    return ((2.0 * k - 1.0 - y) * p - (k - 1.0) * q) / k;
  });
}
__device__ inline double legendre_p(double x, double n) {
  return polynomial(x, n, [](double y) { return y; }, [](double y, double k, double p, double q) {
    return ((2.0 * k - 1.0) * y * p - (k - 1.0) * q) / k;
  });
}

}  // namespace special
