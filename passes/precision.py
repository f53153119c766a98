"""Precision: f32 tensors become f16 or bf16 (half), if ``Options.precision`` asks for it; kernels still compute in f32.

    Relu(x)  ->  Cast[f32](Relu(Cast[f16](x)))      x is a graph input; the result is an output

Requires: layout chosen, composite operators decomposed. Ensures: graph inputs and outputs keep their types, by Casts at
the edges. f32 weights become half, by a recorded Cast. Integers and f64 stay, and the nodes that ``precision_rules.py``
lists stay f32. Constants beyond the finite range of the half type are clamped to it, with a warning.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value, weight_value
from arcweld.compiler.ops.registry import opdef
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker
from arcweld.passes.precision_rules import beyond, counts_pixels, keep_f32, largest

log = logging.getLogger("arcweld.passes")


def precision(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with its f32 tensors narrowed to ``options.float_type``."""
    half = options.float_type
    if half is DType.F32 or not any(v.dtype is DType.F32 for v in graph.values()):
        return graph
    rw = _Narrower(graph, half, keep_f32(graph, options))
    for node in graph.nodes:
        rw.visit(node)
    return rw.finish()


class _Narrower(Tracker):
    """The graph that is being rebuilt, in which a value of the old graph may exist in two element types."""

    def __init__(self, graph: Graph, half: DType, kept: set[str]) -> None:
        super().__init__(graph)
        self.half = half
        self.kept = kept
        self._native: dict[str, Value] = {v.name: v for v in graph.inputs}
        self._casts: dict[tuple[str, DType], Value] = {}
        for v in graph.values():
            if v.name in graph.weights:
                self._native[v.name] = weight_value(v.name, graph.weights[v.name].data, v.dtype)
        for node in graph.nodes:
            self.release(node)

    def native(self, old: Value) -> Value:
        """The value as it was computed."""
        return self._native[old.name]

    def in_type(self, old: Value, dtype: DType, origin: tuple[str, ...] = ()) -> Value:
        """The value in ``dtype``, through a Cast where it was computed in another."""
        value = self.native(old)
        if value.dtype is dtype:
            return value
        key = (old.name, dtype)
        if key not in self._casts:
            source = self._within_range(value) if value.name in self.weights and dtype.is_half else value
            self._casts[key] = self.make("Cast", [source], origin, f"{old.name}.{dtype.value}", to=dtype)
        return self._casts[key]

    def _within_range(self, value: Value) -> Value:
        """A constant with its finite elements clamped to the finite range of ``half``: none becomes infinite."""
        data = self.weights[value.name].data
        top = largest(self.half)
        if data.size == 0 or (data.min() >= -top and data.max() <= top):  # the common case, which copies nothing
            return value
        finite = np.abs(data[np.isfinite(data)])
        if finite.size == 0 or float(finite.max()) <= top:
            return value
        log.warning("%s: constants up to %.3g are clamped to %.3g", value.name, finite.max(), top)
        return self.make("Clip", [value], (), f"{value.name}.clamped", min=-top, max=top)

    def visit(self, node: Node) -> None:
        """Emits ``node`` on f32 or half operands."""
        target = DType.F32 if node.output.name in self.kept else self.half
        inputs: list[Value | None] = []
        for k, v in enumerate(node.inputs):
            any_type = node.op == "Cast" or (node.op == "Attention" and k == 3 and v is not None and self._is_f32(v))
            any_type |= k == 1 and counts_pixels(node)
            if v is None or v.dtype is not DType.F32 or any_type:
                inputs.append(None if v is None else self.native(v))
            else:
                inputs.append(self.in_type(v, target, node.origin))
        spec = opdef(node.op)
        attrs = self._attrs(node, target)
        types = spec.infer([None if v is None else v.type for v in inputs], attrs)
        count = len(self.nodes)
        self.emit(node.op, inputs, types, attrs, origin=node.origin, name=node.output.name)
        for old, new in zip(node.outputs, self.nodes[count].outputs, strict=True):
            self._native[old.name] = new

    def _is_f32(self, mask: Value) -> bool:
        """Whether a mask is read as f32: it was computed so, or is a constant that the half type can't hold."""
        value = self.native(mask)
        if value.dtype is not DType.F32 or value.name not in self.weights:
            return value.dtype is DType.F32
        return beyond(self.weights[value.name].data, self.half)

    def _attrs(self, node: Node, target: DType) -> dict[str, Any]:
        attrs = dict(node.attrs)
        for name, spec in opdef(node.op).attrs.items():
            if spec.kind == "dtype" and attrs[name] is DType.F32:
                attrs[name] = target
        fill = attrs.get("value")
        if isinstance(fill, float) and np.isfinite(fill) and target.is_half and abs(fill) > largest(target):
            attrs["value"] = float(np.copysign(largest(target), fill))
            log.warning("%s: the value %.3g is clamped to %.3g", node.name, fill, attrs["value"])
        return attrs

    def finish(self) -> Graph:
        outputs = tuple(self.in_type(o, o.dtype) for o in self.graph.outputs)
        return self.graph.replace(nodes=tuple(self.nodes), outputs=outputs, weights=self.weights)
