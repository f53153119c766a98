"""``Input``: what a user declares about a model's input before the import; checked before the model is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, symbol
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import ArcweldError, ModelError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.size_ranges import SizeRange

Entry = int | str | tuple[str, int, int | None] | Dim | None


@dataclass(frozen=True, slots=True)
class Input:
    """A declaration about one input of a model.

    shape  one entry for each axis: an int, a name (a symbolic dimension), an expression (``"32*h"``),
           ``(name, lowest, highest)`` with an inclusive range, or None for the model's own; None: the model's shape
    dtype  a dtype of numpy or torch, or its name; the model's must be the same
    value  a constant for the input: a number or an array; the engine then has no such input
    inout  whether an output takes over the input's memory: the output's name, or True for the one whose name goes with
           it (``present.0.key`` with ``past_key_values.0.key``)
    """

    name: str
    shape: Sequence[Entry] | None = None
    dtype: Any = None
    value: Any = None
    inout: bool | str = False


@dataclass(frozen=True, slots=True)
class CheckedInputs:
    """Declarations that make sense by themselves: shapes and values by input name, as ``import_onnx`` takes them."""

    shapes: dict[str, list[Dim | str | None]]
    values: dict[str, Any]
    inputs: tuple[Input, ...]

    @property
    def state(self) -> dict[str, str | bool]:
        """The inputs that outputs take over, as ``with_state`` takes them."""
        return {i.name: i.inout for i in self.inputs if i.inout}

    def check(self, graph: Graph) -> None:
        """Raises UsageError for an input that the graph lacks, ModelError for one of another element type."""
        found = {v.name: v for v in graph.inputs}
        for i in (i for i in self.inputs if i.value is None):
            if i.name not in found:
                raise UsageError(f"the model has no input {i.name!r}", hint=f"its inputs are {', '.join(found)}")
            if i.dtype is not None and (asked := _element(i)) is not found[i.name].dtype:
                raise ModelError(f"input {i.name} is {found[i.name].dtype.value}, not {asked.value}", node=i.name)


def check_inputs(inputs: Sequence[Input] | Input) -> CheckedInputs:
    """Checks the declarations without the model.

    Raises UsageError for other objects, an input declared twice, a shape together with a value, or an entry of a shape
    that is no dimension.
    """
    given = (inputs,) if isinstance(inputs, Input) else tuple(inputs)
    for i in given:
        if not isinstance(i, Input):
            hint = 'inputs=[arcweld.Input("x", shape=(1, 3, 224, 224))]'
            raise UsageError(f"inputs= is a list of Input, not of {type(i).__name__}", hint=hint)
        if sum(i.name == j.name for j in given) > 1:
            raise UsageError(f"input {i.name} is given twice")
        if i.shape is not None and i.value is not None:
            raise UsageError(f"input {i.name} is given a value and a shape", hint="its value has a shape of its own")
        if i.inout and i.value is not None:
            raise UsageError(f"input {i.name} is given a value, and no output can take over a constant")
    shapes = {i.name: [_dimension(i, d) for d in i.shape] for i in given if i.shape is not None}
    return CheckedInputs(shapes, {i.name: i.value for i in given if i.value is not None}, given)


def _dimension(i: Input, d: Any) -> Dim | str | None:
    if isinstance(d, int | np.integer) and not isinstance(d, bool):
        return int(d)
    if d is None or isinstance(d, IntExpr) or (isinstance(d, str) and not isinstance(i.shape, str)):
        return d
    if not (isinstance(d, tuple) and 2 <= len(d) <= 3 and isinstance(d[0], str)):
        raise UsageError(
            f"{d!r} is no dimension of input {i.name}", hint='a size, a name, "32*h", or ("name", lowest, highest)'
        )
    name, low, high = (*d, None)[:3]
    if not isinstance(low, int) or not isinstance(high, int | None) or low < 0 or (high is not None and low > high):
        raise UsageError(f"dimension {name} of input {i.name} ranges from {low} to {high}")
    return symbol(name, low, high)


def _element(i: Input) -> DType:
    """The element type that an Input names."""
    if isinstance(i.dtype, DType):
        return i.dtype
    try:
        text = str(i.dtype).removeprefix("torch.")
        return from_numpy(np.dtype(text if type(i.dtype).__module__ == "torch" else i.dtype))
    except (TypeError, ArcweldError):
        raise UsageError(f"{i.dtype!r} is no element type of input {i.name}", hint='np.float32, "int64", …') from None


def checked_sizes(sizes: Mapping[str, Any] | None) -> dict[str, int] | None:
    """Sizes of symbolic dimensions as ints, by name. Raises UsageError for anything but a non-negative integer."""
    for name, n in (sizes or {}).items():
        if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 0:
            raise UsageError(f"{n!r} is no size of dimension {name}")
    return None if sizes is None else {name: int(n) for name, n in sizes.items()}


def checked_ranges(ranges: Any, graph: Graph) -> tuple[SizeRange, ...] | None:
    """Ranges of sizes, each a mapping from names to sizes or (lowest, highest), or text such as ``s=1,b=1..8``.

    Raises UsageError for anything else, for an unknown dimension, and for bounds outside a dimension's own range.
    """
    if ranges is None:
        return None
    if isinstance(ranges, str | Mapping) or not isinstance(ranges, Sequence):
        raise UsageError("ranges is a list of ranges of sizes", hint="ranges=[{'s': 1, 'b': (1, 8)}, {'s': 1}]")
    found = tuple(_size_range(r) for r in ranges)
    for r in found:
        r.dims(graph)
    return found


def _size_range(given: Any) -> SizeRange:
    bounds = _bounds(given) if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    for name, b in bounds.items():
        both = b if isinstance(b, tuple) and len(b) == 2 else (b,)
        if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in both):
            raise UsageError(f"{b!r} is no size of dimension {name}", hint="a number, or (lowest, highest)")
    if not bounds:
        raise UsageError(f"{given!r} is no range of sizes", hint="write s=1,b=1..8, or {'s': 1, 'b': (1, 8)}")
    pairs = {str(n): b if isinstance(b, tuple) else (b, b) for n, b in bounds.items()}
    return SizeRange.of({n: (int(lo), int(hi)) for n, (lo, hi) in pairs.items()})


def _bounds(text: str) -> dict[str, int | tuple[int, int]]:
    """The bounds in ``s=1,b=1..8``."""
    found: dict[str, int | tuple[int, int]] = {}
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)(?:\.\.(\d+))?\s*", item)
        if match is None or match[1] in found:
            raise UsageError(f"{item.strip()!r} is no bound of a dimension, or its second one", hint="write s=1,b=1..8")
        found[match[1]] = (int(match[2]), int(match[3] or match[2]))
    return found
