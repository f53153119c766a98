"""Quantised movement: what only moves dequantised values, or picks the largest, moves the integers instead.

    QuantizeLinear(Transpose(DequantizeLinear(x, s, z)), s, z)  ->  Transpose(x)
    QuantizeLinear(MaxPool(DequantizeLinear(x, s, z)), s, z)    ->  MaxPool(x)

Exact: an integer that is dequantised and quantised by the same constant scale and zero point is itself, and a positive
scale keeps the order. Requires: nothing. Ensures: values stay in 8 bits between kernels that quantise and dequantise
around such operators.
"""

from __future__ import annotations

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.integer import BYTES
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite
from arcweld.passes.dce import remove_dead

# operators that move or choose elements of all their operands, and need no other value
MOVING = frozenset({"Reshape", "Transpose", "Slice", "Expand", "Tile", "Concat", "MaxPool"})
LEAST, MOST = 2.0**-100, 2.0**100  # scales for which products with integers stay in f32's normal range


def quantised_movement(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with movement between dequantisation and quantisation done on integers."""
    if not any(n.op == "QuantizeLinear" for n in graph.nodes):
        return graph
    result = rewrite(graph, _visit)
    return graph if result is graph else remove_dead(result)


def _visit(rw: Tracker, node: Node) -> bool:
    if node.op != "QuantizeLinear" or node.attrs["block"]:
        return False
    value, *parameters = rw.inputs_of(node)
    own = _parameters(rw, parameters)
    if own is None:
        return False
    source = _integers(rw, value, own, node)
    if source is not None:
        rw.redirect(node, source)
        return True
    moved = rw.producer(value)
    if moved is None or moved.op not in MOVING or len(moved.outputs) != 1:
        return False
    sources = [_integers(rw, v, own, node) for v in moved.inputs]
    if any(s is None for s in sources):
        return False
    rw.redirect(node, rw.make(moved.op, sources, moved.origin, node.output.name, **moved.attrs))
    return True


def _parameters(rw: Tracker, values: list[Value | None]) -> tuple[float, int] | None:
    """A constant scale in f32 and its zero point, of one element each; None for others."""
    scale, zero = [*values, None][:2]
    step, point = rw.array(scale), rw.array(zero)
    if step is None or step.size != 1 or step.dtype != np.float32 or (zero is not None and point is None):
        return None
    number = float(step.reshape(()))
    return (number, 0 if point is None else int(point.reshape(()))) if LEAST <= number <= MOST else None


def _integers(rw: Tracker, value: Value | None, own: tuple[float, int], node: Node) -> Value | None:
    """What ``value`` dequantises by the parameters with which ``node`` quantises, in the same type; None for others."""
    made = rw.producer(value, "DequantizeLinear")
    if made is None or made.output.dtype is not DType.F32 or made.attrs["block"] or len(made.operands()) > 3:
        return None
    source, *parameters = made.inputs
    if source is None or source.dtype not in BYTES:
        return None
    same = source.dtype is node.output.dtype and _parameters(rw, parameters) == own
    return source if same else None
