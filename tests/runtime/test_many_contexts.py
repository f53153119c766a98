"""Sixteen threads with a context each on the simulator, and the same bits with any number of host threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from runtime_programs import chain, chain_reference, weights

from arcweld.driver import api
from arcweld.models.builders import build, export_onnx
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

CONTEXTS = 16


def together(work: Callable[[int], None]) -> None:
    """Runs ``work(i)`` in sixteen threads that begin together; raises what the first one raised."""
    barrier, failures = threading.Barrier(CONTEXTS), []

    def one(i: int) -> None:
        try:
            barrier.wait()
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(CONTEXTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Two cores for this thread and those that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_sixteen_contexts_of_one_engine_and_of_their_own(threads: int) -> None:
    device, checked = SimDevice(), SimDevice(checked=True)
    device.threads = threads
    w = np.arange(-4, 4, dtype=np.float32)  # small integers: all sums are exact, in any order
    data = replace(chain(), weights={**weights(), "w": w})
    shared = Engine(data, device)

    def work(i: int) -> None:
        engine = shared if i % 2 else Engine(data, checked if i % 8 == 0 else device)
        rng = np.random.default_rng(i)
        for n in rng.integers(1, 64 if i % 8 == 0 else 4096, 12):
            x = rng.integers(-8, 9, (n, 8)).astype(np.float32)
            got = engine.run({"x": x})
            y, total = chain_reference(x, w)
            np.testing.assert_array_equal(got["y"], y)
            np.testing.assert_array_equal(got["total"], total)

    together(work)


MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "transformer": ("bert", {"layers": 1, "hidden": 256, "heads": 4, "length": 64, "vocabulary": 500}, "fp32"),
    "transformer_f16": ("bert", {"layers": 1, "hidden": 256, "heads": 4, "length": 64, "vocabulary": 500}, "fp16"),
    "cnn": ("resnet18", {"size": 64, "classes": 10}, "fp32"),
    "decoder_step": ("llama", {"layers": 1, "hidden": 256, "intermediate": 1024, "heads": 4, "groups": 2,
                               "vocabulary": 4000, "length": 1}, "fp16"),
}  # fmt: skip
# of the largest result: what f32 sums differ by in another order, and what rounding to f16 in every layer makes of it
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-2}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_same_bits_with_any_number_of_host_threads(name: str) -> None:
    model, options, precision = MODELS[name]
    made, device = build(model, **options), SimDevice()
    engine = api.compile(made.module, *made.args, device=device, precision=precision, verify="off")
    results = []
    for device.threads in (1, 2, 4, 4, 2):
        results.append(np.asarray(engine(*made.args)))
    with torch.no_grad():
        expected = made.module(*made.args).numpy()
    assert np.abs(results[0] - expected).max() <= TOLERANCES[precision] * np.abs(expected).max()
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_sixteen_contexts_of_a_model_against_onnx_runtime(tmp_path: Path) -> None:
    model, options, _ = MODELS["transformer"]
    made = build(model, **options)
    path = tmp_path / "model.onnx"
    export_onnx(made.module, made.args, path)
    device = SimDevice()
    engine = api.compile(path, device=device, verify="off")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    expected, feeds = [], []
    for i in range(CONTEXTS):
        feeds.append({name: np.random.default_rng(i).integers(0, 500, made.args[0].shape)})
        expected.append(session.run(None, feeds[-1])[0])

    def work(i: int) -> None:
        for k in (i, (i + 5) % CONTEXTS):
            (got,) = engine.run(feeds[k]).values()
            assert np.abs(got - expected[k]).max() <= TOLERANCES["fp32"] * np.abs(expected[k]).max()

    together(work)
