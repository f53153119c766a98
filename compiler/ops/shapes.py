"""Shape and type rules that operator entries share: broadcasting, axes, window extents, and checks.

Dimensions may be symbolic. A rule raises ModelError, which names both, for dimensions that are not provably equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from arcweld.compiler.dims import (
    Dim,
    IntExpr,
    bounds,
    ceildiv,
    divides_exactly,
    floordiv,
    free_symbols,
    is_nonneg,
    minimum,
    product,
    substitute,
    var,
)
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, all_of, binary, both, cast, const, index
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.ops.registry import Reader

FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16)
UNSIGNED = (DType.U64, DType.U32, DType.U16, DType.U8)
INTS = (DType.I64, DType.I32, DType.I16, DType.I8, *UNSIGNED)
NUMERIC = (*FLOATS, *INTS)
BOOLS = (DType.BOOL,)
ANY = (*NUMERIC, *BOOLS)
STORED = tuple(d for d in DType if d.is_storage)

# ------------------------------------------------------------------------------------------------------- checks


def present(op: str, types: Sequence[TensorType | None], count: int | None = None) -> list[TensorType]:
    """The types of operands that are all required. Raises ModelError for a missing one and for a wrong number."""
    if count is not None and len(types) != count:
        raise ModelError(f"{op} takes {count} operands, got {len(types)}")
    found = [t for t in types if t is not None]
    if not found or len(found) != len(types):
        raise ModelError(f"{op}: a required operand is missing")
    return found


def split_optional(
    op: str, types: Sequence[TensorType | None], required: int, total: int
) -> tuple[list[TensorType], list[TensorType | None]]:
    """The types of the required operands, and of the optional ones, None for those that are absent.

    Raises ModelError for a wrong number of operands, and for a required one that is missing.
    """
    if not required <= len(types) <= total:
        raise ModelError(f"{op} takes {required} to {total} operands, got {len(types)}")
    return present(op, types[:required]), [*types[required:], *[None] * (total - len(types))]


class ElementTypeError(ModelError):
    """An operand of a type that an operator does not take."""


def check_dtype(op: str, t: TensorType, allowed: Sequence[DType]) -> None:
    """Raises ElementTypeError if the operand's element type is not one of ``allowed``."""
    if t.dtype not in allowed:
        names = ", ".join(d.value for d in allowed)
        raise ElementTypeError(f"{op} does not take {t.dtype.value} operands", hint=f"it takes {names}")


def same_dtype(op: str, types: Sequence[TensorType]) -> DType:
    """The element type of all operands. Raises ModelError where they differ."""
    for t in types[1:]:
        if t.dtype is not types[0].dtype:
            raise ModelError(f"{op} of {types[0].dtype.value} and {t.dtype.value}", hint="insert a Cast")
    return types[0].dtype


def check_rank(op: str, t: TensorType, least: int, most: int | None = None) -> None:
    """Raises ModelError if the operand's rank is outside ``[least, most]``."""
    if t.rank < least or (most is not None and t.rank > most):
        wanted = f"{least}" if most == least else f"{least} to {most}" if most is not None else f"at least {least}"
        raise ModelError(f"{op} needs rank {wanted}, got {t}")


def check_axis(op: str, axis: int, rank: int) -> int:
    """``axis`` itself. Raises ModelError outside ``[0, rank)``: importers count axes from the front."""
    if not isinstance(axis, int) or not 0 <= axis < rank:
        raise ModelError(f"{op}: axis {axis} of a rank {rank} operand")
    return axis


def check_length(op: str, what: str, items: Sequence[Any], length: int) -> None:
    """Raises ModelError if an attribute list does not have one entry for each of ``length`` axes."""
    if len(items) != length:
        raise ModelError(f"{op}: {what} has {len(items)} entries, {length} are needed")


class UnequalError(ModelError):
    """Two dimensions, ``pair``, that have to be equal and are not known to be."""

    def __init__(self, message: str, pair: tuple[Dim, Dim]) -> None:
        super().__init__(message, hint=_equal_hint(*pair))
        self.pair = pair


def check_equal(op: str, what: str, a: Dim, b: Dim) -> None:
    """Raises UnequalError unless the two dimensions are equal expressions."""
    if a != b:
        raise UnequalError(f"{op}: {what}: {a} and {b} are not known to be equal", (a, b))


def check_within(op: str, small: Sequence[Dim], large: Sequence[Dim], but: int) -> None:
    """Raises ModelError unless each dimension of ``small`` is at most that of ``large``, the axis ``but`` aside."""
    for k, (a, b) in enumerate(zip(small, large)):
        if k != but and not is_nonneg(b - a):
            raise ModelError(f"{op}: axis {k} has {a} indices into {b} elements", hint=_equal_hint(a, b))


def _equal_hint(a: Dim, b: Dim) -> str | None:
    if isinstance(a, IntExpr) or isinstance(b, IntExpr):
        return "fix the symbolic dimension with --shapes, or give both the same name"
    return None


def check_elements(op: str, x: TensorType, axes: Iterable[int], out: Sequence[Dim]) -> None:
    """Raises ModelError if one of ``axes`` is empty although the result, of shape ``out``, is made of its elements."""
    for axis in axes:
        if x.shape[axis] == 0 and 0 not in out:
            raise ModelError(f"{op}: axis {axis} of {x} has no elements to make {show(out)} of")


