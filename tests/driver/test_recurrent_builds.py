"""Recurrent layers from the file to the checked simulator: how much is built doesn't depend on the number of steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper
from onnx_models import floats, model, runtime

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.driver import api
from arcweld.driver.build import Build, build_graph
from arcweld.driver.value_uses import integer_range
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FEATURES = 6


def layer(op: str, steps: int | str, batch: int | str, hidden: int, **attrs: Any) -> onnx.ModelProto:
    """A layer of both directions, its steps' states and its last ones."""
    rows, scale = GATES[op] * hidden, hidden**-0.5
    weights = {"w": floats(2, rows, FEATURES), "r": floats(2, rows, hidden, seed=1), "b": floats(2, 2 * rows, seed=2)}
    node = helper.make_node(op, [*"xwrb"], ["y", "h"], hidden_size=hidden, direction="bidirectional", **attrs)
    scaled = {k: v * np.float32(scale) for k, v in weights.items()}
    return model([node], {"x": (np.float32, [steps, batch, FEATURES])}, ["y", "h"], scaled)


def built(proto: onnx.ModelProto, **options: Any) -> Build:
    return api.build_engine(import_onnx(proto), device="sim", arch=["sm_80"], **options)[0]


@cache
def open_steps(op: str) -> tuple[onnx.ModelProto, Build]:
    proto = layer(op, "steps", "rows", 12)
    return proto, built(proto)


def launches(build: Build) -> list[str]:
    return [p.bound.kernel.template for p in build.planned]


def assert_right(proto: onnx.ModelProto, build: Build, steps: int, batch: int, tolerance: float = 2e-5) -> None:
    x = floats(steps, batch, FEATURES, seed=3)
    got = Engine(build.data, SimDevice(checked=True)).run({"x": x})
    for ours, theirs in zip(got.values(), runtime(proto, {"x": x})):
        np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", GATES)
def test_as_many_kernels_for_any_number_of_steps(op: str) -> None:
    counts = {}
    for steps in (10, 100, 2000):
        proto = layer(op, steps, 1, 8)
        build = built(proto, verify="off" if steps == 100 else "quick")
        assert_right(proto, build, steps, 1)
        counts[steps] = launches(build)
    assert counts[10] == counts[100] == counts[2000] == ["contract", "recurrence"]


def cpu_seconds() -> float:
    """What this process and its compilers have used, so that other work on the machine doesn't count."""
    this = psutil.Process()
    return sum(sum(p.cpu_times()[:4]) for p in (this, *this.children(recursive=True)))


def test_a_cold_build_takes_two_seconds_for_any_number_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path))
    build_graph(import_onnx(layer("LSTM", 10, 1, 20)), Options(arch=("sm_80",)))  # imports modules, starts compilers
    for steps in (10, 500, 2000):
        before = cpu_seconds()
        graph = import_onnx(layer("LSTM", steps, 1, 24))
        build = build_graph(graph, Options(arch=("sm_80",)))
        assert cpu_seconds() - before < 2
        assert launches(build) == ["contract", "recurrence"]


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (5, 3), (40, 1), (2, 9)])
def test_one_build_serves_all_lengths(op: str, steps: int, batch: int) -> None:
    proto, build = open_steps(op)
    assert_right(proto, build, steps, batch)


@pytest.mark.parametrize("op", GATES)
def test_blocks_that_share_the_units(op: str) -> None:
    hidden = {"LSTM": 80, "GRU": 100, "RNN": 170}[op]
    proto = layer(op, "steps", 2, hidden)
    build = built(proto)
    (variant,) = (v for x in build.data.program.launches if x.template == "recurrence" for v in x.variants)
    assert variant.cooperative
    for steps in (1, 7):
        assert_right(proto, build, steps, 2, 5e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-2), ("bf16", 8e-2)])
def test_half_precision_keeps_states_in_f32(precision: str, tolerance: float) -> None:
    proto = layer("LSTM", 30, 2, 12)
    build = built(proto, precision=precision)
    (kernel,) = (p.bound.kernel for p in build.planned if p.bound.kernel.template == "recurrence")
    assert kernel.loads["r"].dtype is DType.F32  # computed with, and stored in 16 bits
    assert any(b.dtype.is_half for b in kernel.buffers if not b.written)
    assert_right(proto, build, 30, 2, tolerance)


def test_lengths_of_rows_are_an_input() -> None:
    """Verification draws lengths that rows can have."""
    proto = layer("LSTM", "steps", "rows", 12)
    (node,) = proto.graph.node
    node.input.extend(["", "n"] if len(node.input) == 3 else ["n"])
    proto.graph.input.append(helper.make_tensor_value_info("n", onnx.TensorProto.INT32, ["rows"]))
    build = built(proto)
    x, n = floats(7, 3, FEATURES), np.array([7, 1, 4], np.int32)
    got = Engine(build.data, SimDevice(checked=True)).run({"x": x, "n": n})
    for ours, theirs in zip(got.values(), runtime(proto, {"x": x, "n": n})):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    low, high = integer_range(build.imported, build.imported.inputs[1], {"steps": 9, "rows": 2})
    assert (low, high) == (1, 9)


def test_an_engine_takes_no_sequence_without_steps() -> None:
    graph = import_onnx(layer("GRU", "steps", 1, 8), ranges={"steps": (0, None, 1)})
    engine = api.build_engine(graph, device="sim", arch=["sm_80"], verify="off")[1]
    engine.run({"x": np.zeros((1, 1, FEATURES), np.float32)})
    with pytest.raises(InputError, match="steps is 0"):
        engine.run({"x": np.zeros((0, 1, FEATURES), np.float32)})
