"""ATen's operators of order: sorting, medians, modes, searches in sorted sequences, histograms, running extrema.

What compares all elements of a row with each other (modes, logcumsumexp) leaves long rows to PyTorch.
"""

from __future__ import annotations

from typing import Any

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.pointwise import promoted

_MOST = 2048  # elements of a row that are all compared with each other


def _row_length(c: AtenContext, n: Dim, what: str, most: int | None = None) -> int:
    if not isinstance(n, int):
        raise c.fail(f"{what} of {n} elements, an open number")
    if most is not None and n > most:
        raise c.fail(f"{what} of {n} elements: PyTorch sorts these faster")
    return n


def _ordered(c: AtenContext, x: Value, axis: int, k: Dim, descending: bool = False) -> Value:
    """The indices of the first ``k`` elements in order; NaN is the largest, and equal elements keep their order."""
    keys = c.cast(x, DType.U8) if x.dtype is DType.BOOL else x
    return c.emit("TopKIndices", keys, k=k, axis=axis, largest=int(descending))


def _at(c: AtenContext, x: Value, places: Value, axis: int, keep: bool) -> tuple[Value, Value]:
    """The elements at ``places``, one of each row, and the places."""
    values = c.emit("GatherElements", x, places, axis=axis)
    if keep:
        return values, places
    shape = tuple(d for k, d in enumerate(x.shape) if k != axis)
    return c.reshape(values, shape), c.reshape(places, shape)


# ------------------------------------------------------------------------------------------------------- sorting


@aten("sort", "sort.stable")
def sort(c: AtenContext) -> Result:
    x: Value = c["self"]
    if not x.shape:
        return x, c.scalar(0, DType.I64)
    axis = c.axis(c["dim"])
    found = _ordered(c, x, axis, x.shape[axis], bool(c["descending"]))
    return c.emit("GatherElements", x, found, axis=axis) if 0 in c.used else None, found


@aten("kthvalue")
def kthvalue(c: AtenContext) -> Result:
    x: Value = c["self"]
    if not x.shape:
        return x, c.scalar(0, DType.I64)
    axis, k = c.axis(c["dim"]), c["k"]
    _row_length(c, x.shape[axis], "a place in the order")
    return _at(c, x, c.slice(_ordered(c, x, axis, k), axis, k - 1, 1), axis, bool(c["keepdim"]))


def _median_of_all(skip: bool) -> Any:
    return lambda c: _median(c, c.reshape(c["self"], (c["self"].type.numel,)), 0, False, skip)[0]


aten("median")(_median_of_all(skip=False))
aten("nanmedian")(_median_of_all(skip=True))


@aten("median.dim")
def median(c: AtenContext) -> Result:
    return _median_of_rows(c, skip=False)


@aten("nanmedian.dim")
def nanmedian(c: AtenContext) -> Result:
    return _median_of_rows(c, skip=True)


def _median_of_rows(c: AtenContext, skip: bool) -> Result:
    x: Value = c["self"]
    if not x.shape:
        return x, c.scalar(0, DType.I64)
    return _median(c, x, c.axis(c["dim"]), bool(c["keepdim"]), skip)


def _median(c: AtenContext, x: Value, axis: int, keep: bool, skip: bool) -> tuple[Value, Value]:
    """The lower of the middle elements and its place. A NaN is the median, unless NaNs are to be skipped."""
    n = _row_length(c, x.shape[axis], "the median")
    middle = (n - 1) // 2
    if not x.dtype.is_float:
        return _at(c, x, c.slice(_ordered(c, x, axis, middle + 1), axis, middle, 1), axis, keep)
    missing = c.cast(c.emit("IsNaN", x), DType.I64)
    if skip:
        present = c.emit("Sub", c.scalar(n - 1, DType.I64), c.emit("ReduceSum", missing, axes=(axis,), keepdims=1))
        rank = c.emit("Div", c.emit("Max", present, c.scalar(0, DType.I64)), c.scalar(2, DType.I64))
        return _at(c, x, c.emit("GatherElements", _ordered(c, x, axis, n), rank, axis=axis), axis, keep)
    found = c.slice(_ordered(c, x, axis, middle + 1), axis, middle, 1)
    some = c.cast(c.emit("ReduceMax", missing, axes=(axis,), keepdims=1), DType.BOOL)
    found = c.emit("Where", some, c.emit("ArgMax", missing, axis=axis, keepdims=1), found)
    return _at(c, x, found, axis, keep)


