"""Pattern recovery: finds operators that exporters wrote as primitives, by formulas, and replaces them.

    0.5 * x * (1 + Erf(x * 0.70710678))  ->  Gelu(x)

The left side is a formula. In a formula
* a lower-case name stands for any value, and for the same value wherever it recurs; an upper-case name for a constant
  of one element;
* ``(m := ReduceMean(x))`` gives a part a name;
* a call stands for a node; attributes that are not written may have any value;
* a product matches any tree of Mul, Div, Neg, Sqrt, Rsqrt, Reciprocal and Pow that has the same factors, exponents and
  coefficient; a sum matches any tree of Add and Sub;
* casts between floating-point types are ignored.

Requires: nothing. Ensures: no formula of ``patterns_*.py`` occurs, except where its intermediate values are read
elsewhere, or where the pattern's ``build`` refuses the match.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value, merge_origins
from arcweld.passes.common import Tracker, scalar, use_counts
from arcweld.passes.dce import remove_dead

MAX_ROUNDS = 8

# ------------------------------------------------------------------------------------------------ formulas


@dataclass(frozen=True, slots=True)
class Name:
    """Any value, or with an upper-case name any scalar constant. ``tree``, if given, must match the value too."""

    name: str
    tree: Tree | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A scalar constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator, its operands, and some attributes, each with its value or an upper-case name that is bound to it."""

    op: str
    args: tuple[Tree, ...]
    attrs: tuple[tuple[str, float | str | None], ...]


@dataclass(frozen=True, slots=True)
class Algebra:
    """A sum ``constant + sum(weight * term)`` or a product ``constant * prod(term ** weight)``.

    ``constant`` is a number, or the upper-case name that it is bound to.
    """

    is_sum: bool
    terms: tuple[tuple[Tree, float], ...]
    constant: float | str


Tree: TypeAlias = Name | Number | Operation | Algebra


@cache
def parse_formula(text: str) -> Tree:
    """The tree of a formula. Raises ValueError for a text that is no formula."""
    return _tree(ast.parse(text, mode="eval").body)


def _tree(node: ast.expr) -> Tree:
    if isinstance(node, ast.Name):
        return Name(node.id)
    if isinstance(node, ast.NamedExpr) and isinstance(node.target, ast.Name):
        return Name(node.target.id, _tree(node.value))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        attrs = tuple((str(k.arg), _attribute(k.value)) for k in node.keywords)
        return Operation(node.func.id, tuple(_tree(a) for a in node.args), attrs)
    if (number := _number(node)) is not None:
        return Number(number)
    if _is_arithmetic(node):
        is_sum = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
        terms: list[tuple[Tree, float]] = []
        constants: list[float | str] = []
        _flatten(node, 1.0, is_sum, terms, constants)
        return Algebra(is_sum, tuple(sorted(terms, key=lambda t: _generality(t[0]))), _fold(constants, is_sum))
    raise ValueError(f"not a formula: {ast.unparse(node)}")


def _is_arithmetic(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub)
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow)


def _attribute(node: ast.expr) -> float | str | None:
    if isinstance(node, ast.Name):
        return node.id
    value = ast.literal_eval(node) if isinstance(node, ast.Constant) else _number(node)
    return value if value is None or isinstance(value, str) else float(value)


