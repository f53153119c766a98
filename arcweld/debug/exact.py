"""References in f64 of a graph in narrower floats: each node computes as if its results were not rounded.

What a kernel differs from them is the error of its own arithmetic and of the types that it stores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.reference import Evaluate, evaluate_node, stream_reference

WIDENED = frozenset({DType.F32, DType.F16, DType.BF16})
PATTERNS = frozenset({"BitCast"})  # operators on bit patterns, which have no meaning in another type


def evaluate_exactly(
    node: Node, arrays: list[np.ndarray | None], env: Mapping[str, int]
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """The outputs of one node in f64 where its types are f32, f16 or bf16; raises as ``evaluate_node``.

    Operands may be wider than the node says. A node that makes integers, conditions or stored types of floats gets
    them rounded as its types say: its results are steps, on which side of which the rounding decides.
    """
    pairs = list(zip(node.inputs, arrays))
    stored = any(v.dtype.is_storage and v.dtype.is_float for v in node.operands())  # products of narrow floats
    if stored or node.op in PATTERNS or not all(o.dtype in WIDENED for o in node.outputs):
        return evaluate_node(node, [None if v is None else narrowed(a, v.dtype) for v, a in pairs], env)
    outputs = tuple(Value(o.name, o.type.with_dtype(DType.F64)) for o in node.outputs)
    attrs = {k: DType.F64 if isinstance(a, DType) and a in WIDENED else a for k, a in node.attrs.items()}
    wide = [None if v is None or a is None else _widened(a, v.dtype) for v, a in pairs]
    return evaluate_node(replace(node, outputs=outputs, attrs=attrs), wide, env)


def _widened(array: np.ndarray, dtype: DType) -> np.ndarray:
    return array.astype(np.float64, copy=False) if dtype in WIDENED else array


def narrowed(array: np.ndarray | None, dtype: DType) -> np.ndarray | None:
    """An array that may be in f64 in the type that the graph gives it."""
    if array is None or dtype not in WIDENED:
        return array
    with np.errstate(over="ignore"):  # what the type cannot hold is infinite, as a kernel stores it
        return array.astype(dtype.numpy, copy=False)


def evaluated(
    graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], names: Collection[str],
    evaluate: Evaluate | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The values of these names; ``evaluate`` as for ``stream_reference``. Raises as that does."""
    hold = {n: len(graph.nodes) for n in names if n not in graph.weights}
    found: dict[str, np.ndarray] = {}
    for _, values in stream_reference(graph, feeds, hold=hold, bind=sizes, evaluate=evaluate):
        found |= {n: values[n] for n in hold if n in values and n not in found}
        if len(found) == len(hold):
            break
    return found | {n: graph.weights[n].data for n in names if n in graph.weights}
