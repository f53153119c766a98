"""Handlers of optimizers (domain ai.onnx.preview.training): one step for any number of tensors."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles

TRAINING = "ai.onnx.preview.training"


def _groups(c: NodeContext, kinds: int) -> list[list[Value]]:
    """The tensors after the rate and the number of the step, kind after kind: parameters, gradients, states."""
    count, rest = divmod(len(c.operands) - 2, kinds)
    if rest or count < 1:
        c.broken(f"{len(c.operands) - 2} tensors are not {kinds} for each parameter")
    return [[c.value(2 + k * count + i) for i in range(count)] for k in range(kinds)]


def _scalar(c: NodeContext, i: int, dtype: DType) -> Value:
    return c.cast(c.reshape(c.value(i), ()), dtype)


def _with_decay(c: NodeContext, x: Value, g: Value) -> Value:
    """The gradient of the loss and of half the parameter's square times ``norm_coefficient``."""
    return c.emit("Add", c.scale(x, c.float_attr("norm_coefficient", 0.0)), g)


@handles("Adagrad", domain=TRAINING)
def _adagrad(c: NodeContext) -> Result:
    """Inputs: rate, step, X…, G…, H…; outputs: X…, H…."""
    found: list[list[Value]] = [[], []]
    for x, g, h in zip(*_groups(c, 3)):
        steps = c.scale(_scalar(c, 1, x.dtype), c.float_attr("decay_factor", 0.0))
        rate = c.emit("Div", _scalar(c, 0, x.dtype), c.emit("Add", steps, c.const(1.0, x.dtype)))
        grad = _with_decay(c, x, g)
        squares = c.emit("Add", h, c.emit("Mul", grad, grad))
        root = c.emit("Add", c.emit("Sqrt", squares), c.const(c.float_attr("epsilon", 0.0), x.dtype))
        found[0].append(c.emit("Sub", x, c.emit("Div", c.emit("Mul", rate, grad), root)))
        found[1].append(squares)
    return [*found[0], *found[1]]


@handles("Momentum", domain=TRAINING)
def _momentum(c: NodeContext) -> Result:
    """Inputs: rate, step, X…, G…, V…; outputs: X…, V…. The first step takes the gradient as it is."""
    alpha, mode = c.float_attr("alpha", 0.0), c.str_attr("mode", "")
    if mode not in ("standard", "nesterov"):
        c.broken(f"mode is {mode!r}")
    found: list[list[Value]] = [[], []]
    for x, g, v in zip(*_groups(c, 3)):
        rate, grad = _scalar(c, 0, x.dtype), _with_decay(c, x, g)
        beta = _after_first(c, c.const(c.float_attr("beta", 0.0), x.dtype), c.const(1.0, x.dtype))
        speed = c.emit("Add", c.scale(v, alpha), c.emit("Mul", beta, grad))
        step = speed if mode == "standard" else c.emit("Add", grad, c.scale(speed, alpha))
        found[0].append(c.emit("Sub", x, c.emit("Mul", rate, step)))
        found[1].append(speed)
    return [*found[0], *found[1]]


@handles("Adam", domain=TRAINING)
def _adam(c: NodeContext) -> Result:
    """Inputs: rate, step, X…, G…, V…, H…; outputs: X…, V…, H…. The first step's averages are not corrected."""
    alpha, beta = c.float_attr("alpha", 0.9), c.float_attr("beta", 0.999)
    found: list[list[Value]] = [[], [], []]
    for x, g, v, h in zip(*_groups(c, 4)):
        one, grad, step, rate = c.const(1.0, x.dtype), _with_decay(c, x, g), *(_scalar(c, i, x.dtype) for i in (1, 0))
        mean = c.emit("Add", c.scale(v, alpha), c.scale(grad, 1.0 - alpha))
        squares = c.emit("Add", c.scale(h, beta), c.scale(c.emit("Mul", grad, grad), 1.0 - beta))
        left = [c.emit("Sub", one, c.emit("Pow", c.const(b, x.dtype), step)) for b in (beta, alpha)]
        corrected = c.emit("Div", c.emit("Mul", rate, c.emit("Sqrt", left[0])), left[1])
        size = c.emit("Add", c.emit("Sqrt", squares), c.const(c.float_attr("epsilon", 0.0), x.dtype))
        moved = c.emit("Div", c.emit("Mul", _after_first(c, corrected, rate), mean), size)
        after = c.scale(c.emit("Sub", x, moved), 1.0 - c.float_attr("norm_coefficient_post", 0.0))
        for listed, value in zip(found, (after, mean, squares)):
            listed.append(value)
    return [v for listed in found for v in listed]


def _after_first(c: NodeContext, later: Value, first: Value) -> Value:
    """``later`` where the number of the step is greater than 0, else ``first``."""
    return c.emit("Where", c.emit("Greater", _scalar(c, 1, DType.I64), c.const(0, DType.I64)), later, first)
