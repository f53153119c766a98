"""TopK and TopKIndices: the k largest or smallest elements of a row, or their indices; SortIndices: of all of them.

Few elements of a row are selected (SelectIndices), a whole row is sorted (SortIndices): each is a template of its own,
and one launch. In a very short row an element's rank is the number of elements that come before it: n^2 comparisons for
n elements, which fuse into reductions of many rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.composite import composite
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, OpDef, register
from arcweld.compiler.ops.shapes import NUMERIC, check_axis, check_dtype, present

Attrs = Mapping[str, Any]
SELECTED = 1024  # the most elements of a row that are selected: a block's shared memory holds them
RANKED = 32  # elements of a row that are all compared with each other: a block for each row would leave most lanes idle


def _indices(op: str) -> Infer:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, NUMERIC)
        axis, k = check_axis(op, attrs["axis"], x.rank), attrs["k"]
        n = x.shape[axis]
        if isinstance(k, int) and (k < 0 or (isinstance(n, int) and k > n)):
            raise ModelError(f"{op}: {k} of {n} elements")
        return (TensorType(DType.I64, (*x.shape[:axis], k, *x.shape[axis + 1 :])),)

    return infer


def _values_and_indices(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (indices,) = _indices("TopK")(types, attrs)
    (x,) = present("TopK", types, 1)
    return (x.with_shape(indices.shape), indices)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = np.moveaxis(widen(operand(arrays)), attrs["axis"], -1)
    if attrs["largest"]:
        # a stable sort of the reversed row, read backwards, is descending and keeps equal elements in order
        order = x.shape[-1] - 1 - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    else:
        order = np.argsort(x, axis=-1, kind="stable")
    return (np.ascontiguousarray(np.moveaxis(order[..., : attrs["k"]], -1, attrs["axis"]).astype(np.int64)),)


def _both(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    (indices,) = _reference(arrays, attrs)
    return np.take_along_axis(operand(arrays), indices, attrs["axis"]), indices


def _above(e: Emit, a: Value, b: Value) -> Value:
    """``a > b``, where NaN is above all numbers and not above itself."""
    if not a.dtype.is_float:
        return e("Greater", a, b)
    return e("And", e("Not", e("LessOrEqual", a, b)), e("Equal", b, b))


def _decompose(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    """The results of TopK or of TopKIndices."""
    (x,), p, e = node.operands(), node.attrs, Emit(rw, node)
    last = x.type.rank - 1
    behind = [a for a in range(last + 1) if a != p["axis"]]
    row = e.transpose(x, (*behind, p["axis"]))
    places, values = _first(e, row, p["k"], bool(p["largest"]), node.op == "TopK")
    back = (*range(p["axis"]), last, *range(p["axis"], last))
    return tuple(e.transpose(v, back) for v in (values, places) if v is not None)


def _first(e: Emit, row: Value, k: Dim, largest: bool, with_values: bool) -> tuple[Value, Value | None]:
    """The indices of the first ``k`` elements of each row along the last axis, and if wanted these elements."""
    n, axis = row.shape[-1], row.type.rank - 1
    if isinstance(n, int) and n <= RANKED:
        places = _by_rank(e, row, k, largest)
    elif k != n and dims.is_nonneg(SELECTED - k):
        places = e("SelectIndices", row, k=k, largest=int(largest))
        return places, e.rw.nodes[-1].outputs[1] if with_values else None
    else:
        places = e.slice(e("SortIndices", row, largest=int(largest)), axis, 0, k)
    return places, e("GatherElements", row, places, axis=axis) if with_values else None


def _before(e: Emit, other: Value, mine: Value, earlier: Value, largest: bool) -> Value:
    """Whether ``other`` comes before ``mine``; of equal elements the one with the lower index (``earlier``) does."""
    high, low = (other, mine) if largest else (mine, other)
    return e("Where", earlier, e("Not", _above(e, low, high)), _above(e, high, low))


def _ranks(e: Emit, row: Value, largest: bool) -> Value:
    """The rank of each element in its row, as an i32."""
    last = row.type.rank - 1
    lead, n = row.shape[:-1], row.shape[-1]
    mine, other = e.reshape(row, (*lead, n, 1)), e.reshape(row, (*lead, 1, n))
    count = e("Range", start=0, step=1, length=n, dtype=DType.I32)
    earlier = e("Less", e.reshape(count, (1, n)), e.reshape(count, (n, 1)))
    before = _before(e, other, mine, earlier, largest)
    return e("ReduceSum", e.cast(before, DType.I32), axes=(last + 1,), keepdims=0)


def _by_rank(e: Emit, row: Value, k: Dim, largest: bool) -> Value:
    last = row.type.rank - 1
    lead, n = row.shape[:-1], row.shape[-1]
    rank = _ranks(e, row, largest)
    places = e.reshape(e("Range", start=0, step=1, length=k, dtype=DType.I32), (k, 1))
    here = e("Equal", e.reshape(rank, (*lead, 1, n)), places)
    number = e("Where", here, e("Range", start=0, step=1, length=n, dtype=DType.I64), e.const(0, DType.I64))
    return e("ReduceSum", number, axes=(last + 1,), keepdims=0)


def _select_infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("SelectIndices", types, 1)
    (places,) = _indices("SelectIndices")(types, {**attrs, "axis": x.rank - 1})
    if not dims.is_nonneg(SELECTED - attrs["k"]):
        raise ModelError(f"SelectIndices: {attrs['k']} elements of a row, at most {SELECTED} are selected")
    return (places, x.with_shape(places.shape))


def _select_reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    return _both(arrays, {**attrs, "axis": operand(arrays).ndim - 1})[::-1]


def _sort_infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("SortIndices", types, 1)
    check_dtype("SortIndices", x, NUMERIC)
    check_axis("SortIndices", 0, x.rank)
    return (x.with_dtype(DType.I64),)


def _sort_reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    return _reference(arrays, {"axis": x.ndim - 1, "k": x.shape[-1], "largest": attrs["largest"]})


_LONG = np.random.default_rng(0).normal(size=(1, 2100)).round(2).astype(np.float32)  # with equal elements
_LONG[0, ::300] = np.nan
_LONG[0, 1::400] = -np.inf
_TYPES = ("f32", "f16", "f64", "i64", "i32", "i16", "i8", "u8", "u16", "u32", "u64")
_TIES = np.array([[1, 3, 3, 0, 3, -1], [2, 2, 2, 2, 2, 2]], np.float32)
_ZEROS = np.array([[0.0, -0.0, np.nan, -1, np.inf, -np.nan, 0.0, -np.inf]], np.float32)
register(
    OpDef(
        "SortIndices", Kind.SORT, ("x",), _sort_infer, _sort_reference, {"largest": Attr("int", 1)},
        cases=(
            Case(((3, 7),), {}, _TYPES, 0.0, 9.0),
            Case(((2, 3, 70),), {"largest": 0}, ("f32", "i32"), -9.0, 9.0),
            Case((_ZEROS,), {"largest": 0}), Case((_ZEROS,)), Case((_ZEROS.astype(np.float64),)),
            Case((_TIES,)), Case((_LONG,), {"largest": 0}), Case(((1,),)), Case(((2, 0),)),
        ),
        cost=32,
        doc="the indices that sort the last axis, the largest or the smallest first; of equal elements the first comes "
        "first; NaN is the largest",
    )
)  # fmt: skip
register(
    OpDef(
        "SelectIndices", Kind.SELECT, ("x",), _select_infer, _select_reference,
        {"k": Attr("dim", required=True), "largest": Attr("int", 1)},
        cases=(
            Case(((3, 70),), {"k": 5}, _TYPES, 0.0, 9.0),
            Case(((2, 3, 70),), {"k": 60, "largest": 0}, ("f32", "i32"), -9.0, 9.0),
            Case((_ZEROS,), {"k": 6, "largest": 0}), Case((_ZEROS,), {"k": 6}), Case((_TIES,), {"k": 4}),
            Case((_LONG,), {"k": 20, "largest": 0}), Case(((4500,),), {"k": 3}), Case(((1,),), {"k": 1}),
        ),
        cost=16,
        doc="the indices of the first k elements of the last axis, at most 1024, the largest or the smallest first, "
        "and these elements; of equal elements the first comes first; NaN is the largest",
    )
)  # fmt: skip
_FIRST = {"k": Attr("dim", required=True), "axis": Attr("int", required=True), "largest": Attr("int", 1)}
composite(
    "TopK", "x", _values_and_indices, _both, _decompose, _FIRST,
    [
        Case(((3, 7),), {"k": 3, "axis": 1}, ("f32", "i64")),
        Case(((2, 50, 3),), {"k": 5, "axis": 1, "largest": 0}, ("f32", "f16")),
        Case(((2, 300),), {"k": 300, "axis": 1}, ("i32",), 0.0, 40.0),
        Case((_LONG,), {"k": 5, "axis": 1}),
    ],
    doc="sorted; of equal elements the first comes first; NaN is the largest",
)  # fmt: skip
composite(
    "TopKIndices", "x", _indices("TopKIndices"), _reference, _decompose, _FIRST,
    [
        Case(((3, 7),), {"k": 3, "axis": 1}, ("f32", "f16", "i64", "u8"), 0.0, 9.0),
        Case(((2, 5, 3),), {"k": 5, "axis": 1, "largest": 0}, ("f32",)),
        Case(((4, 3),), {"k": 1, "axis": 0}, ("f32", "i32"), -9.0, 9.0),
        Case((_TIES,), {"k": 4, "axis": 1}),
        Case((_TIES,), {"k": 6, "axis": 1, "largest": 0}),
        Case(((2, 2500),), {"k": 7, "axis": 1}, ("f32",)),
        Case(((2, 2500),), {"k": 5, "axis": 1, "largest": 0}, ("i32",), 0.0, 40.0),
        Case(((2, 2500),), {"k": 2500, "axis": 1}, ("i32",), 0.0, 40.0),
        Case((_LONG,), {"k": 2100, "axis": 1, "largest": 0}),
    ],
    doc="ONNX's TopK without the values, sorted; of equal elements the first comes first; NaN is the largest",
)  # fmt: skip
