"""Imports the nodes of a model and its subgraphs in order, and gives every name in them its operand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from arcweld.compiler import host_nodes
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ArcweldError, InternalError, ModelError, UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import shapes
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.control import CONTROL, MAX_DEPTH, call_function, has_body, standard_function, takes_types
from arcweld.compiler.onnx.expansion import Expansion
from arcweld.compiler.onnx.handlers import strings
from arcweld.compiler.onnx.handlers.table import handler
from arcweld.compiler.onnx.operands import (
    Builder,
    Growing,
    Items,
    Nothing,
    Operand,
    Rows,
    Unavailable,
    Unknown,
    on_device,
    on_host,
    text,
)
from arcweld.compiler.onnx.order import in_order, names_used
from arcweld.compiler.onnx.proto import attribute_value, complaint
from arcweld.compiler.onnx.remedies import (
    Action,
    ImportRefusal,
    Remedy,
    fix_dimensions,
    remedy_of,
    remedy_of_hint,
)
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.onnx.scope import BodyRefused, Finding, Scope, normal_domain
from arcweld.compiler.onnx.sequences import SEQUENCES
from arcweld.compiler.ops import registry
from arcweld.compiler.ops.shapes import ElementTypeError
from arcweld.compiler.text import sanitize

MAX_VISITS = 100_000
MAX_ELEMENTS = 2**48

# errors of Python and numpy that a handler raises for values that it does not expect (see _failed)
_UNTYPED = (TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError, AttributeError)


class Visitor:
    """Imports nodes into one Builder. Afterwards ``results`` holds the operands of the graph's outputs.

    If the builder then has requirements, its graph is of no use. ``ended`` is true if the import stopped before the
    last node, because a node failed that may not fail when the requirements are met.
    """

    def __init__(self, builder: Builder, functions: Mapping[tuple[str, str], FunctionProto]) -> None:
        self.builder = builder
        self.functions = functions
        self.findings: list[Finding] = []
        self.results: dict[str, Operand | Items | Nothing | Unavailable] = {}
        self.visits = 0
        self.ended = False
        self.expansion = Expansion(functions, MAX_DEPTH)

    def visit_all(
        self, nodes: Sequence[NodeProto], scope: Scope, outputs: Sequence[str], used: Set[str] | None = None
    ) -> list[Any]:
        """Imports ``nodes`` in order and returns the operands called ``outputs``.

        ``used`` is ``names_used(nodes, outputs)``, for a caller that visits the same nodes several times. Raises
        ModelError for a malformed model and InternalError for a defect; unsupported nodes are noted in ``findings``.
        """
        used = names_used(nodes, outputs) if used is None else used
        for node in in_order(nodes):
            self.visits += 1
            if self.visits > MAX_VISITS:
                raise ModelError(f"the model expands to more than {MAX_VISITS} nodes")
            self._visit(node, scope, used)
            if self.ended:
                return [Unavailable(node.name)] * len(outputs)
        found = []
        for name in outputs:
            operand = scope.lookup(name)
            if operand is None:
                raise ModelError(f"nothing writes the output {name!r}")
            found.append(operand)
        if scope.depth == 0:
            self.results = dict(zip(outputs, found))
        return found

    def reserve(self, nodes: Sequence[NodeProto], depth: int, times: int = 1) -> None:
        """Raises ModelError if visiting ``nodes`` at ``depth`` so many times passes ``MAX_VISITS``."""
        if self.visits + times * self.expansion.size(nodes, depth) > MAX_VISITS:
            raise ModelError(f"the model expands to more than {MAX_VISITS} nodes")

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
        except (ArcweldError, *_UNTYPED) as error:
            self._failed(node, scope, label, error)
            self.builder.drop(start)
            results = [Unavailable(label)] * len(node.output)
        for name, result in zip(node.output, results):
            if name:
                if name in scope.names:
                    raise ModelError(f"{name!r} is written twice", node=label)
                scope.names[name] = result

    def _failed(self, node: NodeProto, scope: Scope, label: str, error: Exception) -> None:
        """Notes why a valid node cannot be imported.

        Raises ModelError for an invalid node, InternalError for a defect of Arcweld.
        """
        if self.builder.requirements:  # the next round meets them, and then the node may not fail
            self.ended = True
        elif isinstance(error, BodyRefused):
            self.findings.append(Finding(label, node.op_type))
        elif isinstance(error, UnsupportedError):
            self.findings.append(Finding(label, node.op_type, error.message, remedy_of(error)))
            self._list_inside(node, label)
        elif isinstance(error, ArcweldError):
            if error.node is None:
                error.node = label
            raise error
        elif (why := complaint(node, scope.opsets)) is None:
            what = f"importing {node.op_type} failed with {type(error).__name__}: {error}"
            raise InternalError(
                f"{what}; ONNX's checker accepts the node: this is a defect of Arcweld",
                node=label,
                hint="please report it with the model",
            ) from error
        else:
            raise ModelError(f"{node.op_type} is malformed: {why or error}", node=label) from error

    def _import(
        self, node: NodeProto, scope: Scope, label: str, operands: Sequence[Any], used: Set[str]
    ) -> Sequence[Any]:
        domain = normal_domain(node.domain)
        function = self.functions.get((domain, node.op_type))
        if domain not in scope.opsets and function is None and domain == "":
            raise ModelError(f"the model imports no operator set for {node.op_type}", node=label)
        bad = next((o for o in operands if isinstance(o, Unavailable)), None)
        if bad is not None:
            return self._behind(node, domain, label, bad)
        context = NodeContext(
            self.builder, node.op_type, scope.opsets.get(domain, 1), label, operands, list(node.output),
            self._attributes(node, scope), [o != "" and o in used for o in node.output],
        )  # fmt: skip
        if function is not None:
            return call_function(self, function, context, scope, opset_versions(function))
        found = self._built_in(context, domain, scope)
        if found is None:
            return self._operator(node, context, domain, scope)
        self.findings.append(Finding(label, node.op_type))
        return found

    def _built_in(self, c: NodeContext, domain: str, scope: Scope) -> Sequence[Any] | None:
        """The results of an operator that becomes no node: control flow, sequences, constants; None for all others."""
        if domain == "" and c.op in CONTROL:
            return CONTROL[c.op](self, c, scope)
        if domain == "" and c.op in SEQUENCES:
            return SEQUENCES[c.op](c)
        other = next((o for o in c.operands if isinstance(o, Items | Nothing | Growing | Rows)), None)
        if other is not None:
            if (domain, c.op) != ("", "Identity"):
                c.broken("an operand is " + ("an empty optional value" if isinstance(other, Nothing) else "a sequence"))
            return c.operands
        return [_constant(c)] if (domain, c.op) == ("", "Constant") else None

    def _operator(self, node: NodeProto, c: NodeContext, domain: str, scope: Scope) -> Sequence[Any]:
        """The results of an operator: computed on the host, by its handler, or by its function body in the standard."""
        if strings.has_strings(c) and (domain, c.op) not in (("", "Shape"), ("", "Size")):
            return self._of_strings(node, c, domain, scope)
        if domain != "":
            return self._by_function(node, c, domain, scope) or self._handle(c, domain, handler(domain, c.op))
        unknown: Unknown | None = None
        try:
            known = shapes.evaluate(c)
            if known is not None:
                self.findings.append(Finding(c.name, c.op))
                return known
        except Undecided as error:
            unknown = Unknown(str(error), error.symbols)
        except UnsupportedError as error:
            remedy = remedy_of(error)
            unknown = Unknown(error.message, frozenset() if remedy is None else remedy.symbols)
        return self._by_function(node, c, domain, scope) or self._handle(c, domain, handler(domain, c.op), unknown)

    def _of_strings(self, node: NodeProto, c: NodeContext, domain: str, scope: Scope) -> Sequence[Any]:
        """The results of an operator that takes or gives strings."""
        if domain == "" and c.op in strings.MOVES:
            return strings.at_places(c, self._operator(node, strings.with_places(c), domain, scope))
        fn = strings.STRINGS.get((domain, c.op))
        if fn is None and handler(domain, c.op) is not None:
            c.unsupported(f"{c.op} of strings")
        if fn is None:
            raise _not_implemented(domain, c.op, strings.MISSING.get(c.op, ""))
        return self._handle(c, domain, fn)

    def _by_function(self, node: NodeProto, c: NodeContext, domain: str, scope: Scope) -> Sequence[Any]:
        """The results by the function body in the standard, of an operator without a handler; none without a body."""
        standard = standard_function(node, c, domain) if handler(domain, c.op) is None else None
        if standard is None:
            return ()
        body, defaults = standard
        c.attrs = defaults | dict(c.attrs)
        return call_function(self, body, c, scope, {**scope.opsets, **opset_versions(body)})

    def _handle(
        self, context: NodeContext, domain: str, fn: Any, unknown: Unknown | None = None
    ) -> Sequence[Operand | Unavailable]:
        if fn is None:
            raise _not_implemented(domain, context.op, "" if unknown is None else unknown.reason)
        start, known = len(self.builder.rw.nodes), len(self.builder.born)
        try:
            raw = fn(context)
        except ModelError as error:
            if isinstance(error, ElementTypeError) and takes_types(context, domain):
                raise ImportRefusal(error.message, remedy=remedy_of_hint(error)) from error
            operands = fix_dimensions(*(d for o in context.operands if o is not None for d in o.shape))
            if not operands.symbols and len(self.builder.born) == known:
                raise
            # with open dimensions a disagreement may only be one that is not provable
            raise ImportRefusal(error.message, remedy=remedy_of_hint(error) or operands) from error
        listed = [raw] if isinstance(raw, Value | Operand) else list(raw)
        for i, wanted in enumerate(context.used):
            if wanted and (i >= len(listed) or listed[i] is None):
                raise UnsupportedError(f"output {i} of {context.op} is not supported")
        for emitted in self.builder.rw.nodes[start:]:
            refusal = "" if emitted.op in host_nodes.OPS else registry.unsupported_reason(emitted)
            if refusal:
                raise UnsupportedError(refusal)
        self.findings.append(Finding(context.name, context.op))
        return self._named(context, listed, start, unknown)

    def _named(
        self, context: NodeContext, listed: Sequence[Any], start: int, unknown: Unknown | None
    ) -> list[Any]:
        """The operands of a node's outputs. Values that were emitted since ``start`` get the outputs' ONNX names."""
        fresh = {o.name for n in self.builder.rw.nodes[start:] for o in n.outputs}
        names: dict[str, Value] = {}
        out: list[Any] = []
        for name, result in zip(context.outputs, listed):
            if isinstance(result, Value):
                elements = result.type.numel
                if isinstance(elements, int) and not 0 <= elements <= MAX_ELEMENTS:
                    raise ModelError(f"the result would have the shape {text(result.shape)}", node=context.name)
                if name and result.name in fresh and result.name not in names:
                    names[result.name] = self.named(result, name)
                value = names.get(result.name, result)
                if unknown is not None:
                    self.builder.unknown[value.name] = unknown
                result = on_device(value)
            out.append(Unavailable(context.name) if result is None else result)
        self.builder.rename(names, start)
        return out + [Unavailable(context.name)] * (len(context.outputs) - len(out))

    def named(self, value: Value, name: str) -> Value:
        """A value like ``value`` whose name is made of the ONNX name."""
        return Value(self.builder.rw.fresh(sanitize(name)), value.type)

    def _behind(self, node: NodeProto, domain: str, label: str, bad: Unavailable) -> Sequence[Any]:
        if not self._has(node, domain):
            raise _not_implemented(domain, node.op_type)
        # an input or initializer that cannot be used is reported by its first reader
        reason = f"{bad.node}: {bad.reason}" if bad.reason else ""
        self.findings.append(Finding(label, node.op_type, reason))
        self._list_inside(node, label)
        return [Unavailable(bad.node)] * len(node.output)

    def _list_inside(self, node: NodeProto, label: str) -> None:
        """Notes the operators without a handler in the subgraphs of a node that cannot be imported.

        So that all that a model lacks is listed at once. What else is wrong with these nodes is not known.
        """
        waiting = [(label, g) for attr in node.attribute for g in (attr.g, *attr.graphs) if g.node]
        while waiting:
            place, graph = waiting.pop()
            for inner in graph.node:
                here = f"{place}/{inner.name or f'{inner.op_type}_{next(iter(inner.output), str())}'}"
                waiting += [(here, g) for attr in inner.attribute for g in (attr.g, *attr.graphs) if g.node]
                domain = normal_domain(inner.domain)
                if self._has(inner, domain) or (domain == "" and has_body(inner.op_type)):
                    continue
                refusal = _not_implemented(domain, inner.op_type)
                self.findings.append(Finding(here, inner.op_type, refusal.message, remedy_of(refusal)))

    def _has(self, node: NodeProto, domain: str) -> bool:
        """Whether there is a way to import the node's operator: a handler, a built-in, or a function of the model."""
        known = handler(domain, node.op_type) is not None or (domain == "" and node.op_type in _BUILT_IN)
        known = known or (domain, node.op_type) in strings.STRINGS
        return known or (domain, node.op_type) in self.functions

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


