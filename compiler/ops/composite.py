"""Composite operators: their type rules, their references, and their decompositions into simpler operators.

Decompositions are such that fusion makes one kernel of them: normalisations become LayerNormalization, and 16-bit sums
are f32 values that exist inside the kernel only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, divides_exactly, product
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Decompose, Infer, Kind, OpDef, Reference, register
from arcweld.compiler.ops.shapes import (
    FLOATS,
    NUMERIC,
    check_axis,
    check_broadcast_to,
    check_dtype,
    check_equal,
    check_rank,
    present,
    same_dtype,
    show,
    split_optional,
)

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]


def composite(
    name: str, inputs: str, infer: Infer, reference: Reference, decompose: Decompose, attrs: Mapping[str, Attr],
    cases: Sequence[Case], doc: str = "",
) -> OpDef:  # fmt: skip
    """Registers an operator that is always decomposed."""
    return register(
        OpDef(
            name, Kind.COMPOSITE, tuple(inputs.split()), infer, reference, attrs, decompose=decompose,
            cases=tuple(cases), doc=doc,
        )
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- Gemm


def _infer_gemm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (a, b), (c,) = split_optional("Gemm", types, 2, 3)
    same_dtype("Gemm", [a, b] if c is None else [a, b, c])
    check_dtype("Gemm", a, NUMERIC)
    check_rank("Gemm", a, 2, 2)
    check_rank("Gemm", b, 2, 2)
    m, ka = reversed(a.shape) if attrs["transA"] else a.shape
    kb, n = reversed(b.shape) if attrs["transB"] else b.shape
    check_equal("Gemm", f"inner dimensions of {show(a.shape)} and {show(b.shape)}", ka, kb)
    if c is not None:
        check_broadcast_to("Gemm", "C", c.shape, (m, n))
    return (a.with_shape((m, n)),)


def _gemm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b, c = widen(operand(arrays)), widen(operand(arrays, 1)), [*arrays, None][2]
    y = (a.T if attrs["transA"] else a) @ (b.T if attrs["transB"] else b)
    y = y if attrs["alpha"] == 1.0 else y * attrs["alpha"]
    y = y if c is None else y + widen(c) * (1 if attrs["beta"] == 1.0 else attrs["beta"])
    return (y.astype(operand(arrays).dtype),)


def _decompose_gemm(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    e, p = Emit(rw, node), node.attrs
    a, b, *rest = node.operands()
    y = e("MatMul", e.transpose(a, (1, 0)) if p["transA"] else a, e.transpose(b, (1, 0)) if p["transB"] else b)
    y = e.scale(y, p["alpha"])
    return (e("Add", y, e.scale(rest[0], p["beta"])) if rest else y,)


composite(
    "Gemm", "a b c?", _infer_gemm, _gemm, _decompose_gemm,
    {"alpha": Attr("float", 1.0), "beta": Attr("float", 1.0), "transA": Attr("int", 0), "transB": Attr("int", 0)},
    [
        Case(((3, 4), (4, 5)), {}, ("f32", "f16")),
        Case(((4, 3), (5, 4), (5,)), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, ("f32",)),
        Case(((3, 4), (4, 5), (3, 1)), {}, ("f32",)),
    ],
)  # fmt: skip

# ----------------------------------------------------------------------------------------------- normalisations


def _infer_channels(op: str, parameters: int) -> Infer:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x, *given = present(op, types, 1 + parameters)
        check_dtype(op, x, FLOATS)
        check_rank(op, x, 2)
        for t in given:
            check_dtype(op, t, FLOATS)
            check_rank(op, t, 1, 1)
            check_equal(op, "channels", x.shape[1], t.shape[0])
        if op == "GroupNormalization" and divides_exactly(x.shape[1], attrs["num_groups"]) is None:
            raise ModelError(f"GroupNormalization: {x.shape[1]} channels in {attrs['num_groups']} groups")
        return (x,)

    return infer


def _per_channel(a: np.ndarray, rank: int) -> np.ndarray:
    return widen(a).reshape(-1, *[1] * (rank - 2))


def _normalised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon))


def _batch_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    scale, bias, mean, var = (_per_channel(operand(arrays, k), x.ndim) for k in range(1, 5))
    y = (widen(x) - mean) / np.sqrt(var + attrs["epsilon"]) * scale + bias
    return (y.astype(x.dtype),)


def _decompose_batch_norm(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    e = Emit(rw, node)
    x, scale, bias, mean, var = node.operands()
    scale, bias, mean, var = (e.wide(v) for v in (scale, bias, mean, var))
    factor = e("Mul", scale, e("Rsqrt", e("Add", var, e.const(node.attrs["epsilon"], var.dtype))))
    shift = e("Sub", bias, e("Mul", mean, factor))
    shape = (x.shape[1], *[1] * (x.type.rank - 2))
    factor, shift = (e.cast(e.reshape(v, shape), x.dtype) for v in (factor, shift))
    return (e("Add", e("Mul", x, factor), shift),)


def _instance_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    y = _normalised(widen(x), tuple(range(2, x.ndim)), attrs["epsilon"])
    return ((y * _per_channel(operand(arrays, 1), x.ndim) + _per_channel(operand(arrays, 2), x.ndim)).astype(x.dtype),)


def _group_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    rows = widen(x).reshape(x.shape[0], attrs["num_groups"], -1)
    y = _normalised(rows, (2,), attrs["epsilon"]).reshape(x.shape)
    return ((y * _per_channel(operand(arrays, 1), x.ndim) + _per_channel(operand(arrays, 2), x.ndim)).astype(x.dtype),)


def _decompose_rows(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    """Instance and group normalisation as LayerNormalization of ``[N, groups, channels of a group, positions]``."""
    e = Emit(rw, node)
    x, scale, bias = node.operands()
    n, c = x.shape[:2]
    positions = product(x.shape[2:])
    if node.op == "InstanceNormalization":
        rows: tuple[Dim, ...] = (n, c, positions)
        affine: tuple[Dim, ...] = (c, 1)
    else:
        groups = node.attrs["num_groups"]
        each = divides_exactly(c, groups)
        assert each is not None
        rows, affine = (n, groups, each, positions), (groups, each, 1)
    scale, bias = (e.reshape(e.cast(v, x.dtype), affine) for v in (scale, bias))
    y = e("LayerNormalization", e.reshape(x, rows), scale, bias, axis=2, epsilon=node.attrs["epsilon"])
    return (e.reshape(y, x.shape),)


_EPSILON = {"epsilon": Attr("float", 1e-5)}
_VARIANCE = np.array([0.5, 1.25, 2.0, 0.25], np.float32)
composite(
    "BatchNormalization", "x scale bias mean var", _infer_channels("BatchNormalization", 4), _batch_norm,
    _decompose_batch_norm, _EPSILON,
    [
        Case(((2, 4, 3, 5), (4,), (4,), (4,), _VARIANCE), {}, ("f32",)),
        Case(((3, 4), (4,), (4,), (4,), _VARIANCE), {"epsilon": 1e-3}, ("f32",)),
        Case(((2, 4, 3), (4,), (4,), (4,), _VARIANCE.astype(np.float16)), {}, ("f16",)),
    ],
    doc="inference form; channels are axis 1",
)  # fmt: skip
composite(
    "InstanceNormalization", "x scale bias", _infer_channels("InstanceNormalization", 2), _instance_norm,
    _decompose_rows, _EPSILON, [Case(((2, 3, 4, 5), (3,), (3,)), {}, ("f32", "f16"))],
)  # fmt: skip
composite(
    "GroupNormalization", "x scale bias", _infer_channels("GroupNormalization", 2), _group_norm, _decompose_rows,
    {**_EPSILON, "num_groups": Attr("int", required=True)},
    [Case(((2, 6, 4, 5), (6,), (6,)), {"num_groups": 3}, ("f32", "f16"))],
    doc="scale and bias have one entry for each channel",
)  # fmt: skip


def _infer_float(op: str) -> Infer:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, FLOATS)
        for axis in attrs["axes"] if "axes" in attrs else (attrs["axis"],):
            check_axis(op, axis, x.rank)
        if attrs.get("p", 2) not in (1, 2):
            raise ModelError(f"{op}: p is {attrs['p']}, must be 1 or 2")
        return (x,)

    return infer


def _lp_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = widen(operand(arrays))
    norm = np.linalg.norm(x, ord=attrs["p"], axis=attrs["axis"], keepdims=True)
    return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0).astype(operand(arrays).dtype),)


def _decompose_lp_norm(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    (x,), e = node.operands(), Emit(rw, node)
    wide = e.wide(x)
    op = "ReduceL1" if node.attrs["p"] == 1 else "ReduceL2"
    norm = e(op, wide, axes=(node.attrs["axis"],), keepdims=1)
    safe = e("Where", e("Equal", norm, e.const(0, norm.dtype)), e.const(1, norm.dtype), norm)
    return (e.cast(e("Div", wide, safe), x.dtype),)


composite(
    "LpNormalization", "x", _infer_float("LpNormalization"), _lp_norm, _decompose_lp_norm,
    {"axis": Attr("int", required=True), "p": Attr("int", 2)},
    [
        Case(((3, 5),), {"axis": 1}, ("f32", "f16")),
        Case(((3, 5, 2),), {"axis": 1, "p": 1}, ("f32",)),
        Case((np.array([[0, 0], [3, 4]], np.float32),), {"axis": 1}),
    ],
    doc="x / norm; 0 where the norm is 0",
)  # fmt: skip


def _mean_variance(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axes = widen(operand(arrays)), tuple(attrs["axes"])
    y = (x - x.mean(axis=axes, keepdims=True)) / (x.std(axis=axes, keepdims=True) + 1e-9)
    return (y.astype(operand(arrays).dtype),)


def _decompose_mean_variance(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    (x,), e = node.operands(), Emit(rw, node)
    wide = e.wide(x)
    centred = e("Sub", wide, e("ReduceMean", wide, axes=node.attrs["axes"], keepdims=1))
    variance = e("ReduceMean", e("Mul", centred, centred), axes=node.attrs["axes"], keepdims=1)
    deviation = e("Add", e("Sqrt", variance), e.const(1e-9, variance.dtype))
    return (e.cast(e("Div", centred, deviation), x.dtype),)


composite(
    "MeanVarianceNormalization", "x", _infer_float("MeanVarianceNormalization"), _mean_variance,
    _decompose_mean_variance, {"axes": Attr("ints", (0, 2, 3))},
    [Case(((2, 3, 4, 5),), {}, ("f32", "f16")), Case(((3, 7),), {"axes": (1,)}, ("f32",))],
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------ Hardmax


def _hardmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axis = operand(arrays), attrs["axis"]
    y = np.zeros_like(x)
    if x.size == 0:
        return (y,)
    np.put_along_axis(y, np.expand_dims(widen(x).argmax(axis=axis), axis), np.asarray(1, x.dtype), axis)
    return (y,)


def _decompose_hardmax(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    (x,), axis, e = node.operands(), node.attrs["axis"], Emit(rw, node)
    values = rw.constant(np.array([0, 1], x.dtype.numpy), x.dtype)
    return (e("OneHot", e("ArgMax", x, axis=axis, keepdims=0), values, axis=axis, depth=x.shape[axis]),)


composite(
    "Hardmax", "x", _infer_float("Hardmax"), _hardmax, _decompose_hardmax, {"axis": Attr("int", required=True)},
    [Case(((3, 5),), {"axis": 1}, ("f32", "f16")), Case(((3, 5, 2),), {"axis": 1}, ("f32",))],
)  # fmt: skip
