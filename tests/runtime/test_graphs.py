"""Recorded graphs, on a simulator that records and replays launches as CUDA does."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
from runtime_programs import SCALE_ADD, W, chain, chain_reference, check, rows, scale_add

from arcweld.runtime.arrays import Element, Taken
from arcweld.runtime.device import LaunchSpec
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.program import SCHEMA, Program, Symbol, Tensor
from arcweld.runtime.sim.device import SimDevice


class GraphDevice(SimDevice):
    """The simulator with graphs that record what is launched while capturing, as CUDA does."""

    def __init__(self) -> None:
        super().__init__()
        self.recording: list[tuple[str, tuple[object, ...]]] | None = None
        self.captures = self.replays = self.copies = 0
        self.user_records = False

    @property
    def can_capture(self) -> bool:
        return True

    def is_capturing(self, stream: int) -> bool:
        return self.user_records

    def begin_capture(self) -> int:
        self.recording = []
        self.captures += 1
        return 7

    def end_capture(self) -> object:
        graph, self.recording = self.recording, None
        return graph

    def replay(self, graph: object, stream: int = 0) -> None:
        self.replays += 1
        for name, args in graph:  # type: ignore[attr-defined]
            getattr(SimDevice, name)(self, *args)

    def launch(self, prepared: object, stream: int = 0) -> None:
        if self.recording is not None:
            assert stream == 7
            self.recording.append(("launch", (prepared,)))
        else:
            super().launch(prepared)

    def fill(self, address: int, nbytes: int, byte: int, stream: int = 0) -> None:
        if self.recording is not None:
            self.recording.append(("fill", (address, nbytes, byte)))
        else:
            super().fill(address, nbytes, byte)

    def copy(self, destination: int, source: int, nbytes: int, stream: int = 0) -> None:
        if self.recording is not None:
            self.recording.append(("copy", (destination, source, nbytes)))
        else:
            self.copies += 1
            super().copy(destination, source, nbytes)


def test_new_arrays_are_staged_through_one_graph() -> None:
    device = GraphDevice()
    engine = Engine(chain(), device)
    arrays, results = [rows(6, seed) for seed in range(5)], []
    for x in arrays:
        results.append(engine(x))
    assert (device.captures, device.replays) == (1, 4)
    for x, (y, _) in zip(arrays, results):
        np.testing.assert_allclose(y, chain_reference(x, W)[0], rtol=1e-5, atol=1e-5)
    device.user_records = True
    check(engine, rows(6, 9))
    assert device.replays == 4  # a caller who records gets plain launches


def test_arrays_that_come_back_get_graphs_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    device = GraphDevice()
    engine = Engine(chain(), device)
    x, turn = rows(6), 0
    pool = [(np.empty((6, 8), np.float32), np.empty((), np.float32)) for _ in range(2)]

    def empty(kind: str, shape: tuple[int, ...], element: object) -> tuple[np.ndarray, int, None]:
        array = pool[turn % 2][0 if shape else 1]
        return array, array.ctypes.data, None

    monkeypatch.setattr(engine.shared.arrays, "empty", empty)
    for turn in range(12):
        x[...] = rows(6, turn)
        y, total = engine(x)
        want, want_total = chain_reference(x, W)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(total, want_total, rtol=1e-4, atol=1e-3)
        copies = device.copies
    assert device.captures == 3  # one staged, then one for each pair of results
    assert copies == device.copies == 3  # all by the one staged call


def test_graphs_are_bounded_and_survive_a_growing_arena() -> None:
    device = GraphDevice()
    engine = Engine(chain(), device)
    for n in [*range(1, 45), *range(1, 45), 3, 60, 60, 3, 3, 60]:
        check(engine, rows(n, n))
    (context,) = engine._local.contexts.values()
    assert 0 < sum(b.graphs for b in context._specialised.values()) <= 32


class RecordingCaller(GraphDevice):
    """The caller records into ``graph`` while that is a list. Nothing runs then, as on a GPU."""

    graph: list[tuple[str, tuple[object, ...]]] | None = None

    def is_capturing(self, stream: int) -> bool:
        return self.graph is not None

    def launch(self, prepared: object, stream: int = 0) -> None:
        if self.graph is None:
            super().launch(prepared, stream)
        else:
            self.graph.append(("launch", (prepared,)))

    def fill_zero(self, address: int, nbytes: int, stream: int = 0) -> None:
        if self.graph is None:
            super().fill_zero(address, nbytes)
        else:
            self.graph.append(("fill_zero", (address, nbytes)))

    def record(self, engine: Engine, x: np.ndarray) -> tuple[list[tuple[str, tuple[object, ...]]], list[np.ndarray]]:
        """The graph of a call, and the arrays that a replay of it writes."""
        self.graph = []
        results = engine(x)
        graph, self.graph = self.graph, None
        return graph, results

    def step(self, graph: list[tuple[str, tuple[object, ...]]], k: int) -> None:
        name, args = graph[k]
        getattr(SimDevice, name)(self, *args)


def same(got: list[np.ndarray], x: np.ndarray) -> None:
    for g, want in zip(got, chain_reference(x, W), strict=True):
        np.testing.assert_allclose(g, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("warm", [True, False])
def test_two_recordings_may_overlap(warm: bool, graphs: bool) -> None:
    device = RecordingCaller()
    engine = Engine(chain(), device, graphs=graphs)
    if warm:
        check(engine, rows(6))
    inputs = [rows(6, seed) for seed in (1, 2, 3)]
    recorded = [device.record(engine, x) for x in inputs]
    for k in range(len(recorded[0][0])):  # a step of each in turn, as on three streams
        for graph, _ in recorded:
            device.step(graph, k)
    for x, (_, results) in zip(inputs, recorded):
        same(results, x)


def test_a_recording_and_calls_may_overlap() -> None:
    device = RecordingCaller()
    engine = Engine(chain(), device)
    check(engine, rows(6))
    x = rows(6, 1)
    graph, results = device.record(engine, x)
    for k in range(len(graph)):
        device.step(graph, k)
        check(engine, rows(6, 7 + k))
        thread = threading.Thread(target=check, args=(engine, rows(6, 70 + k)))
        thread.start()
        thread.join()
    same(results, x)


def test_arenas_in_the_callers_graphs_live_as_long_as_the_engine() -> None:
    """A caller may record in one thread, or on a stream that the engine later forgets, and replay afterwards."""
    device = RecordingCaller()
    engines = [Engine(chain(), device)]
    x = rows(6)
    recorded: list[tuple[list[tuple[str, tuple[object, ...]]], list[np.ndarray]]] = []
    thread = threading.Thread(target=lambda: recorded.append(device.record(engines[0], x)))
    thread.start()
    thread.join()
    engines[0].release()
    arenas = [weakref.ref(m.array) for m in engines[0].shared.recorded]
    gc.collect()
    assert [a() is not None for a in arenas] == [True]
    for k in range(len(recorded[0][0])):
        device.step(recorded[0][0], k)
    same(recorded[0][1], x)
    engines.clear()
    gc.collect()
    assert [a() is not None for a in arenas] == [False]


@pytest.mark.parametrize("on_host", [True, False])
def test_a_call_waits_where_the_callers_memory_is_still_read(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory is copied from while the call has long returned; results on the GPU don't make it wait."""
    device = GraphDevice()
    engine = Engine(chain(), device)
    take = engine.shared.arrays.take

    def taken(name: str, array: np.ndarray, element: Element) -> Taken:
        found = take(name, array, element)
        return replace(found, host=array if on_host else None)

    monkeypatch.setattr(engine.shared.arrays, "take", taken)
    waits: list[int] = []
    device.synchronize = waits.append  # type: ignore[method-assign,assignment]
    for seed in range(3):
        check(engine, rows(6, seed))
        assert len(waits) == (seed + 1 if on_host else 0)


