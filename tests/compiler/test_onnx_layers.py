"""Recurrent layers, attention, quantised operators and fused contrib operators, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import compare, evaluate, floats, ints, model, one_node, runtime

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.handlers.base import MICROSOFT
from arcweld.compiler.onnx.importer import import_onnx

F = floats
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _recurrent(
    op: str, attrs: dict[str, Any], *, bias: bool = True, initial: bool = True, peephole: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    steps, batch, features, hidden = 4, 2, 3, 5
    rows = GATES[op] * hidden
    constants = {1: F(directions, rows, features) / 2, 2: F(directions, rows, hidden, seed=1) / 2}
    if bias:
        constants[3] = F(directions, 2 * rows, seed=2)
    if initial:
        constants[5] = F(directions, batch, hidden, seed=3)
        if op == "LSTM":
            constants[6] = F(directions, batch, hidden, seed=4)
    if peephole:
        constants[7] = F(directions, 3 * hidden, seed=5)
    outputs = 3 if op == "LSTM" else 2
    attrs = {"hidden_size": hidden, **attrs}
    return one_node(op, 14, [F(steps, batch, features, seed=6)], attrs, constants, outputs=outputs)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(op: str, direction: str) -> None:
    proto, feeds = _recurrent(op, {"direction": direction})
    graph = compare(proto, feeds)
    # the input's products for all steps and directions are one matrix product
    assert [n.op for n in graph.nodes if n.op in ("MatMul", "Recurrence")] == ["MatMul", "Recurrence"]


@pytest.mark.parametrize(
    ("op", "attrs", "options"),
    [
        ("GRU", {"linear_before_reset": 1}, {}),
        ("GRU", {"linear_before_reset": 1}, {"bias": False, "initial": False}),
        ("LSTM", {"clip": 0.5}, {}),
        ("LSTM", {}, {"peephole": True, "bias": False}),
        ("LSTM", {"activations": ["HardSigmoid", "Relu", "Softsign"]}, {}),
        ("LSTM", {"input_forget": 1}, {}),
        ("RNN", {"activations": ["Relu"]}, {"initial": False}),
    ],
)
def test_recurrent_options(op: str, attrs: dict[str, Any], options: dict[str, Any]) -> None:
    compare(*_recurrent(op, attrs, **options))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("per_column", [False, True])
def test_dynamically_quantised_lstm(direction: str, per_column: bool) -> None:
    d, hidden, features = 2 if direction == "bidirectional" else 1, 5, 3
    rng = np.random.default_rng(0)
    scales = (d, 4 * hidden) if per_column else (d,)
    constants = {
        1: rng.integers(-100, 100, (d, features, 4 * hidden)).astype(np.int8),
        2: rng.integers(-100, 100, (d, hidden, 4 * hidden)).astype(np.int8), 3: F(d, 8 * hidden, seed=2),
        8: (0.004 + 0.004 * rng.random(scales)).astype(np.float32), 9: np.zeros(scales, np.int8),
        10: (0.004 + 0.004 * rng.random(scales)).astype(np.float32), 11: np.zeros(scales, np.int8),
    }  # fmt: skip
    attrs = {"hidden_size": hidden, "direction": direction}
    feeds = [F(6, 2, features, seed=6)]
    proto, named = one_node("DynamicQuantizeLSTM", 14, feeds, attrs, constants, outputs=3, domain=MICROSOFT)
    graph, options = import_onnx(proto), ort.SessionOptions()
    options.intra_op_num_threads = 1  # each of several threads would take the range of its own rows
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for ours, theirs in zip(evaluate(graph, named), session.run(None, named), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    assert sum(n.op == "Recurrence" for n in graph.nodes) == 1


def test_batch_first_layout() -> None:
    """ONNX Runtime refuses layout=1: the standard's reference evaluator is the oracle."""
    constants = {1: F(1, 20, 3) / 2, 2: F(1, 20, 5) / 2, 5: F(2, 1, 5), 6: F(2, 1, 5, seed=1)}
    proto, feeds = one_node("LSTM", 14, [F(2, 4, 3)], {"hidden_size": 5, "layout": 1}, constants, outputs=3)
    swapped = {**constants, 5: constants[5].swapaxes(0, 1), 6: constants[6].swapaxes(0, 1)}
    time_first, _ = one_node("LSTM", 14, [F(2, 4, 3).swapaxes(0, 1)], {"hidden_size": 5}, swapped, outputs=3)
    y, h, c = ReferenceEvaluator(time_first).run(None, {"x0": F(2, 4, 3).swapaxes(0, 1)})
    expected = [y.transpose(2, 0, 1, 3), h.swapaxes(0, 1), c.swapaxes(0, 1)]
    for ours, theirs in zip(evaluate(import_onnx(proto), feeds), expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_rows_of_different_lengths(op: str, direction: str) -> None:
    """As an input, and as a constant that says the same for all rows or not."""
    d, rows = 2 if direction == "bidirectional" else 1, GATES[op] * 5
    attrs = {"hidden_size": 5, "direction": direction}
    constants = {1: F(d, rows, 3) / 2, 2: F(d, rows, 5, seed=1) / 2, 3: F(d, 2 * rows, seed=2)}
    for lengths in ([4, 1, 3], [4, 4, 4], [2, 2, 2]):
        given = np.array(lengths, np.int32)
        outputs = 3 if op == "LSTM" else 2
        compare(*one_node(op, 14, [F(4, 3, 3, seed=6)], attrs, {**constants, 4: given}, outputs=outputs))
    proto, feeds = one_node(op, 14, [F(4, 3, 3, seed=6)], attrs, {**constants, 4: given}, outputs=outputs)
    (tensor,) = (t for t in proto.graph.initializer if list(t.dims) == [3] and t.data_type == onnx.TensorProto.INT32)
    proto.graph.initializer.remove(tensor)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.INT32, [3]))
    compare(proto, {**feeds, tensor.name: np.array([1, 4, 2], np.int32)})


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_open_numbers_of_steps_and_rows(op: str) -> None:
    rows = GATES[op] * 5
    constants = {1: F(1, rows, 3) / 2, 2: F(1, rows, 5, seed=1) / 2}
    proto, _ = one_node(op, 14, [F(4, 2, 3)], {"hidden_size": 5}, constants)
    for k, name in enumerate(("steps", "batch")):
        proto.graph.input[0].type.tensor_type.shape.dim[k].dim_param = name
    graph = import_onnx(proto)
    for steps, batch in ((1, 1), (9, 1), (3, 4)):
        feeds = {"x0": F(steps, batch, 3, seed=steps)}
        for ours, theirs in zip(evaluate(graph, feeds), runtime(proto, feeds)):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_numbers_of_rows_are_one() -> None:
    """What first states of a known number of rows demand of the input is deduced; two open numbers have to be one."""
    constants = {1: F(1, 20, 3) / 2, 2: F(1, 20, 5) / 2}
    feeds = [F(4, 2, 3), None, None, None, None, F(1, 2, 5), F(1, 2, 5, seed=1)]
    proto, named = one_node("LSTM", 14, feeds, {"hidden_size": 5}, constants, outputs=3)
    name = lambda k, to: setattr(proto.graph.input[k].type.tensor_type.shape.dim[1], "dim_param", to)
    name(0, "batch")
    graph = import_onnx(proto)
    assert graph.inputs[0].shape == (4, 2, 3)
    for ours, theirs in zip(evaluate(graph, named), runtime(proto, named), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    name(1, "n")
    name(2, "n")
    with pytest.raises(UnsupportedError, match="n and batch are not known to be equal"):
        import_onnx(proto)


@pytest.mark.parametrize(
    ("position", "shape"),
    [(1, (1, 20)), (1, (1, 20, 4)), (1, (2, 20, 3)), (2, (1, 20, 6)), (2, (20, 5)), (3, (1, 39)), (3, (40,)), (4, (3,)),
     (5, (1, 3, 5)), (5, (2, 5)), (6, (1, 2, 4)), (7, (1, 14)), (7, (15,))],
)  # fmt: skip
def test_operands_that_do_not_fit_are_errors_of_the_model(position: int, shape: tuple[int, ...]) -> None:
    constants = {1: F(1, 20, 3), 2: F(1, 20, 5)}
    constants[position] = np.full(shape, 2, np.int32) if position == 4 else F(*shape)
    proto, _ = one_node("LSTM", 14, [F(4, 2, 3)], {"hidden_size": 5}, constants, outputs=3)
    with pytest.raises((ModelError, UnsupportedError)):
        import_onnx(proto)


# ------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("attrs", "rank", "extra"),
    [
        ({}, 4, {}),
        ({"is_causal": 1}, 4, {}),
        ({"scale": 0.3}, 4, {3: F(4, 6)}),
        ({"softcap": 2.0}, 4, {3: F(4, 6) > 0}),
        ({"is_causal": 1, "softcap": 2.0}, 4, {}),
        ({}, 4, {3: F(2, 1, 4, 6)}),
        ({"q_num_heads": 4, "kv_num_heads": 2}, 3, {}),
        ({"is_causal": 1}, 4, {4: F(2, 2, 3, 8), 5: F(2, 2, 3, 8, seed=1)}),
        ({"is_causal": 1}, 4, {3: F(4, 9) > -1, 4: F(2, 2, 3, 8), 5: F(2, 2, 3, 8, seed=1)}),
    ],
)
def test_attention(attrs: dict[str, Any], rank: int, extra: dict[int, Any]) -> None:
    """Against the standard's reference evaluator, whose text defines the operator."""
    shapes = [(2, 4, 4, 8), (2, 2, 6, 8), (2, 2, 6, 8)] if rank == 4 else [(2, 4, 32), (2, 6, 16), (2, 6, 16)]
    proto, feeds = one_node("Attention", 23, [F(*s, seed=i) for i, s in enumerate(shapes)], attrs, extra)
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    (ours,) = evaluate(import_onnx(proto), feeds)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("attrs", [{}, {"interleaved": 1}, {"rotary_embedding_dim": 4}])
def test_rotary_embedding(attrs: dict[str, Any]) -> None:
    half = attrs.get("rotary_embedding_dim", 8) // 2
    positions = ints([0, 3, 1], [2, 5, 4])
    constants = {1: F(6, half), 2: F(6, half, seed=1), 3: positions}
    proto, feeds = one_node("RotaryEmbedding", 23, [F(2, 4, 3, 8)], attrs, constants)
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    (ours,) = evaluate(import_onnx(proto), feeds)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- quantised


