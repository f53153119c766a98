"""Pointwise operators on the bits of numbers: shifts, and a number's bits as another type.

See ``pointwise.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, both, cast, const, reinterpret, where
from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.elementwise import Attrs, pointwise
from arcweld.compiler.ops.registry import Attr, Case
from arcweld.compiler.ops.shapes import INTS, UNSIGNED, check_dtype, same_dtype

_UNSIGNED_OF = {d: d for d in UNSIGNED} | {
    DType.I64: DType.U64, DType.I32: DType.U32, DType.I16: DType.U16, DType.I8: DType.U8,
}  # fmt: skip


def _shift(p: Attrs, a: Expr, b: Expr) -> Expr:
    """Amounts outside [0, bits) shift everything out: what is left is the sign of a right shift, else 0."""
    bits, zero = a.dtype.size * 8, const(0, a.dtype)
    signed = a.dtype.is_signed
    seen = binary("lt", b, const(bits, b.dtype))
    if signed:
        seen = both(seen, binary("ge", b, zero))
    if p["direction"] == "LEFT":
        pattern = _UNSIGNED_OF[a.dtype]  # C++17 has no shift of negative numbers to the left
        by = where(seen, b, zero)
        moved = cast(binary("shl", cast(a, pattern), cast(by, pattern)), a.dtype)
        return where(seen, moved, zero)
    if signed:
        return binary("shr", a, where(seen, b, const(bits - 1, b.dtype)))
    return where(seen, binary("shr", a, where(seen, b, zero)), zero)


def _check_shift(types: Sequence[TensorType], p: Attrs) -> None:
    if p["direction"] not in ("LEFT", "RIGHT"):
        raise ModelError(f"BitShift: unknown direction {p['direction']}", hint="LEFT or RIGHT")
    same_dtype("BitShift", types)
    for t in types:
        check_dtype("BitShift", t, INTS)


pointwise(
    "BitShift", "a b", _shift,
    lambda p, a, b: np.left_shift(a, b) if p["direction"] == "LEFT" else np.right_shift(a, b),
    attrs={"direction": Attr("str", required=True)}, check=_check_shift, cost=3,
    cases=[Case(((3, 4), (4,)), {"direction": d}, ("u8", "u32"), 0.0, 7.0) for d in ("LEFT", "RIGHT")] + [
        Case((np.array([-8, 99, -1, 3, 64, -128], t), np.array([1, 0, bits, -1, bits - 1, 2], t)), {"direction": d})
        for t, bits in ((np.int8, 8), (np.int16, 16), (np.int32, 32), (np.int64, 64))
        for d in ("LEFT", "RIGHT")
    ] + [
        Case((np.array([200, 99, 255], t), np.array([bits - 1, bits, 255], t)), {"direction": d})
        for t, bits in ((np.uint8, 8), (np.uint32, 32), (np.uint64, 64))
        for d in ("LEFT", "RIGHT")
    ],
    doc="right shifts of signed integers repeat the sign, which is all that an amount outside [0, bits) leaves",
)  # fmt: skip


def _check_bits(types: Sequence[TensorType], p: Attrs) -> None:
    (x,), to = types, p["to"]
    check_dtype("BitCast", x, _WITH_BITS)
    if to not in _WITH_BITS or to.size != x.dtype.size:
        raise ModelError(f"BitCast of {x.dtype.value} to {to.value if isinstance(to, DType) else to!r}")


_WITH_BITS = (DType.F64, DType.F32, *INTS)
_BITS = np.array([0.0, -0.0, 1.5, -np.inf, np.nan, 1e-40, -3e38])
pointwise(
    "BitCast", "x",
    lambda p, x: cast(x, p["to"]) if x.dtype.is_float == p["to"].is_float else reinterpret(x, p["to"]),
    lambda p, x: x.view(p["to"].numpy), attrs={"to": Attr("dtype", required=True)},
    result=lambda types, p: p["to"], check=_check_bits,
    cases=[
        *(Case((_BITS.astype(np.float32),), {"to": to}) for to in (DType.I32, DType.U32, DType.F32)),
        *(Case((_BITS,), {"to": to}) for to in (DType.I64, DType.U64)),
        *(Case((_BITS.astype(np.float32).view(t),), {"to": DType.F32}) for t in (np.int32, np.uint32)),
        *(Case((_BITS.view(t),), {"to": DType.F64}) for t in (np.int64, np.uint64)),
        *(Case((np.array([0, -1, 100, -128], np.int8),), {"to": to}) for to in (DType.U8, DType.I8)),
    ],
    doc="the bits of x as another type of the same size; a 16-bit float's would not survive being computed with",
)  # fmt: skip