def _number(node: ast.expr) -> float | None:
    """The value of an expression of numbers, such as ``-1/6``; None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        a, b = _number(node.left), _number(node.right)
        return None if a is None or b is None else a / b
    return None


def _flatten(
    node: ast.expr, weight: float, is_sum: bool, terms: list[tuple[Tree, float]], constants: list[float | str]
) -> None:
    plus, minus = (ast.Add, ast.Sub) if is_sum else (ast.Mult, ast.Div)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (plus, minus)):
        _flatten(node.left, weight, is_sum, terms, constants)
        _flatten(node.right, -weight if isinstance(node.op, minus) else weight, is_sum, terms, constants)
    elif not is_sum and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _number(node) is None:
        constants.append(-1.0)
        _flatten(node.operand, weight, is_sum, terms, constants)
    elif not is_sum and isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        exponent = _number(node.right)
        assert exponent is not None
        repeat = int(exponent) if exponent in (2.0, 3.0) else 1
        terms += [(_tree(node.left), weight * (exponent if repeat == 1 else 1.0))] * repeat
    elif (number := _number(node)) is not None:
        constants.append(weight * number if is_sum else number**weight)
    elif isinstance(node, ast.Name) and node.id[0].isupper():
        constants.append(node.id)
    else:
        terms.append((_tree(node), weight))


def _fold(constants: list[float | str], is_sum: bool) -> float | str:
    named = [c for c in constants if isinstance(c, str)]
    numbers = [c for c in constants if not isinstance(c, str)]
    if named:
        assert len(constants) == 1, "a named constant stands alone in its sum or product"
        return named[0]
    return math.fsum(numbers) if is_sum else math.prod(numbers)


def _generality(tree: Tree) -> int:
    return 1 if isinstance(tree, Name) and tree.tree is None else 0


# ------------------------------------------------------------------------------------------------- matching


@dataclass(frozen=True, slots=True)
class Match:
    """A place in a graph where a formula occurs.

    root       the node that writes the result
    values     lower-case name -> value
    scalars    upper-case name -> number (None: an attribute without value)
    nodes      the other nodes that the match covers
    producers  value name -> node, of the whole graph
    """

    root: Node
    values: Mapping[str, Value]
    scalars: Mapping[str, float | None]
    nodes: tuple[Node, ...]
    producers: Mapping[str, Node]

    def node(self, name: str) -> Node:
        """The node that writes the value called ``name``."""
        return self.producers[self.values[name].name]

    @property
    def name(self) -> str:
        """The name of the result, which the replacement keeps."""
        return self.root.output.name

    @property
    def origin(self) -> tuple[str, ...]:
        """The origins of all nodes that the match covers."""
        return merge_origins((self.root, *self.nodes))


Build = Callable[[Tracker, Match], Value | None]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Formulas, and the function that emits their replacement.

    ``build`` returns the replacing value, or None to refuse the match. It must read a match's values through
    ``Tracker.get``. A value of another shape than the root's counts as a refusal; one of another type is cast.
    """

    name: str
    find: tuple[str, ...]
    build: Build


@dataclass(frozen=True, slots=True)
class _Env:
    values: Mapping[str, Value]
    scalars: Mapping[str, float | None]
    nodes: tuple[Node, ...]

    def cover(self, *nodes: Node) -> _Env:
        return _Env(self.values, self.scalars, self.nodes + nodes)


_Items: TypeAlias = tuple[tuple[Value, float], ...]
_COMMUTATIVE = frozenset({"Max", "Min", "Equal", "And", "Or"})
_ROOTS = {True: frozenset({"Add", "Sub"}), False: frozenset({"Mul", "Div", "Reciprocal"})}


