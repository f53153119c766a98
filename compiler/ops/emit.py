"""Emits IR nodes, for the importers' handlers and for the decompositions of composite operators.

The registry checks every node and infers its types. Nodes that would change nothing, such as a cast to the same type,
are not emitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Node, Rewriter, Value
from arcweld.compiler.ops.registry import make


class Emitter:
    """Emits nodes with one origin. Methods raise ModelError where operands and attributes do not fit."""

    def __init__(self, rw: Rewriter, origin: tuple[str, ...]) -> None:
        self.rw = rw
        self.origin = origin

    def result_name(self, op: str) -> str:
        """The hint for the name of a node's result; empty: the operator's name."""
        return ""

    def const_name(self) -> str:
        """The hint for the name of a constant."""
        return "const"

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Emits one node and returns its first output."""
        return make(self.rw, op, inputs, attrs, origin=self.origin, hint=self.result_name(op))

    def const(self, data: Any, dtype: DType) -> Value:
        """A constant array or number."""
        return self.rw.constant(np.asarray(data, dtype.numpy, order="C"), dtype, self.const_name())

    def dim_value(self, d: Dim, dtype: DType = DType.I64) -> Value:
        """A dimension as a rank 0 tensor; a symbolic one is computed on the host when the engine runs."""
        if isinstance(d, int):
            return self.const(d, dtype)
        return self.cast(self.emit("Dims", values=(d,), shape=()), dtype)

    def cast(self, x: Value, dtype: DType) -> Value:
        """``x`` in another element type."""
        return x if x.dtype is dtype else self.emit("Cast", x, to=dtype)

    def wide(self, x: Value) -> Value:
        """``x`` in f32 if it is f16 or bf16, so that sums that kernels exchange keep their range and precision."""
        return self.cast(x, x.dtype.compute)

    def scale(self, x: Value, factor: float) -> Value:
        """``x`` times a number."""
        return x if factor == 1.0 else self.emit("Mul", x, self.const(factor, x.dtype))

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """``x`` with another shape."""
        return x if x.shape == tuple(shape) else self.emit("Reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """``x`` with permuted axes."""
        return x if tuple(perm) == tuple(range(x.type.rank)) else self.emit("Transpose", x, perm=tuple(perm))

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        """``x`` broadcast to ``shape``."""
        return x if x.shape == tuple(shape) else self.emit("Expand", x, shape=tuple(shape))

    def slice(self, x: Value, axis: int, start: Dim, size: Dim, step: int = 1) -> Value:
        """``size`` elements of one axis, from ``start`` on, ``step`` apart."""
        if start == 0 and size == x.shape[axis] and step == 1:
            return x
        rank = x.type.rank
        starts = tuple(start if k == axis else 0 for k in range(rank))
        sizes = tuple(size if k == axis else x.shape[k] for k in range(rank))
        steps = tuple(step if k == axis else 1 for k in range(rank))
        return self.emit("Slice", x, starts=starts, sizes=sizes, steps=steps)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """The parts joined along ``axis``."""
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=axis)


class Emit(Emitter):
    """The Emitter of a decomposition: ``e("Add", a, b)`` emits a node with the origin of the node that it replaces."""

    def __init__(self, rw: Rewriter, node: Node) -> None:
        super().__init__(rw, node.origin)

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """``emit``, shorter."""
        return self.emit(op, *inputs, **attrs)
