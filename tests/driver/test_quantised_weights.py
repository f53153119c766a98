"""Engines of quantised models hold their weights as the files do, and give what ONNX Runtime gives."""

from __future__ import annotations

import itertools
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import arcweld
from arcweld import Engine
from arcweld.compiler.errors import ArcweldError, InputError, ModelError
from arcweld.compiler.ir import Weight
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import build_data
from arcweld.models.builders import build, export_onnx
from arcweld.models.catalogue import MODELS
from arcweld.models.fetch import fetch

LIMIT = 1.05  # of the bytes of a file's weights
EVERY = pytest.mark.skipif("ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.INFO)  # the quantiser tells every node
    yield
    logging.disable(logging.NOTSET)


def bytes_of(engine: Engine) -> int:
    return sum(w.nbytes for w in engine.data.weights.values())


def bytes_in(model: onnx.ModelProto) -> int:
    return sum(len(t.raw_data) for t in model.graph.initializer)


def quantised(model: onnx.ModelProto, block: int, symmetric: bool, form: QuantFormat) -> onnx.ModelProto:
    quantiser = MatMulNBitsQuantizer(model, block_size=block, is_symmetric=symmetric, quant_format=form)
    quantiser.process()
    found: onnx.ModelProto = quantiser.model.model
    return found


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(np.abs(want).max()))


# ---------------------------------------------------------------------------------------------------- published models


ENCODERS = [
    pytest.param(form, symmetric, block, marks=[EVERY] if (i + j + k) % 2 else [])
    for (i, form), (j, symmetric), (k, block) in itertools.product(
        enumerate([QuantFormat.QOperator, QuantFormat.QDQ]), enumerate([True, False]), enumerate([32, 128])
    )
]


@pytest.mark.models
@pytest.mark.parametrize(("form", "symmetric", "block"), ENCODERS)
def test_a_sentence_encoder_in_4_bits(form: QuantFormat, symmetric: bool, block: int, tmp_path: Path) -> None:
    """MatMulNBits and blocked DequantizeLinear of a published BERT, at the catalogue's own sentences.

    Each pair of a form, of zero points and of a block's size occurs; all eight with ``ARCWELD_EVERY=1``.
    Both sides multiply f32 by the same dequantised numbers: what differs is the order of sums.
    """
    entry = MODELS["minilm_l3"]
    model = quantised(onnx.load(fetch("minilm_l3")), block, symmetric, form)
    kinds = {n.op_type for n in model.graph.node}
    assert ("MatMulNBits" if form is QuantFormat.QOperator else "DequantizeLinear") in kinds
    onnx.save(model, tmp_path / "m.onnx")
    engine = arcweld.compile(tmp_path / "m.onnx", device="sim", **_import_options(entry))
    assert bytes_of(engine) <= LIMIT * bytes_in(model)
    feeds = entry.feeds()
    options = ort.SessionOptions()  # optimised, the runtime rounds activations to 8 bits before such products
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    want = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    got = engine.run({t.name: feeds[t.name] for t in engine.inputs})
    for w, g in zip(want, got.values(), strict=True):
        close(g, w, 1e-4)


@pytest.mark.models
def test_a_published_encoder_of_8_bits() -> None:
    """Weights as int8 arrays that casts and products widen; the file is read by ONNX Runtime too."""
    entry = MODELS["minilm_l6_int8"]
    path = fetch("minilm_l6_int8")
    engine = arcweld.compile(path, device="sim", **_import_options(entry))
    assert bytes_of(engine) <= LIMIT * path.stat().st_size
    feeds = entry.feeds()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    got = engine.run({t.name: feeds[t.name] for t in engine.inputs})
    for w, g in zip(want, got.values(), strict=True):
        close(g, w, 1e-4)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self.rest = [feeds]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.rest.pop() if self.rest else None