class Matcher:
    """Matches formulas against the values of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.weights = graph.weights
        self.producers = graph.producers()
        self.uses = use_counts(graph)
        self.tolerance = 1e-5

    def find(self, tree: Tree, root: Node) -> Iterator[Match]:
        """The matches of ``tree`` with root ``root``, whose intermediate values nothing else reads."""
        roots = _ROOTS[tree.is_sum] if isinstance(tree, Algebra) else (tree.op,) if isinstance(tree, Operation) else ()
        if root.op not in roots:
            return
        # constants in f16 and bf16 are rounded to 11 and 8 bits
        self.tolerance = 4e-3 if root.output.dtype.is_half else 1e-5
        for m in self.occurrences(tree, root):
            if self._closed(root, (root, *m.nodes)):
                yield m

    def occurrences(self, tree: Tree, root: Node) -> Iterator[Match]:
        """The matches of ``tree`` with root ``root``, whatever else reads their intermediate values."""
        for env in self.match(tree, root.output, _Env({}, {}, ())):
            nodes = tuple({n.output.name: n for n in env.nodes}.values())
            if root in nodes:
                inner = tuple(n for n in nodes if n is not root)
                yield Match(root, env.values, env.scalars, inner, self.producers)

    def _closed(self, root: Node, nodes: Sequence[Node]) -> bool:
        reads: dict[str, int] = {}
        for n in nodes:
            for v in n.operands():
                reads[v.name] = reads.get(v.name, 0) + 1
        inner = [n for n in nodes if n is not root]
        return all(self.uses.get(o.name, 0) == reads.get(o.name, 0) for n in inner for o in n.outputs)

    def match(self, tree: Tree, value: Value, env: _Env) -> Iterator[_Env]:
        """``env``, extended in every way in which ``value`` matches ``tree`` under the names that it binds."""
        if isinstance(tree, Name):
            yield from self._name(tree, value, env)
        elif isinstance(tree, Number):
            found = self._scalar(value)
            if found is not None and self._close(found, tree.value):
                yield env
        elif isinstance(tree, Operation):
            yield from self._operation(tree, value, env)
        else:
            yield from self._expand(tree, ((value, 1.0),), 0.0 if tree.is_sum else 1.0, 0, env)

    def _name(self, tree: Name, value: Value, env: _Env) -> Iterator[_Env]:
        if tree.name[0].isupper():
            found = self._scalar(value)
            if found is not None:
                yield from self._bind_scalar(tree.name, found, env)
            return
        for inner in self.match(tree.tree, value, env) if tree.tree is not None else (env,):
            bound = inner.values.get(tree.name)
            if bound is None:
                yield _Env({**inner.values, tree.name: value}, inner.scalars, inner.nodes)
            elif bound.name == value.name:
                yield inner

    def _bind_scalar(self, name: str, value: float | None, env: _Env) -> Iterator[_Env]:
        if name not in env.scalars:
            yield _Env(env.values, {**env.scalars, name: value}, env.nodes)
        elif env.scalars[name] == value:
            yield env

    def _operation(self, tree: Operation, value: Value, env: _Env) -> Iterator[_Env]:
        node = self.producers.get(value.name)
        if node is not None and node.op != tree.op and _is_float_cast(node):
            env = env.cover(node)
            node = self.producers.get(node.operands()[0].name)
        if node is None or node.op != tree.op or len(node.operands()) != len(tree.args):
            return
        orders = [node.operands()]
        if node.op in _COMMUTATIVE and len(tree.args) == 2:
            orders.append(node.operands()[::-1])
        for bound in self._attrs(tree, node, env.cover(node)):
            for operands in orders:
                yield from self._all(tree.args, operands, bound)

    def _attrs(self, tree: Operation, node: Node, env: _Env) -> Iterator[_Env]:
        for name, wanted in tree.attrs:
            found = node.attrs[name]
            if isinstance(wanted, str) and wanted[0].isupper():
                bound = next(self._bind_scalar(wanted, found, env), None)
                if bound is None:
                    return
                env = bound
            elif isinstance(wanted, float) and isinstance(found, int | float):
                if not self._close(float(found), wanted):
                    return
            elif found != wanted:
                return
        yield env

    def _all(self, trees: Sequence[Tree], values: Sequence[Value], env: _Env) -> Iterator[_Env]:
        if not trees:
            yield env
            return
        for bound in self.match(trees[0], values[0], env):
            yield from self._all(trees[1:], values[1:], bound)

    # a sum or product is expanded node by node; the most expanded form is tried first, so that constants are found
    def _expand(self, tree: Algebra, items: _Items, constant: float, start: int, env: _Env) -> Iterator[_Env]:
        for at in range(start, len(items)):
            opened = self._open(tree.is_sum, *items[at])
            if opened is None:
                continue
            more, extra, node = opened
            grown = items[:at] + more + items[at + 1 :]
            if len(grown) <= len(tree.terms):
                total = constant + extra if tree.is_sum else constant * extra
                yield from self._expand(tree, grown, total, at, env.cover(node))
        if len(items) == len(tree.terms):
            for bound in self._constant(tree.constant, constant, env):
                yield from self._assign(tree.terms, items, bound)

    def _constant(self, wanted: float | str, found: float, env: _Env) -> Iterator[_Env]:
        if isinstance(wanted, str):
            yield from self._bind_scalar(wanted, found, env)
        elif self._close(found, wanted):
            yield env

    def _assign(self, terms: Sequence[tuple[Tree, float]], items: _Items, env: _Env) -> Iterator[_Env]:
        if not terms:
            yield env
            return
        tree, weight = terms[0]
        for i, (value, found) in enumerate(items):
            if found == weight:
                for bound in self.match(tree, value, env):
                    yield from self._assign(terms[1:], items[:i] + items[i + 1 :], bound)

    def _open(self, is_sum: bool, value: Value, weight: float) -> tuple[_Items, float, Node] | None:
        """``value ** weight`` (in a sum ``weight * value``) by its producer: items, a constant, and that node."""
        node = self.producers.get(value.name)
        if node is None or weight not in (1.0, -1.0):
            return None
        operands = node.operands()
        if _is_float_cast(node):
            return ((operands[0], weight),), 0.0 if is_sum else 1.0, node
        weights = self._sum_weights(node) if is_sum else self._exponents(node)
        if weights is None:
            return None
        items: list[tuple[Value, float]] = []
        constant = 0.0 if is_sum else -1.0 if node.op == "Neg" else 1.0
        for v, w in zip(operands, weights, strict=False):
            number = self._scalar(v)
            if number is None:
                repeat = int(w) if w in (2.0, 3.0) and not is_sum else 1
                items += [(v, weight * (w if repeat == 1 else 1.0))] * repeat
            elif is_sum:
                constant += weight * w * number
            elif number > 0 or (number < 0 and w * weight in (1.0, -1.0)):
                constant *= number ** (w * weight)
            else:
                return None
        return tuple(items), constant, node

    def _sum_weights(self, node: Node) -> tuple[float, ...] | None:
        return {"Add": (1.0, 1.0), "Sub": (1.0, -1.0), "Neg": (-1.0,)}.get(node.op)

    def _exponents(self, node: Node) -> tuple[float, ...] | None:
        if node.op == "Pow":
            exponent = self._scalar(node.operands()[1])
            return None if exponent is None else (exponent,)
        return _EXPONENTS.get(node.op)

    def _scalar(self, value: Value) -> float | None:
        weight = self.weights.get(value.name)
        return None if weight is None else scalar(weight.data)

    def _close(self, a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=self.tolerance, abs_tol=0.0)


_EXPONENTS: dict[str, tuple[float, ...]] = {
    "Mul": (1.0, 1.0),
    "Div": (1.0, -1.0),
    "Neg": (1.0,),
    "Sqrt": (0.5,),
    "Rsqrt": (-0.5,),
    "Reciprocal": (-1.0,),
}


def _is_float_cast(node: Node) -> bool:
    return node.op == "Cast" and node.output.dtype.is_float and node.operands()[0].dtype.is_float


# ------------------------------------------------------------------------------------------------- applying


def apply_patterns(graph: Graph, patterns: Sequence[Pattern]) -> Graph:
    """``graph`` with the matches of ``patterns`` replaced, from the last node on, until none is left."""
    trees = [(p, parse_formula(text)) for p in patterns for text in p.find]
    refused: set[tuple[str, str]] = set()
    original, graph = graph, remove_dead(graph)  # dead readers would count as uses
    changed = False
    for _ in range(MAX_ROUNDS):
        matches = _collect(graph, trees, refused)
        if not matches:
            break
        before, graph = graph, remove_dead(_replace(graph, matches, refused))
        changed |= graph is not before
    return graph if changed else original


def _collect(
    graph: Graph, trees: Sequence[tuple[Pattern, Tree]], refused: set[tuple[str, str]]
) -> dict[str, tuple[Pattern, Match]]:
    """Name of the root's result -> pattern and match. No node is in two matches."""
    matcher = Matcher(graph)
    taken: set[str] = set()
    found: dict[str, tuple[Pattern, Match]] = {}
    for root in reversed(graph.nodes):
        for pattern, tree in trees:
            if root.output.name in taken or (pattern.name, root.output.name) in refused:
                continue
            for match in matcher.find(tree, root):
                names = {root.output.name, *(n.output.name for n in match.nodes)}
                if not names & taken:
                    taken |= names
                    found[root.output.name] = (pattern, match)
                    break
    return found


