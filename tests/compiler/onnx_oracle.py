"""Turns a registry test case into a one-node ONNX model: the independent oracle of the operator sweep.

Written from the ONNX operator specifications; it knows which of our attributes are tensors there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as ort_errors
import order_oracle
import paged_oracle
import recurrence_oracle
import torch
import torch_oracles
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arcweld.compiler.dtypes import DEVICE_TYPES, DType
from arcweld.compiler.ir import Graph, Node, TensorType, Value

OPSET = 21
NEWER = {"RMSNormalization": 23, "Attention": 23, "Silu": 24, "CumProd": 26, "BitCast": 26}
LACKS = ("strict", "fill", "padding", "pixels")  # attributes that ONNX lacks
RENAMED = {"Silu": "Swish", "Divisor": "Identity"}

REFUSALS = (ort_errors.NotImplemented, ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.InvalidArgument)
onnxruntime.set_default_logger_severity(4)  # refused types are expected here, see by_either
ELEMENT = {
    DType.F64: TensorProto.DOUBLE, DType.F32: TensorProto.FLOAT, DType.F16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16, DType.I64: TensorProto.INT64, DType.I32: TensorProto.INT32,
    DType.I16: TensorProto.INT16, DType.I8: TensorProto.INT8, DType.U64: TensorProto.UINT64,
    DType.U32: TensorProto.UINT32, DType.U16: TensorProto.UINT16, DType.U8: TensorProto.UINT8,
    DType.BOOL: TensorProto.BOOL,
    DType.F8E4M3FN: TensorProto.FLOAT8E4M3FN, DType.F8E4M3FNUZ: TensorProto.FLOAT8E4M3FNUZ,
    DType.F8E5M2: TensorProto.FLOAT8E5M2, DType.F8E5M2FNUZ: TensorProto.FLOAT8E5M2FNUZ,
    DType.F8E8M0: TensorProto.FLOAT8E8M0, DType.F4E2M1: TensorProto.FLOAT4E2M1,
    DType.I4: TensorProto.INT4, DType.U4: TensorProto.UINT4, DType.I2: TensorProto.INT2, DType.U2: TensorProto.UINT2,
}  # fmt: skip

Attrs = dict[str, Any]
Extra = list[np.ndarray | None]  # constant inputs that follow (or, for None, an input left out)


def i64(values: Any) -> np.ndarray:
    return np.asarray(values, np.int64)


def _axes_input(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    return {"keepdims": a["keepdims"]}, [i64(a["axes"])]


def _clip(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    dtype = node.output.dtype.numpy
    return {}, [None if a[k] is None else np.asarray(a[k], dtype) for k in ("min", "max")]


def _slice(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    ends = [s + n * p for s, n, p in zip(a["starts"], a["sizes"], a["steps"])]
    ends = [e if e >= 0 else -(1 << 40) for e in ends]
    return {}, [i64(a["starts"]), i64(ends), i64(range(len(ends))), i64(a["steps"])]


def _pad(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    return {"mode": a["mode"]}, [i64(a["pads"]), np.asarray(a["value"]).astype(node.output.dtype.numpy)]


def _range(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    stop = a["start"] + a["length"] * a["step"]
    return {}, [np.asarray(v, a["dtype"].numpy) for v in (a["start"], stop, a["step"])]


def _constant(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    return {"value": numpy_helper.from_array(np.array([a["value"]], a["dtype"].numpy))}, [i64(a["shape"])]


def _eye(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    return {"k": a["k"], "dtype": ELEMENT[a["dtype"] or node.operands()[0].dtype]}, []


def _resize(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    kept = {k: v for k, v in a.items() if k not in ("sizes", "scales", "roi")}
    if a["scales"] is None:
        return kept, [None if a["roi"] is None else np.asarray(a["roi"], np.float32), None, i64(a["sizes"])]
    return kept, [None, np.asarray(a["scales"], np.float32)]


def _quantize(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    own = {"axis": a["axis"], "block_size": a["block"]}
    return own if len(node.operands()) > 2 else {**own, "output_dtype": ELEMENT[a["dtype"]]}, []


def _dequantize(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    own = {"axis": a["axis"], "block_size": a["block"]}
    return own if a["dtype"] is None else {**own, "output_dtype": ELEMENT[a["dtype"]]}, []


def _no_layout(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    return {k: v for k, v in a.items() if k != "layout"}, []


def _from_the_end(node: Node, a: Attrs) -> tuple[Attrs, Extra]:
    return {"axis": a["axis"] - node.output.type.rank, "epsilon": a["epsilon"]}, []


# operators whose attributes ONNX passes differently; all others pass theirs unchanged
REWRITE: dict[str, Callable[[Node, Attrs], tuple[Attrs, Extra]]] = {
    **dict.fromkeys(
        ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp", "ReduceSumSquare"], _axes_input),
    "Clip": _clip,
    "Cast": lambda n, a: ({"to": ELEMENT[a["to"]], "saturate": 0, "round_mode": "nearest"}, []),
    "BitCast": lambda n, a: ({"to": ELEMENT[a["to"]]}, []),
    "Reshape": lambda n, a: ({"allowzero": 1}, [i64(a["shape"])]),
    "Expand": lambda n, a: ({}, [i64(a["shape"])]),
    "Tile": lambda n, a: ({}, [i64(a["repeats"])]),
    "Trilu": lambda n, a: ({"upper": a["upper"]}, [i64(a["k"])]),
    **dict.fromkeys(
        ["CumSum", "CumProd"],
        lambda n, a: ({"exclusive": a["exclusive"], "reverse": a["reverse"]}, [i64(a["axis"])])),
    "Slice": _slice, "Pad": _pad, "Range": _range, "ConstantOfShape": _constant, "EyeLike": _eye, "Resize": _resize,
    "Conv": _no_layout, "ConvTranspose": _no_layout, "MaxPool": _no_layout, "AveragePool": _no_layout,
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize,
    "OneHot": lambda n, a: ({"axis": a["axis"]}, []),
    "LayerNormalization": _from_the_end, "RMSNormalization": _from_the_end,
}  # fmt: skip


def _operands(node: Node) -> list[str]:
    names = [v.name if v is not None else "" for v in node.inputs]
    return [names[0], "depth", names[1]] if node.op == "OneHot" else names


def onnx_model(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of a one-node graph, every operand a graph input."""
    (node,) = graph.nodes
    attrs, extra = REWRITE.get(node.op, lambda n, a: (dict(a), []))(node, dict(node.attrs))
    if node.op == "OneHot":
        extra = []
    if node.op == "Cast" and not node.output.dtype.is_storage:
        attrs = {"to": attrs["to"]}
    attrs = {k: v for k, v in attrs.items() if v != () and k not in LACKS}
    constants, names = [], []
    for k, array in enumerate(extra):
        names.append("" if array is None else f"c{k}")
        if array is not None:
            constants.append(_tensor(f"c{k}", array))
    if node.op == "OneHot":
        constants.append(_tensor("depth", i64(node.attrs["depth"])))
    inputs = [helper.make_tensor_value_info(v.name, ELEMENT[v.dtype], list(v.shape)) for v in graph.inputs]
    outputs = [helper.make_tensor_value_info(v.name, ELEMENT[v.dtype], list(v.shape)) for v in graph.outputs]
    op_type, results = RENAMED.get(node.op, node.op), [o.name for o in node.outputs]
    proto = helper.make_node(op_type, [*_operands(node), *names], results, **attrs)
    body = helper.make_graph([proto], "case", inputs, outputs, constants)
    opset = 25 if any(v.dtype.is_storage for v in graph.values()) else NEWER.get(node.op, OPSET)
    if node.op == "BitShift" and node.output.dtype.is_signed:
        opset = 28
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    if array.dtype == ml_dtypes.bfloat16:
        return helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, array.tobytes(), raw=True)
    return numpy_helper.from_array(array, name)


