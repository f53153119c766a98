"""Batches: matrix products whose batch axes an exporter merged into one get them back.

    Reshape(MatMul(Reshape(a), Reshape(b)))    with [B, H, M, K] reshaped to [B*H, M, K], and back
    -> MatMul(a, b)

Such reshapes hide attention. Requires: nothing. Ensures: the graph has fewer reshapes, or is the same. MatMul, Softmax,
Transpose and pointwise operators on merged batches are computed on the axes before merging.
"""

from __future__ import annotations

from collections.abc import Mapping

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.passes.cleanup import cleanup
from arcweld.passes.common import Tracker, count_ops, rewrite
from arcweld.passes.dce import remove_dead

RANK = 3  # of matrices with one batch axis


def batches(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with merged batch axes split again, if that leaves fewer reshapes."""
    if not any(_is_batched_product(n) for n in graph.nodes):
        return graph
    wanted = _wanted_axes(graph)
    result = rewrite(graph, lambda rw, node: _visit(rw, node, wanted))
    if result is graph:
        return graph
    result = remove_dead(cleanup(result, options))
    before = remove_dead(cleanup(graph, options))
    return result if count_ops(result, "Reshape") < count_ops(before, "Reshape") else graph


def _is_batched_product(node: Node) -> bool:
    return node.op == "MatMul" and all(v.type.rank == RANK for v in node.operands())


def _wanted_axes(graph: Graph) -> dict[str, tuple[Dim, ...]]:
    """Value name -> the axes into which a later Reshape splits its batch, directly or behind operators on it."""
    wanted: dict[str, tuple[Dim, ...]] = {}
    for node in reversed(graph.nodes):
        operands = [v for v in node.operands() if v.type.rank == RANK]
        if node.op == "Reshape" and operands and node.output.shape[-2:] == operands[0].shape[1:]:
            wanted[operands[0].name] = node.output.shape[:-2]
        elif node.output.name in wanted and _attributes(node, 1) is not None:
            lead = wanted[node.output.name]
            wanted.update((v.name, lead) for v in operands if v.shape[0] == node.output.shape[0])
    return wanted


def _visit(rw: Tracker, node: Node, wanted: Mapping[str, tuple[Dim, ...]]) -> bool:
    """Computes a node with merged operands on the axes before merging, with a Reshape behind it."""
    if len(node.outputs) != 1 or node.output.type.rank != RANK or None in node.inputs:
        return False
    operands = [rw.get(v) for v in node.operands()]
    batch = node.output.shape[0]
    lead = next((axes for v in operands if v.shape[:1] == (batch,) and (axes := _merged_axes(rw, v))), None)
    if lead is not None:
        lead = _without_units(lead, wanted.get(node.output.name))
    attrs = None if lead is None else _attributes(node, len(lead))
    if lead is None or attrs is None or not all(_fits(node, v) for v in operands):
        return False
    apart = [_taken_apart(rw, node, v, lead) for v in operands]
    y = rw.make(node.op, apart, node.origin, f"{node.output.name}.batches", **attrs)
    rw.redirect(node, rw.make("Reshape", [y], node.origin, node.output.name, shape=node.output.shape))
    return True


def _merged_axes(rw: Tracker, v: Value) -> tuple[Dim, ...] | None:
    """The axes that a Reshape merges into the first one of ``v``, if that is all it does; else None."""
    node = rw.producer(v, "Reshape")
    source = () if node is None or v.type.rank != RANK else node.operands()[0].shape
    return source[:-2] if len(source) > RANK and source[-2:] == v.shape[1:] else None


def _without_units(lead: tuple[Dim, ...], wanted: tuple[Dim, ...] | None) -> tuple[Dim, ...]:
    """``lead`` with axes of extent 1 where ``wanted`` has them; else without leading ones, as long as two axes remain.

    A slice of a stack of tensors has such a leading axis.
    """
    if wanted is not None and [d for d in wanted if d != 1] == [d for d in lead if d != 1]:
        return wanted
    while len(lead) > 2 and lead[0] == 1:
        lead = lead[1:]
    return lead


def _attributes(node: Node, axes: int) -> dict[str, object] | None:
    """The node's attributes with ``axes`` axes in place of the first one; None if the node doesn't keep that axis."""
    attrs, more = dict(node.attrs), axes - 1
    if node.op == "Transpose":
        perm = attrs["perm"]
        return {"perm": (*range(axes), *(p + more for p in perm[1:]))} if perm[0] == 0 else None
    if node.op == "Softmax":
        return {**attrs, "axis": attrs["axis"] + more} if attrs["axis"] > 0 else None
    pointwise = opdef(node.op).kind is Kind.POINTWISE and "axis" not in attrs
    return attrs if pointwise or _is_batched_product(node) else None


def _fits(node: Node, v: Value) -> bool:
    """Whether an operand has the result's batch axis, or broadcasts along it."""
    return v.type.rank < RANK or v.shape[0] in (1, node.output.shape[0])


def _taken_apart(rw: Tracker, node: Node, v: Value, lead: tuple[Dim, ...]) -> Value:
    if v.type.rank < RANK or v.shape[0] != node.output.shape[0]:
        return v
    return rw.make("Reshape", [v], node.origin, shape=(*lead, *v.shape[1:]))
