"""Random inputs for a graph: sizes for its symbolic dimensions, and values that are valid indices where needed."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, Sym, bounds, coefficient, evaluate, free_symbols, minimum
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph, Node, Value

DEFAULT_SIZE = 32  # of a dimension that is no batch
MAX_DOUBLINGS = 5
# operators whose results may still be indices if an operand is one
KEEPS_INDICES = frozenset(
    {"Cast", "Reshape", "Transpose", "Expand", "Slice", "Concat", "Add", "Sub", "Max", "Min", "Where"}
)


def sample_sizes(graph: Graph, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """A size for every symbol: the given one, or else 1 for a leading (batch) dimension and about 32 for others.

    Sizes that are not given are inside the symbols' ranges, and large enough that no value of the graph is empty, if
    that is possible. Raises UsageError for an unknown name in ``given``.
    """
    sizes: dict[str, int] = {}
    for v in graph.inputs:
        for axis, d in enumerate(v.shape):
            for s in sorted(free_symbols(d), key=lambda t: t.name) if isinstance(d, IntExpr) else ():
                sizes.setdefault(s.name, _size(s, 1 if axis == 0 else _about(d, s, DEFAULT_SIZE)))
    unknown = sorted(set(given or {}) - set(sizes))
    if unknown:
        raise UsageError(
            f"no dimension is called {', '.join(unknown)}", hint=f"dimensions: {', '.join(sizes) or 'none'}"
        )
    sizes.update(given or {})
    return _large_enough(graph, sizes, set(given or {}))


def _large_enough(graph: Graph, sizes: dict[str, int], given: set[str]) -> dict[str, int]:
    """``sizes`` with free ones doubled until no value of the graph is empty; convolution windows need room."""
    batch = {s.name for v in graph.inputs for d in v.shape[:1] if isinstance(d, IntExpr) for s in free_symbols(d)}
    free = [s for s in graph.symbols() if s.name in sizes and s.name not in given | batch]
    dims = list(dict.fromkeys(d for n in graph.nodes for o in n.outputs for d in o.shape if isinstance(d, IntExpr)))
    found = dict(sizes)
    for _ in range(MAX_DOUBLINGS):
        if all(evaluate(d, found) > 0 for d in dims):
            return found
        found.update({s.name: _size(s, 2 * found[s.name]) for s in free})
    return sizes


def _about(d: Dim, s: Sym, size: int) -> int:
    """The value of ``s`` for which ``d``, an integer multiple of it, is about ``size``."""
    factor = coefficient(d, s)
    return max(1, size // factor) if isinstance(factor, int) and factor > 1 else size


def _size(s: Sym, wanted: int) -> int:
    hi = bounds(s.hi)[1] if s.hi is not None else None
    n = max(wanted, s.lo)
    n = n if hi is None else min(n, hi)
    return max(s.multiple_of, n - n % s.multiple_of)


def sample_inputs(
    graph: Graph, sizes: Mapping[str, int], *, seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Random arrays for every input, by name, for the sizes of all symbols.

    Floats are uniform in [0, 1). Integers that are indices are below the extent of what they index; those of a scatter
    are distinct, because its result is undefined otherwise. Other integers are 0 or 1. ``ranges`` gives other bounds,
    (low, high) by input name, "" for all inputs. Raises UsageError for an unknown name in ``ranges``.
    """
    unknown = sorted(set(ranges or {}) - {v.name for v in graph.inputs} - {""})
    if unknown:
        raise UsageError(
            f"no input is called {', '.join(unknown)}", hint=f"inputs: {', '.join(v.name for v in graph.inputs)}"
        )
    rng = np.random.default_rng(seed)
    feeds = {}
    for v in graph.inputs:
        shape = tuple(evaluate(d, sizes) for d in v.shape)
        low, high = (ranges or {}).get(v.name, (ranges or {}).get("", (None, None)))
        feeds[v.name] = _random(rng, graph, v, shape, low, high, sizes)
    return feeds


def _random(
    rng: np.random.Generator, graph: Graph, v: Value, shape: tuple[int, ...], low: float | None, high: float | None,
    sizes: Mapping[str, int],
) -> np.ndarray:  # fmt: skip
    if v.dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if v.dtype.is_float:
        lo, hi = (0.0, 1.0) if low is None or high is None else (low, high)
        return rng.uniform(lo, hi, shape).astype(v.dtype.numpy)
    if low is None or high is None:
        indices = _distinct_indices(rng, graph, v, shape, sizes)
        if indices is not None:
            return indices.astype(v.dtype.numpy)
        extent = index_extent(graph, v)
        low, high = 0, 1 if extent is None else evaluate(extent, sizes) - 1
    return rng.integers(int(low), int(high) + 1, shape).astype(v.dtype.numpy)


def _distinct_indices(
    rng: np.random.Generator, graph: Graph, v: Value, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> np.ndarray | None:
    """Distinct indices for the updates of a scatter; None unless ``v`` indexes a scatter."""
    for n in graph.consumers().get(v.name, ()):
        if n.op not in ("ScatterND", "ScatterElements") or n.inputs[1] is None or n.inputs[1].name != v.name:
            continue
        data = tuple(evaluate(d, sizes) for d in n.operands()[0].shape)
        if n.op == "ScatterElements":
            axis = n.attrs["axis"]
            order = np.argsort(rng.random((*shape[:axis], max(data[axis], shape[axis]), *shape[axis + 1 :])), axis=axis)
            return np.take(order, np.arange(shape[axis]), axis) % max(data[axis], 1)
        space = data[: shape[-1]]
        count, total = int(np.prod(shape[:-1])), int(np.prod(space))
        flat = rng.permutation(max(total, count))[:count] % max(total, 1)
        return np.stack(np.unravel_index(flat, space), -1).reshape(shape) if space else np.zeros(shape, np.int64)
    return None


def index_extent(graph: Graph, v: Value) -> Dim | None:
    """The smallest extent that ``v`` indexes, directly or through casts and views; None if it indexes nothing.

    If all extents are symbolic, the first one found is returned.
    """
    consumers = graph.consumers()
    found: list[Dim] = []
    seen: set[str] = set()
    stack = [v]
    while stack:
        x = stack.pop()
        if x.name in seen:
            continue
        seen.add(x.name)
        for n in consumers.get(x.name, ()):
            extent = _one_hot_classes(graph, n) if n.op == "Equal" else _indexed(n, x)
            if extent is not None:
                found.append(extent)
            elif n.op in KEEPS_INDICES:
                stack.extend(n.outputs)
    fixed = [d for d in found if isinstance(d, int)]
    return min(fixed) if fixed else (found[0] if found else None)


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
