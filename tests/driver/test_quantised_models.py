"""Models that ONNX Runtime's quantiser wrote, as engines on the simulator, against ONNX Runtime.

It computes them as they are written, QDQ pairs in f32. So results are equal but for those that lie between two steps.
(Optimised, it joins operators and rounds otherwise: then some steps differ.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from arcweld.driver.api import compile as compile_model
from arcweld.runtime.engine import Engine

Arrays = dict[str, np.ndarray]
N = helper.make_node


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def made(
    nodes: list[onnx.NodeProto], x: tuple[int | str, ...], y: tuple[int | str, ...], weights: Arrays
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "quantised", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def cnn() -> tuple[onnx.ModelProto, np.ndarray]:
    """Strided, padded, depthwise and pointwise convolutions, a pool, a residual sum and a dense layer."""
    weights = {
        "w1": floats(16, 3, 3, 3) / 5, "b1": floats(16, seed=1), "w2": floats(32, 16, 3, 3, seed=2) / 12,
        "b2": floats(32, seed=3), "w3": floats(32, 1, 3, 3, seed=4) / 3, "b3": floats(32, seed=7),
        "w4": floats(32, 32, 1, 1, seed=9) / 6, "b4": floats(32, seed=10), "v": floats(10, 32, seed=5) / 6,
        "c": floats(10, seed=6),
    }  # fmt: skip
    nodes = [
        N("Conv", ["x", "w1", "b1"], ["h1"], pads=[1] * 4, strides=[2, 2]), N("Relu", ["h1"], ["r1"]),
        N("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        N("Conv", ["p1", "w2", "b2"], ["h2"], pads=[1] * 4), N("Relu", ["h2"], ["r2"]),
        N("Conv", ["r2", "w3", "b3"], ["h3"], pads=[1] * 4, group=32), N("Relu", ["h3"], ["r3"]),
        N("Conv", ["r3", "w4", "b4"], ["h4"]), N("Add", ["h4", "r2"], ["s"]), N("Relu", ["s"], ["r4"]),
        N("GlobalAveragePool", ["r4"], ["p"]), N("Flatten", ["p"], ["f"]),
        N("Gemm", ["f", "v", "c"], ["y"], transB=1),
    ]  # fmt: skip
    return made(nodes, ("n", 3, 16, 16), ("n", 10), weights), floats(2, 3, 16, 16, seed=6)


def resnet() -> tuple[onnx.ModelProto, np.ndarray]:
    """A stem with a pool, a basic block, one with a stride and a projection, and a bottleneck."""
    nodes: list[onnx.NodeProto] = []
    weights: Arrays = {"v": floats(10, 32, seed=55) / 6, "c": floats(10, seed=56)}

    def conv(x: str, y: str, cin: int, cout: int, k: int, stride: int = 1) -> str:
        seed = len(weights)
        weights[f"{y}.w"] = floats(cout, cin, k, k, seed=seed) / np.float32(np.sqrt(cin * k * k))
        weights[f"{y}.b"] = floats(cout, seed=seed + 1) / 10
        nodes.append(N("Conv", [x, f"{y}.w", f"{y}.b"], [y], pads=[k // 2] * 4, strides=[stride] * 2))
        return y

    def relu(x: str) -> str:
        nodes.append(N("Relu", [x], [f"{x}.relu"]))
        return f"{x}.relu"

    def add(a: str, b: str) -> str:
        nodes.append(N("Add", [a, b], [f"{a}.sum"]))
        return relu(f"{a}.sum")

    stem = relu(conv("x", "stem", 3, 16, 7, 2))
    nodes.append(N("MaxPool", [stem], ["pool"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]))
    x = add(conv(relu(conv("pool", "a1", 16, 16, 3)), "a2", 16, 16, 3), "pool")
    x = add(conv(relu(conv(x, "b1", 16, 32, 3, 2)), "b2", 32, 32, 3), conv(x, "b3", 16, 32, 1, 2))
    x = add(conv(relu(conv(relu(conv(x, "c1", 32, 16, 1)), "c2", 16, 16, 3)), "c3", 16, 32, 1), x)
    nodes += [N("GlobalAveragePool", [x], ["g"]), N("Flatten", ["g"], ["f"])]
    nodes.append(N("Gemm", ["f", "v", "c"], ["y"], transB=1))
    return made(nodes, ("n", 3, 32, 32), ("n", 10), weights), floats(2, 3, 32, 32, seed=6)


def transformer() -> tuple[onnx.ModelProto, np.ndarray]:
    """One block of attention and an MLP, each with a residual sum."""
    d, heads = 32, 2
    weights = {f"w{k}": floats(d, d, seed=i) / 6 for i, k in enumerate("qkvo")}
    weights |= {
        "w1": floats(d, 2 * d, seed=8) / 6, "b1": floats(2 * d, seed=10), "w2": floats(2 * d, d, seed=9) / 8,
        "b2": floats(d, seed=11), "g": floats(d, seed=12), "b": floats(d, seed=13),
        "split": np.array([0, 0, heads, d // heads]), "join": np.array([0, 0, d]),
        "s": np.float32((d // heads) ** -0.5),
    }  # fmt: skip
    nodes = []
    for k in "qkv":
        perm = [0, 2, 3, 1] if k == "k" else [0, 2, 1, 3]
        nodes += [N("MatMul", ["x", f"w{k}"], [f"{k}0"]), N("Reshape", [f"{k}0", "split"], [f"{k}1"]),
                  N("Transpose", [f"{k}1"], [f"{k}2"], perm=perm)]  # fmt: skip
    nodes += [
        N("MatMul", ["q2", "k2"], ["a0"]), N("Mul", ["a0", "s"], ["a1"]), N("Softmax", ["a1"], ["a2"], axis=-1),
        N("MatMul", ["a2", "v2"], ["c0"]), N("Transpose", ["c0"], ["c1"], perm=[0, 2, 1, 3]),
        N("Reshape", ["c1", "join"], ["c2"]), N("MatMul", ["c2", "wo"], ["o"]), N("Add", ["o", "x"], ["r"]),
        N("LayerNormalization", ["r", "g", "b"], ["l"], axis=-1), N("MatMul", ["l", "w1"], ["f0"]),
        N("Add", ["f0", "b1"], ["f1"]), N("Relu", ["f1"], ["f2"]), N("MatMul", ["f2", "w2"], ["f3"]),
        N("Add", ["f3", "b2"], ["f4"]), N("Add", ["f4", "l"], ["y"]),
    ]  # fmt: skip
    return made(nodes, (2, 20, d), (2, 20, d), weights), floats(2, 20, d, seed=6)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: np.ndarray) -> None:
        self.rest = [{"x": x}]

    def get_next(self) -> Arrays | None:
        return self.rest.pop() if self.rest else None


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def by_onnxruntime(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def products(engine: Engine) -> list[str]:
    """The sources of the engine's kernels that multiply integers; none computes in f64."""
    sources = list(engine.data.sources.values())
    assert not any(re.search(r"\b(f64|double)\b", s) for s in sources)
    return [s for s in sources if "i32 accumulation" in s or "i32 acc" in s]


