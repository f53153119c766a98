"""What handlers of gathers and scatters share: index tensors, and slices at indices of an axis."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext


def index_tensor(c: AtenContext, v: Value) -> Value:
    """An index tensor in a type that gathers take. Raises UnsupportedError for masks."""
    if v.dtype in (DType.BOOL, DType.U8):
        raise c.fail("a boolean mask as index: the size of the result depends on data")
    return v if v.dtype in (DType.I64, DType.I32) else c.cast(v, DType.I64)


def slices(c: AtenContext, at: Value, values: Value, axis: int, reduction: str, strict: int) -> Value:
    """``self`` with the slices ``at`` of an axis replaced by, or combined with, those of ``values``.

    Nothing is transposed, so that state can be written where it is.
    """
    x: Value = c["self"]
    places = c.reshape(at, tuple(d if k == axis else 1 for k, d in enumerate(values.shape)))
    wide = c.expand(places, values.shape)
    return c.emit("ScatterElements", x, wide, c.cast(values, x.dtype), axis=axis, reduction=reduction, strict=strict)
