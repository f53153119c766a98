"""Complex tensors: arithmetic, comparisons and products of matrices.

A real operand stays one value: its product with a complex one is a product with either part. Where that part is
infinite and the real operand has no imaginary part, eager's product has a NaN, and this one has not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Handler, Pair, Result, Scalar, complex_aten
from arcweld.compiler.torch.handlers.complex_parts import pair
from arcweld.compiler.torch.handlers.nn import product

Operand: TypeAlias = "Pair | Value"


def operand(c: AtenContext, x: Operand | Scalar | complex, dtype: DType | None = None) -> Operand:
    """A tensor or a number with parts of type ``dtype``, by default the result's."""
    dtype = c.out.dtype if dtype is None else dtype
    if isinstance(x, Pair):
        return Pair(c.cast(x.re, dtype), c.cast(x.im, dtype))
    if isinstance(x, complex):
        return Pair(c.scalar(x.real, dtype), c.scalar(x.imag, dtype)) if x.imag else c.scalar(x.real, dtype)
    return c.tensor(x, dtype)


def pair_of(c: AtenContext, x: Operand) -> Pair:
    """An operand with an imaginary part, which is 0 for a real one."""
    return x if isinstance(x, Pair) else Pair(x, c.scalar(0.0, x.dtype))


def plus(c: AtenContext, a: Operand, b: Operand) -> Operand:
    """The sum; the imaginary part of a real operand takes part in nothing."""
    if isinstance(a, Value):
        a, b = b, a
    if isinstance(a, Value):
        return c.emit("Add", a, _value(b))
    if isinstance(b, Value):
        return Pair(c.emit("Add", a.re, b), a.im)
    return Pair(c.emit("Add", a.re, b.re), c.emit("Add", a.im, b.im))


def minus(c: AtenContext, a: Operand, b: Operand) -> Operand:
    """The difference."""
    if isinstance(b, Value):
        re = c.emit("Sub", a.re if isinstance(a, Pair) else a, b)
        return Pair(re, a.im) if isinstance(a, Pair) else re
    if isinstance(a, Value):
        return Pair(c.emit("Sub", a, b.re), c.emit("Neg", b.im))
    return Pair(c.emit("Sub", a.re, b.re), c.emit("Sub", a.im, b.im))


def times(c: AtenContext, a: Operand, b: Operand) -> Operand:
    """The product, by the formula that eager uses too."""
    if isinstance(a, Value):
        a, b = b, a
    if isinstance(a, Value):
        return c.emit("Mul", a, _value(b))
    if isinstance(b, Value):
        return Pair(c.emit("Mul", a.re, b), c.emit("Mul", a.im, b))
    re = c.emit("Sub", c.emit("Mul", a.re, b.re), c.emit("Mul", a.im, b.im))
    return Pair(re, c.emit("Add", c.emit("Mul", a.re, b.im), c.emit("Mul", a.im, b.re)))


def over(c: AtenContext, a: Operand, b: Operand) -> Operand:
    """The quotient, by R. L. Smith's algorithm 116 (1962): only the quotient itself overflows."""
    if isinstance(b, Value):
        return Pair(c.emit("Div", a.re, b), c.emit("Div", a.im, b)) if isinstance(a, Pair) else c.emit("Div", a, b)
    zero, one = c.scalar(0.0, b.dtype), c.scalar(1.0, b.dtype)
    is_steep = c.emit("Less", c.emit("Abs", b.re), c.emit("Abs", b.im))
    large = c.emit("Where", is_steep, b.im, b.re)
    small = c.emit("Where", is_steep, b.re, b.im)
    is_zero = c.emit("Equal", large, zero)  # of which the quotient is infinite
    ratio = c.emit("Where", is_zero, zero, c.emit("Div", small, c.emit("Where", is_zero, one, large)))
    size = c.emit("Add", large, c.emit("Mul", small, ratio))
    a = pair_of(c, a)
    first, second = c.emit("Where", is_steep, a.im, a.re), c.emit("Where", is_steep, a.re, a.im)
    re = c.emit("Add", first, c.emit("Mul", second, ratio))
    im = c.emit("Sub", second, c.emit("Mul", first, ratio))
    im = c.emit("Where", is_steep, c.emit("Neg", im), im)
    return Pair(c.emit("Div", re, size), c.emit("Div", im, size))