@pytest.mark.models
@pytest.mark.parametrize(
    "form", ["QDQ", pytest.param("QOperator", marks=EVERY), pytest.param("dynamic", marks=EVERY)]
)
def test_a_published_network_of_convolutions(form: str, tmp_path: Path) -> None:
    """A residual network of 50 layers, quantised by ONNX Runtime: integer products, and weights as in the file.

    ResNet-18 below has all forms, and this one with ``ARCWELD_EVERY=1``.
    """
    entry = MODELS["open_nsfw"]
    quantised_network(fetch("open_nsfw"), entry.feeds(), form, tmp_path, **_import_options(entry))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """torchvision's ResNet-18 with random weights, and an input."""
    made = build("resnet18", size=64)
    path = tmp_path_factory.mktemp("resnet18") / "resnet18.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(made.module, made.args, path)
    (name,) = [i.name for i in onnx.load(path).graph.input]
    return path, {name: made.args[0].numpy()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_resnet18(form: str, resnet18: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """The same of torchvision's ResNet-18, with random weights."""
    quantised_network(*resnet18, form, tmp_path)


def quantised_network(original: Path, feeds: dict[str, np.ndarray], form: str, folder: Path, **options: Any) -> None:
    """Quantises a network by ONNX Runtime, and compares the engine with it: weights, types, outputs."""
    path = folder / "q.onnx"
    if form == "dynamic":
        quantize_dynamic(original, path, weight_type=QuantType.QUInt8)
    else:
        quantize_static(
            original, path, _Reader(feeds), quant_format=QuantFormat[form], per_channel=form == "QOperator",
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
    model = onnx.load(path)
    engine = arcweld.compile(path, device="sim", **options)
    assert bytes_of(engine) <= LIMIT * bytes_in(model)
    assert not any(re.search(r"\b(f64|double)\b", s) for s in engine.data.sources.values())
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), plain, providers=["CPUExecutionProvider"])
    (want,) = session.run(None, feeds)
    (got,) = engine.run({t.name: feeds[t.name] for t in engine.inputs}).values()
    close(got, want, 2e-2)  # a value between two steps of a layer becomes the other one, and many layers follow


def _import_options(entry: Any) -> dict[str, Any]:
    return {k: v for k, v in entry.import_options().items() if v}


# ------------------------------------------------------------------------------------------------------- one product


def product(n: int, k: int, block: int, zero: str, rows: int | str, bits: int = 4) -> onnx.ModelProto:
    """MatMulNBits with random bytes; ``zero``: none, packed bytes, or floats."""
    rng, blocks = np.random.default_rng(n + k), -(-k // block)
    scales = rng.uniform(0.01, 0.03, n * blocks).astype(np.float32)
    weights = {"B": rng.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8), "S": scales}
    if zero == "packed":
        weights["Z"] = rng.integers(0, 256, n * -(-blocks * bits // 8)).astype(np.uint8)
    elif zero == "float":
        weights["Z"] = rng.uniform(0, 15, n * blocks).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block
    )
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_runtime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("zero", ["none", "packed", "float"])
@pytest.mark.parametrize(("n", "k", "block"), [(130, 256, 32), (96, 320, 64), (70, 384, 128), (65, 200, 32)])
@pytest.mark.parametrize("rows", [1, 5, 16, 64])
def test_products_beside_the_runtime(n: int, k: int, block: int, zero: str, rows: int) -> None:
    model = product(n, k, block, zero, rows)
    engine = arcweld.compile(model, device="sim")
    assert bytes_of(engine) <= LIMIT * bytes_in(model)
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
    close(engine(x), by_runtime(model, x), 1e-5)


def test_one_engine_for_any_number_of_rows() -> None:
    model = product(1100, 1024, 32, "packed", "n")
    engine = arcweld.compile(model, device="sim", precision="fp16")
    assert len(engine.program.ranges) > 0
    assert bytes_of(engine) <= LIMIT * bytes_in(model)
    for rows in (1, 7, 17, 65):
        x = np.random.default_rng(rows).standard_normal((rows, 1024)).astype(np.float32)
        close(engine(x), by_runtime(model, x), 5e-3)


def test_new_packed_weights() -> None:
    """New bytes, scales and zero points, in the file's own form; the file's tensors are the engine's sources."""
    model, other = product(96, 256, 32, "packed", 4), product(97, 255, 32, "packed", 4)
    engine = arcweld.compile(model, device="sim")
    rng = np.random.default_rng(1)
    fresh = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    fresh["B"] = rng.integers(0, 256, fresh["B"].shape).astype(np.uint8)
    fresh["S"] = rng.uniform(0.01, 0.03, fresh["S"].shape).astype(np.float32)
    fresh["Z"] = rng.integers(0, 256, fresh["Z"].shape).astype(np.uint8)
    engine.update_weights(fresh)
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(fresh[t.name], t.name))
    x = rng.standard_normal((4, 256)).astype(np.float32)
    close(engine(x), by_runtime(model, x), 1e-5)
    wrong = {t.name: numpy_helper.to_array(t) for t in other.graph.initializer}
    with pytest.raises(InputError, match="'B' is u8"):
        engine.update_weights(wrong)
    close(engine(x), by_runtime(model, x), 1e-5)  # nothing was changed


def test_an_engine_file_keeps_them(tmp_path: Path) -> None:
    model = product(96, 256, 32, "packed", 3)
    engine = arcweld.compile(model, device="sim")
    engine.save(tmp_path / "m.engine")
    again = arcweld.load(tmp_path / "m.engine", device="sim")
    packed = {w.name: w.dtype for w in again.program.weights}
    assert "u4" in packed.values()
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    np.testing.assert_array_equal(again(x), engine(x))


# -------------------------------------------------------------------------------------- blocks with a least number


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_blocks_of_gguf(precision: str) -> None:
    """GGUF's Q4_1: 32 numbers of 4 bits, a scale and a least number in f16, 20 bytes; ``w = q * scale + least``."""
    n, k = 256, 512
    graph = parse_graph(f"""graph 'q4_1'
input %x: f32[1, {k}]
weight %q: u4[{n}, {k // 32}, 32] source='q'
weight %d: f16[{n}, {k // 32}, 1] source='d'
weight %m: f16[{n}, {k // 32}, 1] source='m'
%wide = Cast(%q, to=dtype(f32))
%d32 = Cast(%d, to=dtype(f32))
%m32 = Cast(%m, to=dtype(f32))
%scaled = Mul(%wide, %d32)
%w = Add(%scaled, %m32)
%matrix = Reshape(%w, shape=({n}, {k}))
%t = Transpose(%matrix, perm=(1, 0))
%y = MatMul(%x, %t)
output %y
""")
    rng = np.random.default_rng(0)
    q = rng.integers(0, 16, (n, k // 32, 32))
    d = rng.uniform(0, 0.02, (n, k // 32, 1)).astype(np.float16)
    m = -rng.uniform(0, 0.2, (n, k // 32, 1)).astype(np.float16)
    weights = {"q": q.astype(ml_dtypes.uint4), "d": d, "m": m}
    graph = graph.replace(weights={name: Weight(a, name) for name, a in weights.items()})
    build, _, engine = build_data(graph, device="sim", arch=("sm_80",), precision=precision)
    assert sum(w.nbytes for w in build.data.weights.values()) == n * k // 32 * 20
    assert engine is not None
    x = rng.standard_normal((1, k)).astype(np.float32)
    dense = (q * d.astype(np.float64) + m.astype(np.float64)).reshape(n, k)
    close(engine(x), x @ dense.T, 1e-5 if precision == "fp32" else 5e-3)


# ---------------------------------------------------------------------------------------------------------- bad input


def one_node(op: str, inputs: list[np.ndarray], **attrs: Any) -> onnx.ModelProto:
    names = [f"i{k}" for k in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="the_node", **attrs)], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in zip(names, inputs)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


W = np.zeros((6, 64), ml_dtypes.int4)
ONES = np.ones((6, 2), np.float32)


@pytest.mark.parametrize(
    ("inputs", "attrs", "message"),
    [
        ([W, ONES[:, :1]], {"axis": 1, "block_size": 32}, r"scales of shape \[6, 1\] for blocks of 32 along axis 1"),
        ([W, ONES], {"axis": 1, "block_size": 24}, r"scales of shape \[6, 2\] for blocks of 24"),
        ([W, ONES], {"axis": 1, "block_size": -32}, "blocks of -32"),
        ([W, ONES, ONES[:, :1].astype(ml_dtypes.int4)], {"axis": 1, "block_size": 32}, "differ in shape"),
        ([W, np.ones(5, np.float32)], {"axis": 0}, "5 and 6 are not known to be equal"),
        ([W, ONES.astype(np.int32)], {"axis": 1, "block_size": 32}, "does not take i32"),
        ([W, ONES, ONES.astype(np.uint8)], {"axis": 1, "block_size": 32}, "does not take u8"),
        ([W, ONES], {"axis": 7, "block_size": 32}, "axis 7"),
    ],
)
def test_scales_that_do_not_fit(inputs: list[np.ndarray], attrs: dict[str, int], message: str) -> None:
    with pytest.raises(ArcweldError, match=message) as error:
        arcweld.compile(one_node("DequantizeLinear", inputs, **attrs), device="sim")
    assert "the_node" in str(error.value)


def test_bytes_that_do_not_fit() -> None:
    model = product(96, 256, 32, "none", 1)
    (b,) = [t for t in model.graph.initializer if t.name == "B"]
    b.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(b)[:, :, :15], "B"))
    with pytest.raises(ModelError, match=r"input 1 has 11520 bytes instead of 12288"):
        arcweld.compile(model, device="sim")


def test_an_odd_number_of_nibbles_has_a_last_byte() -> None:
    tensor = numpy_helper.from_array(np.zeros(5, ml_dtypes.int4), "w")
    tensor.raw_data = tensor.raw_data[:2]  # 5 numbers of 4 bits take 3 bytes
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])], [tensor],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    with pytest.raises(ModelError, match=r"'w' of shape .5. needs 3 bytes but holds 2"):
        arcweld.compile(model, device="sim")


@pytest.mark.parametrize(
    ("element", "value", "range_"),
    [
        (TensorProto.INT8, 300, "i8 cannot be: -128 to 127"), (TensorProto.UINT8, -1, "u8 cannot be: 0 to 255"),
        (TensorProto.INT4, 511, "i4 cannot be: 0 to 255"),
        (TensorProto.FLOAT8E4M3FN, 256, "f8e4m3fn cannot be: 0 to 255"),
    ],
)  # fmt: skip
def test_values_outside_their_type(element: int, value: int, range_: str) -> None:
    """In the typed field, narrow integers are numbers; packed types and floats of 8 bits are patterns of a byte."""
    tensor = TensorProto(name="w", data_type=element, dims=[1], int32_data=[value])
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])], [tensor],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    with pytest.raises(ModelError, match=f"'w' holds {value}, which {range_}"):
        arcweld.compile(model, device="sim")


