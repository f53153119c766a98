"""The special functions of kernels and their numpy meanings, against mpmath with thirty digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from harness import assert_compiles
from test_scalar import kernel_of, operands, run

from arcweld.codegen.templates.pointwise.pointwise import PointwiseTactic, render_pointwise
from arcweld.compiler import expr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.interpret import NUMPY
from arcweld.compiler.special_functions import BINARY, UNARY

Exact = Callable[..., Any]


def _scaled(fn: Exact, sign: int) -> Exact:
    return lambda x: fn(x) * mpmath.exp(sign * abs(x))


def _inverse_erfc(y: Any) -> Any:
    return mpmath.findroot(lambda z: mpmath.log(mpmath.erfc(z) / y), mpmath.sqrt(-mpmath.log(y)))


def _ndtri(p: Any) -> Any:
    if p > 0.5:
        return -_ndtri(1 - p)
    return mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1) if p > 0.01 else -mpmath.sqrt(2) * _inverse_erfc(2 * p)


ONE: dict[str, tuple[Exact, float, float]] = {  # with the interval of its operands
    "erfc": (mpmath.erfc, -5, 9), "erfcx": (lambda x: mpmath.exp(x * x) * mpmath.erfc(x), -5, 40),
    "erfinv": (mpmath.erfinv, -0.9999, 0.9999), "ndtri": (_ndtri, 1e-6, 1 - 1e-6),
    "lgamma": (lambda x: mpmath.log(abs(mpmath.gamma(x))), -20, 60), "digamma": (mpmath.digamma, -20, 60),
    "i0": (lambda x: mpmath.besseli(0, x), -60, 60), "i0e": (_scaled(lambda x: mpmath.besseli(0, x), -1), -90, 90),
    "i1": (lambda x: mpmath.besseli(1, x), -60, 60), "i1e": (_scaled(lambda x: mpmath.besseli(1, x), -1), -90, 90),
    "k0": (lambda x: mpmath.besselk(0, x), 1e-3, 60), "k0e": (_scaled(lambda x: mpmath.besselk(0, x), 1), 1e-3, 900),
    "k1": (lambda x: mpmath.besselk(1, x), 1e-3, 60), "k1e": (_scaled(lambda x: mpmath.besselk(1, x), 1), 1e-3, 900),
    "j0": (lambda x: mpmath.besselj(0, x), -90, 90), "j1": (lambda x: mpmath.besselj(1, x), -90, 90),
    "y0": (lambda x: mpmath.bessely(0, x), 1e-3, 90), "y1": (lambda x: mpmath.bessely(1, x), 1e-3, 90),
    "airy_ai": (mpmath.airyai, -30, 30),
}  # fmt: skip
TWO: dict[str, tuple[Exact, tuple[float, float], tuple[float, float]]] = {
    "zeta": (mpmath.zeta, (1.1, 12), (0.1, 40)),
    "polygamma": (lambda n, x: mpmath.polygamma(int(n), x), (0, 5), (0.1, 40)),
    "igamma": (lambda a, x: mpmath.gammainc(a, 0, x, regularized=True), (0.1, 20), (0.1, 20)),
    "igammac": (lambda a, x: mpmath.gammainc(a, x, mpmath.inf, regularized=True), (0.1, 20), (0.1, 20)),
    "chebyshev_t": (lambda x, n: mpmath.chebyt(int(n), x), (-3, 3), (0, 9)),
    "chebyshev_u": (lambda x, n: mpmath.chebyu(int(n), x), (-3, 3), (0, 9)),
    "chebyshev_v": (lambda x, n: mpmath.chebyu(int(n), x) - mpmath.chebyu(int(n) - 1, x), (-3, 3), (1, 9)),
    "chebyshev_w": (lambda x, n: mpmath.chebyu(int(n), x) + mpmath.chebyu(int(n) - 1, x), (-3, 3), (1, 9)),
    "hermite_h": (lambda x, n: mpmath.hermite(int(n), x), (-3, 3), (0, 9)),
    "hermite_he": (
        lambda x, n: mpmath.hermite(int(n), x / mpmath.sqrt(2)) * mpmath.mpf(2) ** (mpmath.mpf(-int(n)) / 2),
        (-3, 3), (0, 9),
    ),
    "laguerre_l": (lambda x, n: mpmath.laguerre(int(n), 0, x), (-3, 9), (0, 9)),
    "legendre_p": (lambda x, n: mpmath.legendre(int(n), x), (-3, 3), (0, 9)),
}  # fmt: skip
# beside the rounding of the result: where a function has zeros or cancels, errors of its operand count
ABSOLUTE = {"erfinv": 1e-15, "digamma": 1e-13, "lgamma": 1e-13, "j0": 1e-14, "j1": 1e-14, "y0": 1e-13, "y1": 1e-13,
            "airy_ai": 3e-10, "igamma": 1e-13, "igammac": 1e-13}  # fmt: skip


def _values(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Operands that f32 represents, and the exact results."""
    rng = np.random.default_rng(0)
    if name in ONE:
        fn, low, high = ONE[name]
        given = [rng.uniform(low, high, 64).astype(np.float32)]
    else:
        fn, a, b = TWO[name]
        given = [rng.uniform(*a, 64).astype(np.float32), rng.uniform(*b, 64).astype(np.float32)]
        if name == "polygamma":
            given[0] = np.floor(given[0])
    with mpmath.workdps(30):
        exact = [float(fn(*map(mpmath.mpf, map(float, row)))) for row in zip(*given)]
    return given, np.array(exact)


