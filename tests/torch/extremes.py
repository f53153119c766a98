"""Operators, and operands at the edge of every element type, to compare compiled operators with eager torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)

Fn = Callable[..., Any]


def values(dtype: torch.dtype) -> torch.Tensor:
    """Least, greatest, 0, -0, infinities, NaN, neighbours of integers and of each other, and ordinary numbers."""
    if dtype is torch.bool:
        return torch.tensor([False, True])
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        near = [-128, -127, -100, -7, -5, -3, -2, -1, 0, 1, 2, 3, 5, 7, 8, 16, 31, 64, 100, 127]
        most = [info.max, info.max - 1, info.max // 2, info.max // 2 + 1, info.max - 7]
        least = [info.min, info.min + 1, info.min // 2, info.min + 7]
        kept = sorted({v for v in (*near, *most, *least) if info.min <= v <= info.max})
        return torch.tensor(kept, dtype=dtype)
    info = torch.finfo(dtype)
    up = 1 + info.eps
    plain = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0, up, 1 - info.eps / 2, 1.5, 2.0, 2 * up, 2.5, 3.0, 7.0, 9.0, 10.0, 19.5, 88.0]
    edge = [info.max, info.max / 2, info.tiny, info.tiny * up, info.eps, 1 / info.eps, 2 / info.eps, float("inf")]
    both = torch.tensor([s * v for v in (*plain, *edge) for s in (1, -1)], dtype=torch.float64)
    return torch.cat([both, torch.tensor([float("nan")], dtype=torch.float64)]).to(dtype)


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every value with every other one."""
    v = values(dtype)
    a, b = torch.meshgrid(v, v, indexing="ij")
    return a.reshape(-1).clone(), b.reshape(-1).clone()


_UNARY = [
    "abs", "ceil", "floor", "neg", "relu", "round", "sign", "sgn", "sqrt", "rsqrt", "reciprocal", "square",
    "trunc", "frac", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "isnan", "isinf",
    "isfinite", "isposinf", "isneginf", "logical_not", "bitwise_not", "nan_to_num", "signbit", "erfc",
]  # fmt: skip
UNARY: dict[str, Fn] = {name: getattr(torch, name) for name in _UNARY} | {
    "relu6": F.relu6, "gelu": F.gelu, "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu,
    "mish": F.mish, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "hardtanh": F.hardtanh, "elu": F.elu,
    "selu": F.selu, "celu": F.celu, "leaky_relu": F.leaky_relu, "softplus": F.softplus, "logsigmoid": F.logsigmoid,
    "softshrink": F.softshrink, "hardshrink": F.hardshrink, "tanhshrink": F.tanhshrink, "softsign": F.softsign,
    "threshold": lambda x: F.threshold(x, 1, 3), "logit": torch.logit, "logit eps": lambda x: torch.logit(x, 0.25),
    "clamp": lambda x: x.clamp(-3, 5), "clamp min": lambda x: x.clamp(min=-2), "clamp max": lambda x: x.clamp(max=2),
    "clamp crossed": lambda x: x.clamp(5, -3), "clamp float": lambda x: x.clamp(-1.5, 1.5),
    "clamp nan": lambda x: x.clamp(min=float("nan")), "round decimals": lambda x: torch.round(x, decimals=1),
    "to f32": lambda x: x.float(), "to f16": lambda x: x.half(), "to bf16": lambda x: x.bfloat16(),
    "to f64": lambda x: x.double(), "to bool": lambda x: x.bool(),
    "lgamma": torch.lgamma, "erfinv": torch.erfinv, "erfcx": torch.special.erfcx, "i0e": torch.special.i0e,
    "i1e": torch.special.i1e, "ndtri": torch.special.ndtri, "log_ndtr": torch.special.log_ndtr, "angle": torch.angle,
    "sinc": torch.sinc, "frexp": lambda x: torch.frexp(x)[0], "frexp exponent": lambda x: torch.frexp(x)[1],
}  # fmt: skip
for _c in (2, -3, 0.5, -0.1, 0, 1):
    UNARY |= {
        f"add {_c}": lambda x, c=_c: x + c, f"rsub {_c}": lambda x, c=_c: c - x, f"mul {_c}": lambda x, c=_c: x * c,
        f"div {_c}": lambda x, c=_c: x / c, f"floordiv {_c}": lambda x, c=_c: x // c,
        f"trunc div {_c}": lambda x, c=_c: torch.div(x, c, rounding_mode="trunc"), f"mod {_c}": lambda x, c=_c: x % c,
        f"fmod {_c}": lambda x, c=_c: torch.fmod(x, c), f"pow {_c}": lambda x, c=_c: x**c,
        f"rpow {_c}": lambda x, c=_c: c**x, f"rdiv {_c}": lambda x, c=_c: c / x,
        f"rfloordiv {_c}": lambda x, c=_c: c // x,
        f"gt {_c}": lambda x, c=_c: x > c, f"ge {_c}": lambda x, c=_c: x >= c, f"lt {_c}": lambda x, c=_c: x < c,
        f"le {_c}": lambda x, c=_c: x <= c, f"eq {_c}": lambda x, c=_c: x == c, f"ne {_c}": lambda x, c=_c: x != c,
    }  # fmt: skip
