"""Operators of users: a numpy function says what one means, an expression or CUDA what kernels compute.

One name serves ONNX and PyTorch:

    @arcweld.custom_op("com.acme::Swizzle", attributes={"alpha": 1.0})
    def swizzle(x, alpha):
        return x / (1 + np.exp(-alpha * x))

    @swizzle.expression
    def swizzle_expression(x, alpha):
        return x / (1 + f.exp(-alpha * x))  # f: arcweld.functions

Such an operator is elementwise: its operands broadcast, and it is fused like any other. ``swizzle.cuda(...)`` takes the
text of a CUDA device function in place of an expression. Verification compares its kernels with the numpy function, as
with every operator.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.device_function import DeviceFunction
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.expr import Expr, call, const, variable
from arcweld.compiler.ops.elementwise import Attrs, pointwise
from arcweld.compiler.ops.registry import Attr, is_registered

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)::([A-Za-z_]\w*)")
_KINDS: Mapping[type, str] = {float: "float", int: "int", bool: "bool", str: "str"}
FLOATS = ("f32", "f16", "bf16", "f64")


class CustomOp:
    """An operator of the user's. ``name`` is "domain::Operator"; ``ir_name`` is its name in IR text.

    Calling it with PyTorch tensors runs ``torch_op``.
    """

    def __init__(
        self, name: str, reference: Callable[..., np.ndarray], attributes: Mapping[str, Any], dtypes: Sequence[str],
        cost: int, tolerance: float,
    ) -> None:  # fmt: skip
        found = _NAME.fullmatch(name)
        if found is None:
            hint = 'write "domain::Operator", as "com.acme::Swizzle"'
            raise UsageError(f"{name!r} is no name of an operator", hint=hint)
        self.name, self.domain, self.operator = name, found[1], found[2]
        self.ir_name = f"{self.domain.replace('.', '_')}_{self.operator}"
        self.reference = reference
        self.attributes = dict(attributes)
        self.dtypes = tuple(_dtype(d, name) for d in dtypes)
        self.cost, self.tolerance = cost, tolerance
        self.operands = self._operands(reference)
        self._expression: Callable[..., Expr] | None = None
        self._torch: Any = None
        for key, value in self.attributes.items():
            if type(value) not in _KINDS:
                kind = type(value).__name__
                raise UsageError(f"{name}: the attribute {key} is a {kind}, not a float, int, bool or str")
        if is_registered(self.ir_name):
            raise UsageError(f"the name {name} is taken", hint="define an operator once, or give it another name")
        self._try_reference()

    def expression(self, formula: Callable[..., Expr]) -> CustomOp:
        """Says what a kernel computes, and so makes the operator known: ``formula(*operands, **attributes)``.

        Operands are expressions (``arcweld.functions`` has what Python's operators lack), in f32 for 16-bit types;
        attributes are Python's. Raises UsageError where the formula fails or gives no expression of its operands' type.
        """
        if self._operands(formula) != self.operands:
            raise UsageError(
                f"{self.name}: the numpy function takes {self.operands}, the expression {self._operands(formula)}"
            )
        for dtype in self.dtypes:
            self._try_expression(formula, dtype)
        self._register(formula)
        return self

    def cuda(self, source: str, *, function: str) -> CustomOp:
        """Says what a kernel computes by CUDA, in place of an expression: ``source`` is the text that defines

            __device__ float FUNCTION(float operand, ..., attribute, ...)

        of one element of each operand, in f32, and the attributes in their order. The text becomes part of each kernel
        that calls it, and so of the engine. It may use what ``math.h`` has. Raises UsageError where the source defines
        no such function, for operands other than f32 and 16-bit floats, and for attributes that are strings.
        """
        if not re.search(rf"__device__[^;{{}}]*\bfloat\s+{re.escape(function)}\s*\(", source):
            raise UsageError(f"{self.name}: the source defines no `__device__ float {function}(...)`")
        for dtype in self.dtypes:
            if dtype.compute is not DType.F32:
                hint = 'name the types: dtypes=("f32", "f16", "bf16")'
                raise UsageError(f"{self.name}: a CUDA function computes in f32, not for {dtype.value}", hint=hint)
        for key, value in self.attributes.items():
            if isinstance(value, str):
                raise UsageError(f"{self.name}: a CUDA function takes no text, as the attribute {key} is")
        device = DeviceFunction(function, source, self._meaning)
        types = {k: {float: DType.F32, int: DType.I32, bool: DType.BOOL}[type(v)] for k, v in self.attributes.items()}
        self._register(lambda *x, **p: call(device, [*x, *(const(p[k], t) for k, t in types.items())]))
        return self

    def _meaning(self, *values: np.ndarray) -> np.ndarray:
        """The numpy function of operands and then attributes."""
        operands, attributes = values[: len(self.operands)], values[len(self.operands) :]
        return self.reference(*operands, **{k: v.item() for k, v in zip(self.attributes, attributes, strict=True)})

    def _register(self, formula: Callable[..., Expr]) -> None:
        if self._expression is not None:
            raise UsageError(f"what a kernel computes for {self.name} is said already")
        self._expression = formula
        pointwise(
            self.ir_name, " ".join(self.operands), lambda p, *x: formula(*x, **p), self._numpy, test=(),
            attrs={k: Attr(_KINDS[type(v)], v) for k, v in self.attributes.items()}, dtypes=self.dtypes, cost=self.cost,
            tolerance=self.tolerance, doc=inspect.getdoc(self.reference) or f"the operator {self.name}",
        )  # fmt: skip
        self._handle_onnx()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``torch_op`` of PyTorch tensors."""
        return self.torch_op(*args, **kwargs)

    @property
    def torch_op(self) -> Any:
        """The operator of ``torch.library``, made when first asked for. Eager mode runs the numpy function, on CPUs.

        Raises UsageError where nothing says what a kernel computes.
        """
        if self._torch is None:
            if self._expression is None:
                raise UsageError(
                    f"nothing says what a kernel computes for {self.name}", hint="use its .expression or its .cuda"
                )
            self._torch = _torch_operator(self)
        return self._torch

    # ---------------------------------------------------------------------------------------------- what is checked

    def _operands(self, fn: Callable[..., Any]) -> tuple[str, ...]:
        names = tuple(inspect.signature(fn).parameters)
        missing = [k for k in self.attributes if k not in names]
        if missing:
            raise UsageError(f"{self.name}: {getattr(fn, '__name__', fn)} takes no attribute {missing[0]}")
        found = tuple(n for n in names if n not in self.attributes)
        if not found:
            raise UsageError(f"{self.name} has no operands")
        return found

    def _numpy(self, p: Attrs, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(self.reference(*arrays, **p))

    def _try_reference(self) -> None:
        arrays = [np.linspace(0.1, 0.9, 6, dtype=np.float32).reshape(2, 3) for _ in self.operands]
        try:
            result = np.asarray(self.reference(*arrays, **self.attributes))
        except Exception as error:
            raise UsageError(f"{self.name}: the numpy function fails: {type(error).__name__}: {error}") from error
        if result.shape != (2, 3):
            raise UsageError(f"{self.name} is not elementwise: of arrays [2, 3] it makes {list(result.shape)}")

    def _try_expression(self, formula: Callable[..., Expr], dtype: DType) -> None:
        operands = [variable(n, dtype.compute) for n in self.operands]
        try:
            result = formula(*operands, **self.attributes)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"{self.name}: the expression fails for {dtype.value}: {what}") from error
        if not isinstance(result, Expr):
            raise UsageError(f"{self.name}: the expression gives a {type(result).__name__}, not an expression")
        if result.dtype is not dtype.compute:
            raise UsageError(f"{self.name}: the expression of {dtype.compute.value} operands is a {result.dtype.value}")

    def _handle_onnx(self) -> None:
        from arcweld.compiler.onnx.handlers.base import handles
        from arcweld.compiler.onnx.handlers.pointwise import same_attrs

        handles(self.operator, domain=self.domain)(
            lambda c: c.emit(self.ir_name, *c.values(), **same_attrs(c, self.ir_name))
        )


def custom_op(
    name: str, *, attributes: Mapping[str, Any] | None = None, dtypes: Sequence[str] = FLOATS, cost: int = 8,
    tolerance: float = 1e-5,
) -> Callable[[Callable[..., np.ndarray]], CustomOp]:  # fmt: skip
    """Decorates the numpy function of an elementwise operator, which says what the operator means.

    name        "domain::Operator": its domain and name in ONNX; in PyTorch with underscores for the domain's dots
    attributes  its attributes and their defaults: floats, ints, bools or strings. All other arguments are operands
    dtypes      the element types that operands may have, which they share; 16-bit ones reach the function as f32
    cost        scalar operations for one element, by which fusion judges computing it more than once
    tolerance   the largest relative error of a kernel in f32

    Raises UsageError for a name that is taken or malformed, and where the function fails or is not elementwise.
    """

    def decorate(reference: Callable[..., np.ndarray]) -> CustomOp:
        import arcweld.compiler.ops.table  # noqa: F401  (the names that are taken)

        return CustomOp(name, reference, attributes or {}, dtypes, cost, tolerance)

    return decorate


def _dtype(name: str, op: str) -> DType:
    try:
        dtype = DType(name)
    except ValueError:
        dtype = None
    if dtype is None or not (dtype.is_float or dtype.is_int) or dtype.is_storage:
        raise UsageError(f"{op}: {name!r} is no type of operands", hint="f16, bf16, f32, f64, i8 to i64, u8 to u64")
    return dtype


def _torch_operator(op: CustomOp) -> Any:
    """Registers the operator with PyTorch, and how it is imported."""
    import torch

    from arcweld.compiler.torch.context import HANDLERS, AtenContext

    space = op.domain.replace(".", "_")
    options = [f"{_KINDS[type(v)]} {k}={_schema_default(v)}" for k, v in op.attributes.items()]
    schema = ", ".join([*(f"Tensor {n}" for n in op.operands), *(["*", *options] if options else [])])
    full = f"{space}::{op.operator}"
    torch.library.define(full, f"({schema}) -> Tensor")

    def eager(*tensors: torch.Tensor, **attributes: Any) -> torch.Tensor:
        kind = tensors[0].dtype
        wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
        result = op.reference(*(t.detach().numpy() for t in wide), **(op.attributes | attributes))
        return torch.from_numpy(np.array(result)).to(kind)

    def fake(*tensors: torch.Tensor, **attributes: Any) -> torch.Tensor:
        return tensors[0].new_empty(torch.broadcast_shapes(*(t.shape for t in tensors)))

    def imported(c: AtenContext) -> Any:
        return c.emit(op.ir_name, *(c[n] for n in op.operands), **{k: c.get(k, v) for k, v in op.attributes.items()})

    torch.library.impl(full, "CPU")(eager)
    torch.library.register_fake(full)(fake)
    HANDLERS[f"{space}.{op.operator}.default"] = imported
    return getattr(getattr(torch.ops, space), op.operator)


def _schema_default(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