def test_every_function_has_an_oracle() -> None:
    assert set(ONE) == set(UNARY)
    assert set(TWO) == set(BINARY)


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_meaning(name: str) -> None:
    given, exact = _values(name)
    got = NUMPY[name](*(g.astype(np.float64) for g in given))
    np.testing.assert_allclose(got, exact, rtol=1e-11, atol=max(ABSOLUTE.get(name, 0), 1e-300), err_msg=name)


@pytest.mark.parametrize("names", [list(ONE), list(TWO)], ids=["one", "two"])
def test_kernel(names: list[str]) -> None:
    for name in names:
        given, exact = _values(name)
        for dtype, rtol in ((DType.F32, 1.2e-7), (DType.F64, 1e-12)):
            arrays = [g.astype(dtype.numpy) for g in given]
            loads = operands([dtype] * len(given), 64)
            e = expr.unary(name, *loads) if len(loads) == 1 else expr.binary(name, *loads)
            (got,) = run([e], arrays, [dtype] * len(given))
            np.testing.assert_allclose(got, exact, rtol=rtol, atol=ABSOLUTE.get(name, 0), err_msg=f"{name} {dtype}")


_SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0])
EDGES: dict[str, list[float]] = {
    "erfinv": [0, 0, np.nan, np.nan, np.nan, np.inf, -np.inf, np.nan],
    "ndtri": [-np.inf, -np.inf, np.nan, np.nan, np.nan, np.inf, np.nan, np.nan],
    "digamma": [-np.inf, np.inf, np.inf, np.nan, np.nan, -0.5772156649, np.nan, 0.4227843351],
    "erfcx": [1, 1, 0, np.inf, np.nan, 0.4275835762, 5.0089800807, 0.2553956763],
    "i0": [1, 1, np.inf, np.inf, np.nan, 1.2660658778, 1.2660658778, 2.2795853023],
    "i0e": [1, 1, 0, 0, np.nan, 0.4657596077, 0.4657596077, 0.3085083225],
    "k0": [np.inf, np.inf, 0, np.nan, np.nan, 0.4210244382, np.nan, 0.1138938727],
    "k1e": [np.inf, np.inf, 0, np.nan, np.nan, 1.6361534863, np.nan, 1.0334768471],
    "airy_ai": [0.3550280539, 0.3550280539, 0, np.nan, np.nan, 0.1352924163, 0.5355608833, 0.0349241304],
}


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda t: t.value)
def test_edges(dtype: DType) -> None:
    (load,) = operands([dtype], 8)
    x = _SPECIAL.astype(dtype.numpy)
    for name, got in zip(EDGES, run([expr.unary(n, load) for n in EDGES], [x], [dtype])):
        np.testing.assert_allclose(got, EDGES[name], rtol=2e-7, err_msg=name)
        np.testing.assert_allclose(NUMPY[name](x), EDGES[name], rtol=2e-7, err_msg=name)


def test_polynomials_of_odd_degrees() -> None:
    """A degree is truncated; negative ones and infinity give 0, NaN gives NaN, and no loop is endless."""
    n = np.array([-1, -0.5, 0.9, np.inf, -np.inf, np.nan, 2.9, 1], np.float32)
    x = np.full(8, 0.5, np.float32)
    (got,) = run([expr.binary("chebyshev_t", *operands([DType.F32] * 2, 8))], [x, n], [DType.F32] * 2)
    np.testing.assert_array_equal(got, np.array([0, 1, 1, 0, 0, np.nan, -0.5, 0.5], np.float32))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda t: t.value)
@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_nvrtc_takes_every_function(name: str, dtype: DType) -> None:
    count = 1 if name in ONE else 2
    loads = operands([dtype] * count, 64)
    e = expr.unary(name, *loads) if count == 1 else expr.binary(name, *loads)
    assert_compiles(render_pointwise(kernel_of([e], [dtype] * count, [dtype], 64), PointwiseTactic(), "sm_80"))
