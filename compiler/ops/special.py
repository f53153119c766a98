"""Special functions as pointwise operators: the kin of gamma, erf and Bessel functions, orthogonal polynomials, gcd.

A kernel computes them in f64, whatever the type (``codegen/include/special.cuh``).
"""

from __future__ import annotations

import numpy as np

from arcweld.compiler.expr import binary, unary
from arcweld.compiler.ops.elementwise import pointwise
from arcweld.compiler.ops.registry import Case
from arcweld.compiler.ops.shapes import INTS
from arcweld.compiler.special_functions import BINARY, UNARY, meaning

_COST = 60
# operator -> (scalar function, the interval from which tests draw)
UNARY_SPECIAL = {
    "Erfc": ("erfc", -3.0, 6.0), "Erfcx": ("erfcx", -2.0, 30.0), "Erfinv": ("erfinv", -0.99, 0.99),
    "Ndtri": ("ndtri", 0.01, 0.99), "Lgamma": ("lgamma", 0.1, 20.0), "Digamma": ("digamma", 2.0, 20.0),
    "BesselI0": ("i0", -5.0, 5.0), "BesselI0e": ("i0e", -60.0, 60.0), "BesselI1": ("i1", 0.1, 5.0),
    "BesselI1e": ("i1e", 0.1, 60.0), "BesselJ0": ("j0", 0.0, 2.0), "BesselJ1": ("j1", 0.1, 3.0),
    "BesselK0": ("k0", 0.1, 9.0), "BesselK0e": ("k0e", 0.1, 90.0), "BesselK1": ("k1", 0.1, 9.0),
    "BesselK1e": ("k1e", 0.1, 90.0), "BesselY0": ("y0", 1.5, 3.0), "BesselY1": ("y1", 2.8, 4.0),
    "AiryAi": ("airy_ai", -2.0, 4.0),
}  # fmt: skip
BINARY_SPECIAL = {
    "Zeta": ("zeta", 1.5, 9.0), "Igamma": ("igamma", 0.5, 6.0),
    "Igammac": ("igammac", 0.5, 6.0), "ChebyshevT": ("chebyshev_t", 2.0, 5.0),
    "ChebyshevU": ("chebyshev_u", 2.0, 5.0), "ChebyshevV": ("chebyshev_v", 2.0, 5.0),
    "ChebyshevW": ("chebyshev_w", 2.0, 5.0), "HermiteH": ("hermite_h", 6.0, 9.0),
    "HermiteHe": ("hermite_he", 6.0, 9.0), "LaguerreL": ("laguerre_l", -3.0, -1.0),
    "LegendreP": ("legendre_p", 1.5, 5.0),
}  # fmt: skip

for _name, (_fn, _low, _high) in UNARY_SPECIAL.items():
    pointwise(
        _name, "x", lambda p, x, fn=_fn: unary(fn, x), lambda p, x, fn=_fn: meaning(UNARY[fn])(x),
        low=_low, high=_high, cost=_COST, test=("f32", "f64"), doc=f"the scalar function {_fn}",
    )  # fmt: skip
for _name, (_fn, _low, _high) in BINARY_SPECIAL.items():
    pointwise(
        _name, "a b", lambda p, a, b, fn=_fn: binary(fn, a, b), lambda p, a, b, fn=_fn: meaning(BINARY[fn])(a, b),
        low=_low, high=_high, cost=2 * _COST, test=("f32", "f64"), doc=f"the scalar function {_fn}",
    )  # fmt: skip
pointwise(
    "Polygamma", "a b", lambda p, a, b: binary("polygamma", a, b),
    lambda p, a, b: meaning(BINARY["polygamma"])(a, b), cost=2 * _COST, test=(),
    cases=[Case((np.arange(6, dtype=t), np.linspace(0.4, 9, 6).astype(t))) for t in (np.float32, np.float64)],
    doc="the scalar function polygamma: the derivative of the order a of digamma",
)  # fmt: skip
pointwise(
    "Gcd", "a b", lambda p, a, b: binary("gcd", a, b), lambda p, a, b: np.gcd(a, b), dtypes=INTS,
    test=("i32", "u8", "i64"), low=0.0, high=99.0, cost=_COST, doc="the greatest common divisor, not negative",
    cases=[Case((np.array([12, -12, 0, 0, 7], np.int32), np.array([18, 18, 5, 0, -21], np.int32)))],
)  # fmt: skip
