"""Integer expressions of an engine file, compiled once and evaluated for each set of shapes.

Syntax and meaning are those of ``arcweld.compiler.dims``. Expressions are not normalised here: a product of sums from a
hostile file must not be expanded, and evaluation must be fast.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, TypeGuard

from arcweld.compiler.errors import EngineFileError, InputError

MAX_TEXT = 4096  # characters
MAX_NODES = 2048  # of the syntax tree
MAX_DEPTH = 64  # of the syntax tree
MAX_VALUE = 1 << 62

_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)
_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
}
_GLOBALS: dict[str, Any] = {"__builtins__": {}, **_FUNCTIONS}


class Expression:
    """An integer function of symbols. ``names`` are its symbols; ``constant`` is the value of a plain number."""

    __slots__ = ("_code", "constant", "names", "text")

    def __init__(self, text: str) -> None:
        """Compiles ``text``: integers, names, ``+ - * // %``, and ``floordiv``, ``mod``, ``max`` and ``min`` of two.

        Raises EngineFileError for anything else.
        """
        self.text = text
        self.names: frozenset[str] = frozenset()
        self.constant: int | None = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
        self._code: CodeType | None = None
        if self.constant is None:
            self._compile()

    def _compile(self) -> None:
        if len(self.text) > MAX_TEXT:
            raise EngineFileError(f"an expression is longer than {MAX_TEXT} characters")
        try:
            tree = ast.parse(self.text.strip(), mode="eval")
            names: set[str] = set()
            _check(tree.body, names, 0, [MAX_NODES])
            self._code = compile(tree, "<dimension>", "eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise EngineFileError(f"not an integer expression: {self.text[:80]!r} ({error})") from None
        self.names = frozenset(names)

    def __call__(self, env: Mapping[str, int]) -> int:
        """The value for the symbols' values ``env``. Raises InputError for a division by zero, or beyond 62 bits."""
        if self._code is None:
            assert self.constant is not None
            return self.constant
        try:
            value = eval(self._code, _GLOBALS, env)  # only checked nodes, no builtins
        except ZeroDivisionError:
            raise InputError(f"these shapes make {self.text!r} divide by zero") from None
        if not -MAX_VALUE < value < MAX_VALUE:
            raise InputError(f"these shapes make {self.text!r} larger than 62 bits")
        return int(value)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def _check(node: ast.expr, names: set[str], depth: int, budget: list[int]) -> None:
    """Collects names; raises ValueError for a node that is not allowed."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise ValueError("too large")
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < MAX_VALUE:
        return
    if isinstance(node, ast.Name) and node.id not in _GLOBALS:
        names.add(node.id)
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _check(node.operand, names, depth + 1, budget)
    if isinstance(node, ast.BinOp) and isinstance(node.op, _BINARY):
        _check(node.left, names, depth + 1, budget)
        return _check(node.right, names, depth + 1, budget)
    if _is_call(node):
        for argument in node.args:
            _check(argument, names, depth + 1, budget)
        return
    raise ValueError(f"unexpected {type(node).__name__}")


def _is_call(node: ast.expr) -> TypeGuard[ast.Call]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    return node.func.id in _FUNCTIONS and len(node.args) == 2 and not node.keywords
