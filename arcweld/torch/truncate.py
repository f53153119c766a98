"""The option ``truncate_double``: computes a graph in f32 instead of f64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value, Weight


def truncate_double(graph: Graph) -> Graph:
    """The same graph with f32 in place of f64 everywhere: inputs, weights, casts and results."""

    def value(v: Value) -> Value:
        return Value(v.name, v.type.with_dtype(DType.F32)) if v.dtype is DType.F64 else v

    def node(n: Node) -> Node:
        inputs = tuple(None if v is None else value(v) for v in n.inputs)
        return replace(n, inputs=inputs, outputs=tuple(value(v) for v in n.outputs), attrs=_attrs(n.attrs))

    return graph.replace(
        inputs=tuple(value(v) for v in graph.inputs),
        outputs=tuple(value(v) for v in graph.outputs),
        nodes=tuple(node(n) for n in graph.nodes),
        weights={k: _weight(w) for k, w in graph.weights.items()},
    )


def _attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: DType.F32 if a is DType.F64 else a for k, a in attrs.items()}


def _weight(w: Weight) -> Weight:
    return replace(w, data=w.data.astype(DType.F32.numpy)) if w.data.dtype == DType.F64.numpy else w
