"""Reads dimension expressions back from text."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from arcweld.compiler.dims.division import floordiv, maximum, minimum, mod
from arcweld.compiler.dims.poly import Dim, add, mul, sub, symbol
from arcweld.compiler.errors import ModelError

CALLS: dict[str, Callable[[Dim, Dim], Dim]] = {"floordiv": floordiv, "mod": mod, "max": maximum, "min": minimum}
_OPERATORS: dict[type, Callable[[Dim, Dim], Dim]] = {
    ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.FloorDiv: floordiv, ast.Mod: mod,
}  # fmt: skip
MAX_TEXT = 4096  # characters of an expression that is read
MAX_DEPTH = 64  # nested operations in it


def parse(text: str, symbols: Mapping[str, Dim] | None = None) -> Dim:
    """Reads the text that ``to_text`` writes; a name that ``symbols`` lacks becomes a symbol from 0 on.

    Raises ModelError for anything else, for text of more than ``MAX_TEXT`` characters, and for deeper nesting than
    ``MAX_DEPTH``.
    """
    if len(text) > MAX_TEXT:
        raise ModelError(f"dimension expression is longer than {MAX_TEXT} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _from_ast(tree.body, symbols or {}, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"not a dimension expression: {text[:80]!r} ({error})") from None


def _from_ast(node: ast.expr, symbols: Mapping[str, Dim], depth: int) -> Dim:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 62:
        return node.value
    if isinstance(node, ast.Name):
        return symbols[node.id] if node.id in symbols else symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return mul(_from_ast(node.operand, symbols, depth + 1), -1)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        a, b = _from_ast(node.left, symbols, depth + 1), _from_ast(node.right, symbols, depth + 1)
        return _OPERATORS[type(node.op)](a, b)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2 and not node.keywords:
        fn = CALLS.get(node.func.id)
        if fn is not None:
            return fn(*(_from_ast(a, symbols, depth + 1) for a in node.args))
    raise ValueError(f"unexpected {type(node).__name__}")