@pytest.mark.parametrize(("torchs", "cupys", "waits"), [(5, 9, [9]), (5, 5, [])])
def test_arrays_of_two_libraries(torchs: int, cupys: int, waits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's and CuPy's current streams may differ: what CuPy is still computing must be there first."""
    x, w, y = (Tensor(name, "f32", ("n", "8")) for name in "xwy")
    launch = scale_add("add", "x", "w", "y", 2.0, "8*n", "8*n")
    program = Program(SCHEMA, "add", (Symbol("n"),), (x, w), (y,), (), (), (), (launch,))
    device = GraphDevice()
    engine = Engine(EngineData(program, {"scale_add": SCALE_ADD}, {}), device)
    arrays, kinds = engine.shared.arrays, {"x": "torch-gpu", "w": "cupy"}
    take, empty = arrays.take, arrays.empty
    monkeypatch.setattr(arrays, "take", lambda n, a, e: replace(take(n, a, e), kind=kinds[n]))
    monkeypatch.setattr(arrays, "empty", lambda kind, shape, element: empty("numpy", shape, element))
    monkeypatch.setattr(arrays, "stream", lambda kind: cupys if kind == "cupy" else torchs)
    waited: list[int] = []
    device.synchronize = waited.append  # type: ignore[method-assign,assignment]
    np.testing.assert_allclose(engine(rows(3, 1), rows(3, 2)), 2 * rows(3, 1) + rows(3, 2), rtol=1e-6)
    assert waited == waits


def test_graphs_can_be_switched_off() -> None:
    device = GraphDevice()
    engine = Engine(chain(), device, graphs=False)
    for seed in range(3):
        check(engine, rows(6, seed))
    assert device.captures == 0


def test_prepared_launches_know_their_buffers() -> None:
    specs: list[LaunchSpec] = []

    class Recorder(SimDevice):
        def prepare(self, spec: LaunchSpec) -> object:
            specs.append(spec)
            return super().prepare(spec)

    Engine(chain(), Recorder())(rows(5))
    first = next(s for s in specs if s.name == "first")
    assert [(size, written) for _, size, written in first.buffers] == [(160, False), (32, False), (160, True)]
    assert all(address % 16 == 0 for address, _, _ in first.buffers)


def test_a_call_is_a_bounded_number_of_python_steps() -> None:
    """The host's share of a call, counted rather than timed: no clock of a busy machine decides."""
    device = GraphDevice()
    device.replay = lambda graph, stream=0: None  # type: ignore[method-assign]
    engine = Engine(chain(), device)
    x = rows(4)
    for _ in range(3):
        engine(x)
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        engine(x)
    finally:
        sys.setprofile(None)
    assert steps < 70
