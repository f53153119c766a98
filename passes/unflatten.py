"""Unflattening: removes the reshapes between which exporters flatten the leading axes of row-wise operators.

    Reshape(MatMul(Reshape(x), w))      with x [B, S, K] reshaped to [B*S, K], and back
    -> MatMul(x, w)

Row-wise operators are MatMul with a matrix on the right, pointwise operators and row programs. Requires: composite
operators decomposed. Ensures: the graph has fewer reshapes, or is the same. Row-wise operators are computed on the axes
that their operand has before flattening, or that their result gets later.
"""

from __future__ import annotations

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.passes.cleanup import cleanup
from arcweld.passes.common import Tracker, count_ops, rewrite, use_counts
from arcweld.passes.dce import remove_dead


def unflatten(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with reshapes moved through row-wise operators, if that leaves fewer of them."""
    result = rewrite(graph, _sink)
    uses = use_counts(result)
    result = rewrite(result, lambda rw, node: _hoist(rw, node, uses))
    if result is graph:
        return graph
    result = remove_dead(cleanup(result, options))
    return result if count_ops(result, "Reshape") < count_ops(graph, "Reshape") else graph


# ---------------------------------------------------------------------- merging reshapes move behind the work


def _sink(rw: Tracker, node: Node) -> bool:
    """Computes a row-wise node on its operands before flattening, with a Reshape behind it."""
    if len(node.outputs) != 1 or any(v is None for v in node.inputs):
        return False
    operands = [rw.get(v) for v in node.operands()]
    sources = _sources(rw, node, operands)
    if sources is None:
        return False
    attrs = dict(node.attrs)
    if "axis" in attrs:
        attrs["axis"] = sources[0].type.rank - 1
    y = rw.make(node.op, sources, node.origin, f"{node.output.name}.rows", **attrs)
    rw.redirect(node, rw.make("Reshape", [y], node.origin, node.output.name, shape=node.output.shape))
    return True


def _sources(rw: Tracker, node: Node, operands: list[Value]) -> list[Value] | None:
    """The operands before flattening; None if ``node`` is not row-wise, or an operand not flattened."""
    kind, rank = opdef(node.op).kind, node.output.type.rank
    if kind is Kind.CONTRACT:
        source = _before_flattening(rw, operands[0])
        return None if source is None or operands[1].type.rank != 2 else [source, *operands[1:]]
    if kind is Kind.ROWWISE:
        if node.attrs["axis"] != rank - 1:
            return None
    elif kind is not Kind.POINTWISE or "axis" in node.attrs:
        return None
    sources: list[Value] = []
    shapes = set()
    for v in operands:
        if v.type.rank <= 1:  # the same for every row
            sources.append(v)
            continue
        source = _before_flattening(rw, v)
        if source is None:
            return None
        sources.append(source)
        shapes.add(source.shape)
    return sources if len(shapes) == 1 else None


def _before_flattening(rw: Tracker, v: Value) -> Value | None:
    """The operand of the Reshape that makes ``v``, if that merges leading axes and keeps the last one; else None."""
    node = rw.producer(v, "Reshape")
    if node is None:
        return None
    source = node.operands()[0]
    kept = v.type.rank >= 2 and source.shape[-1:] == v.shape[-1:]
    return source if kept and source.type.rank > v.type.rank else None


# --------------------------------------------------------------- splitting reshapes move in front of the work


def _hoist(rw: Tracker, node: Node, uses: dict[str, int]) -> bool:
    """Moves a Reshape that splits rows in front of row-wise nodes, where it joins the Reshape of their operand."""
    if node.op != "Reshape":
        return False
    x, shape = node.operands()[0], node.output.shape
    if x.type.rank >= len(shape) or x.type.rank < 2 or shape[-1:] != x.shape[-1:]:
        return False
    chain = _chain(rw, rw.get(x), uses)
    if chain is None:
        return False
    source, work = chain
    value = rw.make("Reshape", [source], node.origin, shape=(*shape[:-1], _row(work[-1]).shape[-1]))
    for n in reversed(work):
        operands = [value if v == _row(n) else v for v in n.operands()]
        attrs: dict[str, Dim] = dict(n.attrs)
        if "axis" in attrs:
            attrs["axis"] = len(shape) - 1
        name = node.output.name if n is work[0] else f"{n.output.name}.rows"
        value = rw.make(n.op, operands, n.origin, name, **attrs)
    rw.redirect(node, value)
    return True


def _chain(rw: Tracker, v: Value, uses: dict[str, int]) -> tuple[Value, list[Node]] | None:
    """The operand of a Reshape, and the row-wise nodes from there to ``v``, last first, which nothing else reads.

    None if there is no such chain.
    """
    work: list[Node] = []
    while uses.get(v.name, 0) == 1:
        node = rw.producer(v)
        if node is None or (node.op == "Reshape" and not work):
            return None
        if node.op == "Reshape":
            return node.operands()[0], work
        if not _is_row_wise(node):
            return None
        work.append(node)
        v = _row(node)
    return None


def _is_row_wise(node: Node) -> bool:
    """True if the node has one operand with rows, and others that are the same for every row."""
    kind, rank = opdef(node.op).kind, node.output.type.rank
    if not node.inputs or len(node.operands()) != len(node.inputs) or node.operands().count(_row(node)) != 1:
        return False
    if kind is Kind.CONTRACT:
        return node.operands()[1].type.rank == 2 and _row(node) == node.operands()[0]
    if kind is not Kind.POINTWISE and not (kind is Kind.ROWWISE and node.attrs.get("axis") == rank - 1):
        return False
    others = [v for v in node.operands() if v != _row(node)]
    axis_is_free = kind is Kind.ROWWISE or "axis" not in node.attrs
    return axis_is_free and _row(node).shape == node.output.shape and all(v.type.rank <= 1 for v in others)


def _row(node: Node) -> Value:
    """The operand that holds the rows: a product's left one, else the one of highest rank."""
    product = opdef(node.op).kind is Kind.CONTRACT
    return node.operands()[0] if product else max(node.operands(), key=lambda v: v.type.rank)
