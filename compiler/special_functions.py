"""Special functions in numpy, in f64: the meaning of what ``codegen/include/special.cuh`` computes.

Other formulas are used here than there: tables of math's functions, integrals instead of series, series instead of
integrals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., np.ndarray]
_AT_ONCE = 1024


def _each(fn: Callable[[float], float]) -> Function:
    """``fn`` of each element; where it has a pole, infinity."""

    def one(x: float) -> float:
        try:
            return fn(x)
        except (ValueError, OverflowError):
            return math.inf

    return np.vectorize(one, otypes=[np.float64])


_lgamma = _each(math.lgamma)
_erfc = _each(math.erfc)


def _where(*cases: tuple[Any, Any], otherwise: Any) -> np.ndarray:
    return np.select([c for c, _ in cases], [v for _, v in cases], otherwise)


# ------------------------------------------------------------------------------------------ the gamma function's kin


def _digamma(x: np.ndarray) -> np.ndarray:
    """Reflected, then Gauss's integral by way of a shift by 40 and the first terms of the asymptotic series."""
    left = x < 0
    y = np.where(left, 1 - x, x)
    shifted = sum((-1 / (y + k) for k in range(40)), np.zeros_like(y))
    z = y + 39.5  # log(z) is digamma(z + 1/2) up to 1 / (24 z^2)
    tail = np.log(z) + 1 / (24 * z**2) - 7 / (960 * z**4) + 31 / (8064 * z**6)
    found = np.where(np.isinf(y), y, tail + shifted) - np.where(left, np.pi / np.tan(np.pi * np.fmod(x, 1)), 0)
    found = np.where(left & (x == np.floor(x)), np.nan, found)
    return np.where(x == 0, np.copysign(np.inf, -x), found)


