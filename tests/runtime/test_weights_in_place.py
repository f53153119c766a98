"""Weights that the simulator reads where they are: which ones, and that nothing but the owner ever changes them."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runtime_programs import chain, chain_reference, rows

from arcweld.compiler.mapped import make_constant
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.engine_file import EngineData, write_engine
from arcweld.runtime.sim.device import SimDevice

X = rows(3)


def aligned_copy(a: np.ndarray, offset: int = 0) -> np.ndarray:
    raw = np.empty(a.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 16 + offset
    view = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def with_weights(offset: int = 0, constant: bool = False) -> tuple[EngineData, np.ndarray]:
    data = chain()
    arrays = {n: aligned_copy(a, offset) for n, a in data.weights.items()}
    if constant:
        arrays = {n: make_constant(a) for n, a in arrays.items()}
    return replace(data, weights=arrays), arrays["w"]


def result(engine: Engine) -> np.ndarray:
    return np.asarray(engine(X)[0])


def expected(w: np.ndarray) -> np.ndarray:
    return chain_reference(X, w)[0]


def close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checked", [False, True])
def test_borrowed_weights_are_not_copied(checked: bool) -> None:
    data, w = with_weights()
    engine = Engine(data, SimDevice(checked=checked), borrow=True)
    assert engine.shared.weights["w"] == w.ctypes.data
    close(result(engine), expected(w))
    assert engine.memory(n=3).weights == Engine(chain(), SimDevice()).memory(n=3).weights


def test_an_owner_may_change_what_was_borrowed_after_own_weights() -> None:
    data, w = with_weights()
    engine = Engine(data, SimDevice(), borrow=True)
    before = result(engine)  # this thread's launches hold the old addresses
    engine.own_weights()
    assert engine.shared.weights["w"] != w.ctypes.data
    w[...] = 0
    np.testing.assert_array_equal(result(engine), before)


def test_constant_weights_are_never_copied_and_never_written() -> None:
    data, w = with_weights(constant=True)
    engine = Engine(data, SimDevice())
    assert engine.shared.weights["w"] == w.ctypes.data
    engine.own_weights()
    assert engine.shared.weights["w"] == w.ctypes.data
    old = w.copy()
    close(result(engine), expected(old))
    for value in (2.0, 3.0):  # the first one moves the weight, the second is written over it
        new = np.full(8, value, np.float32)
        engine.update_weights({"model.w": new})
        close(result(engine), expected(new))
    np.testing.assert_array_equal(w, old)


def test_contexts_of_all_threads_see_moved_weights() -> None:
    data, _ = with_weights(constant=True)
    engine = Engine(data, SimDevice())
    ran, updated = threading.Event(), threading.Event()
    found: list[np.ndarray] = []

    def work() -> None:
        result(engine)
        ran.set()
        updated.wait(30)
        found.append(result(engine))

    thread = threading.Thread(target=work)
    thread.start()
    assert ran.wait(30)
    new = np.full(8, 5.0, np.float32)
    engine.update_weights({"model.w": new})
    updated.set()
    thread.join()
    close(found[0], expected(new))


@pytest.mark.parametrize("kind", ["writeable", "view of writeable", "misaligned", "not contiguous"])
def test_other_weights_are_copied(kind: str) -> None:
    data, w = with_weights(offset=4 if kind == "misaligned" else 0, constant=kind == "misaligned")
    if kind == "view of writeable":
        view = w.view()
        view.flags.writeable = False
        data = replace(data, weights={**data.weights, "w": view})
    if kind == "not contiguous":
        data = replace(data, weights={**data.weights, "w": make_constant(np.repeat(w, 2))[::2]})
    old = w.copy()
    engine = Engine(data, SimDevice(), borrow=kind in ("misaligned", "not contiguous"))
    assert engine.shared.weights["w"] not in (w.ctypes.data, data.weights["w"].ctypes.data)
    if w.flags.writeable:
        w[...] = 0
    close(result(engine), expected(old))


def test_an_engine_outlives_what_happens_to_its_file(tmp_path: Path) -> None:
    data, w = with_weights()
    path = tmp_path / "m.engine"
    write_engine(path, data)
    engine = load(path, "sim")
    with path.open("r+b") as file:  # not replaced: written over, as by cp
        content = file.read()
        at = content.find(w.tobytes())
        assert at > 0
        file.seek(at)
        file.write(bytes(w.nbytes))
    close(result(engine), expected(w))
