"""ATen's scatters: elements and slices that an index names, replaced or combined, with and without what was there."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.places import index_tensor, slices

_REDUCTIONS = {
    "sum": "add", "prod": "mul", "amax": "max", "amin": "min", "add": "add", "multiply": "mul", "mean": "mean",
}  # fmt: skip


@aten("scatter.src")
def scatter_src(c: AtenContext) -> Result:
    return _scatter(c, c["src"], "none")


@aten("scatter.value")
def scatter_value(c: AtenContext) -> Result:
    return _scatter(c, c.full(c["value"], c["index"].shape, c.out.dtype), "none")


@aten("scatter.value_reduce")
def scatter_value_reduce(c: AtenContext) -> Result:
    return _scatter(c, c.full(c["value"], c["index"].shape, c.out.dtype), _REDUCTIONS[c["reduce"]])


@aten("scatter_add")
def scatter_add(c: AtenContext) -> Result:
    return _scatter(c, c["src"], "add")


@aten("scatter_reduce.two", "scatter.reduce")
def scatter_reduce(c: AtenContext) -> Result:
    return _scatter(c, c["src"], _REDUCTIONS[c["reduce"]], bool(c.get("include_self", True)))


def _scatter(c: AtenContext, src: Value, reduction: str, include: bool = True) -> Value:
    x: Value = c["self"]
    at, axis = index_tensor(c, c["index"]), c.axis(c["dim"])
    if not x.shape:  # a scalar is a row of one element
        x, at, src, axis = c.reshape(x, (1,)), c.reshape(at, (at.type.numel,)), c.reshape(src, (src.type.numel,)), 0
    for k, (d, s) in enumerate(zip(at.shape, src.shape)):
        if d != s:  # torch lets src be larger than the index
            src = c.slice(src, k, 0, d)
    return c.reshape(_combined(c, x, at, c.cast(src, x.dtype), axis, reduction, include), c.out.shape)


def _combined(c: AtenContext, x: Value, at: Value, src: Value, axis: int, reduction: str, include: bool) -> Value:
    """``x`` with ``src`` combined at ``at``; without ``include`` old values count only where nothing comes."""

    def put(into: Value, updates: Value, how: str) -> Value:
        return c.emit("ScatterElements", into, at, updates, axis=axis, reduction=how, strict=1)

    if not include:
        x = put(x, c.full(_neutral(reduction, x.dtype), at.shape, x.dtype), "none")
    if reduction != "mean":
        return put(x, src, reduction)
    wide = x.dtype.compute
    total = put(c.cast(x, wide), c.cast(src, wide), "add")
    start = c.full(1 if include else 0, x.shape, DType.I32)
    counts = put(start, c.full(1, at.shape, DType.I32), "add")
    counts = c.cast(c.emit("Max", counts, c.scalar(1, DType.I32)), wide)
    if x.dtype.is_float:
        return c.cast(c.emit("Div", total, counts), x.dtype)
    rest = c.emit("Mod", total, counts, fmod=0)  # rounded down
    return c.emit("Div", c.emit("Sub", total, rest), counts)


def _neutral(reduction: str, dtype: DType) -> float | int:
    """What changes nothing in a reduction."""
    if reduction in ("max", "min"):
        if dtype.is_float:
            return float("-inf" if reduction == "max" else "inf")
        bits, signed = 8 * dtype.numpy.itemsize, int(dtype.is_signed)
        least, most = -signed << (bits - 1), (1 << (bits - signed)) - 1
        return least if reduction == "max" else most
    return int(reduction == "mul")


# ---------------------------------------------------------------------------------------------------------- slices


@aten("index_add")
def index_add(c: AtenContext) -> Result:
    source = c["source"]
    if c["alpha"] != 1:
        source = c.apply("Mul", source, c["alpha"])
    return _rows(c, source, "add")


@aten("index_copy")
def index_copy(c: AtenContext) -> Result:
    return _rows(c, c["source"], "none")


@aten("index_reduce")
def index_reduce(c: AtenContext) -> Result:
    return _rows(c, c["source"], _REDUCTIONS[c["reduce"]], bool(c["include_self"]))


def _rows(c: AtenContext, source: Value, reduction: str, include: bool = True) -> Value:
    """Writes whole slices along one axis, or combines them with what is there."""
    x: Value = c["self"]
    at, source = index_tensor(c, c["index"]), c.cast(source, x.dtype)
    at, axis = c.reshape(at, (at.type.numel,)), c.axis(c["dim"]) if x.shape else 0
    source = source if source.shape else c.reshape(source, (1,))
    if x.shape and include and reduction != "mean":
        return slices(c, at, source, axis, reduction, 1)
    places = c.expand(c.reshape(at, tuple(d if k == axis else 1 for k, d in enumerate(source.shape))), source.shape)
    row = x if x.shape else c.reshape(x, (1,))
    return c.reshape(_combined(c, row, places, source, axis, reduction, include), x.shape)


# ------------------------------------------------------------------------------------------- in the order of memory


@aten("put")
def put(c: AtenContext) -> Result:
    """Elements by their row-major places."""
    x: Value = c["self"]
    at, source = index_tensor(c, c["index"]), c["source"]
    flat, places = c.reshape(x, (x.type.numel,)), c.reshape(at, (at.type.numel,))
    updates, how = c.reshape(source, (source.type.numel,)), "add" if c["accumulate"] else "none"
    return c.reshape(c.emit("ScatterElements", flat, places, updates, axis=0, reduction=how, strict=1), x.shape)


@aten("masked_scatter")
def masked_scatter(c: AtenContext) -> Result:
    """The elements of ``source``, in order, where the mask is true."""
    shape, source = c.out.shape, c["source"]
    mask = c.expand(c["mask"], shape)
    count = c.emit("CumSum", c.reshape(c.cast(mask, DType.I64), (mask.type.numel,)), axis=0)
    place = c.emit("Max", c.emit("Sub", count, c.scalar(1, DType.I64)), c.scalar(0, DType.I64))
    flat = c.reshape(source, (source.type.numel,))
    picked = c.reshape(c.emit("Gather", flat, place, axis=0, strict=1), shape)
    return c.emit("Where", mask, picked, c.expand(c["self"], shape))


@aten("diagonal_scatter")
def diagonal_scatter(c: AtenContext) -> Result:
    """``self`` with a diagonal of two of its axes replaced."""
    x, src = c["self"], c["src"]
    rank = len(x.shape)
    first, second = c.axis(c["dim1"]), c.axis(c["dim2"])
    rest = [k for k in range(rank) if k not in (first, second)]
    rows, columns, length = x.shape[first], x.shape[second], src.shape[-1]
    if not all(isinstance(d, int) for d in (rows, columns, length)):
        raise c.fail("the diagonal of a symbolic matrix")
    offset, order = c["offset"], [*rest, first, second]
    flat = c.transpose(x, order)
    flat = c.reshape(flat, (*flat.shape[:-2], rows * columns))
    numbers = [(k + max(-offset, 0)) * columns + k + max(offset, 0) for k in range(length)]
    at = c.expand(c.const(numbers, DType.I64), src.shape)
    y = c.emit("ScatterElements", flat, at, c.cast(src, x.dtype), axis=len(rest), reduction="none")
    y = c.reshape(y, (*flat.shape[:-1], rows, columns))
    return c.transpose(y, [order.index(k) for k in range(rank)])
