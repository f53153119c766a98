"""Pad: axes are cropped where amounts are negative, and then padded with a constant or with their own elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from arcweld.compiler.dims import Dim, ceildiv, is_nonneg, maximum, minimum, mod
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, both, const, where
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.movement import ANY_TYPE, Arrays, Attrs, Types, movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import check_length, inside, present


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Pad", types, 1)
    check_length("Pad", "pads", attrs["pads"], 2 * x.rank)
    if attrs["mode"] not in ("constant", "reflect", "edge", "wrap"):
        raise ModelError(f"Pad: unknown mode {attrs['mode']}")
    shape = [d + b + e for d, b, e in zip(x.shape, attrs["pads"], attrs["pads"][x.rank :])]
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise ModelError(f"Pad: {attrs['pads']} crops more than {x} has")
    for axis, d in enumerate(x.shape):
        p = _axis_pads(attrs, x.rank, axis, d)
        if attrs["mode"] != "constant" and p.kept == 0 and not (p.before == 0 and p.after == 0):
            raise ModelError(f"Pad: nothing of axis {axis} of {x} is left to repeat ({attrs['mode']})")
    return (x.with_shape(shape),)


def _reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    pairs = list(zip(attrs["pads"], attrs["pads"][x.ndim :]))
    x = x[tuple(slice(max(-b, 0), d - max(-e, 0)) for d, (b, e) in zip(x.shape, pairs))]
    grow = [(max(b, 0), max(e, 0)) for b, e in pairs]
    if attrs["mode"] == "constant":
        value = np.asarray(attrs["value"]).astype(x.dtype)
        return (np.pad(x, grow, constant_values=value),) if grow else (x,)
    return (np.pad(x, grow, mode=attrs["mode"]) if grow else x,)


class _AxisPads(NamedTuple):
    """How one axis is padded, in elements: ``kept`` of them from ``start`` on, with ``before`` and ``after`` added."""

    start: Dim
    kept: Dim
    before: Dim
    after: Dim


def _axis_pads(attrs: Attrs, rank: int, axis: int, extent: Dim) -> _AxisPads:
    begin, end = attrs["pads"][axis], attrs["pads"][rank + axis]
    start = maximum(-begin, 0)
    return _AxisPads(start, extent - start - maximum(-end, 0), maximum(begin, 0), maximum(end, 0))


def _padded_coord(mode: str, c: Dim, extent: Dim, begin: Dim, end: Dim) -> Dim:
    """The source coordinate of an output coordinate less ``begin``, ``c``, for the modes that repeat the data."""
    if mode == "edge":
        return maximum(minimum(c, extent - 1), 0)
    if mode == "wrap":
        return mod(c + _whole(begin, extent), extent)
    if is_nonneg(extent - 1 - begin) and is_nonneg(extent - 1 - end):
        c = maximum(c, c * -1)
        return minimum(c, 2 * (extent - 1) - c)
    period = maximum(2 * (extent - 1), 1)
    c = mod(c + _whole(begin, period), period)
    return minimum(c, period - c) if extent != 1 else 0


def _whole(least: Dim, period: Dim) -> Dim:
    """The smallest multiple of ``period`` that is not below ``least``."""
    return ceildiv(least, period) * period if not isinstance(least, int) or least > 0 else 0


def _lower(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,), attrs = node.operands(), node.attrs
    rank = len(coords)
    at: list[Dim] = []
    mask = const(True, DType.BOOL)
    for k, (c, d) in enumerate(zip(coords, x.shape)):
        p = _axis_pads(attrs, rank, k, d)
        if p.before == 0 and p.after == 0:
            at.append(p.start + c)
        elif attrs["mode"] == "constant":
            at.append(c - attrs["pads"][k])
            mask = both(mask, inside(at[-1], 0, d))
        else:
            at.append(p.start + _padded_coord(attrs["mode"], c - p.before, p.kept, p.before, p.after))
            if not is_nonneg(p.kept - 1):  # there may be nothing to repeat
                mask = both(mask, inside(at[-1], p.start, p.start + p.kept))
    if mask.op == "const" and mask.attr:
        return reader.read(x, at)
    element = reader.read(x, at, mask)
    return where(mask, element, const(attrs["value"], node.output.dtype))


def _needs(node: Node) -> Sequence[Dim]:
    """What is left of the axes whose own elements are repeated."""
    (x,), attrs = node.operands(), node.attrs
    if attrs["mode"] == "constant":
        return []
    pads = [_axis_pads(attrs, len(x.shape), k, d) for k, d in enumerate(x.shape)]
    return [p.kept for p in pads if not (p.before == 0 and p.after == 0)]


movement(
    "Pad", "x", _infer, _reference, _lower,
    {
        "pads": Attr("dims", required=True),
        "mode": Attr("str", "constant"),
        "value": Attr("float", 0.0),
    },
    [
        Case(((3, 4),), {"pads": (1, 0, 0, 2)}, ANY_TYPE),
        Case(((3, 4),), {"pads": (0, -1, 2, -1), "value": 1.5}, ("f32", "f16")),
        *(Case(((3, 4),), {"pads": (2, 1, 1, 3), "mode": m}, ("f32",)) for m in ("reflect", "edge", "wrap")),
        Case(((3, 4),), {"pads": (7, 0, 5, 9), "mode": "reflect"}, ("f32",)),
        Case(((3, 4),), {"pads": (7, 0, 5, 9), "mode": "wrap"}, ("f32",)),
    ],
    needs=_needs,
    doc="pads: begin of every axis, then end of every axis; negative ones crop",
)  # fmt: skip