MODELS = [cnn, resnet, transformer]
MULTIPLICATIONS = {cnn: 5, resnet: 9, transformer: 5}  # distinct kernels of them
LAUNCHES = {cnn: 17, resnet: 30, transformer: 10}  # of those that are quantised dynamically, whatever the weights' type


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda f: f.name)
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=lambda k: k.name)
def test_static_quantisation(
    build: Callable[[], tuple[onnx.ModelProto, np.ndarray]], form: QuantFormat, kind: QuantType, tmp_path: Path
) -> None:
    proto, x = build()
    onnx.save(proto, tmp_path / "m.onnx")
    quantize_static(
        tmp_path / "m.onnx", tmp_path / "q.onnx", Reader(x), quant_format=form, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=kind,
    )  # fmt: skip
    proto = onnx.load(tmp_path / "q.onnx")
    want, engine = by_onnxruntime(proto, x), compile_model(proto, device="sim")
    got = engine(x)
    step = float(np.ptp(want)) / 255
    assert np.abs(got - want).max() <= 1.01 * step
    assert np.mean(np.abs(got - want) > 1e-5 * step) < 0.02
    assert len(products(engine)) >= MULTIPLICATIONS[build]
    if build is not transformer:  # whose norm and attention are f32
        assert {t.dtype for t in engine.data.program.temps} <= {"i8", "u8"}


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=lambda k: k.name)
def test_dynamic_quantisation(
    build: Callable[[], tuple[onnx.ModelProto, np.ndarray]], kind: QuantType, tmp_path: Path
) -> None:
    proto, x = build()
    onnx.save(proto, tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=kind)
    proto = onnx.load(tmp_path / "q.onnx")
    # builds of one of the kinds are verified too
    verify = "off" if kind is QuantType.QInt8 else "quick"
    want, engine = by_onnxruntime(proto, x), compile_model(proto, device="sim", verify=verify)
    np.testing.assert_allclose(engine(x), want, rtol=0, atol=2e-6 * float(np.ptp(want)))
    assert products(engine)
    assert len(engine.data.program.launches) <= LAUNCHES[build]