def conjugate(c: AtenContext, x: Operand) -> Operand:
    """The complex conjugate."""
    return Pair(x.re, c.emit("Neg", x.im)) if isinstance(x, Pair) else x


def _value(x: Operand) -> Value:
    assert isinstance(x, Value)
    return x


def result(c: AtenContext, x: Operand) -> Result:
    """A result with both parts, in the shape and type that torch gives."""
    x = pair_of(c, x)
    return pair(c, x.re, x.im)


# ------------------------------------------------------------------------------------------- elementwise operators


def _scaled(c: AtenContext, x: Operand, name: str) -> Operand:
    factor = c.get(name, 1)
    return x if not isinstance(factor, IntExpr) and factor == 1 else times(c, x, operand(c, factor))


@complex_aten("add.Tensor", "add.Scalar")
def add(c: AtenContext) -> Result:
    return result(c, plus(c, operand(c, c["self"]), _scaled(c, operand(c, c["other"]), "alpha")))


@complex_aten("sub.Tensor", "sub.Scalar")
def sub(c: AtenContext) -> Result:
    return result(c, minus(c, operand(c, c["self"]), _scaled(c, operand(c, c["other"]), "alpha")))


@complex_aten("rsub.Tensor", "rsub.Scalar")
def rsub(c: AtenContext) -> Result:
    return result(c, minus(c, operand(c, c["other"]), _scaled(c, operand(c, c["self"]), "alpha")))


@complex_aten("mul.Tensor", "mul.Scalar")
def mul(c: AtenContext) -> Result:
    return result(c, times(c, operand(c, c["self"]), operand(c, c["other"])))


@complex_aten("square")
def square(c: AtenContext) -> Result:
    return result(c, times(c, c["self"], c["self"]))


