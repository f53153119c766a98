"""Handlers of matrix products and Einsum."""

from __future__ import annotations

from collections.abc import Callable

from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles


@handles("MatMul")
def _matmul(c: NodeContext) -> Result:
    return matmul(c, c.value(0), c.value(1))


def matmul(
    c: NodeContext, a: Value, b: Value, multiply: Callable[[Value, Value], Value] | None = None
) -> Value:  # fmt: skip
    """Numpy's matrix product; vectors become matrices of one row or column.

    ``multiply`` emits the product of two matrices; None: a MatMul.
    """
    if a.type.rank == 0 or b.type.rank == 0:
        c.broken("an operand is a scalar")
    left = c.reshape(a, (1, *a.shape)) if a.type.rank == 1 else a
    right = c.reshape(b, (*b.shape, 1)) if b.type.rank == 1 else b
    y = multiply(left, right) if multiply else c.emit("MatMul", left, right)
    shape = list(y.shape)
    if b.type.rank == 1:
        del shape[-1]
    if a.type.rank == 1:
        del shape[len(shape) - (1 if b.type.rank == 1 else 2)]
    return c.reshape(y, shape)


@handles("Gemm")
def _gemm(c: NodeContext) -> Result:
    c.needs_rank(0, 2, 2)
    c.needs_rank(1, 2, 2)
    return c.emit(
        "Gemm",
        c.value(0),
        c.value(1),
        c.optional(2),
        alpha=c.float_attr("alpha", 1.0),
        beta=c.float_attr("beta", 1.0),
        transA=int(bool(c.int_attr("transA"))),
        transB=int(bool(c.int_attr("transB"))),
    )


@handles("Einsum")
def _einsum(c: NodeContext) -> Result:
    return c.emit("Einsum", *c.values(), equation=c.str_attr("equation", "").replace(" ", ""))


@handles("Det")
def _det(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 2)
    x = c.value(0)
    size = x.shape[rank - 1]
    if size != x.shape[rank - 2] or not isinstance(size, int) or not 1 <= size <= 3:
        c.unsupported(f"determinants of {x.shape[rank - 2]} x {size} matrices")
    return _determinant(c, x, list(range(size)), list(range(size)))


def _determinant(c: NodeContext, x: Value, rows: list[int], columns: list[int]) -> Value:
    """Expansion along the first row."""
    total: Value | None = None
    for k, column in enumerate(columns):
        term = _element(c, x, rows[0], column)
        if len(rows) > 1:
            term = c.emit("Mul", term, _determinant(c, x, rows[1:], columns[:k] + columns[k + 1 :]))
        if total is None:
            total = term
        else:
            total = c.emit("Sub" if k % 2 else "Add", total, term)
    assert total is not None
    return total


def _element(c: NodeContext, x: Value, row: int, column: int) -> Value:
    rank = x.type.rank
    part = c.slice(c.slice(x, rank - 2, row, 1), rank - 1, column, 1)
    return c.reshape(part, x.shape[:-2])
