"""NonMaxSuppression on random boxes against ONNX Runtime, on the checked simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import arcweld
from arcweld.driver.api import Input
from arcweld.runtime.sim.device import SimDevice


def _proto(shape: list[Any], centred: int, before: list[onnx.NodeProto] | None = None, **given: Any) -> onnx.ModelProto:
    batch, _, n = shape
    names = ["boxes", "scores", *(k if k in given else "" for k in ("most", "overlap", "least"))]
    nodes = [*(before or []), h.make_node("NonMaxSuppression", names, ["kept"], center_point_box=centred)]
    inputs = [h.make_tensor_value_info("boxes", T.FLOAT, [batch, n, 4]),
              h.make_tensor_value_info("scores", T.FLOAT, shape)]  # fmt: skip
    constants = [onnx.numpy_helper.from_array(np.asarray([v]), k) for k, v in given.items()]
    graph = h.make_graph(nodes, "boxes", inputs, [h.make_tensor_value_info("kept", T.INT64, [None, 3])], constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)


def _drawn(batch: int, classes: int, n: int, centred: int, seed: int) -> dict[str, np.ndarray]:
    """Boxes of any two opposite corners, or of a centre and a size; many scores are equal."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 9, (batch, n, 4))
    if centred:
        boxes[..., 2:] = rng.uniform(0, 5, (batch, n, 2))
    scores = rng.integers(0, max(2, n // 3), (batch, classes, n)) / max(2, n // 3)
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}


def _same(engine: arcweld.Engine, proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> int:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, feeds)
    np.testing.assert_array_equal(engine.run(feeds)["kept"], want)
    return len(want)


GIVEN: dict[str, dict[str, Any]] = {
    "all": {"most": np.int64(1000), "overlap": np.float32(0.5), "least": np.float32(0.3)},
    "few": {"most": np.int64(3), "overlap": np.float32(0.2)},
    "apart": {"most": np.int64(1000)},
    "none": {"most": np.int64(1000), "overlap": np.float32(0.5), "least": np.float32(9)},
    "no room": {"most": np.int64(0), "overlap": np.float32(0.5)},
    "nothing said": {},
}


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("name", GIVEN)
def test_boxes_of_an_open_number(name: str, centred: int) -> None:
    proto = _proto(["b", 2, "n"], centred, **GIVEN[name])
    engine = arcweld.compile(proto, device=SimDevice(checked=True), verify="off")
    found = [_same(engine, proto, _drawn(b, 2, n, centred, n)) for b, n in ((1, 1), (2, 40), (1, 300))]
    assert (max(found) > 0) == (name in ("all", "few", "apart"))


def test_the_default_build_verifies_it() -> None:
    proto = _proto([1, 3, 50], 0, **GIVEN["all"])
    engine = arcweld.compile(proto, device=SimDevice(checked=True), strict=True)
    (launch,) = (x for stage in engine.program.stages for x in stage.launches if x.template == "suppress")
    assert [r["error"] for r in engine.data.verify["kernels"] if r["launch"] == launch.name] == [0.0]
    assert _same(engine, proto, _drawn(1, 3, 50, 0, 5)) > 9


def test_few_launches() -> None:
    """Sorting, suppression, counting and moving; a detector's number of boxes."""
    proto = _proto([1, 80, 1000], 0, **GIVEN["all"])
    engine = arcweld.compile(proto, device="sim", verify="off")
    assert sum(len(stage.launches) for stage in engine.program.stages) <= 9
    assert sum(x.template == "suppress" for stage in engine.program.stages for x in stage.launches) == 1


def test_boxes_whose_number_depends_on_data() -> None:
    """Of the boxes that a score admits, perhaps none."""
    before = [
        h.make_node("Greater", ["best", "half"], ["good"]),
        h.make_node("Compress", ["boxes0", "good"], ["boxes"], axis=1),
        h.make_node("Compress", ["scores0", "good"], ["scores"], axis=2),
    ]  # fmt: skip
    proto = _proto([1, 1, 30], 0, before, **GIVEN["all"])
    for info in proto.graph.input:
        info.name += "0"
    proto.graph.input.append(h.make_tensor_value_info("best", T.FLOAT, [30]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    engine = arcweld.compile(proto, device=SimDevice(checked=True), verify="off")
    drawn = _drawn(1, 1, 30, 0, 7)
    for high in (0.2, 0.8, 1.0):
        best = np.linspace(0, high, 30, dtype=np.float32)
        feeds = {"boxes0": drawn["boxes"], "scores0": drawn["scores"], "best": best}
        if high < 0.5:  # ONNX Runtime refuses boxes without any
            assert engine.run(feeds)["kept"].shape == (0, 3)
        else:
            assert _same(engine, proto, feeds) > 0


def test_numbers_that_are_inputs() -> None:
    proto = _proto([1, 1, 30], 0, **GIVEN["all"])
    for tensor in list(proto.graph.initializer):
        proto.graph.input.append(h.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        proto.graph.initializer.remove(tensor)
    engine = arcweld.compile(proto, inputs=Input("most", (1,)), device=SimDevice(checked=True), verify="off")
    for most in (0, 4, 99):
        extra = {"most": np.array([most]), "overlap": np.float32([0.4]), "least": np.float32([0.1])}
        _same(engine, proto, _drawn(1, 1, 30, 0, most) | extra)
