"""Antialiased resizing: a product with a constant matrix along each axis that changes.

Where an axis shrinks, the interpolation kernel is widened by the factor, so that every input contributes to the output
(``antialias`` of ONNX's Resize since operator set 18; PyTorch and Pillow do the same).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Rewriter, Value
from arcweld.compiler.ops import registry
from arcweld.compiler.ops.resize import keys, positions

MAX_WEIGHTS = 1 << 26  # elements of an axis' matrix: 8192 of them resized to 8192


def resampling_matrix(
    n: int, m: int, scale: float | None, *, mode: str, transform: str, coefficient: float, clipped: bool
) -> np.ndarray:
    """The ``f64[m, n]`` matrix that resizes an axis of ``n`` elements to ``m``; each row's weights add up to 1.

    scale        outputs per input; None: m / n
    mode         linear or cubic
    coefficient  the cubic kernel's parameter ``a`` (``resize.keys``)
    transform    Resize's coordinate_transformation_mode
    clipped      whether positions outside have no weight (exclude_outside); else they read the edge elements
    """
    if m == 0:
        return np.zeros((m, n))
    at = positions(n, m, scale, transform)
    shrink = min(m / n if scale is None else scale, 1.0)
    reach = {"linear": 1, "cubic": 2}[mode] / shrink
    source = np.arange(np.floor(at.min() - reach), np.ceil(at.max() + reach) + 1)
    distance = np.abs(at[:, None] - source) * shrink
    weight = np.maximum(1 - distance, 0) if mode == "linear" else keys(distance, coefficient)
    if clipped:
        weight = weight * ((source >= 0) & (source < n))
    weight /= weight.sum(axis=1, keepdims=True)
    found = np.zeros((m, n))
    np.add.at(found.T, np.clip(source, 0, n - 1).astype(np.int64), weight.T)
    return found


def resample(
    rw: Rewriter, x: Value, sizes: Sequence[Dim], scales: Sequence[float] | None, origin: tuple[str, ...], hint: str,
    *, mode: str, transform: str, coefficient: float, clipped: bool,
) -> Value:  # fmt: skip
    """``x`` resized to ``sizes``.

    Raises UnsupportedError where an axis that changes has a symbolic size or more than ``MAX_WEIGHTS`` weights, and for
    integers, which frameworks round after each axis.
    """
    if not x.dtype.is_float:
        raise UnsupportedError(f"antialiased resizing of {x.dtype.value}")

    def make(op: str, *inputs: Value, **attrs: object) -> Value:
        return registry.make(rw, op, inputs, attrs, origin=origin, hint=hint)

    last = x.type.rank - 1
    for axis in range(last, -1, -1):
        n, m, scale = x.shape[axis], sizes[axis], None if scales is None else scales[axis]
        if n == m and scale in (None, 1):
            continue
        if isinstance(n, IntExpr) or isinstance(m, IntExpr):
            raise UnsupportedError(f"antialiased resizing of an axis of {n} to {m}")
        if n == 0 < m:
            raise ModelError(f"Resize: axis {axis} of {x.type} has no elements to make {m} of")
        if n * m > MAX_WEIGHTS:
            raise UnsupportedError(f"antialiased resizing of an axis of {n} to {m}: more than {MAX_WEIGHTS} weights")
        matrix = resampling_matrix(
            n, m, scale, mode=mode, transform=transform, coefficient=coefficient, clipped=clipped
        )
        if axis == last:
            x = make("MatMul", x, rw.constant(matrix.T.astype(x.dtype.numpy), x.dtype, f"{hint}.columns"))
            continue
        swap = [*range(last + 1)]  # the axis to the rows of a matrix
        swap[axis], swap[last - 1] = last - 1, axis
        rows = x if axis == last - 1 else make("Transpose", x, perm=tuple(swap))
        rows = make("MatMul", rw.constant(matrix.astype(x.dtype.numpy), x.dtype, f"{hint}.rows"), rows)
        x = rows if axis == last - 1 else make("Transpose", rows, perm=tuple(swap))
    return x
