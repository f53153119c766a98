"""The profiler's order of work, on a simulator that passes for a GPU; its times need a real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from runtime_programs import W, chain, chain_reference, rows

from arcweld.compiler.errors import UsageError
from arcweld.runtime import profiler
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice


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

    def timed(device: Any, prepared: Any, repeat: int, rounds: int) -> float:
        for _ in range(repeat):
            device.launch(prepared)
        launched.append(prepared)
        return 1e-6

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
    assert engine.device.depth == 0  # type: ignore[attr-defined]


def test_what_cannot_be_profiled(engine: Engine) -> None:
    with pytest.raises(UsageError, match="must be f32, got float64"):
        profiler.profile(engine, {"x": rows(4).astype(np.float64)})
    with pytest.raises(UsageError, match="cannot be profiled"):
        profiler.profile(Engine(chain(), SimDevice()), {"x": rows(4)})


@pytest.mark.filterwarnings("error")
def test_cupy_takes_the_stream_that_was_recorded_on() -> None:
    pytest.importorskip("cupy")
    assert profiler.cupy_stream(77).ptr == 77
