"""Reads FX nodes one by one into a graph; each result is checked against the type that torch gives it.

Nodes that cannot be compiled are collected, so that one error lists all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from arcweld.compiler.dims import Dim, IntExpr, free_symbols
from arcweld.compiler.errors import ArcweldError, UnsupportedError, VerifyError
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.ops.registry import unsupported_reason
from arcweld.compiler.ops.shapes import UnequalError
from arcweld.compiler.text import sanitize
from arcweld.compiler.torch.context import COMPLEX, HANDLERS, AtenContext, Pair, joined, parted
from arcweld.compiler.torch.symbols import solvable
from arcweld.compiler.torch.table import ASSERTIONS, HIGHER_ORDER, WRAPPERS
from arcweld.compiler.torch.types import Sizes, as_array, part_type, real_view

UNKNOWN = "no such operator in Arcweld"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Stands for a result that cannot be imported, and for an argument of a kind that graphs lack.

    A node that reads it is refused for this reason.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A node that cannot be compiled: its target, the reason, and its place in the user's program.

    ``unequal`` are two dimensions that would have to be equal.
    """

    target: str
    reason: str
    place: str
    unequal: tuple[Dim, Dim] | None = None


class FxReader:
    """Builds one IR graph from FX nodes.

    ``env`` maps each node to its result: a Value, a Pair, a dimension, a tuple of them, Unavailable, or what torch
    passes on.
    """

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.name = name
        self.sizes = sizes
        self.rw = Rewriter(Graph(name, (), (), ()))
        self.env: dict[fx.Node, Any] = {}
        self.inputs: list[Value] = []
        self.problems: list[Problem] = []
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._weights: dict[tuple[Any, ...], Value] = {}
        self._arrays: list[torch.Tensor] = []  # kept alive, because weights are told apart by address

    # --------------------------------------------------------------------------------------------------- leaves

    def input(self, name: str, type_: TensorType) -> Value:
        """A new graph input."""
        value = Value(self.rw.fresh(sanitize(name)), type_)
        self.inputs.append(value)
        return value

    def tensor_input(self, name: str, tensor: torch.Tensor, order: Sequence[int] | None = None) -> Value | Pair:
        """A new input for a (fake) tensor, with its axes in ``order``; a complex one has a last axis of 2 more."""
        type_ = self.sizes.type_of(tensor)
        order = range(type_.rank) if order is None else order
        shape = [type_.shape[k] for k in order]
        outer = self.input(name, type_.with_shape([*shape, 2] if tensor.is_complex() else shape))
        inner = self._parted(outer) if tensor.is_complex() else outer
        return self.ordered(inner, [order.index(k) for k in range(type_.rank)])

    def ordered(self, v: Value | Pair, perm: Sequence[int]) -> Value | Pair:
        """A tensor with permuted axes."""
        if isinstance(v, Pair):
            return Pair(self._transposed(v.re, perm), self._transposed(v.im, perm))
        return self._transposed(v, perm)

    def _transposed(self, v: Value, perm: Sequence[int]) -> Value:
        if list(perm) == list(range(v.type.rank)):
            return v
        type_ = TensorType(v.dtype, tuple(v.shape[k] for k in perm))
        return self.rw.emit("Transpose", (v,), type_, {"perm": tuple(perm)}, name=v.name)

    def _parted(self, whole: Value) -> Pair:
        return parted(Emitter(self.rw, ()), whole)

    def joined(self, v: Any) -> Any:
        """A result as the graph returns it: a complex one with its parts as a last axis of 2."""
        return joined(Emitter(self.rw, ()), v) if isinstance(v, Pair) else v

    def weight(self, name: str, tensor: torch.Tensor) -> Value | Pair:
        """A weight that shares the tensor's memory: one for all tensors with its address, type, shape and strides."""
        whole = self._weight(name, real_view(tensor))
        return self._parted(whole) if tensor.is_complex() else whole

    def _weight(self, name: str, tensor: torch.Tensor) -> Value:
        key: tuple[Any, ...] = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
        if key[0] == 0 or key not in self._weights:
            dtype = part_type(tensor.dtype)
            self._weights[key] = self.rw.constant(as_array(tensor), dtype, sanitize(name), source=name)
            self._arrays.append(tensor)
        return self._weights[key]

    def placeholder_value(self, type_: TensorType, hint: str) -> Value:
        """A value that no node writes: it stands for the result of a refused node, or for an operand in a query."""
        return Value(self.rw.fresh(sanitize(hint)), type_)

    def stand_in(self, tensor: torch.Tensor, hint: str) -> Value | Pair:
        """What stands for the (fake) tensor: placeholder values of its type."""
        type_ = self.sizes.type_of(tensor)
        first = self.placeholder_value(type_, hint)
        return Pair(first, self.placeholder_value(type_, hint)) if tensor.is_complex() else first

    # ---------------------------------------------------------------------------------------------------- nodes

    def read(self, node: fx.Node) -> None:
        """Imports one call_function or get_attr node; one that cannot be compiled is noted in ``problems``."""
        try:
            self.env[node] = self._value_of(node)
        except ArcweldError as error:
            if isinstance(error, VerifyError):
                raise
            unequal = error.pair if isinstance(error, UnequalError) else None
            self.problems.append(Problem(target_name(node), error.message, place_of(node), unequal))
            self.env[node] = self._stand_in(node)

    def _value_of(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(node)
        name = target_name(node)
        if name in ASSERTIONS:
            return None
        if name == "getitem":
            return self._item(node)
        if is_symbolic_scalar(node):
            return self._scalar(node)
        if name in WRAPPERS:
            return self._inline(node, WRAPPERS[name])
        if written_input(node) is not None:
            name = "aten.copy.default"
        if name not in HANDLERS and name not in COMPLEX:
            raise UnsupportedError(UNKNOWN)
        return self._call(node, name)

    def _attribute(self, node: fx.Node) -> Any:
        owner = attribute_of(node)
        return self.weight(str(node.target), owner) if isinstance(owner, torch.Tensor) else owner

    def _item(self, node: fx.Node) -> Any:
        source, position = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        assert isinstance(position, int)
        whole = self.env[source]
        if isinstance(whole, Unavailable):
            return whole
        item = whole[position]
        if item is None:
            return Unavailable(f"result {position} of {target_name(source)} is not computed")
        return item

    def _scalar(self, node: fx.Node) -> Any:
        value = node.meta["val"]
        try:
            if isinstance(value, bool | float):
                return value
            if isinstance(value, int | torch.SymInt):
                return self.sizes.dim(value)
        except UnsupportedError as error:
            return Unavailable(error.message)
        return Unavailable(f"{value} is a symbolic {type(value).__name__[3:].lower()}")

    def _inline(self, node: fx.Node, position: int) -> Any:
        """Reads the nodes of a wrapped sub-graph in place."""
        body_node = node.args[position]
        assert isinstance(body_node, fx.Node)
        body = self.env[body_node]
        skip = position + 2 if target_name(node) == "invoke_subgraph" else position + 1
        operands = iter(node.args[skip:])
        result: Any = None
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                self.env[inner] = self.argument(next(operands))
            elif inner.op == "output":
                result = fx.node.map_arg(inner.args[0], lambda n: self.env[n])
            else:
                self.read(inner)
        return result

    # ---------------------------------------------------------------------------------------------------- calls

    def _call(self, node: fx.Node, name: str) -> Any:
        outs = self.result_types(node)
        call = AtenContext(
            self.rw,
            self._arguments(node),
            outs,
            origin=(place_of(node),),
            hint=sanitize(node.name),
            constants=self._constants,
            used=used_results(node),
            complex_outs=_complex_results(node),
        )
        handler = (COMPLEX if call.involves_complex else HANDLERS).get(name)
        if handler is None:
            raise UnsupportedError(UNKNOWN + (" for complex tensors" if call.involves_complex else ""))
        before = len(self.rw.nodes)
        found = handler(call)
        for emitted in self.rw.nodes[before:]:
            reason = unsupported_reason(emitted)
            if reason is not None:
                raise UnsupportedError(reason)
        if isinstance(found, tuple):
            return tuple(None if v is None else self._result(call, name, v, k) for k, v in enumerate(found))
        return self._result(call, name, found, 0)

    def _result(self, call: AtenContext, name: str, v: Value | Pair, k: int) -> Value | Pair:
        """Result ``k``, checked as ``_checked`` does; a complex one part by part."""
        expected = call.outs[k]
        if isinstance(v, Pair) != call.complex_outs[k]:
            kind = "complex" if call.complex_outs[k] else "real"
            raise VerifyError(f"{name} became {v}, torch says that it is {kind}", node=call.origin[0])
        if isinstance(v, Pair):
            return Pair(self._checked(call, name, v.re, expected), self._checked(call, name, v.im, expected))
        return self._checked(call, name, v, expected)

    def _checked(self, call: AtenContext, name: str, v: Value, expected: TensorType | None) -> Value:
        """``v`` if it has the type that torch gives. Symbolic sizes that differ only in form get torch's form.

        Raises VerifyError for any other type.
        """
        if expected is None or v.type == expected:
            return v
        pairs = list(zip(v.shape, expected.shape))
        differs = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if v.dtype is not expected.dtype or len(v.shape) != len(expected.shape) or differs:
            raise VerifyError(f"{name} became {v.type}, torch says {expected}", node=call.origin[0])
        return call.emit("Reshape", v, shape=expected.shape)

    def result_types(self, node: fx.Node) -> list[TensorType | None]:
        """The types that torch gives a node's results, or their parts; None for results that are not tensors."""
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return [self.sizes.type_of(value)]
        if not isinstance(value, tuple | list):
            raise UnsupportedError(f"the result is a {type(value).__name__}, not a tensor")
        return [self._type_or_none(v) for v in value]

    def _type_or_none(self, value: Any) -> TensorType | None:
        try:
            return self.sizes.type_of(value) if isinstance(value, torch.Tensor) else None
        except UnsupportedError:  # matters only if a node reads it, and then that node is refused
            return None

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments by name, with the schema's defaults filled in."""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            names = HIGHER_ORDER[target_name(node)]
            if len(names) != len(node.args):
                raise UnsupportedError(f"{len(node.args)} arguments, this release of torch has others")
            return {k: self.argument(v) for k, v in zip(names, node.args)}
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        bound = {a.name: a.default_value for a in schema if a.has_default_value()}
        bound.update({a.name: v for a, v in zip(schema, node.args)})
        bound.update(node.kwargs)
        return {k: self.argument(v) for k, v in bound.items()}

    def argument(self, x: Any) -> Any:
        """An FX argument as a handler sees it."""
        if isinstance(x, fx.Node):
            value = self.env[x]
            if isinstance(value, Unavailable):
                raise UnsupportedError(value.reason)
            return value
        if isinstance(x, list | tuple):
            return [self.argument(i) for i in x]
        if isinstance(x, torch.SymInt):
            return self.sizes.dim(x)
        return x

    def _stand_in(self, node: fx.Node) -> Any:
        """The result of a refused node for later ones: values of the right types, so that these are checked too."""
        value = node.meta.get("val")

        def one(v: Any) -> Any:
            try:
                if isinstance(v, torch.Tensor):
                    return self.stand_in(v, node.name)
            except UnsupportedError as error:
                return Unavailable(error.message)
            return Unavailable(f"{target_name(node)} is not supported")

        return tuple(one(v) for v in value) if isinstance(value, tuple | list) else one(value)

    # ---------------------------------------------------------------------------------------------------- result

    def graph(self, outputs: Sequence[Value], labels: Sequence[str] = ()) -> Graph:
        """The finished graph. Raises one UnsupportedError that lists every refused node."""
        self.raise_problems()
        distinct = self._distinct(outputs)
        read = {v.name for n in self.rw.nodes for v in n.operands()} | {v.name for v in distinct}
        weights = {k: w for k, w in self.rw.weights.items() if k in read}
        labels = tuple(labels) or tuple(v.name for v in distinct)  # passes may rename values, but never labels
        taken = {v.name for v in self.inputs} | set(weights)
        labels = tuple(f"{label}_out" if label in taken else label for label in labels)
        graph = Graph(self.name, tuple(self.inputs), distinct, tuple(self.rw.nodes), weights, labels)
        self._check_symbols(graph)
        return graph

    def _distinct(self, outputs: Sequence[Value]) -> tuple[Value, ...]:
        """``outputs``, with a copy of each that is an input, a weight or listed twice: engines write an output once."""
        taken = {v.name for v in self.inputs} | set(self.rw.weights)
        out = []
        for v in outputs:
            if v.name in taken:
                v = self.rw.emit("Identity", (v,), v.type, name=v.name)
            taken.add(v.name)
            out.append(v)
        return tuple(out)

    def _check_symbols(self, graph: Graph) -> None:
        known = solvable(d for v in graph.inputs for d in v.shape)
        sizes = [(v.name, d) for v in graph.values() for d in v.shape]
        sizes += [(n.output.name, d) for n in graph.nodes for d in _dimensions(tuple(n.attrs.values()))]
        for name, d in sizes:
            unknown = free_symbols(d) - known
            if unknown:
                symbol = min(s.name for s in unknown)
                raise UnsupportedError(
                    f"the dimension {symbol} does not follow from any input's shape: it is a Python number among the "
                    "arguments, or computed from one",
                    node=name,
                    hint="pass it as a tensor, or keep it constant",
                )

    def raise_problems(self) -> None:
        """Raises UnsupportedError if any node was refused: each operator once, with count, reason and place."""
        if not self.problems:
            return
        counts = Counter((p.target, p.reason) for p in self.problems)
        first = {(p.target, p.reason): p.place for p in reversed(self.problems)}
        lines = [f"  {t} ({n} x): {why} [first at {first[t, why]}]" for (t, why), n in counts.most_common()]
        total = len(self.problems)
        raise UnsupportedError(
            f"{total} node{'s' * (total > 1)} of {self.name} cannot be compiled:\n" + "\n".join(lines),
            node=self.problems[0].place,
            hint='torch.compile(model, backend="arcweld") leaves such nodes to PyTorch',
        )


def _complex_results(node: fx.Node) -> list[bool]:
    """Which of a node's results are complex tensors."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return [isinstance(v, torch.Tensor) and v.is_complex() for v in values]


def _dimensions(attribute: Any) -> Iterator[IntExpr]:
    """The symbolic dimensions in attributes."""
    if isinstance(attribute, IntExpr):
        yield attribute
    elif isinstance(attribute, tuple):
        for a in attribute:
            yield from _dimensions(a)


# ------------------------------------------------------------------------------------------------------ FX nodes


def target_name(node: fx.Node) -> str:
    """``aten.add.Tensor``, ``getitem``, or the target's own text."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return str(target.name())
    return str(getattr(target, "__name__", target))


def attribute_of(node: fx.Node) -> Any:
    """What a get_attr node reads: a tensor, or a module."""
    owner: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner


def written_input(node: fx.Node) -> fx.Node | None:
    """The placeholder whose tensor a ``copy_`` node writes; None for every other node."""
    if target_name(node) != "aten.copy_.default":
        return None
    target = node.args[0]
    return target if isinstance(target, fx.Node) and target.op == "placeholder" else None


def is_symbolic_scalar(node: fx.Node) -> bool:
    """True for arithmetic on sizes, whose result is a number and no tensor."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def used_results(node: fx.Node) -> tuple[int, ...]:
    """The indices of a node's results that are read; (0,) for a node with one result."""
    if not isinstance(node.meta.get("val"), tuple | list):
        return (0,)
    return tuple(sorted({int(u.args[1]) for u in node.users if target_name(u) == "getitem"}))  # type: ignore[arg-type]


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_LIBRARY = ("/torch/", "torch/_", "torch/nn", "torch/fx")


def place_of(node: fx.Node) -> str:
    """The node's place in the user's program, ``layer1.0.conv1 (resnet.py:102 in forward)``, as far as torch knows."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    path = _module_path(node.meta.get("nn_module_stack") or {})
    own = [f for f in frames if not any(part in f[0] for part in _LIBRARY)]
    shown = own or ([] if path else frames)
    line = f"{shown[-1][0].rsplit('/', 1)[-1]}:{shown[-1][1]} in {shown[-1][2]}" if shown else ""
    if path and line:
        return f"{path} ({line})"
    return path or line or node.name


def _module_path(stack: Mapping[str, Any]) -> str:
    names = [str(entry[0]) for entry in stack.values() if isinstance(entry, tuple) and entry[0]]
    path = names[-1] if names else ""
    path = re.sub(r"^L\['self'\]\.?|^L__self___?|^self\.", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]|\['([^']+)'\]", lambda m: "." + (m[1] or m[2]), path).strip(".")
    return "" if path.startswith("_empty_nn_module_stack") else path
