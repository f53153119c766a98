"""Operators that the host computes inside an engine, because there is no kernel for them.

Each has the reference that its specification gives, with numpy, and no lowering. Whatever runs here waits for the
device and copies its operands: ``inspect`` lists it, and ``strict`` builds refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.errors import EngineFileError, InputError
from arcweld.compiler.ops import host_strings

Reference = Callable[[Sequence[np.ndarray | None], Mapping[str, Any]], tuple[np.ndarray, ...]]
OPERATORS: dict[str, Reference] = dict(host_strings.REFERENCES)
OF_SIZES = frozenset({"ResolvedShape", "ResolvedSlice"})  # compute sizes only: they are no fallbacks


def operator(name: str) -> Callable[[Reference], Reference]:
    """Registers a reference under the operator's name."""

    def put(reference: Reference) -> Reference:
        OPERATORS[name] = reference
        return reference

    return put


def compute(
    name: str, operands: Sequence[np.ndarray | None], attrs: Mapping[str, Any], origin: Sequence[str] = ()
) -> tuple[np.ndarray, ...]:
    """The results of an operator. Raises EngineFileError for an unknown one, InputError for operands that do not fit.

    ``origin`` names the model's nodes in messages.
    """
    reference = OPERATORS.get(name)
    if reference is None:
        raise EngineFileError(f"the host has no operator {name[:80]!r}", hint="load it with the Arcweld that built it")
    try:
        with np.errstate(all="ignore"):
            return reference(operands, attrs)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError) as error:
        raise InputError(f"{', '.join(origin) or name}: {name} cannot be computed: {error}") from error


@operator("ResolvedShape")
def resolved_shape(operands: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """The shape that ONNX Reshape makes of a tensor whose own sizes are the last operand."""
    wanted, own = operands[0], operands[-1]
    assert wanted is not None
    assert own is not None
    shape = [int(own[k]) if d == 0 and not attrs.get("allowzero") else int(d) for k, d in enumerate(wanted)]
    if -1 in shape:
        rest = int(np.prod([d for d in shape if d != -1], dtype=np.int64))
        shape[shape.index(-1)] = int(np.prod(own, dtype=np.int64)) // max(rest, 1)
    return (np.array(shape, wanted.dtype),)


@operator("ResolvedSlice")
def resolved_slice(operands: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """The first place and the number of places that ONNX Slice takes along axes whose sizes are the last operand."""
    starts, ends, extents = operands
    assert starts is not None
    assert ends is not None
    assert extents is not None
    found: list[int] = []
    for start, end, extent, step in zip(starts, ends, extents, attrs["steps"], strict=True):
        places = range(int(extent))[slice(int(start), int(end), int(step))]
        found += [places.start if len(places) else 0, len(places)]
    return (np.array(found, np.int64),)


@operator("Unique")
def unique(operands: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """ONNX Unique-11: values, or slices along an axis, their first places, the inverse, and their numbers."""
    x = operands[0]
    assert x is not None
    axis = attrs.get("axis")
    values, first, inverse, counts = np.unique(
        x.reshape(-1) if axis is None else x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not attrs.get("sorted", 1):
        order = np.argsort(first)
        place = np.argsort(order)
        values = np.take(values, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], place[inverse]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)
