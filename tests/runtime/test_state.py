"""State at run time: arrays that calls change in place, sessions for what the model owns, and refusals."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_graphs import GraphDevice

import arcweld
from arcweld.compiler.errors import EngineFileError, InputError, UsageError
from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.text import parse_graph
from arcweld.driver import api
from arcweld.runtime.arrays import aligned_empty
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import check_data

TEXT = """graph 'g'
symbol n(lo=1, hi=32)
input %new: f32[n]
input %at: i64[n]
input %cache: f32[32]
%next: f32[32] = ScatterElements(%cache, %at, %new, axis=0, reduction='none', strict=0)
%y: f32[] = ReduceSum(%next, axes=(0,), keepdims=0)
output %y 'y'
output %next 'next' in %cache
"""


def graph(first: np.ndarray | None = None) -> Graph:
    """The text's graph; with first values, the model owns the cache."""
    plain = parse_graph(TEXT)
    return plain if first is None else plain.replace(initial={"cache": Weight(first, "layer.cache")})


@pytest.fixture(scope="module")
def engine() -> Engine:
    return api.compile_graph(graph(), device="sim")


@pytest.fixture(scope="module")
def owner() -> Engine:
    return api.compile_graph(graph(np.arange(32, dtype=np.float32)), device="sim")


def zeros() -> np.ndarray:
    cache = aligned_empty((32,), np.dtype(np.float32))
    cache[...] = 0
    return cache


def call(engine: Any, k: int, **more: Any) -> Any:
    return engine.run({"new": np.array([k + 0.5], np.float32), "at": np.array([k]), **more})


def after(count: int, start: np.ndarray) -> np.ndarray:
    want = start.copy()
    want[:count] = np.arange(count) + 0.5
    return want


# ------------------------------------------------------------------------------------------- the caller's own arrays


def test_calls_change_the_callers_array(engine: Engine) -> None:
    cache = zeros()
    for k in range(5):
        found = call(engine, k, cache=cache)
        assert found["next"] is cache
        np.testing.assert_allclose(found["y"], cache.sum())
    np.testing.assert_array_equal(cache, after(5, np.zeros(32, np.float32)))


def test_torch_tensors_are_changed_too(engine: Engine) -> None:
    import torch

    cache = torch.zeros(32)
    found = engine.run({"new": torch.tensor([2.0]), "at": torch.tensor([7]), "cache": cache})
    assert found["next"] is cache
    assert cache.nonzero().tolist() == [[7]]


