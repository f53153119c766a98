"""ATen's embeddings: rows of a table by index, alone or combined in bags."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.places import index_tensor


@aten("embedding")
def embedding(c: AtenContext) -> Result:
    return c.emit("Gather", c["weight"], index_tensor(c, c["indices"]), axis=0, strict=1)


_SUM, _MEAN, _MAX = range(3)  # torch's numbers of the modes


@aten("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(c: AtenContext) -> Result:
    """The sum, mean or maximum of the rows of each bag; a bag is the indices from its offset to the next one.

    An index equal to ``padding_idx`` adds nothing; an empty bag is zeros.
    """
    c.require_unused(*range(1, len(c.outs)))
    weight, indices, offsets = c["weight"], index_tensor(c, c["indices"]), index_tensor(c, c["offsets"])
    (count,), width, mode = indices.shape, weight.shape[1], c["mode"]
    bags = c.out.shape[0]
    numbers = c.emit("Range", start=0, step=1, length=count, dtype=offsets.dtype)
    begun = c.emit("LessOrEqual", c.reshape(c.slice(offsets, 0, 0, bags), (1, bags)), c.reshape(numbers, (count, 1)))
    bag = c.emit("ReduceSum", c.cast(begun, DType.I64), axes=(1,), keepdims=1)
    bag = c.emit("Sub", bag, c.scalar(1, DType.I64))
    rows = c.cast(c.emit("Gather", weight, indices, axis=0, strict=1), weight.dtype.compute)
    if c["per_sample_weights"] is not None:
        rows = c.emit("Mul", rows, c.reshape(c.cast(c["per_sample_weights"], rows.dtype), (count, 1)))
    kept = c.full(1.0, (count, 1), rows.dtype)
    if c["padding_idx"] >= 0:
        padding = c.emit("Equal", indices, c.scalar(c["padding_idx"], indices.dtype))
        kept = c.cast(c.emit("Not", c.reshape(padding, (count, 1))), rows.dtype)
        nothing = c.scalar(float("-inf") if mode == _MAX else 0.0, rows.dtype)
        rows = c.emit("Where", c.reshape(padding, (count, 1)), nothing, rows)
    sizes = _combined(c, c.full(0.0, (bags, 1), rows.dtype), bag, kept, "add")
    if mode == _MAX:
        most = _combined(c, c.full(float("-inf"), (bags, width), rows.dtype), bag, rows, "max")
        empty = c.emit("Equal", sizes, c.scalar(0.0, rows.dtype))
        return _only(c, c.emit("Where", empty, c.scalar(0.0, rows.dtype), most))
    total = _combined(c, c.full(0.0, (bags, width), rows.dtype), bag, rows, "add")
    if mode == _MEAN:
        total = c.emit("Div", total, c.emit("Max", sizes, c.scalar(1.0, rows.dtype)))
    return _only(c, total)


def _combined(c: AtenContext, start: Value, bag: Value, rows: Value, how: str) -> Value:
    return c.emit("ScatterElements", start, c.expand(bag, rows.shape), rows, axis=0, reduction=how)


def _only(c: AtenContext, y: Value) -> Result:
    return (c.result(y), *[None] * (len(c.outs) - 1))
