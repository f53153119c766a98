"""What decompositions write with: checked nodes, constants, and dimensions as scalars, without needless nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Node, Rewriter, Value
from arcweld.compiler.ops.registry import make


class Emit:
    """Emits the nodes that replace ``node``; every one of them gets its origin."""

    def __init__(self, rw: Rewriter, node: Node) -> None:
        self.rw = rw
        self.origin = node.origin

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """One node; returns its output. Raises ModelError where operands and attributes do not fit."""
        return make(self.rw, op, inputs, attrs, origin=self.origin)

    def scalar(self, value: float, dtype: DType) -> Value:
        """A rank 0 constant."""
        return self.rw.constant(np.asarray(value, dtype.numpy), dtype)

    def dim(self, value: Dim, dtype: DType) -> Value:
        """A dimension as a rank 0 tensor."""
        if isinstance(value, int):
            return self.scalar(value, dtype)
        return self.cast(self("Dims", values=(value,), shape=()), dtype)

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.dtype is dtype else self("Cast", x, to=dtype)

    def wide(self, x: Value) -> Value:
        """A 16-bit float as f32, so that sums cannot overflow between kernels; anything else as it is."""
        return self.cast(x, x.dtype.compute)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if x.shape == tuple(shape) else self("Reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        return x if list(perm) == list(range(len(perm))) else self("Transpose", x, perm=tuple(perm))
