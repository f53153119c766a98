"""Steps of random graphs that fold or multiply: reductions, norms, products, convolutions, pools, attention."""

from __future__ import annotations

from typing import Any

from maker import Maker, Step

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value


def _reduce(m: Maker, x: Value) -> Value | None:
    axes = tuple(k for k in range(x.type.rank) if m.chance(2)) or ((x.type.rank - 1,) if x.type.rank else ())
    names: tuple[str, ...] = ("ReduceMax", "ReduceMin")
    if x.dtype is not DType.BOOL:
        names = ("ReduceSum", *names)
    if x.dtype.is_float:
        # products of integers overflow, which ONNX leaves open
        names = (*names, "ReduceProd", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    return m.make(m.one(names), [x], axes=axes, keepdims=m.pick(2)) if axes else None


def _arg(m: Maker, x: Value) -> Value | None:
    """Positions of extremes, of numbers that no order of evaluation changes."""
    axes = [k for k, d in enumerate(x.shape) if m.smallest(d) > 0]
    if not axes or not m.exact(x):
        return None
    attrs = {"axis": m.one(axes), "keepdims": m.pick(2), "select_last_index": m.pick(2)}
    return m.make(m.one(("ArgMax", "ArgMin")), [x], **attrs)


def _cumsum(m: Maker, x: Value) -> Value | None:
    if not x.type.rank:
        return None
    return m.make("CumSum", [x], axis=m.pick(x.type.rank), exclusive=m.pick(2), reverse=m.pick(2))


def _softmax(m: Maker, x: Value) -> Value | None:
    if not x.type.rank or not x.dtype.is_float:
        return None
    return m.make(m.one(("Softmax", "Softmax", "LogSoftmax")), [x], axis=m.pick(x.type.rank))


def _norm(m: Maker, x: Value) -> Value | None:
    if not x.type.rank or not x.dtype.is_float:
        return None
    axis = x.type.rank - 1 - (m.pick(2) if x.type.rank > 1 else 0)
    scale = m.operand(x.shape[axis:], x.dtype)
    if m.chance(3):
        return m.make("RMSNormalization", [x, scale], axis=axis, epsilon=1e-2)
    bias = m.operand(x.shape[axis:], x.dtype) if m.chance(2) else None
    return m.make("LayerNormalization", [x, scale, bias], axis=axis, epsilon=1e-2)


def _matmul(m: Maker, x: Value) -> Value | None:
    if x.type.rank < 2:
        return None
    n = m.one(m.extents)
    batch = list(x.shape[:-2]) if m.chance(3) else []
    if m.chance(3):
        return m.make("MatMul", [m.operand([*batch, n, x.shape[-2]], x.dtype), x])
    return m.make("MatMul", [x, m.operand([*batch, x.shape[-1], n], x.dtype)])


def _conv(m: Maker, x: Value) -> Value | None:
    if x.type.rank not in (3, 4) or not x.dtype.is_float or not isinstance(x.shape[1], int):
        return None
    r, c = x.type.rank - 2, x.shape[1]
    group = m.one([g for g in (1, 1, 2, c) if g and c % g == 0])
    kernel = [m.one((1, 2, 3)) for _ in range(r)]
    common = {
        "strides": tuple(m.one((1, 2)) for _ in range(r)), "dilations": tuple(m.one((1, 1, 2)) for _ in range(r)),
        "pads": tuple(m.pick(3) for _ in range(2 * r)), "group": group, "layout": "NCHW",
    }  # fmt: skip
    out = m.one((1, 2, 4)) * group
    bias = m.operand([out], x.dtype) if m.chance(2) else None
    if m.chance(4):
        w = m.operand([c, out // group, *kernel], x.dtype)
        return m.make("ConvTranspose", [x, w, bias], output_padding=(0,) * r, **common)
    return m.make("Conv", [x, m.operand([out, c // group, *kernel], x.dtype), bias], **common)


def _pool(m: Maker, x: Value) -> Value | None:
    if x.type.rank not in (3, 4) or not x.dtype.is_float:
        return None
    r = x.type.rank - 2
    kernel = tuple(m.one((1, 2, 3)) for _ in range(r))
    attrs: dict[str, Any] = {
        "kernel_shape": kernel, "strides": tuple(m.one((1, 2)) for _ in range(r)), "dilations": (1,) * r,
        "pads": tuple(m.pick(k) for k in (*kernel, *kernel)), "ceil_mode": m.pick(2), "layout": "NCHW",
    }  # fmt: skip
    if m.chance(2):
        return m.make("MaxPool", [x], **attrs)
    return m.make("AveragePool", [x], count_include_pad=m.pick(2), **attrs)


def _attention(m: Maker, x: Value) -> Value | None:
    if x.type.rank != 4 or not x.dtype.is_float or not isinstance(x.shape[1], int):
        return None
    groups = m.one([g for g in (1, 2, x.shape[1]) if g and x.shape[1] % g == 0])
    t = m.one(m.extents)
    k = m.operand([x.shape[0], groups, t, x.shape[3]], x.dtype)
    v = m.operand([x.shape[0], groups, t, m.one((2, 4))], x.dtype)
    mask = m.operand([1, 1, x.shape[2], t], m.one((x.dtype, DType.BOOL))) if m.chance(2) else None
    return m.make("Attention", [x, k, v, mask], scale=0.5, is_causal=int(mask is None and t == x.shape[2]))


COMPUTE: tuple[Step, ...] = (
    _reduce, _reduce, _arg, _cumsum, _softmax, _norm, _matmul, _matmul, _conv, _conv, _pool, _attention, _attention,
)  # fmt: skip