def _u8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _i8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, shape, dtype=np.int8)


@pytest.mark.parametrize("depth", [16, 700])
def test_integer_products_are_exact(depth: int) -> None:
    """700 terms of 255 * 127 exceed what f32 holds exactly."""
    proto, feeds = one_node("MatMulInteger", 13, [_u8(3, depth)], {}, {1: _i8(depth, 5), 2: np.uint8(7), 3: _i8(5)})
    compare(proto, feeds)
    constants = {1: _u8(2, depth, 3, 3), 2: np.uint8(9)}
    proto, feeds = one_node("ConvInteger", 13, [_u8(1, depth, 4, 4)], {"pads": [1] * 4}, constants)
    compare(proto, feeds)


def test_quantise_and_dequantise() -> None:
    scale, zero = np.float32([0.1, 0.2, 0.05]), np.uint8([100, 120, 130])
    compare(*one_node("QuantizeLinear", 13, [F(2, 3, 4) * 3], {"axis": 1}, {1: scale, 2: zero}))
    compare(*one_node("DequantizeLinear", 13, [_u8(2, 3, 4)], {"axis": -2}, {1: scale, 2: zero}))
    compare(*one_node("DequantizeLinear", 13, [np.array(7, np.uint8)], {}, {1: np.float32(0.25), 2: np.uint8(3)}))
    compare(*one_node("DynamicQuantizeLinear", 13, [F(3, 4)], outputs=3))
    blocks = {1: np.abs(F(2, 2)) + 0.1, 2: _i8(2, 2)}
    compare(*one_node("DequantizeLinear", 21, [_i8(2, 6)], {"axis": 1, "block_size": 3}, blocks))


