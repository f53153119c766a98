"""Emits host nodes while importing: sizes that are read from the device, and operators that the host computes.

A size that depends on data is a symbol that is *born* in the graph: everything behind it is imported as with any open
dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcweld.compiler import dims, host_nodes
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import EMPTY, Node, TensorType, Value
from arcweld.compiler.onnx.inputs import Inputs
from arcweld.compiler.onnx.operands import Builder, born, told
from arcweld.compiler.ops.registry import make


def resolved(c: Inputs, shape: Value, old: Sequence[Dim], allow_zero: bool) -> list[Dim]:
    """The shape that a Reshape makes of ``old`` by ``shape``, whose zeros and -1 the host sees."""
    count = shape.shape[0]
    assert isinstance(count, int)
    attrs = {"allowzero": int(allow_zero)}
    types = [TensorType(shape.dtype, (count,))]
    (plain,) = call_on_host(c, "ResolvedShape", [shape], types, (), attrs, old)
    sizes = [born(c.builder, f"{c.hint}_{k}", 0, None) for k in range(count)]
    host_node(c.builder, host_nodes.READ, (plain,), [], sizes, c.origin, c.hint)
    return sizes


def seen_slice(c: Inputs, extents: Sequence[Dim], steps: Sequence[int]) -> list[tuple[Dim, Dim]]:
    """The first place and the number of places of each axis of a Slice, whose starts and ends the host sees."""
    ends = [c.value(1), c.value(2)]
    types = [TensorType(DType.I64, (2 * len(steps),))]
    (plain,) = call_on_host(c, "ResolvedSlice", ends, types, (), {"steps": tuple(steps)}, extents)
    highs = [d for d in extents for _ in range(2)]
    sizes = [born(c.builder, f"{c.hint}_{k}", 0, high) for k, high in enumerate(highs)]
    host_node(c.builder, host_nodes.READ, (plain,), [], sizes, c.origin, c.hint)
    return list(zip(sizes[::2], sizes[1::2]))


def beginnings(c: Inputs, count: Value, wholes: Sequence[Value], hint: str) -> list[Value]:
    """The first ``count`` rows of values that have equally many, in their memory; the host reads the count."""
    size = born(c.builder, hint, 0, wholes[0].shape[0])
    parts = [TensorType(whole.dtype, (size, *whole.shape[1:])) for whole in wholes]
    return host_node(c.builder, host_nodes.READ, (count, *wholes), parts, [size], c.origin, hint)


def view(c: Inputs, x: Value, shape: Sequence[Dim]) -> Value:
    """A value in another shape, in its memory; the host checks that the numbers of elements are equal."""
    types = [TensorType(x.dtype, tuple(shape))]
    return host_node(c.builder, host_nodes.VIEW, (x,), types, (), c.origin, f"{c.hint}.view")[0]


def require_zero(c: Inputs, size: Dim, what: str) -> None:
    """Lets the host refuse sizes with which ``size`` is not 0, and say ``what`` is wrong."""
    c.builder.rw.append(Node(host_nodes.CHECK, (), (), {"zero": size, "what": what}, c.origin))


def expandable(c: Inputs, have: Sequence[Dim], wanted: Sequence[Dim]) -> list[Dim]:
    """The shape to expand ``have`` to: a wanted size that depends on data is 1 or that of an axis of two or more.

    The host checks that it is.
    """
    found = list(wanted)
    for k in range(1, min(len(have), len(found)) + 1):
        x, d = have[-k], found[-k]
        if x != d and dims.is_nonneg(x - 2) and depends_on_data(c.builder, [d]):
            require_zero(c, (d - 1) * (d - x), f"an axis of {x} elements cannot be expanded to {d}")
            found[-k] = x
    return found


def agreeing(
    c: Inputs, inputs: Sequence[Value | None], demanded: Sequence[tuple[Dim, Dim]]
) -> list[Value | None] | None:
    """The operands with equal sizes where such that depend on data have to be equal, which the host checks.

    ``demanded`` are the pairs that should be equal, or one of them 1. None where nothing depends on data.
    """
    table: dict[Dim, Dim] = {}
    for a, b in demanded:
        a, b = table.get(a, a), table.get(b, b)
        if a == b or not depends_on_data(c.builder, [a, b]):
            continue
        keep, drop = (a, b) if depends_on_data(c.builder, [b]) else (b, a)
        require_zero(c, keep - drop, f"the sizes {keep} and {drop} differ")
        table = {k: keep if v == drop else v for k, v in table.items()} | {drop: keep}
    if not table:
        return None
    shapes = [None if v is None else tuple(table.get(d, d) for d in v.shape) for v in inputs]
    return [v if v is None or s is None or s == v.shape else view(c, v, s) for v, s in zip(inputs, shapes)]


def call_on_host(
    c: Inputs, op: str, inputs: Sequence[Value | None], types: Sequence[TensorType], symbols: Sequence[Dim] = (),
    attrs: Mapping[str, Any] = EMPTY, sizes: Sequence[Dim] = (),
) -> list[Value]:  # fmt: skip
    """The results of an operator that the host computes; ``symbols`` are those sizes in ``types`` that it tells.

    ``sizes`` are a last operand, if there are any.
    """
    given = {"op": op, "attrs": dict(attrs), "sizes": tuple(sizes)}
    return host_node(c.builder, host_nodes.CALL, inputs, types, symbols, c.origin, c.hint, given)


def computed(builder: Builder, value: Value, origin: tuple[str, ...]) -> Value:
    """The value, or one that a node makes of a constant: steps pass on what stages have made."""
    if value.name not in builder.rw.weights:
        return value
    if value.dtype.is_string:
        return passed_strings(builder, value, origin)
    return make(builder.rw, "Identity", [value], {}, origin=origin, hint=f"{value.name}.passed")


def passed_strings(builder: Builder, value: Value, origin: tuple[str, ...]) -> Value:
    """The same strings as another value."""
    given = {"op": "PassStrings", "attrs": {}, "sizes": ()}
    return host_node(
        builder, host_nodes.CALL, (value,), [value.type], (), origin, f"{value.name}.passed", given
    )[0]  # fmt: skip


def host_node(
    builder: Builder, op: str, inputs: Sequence[Value | None], types: Sequence[TensorType], symbols: Sequence[Dim],
    origin: tuple[str, ...], hint: str, attrs: Mapping[str, Any] = EMPTY,
) -> list[Value]:  # fmt: skip
    """Appends a host node, which tells the ``symbols``; returns its results."""
    if op != host_nodes.CALL:  # which takes constants as they are
        inputs = [None if v is None else computed(builder, v, origin) for v in inputs]
    outputs = tuple(Value(builder.rw.fresh(f"{hint}.{k}" if k else hint), t) for k, t in enumerate(types))
    builder.rw.append(Node(op, tuple(inputs), outputs, {**attrs, "symbols": told(builder, symbols, hint)}, origin))
    return list(outputs)


def depends_on_data(builder: Builder, shape: Sequence[Dim]) -> bool:
    """Whether a shape has sizes that were born in the graph."""
    return any(s.name in builder.born for d in shape for s in dims.free_symbols(d))
