"""Large weights are cut out of an encoded model without reading it, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arcweld.compiler.errors import ModelError
from arcweld.compiler.onnx import skeleton
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.onnx.skeleton import cut_weights

MARKER = b"sixteen bytes..."


def _model() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    large = random.standard_normal((200, 200)).astype(np.float32)
    held = random.standard_normal((200, 300)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(held, "c")),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "c"], ["t"]),
        helper.make_node("Add", ["t", "b"], ["y"], doc_string="the last one"),
    ]
    weights = [numpy_helper.from_array(large, "w"), numpy_helper.from_array(np.float32([3]), "b")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 200])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 300])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_everything_but_the_large_weights_is_kept() -> None:
    model = _model()
    data = model.SerializeToString()
    rest, cuts = cut_weights(memoryview(data), MARKER)
    assert len(rest) < 1000
    assert sorted(n for _, n in cuts) == [200 * 200 * 4, 200 * 300 * 4]
    found = onnx.ModelProto.FromString(rest)
    for tensor in (found.graph.initializer[0], found.graph.node[0].attribute[0].t):
        assert tensor.raw_data[:16] == MARKER
        offset, length = cuts[int.from_bytes(tensor.raw_data[16:], "little")]
        tensor.raw_data = data[offset : offset + length]
    assert found == model


def test_small_models_pass_unchanged() -> None:
    model = _model()
    del model.graph.initializer[0]
    del model.graph.node[0]
    data = model.SerializeToString()
    assert cut_weights(memoryview(data), MARKER) == (data, [])


def test_damage_is_reported_or_left_to_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever byte a file ends at, and whichever byte is wrong, nothing but a ModelError comes out of the cutter."""
    monkeypatch.setattr(skeleton, "LARGE", 64)
    data = _model().SerializeToString()
    head = data[:600] + data[-600:]
    for end in range(0, len(head), 7):
        _try(head[:end])
        _try(head[:end] + bytes([head[end] ^ 0xFF]) + head[end + 1 :])
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not an ONNX model"):
        import_onnx(path)


def _try(data: bytes) -> None:
    try:
        cut_weights(memoryview(data), MARKER)
    except ModelError:
        return


def test_cut_weights_arrive_in_the_graph(tmp_path: Path) -> None:
    model = _model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graph = import_onnx(path)
    np.testing.assert_array_equal(graph.weights["w"].data, numpy_helper.to_array(model.graph.initializer[0]))
    np.testing.assert_array_equal(graph.weights["b"].data, [3])
