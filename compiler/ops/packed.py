"""UnpackBits: bytes as the elements of a packed type that they hold, as files of quantised weights have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import INTS4, PLANES, DType, unpack
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, cast, index
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.movement import movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import check_dtype, check_rank, present


def _infer(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    (x,) = present("UnpackBits", types, 1)
    check_dtype("UnpackBits", x, (DType.U8,))
    check_rank("UnpackBits", x, 1)
    if attrs["dtype"] not in (*INTS4, *PLANES):
        raise ModelError(f"UnpackBits: {attrs['dtype']!r} is no integer type of less than 8 bits")
    return (TensorType(attrs["dtype"], (*x.shape[:-1], x.shape[-1] * attrs["dtype"].per_byte)),)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    x, dtype = operand(arrays), attrs["dtype"]
    return (unpack(np.ascontiguousarray(x), dtype, (*x.shape[:-1], x.shape[-1] * dtype.per_byte)),)


def _lower(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,) = node.operands()
    dtype = node.output.dtype
    *lead, at = coords
    byte = reader.read(x, (*lead, dims.floordiv(at, dtype.per_byte)))
    shift = cast(index(dims.mod(at, dtype.per_byte) * dtype.bits), DType.U8)
    return cast(binary("shr", byte, shift), dtype)


_BYTES = np.array([[0x1F, 0x80, 0x73], [0xE4, 0x09, 0xFF]], np.uint8)

movement(
    "UnpackBits", "x", _infer, _reference, _lower, {"dtype": Attr("dtype", required=True)},
    [Case((_BYTES,), {"dtype": dtype}) for dtype in dict.fromkeys((*INTS4, *PLANES))],
    "the elements of ``dtype`` in the bytes along the last axis, the first one in the lowest bits",
)  # fmt: skip