def test_an_all_zero_tensor_quantises() -> None:
    proto, _ = one_node("DynamicQuantizeLinear", 13, [np.zeros((2, 2), np.float32)], outputs=3)
    y, _, zero = evaluate(import_onnx(proto), {"x0": np.zeros((2, 2), np.float32)})
    assert (y == zero).all()


def test_quantised_layers() -> None:
    one = {1: np.float32(0.02), 2: np.uint8(120), 4: np.float32(0.01), 5: np.int8(3)}
    one |= {6: np.float32(0.4), 7: np.uint8(110)}
    compare(*one_node("QLinearMatMul", 13, [_u8(3, 8)], {}, {**one, 3: _i8(8, 4)}))
    many = {4: np.float32([0.01, 0.02]), 5: np.int8([0, 0]), 8: np.array([100, -500], np.int32)}
    compare(*one_node("QLinearConv", 13, [_u8(1, 3, 5, 5)], {"strides": [2, 2]}, {**one, **many, 3: _i8(2, 3, 3, 3)}))


def test_int4_weights() -> None:
    packed = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [3, 3], np.arange(-4, 5).tolist())
    node = onnx.helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    proto = model([node], {"s": (np.float32, [])}, ["y"], opset=21)
    proto.graph.initializer.append(packed)
    (ours,) = evaluate(import_onnx(proto), {"s": np.float32(0.5)})
    np.testing.assert_array_equal(ours, np.arange(-4, 5, dtype=np.float32).reshape(3, 3) / 2)


# --------------------------------------------------------------------------------------------------------- contrib