@complex_aten("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(c: AtenContext) -> Result:
    return result(c, over(c, operand(c, c["self"]), operand(c, c["other"])))


@complex_aten("reciprocal")
def reciprocal(c: AtenContext) -> Result:
    return result(c, over(c, c.scalar(1.0, c.out.dtype), c["self"]))


@complex_aten("addcmul")
def addcmul(c: AtenContext) -> Result:
    a = _scaled(c, operand(c, c["tensor1"]), "value")
    return result(c, plus(c, operand(c, c["self"]), times(c, a, operand(c, c["tensor2"]))))


@complex_aten("addcdiv")
def addcdiv(c: AtenContext) -> Result:
    a = _scaled(c, operand(c, c["tensor1"]), "value")
    return result(c, plus(c, operand(c, c["self"]), over(c, a, operand(c, c["tensor2"]))))


@complex_aten("lerp.Scalar", "lerp.Tensor")
def lerp(c: AtenContext) -> Result:
    x, end, weight = (operand(c, c[name]) for name in ("self", "end", "weight"))
    return result(c, plus(c, x, times(c, weight, minus(c, end, x))))


@complex_aten("eq.Tensor", "eq.Scalar")
def eq(c: AtenContext) -> Result:
    return _equal(c)


@complex_aten("ne.Tensor", "ne.Scalar")
def ne(c: AtenContext) -> Result:
    return c.emit("Not", _equal(c))


def _equal(c: AtenContext) -> Value:
    types = [x.dtype for x in (c["self"], c["other"]) if isinstance(x, Pair | Value)]
    dtype = DType.F64 if DType.F64 in types else DType.F32
    a, b = (pair_of(c, operand(c, c[name], dtype)) for name in ("self", "other"))
    return c.expand(c.emit("And", c.emit("Equal", a.re, b.re), c.emit("Equal", a.im, b.im)), c.out.shape)


def is_not_zero(c: AtenContext, x: Operand) -> Value:
    """Whether an element is not 0, as its cast to bool says."""
    if isinstance(x, Value):
        return c.cast(x, DType.BOOL)
    return c.emit("Or", c.cast(x.re, DType.BOOL), c.cast(x.im, DType.BOOL))


def _of_truth(name: str) -> Handler:
    """An operator on what is not 0, with the handler of bools."""

    def handler(c: AtenContext) -> Result:
        true = {k: is_not_zero(c, v) if isinstance(v, Pair) else v for k, v in c.args.items()}
        return c.call(name, c.out, **true)

    return handler


_LOGIC = (
    "logical_not", "logical_and", "logical_or", "logical_xor", "any", "any.dim", "any.dims", "all", "all.dim",
    "all.dims",
)  # fmt: skip
for _name in _LOGIC:
    complex_aten(_name)(_of_truth(_name))


# ---------------------------------------------------------------------------------------------- products of matrices


def matrix_product(c: AtenContext, a: Operand, b: Operand) -> Operand:
    """The matrix product of operands of rank 1 and more: one real product of the parts side by side.

    ``[re a, im a]`` times ``[[re b, im b], [-im b, re b]]`` has both parts, side by side.
    """
    if isinstance(a, Value) or isinstance(b, Value):
        parts = [
            product(c, x, y)
            for x in (a.parts if isinstance(a, Pair) else (a,))
            for y in (b.parts if isinstance(b, Pair) else (b,))
        ]
        return parts[0] if len(parts) == 1 else Pair(*parts)
    re, im = (c.reshape(p, (*p.shape, 1)) if len(p.shape) == 1 else p for p in b.parts)
    last, width = len(re.shape) - 1, re.shape[-1]
    upper, lower = c.concat([re, im], last), c.concat([c.emit("Neg", im), re], last)
    both = product(c, c.concat(a.parts, len(a.shape) - 1), c.concat([upper, lower], last - 1))
    axis = len(both.shape) - 1
    halves = [c.slice(both, axis, k * width, width) for k in (0, 1)]
    return Pair(*(c.reshape(h, h.shape[:-1]) if len(b.shape) == 1 else h for h in halves))


def _product_of(a: str, b: str) -> Handler:
    return lambda c: result(c, matrix_product(c, operand(c, c[a]), operand(c, c[b])))


def _sum_with_product_of(a: str, b: str) -> Handler:
    """``beta * self + alpha * (a @ b)``; for ``beta`` 0 torch does not read ``self``."""

    def handler(c: AtenContext) -> Result:
        y = _scaled(c, matrix_product(c, operand(c, c[a]), operand(c, c[b])), "alpha")
        return result(c, y if c["beta"] == 0 else plus(c, y, _scaled(c, operand(c, c["self"]), "beta")))

    return handler


complex_aten("mm", "bmm")(_product_of("self", "mat2"))
complex_aten("matmul")(_product_of("self", "other"))
complex_aten("mv")(_product_of("self", "vec"))
complex_aten("dot")(_product_of("self", "tensor"))
complex_aten("addmm")(_sum_with_product_of("mat1", "mat2"))
complex_aten("baddbmm")(_sum_with_product_of("batch1", "batch2"))
complex_aten("addmv")(_sum_with_product_of("mat", "vec"))


@complex_aten("vdot")
def vdot(c: AtenContext) -> Result:
    return result(c, matrix_product(c, conjugate(c, c["self"]), c["other"]))


@complex_aten("addbmm")
def addbmm(c: AtenContext) -> Result:
    """The sum of all products of a batch is one product of the factors side by side."""
    a, b = operand(c, c["batch1"]), operand(c, c["batch2"])
    m, n, k, p = *a.shape[:2], a.shape[2], b.shape[2]
    side = _each(a, lambda v: c.reshape(c.transpose(v, (1, 0, 2)), (n, m * k)))
    y = matrix_product(c, side, _each(b, lambda v: c.reshape(v, (m * k, p))))
    y = _scaled(c, y, "alpha")
    return result(c, y if c["beta"] == 0 else plus(c, y, _scaled(c, operand(c, c["self"]), "beta")))


@complex_aten("linear")
def linear(c: AtenContext) -> Result:
    weight = operand(c, c["weight"])
    turned = _each(weight, lambda v: v if len(v.shape) == 1 else c.transpose(v, (1, 0)))
    y = matrix_product(c, operand(c, c["input"]), turned)
    return result(c, y if c["bias"] is None else plus(c, y, operand(c, c["bias"])))


def _each(x: Operand, fn: Callable[[Value], Value]) -> Operand:
    return Pair(fn(x.re), fn(x.im)) if isinstance(x, Pair) else fn(x)
