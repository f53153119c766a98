"""``associative_scan``: a higher-order operator, whose combining function is a graph of its own.

The function is read as polynomials of what it combines. Sums, products and extrema of one operand are scans of it, and
``x_left * a_right + x_right`` is a linear recurrence, where the factors ``a`` are combined by multiplying them. That is
how state space models without kernels of their own (Mamba) give their states to torch.compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import fx

from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import HANDLERS, AtenContext, Result

# monomial (sorted atoms) -> coefficient. An atom is an operand, by its position, or an extremum of two
Atom: TypeAlias = "tuple[str, int, int]"
Poly: TypeAlias = "dict[tuple[Atom, ...], float]"

MOST_TERMS = 8  # of a polynomial: known functions have two
EXTREMA = {"aten.maximum.default": "CumMax", "aten.minimum.default": "CumMin"}


def associative_scan(c: AtenContext) -> Result:
    """Scans along the first axis; results that nothing reads are not computed."""
    xs, function = c["xs"], c["combine_fn"]
    if c["additional_inputs"] or not isinstance(function, fx.GraphModule):
        raise c.fail("a scan whose combining function reads other tensors")
    combined = _polynomials(c, function)
    if combined is None or len(combined) != len(xs):
        raise _unknown(c)
    return tuple(_scan(c, xs, combined, k) if k in c.used else None for k in range(len(xs)))


HANDLERS["associative_scan"] = associative_scan  # it has no namespace and no overloads


def _unknown(c: AtenContext) -> Exception:
    return c.fail("a scan that combines by more than a sum, a product, an extremum or steps of a linear recurrence")


def _operand(k: int) -> Atom:
    return ("operand", k, k)


def _scan(c: AtenContext, xs: list[Value], combined: list[Poly], k: int) -> Value:
    """The scan of operand ``k``; its left part is operand k of the function, its right part operand k + len(xs)."""
    n = len(xs)
    left, right = _operand(k), _operand(k + n)
    if combined[k] == {(left,): 1, (right,): 1}:
        return c.emit("CumSum", xs[k], axis=0)
    if combined[k] == {(left, right): 1}:
        return c.emit("CumProd", xs[k], axis=0)
    for op in EXTREMA.values():
        if combined[k] == {((op, k, k + n),): 1}:
            return c.emit(op, xs[k], axis=0)
    for j in range(n):
        factors = combined[j] == {(_operand(j), _operand(j + n)): 1}
        if factors and combined[k] == {(right,): 1, tuple(sorted((left, _operand(j + n)))): 1}:
            return c.emit("LinearScan", xs[j], xs[k], axis=0)
    raise _unknown(c)


def _polynomials(c: AtenContext, function: fx.GraphModule) -> list[Poly] | None:
    """What the function returns, in terms of its operands; None if it is more than additions and multiplications."""
    env: dict[fx.Node, Poly] = {}
    for node in function.graph.nodes:
        if node.op == "placeholder":
            env[node] = {(_operand(len(env)),): 1}
        elif node.op == "output":
            (results,) = node.args
            listed = results if isinstance(results, tuple | list) else (results,)
            return [env[r] for r in listed] if all(isinstance(r, fx.Node) for r in listed) else None
        else:
            value = _computed(node, env)
            if value is None or len(value) > MOST_TERMS:
                return None
            env[node] = value
    return None


def _computed(node: fx.Node, env: Mapping[fx.Node, Poly]) -> Poly | None:
    name = str(node.target)
    if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) and a in env for a in node.args):
        return None
    a, b = (env[x] for x in node.args)  # type: ignore[index]
    if name == "aten.add.Tensor":
        return _sum(a, b)
    if name == "aten.mul.Tensor":
        return _product(a, b)
    if name in EXTREMA and len(a) == len(b) == 1:
        (first,), (second,) = sorted((*a, *b))
        return {((EXTREMA[name], first[1], second[1]),): 1} if first[0] == second[0] == "operand" else None
    return None


def _sum(a: Poly, b: Poly) -> Poly:
    total: dict[Any, float] = dict(a)
    for m, x in b.items():
        total[m] = total.get(m, 0) + x
    return total


def _product(a: Poly, b: Poly) -> Poly:
    total: Poly = {}
    for m, x in a.items():
        for n, y in b.items():
            total = _sum(total, {tuple(sorted((*m, *n))): x * y})
    return total