BINARY: dict[str, Fn] = {
    name: getattr(torch, name)
    for name in [
    "add", "sub", "mul", "div", "maximum", "minimum", "fmax", "fmin", "fmod", "remainder", "floor_divide",
    "pow", "atan2", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor", "hypot", "copysign", "xlogy", "logaddexp", "nextafter",
]
} | {
    "trunc div": lambda a, b: torch.div(a, b, rounding_mode="trunc"), "lerp": lambda a, b: torch.lerp(a, b, 0.25),
    "floor div": lambda a, b: torch.div(a, b, rounding_mode="floor"), "where": lambda a, b: torch.where(a > b, a, b),
    "clamp tensor": lambda a, b: torch.clamp(a, b, b * 0 + 3), "addcmul": lambda a, b: torch.addcmul(a, a, b, value=2),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b, value=0.5), "add alpha": lambda a, b: torch.add(a, b, alpha=2),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 1), "max": torch.max,
    "lshift": lambda a, b: torch.bitwise_left_shift(a, b & 3),
}  # fmt: skip
REDUCTIONS: dict[str, Fn] = {
    name: functools.partial(getattr(torch, name), dim=-1)
    for name in [
    "sum", "mean", "amax", "amin", "prod", "argmax", "argmin", "any", "all", "logsumexp", "var", "std",
    "softmax", "log_softmax", "cumsum", "count_nonzero", "nansum",
]
} | {
    "max": lambda x: torch.max(x, -1)[0], "max index": lambda x: torch.max(x, -1)[1], "norm": lambda x: x.norm(dim=-1),
    "min": lambda x: torch.min(x, -1)[0], "min index": lambda x: torch.min(x, -1)[1],
    "norm 1": lambda x: x.norm(1, dim=-1), "var 0": lambda x: x.var(-1, correction=0), "sum of all": torch.sum,
    "max of all": torch.max, "min of all": torch.min, "argmax of all": torch.argmax, "any of all": torch.any,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]), "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "topk": lambda x: torch.topk(x, 2)[0], "normalize": lambda x: F.normalize(x, dim=-1),
    "softmin": lambda x: F.softmin(x, -1),
    "max_pool": lambda x: F.max_pool1d(x[None], 3, 1, 1), "avg_pool": lambda x: F.avg_pool1d(x[None], 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool1d(x[None], 1), "norm 3": lambda x: x.norm(3, dim=-1),
    "norm 0": lambda x: x.norm(0, dim=-1), "norm -inf": lambda x: x.norm(-math.inf, dim=-1),
    "sort": lambda x: torch.sort(x, -1)[0], "sort index": lambda x: torch.sort(x, stable=True, dim=-1)[1],
    "sort down": lambda x: torch.sort(x, -1, descending=True)[0],
    "sort down index": lambda x: torch.sort(x, stable=True, dim=-1, descending=True)[1],
    "argsort": lambda x: torch.argsort(x, stable=True, dim=-1), "msort": lambda x: torch.msort(x.T),
    "median": lambda x: torch.median(x, -1)[0], "nanmedian": lambda x: torch.nanmedian(x, -1)[0],
    "kthvalue": lambda x: torch.kthvalue(x, 2, -1)[0], "mode": lambda x: torch.mode(x, -1)[0],
    "mode index": lambda x: torch.mode(x, -1)[1], "cumprod": lambda x: torch.cumprod(x, -1),
    "cummax": lambda x: torch.cummax(x, -1)[0], "cummax index": lambda x: torch.cummax(x, -1)[1],
    "cummin": lambda x: torch.cummin(x, -1)[0], "cummin index": lambda x: torch.cummin(x, -1)[1],
    "logcumsumexp": lambda x: torch.logcumsumexp(x, -1), "median of all": torch.median,
    "nanmedian of all": torch.nanmedian, "searchsorted": lambda x: torch.searchsorted(torch.sort(x, -1)[0], x),
    "searchsorted right": lambda x: torch.searchsorted(torch.sort(x, -1)[0], x, right=True),
    "bucketize": lambda x: torch.bucketize(x, torch.sort(x[0])[0]),
    "max_pool index": lambda x: F.max_pool1d(x[None], 3, 1, 1, return_indices=True)[1],
}  # fmt: skip


def rows(dtype: torch.dtype) -> torch.Tensor:
    """Rows of four and their like: with NaN first, last and between, infinities, ties, all equal, extremes."""
    v = values(dtype)
    g = torch.Generator().manual_seed(0)
    drawn = v[torch.randint(len(v), (64, 4), generator=g)]
    same = v[:, None].expand(-1, 4)
    return torch.cat([drawn, same]).contiguous()


def agree(label: str, got: np.ndarray, want: np.ndarray) -> str:
    """An empty string, or where and how the two differ by more than the rounding of a few operations."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{label}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    if want.dtype.kind in "iub":
        wrong = got != want
    else:
        rtol, least = {"float32": (1e-5, 1e-35), "float64": (1e-12, 1e-300), "float16": (2e-3, 2e-4)}.get(
            want.dtype.name, (1.6e-2, 1e-35)
        )
        with np.errstate(all="ignore"):
            wrong = ~np.isclose(got.astype(np.float64), want.astype(np.float64), rtol, least, equal_nan=True)
    if not wrong.any():
        return ""
    k = int(np.flatnonzero(wrong)[0])
    return f"{label}: {int(wrong.sum())} of {wrong.size}, first at {k}: {got.flat[k]!r}, not {want.flat[k]!r}"
