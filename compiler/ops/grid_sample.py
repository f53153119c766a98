"""GridSample: an image read at positions that a tensor gives, interpolated between its neighbours.

Positions are normalised: -1 and 1 are the corners' centres (``align_corners``) or the image's edges. With ``pixels``
they count pixels: 0 is the first one's centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product as combinations
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, is_nonneg
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import (
    Expr,
    all_of,
    binary,
    both,
    cast,
    const,
    dynamic_index,
    unary,
    where,
    wrapped_index,
)
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.gather import INDEX
from arcweld.compiler.ops.movement import movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.resize import TAPS
from arcweld.compiler.ops.shapes import (
    FLOATS,
    check_dtype,
    check_elements,
    check_equal,
    check_rank,
    dim_expr,
    if_any,
    split_optional,
)

Attrs = Mapping[str, Any]
# an element that an interpolation reads: its coordinate, whether it is inside (None: always), its weight (None: 1)
Tap = tuple[Dim, Expr | None, Expr | None]

MODES = ("linear", "nearest", "cubic")
PADDINGS = ("zeros", "border", "reflection")
_CUBIC = -0.75


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (x, grid), (image,) = split_optional("GridSample", types, 2, 3)
    check_dtype("GridSample", x, FLOATS)
    check_dtype("GridSample grid", grid, FLOATS)
    check_rank("GridSample", x, 3, 5)
    check_rank("GridSample grid", grid, x.rank, x.rank)
    if image is None:
        check_equal("GridSample", "batch", x.shape[0], grid.shape[0])
    else:
        check_dtype("GridSample", image, INDEX)
        check_rank("GridSample", image, 1, 1)
        check_equal("GridSample", "images", image.shape[0], grid.shape[0])
    check_equal("GridSample", "coordinates of a position", grid.shape[-1], x.rank - 2)
    for what, known in (("mode", MODES), ("padding_mode", PADDINGS)):
        if attrs[what] not in known:
            raise ModelError(f"GridSample: unknown {what} {attrs[what]}", hint=", ".join(known))
    out = (grid.shape[0], x.shape[1], *grid.shape[1:-1])
    check_elements("GridSample", x, range(2 if image is None else 0, x.rank), out)
    return (x.with_shape(out),)


# ---------------------------------------------------------------------------------------------------- reference


def _folded(at: np.ndarray, n: int, align: bool) -> np.ndarray:
    """Positions reflected at the image's borders until they lie inside."""
    first, period = (0.0, 2.0 * (n - 1)) if align else (-0.5, 2.0 * n)
    if period == 0:
        return np.zeros_like(at)
    rest = np.mod(at - first, period)
    return np.asarray(first + np.minimum(rest, period - rest))


def _np_taps(at: np.ndarray, n: int, attrs: Attrs) -> list[tuple[np.ndarray, np.ndarray]]:
    """(index, weight) pairs for positions along an axis of ``n``; the weight is 0 outside."""
    padding, align = attrs["padding_mode"], bool(attrs["align_corners"])
    if attrs["mode"] != "cubic":
        at = np.clip(at, 0, n - 1) if padding == "border" else at
        at = _folded(at, n, align) if padding == "reflection" else at
    if attrs["mode"] == "nearest":
        weighted = [(np.rint(at), np.ones_like(at))]
    elif attrs["mode"] == "linear":
        weighted = [(np.floor(at) + k, 1 - np.abs(at - np.floor(at) - k)) for k in (0, 1)]
    else:
        weighted = [(np.floor(at) + k, _kernel(np.abs(at - np.floor(at) - k))) for k in (-1, 0, 1, 2)]
    out = []
    for index, weight in weighted:
        if padding == "zeros":
            weight = np.where((index >= 0) & (index < n), weight, 0)
        elif padding == "reflection":
            index = np.rint(_folded(index, n, align))
        out.append((np.clip(index, 0, n - 1).astype(np.int64), weight))
    return out


def _kernel(d: np.ndarray) -> np.ndarray:
    a = _CUBIC
    return np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, grid = widen(operand(arrays)), widen(operand(arrays, 1))
    axes = []
    for axis, n in enumerate(x.shape[2:]):
        g = grid[..., x.ndim - 3 - axis]
        at = (g + 1) / 2 * (n - 1) if attrs["align_corners"] else ((g + 1) * n - 1) / 2
        axes.append(_np_taps(g if attrs["pixels"] else at, n, attrs))
    images = arrays[2] if len(arrays) > 2 else None
    batch = (np.arange(x.shape[0]) if images is None else images).reshape(-1, *[1] * (x.ndim - 2))
    total = np.zeros((*grid.shape[:-1], x.shape[1]), x.dtype)
    rows = np.moveaxis(x, 1, -1)
    for taps in combinations(*axes):
        weight = np.prod([w for _, w in taps], axis=0)[..., None]
        # positions outside add nothing, even if the element read instead is infinite
        total += np.where(weight == 0, 0, rows[(batch, *(i for i, _ in taps))] * weight).astype(x.dtype)
    return (np.moveaxis(total, -1, 1).astype(operand(arrays).dtype),)


# ----------------------------------------------------------------------------------------------------- lowering


def _reflected(at: Expr, n: Expr, align: bool) -> Expr:
    """``at`` reflected at the borders of ``n`` elements until it lies inside."""
    low = const(0.0 if align else -0.5, at.dtype)
    span = binary("max", n - 1.0, const(1.0, at.dtype)) if align else n
    away = unary("abs", at - low)
    turns = unary("floor", away / span)
    rest = away - turns * span
    is_odd = binary("gt", turns - unary("floor", turns * 0.5) * 2.0, const(0.5, at.dtype))
    return low + where(is_odd, span - rest, rest)