@aten("mode")
def mode(c: AtenContext) -> Result:
    """The least of the most frequent elements, and the last place of it."""
    x: Value = c["self"]
    if not x.shape:
        return x, c.scalar(0, DType.I64)
    axis = c.axis(c["dim"])
    n = _row_length(c, x.shape[axis], "the mode", _MOST)
    perm = [k for k in range(len(x.shape)) if k != axis] + [axis]
    row = c.transpose(x, perm)
    lead, last = row.shape[:-1], len(row.shape) - 1
    same = c.emit("Equal", c.reshape(row, (*lead, n, 1)), c.reshape(row, (*lead, 1, n)))
    count = c.emit("ReduceSum", c.cast(same, DType.I32), axes=(last + 1,), keepdims=0)
    frequent = c.emit("Equal", count, c.emit("ReduceMax", count, axes=(last,), keepdims=1))
    keys = c.cast(row, DType.I32) if row.dtype is DType.BOOL else row
    worst = c.scalar(float("inf"), keys.dtype) if keys.dtype.is_float else c.emit(
        "ReduceMax", keys, axes=(last,), keepdims=1)  # fmt: skip
    if keys.dtype.is_float:
        frequent = c.emit("And", frequent, c.emit("Equal", keys, keys))
    least = c.emit("ReduceMin", c.emit("Where", frequent, keys, worst), axes=(last,), keepdims=1)
    here = c.emit("And", frequent, c.emit("Equal", keys, least))
    numbers = c.emit("Range", start=0, step=1, length=n, dtype=DType.I64)
    place = c.emit("ReduceMax", c.emit("Where", here, numbers, c.scalar(0, DType.I64)), axes=(last,), keepdims=1)
    values, places = _at(c, row, place, last, keep=True)
    if c["keepdim"]:
        back = [perm.index(k) for k in range(len(perm))]
        return c.transpose(values, back), c.transpose(places, back)
    return c.reshape(values, lead), c.reshape(places, lead)


# ------------------------------------------------------------------------------------------------ searches, counts


@aten("searchsorted.Tensor", "searchsorted.Scalar")
def searchsorted(c: AtenContext) -> Result:
    sequence, sorter = c["sorted_sequence"], c.get("sorter")
    if sorter is not None:
        sequence = c.emit("GatherElements", sequence, sorter, axis=len(sequence.shape) - 1)
    return _places(c, sequence, c["self"], bool(c["right"]) or c.get("side") == "right")


@aten("bucketize.Tensor", "bucketize.Scalar")
def bucketize(c: AtenContext) -> Result:
    return _places(c, c["boundaries"], c["self"], bool(c["right"]))


def _places(c: AtenContext, sequence: Value, wanted: Any, right: bool) -> Value:
    """Where each wanted value belongs in a sorted sequence, before what equals it or, with ``right``, behind.

    All intervals are halved at once, as often as the longest takes. Eager halves them too: in a sequence with NaNs the
    places depend on it.
    """
    n = sequence.shape[-1]
    if not isinstance(n, int):
        raise c.fail(f"a search in {n} elements")
    keys, value = promoted(c, sequence, wanted)
    value = c.reshape(value, c.out.shape if keys.shape[:-1] and c.out.shape else (value.type.numel,))
    last, one, two = len(keys.shape) - 1, c.scalar(1, DType.I64), c.scalar(2, DType.I64)
    begin, end = c.full(0, value.shape, DType.I64), c.full(n, value.shape, DType.I64)
    for _ in range(n.bit_length()):
        middle = c.emit("Div", c.emit("Add", begin, end), two)
        at = c.emit("Min", middle, c.scalar(n - 1, DType.I64))
        key = c.emit("GatherElements", keys, at, axis=last)
        go_on = c.emit("Less", begin, end)
        behind = c.emit("Not", c.emit("Greater" if right else "GreaterOrEqual", key, value))
        begin, end = (
            c.emit("Where", c.emit("And", go_on, behind), c.emit("Add", middle, one), begin),
            c.emit("Where", c.emit("And", go_on, c.emit("Not", behind)), middle, end),
        )
    return c.reshape(c.cast(begin, c.out.dtype), c.out.shape)


