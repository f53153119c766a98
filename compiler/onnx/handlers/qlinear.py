"""Handlers of ONNX Runtime's quantised operators (domain com.microsoft), as its quantiser writes them.

Each one dequantises its operands, computes in f32 and quantises the result; fusion makes one kernel of that.
"""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.quant import integer_matmul, one_or_along, requantise
from arcweld.compiler.onnx.handlers.window import average_pool


def _real(c: NodeContext, x: int, scale: int, zero: int) -> Value:
    """Input ``x`` in f32, by its scale and its (optional) zero point of one element each."""
    step, point = one_or_along(c, c.value(scale), c.optional(zero))
    return c.emit("DequantizeLinear", c.value(x), step, point, axis=0)


def _quantised(c: NodeContext, y: Value, scale: int, zero: int) -> Value:
    """``y`` quantised by inputs ``scale`` and ``zero``; without a zero point it is 0, of the first operand's type."""
    point = c.optional(zero)
    return requantise(c, y, c.value(scale), c.const(0, c.operand(0).dtype) if point is None else point)


@handles("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _binary(c: NodeContext) -> Result:
    y = c.emit(c.op.removeprefix("QLinear"), _real(c, 0, 1, 2), _real(c, 3, 4, 5))
    return _quantised(c, y, 6, 7)


@handles("QLinearSigmoid", domain=MICROSOFT)
def _sigmoid(c: NodeContext) -> Result:
    return _quantised(c, c.emit("Sigmoid", _real(c, 0, 1, 2)), 3, 4)


@handles("QLinearLeakyRelu", domain=MICROSOFT)
def _leaky_relu(c: NodeContext) -> Result:
    return _quantised(c, c.emit("LeakyRelu", _real(c, 0, 1, 2), alpha=c.float_attr("alpha", 0.01)), 3, 4)


@handles("QLinearWhere", domain=MICROSOFT)
def _where(c: NodeContext) -> Result:
    y = c.emit("Where", c.value(0), _real(c, 1, 2, 3), _real(c, 4, 5, 6))
    return requantise(c, y, c.value(7), c.value(8))


@handles("QLinearConcat", domain=MICROSOFT)
def _concat(c: NodeContext) -> Result:
    """Inputs: the result's scale and zero point, then tensor, scale and zero point of each part."""
    if len(c.operands) < 5 or len(c.operands) % 3 != 2:
        c.broken(f"{len(c.operands)} inputs")
    parts = [_real(c, i, i + 1, i + 2) for i in range(2, len(c.operands), 3)]
    y = c.emit("Concat", *parts, axis=c.axis(c.int_attr("axis"), parts[0].type.rank))
    return requantise(c, y, c.value(0), c.value(1))


@handles("QLinearSoftmax", domain=MICROSOFT)
def _softmax(c: NodeContext) -> Result:
    x = _real(c, 0, 1, 2)
    axis = c.axis(c.int_attr("axis", -1), x.type.rank)
    if c.int_attr("opset") < 13 and axis != x.type.rank - 1:
        c.unsupported("a quantised Softmax over several axes")
    return _quantised(c, c.emit("Softmax", x, axis=axis), 3, 4)


@handles("QLinearReduceMean", domain=MICROSOFT)
def _reduce_mean(c: NodeContext) -> Result:
    x = _real(c, 0, 1, 2)
    axes = c.axes(c.ints_attr("axes") or range(x.type.rank), x.type.rank)
    return _quantised(c, c.emit("ReduceMean", x, axes=tuple(axes), keepdims=int(c.int_attr("keepdims", 1) != 0)), 3, 4)


@handles("QLinearGlobalAveragePool", domain=MICROSOFT)
def _global_average_pool(c: NodeContext) -> Result:
    x = _real(c, 0, 1, 2)
    first = 1 if c.int_attr("channels_last") else 2
    return _quantised(c, c.emit("ReduceMean", x, axes=tuple(range(first, first + x.type.rank - 2)), keepdims=1), 3, 4)


@handles("QLinearAveragePool", domain=MICROSOFT)
def _average_pool(c: NodeContext) -> Result:
    if c.int_attr("channels_last"):
        c.unsupported("a quantised AveragePool with the channels last")
    return _quantised(c, average_pool(c, _real(c, 0, 1, 2)), 3, 4)


@handles("QGemm", domain=MICROSOFT)
def _gemm(c: NodeContext) -> Result:
    """``alpha * a_scale * b_scale * (A B + C)`` with integer ``C``; f32 where no scale of the result is given."""
    a, b = (c.transpose(c.value(i), (1, 0)) if c.int_attr(t) else c.value(i) for i, t in ((0, "transA"), (3, "transB")))
    a_scale, a_zero = one_or_along(c, c.value(1), c.optional(2))
    b_scale, b_zero = one_or_along(c, c.value(4), c.optional(5))
    exact = integer_matmul(c, a, b, a_zero, b_zero)
    if c.has(6):
        exact = c.emit("Add", exact, c.value(6))
    y = c.emit("Mul", c.cast(exact, DType.F32), c.scale(c.emit("Mul", a_scale, b_scale), c.float_attr("alpha", 1.0)))
    return _quantised(c, y, 7, 8) if c.has(7) else y