def _tap(at: Expr, n: Dim, padding: str, align: bool, weight: Expr | None) -> Tap:
    """The element at the integer position ``at`` (a float)."""
    extent, zero = dim_expr(n, at.dtype), const(0.0, at.dtype)
    seen = None
    if padding == "zeros":
        seen = both(binary("ge", at, zero), binary("lt", at, extent))
    elif padding == "reflection":
        at = unary("round", _reflected(at, extent, align))
    # clamped as a float, because a position far outside may not fit an integer
    return dynamic_index(cast(binary("max", binary("min", at, extent - 1.0), zero), DType.I64), n), seen, weight


def _taps(g: Expr, n: Dim, attrs: Attrs) -> list[Tap]:
    align, padding, extent = bool(attrs["align_corners"]), attrs["padding_mode"], dim_expr(n, g.dtype)
    at = g
    if not attrs["pixels"]:
        at = (g + 1.0) * 0.5 * (extent - 1.0) if align else ((g + 1.0) * extent - 1.0) * 0.5
    if attrs["mode"] != "cubic" and padding == "border":
        at = binary("max", binary("min", at, extent - 1.0), const(0.0, at.dtype))
    elif attrs["mode"] != "cubic" and padding == "reflection":
        at = _reflected(at, extent, align)
    if attrs["mode"] == "nearest":
        return [_tap(unary("round", at), n, padding, align, None)]
    base = unary("floor", at)
    t = at - base
    if attrs["mode"] == "linear":
        return [_tap(base, n, padding, align, 1.0 - t), _tap(base + 1.0, n, padding, align, t)]
    a = _CUBIC
    near = [((a + 2) * d - (a + 3)) * d * d + 1.0 for d in (t, 1.0 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1.0, 2.0 - t)]
    weights = (far[0], near[0], near[1], far[1])
    return [_tap(base + float(k - 1), n, padding, align, w) for k, w in enumerate(weights)]


def _lower(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, grid, *images = node.operands()
    n, c, *at = coords
    last = x.type.rank - 3  # positions list the last axis first
    axes = [_taps(reader.read(grid, (n, *at, last - axis)), x.shape[2 + axis], node.attrs) for axis in range(last + 1)]
    total: Expr | None = None
    there, image = if_any(_needs(node)), n
    if images:
        found = wrapped_index(reader.read(images[0], (n,)), x.shape[0], reader.mask, strict=False)
        image = dynamic_index(found, x.shape[0])
    for taps in combinations(*axes):
        term = reader.read(x, (image, c, *(i for i, _, _ in taps)), all_of([there, *(seen for _, seen, _ in taps)]))
        for _, _, weight in taps:
            term = term if weight is None else term * cast(weight, term.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


def _needs(node: Node) -> Sequence[Dim]:
    x, grid, *images = node.operands()
    indexed = images and is_nonneg(grid.shape[0] - 1)
    return [*x.shape[:1], *x.shape[2:]] if indexed else x.shape[2:]


_GRID = np.array([[[-1.3, 0.2], [0.0, 0.0], [0.9, -0.71]], [[1.0, 1.0], [-1.0, 0.4], [2.7, -4.1]]], np.float32)[None]
_IMAGES = np.concatenate([_GRID, _GRID[:, ::-1] * 0.9, _GRID + 0.1, _GRID - 0.2])
_DEEP = np.stack([np.linspace(-1.2, 1.1, 8), np.linspace(0.9, -0.8, 8), np.linspace(-0.3, 1.4, 8)], -1)
def _fan_out(node: Node) -> int:
    return int(TAPS[node.attrs["mode"]] ** (node.output.type.rank - 2))


movement(
    "GridSample", "x grid image?", _infer, _reference, _lower,
    {
        "mode": Attr("str", "linear"), "padding_mode": Attr("str", "zeros"), "align_corners": Attr("int", 0),
        "pixels": Attr("int", 0),
    },
    [
        Case(((1, 2, 4, 5), _GRID), {"mode": m, "padding_mode": p, "align_corners": a}, ("f32",))
        for m in MODES
        for p in PADDINGS
        for a in (0, 1)
    ] + [
        Case(((1, 2, 4, 5), _GRID.astype(np.float16)), {}, ("f16",)),
        Case(((1, 1, 3, 4, 2), _DEEP.reshape(1, 2, 2, 2, 3).astype(np.float32)), {"padding_mode": "border"}, ("f32",)),
        Case(((1, 2, 1, 1), _GRID), {"padding_mode": "reflection", "mode": "linear"}, ("f32",)),
        *(
            Case(((1, 2, 4, 5), _GRID * 2 + 1), {"mode": m, "padding_mode": p, "pixels": 1}, ("f32", "f16"))
            for m in MODES
            for p in PADDINGS
        ),
        Case(((3, 2, 4, 5), _IMAGES, np.array([2, 0, 0, -1])), {}, ("f32",)),
        Case(((2, 2, 4, 5), _IMAGES * 2 + 1, np.array([1, 0, 1, 1], np.int32)), {"pixels": 1}, ("f32",)),
    ],
    cost=24, fan_out=_fan_out, needs=_needs,
    doc="x [N,C,*image], grid [N,*out,axes]: positions list the image's last axis first; mode linear, nearest, cubic; "
    "image [M] says which image each grid of [M,*out,axes] reads (left out: its own)",
)  # fmt: skip
