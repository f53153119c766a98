"""Random inputs for a graph: sizes for its symbolic dimensions, and values that are valid indices where needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, Sym, bounds, coefficient, evaluate, free_symbols
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.ir import Graph, Value
from arcweld.driver.page_tables import draw_tables, usual_sizes
from arcweld.driver.value_uses import integer_range, reaches_index

DEFAULT_SIZE = 32  # of a dimension that is no batch
MAX_DOUBLINGS = 8
LEAST = 2.0**-6  # of floats of a type without negative numbers and 0
SCALED = 0.25  # share of floats that are 2^-6 to 2 times as large as the others


class Draw(Enum):
    """How random floats are drawn.

    SIGNED  normally distributed, a quarter of them up to 64 times smaller or twice as large
    UNIT    uniform in [0, 1), for models that are undefined for negative inputs
    """

    SIGNED = "signed"
    UNIT = "unit"


def sample_sizes(graph: Graph, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """A size for every symbol: the given one, or else 1 for a leading (batch) dimension and about 32 for others.

    Paged caches have several sequences and pages. Sizes that are not given are inside the symbols' ranges, and large
    enough that no value of the graph is empty, if that is possible. Raises UsageError for an unknown name in ``given``.
    """
    sizes: dict[str, int] = {}
    paged = usual_sizes(graph)
    for v in graph.inputs:
        for axis, d in enumerate(v.shape):
            for s in sorted(free_symbols(d), key=lambda t: t.name) if isinstance(d, IntExpr) else ():
                usual = paged.get(s.name, 1 if axis == 0 else _about(d, s, DEFAULT_SIZE))
                sizes.setdefault(s.name, allowed(s, usual))
    unknown = sorted(set(given or {}) - set(sizes))
    if unknown:
        raise UsageError(
            f"no dimension is called {', '.join(unknown)}", hint=f"dimensions: {', '.join(sizes) or 'none'}"
        )
    sizes.update(given or {})
    batch = {s.name for v in graph.inputs for d in v.shape[:1] if isinstance(d, IntExpr) for s in free_symbols(d)}
    free = [s for s in graph.symbols() if s.name in sizes and s.name not in batch.union(given or {})]
    return roomy(free, graph_dims(graph), sizes) or sizes


def graph_dims(graph: Graph) -> list[IntExpr]:
    """The distinct symbolic dimensions of the graph's values."""
    values = [*graph.inputs, *(o for n in graph.nodes for o in n.outputs)]
    return list(dict.fromkeys(d for v in values for d in v.shape if isinstance(d, IntExpr)))


