"""Resize (nearest, linear, cubic): an index map with weights.

Source positions are exact fractions of integers. So coordinates take integer arithmetic only, and never depend on
floating-point rounding. A scale becomes a ratio with a denominator up to 4096 where its relative error is at most 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import product as combinations
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, ceildiv, floordiv, maximum, minimum, mod
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, all_of, const, where
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, Reader, register
from arcweld.compiler.ops.shapes import (
    FLOATS,
    check_dtype,
    check_length,
    dim_expr,
    if_any,
    inside,
    present,
    vanishes_with,
)

Attrs = Mapping[str, Any]
Position = tuple[Dim, Dim]  # a source position as numerator and (positive) denominator
Tap = tuple[Dim, Expr | None]  # source coordinate and weight (None: 1)

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}  # elements that are read along one axis
MODES = tuple(TAPS)
TRANSFORMS = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Resize", types, 1)
    check_length("Resize", "sizes", attrs["sizes"], x.rank)
    if attrs["scales"] is not None:
        check_length("Resize", "scales", attrs["scales"], x.rank)
        if not all(0 < s < float("inf") for s in attrs["scales"]):
            raise ModelError(f"Resize: the scales {attrs['scales']} are not all positive and finite")
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        check_length("Resize", "roi", attrs["roi"] or (), 2 * x.rank)
    for what, known in (
        ("mode", MODES), ("coordinate_transformation_mode", TRANSFORMS), ("nearest_mode", NEAREST),
    ):  # fmt: skip
        if attrs[what] not in known:
            raise ModelError(f"Resize: unknown {what} {attrs[what]}", hint=", ".join(known))
    if attrs["mode"] != "nearest":
        check_dtype("Resize", x, FLOATS)
    for axis, (n, m) in enumerate(zip(x.shape, attrs["sizes"])):
        if n == 0 and isinstance(m, int) and m > 0:
            raise ModelError(f"Resize: axis {axis} of {x} has no elements to make {m} of")
    return (x.with_shape(attrs["sizes"]),)


# ---------------------------------------------------------------------------------------------------- reference


def _cropped(y: np.ndarray, axis: int, m: int, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """The positions along an axis whose section is resized, clamped into it, and which of them are outside."""
    n, roi = y.shape[axis], attrs["roi"]
    begin, end = (Fraction(v).limit_denominator(10**9) for v in (roi[axis], roi[len(roi) // 2 + axis]))
    steps = [Fraction(i, m - 1) for i in range(m)] if m > 1 else [Fraction(1, 2)]
    at = [(begin + t * (end - begin)) * (n - 1) for t in steps]
    return np.array([float(min(max(a, 0), n - 1)) for a in at]), np.array([not 0 <= a <= n - 1 for a in at])


def positions(n: int, m: int, scale: float | None, transform: str) -> np.ndarray:
    """The source position of each of ``m`` outputs along an axis of ``n`` inputs (f64)."""
    s = m / n if scale is None else float(scale)
    i = np.arange(m, dtype=np.float64)
    if transform == "align_corners":
        return i * (n - 1) / (m - 1) if m > 1 else np.zeros(m)
    if transform == "asymmetric":
        return i / s
    if transform == "pytorch_half_pixel" and m == 1:
        return np.zeros(m)
    if transform == "half_pixel_symmetric":
        return n / 2 * (1 - m / (s * n)) + (i + 0.5) / s - 0.5
    return (i + 0.5) / s - 0.5


def _nearest(at: np.ndarray, how: str) -> np.ndarray:
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    return rules[how](at).astype(np.int64)


def keys(d: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel with parameter ``a`` at distance ``d``, in elements.

    R. Keys, Cubic convolution interpolation for digital image processing, IEEE Trans. ASSP 29 (1981).
    """
    d = np.abs(d)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _interpolated(y: np.ndarray, axis: int, at: np.ndarray, attrs: Attrs) -> np.ndarray:
    """``y`` at the positions ``at`` along one axis."""
    n, linear = y.shape[axis], attrs["mode"] == "linear"
    source = np.floor(at) + np.array((0, 1) if linear else (-1, 0, 1, 2))[:, None]
    distance = np.abs(at - source)
    weights = 1 - distance if linear else keys(distance, attrs["cubic_coeff_a"])
    if attrs["exclude_outside"]:
        weights = weights * ((source >= 0) & (source < n))
        weights /= weights.sum(axis=0)
    column = (-1, *[1] * (y.ndim - 1 - axis))
    terms = zip(np.clip(source, 0, n - 1).astype(np.int64), weights.astype(y.dtype))
    return np.asarray(sum(np.take(y, k, axis) * w.reshape(column) for k, w in terms))


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, transform = operand(arrays), attrs["coordinate_transformation_mode"]
    y = x if attrs["mode"] == "nearest" else widen(x)
    outside = np.zeros((1,) * x.ndim, bool)
    for axis, m in enumerate(attrs["sizes"]):
        n = x.shape[axis]
        scale = None if attrs["scales"] is None else attrs["scales"][axis]
        if n == m and scale in (None, 1.0) and transform != "tf_crop_and_resize":
            continue
        if n == 0 < m:
            raise ValueError(f"axis {axis} has no elements to make {m} of")
        if m == 0:
            y = np.take(y, np.arange(0), axis)
            continue
        if transform == "tf_crop_and_resize":
            at, beyond = _cropped(y, axis, m, attrs)
            outside = outside | beyond.reshape(-1, *[1] * (x.ndim - 1 - axis))
        else:
            at = positions(n, m, scale, transform)
        if attrs["mode"] == "nearest":
            y = np.take(y, np.clip(_nearest(at, attrs["nearest_mode"]), 0, n - 1), axis)
        else:
            y = _interpolated(y, axis, at, attrs)
    y = np.where(outside, attrs["extrapolation_value"], y) if outside.any() else y
    return (np.ascontiguousarray(y).reshape(y.shape).astype(x.dtype, copy=False),)


