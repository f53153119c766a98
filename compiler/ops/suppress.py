"""SuppressOverlaps: greedy suppression of boxes that overlap better ones, the heart of NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.ops.registry import Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import check_equal, present

Attrs = Mapping[str, Any]
OP = "SuppressOverlaps"


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    boxes, valid, overlap, most = present(OP, types, 4)
    wanted = (DType.F32, DType.BOOL, DType.F32, DType.I64)
    if tuple(t.dtype for t in (boxes, valid, overlap, most)) != wanted:
        raise ModelError(f"{OP}: boxes and the limit are f32, what counts is bool, and the number i64")
    if overlap.shape or most.shape or not valid.shape or boxes.rank != valid.rank + 1:
        raise ModelError(f"{OP}: the limit and the number have no axes, boxes one more than what counts")
    for a, b in zip(boxes.shape, (*valid.shape, 4)):
        check_equal(OP, "axes of boxes", a, b)
    return (valid,)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """In f32, with each operation rounded, as frameworks compute overlaps."""
    boxes, valid, overlap, most = arrays
    assert boxes is not None
    assert valid is not None
    assert overlap is not None
    assert most is not None
    found = np.zeros(valid.shape, bool)
    for row in np.ndindex(valid.shape[:-1]):
        _greedy(boxes[row], valid[row], np.float32(overlap), int(most), found[row])
    return (found,)


def _greedy(boxes: np.ndarray, valid: np.ndarray, limit: np.float32, most: int, out: np.ndarray) -> None:
    """Sets those boxes of one row in ``out`` that stay."""
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2], -1, dtype=np.float32)
    left = valid.copy()
    with np.errstate(all="ignore"):
        for k in range(len(boxes)):
            if most <= 0:
                break
            if not left[k]:
                continue
            out[k], most = True, most - 1
            low, high = np.maximum(boxes[k, :2], boxes[:, :2]), np.minimum(boxes[k, 2:], boxes[:, 2:])
            common = np.prod(np.maximum(high - low, np.float32(0)), -1, dtype=np.float32)
            left &= ~(common / ((sizes[k] + sizes) - common) > limit)


def suppressed(
    e: Emitter, boxes: Value, scores: Value, overlap: Value, most: Value, least: Value | None = None
) -> tuple[Value, Value]:
    """Which boxes stay and the order of all of them, both [..., n]: best scores first, and first indices of equal ones.

    boxes    f32 [..., n, 4]: lower and upper corners; its leading axes broadcast to those of ``scores``
    scores   [..., n]
    overlap  f32 []: the part of what two boxes cover beyond which the later one goes
    most     i64 []: how many stay at most in a row
    least    []: only boxes with greater scores count
    """
    *lead, n = scores.shape
    axis = len(lead)
    order = e.emit("TopKIndices", scores, k=n, axis=axis, largest=1)
    shape = (*lead, n, 4)
    places = e.emit("Expand", e.reshape(order, (*lead, n, 1)), shape=shape)
    ordered = e.emit("GatherElements", e.emit("Expand", boxes, shape=shape), places, axis=axis)
    if least is None:
        counts = e.emit("ConstantOfShape", shape=(*lead, n), value=1, dtype=DType.BOOL)
    else:
        counts = e.emit("Greater", e.emit("GatherElements", scores, order, axis=axis), least)
    return e.emit(OP, ordered, counts, overlap, most), order


_RNG = np.random.default_rng(0)


def _boxes(*shape: int) -> np.ndarray:
    low = _RNG.integers(0, 12, (*shape, 2))
    return np.concatenate([low, low + _RNG.integers(0, 8, (*shape, 2))], -1).astype(np.float32)


_SOME, _ALL = _RNG.random((2, 3, 70)) < 0.8, np.ones((5,), bool)
_HALF, _MANY = np.array(0.5, np.float32), np.array(1000, np.int64)
register(
    OpDef(
        OP, Kind.SUPPRESS, ("boxes", "valid", "overlap", "most"), _infer, _reference,
        cases=(
            Case((_boxes(2, 3, 70), _SOME, _HALF, _MANY)),
            Case((_boxes(2, 3, 70), _SOME, np.array(0.2, np.float32), np.array(4, np.int64))),
            Case((_boxes(5), _ALL, np.array(0, np.float32), _MANY)),
            Case((_boxes(5), _ALL, _HALF, np.array(0, np.int64))),
            Case((_boxes(300), np.ones(300, bool), np.array(0.9, np.float32), _MANY)),
        ),
        cost=64,
        doc="whether each box [..., n, 4] stays: one that is valid and that no earlier one that stays overlaps by more "
        "than a part ``overlap`` of what both cover; at most ``most`` of a row",
    )
)  # fmt: skip
