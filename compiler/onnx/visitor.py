"""Walks the nodes of a model and its subgraphs, and binds every name to an operand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, NodeProto

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ArcweldError, ModelError, UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import shapes
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.control import CONTROL, call_function, standard_function
from arcweld.compiler.onnx.handlers.table import handler
from arcweld.compiler.onnx.operands import SHAPES_HINT, Builder, Items, Operand, Unavailable, on_device, on_host, text
from arcweld.compiler.onnx.order import in_order, names_used
from arcweld.compiler.onnx.proto import attribute_value
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.onnx.scope import Finding, Scope, normal_domain
from arcweld.compiler.onnx.sequences import SEQUENCES
from arcweld.compiler.onnx.symbols import sanitise
from arcweld.compiler.ops import registry

MAX_VISITS = 100_000
MAX_ELEMENTS = 2**48

# what a handler raises when a damaged node gives it values of the wrong kind; anything else is a defect of ours
_MALFORMED = (TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError, AttributeError)


class Visitor:
    """Imports nodes into one Builder. ``results`` holds the operands of the graph's outputs afterwards."""

    def __init__(self, builder: Builder, functions: Mapping[tuple[str, str], FunctionProto]) -> None:
        self.builder = builder
        self.functions = functions
        self.findings: list[Finding] = []
        self.results: dict[str, Operand | Unavailable] = {}
        self.visits = 0

    def visit_all(
        self, nodes: Sequence[NodeProto], scope: Scope, outputs: Sequence[str], used: Set[str] | None = None
    ) -> list[Any]:
        """Visits ``nodes`` in order and returns the operands called ``outputs``.

        ``used`` may give ``names_used(nodes, outputs)`` when the same nodes are visited again and again.
        """
        used = names_used(nodes, outputs) if used is None else used
        for node in in_order(nodes):
            self.visits += 1
            if self.visits > MAX_VISITS:
                raise ModelError(f"the model expands to more than {MAX_VISITS} nodes")
            self._visit(node, scope, used)
        found = []
        for name in outputs:
            operand = scope.lookup(name)
            if operand is None:
                raise ModelError(f"nothing writes the output {name!r}")
            found.append(operand)
        if scope.depth == 0:
            self.results = dict(zip(outputs, found))
        return found

    def names_used(self, graph: GraphProto) -> Set[str]:
        """The names that a subgraph reads or returns."""
        return names_used(graph.node, [o.name for o in graph.output])

    # ------------------------------------------------------------------------------------------------- one node

    def _visit(self, node: NodeProto, scope: Scope, used: Set[str]) -> None:
        label = scope.prefix + (node.name or f"{node.op_type}_{next((o for o in node.output if o), '')}")
        start = len(self.builder.rw.nodes)
        missing = [n for n in node.input if n and scope.lookup(n) is None]
        if missing:
            raise ModelError(
                f"{node.op_type} reads {missing[0]!r}, which no earlier node, input or initializer defines", node=label
            )
        operands = [scope.lookup(n) if n else None for n in node.input]
        try:
            results = self._import(node, scope, label, operands, used)
        except UnsupportedError as error:
            del self.builder.rw.nodes[start:]
            self.findings.append(Finding(label, node.op_type, error.message, error.hint))
            results = [Unavailable(label)] * len(node.output)
        except ArcweldError as error:
            if error.node is None:
                error.node = label
            raise
        except _MALFORMED as error:
            raise ModelError(f"{node.op_type} is malformed: {error}", node=label) from error
        for name, result in zip(node.output, results):
            if name:
                if name in scope.names:
                    raise ModelError(f"{name!r} is written twice", node=label)
                scope.names[name] = result

    def _import(
        self, node: NodeProto, scope: Scope, label: str, operands: Sequence[Any], used: Set[str]
    ) -> Sequence[Any]:
        domain = normal_domain(node.domain)
        bad = next((o for o in operands if isinstance(o, Unavailable)), None)
        function = self.functions.get((domain, node.op_type))
        if domain not in scope.opsets and function is None and domain == "":
            raise ModelError(f"the model imports no operator set for {node.op_type}", node=label)
        if bad is not None:
            return self._behind(node, domain, label, bad)
        attrs = self._attributes(node, scope)
        context = NodeContext(
            self.builder, node.op_type, scope.opsets.get(domain, 1), label, operands, list(node.output), attrs,
            [o != "" and o in used for o in node.output],
        )  # fmt: skip
        if function is not None:
            opsets = {normal_domain(o.domain): int(o.version) for o in function.opset_import}
            return call_function(self, function, context, scope, opsets)
        if domain == "" and node.op_type in CONTROL:
            results = CONTROL[node.op_type](self, context, scope)
            self.findings.append(Finding(label, node.op_type))
            return results
        if domain == "" and node.op_type in SEQUENCES:
            results = SEQUENCES[node.op_type](context)
            self.findings.append(Finding(label, node.op_type))
            return results
        if any(isinstance(o, Items) for o in operands):
            if (domain, node.op_type) != ("", "Identity"):
                context.broken("an operand is a sequence")
            self.findings.append(Finding(label, node.op_type))
            return operands
        if domain == "" and node.op_type == "Constant":
            self.findings.append(Finding(label, node.op_type))
            return [_constant(context)]
        why = ""
        if domain == "":
            try:
                known = shapes.evaluate(context)
                if known is not None:
                    self.findings.append(Finding(label, node.op_type))
                    return known
            except Undecided as error:
                why = str(error)
            except UnsupportedError as error:
                why = error.message
        if domain == "" and handler(domain, node.op_type) is None:
            standard = standard_function(node, context)
            if standard is not None:
                body, defaults = standard
                context.attrs = defaults | attrs
                opsets = dict(scope.opsets) | {normal_domain(o.domain): int(o.version) for o in body.opset_import}
                return call_function(self, body, context, scope, opsets)
        return self._handle(context, domain, why)

    def _handle(self, context: NodeContext, domain: str, why: str) -> Sequence[Operand | Unavailable]:
        fn = handler(domain, context.op)
        if fn is None:
            raise _not_implemented(domain, context.op, why)
        start = len(self.builder.rw.nodes)
        try:
            raw = fn(context)
        except ModelError as error:
            if any(isinstance(d, IntExpr) for o in context.operands if o is not None for d in o.shape):
                # with open dimensions a disagreement may only be one that is not provable
                raise UnsupportedError(error.message, hint=error.hint or SHAPES_HINT) from error
            raise
        listed = [raw] if isinstance(raw, Value | Operand) else list(raw)
        for i, wanted in enumerate(context.used):
            if wanted and (i >= len(listed) or listed[i] is None):
                raise UnsupportedError(f"output {i} of {context.op} is not supported")
        for emitted in self.builder.rw.nodes[start:]:
            refusal = registry.unsupported_reason(emitted)
            if refusal:
                raise UnsupportedError(refusal)
        self.findings.append(Finding(context.name, context.op))
        return self._named(context, listed, start, why)

    def _named(self, context: NodeContext, listed: Sequence[Any], start: int, why: str) -> list[Any]:
        fresh = {o.name for n in self.builder.rw.nodes[start:] for o in n.outputs}
        out: list[Any] = []
        for name, result in zip(context.outputs, listed):
            if isinstance(result, Value):
                elements = result.type.numel
                if isinstance(elements, int) and not 0 <= elements <= MAX_ELEMENTS:
                    raise ModelError(f"the result would have the shape {text(result.shape)}", node=context.name)
                value = self.rename(result, name) if name and result.name in fresh else result
                fresh.discard(result.name)
                if why:
                    self.builder.notes[value.name] = why
                result = on_device(value)
            out.append(Unavailable(context.name) if result is None else result)
        return out + [Unavailable(context.name)] * (len(context.outputs) - len(out))

    def rename(self, value: Value, name: str) -> Value:
        """Calls a value that a node just emitted by its ONNX name."""
        new = Value(self.builder.rw.fresh(sanitise(name)), value.type)
        nodes = self.builder.rw.nodes
        for i in range(len(nodes) - 1, -1, -1):
            node = nodes[i]
            if value in node.inputs or value in node.outputs:
                nodes[i] = replace(node, inputs=_swap(node.inputs, value, new), outputs=_swap(node.outputs, value, new))
            if value in node.outputs:
                break
        self.builder.producers.pop(value.name, None)
        self.builder.scanned = min(self.builder.scanned, i)
        return new

    def _behind(self, node: NodeProto, domain: str, label: str, bad: Unavailable) -> Sequence[Any]:
        known = handler(domain, node.op_type) is not None or (domain == "" and node.op_type in _BUILT_IN)
        known = known or (domain, node.op_type) in self.functions
        if not known:
            raise _not_implemented(domain, node.op_type)
        # an input or initializer that cannot be used is reported by its first reader
        reason = f"{bad.node}: {bad.reason}" if bad.reason else ""
        self.findings.append(Finding(label, node.op_type, reason))
        return [Unavailable(bad.node)] * len(node.output)

    def _attributes(self, node: NodeProto, scope: Scope) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        for attr in node.attribute:
            if attr.name in attrs:
                raise ModelError(f"{node.op_type} has two attributes {attr.name!r}")
            if attr.ref_attr_name:
                if attr.ref_attr_name in scope.attrs:
                    attrs[attr.name] = scope.attrs[attr.ref_attr_name]
            else:
                attrs[attr.name] = attribute_value(attr, self.builder.source)
        return attrs