def _replace(graph: Graph, matches: Mapping[str, tuple[Pattern, Match]], refused: set[tuple[str, str]]) -> Graph:
    rw = Tracker(graph)
    changed = False
    for node in graph.nodes:
        entry = matches.get(node.output.name)
        value = _build(rw, *entry) if entry is not None else None
        if value is not None:
            changed = True
            rw.redirect(node, value)
            continue
        if entry is not None:
            refused.add((entry[0].name, node.output.name))
        rw.keep(node)
    return rw.finish() if changed else graph


def _build(rw: Tracker, pattern: Pattern, match: Match) -> Value | None:
    count = len(rw.nodes)
    rw.release(match.root)
    value = pattern.build(rw, match)
    if value is None or value.shape != match.root.output.shape:  # a constant of higher rank adds axes
        del rw.nodes[count:]
        return None
    return cast_to(rw, value, match.root.output.dtype, match.origin)


def cast_to(rw: Tracker, value: Value, dtype: DType, origin: tuple[str, ...]) -> Value:
    """``value`` in the given type, by a Cast if it has another."""
    return value if value.dtype is dtype else rw.make("Cast", [value], origin, to=dtype)


def at_least(rw: Tracker, value: Value, m: Match) -> Value:
    """``value``, cast to the type of the match's result if that is wider: the replacement computes in it, too."""
    dtype = m.root.output.dtype
    return cast_to(rw, value, dtype, m.origin) if value.dtype.bits < dtype.bits else value