@pytest.mark.parametrize("graphs", [True, False])
def test_recorded_graphs_leave_state_where_it_is(graphs: bool) -> None:
    """Two caches that take turns, and inputs at new addresses: each result is right, and no cache is copied."""
    device = GraphDevice()
    data = api.compile_graph(graph(), device="sim").data
    engine = Engine(data, device, graphs=graphs)
    caches, kept = [zeros(), zeros()], []
    for k in range(12):
        new, at = np.array([k + 0.5], np.float32), np.array([k // 2])
        kept += [new, at]  # so that none of the later ones gets its address
        copies = device.copies
        found = engine.run({"new": new, "at": at, "cache": caches[k % 2]})
        assert found["next"] is caches[k % 2]
        assert device.copies - copies <= 3  # new, at and y, through the graph's own memory
    assert (device.captures > 0) == graphs
    for odd, cache in enumerate(caches):
        np.testing.assert_array_equal(cache[:7], [*(2 * i + odd + 0.5 for i in range(6)), 0])


def unusable(kind: str) -> np.ndarray:
    if kind == "read-only":
        cache = zeros()
        cache.flags.writeable = False
        return cache
    if kind == "with gaps":
        return np.zeros(64, np.float32)[::2]
    return aligned_empty((36,), np.dtype(np.float32))[1:33]  # not aligned


@pytest.mark.parametrize("kind", ["read-only", "with gaps", "not aligned"])
def test_an_array_that_cannot_be_changed_in_place_is_refused(engine: Engine, kind: str) -> None:
    with pytest.raises(InputError, match="input 'cache' is changed in place: it must be contiguous, writable"):
        call(engine, 0, cache=unusable(kind))


def test_overlapping_inputs_are_refused(engine: Engine) -> None:
    memory = aligned_empty((64,), np.dtype(np.float32))
    memory[...] = 0
    for new in (memory[28:32], memory[:4], memory[16:20]):
        with pytest.raises(InputError, match="overlap, and one of them is changed in place"):
            engine.run({"new": new, "at": np.arange(4), "cache": memory[:32]})
    assert not memory.any()
    engine.run({"new": memory[32:36], "at": np.arange(4), "cache": memory[:32]})


# --------------------------------------------------------------------------------------------------------- sessions


def test_a_session_holds_what_the_model_owns(owner: Engine) -> None:
    first = np.arange(32, dtype=np.float32)
    session = owner.session()
    assert session.nbytes == owner.memory(n=1).state == 128
    for k in range(4):
        found = call(session, k)
        assert list(found) == ["y"]
        np.testing.assert_allclose(found["y"], after(k + 1, first).sum())
    np.testing.assert_array_equal(session.read("cache"), after(4, first))
    session.reset()
    np.testing.assert_array_equal(session.read("cache"), first)
    session.write("cache", first[::-1].copy())
    np.testing.assert_array_equal(session.read("cache"), first[::-1])


def test_sessions_share_nothing(owner: Engine) -> None:
    first = np.arange(32, dtype=np.float32)
    one, two = owner.session(), owner.session()
    call(one, 3)
    three = one.copy()
    call(one, 4)
    np.testing.assert_array_equal(two.read("cache"), first)
    np.testing.assert_array_equal(np.flatnonzero(three.read("cache") != first), [3])
    np.testing.assert_array_equal(np.flatnonzero(one.read("cache") != first), [3, 4])


def test_threads_with_sessions_of_their_own(owner: Engine) -> None:
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        session = owner.session()
        for k in np.random.default_rng(seed).permutation(32)[:20]:
            session(np.array([100 * seed + k], np.float32), np.array([k]))
        found[seed] = session.read("cache")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for seed in range(4):
        want = np.arange(32, dtype=np.float32)
        want[np.random.default_rng(seed).permutation(32)[:20]] += 100 * seed
        np.testing.assert_array_equal(found[seed], want)


def test_a_session_is_for_one_thread_at_a_time(owner: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session, inside, leave = owner.session(), threading.Event(), threading.Event()
    run = Engine.run_with_state

    def slow(*args: Any) -> list[Any]:
        inside.set()
        leave.wait(20)
        return run(*args)

    monkeypatch.setattr(Engine, "run_with_state", slow)
    other = threading.Thread(target=call, args=(session, 1))
    other.start()
    assert inside.wait(20)
    with pytest.raises(UsageError, match="while another thread uses it"):
        call(session, 2)
    with pytest.raises(UsageError, match="while another thread uses it"):
        session.reset()
    leave.set()
    other.join()
    assert session.read("cache")[1] == 1.5


def test_misuse_of_sessions(engine: Engine, owner: Engine) -> None:
    with pytest.raises(UsageError, match="the model owns no state"):
        engine.session()
    with pytest.raises(InputError, match="input 'cache' is missing") as caught:
        call(owner, 0)
    assert "engine.session()" in str(caught.value.hint)
    session = owner.session()
    with pytest.raises(InputError, match="the session holds 'cache' itself"):
        call(session, 0, cache=zeros())
    with pytest.raises(InputError, match="has no buffer 'new'"):
        session.read("new")
    with pytest.raises(InputError, match=r"is float32\[32\], got float64\[3\]"):
        session.write("cache", np.zeros(3))
    with pytest.raises(InputError, match="input 'new' must be f32"):
        call(session, 0, new=np.zeros(1))


# ---------------------------------------------------------------------------------------------------- engine files


@pytest.mark.parametrize("first", [None, np.zeros(32, np.float32), np.arange(32, dtype=np.float32)])
def test_a_file_keeps_the_state(first: np.ndarray | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stranger's file with state is what this version makes of its graph."""
    path = tmp_path / "m.engine"
    api.compile_graph(graph(first), device="sim").save(path)
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "of another user"))
    engine = arcweld.load(path, device="sim")
    if first is None:
        cache = zeros()
        assert call(engine, 3, cache=cache)["next"] is cache
        assert cache[3] == 3.5
    else:
        session = engine.session()
        call(session, 3)
        want = first.copy()
        want[3] = 3.5
        np.testing.assert_array_equal(session.read("cache"), want)


def changed(data: Any, **fields: Any) -> Any:
    return replace(data, program=msgspec.structs.replace(data.program, **fields))


def test_programs_with_impossible_state_are_refused(engine: Engine) -> None:
    data = engine.data
    program = data.program
    (state,) = program.state
    scatter, total = program.launches
    wrong = {
        "names unknown tensors": {"state": (msgspec.structs.replace(state, input="other"),)},
        "differs from the output": {"state": (msgspec.structs.replace(state, input="new"),)},
        "one input": {"state": (state, state)},
        "no weight of its type": {"state": (msgspec.structs.replace(state, initial="missing"),)},
        "writes next, an input or weight": {"state": ()},
        "reads next before it is written": {"launches": (total, scatter)},
        "reads cache after it is overwritten": {
            "launches": (scatter, msgspec.structs.replace(total, reads=("cache", *total.reads)))
        },
        "output next is never written": {"launches": (msgspec.structs.replace(total, reads=("cache",), variants=tuple(
            msgspec.structs.replace(v, params=()) for v in total.variants)),)},
    }  # fmt: skip
    for reason, fields in wrong.items():
        with pytest.raises(EngineFileError, match=reason):
            check_data(changed(data, **fields))
