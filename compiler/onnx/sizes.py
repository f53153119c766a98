"""Sizes that a model computes on the device: the host reads those elements that it does not know."""

from __future__ import annotations

from arcweld.compiler import host_nodes
from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.onnx.operands import MAX_HOST_ELEMENTS, Builder, born, told

MOST_READ = 64  # elements of a value
_AS_THEY_ARE = ("Reshape", "Cast", "Identity")  # operators that keep the elements of integers, and their order


def is_joined(builder: Builder, value: Value) -> bool:
    """Whether a list of sizes is joined from parts, some of which the host may know."""
    node = builder.producer(value)
    while node is not None and node.op in _AS_THEY_ARE:
        node = builder.producer(node.operands()[0])
    return node is not None and node.op in ("Concat", "Dims")


def sizes_of(builder: Builder, value: Value, hint: str, origin: tuple[str, ...]) -> list[Dim] | None:
    """The elements of an integer value as sizes, those that depend on data as symbols; None for too many elements."""
    count = value.type.numel
    if value.dtype.is_float or not isinstance(count, int) or count > MAX_HOST_ELEMENTS:
        return None
    if value.name in builder.rw.weights:
        return [int(x) for x in builder.rw.weights[value.name].data.reshape(-1)]
    node = builder.producer(value)
    if node is not None and node.op == "Dims":
        return list(node.attrs["values"])
    if node is not None and node.op in _AS_THEY_ARE and node.operands()[0].dtype.is_int:
        return sizes_of(builder, node.operands()[0], hint, origin)
    if node is not None and node.op == "Concat" and value.type.rank == 1:
        parts = [sizes_of(builder, v, hint, origin) for v in node.operands()]
        return None if None in parts else [d for part in parts if part is not None for d in part]
    return _read(builder, value, count, hint, origin)


def _read(builder: Builder, value: Value, count: int, hint: str, origin: tuple[str, ...]) -> list[Dim] | None:
    """Symbols for all elements, the same ones each time. What a body reads is not known outside of it."""
    if count > MOST_READ:
        return None
    found = builder.sizes.get(value.name)
    if found is None:
        found = [born(builder, f"{hint}_size" if count == 1 else f"{hint}_size{k}", 0, None) for k in range(count)]
        builder.rw.append(Node(host_nodes.READ, (value,), (), {"symbols": told(builder, found, hint)}, origin))
        if not builder.depth:
            builder.sizes[value.name] = found
    return found