CONTRIB: list[tuple[str, list[Any], dict[str, Any], dict[int, Any], int]] = [
    ("Gelu", [F(3, 4)], {}, {}, 1),
    ("BiasGelu", [F(3, 4)], {}, {1: F(4)}, 1),
    ("FastGelu", [F(3, 4)], {}, {1: F(4)}, 1),
    ("QuickGelu", [F(3, 4)], {"alpha": 1.5}, {}, 1),
    ("FusedMatMul", [F(2, 4, 3), F(2, 5, 4)], {"transA": 1, "transB": 1, "alpha": 0.5}, {}, 1),
    ("FusedConv", [F(1, 2, 5, 5)], {"activation": "Relu", "kernel_shape": [3, 3]}, {1: F(3, 2, 3, 3), 2: F(3)}, 1),
    ("FusedGemm", [F(3, 4), F(4, 5)], {"activation": "LeakyRelu", "activation_alpha": 0.2}, {2: F(5)}, 1),
    ("SkipLayerNormalization", [F(2, 3, 8), F(2, 3, 8, seed=1)], {}, {2: F(8), 3: F(8), 4: F(8, seed=2)}, 1),
    ("SkipSimplifiedLayerNormalization", [F(2, 3, 8), F(2, 3, 8, seed=1)], {"epsilon": 1e-5}, {2: F(8)}, 1),
    ("MultiHeadAttention", [F(2, 3, 8), F(2, 5, 8), F(2, 5, 8, seed=1)], {"num_heads": 2}, {3: F(24)}, 1),
    ("Attention", [F(2, 3, 8)], {"num_heads": 2}, {1: F(8, 24), 2: F(24)}, 1),
    ("RotaryEmbedding", [F(1, 3, 16)], {}, {1: ints([0, 2, 1]), 2: F(4, 4), 3: F(4, 4, seed=1)}, 1),
    ("MatMulIntegerToFloat", [_u8(3, 8)], {}, {1: _i8(8, 4), 2: F(1), 3: F(1, seed=1), 4: np.uint8([9])}, 1),
    ("DynamicQuantizeMatMul", [F(3, 8)], {}, {1: _i8(8, 4), 2: np.float32([0.2])}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("op", "feeds", "attrs", "constants", "outputs"), CONTRIB, ids=[c[0] for c in CONTRIB])
def test_fused_operators(
    op: str, feeds: list[Any], attrs: dict[str, Any], constants: dict[int, Any], outputs: int
) -> None:
    proto, given = one_node(
        op, 17, feeds, attrs, {k: np.asarray(v) for k, v in constants.items()}, outputs=outputs, domain="com.microsoft"
    )
    compare(proto, given)


def test_the_sum_of_a_skip_normalisation() -> None:
    node = onnx.helper.make_node(
        "SkipLayerNormalization", ["x", "s", "g"], ["y", "", "", "sum"], domain="com.microsoft", epsilon=1e-5
    )
    inputs = {"x": (np.float32, [2, 3, 8]), "s": (np.float32, [2, 3, 8])}
    opsets = [onnx.helper.make_opsetid("com.microsoft", 1)]
    proto = model([node], inputs, ["y", "sum"], {"g": F(8)}, opsets=opsets)
    compare(proto, {"x": F(2, 3, 8), "s": F(2, 3, 8, seed=1)})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("k", [64, 80])
def test_packed_weights(bits: int, zeros: bool, k: int) -> None:
    n, block = 6, 32
    blocks = -(-k // block)
    constants = {1: _u8(n, blocks, block * bits // 8), 2: np.abs(F(n * blocks)) / 16}
    if zeros:
        constants[3] = _u8(n * -(-blocks * bits // 8), seed=1)
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block}
    compare(*one_node("MatMulNBits", 17, [F(3, k)], attrs, constants, domain="com.microsoft"), tolerance=1e-4)


@pytest.mark.parametrize(
    "attrs", [{}, {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}, {"auto_pad": "SAME_UPPER"}]
)
def test_convolutions_of_channels_last_data(attrs: dict[str, Any]) -> None:
    """ONNX Runtime has no kernel of NhwcConv for CPUs: its Conv of the same channels-first data stands for it."""
    x, bias, w = F(2, 9, 8, 4), F(6, seed=1), F(6, 3, 2, 4 // attrs.get("group", 1), seed=2)
    proto, feeds = one_node("NhwcConv", 18, [x], {**attrs, "kernel_shape": [3, 2]}, {1: w, 2: bias}, domain=MICROSOFT)
    first = {1: w.transpose(0, 3, 1, 2).copy(), 2: bias}
    (want,) = runtime(*one_node("Conv", 18, [x.transpose(0, 3, 1, 2).copy()], attrs, first))
    (found,) = evaluate(import_onnx(proto), feeds)
    np.testing.assert_allclose(found, want.transpose(0, 2, 3, 1), rtol=2e-5, atol=2e-5)