def _zeta(s: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The terms up to 80, and the rest by the midpoint rule with corrections."""
    s, q = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(q, np.float64))
    steps = np.clip(np.ceil(80 - np.where(np.isfinite(q), q, 80)), 0, 1e6)
    total = np.zeros(s.shape)
    for k in range(int(steps.max(initial=0))):
        total += np.where(k < steps, (q + k) ** -s, 0)
    m = q + steps - 0.5
    tail = m ** (1 - s) / (s - 1) - s * m ** (-s - 1) / 24 + 7 * s * (s + 1) * (s + 2) * m ** (-s - 3) / 5760
    five = s * (s + 1) * (s + 2) * (s + 3) * (s + 4)
    tail = tail - 31 * five * m ** (-s - 5) / 967680 + 127 * five * (s + 5) * (s + 6) * m ** (-s - 7) / 154828800
    pole, invalid = (q <= 0) & (q == np.floor(q)), (q <= 0) & (s != np.floor(s))
    found = np.where(q == np.inf, 0.0, total + tail)
    return _where(
        (s == 1, np.inf), (~(s > 1) | np.isnan(q), np.nan), (pole, np.inf), (invalid, np.nan), otherwise=found
    )


def _polygamma(n: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, x = np.broadcast_arrays(n, x)
    size = np.exp(_lgamma(n + 1)) * _zeta(n + 1, x)
    return np.where(n == 0, _digamma(x), np.where(np.fmod(n, 2) != 0, size, -size))


def _igamma(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _gamma_parts(a, x)[0]


def _igammac(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _gamma_parts(a, x)[1]


def _gamma_parts(a: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of the gamma integral below and above x, by the trapezoidal rule over ``t = x exp(-+u)``."""
    a, x = np.broadcast_arrays(a, x)
    inside = (a > 0) & (x > 0) & np.isfinite(a) & np.isfinite(x)
    b, y = np.where(inside, a, 1.0), np.where(inside, x, 1.0)
    # the double exponential rule: u = exp(v - exp(-v)), whose weight vanishes at both ends
    v = np.linspace(-4, 6, 2001).reshape(-1, *(1,) * b.ndim)
    u, weight = np.exp(v - np.exp(-v)), (1 + np.exp(-v)) * (v[1] - v[0] if v.size > 1 else 1)
    scale = b * np.log(y) - _lgamma(b)
    below = (np.exp(scale - b * u - y * np.exp(-u)) * u * weight).sum(0)
    above = (np.exp(scale + b * u - y * np.exp(np.minimum(u, 700))) * u * weight).sum(0)
    bad = ~(a >= 0) | ~(x >= 0) | ((a == 0) & (x == 0)) | (np.isinf(a) & np.isinf(x))
    none, everything = (x == 0) | np.isinf(a), (a == 0) | np.isinf(x)
    cases = ((bad, np.nan), (none, 0.0), (everything, 1.0))
    low = _where(*cases, otherwise=below)
    return low, _where((bad, np.nan), (none, 1.0), (everything, 0.0), otherwise=above)


# --------------------------------------------------------------------------------------------- the error function's kin


def _erfcx(x: np.ndarray) -> np.ndarray:
    """``exp(x^2) erfc(x)``, by the asymptotic series where erfc vanishes."""
    far = np.maximum(np.abs(x), 1.0)
    large = (1 - 0.5 / far**2 + 0.75 / far**4 - 1.875 / far**6 + 6.5625 / far**8) / (far * math.sqrt(math.pi))
    return np.asarray(np.where(x > 20, large, np.exp(np.minimum(x * x, 730)) * _erfc(np.minimum(x, 20))))


def _bisected(fn: Function, wanted: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where the increasing ``fn`` has the values ``wanted``."""
    a, b = np.full(wanted.shape, low), np.full(wanted.shape, high)
    for _ in range(70):
        middle = (a + b) / 2
        above = fn(middle) > wanted
        a, b = np.where(above, a, middle), np.where(above, middle, b)
    return np.asarray((a + b) / 2)


def _erfinv(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    near = _bisected(_each(math.erf), np.minimum(size, 0.5), 0.0, 1.0)
    far = _bisected(lambda z: -_erfc(z), -np.clip(1 - size, 1e-300, 1), 0.0, 27.0)
    near = np.where(size < 1e-9, size * math.sqrt(math.pi) / 2, near)
    found = np.copysign(np.where(size <= 0.5, near, np.where(size == 1, np.inf, far)), x)
    return np.where(size <= 1, found, np.nan)


def _ndtri(p: np.ndarray) -> np.ndarray:
    tail = 2 * np.minimum(p, 1 - p)
    z = math.sqrt(2) * _bisected(lambda z: -_erfc(z), -np.clip(tail, 5e-324, 1), 0.0, 28.0)
    found = np.where(p < 0.5, -np.where(p == 0, np.inf, z), np.where(p == 1, np.inf, z))
    found = np.where(np.abs(p - 0.5) < 0.2, math.sqrt(2) * _erfinv(2 * p - 1), found)
    return np.where((p >= 0) & (p <= 1), found, np.nan)


# -------------------------------------------------------------------------------------------------- Bessel functions


def _scaled_i(order: int, x: np.ndarray) -> np.ndarray:
    """The mean of ``exp(|x| (cos t - 1)) cos(order t)`` over a period; of large x Hankel's series."""
    t = (np.arange(400) + 0.5) * math.pi / 400
    size = np.abs(x)
    mean = (np.exp(-np.minimum(size, 700.0)[..., None] * (1 - np.cos(t))) * np.cos(order * t)).mean(-1)
    m, total, term = 4 * order * order, np.ones(x.shape), np.ones(x.shape)
    for k in range(1, 8):
        term = -term * (m - (2 * k - 1) ** 2) / (8 * k * np.maximum(size, 1.0))
        total = total + term
    found = np.where(size > 700, total / math.sqrt(2 * math.pi) / np.sqrt(np.maximum(size, 1.0)), mean)
    found = np.where(size == np.inf, 0.0, found)
    # near 0 the mean of the order 1 cancels
    if order:
        found = np.where(size < 0.1, size / 2 * (1 + size**2 / 8 + size**4 / 192) * np.exp(-size), found)
    return np.where(np.isnan(x), x, np.where(x < 0, -found, found) if order else found)


def _unscaled_i(order: int, x: np.ndarray) -> np.ndarray:
    half = np.exp(np.abs(x) / 2)
    found = _scaled_i(order, x) * half * half
    return np.where(np.isinf(x), x if order else np.abs(x), found)


def _scaled_k(order: int, x: np.ndarray) -> np.ndarray:
    """A series with a logarithm below 1, the integral of ``exp(-u^2)`` times a root above."""
    small = np.where((x > 0) & (x < 1), x, 1.0)
    log, quarter = np.log(small / 2) + 0.57721566490153286061, small**2 / 4
    total, harmonic, term = np.zeros(x.shape), 0.0, np.ones(x.shape)
    bessel = np.zeros(x.shape)
    for k in range(20):
        term = term * quarter / (k * (k + order)) if k else term
        first = harmonic if not order else harmonic + 1 / (2 * (k + 1))
        bessel, total = bessel + term, total + term * first
        harmonic += 1 / (k + 1)
    if order:
        series = 1 / small + small / 2 * (log * bessel - total)
    else:
        series = total - log * bessel
    large = np.where(x >= 1, np.minimum(x, 1e300), 1.0)
    u = np.arange(1, 700) * 0.01
    root = 1 + u * u / (2 * large[..., None])
    weights = np.exp(-u * u) * (root**-0.5 if not order else 2 * u * u * root**0.5)
    integral = 2 * 0.01 * (weights.sum(-1) + (0.5 if not order else 0.0)) / np.sqrt(2 * large)
    found = np.where(x < 1, series * np.exp(small), integral)
    return _where((x == 0, np.inf), (~(x > 0), np.nan), (x == np.inf, 0.0), otherwise=found)


def _k(order: int, x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, _scaled_k(order, x) * np.exp(-np.abs(x)), _scaled_k(order, x))


def _bessel_j(order: int, x: np.ndarray) -> np.ndarray:
    """Bessel's integral by the trapezoidal rule; Hankel's series beyond 200."""
    t = (np.arange(512) + 0.5) * math.pi / 512
    near = np.clip(np.where(np.isnan(x), 0, x), -200, 200)
    mean = np.cos(order * t - near[..., None] * np.sin(t)).mean(-1)
    return np.where(np.abs(x) > 200, _hankel(order, x)[0], np.where(np.isnan(x), x, mean))


def _hankel(order: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.maximum(np.abs(x), 1.0)
    even, odd, term = np.ones(x.shape), np.zeros(x.shape), np.ones(x.shape)
    for k in range(1, 10):
        term = term * (4 * order * order - (2 * k - 1) ** 2) / (8 * k * size)
        sign = -1 if k & 2 else 1
        even, odd = (even, odd + sign * term) if k & 1 else (even + sign * term, odd)
    angle, root = size - (2 * order + 1) * math.pi / 4, np.sqrt(2 / (math.pi * size))
    first = root * (np.cos(angle) * even - np.sin(angle) * odd)
    second = root * (np.sin(angle) * even + np.cos(angle) * odd)
    first = np.where(np.isinf(x), 0.0, np.where((x < 0) & (order == 1), -first, first))
    return first, np.where(np.isinf(x), 0.0, second)


def _bessel_y(order: int, x: np.ndarray) -> np.ndarray:
    """Neumann's series of functions of the first kind; Hankel's series beyond 200."""
    y = np.clip(np.where(x > 0, x, 1.0), 1e-300, 200.0)
    log = np.log(y / 2) + 0.57721566490153286061
    total = np.zeros(x.shape)
    for k in range(1, 130):
        weight = (-1) ** k / k if not order else (-1) ** k * (2 * k + 1) / (k * (k + 1))
        total = total + weight * _bessel_j(2 * k + order, y)
    if order:
        found = 2 / math.pi * ((log - 1) * _bessel_j(1, y) - _bessel_j(0, y) / y - total)
    else:
        found = 2 / math.pi * (log * _bessel_j(0, y) - 2 * total)
    found = np.where(x > 200, _hankel(order, x)[1], found)
    return _where((x == 0, -np.inf), (~(x > 0), np.nan), otherwise=found)


def _airy_ai(x: np.ndarray) -> np.ndarray:
    """The integral of ``exp(i (t^3 / 3 + x t)) / 2 pi`` along a line above the real axis, where it decays.

    Where x is below -8 it cancels: there an asymptotic series is exact enough.
    """
    y = np.clip(np.where(np.isfinite(x), x, 0), -8, 110)[..., None]
    z = np.arange(-6000, 6001) * 0.0025 + 1j * np.sqrt(np.maximum(y, 0.5))
    found = (np.exp(1j * (z**3 / 3 + y * z)) * 0.0025).sum(-1).real / (2 * math.pi)
    far = np.maximum(-x, 8.0)
    phase = far**1.5 / 1.5
    amplitude = np.exp(1j * (phase - math.pi / 4))
    weight = np.ones_like(phase)
    total = np.zeros(x.shape, complex)
    for k in range(12):
        total = total + weight * (-1j) ** k
        weight = weight * (k + 1 / 6) * (k + 5 / 6) / (2 * (k + 1) * phase)
    series = (amplitude * total).real / (math.sqrt(math.pi) * far**0.25)
    return np.where(np.isnan(x) | (x == -np.inf), np.nan, np.where(x < -8, series, np.where(x > 110, 0.0, found)))


# -------------------------------------------------------------------------------------------- orthogonal polynomials


def _polynomial(first: Function, step: Callable[..., np.ndarray]) -> Function:
    def values(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        x, n = np.broadcast_arrays(np.asarray(x, np.float64), np.trunc(np.asarray(n, np.float64)))
        rows = [np.ones(x.shape), first(x)]
        most = int(np.max(n, initial=0, where=np.isfinite(n)))
        found = np.where(n < 0, 0.0, np.where(n == 0, 1.0, rows[1]))
        for k in range(2, most + 1):
            rows = [rows[1], step(x, k, rows[1], rows[0])]
            found = np.where(n == k, rows[1], found)
        return np.where(np.isnan(n), np.nan, found)

    return values


def _two(x: np.ndarray, k: int, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.asarray(2 * x * p - q)


UNARY: dict[str, Function] = {
    "erfc": _erfc, "erfcx": _erfcx, "erfinv": _erfinv, "ndtri": _ndtri, "lgamma": _lgamma, "digamma": _digamma,
    "i0": lambda x: _unscaled_i(0, x), "i0e": lambda x: _scaled_i(0, x),
    "i1": lambda x: _unscaled_i(1, x), "i1e": lambda x: _scaled_i(1, x),
    "k0": lambda x: _k(0, x), "k0e": lambda x: _scaled_k(0, x),
    "k1": lambda x: _k(1, x), "k1e": lambda x: _scaled_k(1, x),
    "j0": lambda x: _bessel_j(0, x), "j1": lambda x: _bessel_j(1, x),
    "y0": lambda x: _bessel_y(0, x), "y1": lambda x: _bessel_y(1, x), "airy_ai": _airy_ai,
}  # fmt: skip
BINARY: dict[str, Function] = {
    "zeta": _zeta, "polygamma": _polygamma, "igamma": _igamma, "igammac": _igammac,
    "chebyshev_t": _polynomial(lambda x: x, _two), "chebyshev_u": _polynomial(lambda x: 2 * x, _two),
    "chebyshev_v": _polynomial(lambda x: 2 * x - 1, _two), "chebyshev_w": _polynomial(lambda x: 2 * x + 1, _two),
    "hermite_h": _polynomial(lambda x: 2 * x, lambda x, k, p, q: 2 * x * p - 2 * (k - 1) * q),
    "hermite_he": _polynomial(lambda x: x, lambda x, k, p, q: x * p - (k - 1) * q),
    "laguerre_l": _polynomial(lambda x: 1 - x, lambda x, k, p, q: ((2 * k - 1 - x) * p - (k - 1) * q) / k),
    "legendre_p": _polynomial(lambda x: x, lambda x, k, p, q: ((2 * k - 1) * x * p - (k - 1) * q) / k),
}  # fmt: skip
SPECIAL = frozenset((*UNARY, *BINARY))


def meaning(fn: Function) -> Function:
    """``fn`` computed in f64, of operands and with a result of one float type."""

    def typed(*operands: Any) -> np.ndarray:
        dtype = np.asarray(operands[0]).dtype
        given = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in operands))
        flat, found = [a.reshape(-1) for a in given], np.empty(given[0].size, dtype)
        with np.errstate(all="ignore"):
            for k in range(0, found.size, _AT_ONCE):  # integrals have thousands of terms for each element
                found[k : k + _AT_ONCE] = fn(*(a[k : k + _AT_ONCE] for a in flat))
        return found.reshape(given[0].shape)

    return typed