_REMEDIES = {
    "com.microsoft.nchwc": "the file was optimised for one kind of CPU: save it with ORT_ENABLE_EXTENDED or less",
    "com.microsoft.nhwc": "the file was optimised for one kind of CPU: save it with ORT_ENABLE_EXTENDED or less",
}


def _not_implemented(domain: str, op: str, why: str = "") -> UnsupportedError:
    name = f"{domain}.{op}" if domain else op
    reason = f"operator {name} is not implemented"
    return UnsupportedError(f"{reason}; {why}" if why else reason, hint=_REMEDIES.get(domain))


_BUILT_IN = {"Constant", "Shape", "Size", *CONTROL, *SEQUENCES}


def _swap(values: Sequence[Any], old: Value, new: Value) -> tuple[Any, ...]:
    return tuple(new if v == old else v for v in values)


def _constant(c: NodeContext) -> Operand:
    """The Constant operator in all its spellings."""
    if len(c.attrs) != 1:
        c.broken("exactly one attribute should give the value")
    ((kind, value),) = c.attrs.items()
    if kind == "value":
        data, dtype = value
        return on_host(data, dtype)
    spelled = {"value_int": DType.I64, "value_ints": DType.I64, "value_float": DType.F32, "value_floats": DType.F32}
    if kind not in spelled:
        c.unsupported(f"a constant given as {kind}")
    return on_host(np.array(value, spelled[kind].numpy), spelled[kind])
