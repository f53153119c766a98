"""Attention of a ragged batch's tokens to their sequences' pages (``compiler/ragged.py``)."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.paged import PagedCache, quantised_rows
from arcweld.compiler.torch.context import AtenContext, Result, aten


@aten("arcweld.paged_attention.default")
def paged_attention(c: AtenContext) -> Result:
    """The tokens' keys and values go to their slots; then each tile attends to its pages."""
    slots, tile_rows, places, indptr, indices, last, new = c["batch"]
    query, key, value = (_by_token(c, name) for name in ("query", "key", "value"))
    kept = c["pages"]
    scales: list[Value | None] = [_scale(c, name) for name in ("key_scale", "value_scale")]
    if len(kept) == 4:
        parts = [quantised_rows(c, x) for x in (key, value)]
        rows = [codes for codes, _ in parts] + [scale for _, scale in parts]
    else:
        rows = [_stored(c, x, p.dtype, scale) for x, p, scale in zip((key, value), kept, scales)]
    pages = [c.emit("ScatterND", p, slots, r, padding=1) for p, r in zip(kept, rows)]
    if len(pages) == 4:
        scales = [*pages[2:]]
    cache = PagedCache(c, indptr, indices, last, kept[0].shape[1], c["length"], new)
    tiles = c.transpose(c.emit("Gather", query, tile_rows, axis=0), (0, 2, 1, 3))
    y = cache.attend(
        tiles, *pages[:2], scale=c["scale"], window=c["window"], softcap=c["softcap"], sink=c["sink"],
        key_scale=scales[0], value_scale=scales[1],
    )  # fmt: skip
    y = c.emit("GatherND", c.transpose(y, (0, 2, 1, 3)), places)
    return c.result(c.reshape(y, c.out.shape)), *pages


def _scale(c: AtenContext, name: str) -> Value | None:
    """The scale of keys or of values: one number or one for each head; None for pages that have none."""
    given = c[name]
    dtype = c["query"].dtype.compute
    return c.const(given if len(given) > 1 else given[0], dtype) if given else None


def _stored(c: AtenContext, rows: Value, dtype: DType, scale: Value | None) -> Value:
    """Rows [T, heads, size] in the type of the pages; with a scale, divided by it and clamped at the largest number."""
    if scale is not None:
        return c.emit("QuantizeLinear", rows, scale, axis=1, dtype=dtype)
    return rows if rows.dtype is dtype else c.emit("Cast", rows, to=dtype)


def _by_token(c: AtenContext, name: str) -> Value:
    """An operand [1, heads, T, size] as [T, heads, size]."""
    x = c[name]
    _, heads, tokens, size = x.shape
    return c.reshape(c.transpose(x, (0, 2, 1, 3)), (tokens, heads, size))