def allowed(s: Sym, wanted: int) -> int:
    """The size nearest to ``wanted`` that the symbol can have, but 0 only where it can have nothing else."""
    hi = bounds(s.hi)[1] if s.hi is not None else None
    n = max(wanted, s.lo, 1)
    n = -(-n // s.multiple_of) * s.multiple_of
    return n if hi is None or n <= hi else hi // s.multiple_of * s.multiple_of


def roomy(free: Sequence[Sym], dims: Sequence[IntExpr], sizes: Mapping[str, int]) -> dict[str, int] | None:
    """``sizes`` with those of ``free`` symbols doubled until no dimension is empty; None if that does not help.

    Convolution windows need room. An odd size stays odd.
    """
    found = dict(sizes)
    for _ in range(MAX_DOUBLINGS):
        if all(evaluate(d, found) > 0 for d in dims):
            return found
        odd = {s.name: s.multiple_of * (found[s.name] // s.multiple_of % 2) for s in free}
        found.update({s.name: allowed(s, 2 * found[s.name] + odd[s.name]) for s in free})
    return None


def smaller(graph: Graph, sizes: Mapping[str, int], given: Mapping[str, int] | None, times: int) -> dict[str, int]:
    """``sizes`` of a graph, halved so many times where they are not ``given`` and may be that small.

    A model may look up positions in a table, and take fewer of them than usual sizes have.
    """
    free = [s for s in graph.symbols() if s.name not in (given or {})]
    return {**sizes, **{s.name: allowed(s, sizes[s.name] >> times) for s in free}}


def _about(d: Dim, s: Sym, size: int) -> int:
    """The value of ``s`` for which ``d``, an integer multiple of it, is about ``size``."""
    factor = coefficient(d, s)
    return max(1, size // factor) if isinstance(factor, int) and factor > 1 else size


def sample_inputs(
    graph: Graph, sizes: Mapping[str, int], *, seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] | None = None, draw: Draw = Draw.SIGNED,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Random arrays for every input, by name, for the sizes of all symbols.

    Floats are drawn as ``draw`` says; those that index something after a cast are in [0, 1). Integers have the range
    that their use allows (``value_uses``); indices of a scatter are distinct, because its result is undefined
    otherwise; tables of pages are tables (``page_tables``). ``ranges`` gives other bounds, (low, high) by input name,
    "" for all inputs.

    Raises UsageError for an unknown name in ``ranges``, EnvironmentError_ for an input that memory cannot hold.
    """
    unknown = sorted(set(ranges or {}) - {v.name for v in graph.inputs} - {""})
    if unknown:
        raise UsageError(
            f"no input is called {', '.join(unknown)}", hint=f"inputs: {', '.join(v.name for v in graph.inputs)}"
        )
    rng = np.random.default_rng(seed)
    feeds = {}
    tables = draw_tables(rng, graph, sizes)
    for v in graph.inputs:
        shape = tuple(evaluate(d, sizes) for d in v.shape)
        bounds_of = (ranges or {}).get(v.name, (ranges or {}).get(""))
        drawn = tables.get(v.name) if bounds_of is None else None
        try:
            feeds[v.name] = _random(rng, graph, v, shape, bounds_of, sizes, draw) if drawn is None else drawn
        except MemoryError:
            what = f"there is not enough memory for input {v.name} of shape {list(shape)}"
            raise EnvironmentError_(what, hint="give smaller sizes") from None
    return feeds


def _random(
    rng: np.random.Generator, graph: Graph, v: Value, shape: tuple[int, ...], given: tuple[float, float] | None,
    sizes: Mapping[str, int], draw: Draw,
) -> np.ndarray:  # fmt: skip
    if v.dtype.is_string:  # which Casts to numbers can read too
        return rng.integers(0, 10, shape).astype(str).astype(object)
    if v.dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if v.dtype.is_float:
        if given is None and draw is Draw.SIGNED and not reaches_index(graph, v):
            signed = _signed(rng, shape)
            return (signed if v.dtype.is_signed else np.abs(signed) + LEAST).astype(v.dtype.numpy)
        low, high = given or (0.0, 1.0)
        return rng.uniform(low, high, shape).astype(v.dtype.numpy)
    if given is None:
        indices = _distinct_indices(rng, graph, v, shape, sizes)
        if indices is not None:
            return indices.astype(v.dtype.numpy)
    low, high = given or integer_range(graph, v, sizes)
    return rng.integers(int(low), int(high) + 1, shape).astype(v.dtype.numpy)


def _signed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Both signs and several magnitudes, as f32."""
    values = rng.standard_normal(shape, np.float32)
    scaled = rng.random(shape, np.float32) < SCALED
    return np.where(scaled, values * np.exp2(rng.integers(-6, 2, shape)).astype(np.float32), values)


def _rows_written(graph: Graph, v: Value) -> Dim | None:
    """The extent of the axis of which a scatter writes whole slices at ``v``, repeated over the other axes; or None."""
    readers, waiting = graph.consumers(), [v]
    while waiting:
        x = waiting.pop()
        for n in readers.get(x.name, ()):
            if n.op == "ScatterElements" and x is not v and n.inputs[1] == x:
                return n.operands()[0].shape[n.attrs["axis"]]
            if n.op in ("Cast", "Reshape", "Expand") and n.inputs[0] == x:
                waiting.append(n.output)
    return None


def _distinct_indices(
    rng: np.random.Generator, graph: Graph, v: Value, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> np.ndarray | None:
    """Distinct indices for the updates of a scatter; None unless ``v`` indexes a scatter."""
    extent = _rows_written(graph, v)
    if extent is not None:
        count, rows = int(np.prod(shape)), max(evaluate(extent, sizes), 1)
        return rng.permutation(max(rows, count))[:count].reshape(shape) % rows
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
        order = rng.permutation(max(total, count))[:count]
        places = np.stack(np.unravel_index(order % max(total, 1), space), -1) if space else np.zeros(shape, np.int64)
        if space and n.attrs["padding"]:  # updates without a place of their own are written nowhere
            places[order >= total] = -1
        return places.reshape(shape)
    return None