@aten("histc")
def histc(c: AtenContext) -> Result:
    """How many elements each of equally wide bins has; without a range, that of the elements."""
    dtype = c.out.dtype
    x = c.reshape(c["self"], (c["self"].type.numel,))
    bins = c["bins"]
    if not isinstance(bins, int) or bins > _MOST or not dtype.is_float:
        raise c.fail(f"a histogram of {bins} bins of {dtype.value}")
    low, high = c.scalar(c["min"], dtype), c.scalar(c["max"], dtype)
    if c["min"] == c["max"]:
        low, high = (c.emit(op, x, axes=(0,), keepdims=0) for op in ("ReduceMin", "ReduceMax"))
    if c["min"] == c["max"]:
        equal, one = c.emit("Equal", low, high), c.scalar(1.0, dtype)
        low, high = (c.emit("Where", equal, c.emit(op, v, one), v) for op, v in (("Sub", low), ("Add", high)))
    scaled = c.emit("Mul", c.emit("Sub", x, low), c.scalar(float(bins), dtype))
    place = c.emit("Floor", c.emit("Div", scaled, c.emit("Sub", high, low)))
    place = c.emit("Min", place, c.scalar(bins - 1.0, dtype))
    inside = c.emit("And", c.emit("GreaterOrEqual", x, low), c.emit("LessOrEqual", x, high))
    place = c.emit("Where", inside, place, c.scalar(-1.0, dtype))
    numbers = c.reshape(c.emit("Range", start=0, step=1, length=bins, dtype=dtype), (bins, 1))
    return c.emit("ReduceSum", c.cast(c.emit("Equal", place, numbers), dtype), axes=(1,), keepdims=0)


# --------------------------------------------------------------------------------------------------------- scans


def _running(op: str) -> Any:
    def handler(c: AtenContext) -> Result:
        """The extremum so far, and the last place where an element was one; NaN is every extremum."""
        x: Value = c["self"]
        if not x.shape:
            return x, c.scalar(0, DType.I64)
        axis = c.axis(c["dim"])
        keys = c.cast(x, DType.U8) if x.dtype is DType.BOOL else x
        best = c.emit(op, keys, axis=axis)
        values = c.cast(best, x.dtype)
        if 1 not in c.used:
            return values, None
        here = c.emit("Equal", keys, best)
        if keys.dtype.is_float:
            here = c.emit("Or", here, c.emit("IsNaN", keys))
        length = x.shape[axis]
        numbers = c.emit("Range", start=0, step=1, length=length, dtype=DType.I64)
        numbers = c.reshape(numbers, (length, *(1,) * (len(x.shape) - axis - 1)))
        return values, c.emit("CumMax", c.emit("Where", here, numbers, c.scalar(0, DType.I64)), axis=axis)

    return handler


aten("cummax")(_running("CumMax"))
aten("cummin")(_running("CumMin"))


@aten("logcumsumexp")
def logcumsumexp(c: AtenContext) -> Result:
    """The logarithm of the sum of all exponentials so far, each with the maximum so far taken out."""
    x: Value = c["self"]
    if not x.shape:
        return x
    axis, last = c.axis(c["dim"]), len(x.shape) - 1
    n = _row_length(c, x.shape[axis], "logcumsumexp", _MOST)
    perm = [k for k in range(last + 1) if k != axis] + [axis]
    row = c.transpose(c.cast(x, x.dtype.compute), perm)
    count = c.emit("Range", start=0, step=1, length=n, dtype=DType.I32)
    seen = c.emit("LessOrEqual", c.reshape(count, (1, n)), c.reshape(count, (n, 1)))
    terms = c.emit("Where", seen, c.reshape(row, (*row.shape[:-1], 1, n)), c.scalar(float("-inf"), row.dtype))
    y = c.emit("ReduceLogSumExp", terms, axes=(last + 1,), keepdims=0)
    return c.transpose(c.result(y), [perm.index(k) for k in range(last + 1)])


@aten("nonzero_static")
def nonzero_static(c: AtenContext) -> Result:
    """The coordinates of the first ``size`` elements that are not 0, and ``fill_value`` for those that are missing."""
    x, size = c["self"], c["size"]
    flat, shape = x.type.numel, x.shape
    if not all(isinstance(d, int) for d in (*shape, size)) or not shape:
        raise c.fail("nonzero_static of symbolic sizes")
    true = c.reshape(c.cast(x, DType.BOOL), (flat,))
    rank = c.emit("Sub", c.emit("CumSum", c.cast(true, DType.I64), axis=0), c.scalar(1, DType.I64))
    kept = c.emit("And", true, c.emit("Less", rank, c.scalar(size, DType.I64)))
    rank = c.emit("Where", kept, rank, c.scalar(size, DType.I64))  # all others share a place that is cut off
    columns, inner = [], 1
    numbers = c.emit("Range", start=0, step=1, length=flat, dtype=DType.I64)
    for d in reversed(shape):
        at = c.emit("Mod", c.emit("Div", numbers, c.scalar(inner, DType.I64)), c.scalar(d, DType.I64))
        empty = c.full(c["fill_value"], (size + 1,), DType.I64)
        column = c.emit("ScatterElements", empty, rank, at, axis=0)
        columns.append(c.reshape(c.slice(column, 0, 0, size), (size, 1)))
        inner *= d
    return c.concat(columns[::-1], 1)
