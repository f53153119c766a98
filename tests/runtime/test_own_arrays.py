"""Workspace and counters that kernels have for themselves: zeros before each launch, whatever came before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from runtime_programs import partial_sums
from test_engine_file import file_bytes
from test_graphs import GraphDevice, RecordingCaller

from arcweld.compiler.errors import DeviceError, EngineFileError
from arcweld.driver.single_launch import single_launch
from arcweld.runtime import profiler
from arcweld.runtime.arena import aligned
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData, parse_engine
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.plan import ExecutionPlan
from arcweld.runtime.program import Launch, Tensor
from arcweld.runtime.sim.device import SimDevice


def check(engine: Engine, n: int, seed: int = 0) -> None:
    """Calls the engine with ``n`` whole numbers, whose sums are exact."""
    x = np.random.default_rng(seed).integers(-9, 9, n).astype(np.float32)
    once, total = engine(x)
    assert (float(once[0]), float(total[0])) == (float(x.sum()), float(3 * x.sum()))


@pytest.mark.parametrize("poison", [False, True])
def test_counters_are_zeros_before_each_launch_of_any_shape(poison: bool) -> None:
    engine = Engine(partial_sums(), SimDevice(checked=True), poison=poison)
    for seed, n in enumerate((100, 100, 7, 4000, 100, 33, 4096)):
        check(engine, n, seed)


def test_each_launch_has_counters_of_its_own_outside_the_arena() -> None:
    plan = ExecutionPlan(partial_sums().program, "sm_80")
    sizes = compute_sizes(plan, {"n": 100})
    assert sizes.counters == {"first.count": 0, "second.count": aligned(4)}
    assert not sizes.counters.keys() & sizes.arena.keys()
    lives = {x.name: (x.first, x.last) for x in plan.lifetimes}
    assert (lives["first.partial"], lives["second.partial"]) == ((0, 0), (2, 2))
    assert Engine(partial_sums(), SimDevice()).memory(n=100).arena == sizes.arena_bytes + sizes.counter_bytes


def test_recorded_graphs_count_from_zero() -> None:
    device = GraphDevice()
    engine = Engine(partial_sums(), device)
    for n in (50, 50, 50, 2000, 2000, 50, 50):
        check(engine, n, n)
    assert device.replays


def test_two_recordings_of_a_caller_count_apart() -> None:
    device = RecordingCaller()
    engine = Engine(partial_sums(), device)
    x = np.arange(70, dtype=np.float32)
    graphs = [device.record(engine, x) for _ in range(2)]
    for k in range(len(graphs[0][0])):  # both advance in turns, as two streams may
        for graph, _ in graphs:
            device.step(graph, k)
    for _, (once, total) in graphs:
        assert (float(once[0]), float(total[0])) == (float(x.sum()), float(3 * x.sum()))


def test_a_launch_that_fails_leaves_no_count_behind() -> None:
    engine = Engine(partial_sums(), SimDevice(checked=True))
    bad = np.ones(100, np.float32)
    bad[70] = 1e9
    check(engine, 100)
    with pytest.raises(DeviceError, match="partial_sums"):
        engine(bad)
    check(engine, 100)


def test_the_profiler_repeats_such_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(device: Any, prepared: Any, repeat: int, rounds: int) -> list[float]:
        for _ in range(repeat):
            device.launch(prepared)
        return [1e-6]

    monkeypatch.setattr(profiler, "_time", timed)
    monkeypatch.setattr(SimDevice, "measures_time", True)
    monkeypatch.setattr(SimDevice, "enter", lambda self: 0)
    times = profiler.profile(Engine(partial_sums(), SimDevice(checked=True)), {"x": np.ones(100, np.float32)}, repeat=3)
    assert len(times) == 4


def test_a_single_launch_brings_its_own_arrays() -> None:
    single = single_launch(partial_sums(), ["second"], "partial_sums", {"n": 65})
    (found,) = single.program.launches
    assert found.variants[0].workspace == (Tensor("second.partial", "f32", ("3",)),)
    x = np.arange(65, dtype=np.float32)
    got = Engine(single, SimDevice(checked=True)).run({"twice": x})
    assert float(got["doubled"][0]) == float(x.sum())


def test_an_engine_file_keeps_them() -> None:
    data = partial_sums()
    assert parse_engine(memoryview(file_bytes(data))).program == data.program


def first(**parts: object) -> EngineData:
    """The program with parts of its first launch's variant changed."""
    program = partial_sums().program
    launch = program.launches[0]
    variant = msgspec.structs.replace(launch.variants[0], **parts)
    changed = msgspec.structs.replace(launch, variants=(variant,))
    return replace(
        partial_sums(), program=msgspec.structs.replace(program, launches=(changed, *program.launches[1:]))
    )  # fmt: skip


def reading(name: str) -> EngineData:
    program = partial_sums().program
    second = program.launches[1]
    launch = Launch(second.name, second.template, second.variants, (*second.reads, name), second.writes)
    launches = (program.launches[0], launch, *program.launches[2:])
    return replace(partial_sums(), program=msgspec.structs.replace(program, launches=launches))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (first(workspace=()), "takes 'first.partial', which it declares neither"),
        (first(counters=()), "takes 'first.count', which it declares neither"),
        (first(counters=(Tensor("x", "u32", ()),)), "'x' is unnamed or declared twice"),
        (first(counters=(Tensor("second.count", "u32", ()),)), "'second.count' is unnamed or declared twice"),
        (first(counters=(Tensor("first.count", "f32", ()),)), "counts in numbers that are not u32"),
        (first(workspace=(Tensor("first.partial", "f32", ("m",)),)), "undeclared symbol 'm'"),
        (reading("first.partial"), "uses the unknown tensor 'first.partial'"),
    ],
)
def test_what_is_refused(data: EngineData, message: str) -> None:
    with pytest.raises(EngineFileError, match=message):
        parse_engine(memoryview(file_bytes(data)))