_FOR_ONE_PROCESSOR = ("com.microsoft.nchwc", "com.microsoft.nhwc")


def _not_implemented(domain: str, op: str, why: str = "") -> UnsupportedError:
    name = f"{domain}.{op}" if domain else op
    reason = f"operator {name} is not implemented"
    remedy = Remedy(Action.OPTIMISE_LESS) if domain in _FOR_ONE_PROCESSOR else None
    return ImportRefusal(f"{reason}; {why}" if why else reason, remedy=remedy)


def opset_versions(owner: FunctionProto | ModelProto) -> dict[str, int]:
    """The operator set versions that a model or function imports, by domain."""
    return {normal_domain(o.domain): int(o.version) for o in owner.opset_import}


_BUILT_IN = {"Constant", "Shape", "Size", *CONTROL, *SEQUENCES}


def _constant(c: NodeContext) -> Operand:
    """The result of a Constant node, whichever attribute holds the value."""
    if len(c.attrs) != 1:
        c.broken("exactly one attribute should give the value")
    (kind,) = c.attrs
    tensor = c.tensor_attr(kind) if kind == "value" else None
    if tensor is not None:
        return on_host(*tensor)
    readers: dict[str, tuple[Callable[[str], Any], DType]] = {
        "value_int": (c.int_attr, DType.I64), "value_ints": (c.ints_attr, DType.I64),
        "value_float": (lambda name: c.float_attr(name, 0.0), DType.F32), "value_floats": (c.floats_attr, DType.F32),
        "value_string": (lambda name: c.str_attr(name, ""), DType.STR), "value_strings": (c.strings_attr, DType.STR),
    }  # fmt: skip
    if kind not in readers:
        c.unsupported(f"a constant given as {kind}")
    read, dtype = readers[kind]
    return on_host(np.array(read(kind), object if dtype.is_string else dtype.numpy), dtype)
