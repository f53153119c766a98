"""Quantised models as ONNX Runtime's quantiser writes them, against ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import Array, compare, evaluate, floats, model, one_node, runtime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

N = helper.make_node
CPU_LAYOUT = helper.make_opsetid("com.microsoft.nchwc", 1)


def _u8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _i8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)


def _close(proto: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """Equal but for results on the edge between two steps, which differ by one."""
    ours, theirs = evaluate(import_onnx(proto), feeds), runtime(proto, feeds)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        else:
            off = np.abs(a.astype(int) - b.astype(int))
            assert off.max() <= 1
            assert np.mean(off != 0) < 0.01


SCALES: dict[int, Array] = {1: np.float32(0.02), 2: np.uint8(120)}
SECOND: dict[int, Array] = {4: np.float32(0.015), 5: np.uint8(100)}
RESULT: dict[int, Array] = {6: np.float32(0.05), 7: np.uint8(110)}
UNARY: dict[int, Array] = {**SCALES, 3: np.float32(0.025), 4: np.uint8(90)}


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_binary_operators(op: str) -> None:
    fixed = {**SCALES, **SECOND, **RESULT}
    _close(*one_node(op, 17, [_u8(2, 3, 4), None, None, _u8(3, 1, seed=1)], {}, fixed, domain="com.microsoft"))


@pytest.mark.parametrize(
    ("op", "attrs", "shape"),
    [
        ("QLinearSigmoid", {}, (3, 8)),
        ("QLinearLeakyRelu", {"alpha": 0.2}, (3, 8)),
        ("QLinearSoftmax", {"axis": -1, "opset": 13}, (3, 8)),
        ("QLinearGlobalAveragePool", {}, (2, 3, 5, 4)),
        ("QLinearGlobalAveragePool", {"channels_last": 1}, (2, 5, 4, 3)),
        ("QLinearAveragePool", {"kernel_shape": [2, 2], "strides": [2, 1]}, (2, 3, 5, 4)),
    ],
)
def test_unary_operators(op: str, attrs: dict[str, Any], shape: tuple[int, ...]) -> None:
    fixed = {**UNARY, 3: np.float32(1 / 256), 4: np.uint8(0)} if op in ("QLinearSigmoid", "QLinearSoftmax") else UNARY
    _close(*one_node(op, 17, [_u8(*shape)], attrs, fixed, domain="com.microsoft"))


def test_concatenation_and_choice() -> None:
    fixed = {0: np.float32(0.03), 1: np.uint8(10), 3: np.float32(0.02), 4: np.uint8(7), 6: np.float32(0.04)}
    proto, feeds = one_node(
        "QLinearConcat", 17, [None, None, _u8(2, 3), None, None, _u8(2, 2, seed=1)], {"axis": 1},
        {**fixed, 7: np.uint8(0)}, domain="com.microsoft",
    )  # fmt: skip
    _close(proto, feeds)
    fixed = {2: np.float32(0.02), 3: np.uint8(9), 5: np.float32(0.03), 6: np.uint8(0), 7: np.float32(0.04)}
    condition = np.array([[True], [False]])
    proto, feeds = one_node(
        "QLinearWhere", 17, [condition, _u8(2, 3), None, None, _u8(2, 3, seed=1)], {}, {**fixed, 8: np.uint8(3)},
        domain="com.microsoft",
    )  # fmt: skip
    _close(proto, feeds)


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_gemm(quantised: bool, per_channel: bool) -> None:
    scale, zero = (floats(5) ** 2 + 0.01, np.zeros(5, np.int8)) if per_channel else (np.float32(0.02), np.int8(0))
    fixed = {**SCALES, 3: _i8(5, 7), 4: scale, 5: zero, 6: np.arange(-2, 3, dtype=np.int32) * 90}
    if quantised:
        fixed |= {7: np.float32(3.0), 8: np.uint8(128)}
    _close(*one_node("QGemm", 17, [_u8(4, 7)], {"transB": 1}, fixed, domain="com.microsoft"))


@pytest.mark.parametrize("shapes", [((), (1,)), ((1,), ()), ((1,), (1,))])
def test_parameters_of_one_element_may_have_a_dimension(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    scale, zero = np.full(shapes[0], 0.1, np.float32), np.full(shapes[1], 3, np.uint8)
    quantise = N("QuantizeLinear", ["x", "s", "z"], ["q"])
    both = [quantise, N("DequantizeLinear", ["q", "s", "z"], ["y"])]
    proto = model(both, {"x": (np.float32, [2, 3])}, ["y", "q"], {"s": scale, "z": zero})
    ours = evaluate(import_onnx(proto), {"x": floats(2, 3)})
    want = np.clip(np.rint(floats(2, 3) / np.float32(0.1)) + 3, 0, 255)
    np.testing.assert_array_equal(ours[1], want)
    np.testing.assert_allclose(ours[0], (want - 3) * 0.1, rtol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_integer_images_are_resized(mode: str) -> None:
    attrs = {"mode": mode, "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    scales = np.array([1, 1, 2, 2], np.float32)
    compare(*one_node("Resize", 13, [_u8(1, 2, 3, 4)], attrs, {2: scales}))


def test_a_file_for_one_kind_of_cpu_is_refused_with_a_remedy() -> None:
    node = N("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    proto = model([node], {"x": (np.float32, [1, 8, 4, 4])}, ["y"], {"w": floats(8, 8, 3, 3)}, opsets=[CPU_LAYOUT])
    with pytest.raises(UnsupportedError, match="nchwc") as caught:
        import_onnx(proto)
    assert "ORT_ENABLE_EXTENDED" in str(caught.value.hint)


# -------------------------------------------------------------------------------------------------- whole models


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: dict[str, Array]) -> None:
        self.rest = [feeds]

    def get_next(self) -> dict[str, Array] | None:
        return self.rest.pop() if self.rest else None


def _network(path: Path) -> dict[str, Array]:
    """Convolution, normalisation by two affine steps, a gate, a branch that is concatenated, pool, product."""
    weights = {
        "w": floats(6, 3, 3, 3) / 5, "b": floats(6, seed=1), "s": floats(6, 1, 1, seed=2), "t": floats(6, 1, 1, seed=3),
        "v": floats(4, 12, seed=4) / 3, "c": floats(4, seed=5),
    }  # fmt: skip
    nodes = [
        N("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4), N("Mul", ["h", "s"], ["n"]), N("Add", ["n", "t"], ["m"]),
        N("Sigmoid", ["m"], ["g"]), N("Mul", ["m", "g"], ["a"]), N("LeakyRelu", ["m"], ["l"], alpha=0.1),
        N("Concat", ["a", "l"], ["k"], axis=1), N("GlobalAveragePool", ["k"], ["p"]), N("Flatten", ["p"], ["f"]),
        N("Gemm", ["f", "v", "c"], ["y"], transB=1),
    ]  # fmt: skip
    proto = model(nodes, {"x": (np.float32, ["n", 3, 8, 8])}, ["y"], weights, opset=17)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return {"x": floats(2, 3, 8, 8, seed=6)}


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
def test_static_quantisation(form: QuantFormat, per_channel: bool, kind: QuantType, tmp_path: Path) -> None:
    feeds = _network(tmp_path / "m.onnx")
    logging.disable(logging.WARNING)
    quantize_static(
        tmp_path / "m.onnx", tmp_path / "q.onnx", _Reader(feeds), quant_format=form, per_channel=per_channel,
        weight_type=kind, activation_type=QuantType.QUInt8,
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    proto = onnx.load(tmp_path / "q.onnx")
    (got,), (want,) = evaluate(import_onnx(proto), feeds), runtime(proto, feeds)
    # one step of the result's 255 may be off
    assert np.abs(got - want).max() <= np.ptp(want) / 100


def test_dynamic_quantisation(tmp_path: Path) -> None:
    feeds = _network(tmp_path / "m.onnx")
    logging.disable(logging.WARNING)
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=QuantType.QUInt8)
    logging.disable(logging.NOTSET)
    proto = onnx.load(tmp_path / "q.onnx")
    assert {"ConvInteger", "DynamicQuantizeLinear"} <= {n.op_type for n in proto.graph.node}
    (got,), (want,) = evaluate(import_onnx(proto), feeds), runtime(proto, feeds)
    assert np.abs(got - want).max() <= np.ptp(want) / 100


def test_numbers_that_are_not_quantised_are_not_dequantised() -> None:
    node = N("DequantizeLinear", ["x", "s"], ["y"])
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [3]),
              helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])]
    graph = helper.make_graph([node], "g", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    with pytest.raises(ModelError, match="DequantizeLinear"):
        import_onnx(proto)
