"""Which values of integer inputs are indices: the runtime then checks those on the host before anything is launched.

    cache = ScatterElements(cache, position + (0, 1, 2), new)     position is at most the extent - 3

A kernel finds an index out of range too, but others may have written by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcweld.compiler.dims import Dim, maximum, minimum, to_text
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.runtime.program import Limit

VIEWS = frozenset({"Reshape", "Transpose", "Expand", "Identity"})  # of all elements
MOST_CONSTANTS = 1 << 16  # elements of a constant whose bounds are looked for


@dataclass(frozen=True, slots=True)
class _Index:
    """A value whose elements are those of an input plus every number from ``least`` to ``most``."""

    source: str
    least: Dim = 0
    most: Dim = 0


def index_limits(graph: Graph) -> tuple[Limit, ...]:
    """What operators that make an index out of range an error demand of the graph's inputs."""
    known = {v.name: _Index(v.name) for v in graph.inputs if v.dtype.is_int and v.dtype.bits >= 32}
    steps: dict[str, tuple[Dim, Dim]] = {}  # the least and the largest element of what counts
    found: dict[Limit, None] = {}
    for n in graph.nodes:
        if n.op in ("Add", "Sub"):
            _note_constants(graph, n, steps)
        index = _index(n, known, steps)
        if index is not None:
            known[n.output.name] = index
        elif n.op == "Range" and n.output.dtype.is_int:
            start, step, length = n.attrs["start"], n.attrs["step"], n.attrs["length"]
            ends = start, start + (length - 1) * step
            steps[n.output.name] = (minimum(*ends), maximum(*ends))
        elif n.op in VIEWS and n.operands()[0].name in steps:
            steps[n.output.name] = steps[n.operands()[0].name]
        extent = _strict_extent(n)
        if extent is not None and n.operands()[1].name in known:
            at = known[n.operands()[1].name]
            found[Limit(at.source, to_text(extent), to_text(at.least), to_text(at.most))] = None
    return tuple(found)


def _note_constants(graph: Graph, n: Node, steps: dict[str, tuple[Dim, Dim]]) -> None:
    """Notes the bounds of the weights that ``n`` reads."""
    for v in n.operands():
        weight = graph.weights.get(v.name)
        if weight is not None and v.dtype.is_int and 0 < weight.data.size <= MOST_CONSTANTS and v.name not in steps:
            steps[v.name] = int(weight.data.min()), int(weight.data.max())


def _index(n: Node, known: Mapping[str, _Index], steps: Mapping[str, tuple[Dim, Dim]]) -> _Index | None:
    """What the result is, if each of its elements is an input's plus a number, in every combination."""
    operands = n.operands()
    if len(n.outputs) != 1 or not n.output.dtype.is_int or n.output.dtype.bits < 32:
        return None
    if n.op in VIEWS or n.op == "Cast":
        return known.get(operands[0].name)
    if n.op not in ("Add", "Sub"):
        return None
    x, c = operands if operands[0].name in known or n.op == "Sub" else operands[::-1]
    at, bounds = known.get(x.name), steps.get(c.name)
    if at is None or bounds is None or not _every_pair(x, c):
        return None
    least, most = bounds if n.op == "Add" else (-bounds[1], -bounds[0])
    return _Index(at.source, at.least + least, at.most + most)


def _every_pair(x: Value, c: Value) -> bool:
    """True if an addition pairs each element of ``x`` with each of ``c``."""
    rank = max(x.type.rank, c.type.rank)
    shapes = [(1,) * (rank - v.type.rank) + v.shape for v in (x, c)]
    return all(a == 1 or b == 1 for a, b in zip(*shapes))


def _strict_extent(n: Node) -> Dim | None:
    """The extent of the axis along which ``n`` takes indices, if one out of range is an error."""
    if not n.attrs.get("strict") or len(n.inputs) < 2:
        return None
    data, index = n.operands()[:2]
    if n.op in ("Gather", "GatherElements", "ScatterElements"):
        return data.shape[n.attrs["axis"]]
    if n.op == "ScatterND" and index.shape[-1] == 1 and not n.attrs["padding"]:
        return data.shape[0]
    return None
