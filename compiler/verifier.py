"""The IR verifier: checks the rules that a graph keeps after the import and after every pass.

A failure is a defect of the importer or pass that ran last, which the error names, never of the user's model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import ArcweldError, VerifyError
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import OpDef, is_registered, opdef
from arcweld.compiler.text import all_symbols, sanitize


def verify(graph: Graph, after: str = "import") -> None:
    """Checks ``graph`` as the pass called ``after`` left it:

    * values are written once and before they are read, have one type each, and names that IR text can hold
    * operators are registered, and have the operands and attributes of their entry
    * result types are those that the registry infers
    * weights have the shape and dtype that their readers expect
    * outputs exist, and their labels differ
    * an output that takes over an input's memory has its type, and is the only one that does
    * a symbol's name means one symbol

    Raises VerifyError, which names ``after``, the node and a remedy.
    """
    _Verifier(graph, after).run()


class _Verifier:
    def __init__(self, graph: Graph, after: str) -> None:
        self.graph = graph
        self.after = after
        self.known: dict[str, Value] = {}

    def fail(self, message: str, hint: str, node: Node | None = None) -> NoReturn:
        raise VerifyError(
            f"after {self.after}: {message}",
            node=f"{node.op} {node.name}" if node else f"graph {self.graph.name}",
            hint=hint,
        )

    def run(self) -> None:
        for v in self.graph.inputs:
            self.define(v, None)
        self.check_weights()
        for node in self.graph.nodes:
            self.check_node(node)
        self.check_outputs()
        try:
            all_symbols(self.graph)
        except ArcweldError as error:
            self.fail(error.message, "substitute one symbol for the other in all types and attributes")

    def define(self, v: Value, node: Node | None) -> None:
        if v.name in self.known or v.name in self.graph.weights:
            self.fail(f"%{v.name} is written twice", "take new names from Rewriter.fresh", node)
        if sanitize(v.name) != v.name:
            self.fail(f"the name {v.name!r} cannot be written in IR text", "use text.sanitize", node)
        if v.dtype.is_string:
            self.fail(f"%{v.name} is a string, which the host alone has", "call an operator of the host", node)
        for d in v.shape:
            if isinstance(d, int) and d < 0:
                self.fail(f"%{v.name} has the negative dimension {d}", "correct the shape rule", node)
        self.known[v.name] = v

    def check_weights(self) -> None:
        for name, w in self.graph.weights.items():
            if sanitize(name) != name:
                self.fail(f"the name {name!r} cannot be written in IR text", "use text.sanitize")
            from_numpy(w.data.dtype)

    def check_node(self, node: Node) -> None:
        if not is_registered(node.op):
            self.fail(f"{node.op} is not a registered operator", "register it, or emit another operator", node)
        if not node.outputs:
            self.fail("a node without outputs", "drop it", node)
        op = opdef(node.op)
        for v in node.operands():
            self.check_read(v, node)
        self.check_arity(node, op)
        self.check_attrs(node, op)
        self.check_types(node, op)
        for o in node.outputs:
            self.define(o, node)

    def check_read(self, v: Value, node: Node | None) -> None:
        weight = self.graph.weights.get(v.name)
        if weight is not None:
            if weight.data.shape != v.shape or from_numpy(weight.data.dtype) is not v.dtype:
                found = f"{from_numpy(weight.data.dtype).value}{list(weight.data.shape)}"
                self.fail(f"%{v.name} is read as {v.type}, but the weight is {found}", "use ir.weight_value", node)
        elif v.name not in self.known:
            hint = "emit the producer first, and redirect readers with Rewriter.alias"
            self.fail(f"%{v.name} is read before it is written, or never written", hint, node)
        elif self.known[v.name] != v:
            written = self.known[v.name].type
            self.fail(f"%{v.name} is read as {v.type}, but was written as {written}", "rebuild the readers", node)

    def check_arity(self, node: Node, op: OpDef) -> None:
        variadic = bool(op.inputs) and op.inputs[-1].endswith("*")
        needed = sum(1 for i in op.inputs if not i.endswith(("?", "*")))
        present = node.inputs + (None,) * (len(op.inputs) - len(node.inputs))
        if (len(node.inputs) > len(op.inputs) and not variadic) or any(v is None for v in present[:needed]):
            self.fail(
                f"{len(node.inputs)} operands given for ({', '.join(op.inputs)})",
                "correct the operands",
                node,
            )

    def check_attrs(self, node: Node, op: OpDef) -> None:
        wrong = set(node.attrs) ^ set(op.attrs)
        if wrong:
            hint = "emit nodes through registry.make, which completes attributes"
            self.fail(f"the attributes {sorted(wrong)} are missing or unknown", hint, node)
        for name, spec in op.attrs.items():
            value = node.attrs[name]
            if value is None and not spec.required:
                continue
            if not _KINDS[spec.kind](value):
                hint = "attributes are plain Python data: no numpy scalars, no lists"
                self.fail(f"the attribute {name}={value!r} is not of kind {spec.kind}", hint, node)

    def check_types(self, node: Node, op: OpDef) -> None:
        try:
            types = op.infer([None if v is None else v.type for v in node.inputs], node.attrs)
        except ArcweldError as error:
            self.fail(f"the operands do not fit: {error.message}", "correct the operands or attributes", node)
        if types != tuple(o.type for o in node.outputs):
            inferred, declared = ", ".join(map(str, types)), ", ".join(str(o.type) for o in node.outputs)
            self.fail(f"declared {declared}, but inferred {inferred}", "emit nodes through registry.make", node)

    def check_outputs(self) -> None:
        for o in self.graph.outputs:
            self.check_read(o, None)
        labels = self.graph.output_labels
        if labels and (len(labels) != len(self.graph.outputs) or len(set(labels)) != len(labels)):
            self.fail("the output labels do not fit the outputs", "give each output one label of its own")
        self.check_aliases()
        self.check_arguments()

    def check_arguments(self) -> None:
        names = [v.name for v in self.graph.inputs]
        for arguments, wanted in ((self.graph.takes, names), (self.graph.gives, list(self.graph.labels()))):
            if arguments and [n for a in arguments for n in a.items] != wanted:
                self.fail("the arguments are not made of the inputs, or of the outputs", "list every tensor, in order")
            if not all(a.is_valid for a in arguments) or len({a.name for a in arguments}) != len(arguments):
                self.fail("an argument has no such number of items, or another's name", "see compiler/signature.py")

    def check_aliases(self) -> None:
        inputs = {v.name: v for v in self.graph.inputs}
        outputs = dict(zip(self.graph.labels(), self.graph.outputs))
        aliases = self.graph.aliases
        for label, name in aliases.items():
            if label not in outputs or name not in inputs:
                self.fail(f"{label} takes over the memory of {name}", "name an output's label and an input")
            if outputs[label].type != inputs[name].type:
                types = f"{outputs[label].type} takes over the memory of {inputs[name].type}"
                self.fail(f"output {label}: {types}", "keep the type of an output with an alias")
        if len(set(aliases.values())) != len(aliases):
            self.fail("two outputs take over the memory of one input", "give each output an input of its own")
        if unknown := set(self.graph.initial) - set(aliases.values()):
            self.fail(f"first values for {min(unknown)}, which no output replaces", "make it a weight")


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(check(x) for x in v)


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda v: type(v) in types


def _plain(v: Any) -> bool:
    return v is None or type(v) in (int, float, str, bool, DType, IntExpr) or _all(_plain)(v)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "int": _is(int),
    "float": _is(float, int),
    "str": _is(str),
    "bool": _is(bool),
    "dtype": _is(DType),
    "dim": _is(int, IntExpr),
    "ints": _all(_is(int)),
    "floats": _all(_is(float, int)),
    "strs": _all(_is(str)),
    "dims": _all(_is(int, IntExpr)),
    "any": _plain,
}
