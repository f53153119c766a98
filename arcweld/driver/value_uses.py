"""What the use of an input says about its values: indices stay in bounds, masks are 0 or 1, divisors are not 0.

Only uses that follow from the graph count, never names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from arcweld.compiler.dims import Dim, evaluate, minimum
from arcweld.compiler.dtypes import DType
from arcweld.compiler.dtypes import integer_range as range_of_type
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef

# operators whose results may still be indices if an operand is one
KEEPS_INDICES = frozenset(
    {"Cast", "Reshape", "Transpose", "Expand", "Slice", "Concat", "Add", "Sub", "Max", "Min", "Where"}
)
VIEWS = frozenset({"Cast", "Reshape", "Transpose", "Expand", "Slice"})
COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"})
FLAGS = frozenset({"Not", "And", "Or", "Xor"})
ORDINARY = 100  # magnitude of integers that only arithmetic uses
MOST_EXPONENT = 3


def integer_range(graph: Graph, v: Value, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The least and the largest value that a random integer input should have, both inclusive."""
    extent = index_extent(graph, v)
    most = None if extent is None else max(0, evaluate(extent, sizes) - 1)
    room = written_room(graph, v, sizes)
    if room is not None:
        return 0, room if most is None else min(room, most)
    if most is not None:
        return 0, most
    if reaches_index(graph, v):  # after arithmetic that may carry it out of bounds, as the sum over a mask
        return 0, 1
    low, high = _of_type(v.dtype)
    for n, x in _readers(graph, v, _through_views):
        bound = _used_as(graph, n, x, sizes)
        if bound is not None:
            low, high = max(low, bound[0]), min(high, bound[1])
    return (low, high) if low <= high else (0, 1)


def _of_type(dtype: DType) -> tuple[int, int]:
    if dtype.bits <= 8:
        return range_of_type(dtype)
    return (-ORDINARY if dtype.is_signed else 0), ORDINARY


def _used_as(graph: Graph, n: Node, x: Value, sizes: Mapping[str, int]) -> tuple[int, int] | None:
    """The range that one use of ``x`` allows; None for any integer."""
    place = next(k for k, o in enumerate(n.inputs) if o is not None and o.name == x.name)
    if n.op in FLAGS or (n.op == "Cast" and n.output.dtype is DType.BOOL):
        return 0, 1
    if n.op == "Sub" and place == 1 and _constant(graph, n.inputs[0]) == 1:  # 1 - mask
        return 0, 1
    if (n.op in ("Div", "Mod") and place == 1) or n.op == "Divisor":
        return 1, ORDINARY
    if n.op == "Pow" and place == 1:
        return 0, MOST_EXPONENT
    if n.op == "BitShift" and place == 1:
        return 0, x.dtype.bits - 1
    if n.op == "Recurrence" and place == 2:  # the steps of a row
        return 1, max(1, evaluate(n.operands()[0].shape[0], sizes))
    if n.op == "GroupedMatMul" and place == 2:  # where the rows of a group end
        return 0, evaluate(n.operands()[0].shape[0], sizes)
    if n.op in COMPARISONS:
        return _compared(graph, n, x, sizes)
    return None


def _compared(graph: Graph, n: Node, x: Value, sizes: Mapping[str, int]) -> tuple[int, int] | None:
    """A number that is compared with positions is a length or a position; with 0 or 1 alone, a flag."""
    made = graph.producers()
    other = next((v for v in n.operands() if v.name != x.name), None)
    if other is None:
        return None
    if _constant(graph, other) in (0, 1):
        return 0, 1
    source = other
    while source.name in made and made[source.name].op in KEEPS_INDICES - {"Concat", "Where", "Add", "Sub"}:
        source = made[source.name].operands()[0]
    weight = graph.weights.get(source.name)
    counts = weight is not None and np.array_equal(weight.data.ravel(), np.arange(weight.data.size))
    if counts or (source.name in made and made[source.name].op == "Range"):
        return 0, max(1, max((evaluate(d, sizes) for d in source.shape), default=1))
    return None


def _constant(graph: Graph, v: Value | None) -> float | None:
    """The number that all elements of a weight have; None for anything else."""
    data = graph.weights[v.name].data if v is not None and v.name in graph.weights else np.zeros(0)
    return float(data.flat[0]) if data.size and np.all(data == data.flat[0]) else None


def _readers(
    graph: Graph, v: Value, follow: Callable[[Node, Value], Iterable[Value]]
) -> Iterator[tuple[Node, Value]]:
    """The nodes that read ``v``, or a result that ``follow`` names for such a node, each with the operand it reads."""
    consumers, seen, stack = graph.consumers(), set[str](), [v]
    while stack:
        x = stack.pop()
        if x.name in seen:
            continue
        seen.add(x.name)
        for n in consumers.get(x.name, ()):
            yield n, x
            stack.extend(follow(n, x))


def _through_views(n: Node, x: Value) -> Iterable[Value]:
    return n.outputs if n.op in VIEWS else ()


def _through_integers(n: Node, x: Value) -> Iterable[Value]:
    """Results whose integers come from ``x``, element by element if it is a float."""
    if x.dtype.is_float and opdef(n.op).kind is not Kind.POINTWISE and n.op not in KEEPS_INDICES:
        return ()
    return [o for o in n.outputs if o.dtype.is_int or x.dtype.is_float]


