"""The text form of the IR: ``print_graph`` writes a graph, and ``parse_graph`` reads it back exactly.

The grammar, one item a line (blank lines and lines that begin with ``#`` are skipped)::

    graph 'name'
    symbol N(lo=1, hi=8, multiple_of=2)
    input %x: f32[N, 64]
    weight %w: f32[64, 10] source='fc.weight', data=(0.5, ...)
    %y: f32[N, 10] = MatMul(%x, %w) @ 'fc'
    %z: f32[N, 10] = Clip(%y, min=0.0, max=6.0) @ 'relu6', 'relu6_copy'
    output %z 'scores'
    output %next 'state' in %last
    initial %last source='cache', zeros=True
    takes 'x' tensor ('x',)
    gives 'parts' sequence ('scores', 'state')

A missing optional operand is ``_``. Attributes follow the operands; a value is a Python literal, a tuple,
``dtype(f16)``, ``float(inf)`` or a dimension expression. An output may be written without its type: then
the registry completes the node's attributes and infers the type (convenient in tests). Weights are written
by reference: without ``data``, the reader takes them from its ``weights`` argument. An output ``in`` an input takes
over the input's memory; ``initial`` says what the input's owner, the module, puts there first. ``takes`` and ``gives``
are there for all inputs or outputs (by label), or for none (``compiler/signature.py``).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr, Sym
from arcweld.compiler.dtypes import DEVICE_TYPES, DType, from_numpy
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, TensorType, Value, Weight
from arcweld.compiler.signature import Argument

_NAME = r"[^\s,()%='\"]*[^\s,():%='\"]"  # a colon may stand inside a name, not at its end
NAME = re.compile(_NAME)
_ITEM = re.compile(rf"\s*%({_NAME})\s*(?::\s*([a-z][a-z0-9]*\[[^\]]*\]))?\s*")
_IN = re.compile(rf"(?:^|\s)in %({_NAME})\s*$")
_ARGUMENT = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") (\w+) (\(.*\))""")
_OPERAND = re.compile(rf"\s*(?:%({_NAME})|(_))\s*(?=[,)])")
_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[()]|[^'"()]+""")


def sanitize(name: str) -> str:
    """``name`` as a value name that IR text can hold: other characters become ``_``."""
    kept = "".join(c if c.isprintable() and (c == ":" or NAME.fullmatch(c)) else "_" for c in name)
    return re.sub(r":+$", "_", kept) or "_"


# ---------------------------------------------------------------------------------------------------- writing


def print_graph(graph: Graph, *, data_limit: int = 0, data_of: Collection[str] = ()) -> str:
    """The text of ``graph``. Weights of at most ``data_limit`` elements, and those in ``data_of``, have their data.

    Raises ModelError for what the text cannot hold: a value name that ``sanitize`` would change, an attribute of
    another type than ``literal_text`` takes, or two different symbols with one name.
    """
    lines = [f"graph {graph.name!r}"]
    lines += [_symbol_line(s) for s in all_symbols(graph)]
    lines += [f"input {_item(v)}" for v in graph.inputs]
    lines += [_weight_line(n, w, n in data_of or w.data.size <= data_limit) for n, w in graph.weights.items()]
    lines += [node_text(n) for n in graph.nodes]
    labels = graph.output_labels or ("",) * len(graph.outputs)
    outputs = zip(graph.outputs, labels, strict=True)
    lines += [_output_line(o, label, graph.aliases.get(label or o.name)) for o, label in outputs]
    lines += [_initial_line(n, w) for n, w in graph.initial.items()]
    for word, arguments in (("takes", graph.takes), ("gives", graph.gives)):
        lines += [f"{word} {a.name!r} {a.kind} {a.items!r}" for a in arguments]
    return "\n".join(lines) + "\n"


def _initial_line(name: str, w: Weight) -> str:
    return f"initial %{_checked(name)} source={w.source!r}, zeros={w.is_zero}"


def _output_line(o: Value, label: str, alias: str | None) -> str:
    name = f" {label!r}" if label else ""
    return f"output %{_checked(o.name)}{name}" + (f" in %{_checked(alias)}" if alias else "")


def node_text(node: Node) -> str:
    """The line of one node, without a line end. Raises ModelError as ``print_graph`` does."""
    args = ["_" if v is None else "%" + _checked(v.name) for v in node.inputs]
    args += [f"{k}={literal_text(v)}" for k, v in node.attrs.items()]
    origin = " @ " + ", ".join(repr(o) for o in node.origin) if node.origin else ""
    return f"{', '.join(_item(o) for o in node.outputs)} = {node.op}({', '.join(args)}){origin}"


def literal_text(value: Any) -> str:
    """An attribute's value as text. Raises ModelError for a type that attributes cannot hold, such as a list."""
    if isinstance(value, tuple):
        inner = ", ".join(literal_text(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, DType):
        return f"dtype({value.value})"
    if isinstance(value, IntExpr):
        return dims.to_text(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f"float({value})"
    if value is None or type(value) in (bool, int, str):
        return repr(value)
    raise ModelError(f"an attribute cannot hold a {type(value).__name__}: {str(value)[:60]}")


def all_symbols(graph: Graph) -> tuple[Sym, ...]:
    """Every symbol in the graph's types and attributes, each after those that its bounds mention.

    Raises ModelError where two different symbols share a name.
    """
    found: dict[str, Sym] = {}
    for value in _dims_of(graph):
        for s in sorted(dims.free_symbols(value), key=lambda s: s.name):
            _add_symbol(s, found)
    return tuple(found.values())


def _add_symbol(s: Sym, found: dict[str, Sym]) -> None:
    known = found.get(s.name)
    if known is not None:
        if known != s:
            raise ModelError(f"two different symbols are both called {s.name}: {known} and {s}")
        return
    if isinstance(s.hi, IntExpr):
        for inner in sorted(dims.free_symbols(s.hi), key=lambda s: s.name):
            _add_symbol(inner, found)
    found[s.name] = s


def _dims_of(graph: Graph) -> Iterator[IntExpr]:
    for v in graph.values():
        yield from (d for d in v.shape if isinstance(d, IntExpr))
    for n in graph.nodes:
        for a in n.attrs.values():
            yield from _dims_in(a)


def _dims_in(value: Any) -> Iterator[IntExpr]:
    if isinstance(value, IntExpr):
        yield value
    elif isinstance(value, tuple):
        for v in value:
            yield from _dims_in(v)


def _symbol_line(s: Sym) -> str:
    parts = [f"lo={s.lo}"] if s.lo else []
    parts += [f"hi={s.hi}"] if s.hi is not None else []
    parts += [f"multiple_of={s.multiple_of}"] if s.multiple_of != 1 else []
    return f"symbol {s.name}({', '.join(parts)})"


def _weight_line(name: str, w: Weight, with_data: bool) -> str:
    dtype = from_numpy(w.data.dtype)
    fields = [f"source={w.source!r}"] if w.source else []
    fields += [f"transform={literal_text(w.transform)}"] if w.transform else []
    if with_data:
        wide = w.data.astype(np.float64) if dtype.is_float else w.data
        fields.append(f"data={literal_text(tuple(wide.ravel().tolist()))}")
    line = f"weight %{_checked(name)}: {TensorType(dtype, w.data.shape)}"
    return f"{line} {', '.join(fields)}" if fields else line


def _item(v: Value) -> str:
    return f"%{_checked(v.name)}: {v.type}"


def _checked(name: str) -> str:
    if sanitize(name) != name:
        raise ModelError(f"the value name {name!r} holds a character that IR text cannot", hint="use text.sanitize")
    return name


# ---------------------------------------------------------------------------------------------------- reading


def parse_graph(text: str, *, weights: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph whose text ``print_graph`` wrote.

    ``weights`` maps names to the arrays of weights whose data is not in the text. A weight that has its data in neither
    place becomes zeros that occupy no memory. Raises ModelError, which names the line, for any other text.
    """
    reader = _Parser(weights or {})
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            reader.line(stripped)
        except ModelError as error:
            raise ModelError(error.message, node=f"line {number}: {stripped[:80]}", hint=error.hint) from None
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
            raise ModelError(f"not IR text ({error})", node=f"line {number}: {stripped[:80]}") from None
    return reader.graph()


def _argument(text: str) -> Argument:
    """``'name' kind ('item', ...)``. Raises ModelError for anything else."""
    words = _ARGUMENT.fullmatch(text)
    if words is None:
        raise ModelError("expected `'name' kind ('item', ...)`")
    try:
        values = {"name": ast.literal_eval(words[1]), "kind": words[2], "items": ast.literal_eval(words[3])}
        return msgspec.convert(values, Argument)
    except (msgspec.ValidationError, ValueError, SyntaxError) as error:
        raise ModelError(f"no argument of a model: {error}") from error


class _Parser:
    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.arrays = weights
        self.name: str | None = None
        self.symbols: dict[str, Dim] = {}
        self.values: dict[str, Value] = {}
        self.inputs: list[Value] = []
        self.weights: dict[str, Weight] = {}
        self.nodes: list[Node] = []
        self.outputs: list[tuple[Value, str]] = []
        self.aliases: dict[str, str] = {}
        self.initial: dict[str, Weight] = {}
        self.arguments: dict[str, list[Argument]] = {"takes": [], "gives": []}

    def graph(self) -> Graph:
        if self.name is None:
            raise ModelError("IR text begins with a line `graph 'name'`")
        outputs = tuple(v for v, _ in self.outputs)
        labels = tuple(label or v.name for v, label in self.outputs) if any(label for _, label in self.outputs) else ()
        return Graph(
            self.name,
            tuple(self.inputs),
            outputs,
            tuple(self.nodes),
            self.weights,
            labels,
            self.aliases,
            self.initial,
            tuple(self.arguments["takes"]),
            tuple(self.arguments["gives"]),
        )

    def line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "graph":
            self.name = str(ast.literal_eval(rest.strip()))
        elif word == "symbol":
            self._symbol(rest)
        elif word == "input":
            self.inputs.append(self._define(rest)[0])
        elif word == "weight":
            self._weight(rest)
        elif word == "output":
            self._output(rest)
        elif word == "initial":
            self._initial(rest)
        elif word in self.arguments:
            self.arguments[word].append(_argument(rest))
        else:
            self._node(line)

    def _symbol(self, text: str) -> None:
        name, fields = self._call(text)
        fields = {"lo": 0, "hi": None, "multiple_of": 1, **fields}
        if set(fields) != {"lo", "hi", "multiple_of"} or not isinstance(fields["lo"], int):
            raise ModelError("a symbol has lo, hi and multiple_of")
        self.symbols[name] = dims.symbol(name, fields["lo"], fields["hi"], int(fields["multiple_of"]))

    def _define(self, text: str) -> tuple[Value, str]:
        """Defines the value at the start of ``text``; returns it and the rest of the text."""
        match = _ITEM.match(text)
        if match is None or match[2] is None:
            raise ModelError("expected `%name: dtype[shape]`")
        return self._know(match[1], self._type(match[2])), text[match.end() :]

    def _know(self, name: str, type_: TensorType) -> Value:
        if name in self.values:
            raise ModelError(f"%{name} is defined twice")
        self.values[name] = Value(name, type_)
        return self.values[name]

    def _type(self, text: str) -> TensorType:
        return parse_type(text, self.symbols)

    def _weight(self, text: str) -> None:
        value, rest = self._define(text)
        fields = self._call(f"weight({rest})")[1]
        shape = tuple(d for d in value.shape if isinstance(d, int) and d >= 0)
        if len(shape) != len(value.shape):
            raise ModelError("a weight's shape is made of non-negative integers")
        if set(fields) - {"source", "transform", "data"}:
            raise ModelError("a weight has source, transform and data")
        data = self._data(value, shape, fields.get("data"))
        self.weights[value.name] = Weight(data, str(fields.get("source", "")), fields.get("transform", ()))

    def _initial(self, text: str) -> None:
        """First values are in the ``weights`` argument under the name of the input; ones take the place of others."""
        match = _ITEM.match(text)
        value = next((v for v in self.inputs if match is not None and v.name == match[1]), None)
        if value is None or match is None:
            raise ModelError("first values are those of an input that was defined above")
        fields = self._call(f"initial({text[match.end() :]})")[1]
        shape = tuple(d for d in value.shape if isinstance(d, int))
        if set(fields) != {"source", "zeros"} or len(shape) != len(value.shape):
            raise ModelError("first values have a source, zeros and a shape of integers")
        data = self._data(value, shape, None)
        if not fields["zeros"] and value.name not in self.arrays:
            data = np.broadcast_to(np.ones((), value.dtype.numpy), shape)
        self.initial[value.name] = Weight(data, str(fields["source"]))

    def _data(self, value: Value, shape: tuple[int, ...], data: Any) -> np.ndarray:
        numpy_dtype = value.dtype.numpy
        if data is not None:
            array = np.array(data, np.float64 if value.dtype.is_float else numpy_dtype).astype(numpy_dtype)
            return np.full(shape, array) if array.ndim == 0 else array.reshape(shape)
        if value.name not in self.arrays:
            return np.broadcast_to(np.zeros((), numpy_dtype), shape)
        array = self.arrays[value.name]
        if array.shape != shape or array.dtype != numpy_dtype:
            raise ModelError(f"%{value.name} is {value.type}, but the array given is {array.dtype}{list(array.shape)}")
        return array

    def _output(self, text: str) -> None:
        match = _ITEM.match(text)
        if match is None or match[1] not in self.values:
            raise ModelError("an output names a value that was defined above")
        label, alias = _split_alias(text[match.end() :])
        name = str(ast.literal_eval(label)) if label else ""
        if alias:
            if alias not in {v.name for v in self.inputs}:
                raise ModelError(f"%{alias} is no input")
            self.aliases[name or match[1]] = alias
        self.outputs.append((self.values[match[1]], name))

    def _node(self, line: str) -> None:
        left, eq, right = line.partition("=")
        outs: list[tuple[str, TensorType | None]] = []
        at = 0
        while eq and (match := _ITEM.match(left, at)) is not None:
            outs.append((match[1], self._type(match[2]) if match[2] else None))
            at = match.end() + 1
            if left[match.end() : at] != ",":
                break
        op, paren, rest = right.strip().partition("(")
        if not outs or at <= len(left) or not paren:
            raise ModelError("expected `%name: dtype[shape] = Op(%operand, ..., attribute=value)`")
        operands, rest = self._operands(rest)
        body, tail = _split_call(rest)
        attrs = self._call(f"{op}({body})")[1]
        self._add_node(op, operands, outs, attrs, _origin(tail))

    def _operands(self, text: str) -> tuple[tuple[Value | None, ...], str]:
        operands: list[Value | None] = []
        at = 0
        while (match := _OPERAND.match(text, at)) is not None:
            if match[1] is not None and match[1] not in self.values:
                raise ModelError(f"%{match[1]} is used before it is defined")
            operands.append(None if match[1] is None else self.values[match[1]])
            at = match.end() + text.startswith(",", match.end())
        return tuple(operands), text[at:]

    def _add_node(
        self,
        op: str,
        operands: tuple[Value | None, ...],
        outs: list[tuple[str, TensorType | None]],
        attrs: dict[str, Any],
        origin: tuple[str, ...],
    ) -> None:
        types = [t for _, t in outs if t is not None]
        if len(types) != len(outs):
            from arcweld.compiler.ops.registry import check_attrs, infer_types, opdef

            attrs = check_attrs(opdef(op), attrs, op)
            types = list(infer_types(op, [None if v is None else v.type for v in operands], attrs))
        if len(types) != len(outs):
            raise ModelError(f"{op} has {len(types)} outputs, not {len(outs)}")
        values = tuple(self._know(name, t) for (name, _), t in zip(outs, types, strict=True))
        self.nodes.append(Node(op, operands, values, attrs, origin))

    def _call(self, text: str) -> tuple[str, dict[str, Any]]:
        return _call(text, self.symbols)


def parse_literal(text: str, symbols: Mapping[str, Dim] | None = None) -> Any:
    """The value whose text ``literal_text`` wrote. Raises ModelError, SyntaxError or ValueError for any other text."""
    return _literal(_parsed(text), symbols or {})


def parse_fields(text: str) -> dict[str, Any]:
    """The attributes in the text ``axis=1, mode='x'``, which is how a node's line writes them.

    Raises as ``parse_literal`` does.
    """
    return _call(f"fields({text})", {})[1]


def parse_type(text: str, symbols: Mapping[str, Dim] | None = None) -> TensorType:
    """The type in a text like ``f32[N, 3]``. Raises as ``parse_literal`` does for any other text."""
    dtype, bracket, shape = text.strip().removesuffix("]").partition("[")
    if not bracket:
        raise ModelError(f"not a type: {text[:80]}")
    extents = parse_literal(f"({shape},)", symbols) if shape.strip() else ()
    if not all(isinstance(d, int | IntExpr) and not isinstance(d, bool) for d in extents):
        raise ModelError(f"a shape is made of dimensions: {text[:80]}")
    return TensorType(_dtype(dtype), extents)


def _call(text: str, symbols: Mapping[str, Dim]) -> tuple[str, dict[str, Any]]:
    """The name and the keyword arguments in the text ``name(key=value, ...)``."""
    call = _parsed(text)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ModelError("expected `name(key=value, ...)`")
    return call.func.id, {str(k.arg): _literal(k.value, symbols) for k in call.keywords}


def _literal(node: ast.expr, symbols: Mapping[str, Dim]) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (bool, int, float, str)):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(_literal(e, symbols) for e in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        if node.func.id == "dtype":
            return _dtype(ast.unparse(node.args[0]))
        if node.func.id == "float":
            return float(ast.unparse(node.args[0]))
    return dims.parse(ast.unparse(node), symbols)


def _parsed(text: str) -> Any:
    return ast.parse(text.strip(), mode="eval").body


def _dtype(name: str) -> DType:
    if name not in DEVICE_TYPES:  # strings too: what is written and read again is compiled
        raise ModelError(f"unknown element type {name}")
    return DEVICE_TYPES[name]


def _split_call(text: str) -> tuple[str, str]:
    """Splits ``a=1, b='x') @ 'o'`` at the parenthesis that closes the call."""
    depth = 1
    for token in _TOKEN.finditer(text):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return text[: token.start()], text[token.end() :]
    raise ModelError("a parenthesis is not closed")


def _split_alias(text: str) -> tuple[str, str]:
    """The label's text and the input's name in ``'scores' in %last``; either may be missing."""
    match = _IN.search(text)
    return (text[: match.start()].strip(), match[1]) if match else (text.strip(), "")


def _origin(tail: str) -> tuple[str, ...]:
    tail = tail.strip()
    if not tail:
        return ()
    if not tail.startswith("@"):
        raise ModelError(f"unexpected {tail[:20]!r} after the node")
    names = ast.literal_eval(f"({tail[1:].strip()},)")
    if not all(isinstance(n, str) for n in names):
        raise ModelError("an origin is a list of strings")
    return tuple(names)
