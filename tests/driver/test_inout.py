"""ONNX models whose outputs take over inputs, by name, by pattern and by the command, compared step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import arcweld
from arcweld import Input
from arcweld.cli.app import main
from arcweld.compiler.errors import EnvironmentError_, ModelError, UsageError
from arcweld.driver.state import partner
from arcweld.models.catalogue import MODELS, speech
from arcweld.models.fetch import fetch
from arcweld.runtime.arrays import aligned_empty

SHAPE = (2, 3, 16, 8)
NAMES = [f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]


def decoder(mode: str = "linear") -> onnx.ModelProto:
    """Two layers that append to caches by TensorScatter and sum what they hold."""
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64
    inputs = [helper.make_tensor_value_info("new", f32, [2, 3, 1, 8]), helper.make_tensor_value_info("at", i64, [2])]
    nodes, outputs, sums = [], [], []
    for name in NAMES:
        present = name.replace("past_key_values", "present")
        inputs.append(helper.make_tensor_value_info(name, f32, list(SHAPE)))
        outputs.append(helper.make_tensor_value_info(present, f32, list(SHAPE)))
        nodes.append(helper.make_node("TensorScatter", [name, "new", "at"], [present], name=present, mode=mode))
        nodes.append(helper.make_node("ReduceSum", [present], [f"sum.{name}"], keepdims=0))
        sums.append(f"sum.{name}")
    nodes.append(helper.make_node("Sum", sums, ["y"]))
    graph = helper.make_graph(nodes, "decoder", inputs, [helper.make_tensor_value_info("y", f32, []), *outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_caches_by_name_against_the_standard(mode: str) -> None:
    model = decoder(mode)
    engine = arcweld.compile(model, inputs=[Input(n, inout=True) for n in NAMES], device="sim")
    assert {(s.input, s.output) for s in engine.program.state} == {
        (n, n.replace("past_key_values", "present")) for n in NAMES
    }
    assert len(engine.program.aliases) == 4
    rng = np.random.default_rng(0)
    theirs = {n: rng.standard_normal(SHAPE).astype(np.float32) for n in NAMES}
    ours = {n: aligned_empty(SHAPE, np.dtype(np.float32)) for n in NAMES}
    for n in NAMES:
        ours[n][...] = theirs[n]
    reference = ReferenceEvaluator(model)
    for step in range(20 if mode == "circular" else 16):
        feeds = {"new": rng.standard_normal((2, 3, 1, 8)).astype(np.float32), "at": np.array([step, max(0, step - 3)])}
        want = dict(zip([o.name for o in model.graph.output], reference.run(None, {**feeds, **theirs})))
        got = engine.run({**feeds, **ours})
        np.testing.assert_allclose(got["y"], want["y"], rtol=1e-4, atol=1e-3)
        for n in NAMES:
            present = n.replace("past_key_values", "present")
            assert got[present] is ours[n]
            np.testing.assert_array_equal(ours[n], want[present])
            theirs[n] = want[present]


@pytest.mark.parametrize(
    ("shape", "indices", "said"),
    [
        ([2], [2], "an update of shape \\[2\\]"), ([2, 3, 1, 7], [2], "an update of"),
        ([2, 3, 1, 8], [2, 1], "has 2 axes"),
    ],
)  # fmt: skip
def test_updates_that_fit_no_cache(shape: list[int], indices: list[int], said: str) -> None:
    info, f32 = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [info("past", f32, SHAPE), info("new", f32, shape), info("at", TensorProto.INT64, indices)]
    node = helper.make_node("TensorScatter", ["past", "new", "at"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [info("y", f32, SHAPE)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    with pytest.raises(ModelError, match=said):
        arcweld.compile(model, device="sim")


def growing(path: Path) -> str:
    """A cache that grows, and one state that keeps its shape, but is computed anew."""
    f32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["past", "x"], ["present"], axis=0),
            helper.make_node("MatMul", ["h", "w"], ["h2"]),
        ],
        "m",
        [helper.make_tensor_value_info("past", f32, ["p", 4]), helper.make_tensor_value_info("x", f32, [1, 4]),
         helper.make_tensor_value_info("h", f32, [4, 4]), helper.make_tensor_value_info("w", f32, [4, 4])],
        [helper.make_tensor_value_info("present", f32, ["q", 4]), helper.make_tensor_value_info("h2", f32, [4, 4])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return str(path)


def test_what_cannot_be_taken_over_is_refused(tmp_path: Path) -> None:
    path = growing(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="cannot take over input past") as caught:
        arcweld.compile(path, inputs=Input("past", inout=True), device="sim")
    assert "full length" in str(caught.value.hint)
    with pytest.raises(UsageError, match="input h cannot be taken over: no output's name goes with it"):
        arcweld.compile(path, inputs=Input("h", inout=True), device="sim")
    with pytest.raises(UsageError, match="the model has no output 'h3'"):
        arcweld.compile(path, inputs=Input("h", inout="h3"), device="sim")
    with pytest.raises(UsageError, match="no output can take over a constant"):
        arcweld.compile(path, inputs=Input("h", value=np.zeros((4, 4), np.float32), inout="h2"), device="sim")
    with pytest.raises(UsageError, match="would take over two inputs, h and w"):
        arcweld.compile(path, inputs=[Input("h", inout="h2"), Input("w", inout="h2")], device="sim")


def test_the_command_builds_explains_and_inspects_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, engine = growing(tmp_path / "m.onnx"), str(tmp_path / "m.engine")
    assert main([path, "-o", engine, "--inout", "h:h2", "--quiet", "--device", "sim"]) == 0
    loaded = arcweld.load(engine, device="sim")
    h = aligned_empty((4, 4), np.dtype(np.float32))
    h[...] = np.arange(16).reshape(4, 4)
    w = np.eye(4, dtype=np.float32)[::-1].copy()
    want = h @ w
    feeds = {"past": np.zeros((1, 4), np.float32), "x": np.ones((1, 4), np.float32), "h": h, "w": w}
    assert loaded.run(feeds)["h2"] is h
    np.testing.assert_array_equal(h, want)
    capsys.readouterr()
    assert main(["inspect", engine]) == 0
    assert "output h2: f32[4, 4], copied into h" in capsys.readouterr().out
    assert main(["explain", path, "--inout", "h:h2"]) == 0
    assert "h is copied: " in capsys.readouterr().out
    onnx.save(decoder(), tmp_path / "d.onnx")
    assert main(["explain", str(tmp_path / "d.onnx"), "--inout", "past_key_values.*"]) == 0
    assert "past_key_values.1.value is written in place by present.1.value" in capsys.readouterr().out
    assert main(["explain", path, "--inout", "nothing*"]) != 0
    assert "no input is called 'nothing*'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "outputs", "found"),
    [
        ("past_key_values.3.key", ["logits", "present.3.key"], "present.3.key"),
        ("past_key_3", ["present_key_3", "present_value_3"], "present_key_3"),
        ("past_value_3", ["present_key_3", "present_value_3"], "present_value_3"),
        ("past_0", ["present_0"], "present_0"),
        ("state", ["output", "stateN"], "stateN"),
        ("h_in", ["h_out"], "h_out"),
        ("x", ["y"], None),
    ],
)
def test_partners(name: str, outputs: list[str], found: str | None) -> None:
    assert partner(name, outputs) == found


@pytest.mark.models
def test_a_published_voice_detector_keeps_its_state() -> None:
    """Silero's network: its state goes in and out of every call. ONNX Runtime gets each new one by hand."""
    try:
        path = str(fetch("silero_vad"))
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    shapes = [Input(n, s) for n, s in MODELS["silero_vad"].shapes.items() if n != "state"]
    state = Input("state", MODELS["silero_vad"].shapes["state"], inout=True)
    values = [Input(n, value=v) for n, v in MODELS["silero_vad"].values.items()]
    engine = arcweld.compile(path, inputs=[*shapes, state, *values], device="sim")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ours, theirs = aligned_empty((2, 1, 128), np.dtype(np.float32)), np.zeros((2, 1, 128), np.float32)
    ours[...] = 0
    signal = speech(6 * 512 + 64)
    for k in range(6):
        frame = signal[None, k * 512 : k * 512 + 576].copy()
        want, theirs = session.run(None, {"input": frame, "state": theirs, "sr": np.array(16000)})
        found = engine.run({"input": frame, "state": ours})
        np.testing.assert_allclose(found["output"], want, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
