"""ONNX models of 8-bit floats on both sides of products, as engines on the simulator, against onnx.reference."""

from __future__ import annotations

import re
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.driver.api import compile as compile_model
from arcweld.runtime.engine import Engine

Arrays = dict[str, np.ndarray]
N = helper.make_node
TYPES = {"e4m3": TensorProto.FLOAT8E4M3FN, "e5m2": TensorProto.FLOAT8E5M2}
NUMPY = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def float8(name: str, x: np.ndarray, kind: str = "e4m3") -> onnx.TensorProto:
    """An initializer of 8-bit floats."""
    packed = x.astype(NUMPY[kind]).view(np.uint8).tobytes()
    return helper.make_tensor(name, TYPES[kind], x.shape, packed, raw=True)


def made(
    nodes: list[onnx.NodeProto], x: tuple[int | str, ...], weights: Arrays, packed: list[onnx.TensorProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "float8", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*(numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()), *packed],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def quantised(of: str, kind: str = "e4m3", scale: str = "sx", **attrs: int) -> list[onnx.NodeProto]:
    """``of`` to 8-bit floats and back: ``of``d."""
    return [
        N("QuantizeLinear", [of, scale], [f"{of}q"], output_dtype=TYPES[kind], **attrs),
        N("DequantizeLinear", [f"{of}q", scale], [f"{of}d"], **attrs),
    ]


def one_scale() -> tuple[onnx.ModelProto, np.ndarray]:
    """MatMul with one scale for each operand."""
    nodes = [*quantised("x"), N("DequantizeLinear", ["w", "sw"], ["wd"]), N("MatMul", ["xd", "wd"], ["y"])]
    weights = {"sx": np.float32(0.01), "sw": np.float32(0.02)}
    return made(nodes, ("n", 48), weights, [float8("w", floats(48, 40, seed=1) * 60)]), floats(33, 48, seed=2)


def scales_of_columns() -> tuple[onnx.ModelProto, np.ndarray]:
    """Gemm by a transposed weight with a scale for each column, and a bias; then a second one of the other type."""
    nodes = [
        *quantised("x"), N("DequantizeLinear", ["w", "sw"], ["wd"], axis=0),
        N("Gemm", ["xd", "wd", "c"], ["h"], transB=1, alpha=0.5), N("Relu", ["h"], ["r"]),
        *quantised("r", "e5m2", "sr"), N("DequantizeLinear", ["v", "sw"], ["vd"], axis=1),
        N("MatMul", ["rd", "vd"], ["y"]),
    ]  # fmt: skip
    weights = {
        "sx": np.float32(0.01), "sw": np.linspace(0.01, 0.02, 64, dtype=np.float32), "sr": np.float32(0.1),
        "c": floats(64, seed=3),
    }  # fmt: skip
    packed = [float8("w", floats(64, 48, seed=1) * 60), float8("v", floats(64, 64, seed=4) * 60, "e5m2")]
    return made(nodes, (35, 48), weights, packed), floats(35, 48, seed=2)


def scales_of_rows() -> tuple[onnx.ModelProto, np.ndarray]:
    """A dynamic scale for each row, as quantisers of tokens compute it: the row's largest magnitude by 448."""
    nodes = [
        N("Abs", ["x"], ["m"]), N("ReduceMax", ["m", "axes"], ["t"], keepdims=1), N("Div", ["t", "top"], ["s"]),
        *quantised("x", scale="s", axis=1, block_size=48), N("DequantizeLinear", ["w", "sw"], ["wd"], axis=1),
        N("MatMul", ["xd", "wd"], ["y"]),
    ]  # fmt: skip
    weights = {
        "axes": np.array([1]), "top": np.float32(448), "sw": np.linspace(0.01, 0.02, 40, dtype=np.float32),
    }
    return made(nodes, ("n", 48), weights, [float8("w", floats(48, 40, seed=1) * 60)]), floats(21, 48, seed=2)


def convolutions() -> tuple[onnx.ModelProto, np.ndarray]:
    """A padded convolution with a scale for each filter and a bias, then a strided one."""
    nodes = [
        *quantised("x"), N("DequantizeLinear", ["w", "sw"], ["wd"], axis=0),
        N("Conv", ["xd", "wd", "c"], ["h"], pads=[1] * 4), N("Relu", ["h"], ["r"]), *quantised("r", "e4m3", "sr"),
        N("DequantizeLinear", ["v", "sv"], ["vd"]), N("Conv", ["rd", "vd"], ["y"], strides=[2, 2]),
    ]  # fmt: skip
    weights = {
        "sx": np.float32(0.01), "sw": np.linspace(0.01, 0.02, 32, dtype=np.float32), "sr": np.float32(0.1),
        "sv": np.float32(0.01), "c": floats(32, seed=3),
    }  # fmt: skip
    packed = [float8("w", floats(32, 16, 3, 3, seed=1) * 60), float8("v", floats(16, 32, 3, 3, seed=4) * 60)]
    return made(nodes, (2, 16, 9, 8), weights, packed), floats(2, 16, 9, 8, seed=2)


def few_rows() -> tuple[onnx.ModelProto, np.ndarray]:
    """Three rows, of which kernels read the weights as they are."""
    proto, x = one_scale()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    return proto, x[:3]


# kernels of products for sm_80 and newer, and for sm_90a; the first convolution reads its input channels-first
MODELS = {one_scale: (1, 1), scales_of_columns: (2, 2), scales_of_rows: (1, 1), convolutions: (2, 1), few_rows: (0, 0)}


def products(engine: Engine) -> tuple[int, int]:
    """How many kernels multiply 8-bit floats, portable ones and wgmma; none computes in f64."""
    sources = list(engine.data.sources.values())
    assert not any(re.search(r"\b(f64|double)\b", s) for s in sources)
    found = [s for s in sources if re.search(r"f8e\w+ x f8e\w+ operands", s)]
    return sum("multiply_stage" in s for s in found), sum("wgmma" in s for s in found)


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_model_matches_the_reference(
    build: Callable[[], tuple[onnx.ModelProto, np.ndarray]], precision: str
) -> None:
    proto, x = build()
    (want,) = ReferenceEvaluator(proto).run(None, {"x": x})
    engine = compile_model(proto, device="sim", precision=precision)
    got = engine(x)
    # f32 sums, or what is between two products rounded to f16
    limit = 1e-6 if precision == "fp32" else 1e-3
    np.testing.assert_allclose(got, want, rtol=0, atol=limit * float(np.abs(want).max()))
    assert products(engine) == MODELS[build]
    assert any("multiply_piece" in s for s in engine.data.sources.values()) == (build is few_rows)


@pytest.mark.parametrize(
    ("scale", "axis"),
    [
        (np.ones(3, np.float32), 1), (np.ones((48, 40), np.float32), 1), (np.ones(40, np.float32), 5),
        (np.ones(40, np.int32), 1), (np.ones(40, np.float64), 0),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_are_refused(scale: np.ndarray, axis: int) -> None:
    nodes = [*quantised("x"), N("DequantizeLinear", ["w", "sw"], ["wd"], axis=axis), N("MatMul", ["xd", "wd"], ["y"])]
    proto = made(nodes, ("n", 48), {"sx": np.float32(0.01), "sw": scale}, [float8("w", floats(48, 40))])
    with pytest.raises((ModelError, UnsupportedError)) as caught:
        compile_model(proto, device="sim")
    assert "DequantizeLinear" in str(caught.value)
