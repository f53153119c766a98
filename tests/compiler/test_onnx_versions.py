"""Single operators in the forms of several operator sets, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import compare, floats, ints, one_node

F = floats

# (operator, operator sets, inputs, attributes, constant inputs)
CASES: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any], dict[int, Any]]] = [
    ("Slice", (7, 9), [F(4, 5, 6)], {"starts": [1, -3], "ends": [3, 1000], "axes": [0, 2]}, {}),
    ("Slice", (10, 13, 17), [F(4, 5, 6)], {}, {1: ints(-1, 4), 2: ints(-(2**62), 1), 3: ints(0, 1), 4: ints(-1, -2)}),
    ("Slice", (10, 13), [F(4, 5)], {}, {1: ints(1), 2: ints(2**31 - 1)}),
    ("Slice", (13,), [F(4, 5)], {}, {1: ints(3), 2: ints(1), 3: ints(-1)}),
    ("Squeeze", (7, 11), [F(1, 3, 1)], {"axes": [0, 2]}, {}),
    ("Squeeze", (13, 21), [F(1, 3, 1)], {}, {1: ints(-1)}),
    ("Squeeze", (11, 13), [F(1, 3, 1)], {}, {}),
    ("Unsqueeze", (7, 11), [F(3, 2)], {"axes": [0, 3]}, {}),
    ("Unsqueeze", (13, 21), [F(3, 2)], {}, {1: ints(-1, 1)}),
    ("ReduceSum", (7, 11), [F(3, 4, 5)], {"axes": [1], "keepdims": 0}, {}),
    ("ReduceSum", (13, 17), [F(3, 4, 5)], {}, {1: ints(0, -1)}),
    ("ReduceSum", (13,), [F(3, 4)], {"noop_with_empty_axes": 1}, {}),
    ("ReduceMean", (7, 13), [F(3, 4, 5)], {"axes": [-1]}, {}),
    ("ReduceMean", (18, 20), [F(3, 4, 5)], {"keepdims": 0}, {1: ints(-2)}),
    ("ReduceMax", (12, 13), [F(3, 4)], {}, {}),
    ("ReduceMin", (18,), [F(3, 4)], {}, {1: ints(1)}),
    ("ReduceL2", (11, 13), [F(3, 4)], {"axes": [0]}, {}),
    ("ReduceLogSumExp", (18,), [F(3, 4)], {}, {1: ints(1)}),
    ("Clip", (7, 10), [F(5, 5)], {"min": -0.5, "max": 0.25}, {}),
    ("Clip", (11, 13), [F(5, 5)], {}, {1: np.float32(-0.5), 2: np.float32(0.25)}),
    ("Clip", (12, 13), [F(5, 5)], {}, {2: np.float32(0.25)}),
    ("Clip", (12, 13), [F(5, 5), np.float32(-0.3)], {}, {}),
    ("Clip", (12,), [ints(1, 5, 9)], {}, {1: np.int64(2), 2: np.int64(7)}),
    ("Pad", (7, 10), [F(3, 4)], {"pads": [1, 0, 2, 3], "mode": "constant", "value": 1.5}, {}),
    ("Pad", (7,), [F(3, 4)], {"pads": [1, 2, 1, 0], "mode": "reflect"}, {}),
    ("Pad", (11, 13), [F(3, 4)], {"mode": "edge"}, {1: ints(1, 2, 1, 0)}),
    ("Pad", (13,), [F(3, 4)], {}, {1: ints(1, -1, 0, 2), 2: np.float32(7)}),
    ("Pad", (18, 19), [F(3, 4, 5)], {}, {1: ints(1, 2), 2: np.float32(7), 3: ints(-2)}),
    ("Pad", (19,), [F(3, 4)], {"mode": "wrap"}, {1: ints(2, 1, 0, 3)}),
    ("Pad", (19,), [F(4, 5)], {"mode": "wrap"}, {1: ints(-2, 3, 3, -1)}),
    ("Pad", (13,), [F(4, 5)], {"mode": "edge"}, {1: ints(-3, 2, 3, -4)}),
    ("Split", (7, 11), [F(6, 4)], {"axis": 0, "split": [1, 5]}, {}),
    ("Split", (11,), [F(6, 4)], {"axis": 1}, {}),
    ("Split", (13,), [F(6, 4)], {"axis": -2}, {1: ints(2, 4)}),
    ("Split", (18,), [F(7, 4)], {"num_outputs": 2}, {}),
    ("Softmax", (7, 11), [F(2, 3, 4)], {}, {}),
    ("Softmax", (11,), [F(2, 3, 4)], {"axis": 2}, {}),
    ("Softmax", (13, 17), [F(2, 3, 4)], {"axis": 1}, {}),
    ("LogSoftmax", (11, 13), [F(2, 3, 4)], {"axis": 0}, {}),
    ("Hardmax", (11, 13), [F(2, 3, 4)], {"axis": 1}, {}),
    ("Dropout", (7, 10), [F(2, 3)], {"ratio": 0.3}, {}),
    ("Dropout", (12, 13), [F(2, 3)], {}, {1: np.float32(0.3), 2: np.bool_(False)}),
    ("Upsample", (7,), [F(1, 2, 3, 4)], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, {}),
    ("Upsample", (9,), [F(1, 2, 3, 4)], {"mode": "linear"}, {1: np.array([1, 1, 2, 2], np.float32)}),
    ("Resize", (10,), [F(1, 2, 3, 4)], {"mode": "nearest"}, {1: np.array([1, 1, 2, 2], np.float32)}),
    (
        "Resize", (11,), [F(1, 2, 3, 4)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {1: np.zeros(0, np.float32), 2: np.zeros(0, np.float32), 3: ints(1, 2, 6, 9)},
    ),
    ("Resize", (13,), [F(1, 2, 4, 4)], {"mode": "cubic"}, {2: np.array([1, 1, 1.5, 2], np.float32)}),
    ("Resize", (18, 19), [F(1, 2, 4, 6)], {"mode": "linear", "axes": [3, 2]}, {3: ints(9, 5)}),
    (
        "Resize", (18,), [F(1, 2, 4, 6)],
        {"mode": "nearest", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}, {3: ints(9, 9)},
    ),
    ("BatchNormalization", (7, 9, 14, 15), [F(2, 3, 4)], {}, {1: F(3), 2: F(3), 3: F(3, seed=2), 4: np.abs(F(3))}),
    ("InstanceNormalization", (7, 17), [F(2, 3, 4)], {"epsilon": 1e-3}, {1: F(3), 2: F(3, seed=1)}),
    ("LayerNormalization", (17,), [F(2, 3, 4)], {"axis": 1}, {1: F(3, 4), 2: F(3, 4, seed=1)}),
    ("GroupNormalization", (18,), [F(2, 6, 5)], {"num_groups": 3}, {1: F(3), 2: F(3, seed=1)}),
    ("GroupNormalization", (21,), [F(2, 6, 5)], {"num_groups": 3}, {1: F(6), 2: F(6, seed=1)}),
    ("LRN", (7, 13), [F(2, 7, 3, 4)], {"size": 3, "alpha": 0.2, "beta": 0.6, "bias": 1.5}, {}),
    ("LpNormalization", (7,), [F(3, 4)], {"axis": 0, "p": 1}, {}),
    ("MeanVarianceNormalization", (9, 13), [F(2, 3, 4, 5)], {}, {}),
    ("Flatten", (7, 11, 13), [F(2, 3, 4)], {"axis": 2}, {}),
    ("Flatten", (13,), [F(2, 3, 4)], {"axis": 0}, {}),
    ("Reshape", (7, 13), [F(2, 3, 4)], {}, {1: ints(0, -1)}),
    ("Reshape", (14,), [F(2, 3, 4)], {"allowzero": 1}, {1: ints(4, 6)}),
    ("Gemm", (7, 9), [F(3, 4), F(5, 4)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, {2: F(5)}),
    ("Gemm", (11, 13), [F(4, 3), F(4, 5)], {"transA": 1}, {}),
    ("MatMul", (7, 13), [F(4), F(4)], {}, {}),
    ("MatMul", (13,), [F(2, 3, 4), F(4)], {}, {}),
    ("MatMul", (13,), [F(4), F(2, 4, 5)], {}, {}),
    ("Einsum", (12,), [F(2, 3, 4), F(2, 4, 5)], {"equation": "bij, bjk -> bik"}, {}),
    ("ArgMax", (7, 12), [F(3, 4)], {"axis": -1, "keepdims": 0}, {}),
    ("ArgMin", (12, 13), [np.ones((3, 4), np.float32)], {"select_last_index": 1}, {}),
    ("Gather", (7, 13), [F(5, 3)], {"axis": 0}, {1: ints([0, -1], [2, 2])}),
    ("GatherElements", (11, 13), [F(3, 3)], {"axis": 1}, {1: ints([0, 1], [2, 0])}),
    ("GatherND", (11, 12), [F(3, 4, 5)], {}, {1: ints([0, 1], [2, 3])}),
    ("Scatter", (9,), [F(3, 3)], {"axis": 1}, {1: ints([0, 2]), 2: F(1, 2)}),
    ("ScatterElements", (11, 18), [F(3, 3)], {}, {1: ints([0, 2, 1]), 2: F(1, 3)}),
    ("ScatterElements", (16, 18), [F(3, 3)], {"reduction": "add"}, {1: ints([0, 0, 1]), 2: F(1, 3)}),
    ("ScatterND", (11, 16), [F(4, 3)], {}, {1: ints([0], [2]), 2: F(2, 3, seed=3)}),
    ("OneHot", (9, 11), [ints(0, 2, -1)], {"axis": 0}, {1: np.int64(4), 2: np.array([0.5, 2], np.float32)}),
    ("Tile", (7, 13), [F(2, 3)], {}, {1: ints(2, 3)}),
    ("Expand", (8, 13), [F(3, 1)], {}, {1: ints(2, 1, 4)}),
    ("Trilu", (14,), [F(4, 5)], {"upper": 0}, {1: np.int64(1)}),
    ("EyeLike", (9,), [F(3, 4)], {"k": 1}, {}),
    ("DepthToSpace", (7, 13), [F(1, 8, 2, 3)], {"blocksize": 2}, {}),
    ("DepthToSpace", (11,), [F(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, {}),
    ("SpaceToDepth", (7, 13), [F(1, 2, 4, 6)], {"blocksize": 2}, {}),
    ("CumSum", (11, 14), [F(3, 4)], {"exclusive": 1, "reverse": 1}, {1: np.int64(1)}),
    ("ReverseSequence", (10,), [F(4, 3, 2)], {"time_axis": 0, "batch_axis": 1}, {1: ints(2, 4, 1)}),
    ("Cast", (7, 13), [F(3, 3) * 5], {"to": 7}, {}),
    ("Mod", (10, 13), [ints(7, -7, 5), ints(3, 3, -3)], {}, {}),
    ("Pow", (12, 15), [F(4) ** 2, ints(1, 2, 3, 0)], {}, {}),
    ("Pow", (15,), [ints(1, 2, 3, -2, -1, 5, -1), ints(-4, 3, 33, 31, -3, -1, -2)], {}, {}),
    ("Pow", (13,), [ints(1, 2, 3), np.array([2.0, 0.5, 3.0], np.float32)], {}, {}),
    ("Gelu", (20,), [F(3, 4)], {"approximate": "tanh"}, {}),
    ("HardSwish", (14,), [F(3, 4) * 4], {}, {}),
    ("PRelu", (7, 16), [F(2, 3, 4)], {}, {1: F(3, 1)}),
    ("GlobalAveragePool", (7,), [F(2, 3, 4, 5)], {}, {}),
    ("GlobalMaxPool", (7,), [F(2, 3, 4, 5)], {}, {}),
    ("GlobalLpPool", (7,), [F(2, 3, 4, 5)], {"p": 2}, {}),
    ("LpPool", (11, 18), [F(1, 2, 5, 6)], {"kernel_shape": [2, 3], "p": 3}, {}),
    ("Constant", (13,), [], {"value_floats": [1.0, 2.5]}, {}),
    ("Where", (9, 16), [F(3, 4) > 0, F(3, 4, seed=1), F(4, seed=2)], {}, {}),
    ("Mean", (8, 13), [F(3, 4), F(4, seed=1), F(1, seed=2)], {}, {}),
    ("Max", (8, 12), [F(3, 4)], {}, {}),
    ("Det", (11,), [F(2, 3, 3)], {}, {}),
    ("IsInf", (10,), [np.array([1, np.inf, -np.inf, np.nan], np.float32)], {"detect_negative": 0}, {}),
    ("Celu", (12,), [F(3, 4)], {"alpha": 2.0}, {}),
    ("SoftmaxCrossEntropyLoss", (13,), [F(4, 5)], {"reduction": "sum"}, {1: ints(1, 0, 4, 2)}),
    ("NegativeLogLikelihoodLoss", (13,), [F(4, 5)], {}, {1: ints(1, 0, 4, 2), 2: np.abs(F(5))}),
    ("HannWindow", (17,), [], {"periodic": 0}, {0: np.int64(9)}),
    ("TopK", (7,), [F(3, 6)], {"axis": 0, "k": 2}, {}),
    ("TopK", (10, 11), [F(3, 6)], {}, {1: ints(4)}),
    ("TopK", (11,), [ints([3, 1, 3], [2, 2, 5])], {"axis": 1, "largest": 0}, {1: ints(2)}),
    ("TopK", (11,), [np.round(F(2, 2500) * 2)], {}, {1: ints(200)}),  # of equals the first, across parts of a row
    ("TopK", (11,), [np.where(F(1, 2100) > 3, F(1, 2100), -np.inf)], {"largest": 1}, {1: ints(20)}),
    ("GridSample", (16,), [F(2, 3, 4, 5), F(2, 2, 3, 2)], {"mode": "bicubic", "padding_mode": "reflection"}, {}),
    ("GridSample", (20,), [F(2, 3, 4, 5), F(2, 2, 3, 2)], {"mode": "linear", "align_corners": 1}, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "opset", "feeds", "attrs", "constants"),
    [pytest.param(o, v, f, a, c, id=f"{o}-{v}-{i}") for i, (o, vs, f, a, c) in enumerate(CASES) for v in vs],
)
def test_operator(op: str, opset: int, feeds: list[Any], attrs: dict[str, Any], constants: dict[int, Any]) -> None:
    outputs = 2 if op in ("Split", "TopK") else 1
    arrays = [np.asarray(f) for f in feeds]
    proto, given = one_node(op, opset, arrays, attrs, {k: np.asarray(v) for k, v in constants.items()}, outputs=outputs)
    compare(proto, given)


def test_normalisation_by_the_batchs_own_statistics() -> None:
    statistics = {1: floats(3), 2: floats(3), 3: floats(3, seed=2), 4: np.abs(floats(3))}
    attrs = {"training_mode": 1, "momentum": 0.8}
    proto, feeds = one_node("BatchNormalization", 15, [floats(2, 3, 4)], attrs, statistics, outputs=3)
    compare(proto, feeds)


WINDOWS: list[dict[str, Any]] = [
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    {"auto_pad": "VALID", "strides": [1, 2]},
    {"pads": [1, 0, 2, 1], "dilations": [2, 1]},
]


@pytest.mark.parametrize("attrs", WINDOWS)
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
def test_convolution_pads(attrs: dict[str, Any], size: tuple[int, int]) -> None:
    weights = {1: floats(6, 2, 3, 2), 2: floats(6)}
    proto, feeds = one_node("Conv", 13, [floats(1, 4, *size)], {**attrs, "group": 2}, weights)
    compare(proto, feeds)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attrs", WINDOWS[:3])
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
def test_pool_pads(op: str, attrs: dict[str, Any], size: tuple[int, int]) -> None:
    proto, feeds = one_node(op, 13, [floats(1, 2, *size)], {**attrs, "kernel_shape": [3, 2]})
    compare(proto, feeds)


@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
def test_same_pads_of_open_dimensions_become_a_pad_node(size: tuple[int, int]) -> None:
    """The odd row of padding depends on the parity of a dimension that is not known while importing."""
    attrs = {"auto_pad": "SAME_UPPER", "strides": [2, 2], "kernel_shape": [2, 2]}
    proto, feeds = one_node("MaxPool", 13, [-np.abs(floats(1, 2, *size))], attrs, open_dims=True)
    graph = compare(proto, feeds)
    assert [n.op for n in graph.nodes] == ["Pad", "MaxPool"]


@pytest.mark.parametrize(
    "attrs",
    [
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]},
        {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [3, 2], "output_shape": [10, 9]},
        {"dilations": [2, 1], "group": 2},
    ],
)
def test_transposed_convolution(attrs: dict[str, Any]) -> None:
    proto, feeds = one_node("ConvTranspose", 11, [floats(1, 4, 3, 4)], attrs, {1: floats(4, 3, 3, 3)})
    compare(proto, feeds)