def reaches_index(graph: Graph, v: Value) -> bool:
    """True if integers computed from ``v``, element by element if it is a float, index something."""
    return any(is_index(n, x) for n, x in _readers(graph, v, _through_integers))


def is_index(n: Node, x: Value) -> bool:
    """True if ``n`` takes places in another operand, or the bounds of a slice, from ``x``."""
    if n.op in ("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements"):
        return n.inputs[1] is not None and n.inputs[1].name == x.name
    return n.op == "OneHot" and n.inputs[0] is not None and n.inputs[0].name == x.name


def index_extent(graph: Graph, v: Value) -> Dim | None:
    """The smallest extent that ``v`` indexes, directly or through casts and views; None if it indexes nothing.

    If all extents are symbolic, the first one found is returned.
    """
    found: list[Dim] = []

    def follow(n: Node, x: Value) -> Iterable[Value]:
        extent = _one_hot_classes(graph, n) if n.op == "Equal" else _indexed(n, x)
        if extent is not None:
            found.append(extent)
            return ()
        return n.outputs if n.op in KEEPS_INDICES else ()

    for _ in _readers(graph, v, follow):
        pass
    fixed = [d for d in found if isinstance(d, int)]
    return min(fixed) if fixed else (found[0] if found else None)


def written_room(graph: Graph, v: Value, sizes: Mapping[str, int]) -> int | None:
    """The largest value of ``v``, of 0 or more, with which all places that scatters write are inside their data.

    None if ``v`` says no place in a scatter, or if that is not known from sums of inputs, of sizes and of positions.
    """
    made, found = graph.producers(), list[int]()
    for n, x in _readers(graph, v, _through_integers):
        if n.op != "ScatterElements" or not is_index(n, x):
            continue
        extent = evaluate(n.operands()[0].shape[n.attrs["axis"]], sizes)
        low, high = 0, extent
        while low < high:  # for ``low`` it fits, or nothing does
            middle = (low + high + 1) // 2
            bounds = _interval(graph, made, x, (0, middle), sizes)
            if bounds is None:
                return None
            low, high = (middle, high) if bounds[1] < extent else (low, middle - 1)
        found.append(low)
    return min(found, default=None)


def _interval(
    graph: Graph, made: Mapping[str, Node], x: Value, given: tuple[int, int], sizes: Mapping[str, int]
) -> tuple[int, int] | None:
    """The least and the largest element of an integer value, where the graph's inputs are in the range ``given``."""
    known, stack = {v.name: given for v in graph.inputs if v.dtype.is_int}, [x]
    while stack:
        at = stack[-1]
        if not at.dtype.is_int:
            return None
        node = made.get(at.name)
        waiting = [] if node is None else [o for o in node.operands() if o.name not in known]
        if at.name in known or not waiting:
            found = known.get(at.name) or _element_range(graph, node, at, known, sizes)
            if found is None:
                return None
            known[at.name] = found
            stack.pop()
        elif node is not None and (node.op in VIEWS or node.op in _MONOTONE):
            stack.extend(waiting)
        else:
            return None
    return known[x.name]


_MONOTONE = frozenset({"Add", "Sub", "Max", "Min"})


def _element_range(
    graph: Graph, node: Node | None, x: Value, known: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]
) -> tuple[int, int] | None:
    """The range of one value, whose operands' ranges are ``known``; None where it is not known."""
    if node is None:
        data = graph.weights[x.name].data
        return (int(data.min()), int(data.max())) if data.size else (0, 0)
    if node.op == "Range":
        ends = node.attrs["start"], node.attrs["start"] + (node.attrs["length"] - 1) * node.attrs["step"]
        first, last = (evaluate(e, sizes) for e in ends)
        return min(first, last), max(first, last)
    if node.op == "Dims":
        values = [evaluate(d, sizes) for d in node.attrs["values"]]
        return min(values, default=0), max(values, default=0)
    (low, high), *others = (known[o.name] for o in node.operands())
    if node.op in VIEWS:
        return low, high
    if node.op not in _MONOTONE:
        return None
    ((least, most),) = others
    if node.op == "Sub":
        return low - most, high - least
    if node.op == "Add":
        return low + least, high + most
    choose = max if node.op == "Max" else min
    return choose(low, least), choose(high, most)


def _one_hot_classes(graph: Graph, n: Node) -> int | None:
    """The number of classes if ``n`` compares with the weight 0, 1, 2, …, which is how exporters encode one-hot."""
    for v in n.operands():
        values = graph.weights[v.name].data.ravel() if v.name in graph.weights else np.zeros(0)
        if values.size > 1 and np.array_equal(values, np.arange(values.size)):
            return int(values.size)
    return None


def _indexed(n: Node, x: Value) -> Dim | None:
    data, index = (n.inputs[0], n.inputs[1]) if len(n.inputs) > 1 else (None, None)
    if data is None or index is None or index.name != x.name:
        return 64 if n.op == "OneHot" and n.inputs[0] is not None and n.inputs[0].name == x.name else None
    if n.op in ("Gather", "GatherElements"):
        return data.shape[n.attrs["axis"]]
    if n.op == "GatherND":
        first, depth = n.attrs["batch_dims"], index.shape[-1]
        extents = data.shape[first : first + depth] if isinstance(depth, int) else ()
        return functools.reduce(minimum, extents) if extents else None
    return None
