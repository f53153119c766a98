"""Attention of a ragged batch's tokens to their sequences' pages (``compiler/ragged.py``)."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.paged import PagedCache
from arcweld.compiler.torch.context import AtenContext, Result, aten


@aten("arcweld.paged_attention.default")
def paged_attention(c: AtenContext) -> Result:
    """The tokens' keys and values go to their slots; then each tile attends to its pages."""
    slots, tile_rows, places, indptr, indices, last, new = c["batch"]
    query, key, value = (_by_token(c, name) for name in ("query", "key", "value"))
    pages = [
        c.emit("ScatterND", c[name], slots, _stored(c, rows, c[name].dtype), padding=1)
        for name, rows in (("key_pages", key), ("value_pages", value))
    ]
    cache = PagedCache(c, indptr, indices, last, c["key_pages"].shape[1], c["length"], new)
    tiles = c.transpose(c.emit("Gather", query, tile_rows, axis=0), (0, 2, 1, 3))
    scale = c.const(1.0, query.dtype) if c["key_pages"].dtype.is_storage else None
    y = cache.attend(
        tiles, *pages, scale=c["scale"], window=c["window"], softcap=c["softcap"], sink=c["sink"], key_scale=scale,
        value_scale=scale,
    )  # fmt: skip
    y = c.emit("GatherND", c.transpose(y, (0, 2, 1, 3)), places)
    return c.result(c.reshape(y, c.out.shape)), *pages


def _stored(c: AtenContext, rows: Value, dtype: DType) -> Value:
    """Rows in the type of the pages; 8-bit floats have the scale 1, with which their largest number is 448."""
    if dtype.is_storage:
        return c.emit("QuantizeLinear", rows, c.const(1.0, rows.dtype), axis=0, dtype=dtype)
    return rows if rows.dtype is dtype else c.emit("Cast", rows, to=dtype)


def _by_token(c: AtenContext, name: str) -> Value:
    """An operand [1, heads, T, size] as [T, heads, size]."""
    x = c[name]
    _, heads, tokens, size = x.shape
    return c.reshape(c.transpose(x, (0, 2, 1, 3)), (tokens, heads, size))
