"""Operators that ONNX lacks and torch has: special functions, running extrema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Attrs = Mapping[str, Any]


def _by_torch(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A function of torch's, computed in f64 and rounded for floats."""

    def direct(attrs: Attrs, *arrays: np.ndarray) -> np.ndarray:
        wide = [torch.from_numpy(a.astype(np.float64) if a.dtype.kind not in "iu" else a) for a in arrays]
        return np.asarray(fn(*wide).numpy().astype(arrays[0].dtype))

    return direct


def _running(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def direct(attrs: Attrs, x: np.ndarray) -> np.ndarray:
        if not x.size:
            return x
        exact = torch.from_numpy(x.astype(np.float64 if x.dtype.kind not in "iu" else np.int64))
        return np.asarray(fn(exact, attrs["axis"])[0].numpy().astype(x.dtype))

    return direct


_SPECIAL = {
    "Erfc": torch.special.erfc, "Erfcx": torch.special.erfcx, "Erfinv": torch.special.erfinv,
    "Ndtri": torch.special.ndtri, "Lgamma": torch.lgamma, "Digamma": torch.special.digamma,
    "BesselI0": torch.special.i0, "BesselI0e": torch.special.i0e, "BesselI1": torch.special.i1,
    "BesselI1e": torch.special.i1e, "BesselJ0": torch.special.bessel_j0, "BesselJ1": torch.special.bessel_j1,
    "BesselY0": torch.special.bessel_y0, "BesselY1": torch.special.bessel_y1,
    "BesselK0": torch.special.modified_bessel_k0, "BesselK0e": torch.special.scaled_modified_bessel_k0,
    "BesselK1": torch.special.modified_bessel_k1, "BesselK1e": torch.special.scaled_modified_bessel_k1,
    "AiryAi": torch.special.airy_ai, "Zeta": torch.special.zeta, "Igamma": torch.special.gammainc,
    "Igammac": torch.special.gammaincc, "ChebyshevT": torch.special.chebyshev_polynomial_t,
    "ChebyshevU": torch.special.chebyshev_polynomial_u, "ChebyshevV": torch.special.chebyshev_polynomial_v,
    "ChebyshevW": torch.special.chebyshev_polynomial_w, "HermiteH": torch.special.hermite_polynomial_h,
    "HermiteHe": torch.special.hermite_polynomial_he, "LaguerreL": torch.special.laguerre_polynomial_l,
    "LegendreP": torch.special.legendre_polynomial_p, "Gcd": torch.gcd,
    "Polygamma": lambda n, x: torch.stack([torch.polygamma(int(k), v) for k, v in zip(n, x)]),
}  # fmt: skip

def _linear_scan(attrs: Attrs, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Each term times the products of all factors behind it, summed: no step needs the one before."""
    factors, terms = (torch.from_numpy(v.astype(np.float64)).movedim(attrs["axis"], -1) for v in (a, x))
    n = terms.shape[-1]
    results = [
        sum((factors[..., s + 1 : t + 1].prod(-1) * terms[..., s] for s in range(t)), terms[..., t]) for t in range(n)
    ]
    y = torch.stack(results, -1) if n else terms
    return np.asarray(y.movedim(-1, attrs["axis"]).numpy().astype(x.dtype))


DIRECT: dict[str, Callable[..., np.ndarray]] = {
    **{name: _by_torch(fn) for name, fn in _SPECIAL.items()},
    "CumMax": _running(torch.cummax),
    "CumMin": _running(torch.cummin),
    "LinearScan": _linear_scan,
}