def by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs according to onnxruntime, without graph optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, dict(feeds))]


def by_either(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of onnxruntime, or of onnx.reference for what onnxruntime refuses or numpy has no type for."""
    values = [*model.graph.input, *model.graph.output]
    arithmetic = {ELEMENT[d] for d in DEVICE_TYPES.values() if not d.is_storage and d is not DType.BF16}
    if all(v.type.tensor_type.elem_type in arithmetic for v in values):
        try:
            return by_onnxruntime(model, feeds)
        except REFUSALS:
            pass
    return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, dict(feeds))]


def oracle(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a one-node graph according to an independent implementation."""
    (node,) = graph.nodes
    if node.op == "DequantizeLinear" and len(node.inputs) == 3 and graph.inputs[2].dtype is DType.F32:
        return [_float_zero_point(node.attrs, *feeds.values())]
    if node.op == "DequantizeLinear" and len(node.inputs) == 3 and not graph.inputs[2].shape:
        return _with_spread_zero_point(graph, feeds)
    if node.op == "Cast" and DType.U1 in (graph.inputs[0].dtype, node.attrs["to"]):
        return [_one_bit(node.attrs["to"], *feeds.values())]
    if node.op == "DequantizeLinear" and len(node.inputs) > 3:
        return [_with_offset(node.attrs, *(None if v is None else feeds[v.name] for v in node.inputs))]
    if node.op == "GridSample" and (node.attrs["pixels"] or len(node.inputs) > 2):
        return [_grid_sample(node.attrs, *(feeds[v.name] for v in node.operands()))]
    if node.op == "Recurrence":
        return recurrence_oracle.recurrence(node.attrs, *(None if v is None else feeds[v.name] for v in node.inputs))
    if node.op == "TopK":
        return _topk(node.attrs, *feeds.values())
    if node.op == "SelectIndices":
        return _topk({**node.attrs, "axis": graph.inputs[0].type.rank - 1}, *feeds.values())[::-1]
    if node.op == "EqualRuns":
        return order_oracle.runs(node.attrs, *feeds.values())
    if node.op == "DynamicRange":
        return _dynamic_range(feeds)
    if node.op in DIRECT:
        return [DIRECT[node.op](node.attrs, *(None if v is None else feeds[v.name] for v in node.inputs))]
    if node.op == "Attention" and (np.isfinite(node.attrs["fill"]) or len(node.inputs) > 4):
        return [_attention(node.attrs, *(None if v is None else feeds[v.name] for v in node.inputs))]
    if node.attrs.get("layout") == "NHWC":
        return _through_nchw(graph, feeds)
    if node.attrs.get("padding"):
        return _without_padding(graph, feeds)
    if node.op in ("LayerNormalization", "RMSNormalization") and len(graph.inputs) == 1:
        return _with_unit_scale(graph, feeds)
    return by_either(onnx_model(graph), feeds)


def _attention(attrs: Attrs, *arrays: np.ndarray | None) -> np.ndarray:
    """Attention by torch with what ONNX lacks: a number over scores that the mask excludes, and sinks.

    A sink is a further key of a head, with that score and a value of zeros.
    """
    q, k, v, mask, sink = (None if a is None else torch.from_numpy(a) for a in (*arrays, None, None)[:5])
    assert q is not None
    assert k is not None
    assert v is not None
    k, v = (t.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = q.double() @ k.mT * attrs["scale"]
    if mask is not None:
        scores = torch.where(mask, scores, attrs["fill"])
    if sink is not None:
        scores = torch.cat([scores, sink.double().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
        v = torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)
    return np.asarray((scores.softmax(-1) @ v).numpy().astype(q.numpy().dtype))


def _through_nchw(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    (node,) = graph.nodes
    first = graph.inputs[0]
    n, *spatial, c = first.shape
    swapped = Value(first.name, first.type.with_shape((n, c, *spatial)))
    on, *ospatial, oc = graph.outputs[0].shape
    out = Value("y", graph.outputs[0].type.with_shape((on, oc, *ospatial)))
    inner = Node(node.op, (swapped, *node.inputs[1:]), (out,), node.attrs)
    inputs = (swapped, *graph.inputs[1:])
    moved = {**feeds, first.name: np.ascontiguousarray(np.moveaxis(feeds[first.name], -1, 1))}
    return [np.moveaxis(y, 1, -1) for y in by_either(onnx_model(Graph("nchw", inputs, (out,), (inner,))), moved)]


def _without_padding(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A scatter of those updates only whose indices are not negative."""
    (node,) = graph.nodes
    data, indices, updates = (feeds[v.name] for v in graph.inputs)
    kept = np.all(indices >= 0, axis=-1)
    left = dict(zip((v.name for v in graph.inputs), (data, indices[kept], updates[kept])))
    inputs = tuple(Value(v.name, v.type.with_shape(left[v.name].shape)) for v in graph.inputs)
    inner = Node(node.op, inputs, node.outputs, {**node.attrs, "padding": 0})
    return by_either(onnx_model(Graph("kept", inputs, graph.outputs, (inner,))), left)


def _with_unit_scale(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    (node,) = graph.nodes
    scale = np.ones(node.output.shape[node.attrs["axis"] :], node.output.dtype.numpy)
    value = Value("scale", TensorType(node.output.dtype, tuple(scale.shape)))
    inner = Node(node.op, (*node.inputs[:1], value), node.outputs, node.attrs)
    return by_either(
        onnx_model(Graph("unit", (*graph.inputs, value), graph.outputs, (inner,))), {**feeds, "scale": scale}
    )


def _integer_product(a: Attrs, x: np.ndarray, y: np.ndarray, *zero: np.ndarray) -> np.ndarray:
    right = y.astype(object) - zero[0].astype(object) if zero else y.astype(object)
    return np.matmul(x.astype(object), right).astype(np.int32)


def _integer_convolution(a: Attrs, x: np.ndarray, w: np.ndarray, *optional: np.ndarray | None) -> np.ndarray:
    """torch's convolution in f64, which is exact."""
    fill, zero = [*optional, None, None][:2]
    wide, filters = (torch.from_numpy(v).double() for v in (x, w))
    if zero is not None:
        filters = filters - torch.from_numpy(zero).double().reshape(-1, *[1] * (x.ndim - 1))
    return _convolved(a, wide, filters, 0.0 if fill is None else float(fill.item())).astype(np.int32)


def _convolved(a: Attrs, x: torch.Tensor, w: torch.Tensor, fill: float) -> np.ndarray:
    """The convolution of a tensor that is padded with ``fill`` before."""
    rank = x.ndim - 2
    wide = torch.moveaxis(x, -1, 1) if a["layout"] == "NHWC" else x
    pads = [p for i in reversed(range(rank)) for p in (a["pads"][i], a["pads"][rank + i])]
    wide = torch.nn.functional.pad(wide, pads, value=fill)
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d)[rank - 1]
    kept = {"stride": a["strides"], "dilation": a["dilations"], "groups": a["group"]}
    y = np.asarray(convolve(wide, w, **kept).numpy())
    return np.moveaxis(y, 1, -1) if a["layout"] == "NHWC" else y


def _numbers(x: np.ndarray) -> torch.Tensor:
    """An array of 8-bit floats, whose patterns torch reads, in f64."""
    types = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
    return torch.from_numpy(np.ascontiguousarray(x).view(np.uint8)).view(types[x.dtype.name]).double()


def _float8_product(a: Attrs, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((_numbers(x) @ _numbers(y)).float().numpy())


def _float8_convolution(a: Attrs, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return _convolved(a, _numbers(x), _numbers(w), 0.0).astype(np.float32)


def _with_spread_zero_point(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX wants a zero point for each scale."""
    (node,) = graph.nodes
    x, scale, zero = graph.inputs
    wide = Value(zero.name, TensorType(zero.dtype, scale.shape))
    inner = Node(node.op, (x, scale, wide), node.outputs, node.attrs)
    spread = {**feeds, zero.name: np.full(scale.shape, feeds[zero.name])}
    return by_either(onnx_model(Graph("spread", (x, scale, wide), graph.outputs, (inner,))), spread)


def _with_offset(a: Attrs, *arrays: np.ndarray | None) -> np.ndarray:
    """Element by element, with one zero point or none: of the block along the last axis, or of the row."""
    x, scale, zero, offset, high = [*arrays, None][:5]
    assert x is not None
    assert scale is not None
    out = np.empty(x.shape, np.float32)
    for at in np.ndindex(*x.shape):
        place = (at[0], at[1] // a["block"]) if a["block"] else at[:1]
        number = int(x[at]) + (0 if high is None else 16 * int(high[at])) - (0 if zero is None else int(zero))
        out[at] = np.float32(number) * scale[place] + (0 if offset is None else offset[place])
    return out


def _one_bit(to: DType, x: np.ndarray) -> np.ndarray:
    """Of one bit, which ONNX lacks: as in other packed integers, the lowest bit of a number cut to a whole one."""
    return np.array([int(v) & 1 if to is DType.U1 else int(v) for v in x.flat]).reshape(x.shape).astype(to.numpy)


def _float_zero_point(a: Attrs, x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """MatMulNBits' zero points of the scale's type, one for each block of the last axis."""
    out = np.empty(x.shape, np.float32)
    for i, j in np.ndindex(*x.shape):
        k = j // a["block"]
        out[i, j] = (np.float32(x[i, j]) - zero[i, k]) * scale[i, k]
    return out.astype(a["dtype"].numpy)


def _unpacked(a: Attrs, x: np.ndarray) -> np.ndarray:
    dtype = a["dtype"]
    shape = (*x.shape[:-1], x.shape[-1] * 8 // dtype.bits)
    if dtype not in ELEMENT:  # ONNX has no integers of one bit
        return np.unpackbits(x, bitorder="little").reshape(shape).astype(dtype.numpy)
    return numpy_helper.to_array(helper.make_tensor("x", ELEMENT[dtype], shape, x.tobytes(), raw=True))


def _topk(a: Attrs, x: np.ndarray) -> list[np.ndarray]:
    """The values and the indices of ONNX's TopK, by onnxruntime."""
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=a["axis"], largest=a["largest"])
    body = helper.make_graph(
        [node], "topk", [helper.make_tensor_value_info("x", element, x.shape)],
        [helper.make_tensor_value_info(*y, None) for y in (("v", element), ("i", TensorProto.INT64))],
        [numpy_helper.from_array(i64([a["k"]]), "k")],
    )  # fmt: skip
    return by_either(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), {"x": x})


def _dynamic_range(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The scale and the zero point of ONNX's DynamicQuantizeLinear."""
    (x,) = feeds.values()
    types = (("y", TensorProto.UINT8), ("scale", TensorProto.FLOAT), ("zero", TensorProto.UINT8))
    body = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], [n for n, _ in types])], "range",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(n, t, x.shape if n == "y" else ()) for n, t in types],
    )  # fmt: skip
    return by_either(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), {"x": x})[1:]