def order_of(k: int, block: int) -> np.ndarray:
    """A group for each element of k, as GPTQ's activation order gives them: every group is full."""
    return np.random.default_rng(k).permutation(np.arange(k) // block).astype(np.int32)


@pytest.mark.parametrize("zero", ["none", "packed"])
@pytest.mark.parametrize("rows", [1, 9])
def test_activation_order(rows: int, zero: str) -> None:
    """GPTQ's g_idx: the weights are stored in the order of their groups, and the activations are read in it."""
    n, k, block = 96, 256, 32
    model = product(n, k, block, zero, rows)
    (node,) = model.graph.node
    groups = order_of(k, block)
    node.input.extend([""] * (4 - len(node.input)) + ["G"])
    model.graph.initializer.append(numpy_helper.from_array(groups, "G"))
    engine = arcweld.compile(model, device="sim")
    assert bytes_of(engine) <= LIMIT * bytes_in(model) + 8 * k  # and the order
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    q = np.stack([arrays["B"] & 15, arrays["B"] >> 4], -1).reshape(n, k).astype(np.float64)
    scales = arrays["S"].reshape(n, -1).astype(np.float64)
    zeros = np.full(scales.shape, 8.0)
    if zero == "packed":
        packed = arrays["Z"].reshape(n, -1)
        zeros = np.stack([packed & 15, packed >> 4], -1).reshape(n, -1)[:, : k // block].astype(np.float64)
    dense = (q - zeros[:, groups]) * scales[:, groups]
    close(engine(x), x @ dense.T, 1e-5)


def test_an_order_with_groups_that_are_not_full() -> None:
    model = product(96, 256, 32, "none", 1)
    (node,) = model.graph.node
    node.input.extend(["", "G"])
    groups = order_of(256, 32)
    groups[groups == 3] = 4
    model.graph.initializer.append(numpy_helper.from_array(groups, "G"))
    with pytest.raises(ArcweldError, match="group 3 has 0 elements, and blocks have 32"):
        arcweld.compile(model, device="sim")


def test_negative_scales_and_nan_are_numbers() -> None:
    """As in ONNX Runtime, a scale may have any sign, and NaN spreads to its block's results only."""
    model = product(96, 256, 32, "none", 2)
    (s,) = [t for t in model.graph.initializer if t.name == "S"]
    scales = -numpy_helper.to_array(s)
    scales[8] = np.nan  # of the second column
    s.CopyFrom(numpy_helper.from_array(scales, "S"))
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    found, want = arcweld.compile(model, device="sim")(x), by_runtime(model, x)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(want))
    np.testing.assert_allclose(np.delete(found, 1, 1), np.delete(want, 1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", [np.zeros((2, 3), np.int8), np.zeros((2, 3), np.float32)])
def test_a_packed_input_of_another_type(given: np.ndarray) -> None:
    graph = parse_graph("graph 'g'\ninput %x: i4[2, 3]\n%y = Cast(%x, to=dtype(f32))\noutput %y\n")
    engine = build_data(graph, device="sim", arch=("sm_80",))[2]
    assert engine is not None
    with pytest.raises(ArcweldError, match="'x' must be i4, got"):
        engine(given)


def test_a_packed_input_of_another_library() -> None:
    import torch

    graph = parse_graph("graph 'g'\ninput %x: i4[2, 3]\n%y = Cast(%x, to=dtype(f32))\noutput %y\n")
    engine = build_data(graph, device="sim", arch=("sm_80",))[2]
    assert engine is not None
    with pytest.raises(InputError, match="is i4, which only numpy arrays hold"):
        engine(torch.zeros(2, 3, dtype=torch.int8))