def check_numel(op: str, a: Sequence[Dim], b: Sequence[Dim]) -> None:
    """Raises ModelError if the two shapes provably differ in their number of elements."""
    diff = product(a) - product(b)
    lo, hi = bounds(diff)
    if (lo is not None and lo > 0) or (hi is not None and hi < 0):
        raise ModelError(f"{op}: shape {show(a)} has {product(a)} elements, {show(b)} has {product(b)}")


def show(shape: Sequence[Dim]) -> str:
    """A shape for messages: ``[n, 3, 224]``."""
    return f"[{', '.join(str(d) for d in shape)}]"


# ------------------------------------------------------------------------------------------------- broadcasting


def broadcast(op: str, shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """Numpy's broadcasting rule on symbolic shapes. Raises ModelError for two dimensions neither equal nor 1."""
    rank = max(len(s) for s in shapes)
    out: list[Dim] = [1] * rank
    for shape in shapes:
        for k, d in enumerate(shape, rank - len(shape)):
            if d == 1 or d == out[k]:
                continue
            if out[k] != 1:
                both = " and ".join(show(s) for s in shapes)
                raise ModelError(f"{op}: cannot broadcast {both}: {out[k]} against {d}", hint=_equal_hint(out[k], d))
            out[k] = d
    return tuple(out)


def check_broadcast_to(op: str, what: str, shape: Sequence[Dim], target: Sequence[Dim]) -> None:
    """Raises ModelError unless ``shape`` broadcasts to exactly ``target``."""
    if broadcast(op, [shape, target]) != tuple(target):
        raise ModelError(f"{op}: {what} of shape {show(shape)} does not broadcast to {show(target)}")


def aligned(coords: Sequence[Dim], shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The coordinates of a broadcast operand: the trailing ones, 0 along axes of extent 1."""
    tail = tuple(coords)[len(coords) - len(shape) :]
    return tuple(0 if d == 1 else c for c, d in zip(tail, shape))


def read(reader: Reader, value: Value, coords: Sequence[Dim]) -> Expr:
    """The element of a broadcast operand for the output element at ``coords``."""
    return reader.read(value, aligned(coords, value.shape))


# ------------------------------------------------------------------------------------------------------ windows


def window_extent(
    size: Dim, kernel: Dim, stride: int, dilation: int, pad: Dim, ceil_mode: int = 0, begin: Dim = 0
) -> Dim:
    """The number of positions of a window over ``size`` elements with ``pad`` of padding, ``begin`` of that in front.

    With ``ceil_mode`` a partial window at the end counts, unless it begins in the padding after the data.
    """
    room = size + pad - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return floordiv(room, stride) + 1
    return minimum(ceildiv(room, stride) + 1, ceildiv(size + begin, stride))


def spatial_range(layout: str, rank: int) -> range:
    """The spatial axes of an image tensor in ``layout``: "NCHW" (N, C, spatial) or "NHWC" (N, spatial, C)."""
    if layout not in ("NCHW", "NHWC"):
        raise ModelError(f"unknown layout {layout}", hint="NCHW or NHWC")
    return range(2, rank) if layout == "NCHW" else range(1, rank - 1)


def channel_axis(layout: str, rank: int) -> int:
    """The axis of the channels of an image tensor in ``layout``."""
    return 1 if layout == "NCHW" else rank - 1


def image_shape(layout: str, n: Dim, c: Dim, spatial: Sequence[Dim]) -> tuple[Dim, ...]:
    """Batch, channels and spatial extents in the order of ``layout``."""
    return (n, c, *spatial) if layout == "NCHW" else (n, *spatial, c)


# -------------------------------------------------------------------------------------------- conditions on dims


def below(a: Dim, b: Dim) -> Expr:
    """``a < b`` as a bool expression: a constant where the symbols' ranges prove the answer."""
    lo, hi = bounds(b - a)
    if (lo is not None and lo > 0) or is_nonneg(b - a - 1):
        return const(True, DType.BOOL)
    if (hi is not None and hi <= 0) or is_nonneg(a - b):
        return const(False, DType.BOOL)
    return binary("lt", index(a), index(b))


def inside(c: Dim, lo: Dim, hi: Dim) -> Expr:
    """``lo <= c < hi`` as a bool expression."""
    return both(below(lo - 1, c), below(c, hi))


def vanishes_with(a: Dim, b: Dim) -> bool:
    """True if ``a`` is proved to be 0 wherever ``b`` is."""
    if divides_exactly(a, b) is not None:
        return True
    symbols = free_symbols(b)
    return len(symbols) == 1 and b == var(only := next(iter(symbols))) and substitute(a, {only: 0}) == 0


def if_any(extents: Iterable[Dim]) -> Expr | None:
    """Whether every extent is at least 1, as a bool expression; None where that is proved."""
    return all_of([below(0, d) for d in extents if not is_nonneg(d - 1)])


def dim_expr(value: Dim, dtype: DType) -> Expr:
    """A dimension or index as an expression of ``dtype``."""
    return cast(index(value), dtype)