def _rsqrt(a: Attrs, x: np.ndarray) -> np.ndarray:
    return torch.rsqrt(torch.from_numpy(x)).numpy()


def _window_taps(a: Attrs, x: np.ndarray) -> np.ndarray:
    """torch's unfold of each axis, of an axis' taps the nearest inside where one is in the padding."""
    y, rank = torch.from_numpy(x), x.ndim - 2
    for i in range(rank):
        size, (kernel, stride, dilation) = x.shape[2 + i], (a[k][i] for k in ("kernel_shape", "strides", "dilations"))
        reach, begin, end = (kernel - 1) * dilation + 1, a["pads"][i], a["pads"][rank + i]
        count = -(-(size + begin + end - reach) // stride) if a["ceil_mode"] else (size + begin + end - reach) // stride
        begins = [s for s in range(-begin, -begin + (count + 1) * stride, stride) if s < size or not a["ceil_mode"]]
        rows = []
        for s in begins:
            taps = list(range(s, s + reach, dilation))
            while taps[0] < 0:
                taps = [taps[1] if t == taps[0] else t for t in taps] if len(set(taps)) > 1 else [0] * kernel
            while taps[-1] >= size:
                low = max((t for t in taps if t < taps[-1]), default=size - 1)
                taps = [low if t == taps[-1] else t for t in taps]
            rows.append(taps)
        picked = y.index_select(2 + i, torch.tensor(rows).reshape(-1))
        y = picked.unflatten(2 + i, (len(rows), kernel)).movedim(3 + i, -1)
    return y.flatten(2 + rank).numpy()


def _block_terms(a: Attrs, x: np.ndarray) -> np.ndarray:
    """torch's fold of each tap alone."""
    taps = int(np.prod(a["block_shape"]))
    rank = len(a["block_shape"])
    wide = x.astype(np.float64).reshape(x.shape[0], -1, taps, x.shape[2])
    folded = []
    for t in range(taps):
        alone = np.zeros_like(wide)
        alone[:, :, t] = wide[:, :, t]
        larger = [d + a["pads"][i] + a["pads"][rank + i] for i, d in enumerate(a["image_shape"])]
        image = torch.nn.functional.fold(
            torch.from_numpy(alone.reshape(x.shape)), larger, a["block_shape"], a["dilations"], 0, a["strides"]
        )
        cut = tuple(slice(p, p + d) for p, d in zip(a["pads"], a["image_shape"]))
        folded.append(image.numpy()[(slice(None), slice(None), *cut)])
    return np.stack(folded, -1).astype(x.dtype)


def _grouped_products(a: Attrs, x: np.ndarray, matrices: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Row by row: the matrix of the first group that ends behind the row, of which there may be none."""
    y = np.zeros((len(x), matrices.shape[2]))
    for r, row in enumerate(x.astype(np.float64)):
        own = np.flatnonzero(ends > r)
        y[r] = row @ matrices[own[0]] if own.size else 0
    return y.astype(x.dtype)


def _grid_sample(a: Attrs, x: np.ndarray, grid: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """torch's, in f64, of normalised positions and of the image of each grid."""
    wide = torch.from_numpy(x if image is None else x[image]).double()
    at, sizes = torch.from_numpy(grid).double(), torch.tensor(x.shape[:1:-1])
    if a["pixels"]:
        at = at * 2 / (sizes - 1) - 1 if a["align_corners"] else (at * 2 + 1) / sizes - 1
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(a["mode"], a["mode"])
    y = torch.nn.functional.grid_sample(wide, at, mode, a["padding_mode"], bool(a["align_corners"]))
    return np.asarray(y.numpy().astype(x.dtype))


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10, word by word as its authors' text has it."""
    for r in range(10):
        if r:
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
    return counter


def _uniform(a: Attrs) -> np.ndarray:
    numbers = []
    for place in range(int(np.prod(a["shape"]))):
        words = philox([place % 2**32, place >> 32, 0, 0], [a["seed"] % 2**32, a["seed"] >> 32])[2 * a["half"] :]
        wide = a["dtype"] is DType.F64
        numbers.append(((words[0] << 32 | words[1]) >> 11) / 2**53 if wide else (words[0] >> 8) / 2**24)
    return np.array(numbers).reshape(a["shape"]).astype(a["dtype"].numpy)


# operators that ONNX does not have, and those that have no zero points here
DIRECT: dict[str, Callable[..., np.ndarray]] = {
    **torch_oracles.DIRECT,
    "Rsqrt": _rsqrt,
    "Dims": lambda a: i64(a["values"]).reshape(a["shape"]),
    "MatMulInteger": _integer_product,
    "ConvInteger": _integer_convolution,
    "MatMulFloat8": _float8_product,
    "GroupedMatMul": _grouped_products,
    "ConvFloat8": _float8_convolution,
    "UnpackBits": _unpacked,
    "TopKIndices": lambda a, x: _topk(a, x)[1],
    "SuppressOverlaps": order_oracle.suppressed,
    "SortIndices": lambda a, x: _topk({**a, "axis": x.ndim - 1, "k": x.shape[-1]}, x)[1],
    "Uniform": _uniform,
    "WindowTaps": _window_taps,
    "BlockTerms": _block_terms,
    "PagedLengths": paged_oracle.lengths,
    "PagedSlots": paged_oracle.slots,
    "PagedRead": paged_oracle.dense,
}