# ----------------------------------------------------------------------------------------------------- lowering


def ratio(scale: float) -> tuple[int, int]:
    """``scale`` as (numerator, denominator), with a denominator up to 4096 where that is within a relative 1e-6."""
    near = Fraction(scale).limit_denominator(4096)
    exact = near if abs(near - Fraction(scale)) <= abs(Fraction(scale)) / 10**6 else Fraction(scale)
    return exact.numerator, exact.denominator


def _is_kept(attrs: Attrs, axis: int, n: Dim, m: Dim) -> bool:
    """Whether an axis of ``n`` elements stays as it is."""
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return n == m and _section(attrs, axis) == (Fraction(0), Fraction(1))
    return n == m and (attrs["scales"] is None or attrs["scales"][axis] == 1.0)


def _section(attrs: Attrs, axis: int) -> tuple[Fraction, Fraction]:
    """The begin and the end of the section of an axis that is resized, where its elements go from 0 to 1."""
    roi = attrs["roi"]
    begin, end = (Fraction(*ratio(v)) for v in (roi[axis], roi[len(roi) // 2 + axis]))
    return begin, end


def position(c: Dim, n: Dim, m: Dim, scale: float | None, transform: str) -> Position:
    """The source position of output ``c`` along an axis of ``n`` inputs and ``m`` outputs."""
    if transform == "align_corners":
        return (0, 1) if m == 1 else (c * (n - 1), maximum(m - 1, 1))
    p, q = (m, n) if scale is None else ratio(scale)  # the scale is p / q
    if transform == "asymmetric":
        return c * q, p
    if transform == "pytorch_half_pixel" and m == 1:
        return 0, 1
    if transform == "half_pixel_symmetric":
        # n/2 * (1 - m/(s*n)) + (c + 1/2)/s - 1/2 over the denominator 2p
        return n * p - m * q + (2 * c + 1) * q - p, 2 * p
    num = (2 * c + 1) * q - p
    if transform == "pytorch_half_pixel" and not isinstance(m, int):
        # m == 1 must give position 0: multiply by min(m - 1, 1)
        num = num * minimum(m - 1, 1)
    return num, 2 * p


def _cropped_position(c: Dim, n: Dim, m: Dim, begin: Fraction, end: Fraction) -> Position:
    """The source position of output ``c`` of the section from ``begin`` to ``end``; of one output its middle."""
    q = begin.denominator * end.denominator
    b, e = int(begin * q), int(end * q)
    single = 1 - minimum(m - 1, 1)
    num = 2 * (b * (m - 1) + c * (e - b)) + single * (b + e)
    return num * (n - 1), 2 * q * maximum(m - 1, 1)


def _nearest_coord(at: Position, n: Dim, how: str) -> Dim:
    num, den = at
    if how == "floor":
        found = floordiv(maximum(num, 0), den)
    elif how == "ceil":
        found = ceildiv(maximum(num, 0), den)
    elif how == "round_prefer_ceil":
        found = floordiv(maximum(2 * num + den, 0), 2 * den)
    else:
        found = ceildiv(maximum(2 * num - den, 0), 2 * den)
    return minimum(found, n - 1)


def _linear_taps(at: Position, n: Dim, dtype: DType) -> list[Tap]:
    num, den = at
    num = minimum(maximum(num, 0), (n - 1) * den)
    base = floordiv(num, den)
    t = dim_expr(mod(num, den), dtype) / dim_expr(den, dtype)
    return [(base, 1.0 - t), (minimum(base + 1, n - 1), t)]


def _cubic_taps(at: Position, n: Dim, attrs: Attrs, dtype: DType) -> list[Tap]:
    num, den = at
    base = floordiv(num + den, den) - 1  # positions are never below -1: the quotient is of non-negative numbers
    t = dim_expr(mod(num + den, den), dtype) / dim_expr(den, dtype)
    a = float(attrs["cubic_coeff_a"])
    weights = [_far(t + 1.0, a), _near(t, a), _near(1.0 - t, a), _far(2.0 - t, a)]
    if attrs["exclude_outside"]:
        zero = const(0.0, dtype)
        weights = [where(inside(base + k - 1, 0, n), w, zero) for k, w in enumerate(weights)]
        total = weights[0] + weights[1] + weights[2] + weights[3]
        weights = [w / total for w in weights]
    return [(maximum(minimum(base + k - 1, n - 1), 0), w) for k, w in enumerate(weights)]


def _near(d: Expr, a: float) -> Expr:
    return (d * (a + 2) - (a + 3)) * d * d + 1.0


def _far(d: Expr, a: float) -> Expr:
    return ((d * a - 5 * a) * d + 8 * a) * d - 4 * a


def _taps(node: Node, axis: int, c: Dim) -> list[Tap]:
    attrs, n, m = node.attrs, node.operands()[0].shape[axis], node.output.shape[axis]
    scale = None if attrs["scales"] is None else attrs["scales"][axis]
    if _is_kept(attrs, axis, n, m):
        return [(c, None)]
    if m == 0:  # nothing is read, and a scale of 0 has no inverse
        return [(0, None)]
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        num, den = _cropped_position(c, n, m, *_section(attrs, axis))
        at = minimum(maximum(num, 0), (n - 1) * den), den
    else:
        at = position(c, n, m, scale, attrs["coordinate_transformation_mode"])
    if attrs["mode"] == "nearest":
        return [(_nearest_coord(at, n, attrs["nearest_mode"]), None)]
    dtype = node.output.dtype.compute
    return _linear_taps(at, n, dtype) if attrs["mode"] == "linear" else _cubic_taps(at, n, attrs, dtype)


def _lower(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,) = node.operands()
    axes = [_taps(node, axis, c) for axis, c in enumerate(coords)]
    total: Expr | None = None
    there = if_any(_needs(node))
    for taps in combinations(*axes):
        term = reader.read(x, [at for at, _ in taps], there)
        for _, weight in taps:
            term = term if weight is None else term * weight
        total = term if total is None else total + term
    assert total is not None
    seen = _inside_the_image(node, coords)
    return total if seen is None else where(seen, total, const(node.attrs["extrapolation_value"], total.dtype))


def _inside_the_image(node: Node, coords: tuple[Dim, ...]) -> Expr | None:
    """Whether the position of a cropped output is inside the image; None where nothing is cropped."""
    attrs, seen = node.attrs, []
    if attrs["coordinate_transformation_mode"] != "tf_crop_and_resize":
        return None
    for axis, (c, n, m) in enumerate(zip(coords, node.operands()[0].shape, node.output.shape)):
        if m != 0 and not _is_kept(attrs, axis, n, m):
            num, den = _cropped_position(c, n, m, *_section(attrs, axis))
            seen.append(inside(num, 0, (n - 1) * den + 1))
    return all_of(seen)


def _needs(node: Node) -> Sequence[Dim]:
    """The extents that are resized, and not to 0 whenever they are 0 themselves."""
    pairs = enumerate(zip(node.operands()[0].shape, node.output.shape))
    return [n for k, (n, m) in pairs if not _is_kept(node.attrs, k, n, m) and not vanishes_with(m, n)]


def _fan_out(node: Node) -> int:
    return int(TAPS[node.attrs["mode"]] ** 2)  # images are usually resized along two axes


def _case(shape: tuple[int, ...], sizes: tuple[int, ...], scaled: bool = False, **attrs: Any) -> Case:
    scales = tuple(m / n for n, m in zip(shape, sizes)) if scaled else None
    return Case((shape,), {"sizes": sizes, "scales": scales, **attrs}, ("f32",))


def _crop(
    shape: tuple[int, ...], sizes: tuple[int, ...], mode: str, section: tuple[float, ...], outside: float = 0.0
) -> Case:
    roi = (0.0, 0.0, *section[:2], 1.0, 1.0, *section[2:])
    attrs: dict[str, Any] = {"mode": mode, "roi": roi, "extrapolation_value": outside}
    return _case(shape, sizes, coordinate_transformation_mode="tf_crop_and_resize", **attrs)


register(
    OpDef(
        "Resize", Kind.MOVEMENT, ("x",), _infer, _reference,
        attrs={
            "sizes": Attr("dims", required=True),
            "scales": Attr("floats", None),
            "mode": Attr("str", "nearest"),
            "coordinate_transformation_mode": Attr("str", "half_pixel"),
            "nearest_mode": Attr("str", "round_prefer_floor"),
            "cubic_coeff_a": Attr("float", -0.75),
            "exclude_outside": Attr("int", 0),
            "extrapolation_value": Attr("float", 0.0),
            "roi": Attr("floats", None),
        },
        lower=_lower, cost=24, fan_out=_fan_out, needs=_needs,
        cases=(
            _case((1, 2, 3, 4), (1, 2, 6, 8), True, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
            _case((1, 2, 3, 4), (1, 2, 6, 8)),
            _case((1, 1, 7, 5), (1, 1, 4, 9), nearest_mode="round_prefer_ceil"),
            _case((1, 1, 7, 5), (1, 1, 4, 9), nearest_mode="ceil", coordinate_transformation_mode="align_corners"),
            *(
                _case((1, 2, 4, 5), (1, 2, 7, 3), mode=mode, coordinate_transformation_mode=transform)
                for mode in ("linear", "cubic")
                for transform in TRANSFORMS[:5]
            ),
            _case((1, 1, 4, 5), (1, 1, 8, 10), True, mode="linear"),
            _case((1, 1, 5, 5), (1, 1, 9, 3), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
            _case((1, 2, 4, 4), (1, 2, 1, 1), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
            _case((2, 3, 6), (2, 3, 9), True, mode="linear"),
            *(_crop((1, 2, 4, 5), (1, 2, 3, 6), mode, (0.4, 0.125, 0.6, 1.0)) for mode in MODES),
            *(_crop((1, 1, 5, 4), (1, 1, 7, 6), mode, (-0.25, 0.75, 1.2, 0.0), 7.5) for mode in MODES),
            _crop((1, 1, 6, 5), (1, 1, 1, 5), "linear", (0.2, 0.0, 0.5, 1.0)),
        ),
        doc="sizes is the whole output shape; scales (or None: sizes over input sizes) set the coordinate map; roi has "
        "the begins of all axes, then the ends, for tf_crop_and_resize",
    )
)  # fmt: skip
