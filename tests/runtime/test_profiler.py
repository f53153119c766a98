"""The profiler's order of work, on a simulator that passes for a GPU; its times need a real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from runtime_programs import W, chain, chain_reference, rows

import arcweld
from arcweld.compiler.errors import InputError, UsageError
from arcweld.runtime import profiler
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice
from arcweld.runtime.steps import Repeat


class Card(SimDevice):
    """The simulator, as if its times meant something."""

    measures_time = True

    def __init__(self) -> None:
        super().__init__(checked=True)
        self.depth = 0

    def enter(self) -> int:
        self.depth += 1
        return 0

    def leave(self, token: int) -> None:
        self.depth -= 1


@pytest.fixture
def engine() -> Engine:
    return Engine(chain(), Card())


def test_every_launch_is_timed_on_its_real_operands(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    x, launched = rows(24, 3), []

    def timed(device: Any, prepared: Any, repeat: int, rounds: int) -> list[float]:
        for _ in range(repeat):
            device.launch(prepared)
        launched.append(prepared)
        return [1e-6, 5e-6, 1e-6]

    monkeypatch.setattr(profiler, "_time", timed)
    kept: list[Any] = []  # the memory that the profiler has let go by the time it is looked at
    allocate = engine.device.allocate
    monkeypatch.setattr(engine.device, "allocate", lambda nbytes: kept.append(allocate(nbytes)) or kept[-1])
    times = profiler.profile(engine, {"x": x}, repeat=3)
    assert [t.name for t in times] == [launch.name for launch in engine.program.launches]
    results = []
    for prepared in launched:
        address, size, _ = next(b for b in prepared.buffers if b[2])
        results.append(np.empty(size // 4, np.float32))
        engine.device.download(results[-1], address)
    y, total = chain_reference(x, W)
    assert any(r.size == 1 and np.allclose(r, total, rtol=1e-4, atol=1e-3) for r in results)
    assert any(r.size == y.size and np.allclose(r, y.reshape(-1), rtol=1e-5, atol=1e-5) for r in results)
    assert all(t.nbytes > 0 for t in times)
    assert {(t.seconds, round(t.mean, 12)) for t in times} == {(1e-6, round(7e-6 / 3, 12))}
    assert engine.device.depth == 0  # type: ignore[attr-defined]


def test_what_cannot_be_profiled(engine: Engine) -> None:
    with pytest.raises(InputError, match="must be f32, got f64"):
        profiler.profile(engine, {"x": rows(4).astype(np.float64)})
    with pytest.raises(UsageError, match="cannot be profiled"):
        profiler.profile(Engine(chain(), SimDevice()), {"x": rows(4)})


@pytest.mark.filterwarnings("error")
def test_cupy_takes_the_stream_that_was_recorded_on() -> None:
    pytest.importorskip("cupy")
    assert profiler.cupy_stream(77).ptr == 77


def test_the_host_is_part_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of three turns, each with launches and a condition that is read, and a size that is read after it."""
    monkeypatch.setattr(profiler, "_time", lambda device, prepared, repeat, rounds: [1e-6])
    i, on, going = (h.make_tensor_value_info(n, t, []) for n, t in (("i", T.INT64), ("on", T.BOOL), ("going", T.BOOL)))
    v, w = (h.make_tensor_value_info(n, T.FLOAT, [4, 8]) for n in ("v", "w"))
    body = [h.make_node("Sin", ["v"], ["w"], name="sine"), h.make_node("Identity", ["on"], ["going"])]
    turns = h.make_graph(body, "body", [i, on, v], [going, w])
    nodes = [
        h.make_node("Loop", ["k", "", "x"], ["y"], body=turns, name="turns"),
        h.make_node("NonZero", ["y"], ["places"], name="where"),
    ]
    inputs = [h.make_tensor_value_info("x", T.FLOAT, [4, 8]), h.make_tensor_value_info("k", T.INT64, [])]
    graph = h.make_graph(nodes, "g", inputs, [h.make_tensor_value_info("places", T.INT64, None)])
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    engine = Engine(arcweld.compile(proto, device="sim").data, Card())
    x = np.abs(rows(4)) + 1
    found = profiler.profile(engine, {"x": x, "k": np.array(3)})
    on_host = {t.name: (t.kernel, t.runs, t.nbytes) for t in found if t.template == profiler.HOST}
    loop = next(s for s in engine.program.steps if isinstance(s, Repeat))
    assert on_host == {
        "turns: k": ("read", 1, 8), f"turns: {loop.body.results[0]}": ("read", 3, 3), "where": ("read", 1, 8)
    }  # fmt: skip
    origins = {x.name: x.origin for x in engine.program.all_launches()}
    (sine,) = (t for t in found if any("sine" in o for o in origins.get(t.name, ())))
    assert (sine.runs, sine.nbytes) == (3, 3 * 2 * x.nbytes)
    assert sine.seconds == sine.mean == pytest.approx(3e-6)
