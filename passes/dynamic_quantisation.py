"""Dynamic quantisation: a tensor's range and its quantisation by that in one kernel, or in two of many blocks.

    low = Min(ReduceMin(x), 0); scale = (Max(ReduceMax(x), 0) - low) / 255; zero = Round(-low / scale)
    y = QuantizeLinear(x, scale, zero)
    -> y, scale, zero = DynamicQuantizeLinear(x)                                    of at most MOST_ELEMENTS
    -> scale, zero = DynamicRange(x); y = QuantizeLinear(x, scale, zero)            of others

Requires: layout chosen. Ensures: no such arithmetic is left over all axes of a tensor, as far as it ends in
QuantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.compiler.dims import bounds
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value, merge_origins
from arcweld.compiler.ops.registry import make
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite
from arcweld.passes.dce import remove_dead
from arcweld.passes.patterns import Matcher, Tree, parse_formula

MOST_ELEMENTS = 1 << 16  # what a block keeps in registers, so that it reads them once
_LOW = "Clip((least := ReduceMin(x)), min=None, max=0)"
_STEP = f"((Relu((most := ReduceMax(x))) - {_LOW}) / 255)"
_SCALE = f"(scale := Where(Equal((step := {_STEP}), 0), 1, (step := {_STEP})))"
_ZERO = f"(zero := Cast(Round(Clip(-{_LOW} / {_SCALE}, min=0, max=255))))"
_FORMULA = f"QuantizeLinear(x, {_SCALE}, {_ZERO})"


@dataclass(frozen=True, slots=True)
class _Found:
    """The operand, and the results of the formula."""

    x: Value
    y: Value
    scale: Value
    zero: Value
    origin: tuple[str, ...]


def dynamic_quantisation(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with dynamic quantisation as one or two operators."""
    quantised = [n for n in graph.nodes if n.op == "QuantizeLinear" and n.operands()[0].dtype is DType.F32]
    if not quantised:
        return graph
    matcher, tree = Matcher(graph), parse_formula(_FORMULA)
    found = [f for f in (_match(matcher, tree, n) for n in quantised) if f is not None]
    first = {f.scale.name: f for f in found}  # nothing else of the formula is read before it
    replaced = {v.name for f in found for v in (f.scale, f.zero, *((f.y,) if _is_small(f.x) else ()))}

    def visit(rw: Tracker, node: Node) -> bool:
        if node.output.name in first:
            _emit(rw, first[node.output.name])
        return node.output.name in replaced

    return remove_dead(rewrite(graph, visit)) if found else graph


def _is_small(x: Value) -> bool:
    _, most = bounds(x.type.numel)
    return most is not None and most <= MOST_ELEMENTS


def _match(matcher: Matcher, tree: Tree, node: Node) -> _Found | None:
    """The formula that ends in ``node``; None if there is none."""
    for m in matcher.occurrences(tree, node):
        x, zero = m.values["x"], m.values["zero"]
        whole = all(tuple(m.node(n).attrs["axes"]) == tuple(range(x.type.rank)) for n in ("least", "most"))
        if whole and zero.dtype is DType.U8 and all(v.type.rank == 0 for v in (zero, m.values["scale"])):
            return _Found(x, node.output, m.values["scale"], zero, merge_origins((node, *m.nodes)))
    return None


def _emit(rw: Tracker, found: _Found) -> None:
    """Emits the operator in the place of what makes the scale, and puts its results in that of the formula's."""
    small = _is_small(found.x)
    op, hint = ("DynamicQuantizeLinear", found.y.name) if small else ("DynamicRange", found.scale.name)
    make(rw, op, [rw.get(found.x)], origin=found.origin, hint=hint)
    for old, new in zip((found.y, found.scale, found.zero)[not small :], rw.nodes[-1].outputs):
        rw.alias(old, new)
