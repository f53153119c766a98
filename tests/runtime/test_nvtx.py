"""NVTX ranges: names and nesting, seen by a stand-in for CuPy's module; and that nothing is done without them."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from runtime_programs import W, chain, chain_reference, rows

import arcweld
from arcweld.compiler.errors import DeviceError, EnvironmentError_, UsageError
from arcweld.runtime import launch_list, nvtx
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice


class Recorded(SimDevice):
    """The simulator, which notes its launches; ``fails`` is the name of one that fails."""

    def __init__(self, seen: list[str], fails: str = "") -> None:
        super().__init__()
        self.seen, self.fails = seen, fails

    def launch(self, prepared: Any, stream: int = 0) -> None:
        if self.fails:
            raise DeviceError("it fails")
        self.seen.append("launch")
        super().launch(prepared, stream)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was pushed, popped and launched."""
    found: list[str] = []
    stand_in = SimpleNamespace(RangePush=found.append, RangePop=lambda: found.append("pop"))
    monkeypatch.setattr(nvtx, "_library", lambda: stand_in)
    monkeypatch.setenv("ARCWELD_NVTX", "1")
    return found


def test_each_launch_is_in_a_range_with_its_kernel_and_nodes(seen: list[str]) -> None:
    data = chain()
    got = Engine(data, Recorded(seen)).run({"x": rows(4)})
    assert np.allclose(got["total"], chain_reference(rows(4), W)[1], rtol=1e-4)
    wanted = [data.program.name]
    for x in data.program.launches:
        wanted += [f"{x.variants[0].entry}: {', '.join(x.origin)}", "launch", "pop"]
    assert seen == [*wanted, "pop"]


def test_ranges_end_where_a_launch_fails(seen: list[str]) -> None:
    with pytest.raises(DeviceError, match="it fails"):
        Engine(chain(), Recorded(seen, "all")).run({"x": rows(4)})
    assert len(seen) == 4
    assert seen[2:] == ["pop", "pop"]


def test_nodes_of_stages_are_named(seen: list[str]) -> None:
    nodes = [
        h.make_node("Sin", ["x"], ["s"], name="sine"), h.make_node("NonZero", ["s"], ["i"], name="where"),
        h.make_node("Cast", ["i"], ["y"], to=T.FLOAT, name="cast\x1b[2J" + "x" * 500),
    ]  # fmt: skip
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, [8])], [h.make_tensor_value_info("y", T.FLOAT, [1, "k"])]
    )
    made = arcweld.compile(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), device="sim")
    seen.clear()
    Engine(made.data, Recorded(seen)).run({"x": np.arange(8, dtype=np.float32)})
    assert any("sine" in text for text in seen)
    cast = next(text for text in seen if "cast" in text and len(text) == nvtx.MOST)
    assert "\x1b" not in cast
    assert seen.count("pop") == len(seen) - seen.count("pop") - seen.count("launch")


def test_graphs_are_not_replayed(seen: list[str]) -> None:
    assert [s.graphs for s in Engine(chain(), SimDevice())._stages] == [False]


@pytest.mark.parametrize("value", ["", "0", None])
def test_without_ranges_a_call_is_as_it_was(
    value: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARCWELD_NVTX") if value is None else monkeypatch.setenv("ARCWELD_NVTX", value)
    monkeypatch.setattr(nvtx, "_library", lambda: pytest.fail("the library is not asked for"))
    engine = Engine(chain(), SimDevice())
    assert all(s.issue is launch_list.issue and s.graphs for s in engine._stages)
    engine.run({"x": rows(4)})
    assert seen == []


def test_the_variable_is_1_or_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_NVTX", "yes")
    with pytest.raises(UsageError, match="ARCWELD_NVTX is 'yes'"):
        Engine(chain(), SimDevice())


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_NVTX", "1")
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(EnvironmentError_, match="CuPy's NVTX cannot be imported") as caught:
        Engine(chain(), SimDevice())
    assert "unset ARCWELD_NVTX" in (caught.value.hint or "")


def test_cupy_s_own_ranges_need_no_gpu() -> None:
    pytest.importorskip("cupy")
    script = (
        "from runtime_programs import *; from arcweld.runtime.sim.device import SimDevice\n"
        "Engine(chain(), SimDevice()).run({'x': rows(4)}); print('ran')"
    )
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, "ARCWELD_NVTX": "1", "PYTHONPATH": folder},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("ran\n", 0), done.stderr
