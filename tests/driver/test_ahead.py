"""Work on a second thread: the order, the errors and how far it runs ahead do not depend on who is faster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from arcweld.compiler.errors import ModelError, UsageError
from arcweld.compiler.ops.registry import opdef
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.ahead import ahead, each_ahead
from arcweld.driver.blas import _libraries, one_thread
from arcweld.driver.build import build_graph
from arcweld.driver.draws import Sample
from arcweld.driver.evidence import VerifyOptions, verify_build
from arcweld.driver.isolation import in_child
from arcweld.driver.samples import sample_inputs
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice


def test_the_caller_goes_on_while_the_thread_works() -> None:
    begun = threading.Event()

    def work() -> int:
        assert begun.wait(60)
        return 7

    with ahead(work) as coming:
        begun.set()
        assert coming.result() == 7


def test_an_error_of_the_work_goes_before_the_caller_s() -> None:
    def work() -> None:
        time.sleep(0.05)
        raise ModelError("of the work")

    with pytest.raises(ModelError, match="of the work"), ahead(work):
        raise UsageError("of the caller")
    with pytest.raises(UsageError, match="of the caller"), ahead(lambda: None):
        raise UsageError("of the caller")
    with pytest.raises(ModelError, match="of the work"), ahead(work) as coming:
        coming.result()


@pytest.mark.parametrize("slow", ["neither", "thread", "caller"])
def test_the_next_item_is_made_while_the_caller_has_one(slow: str) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for k in range(6):
            time.sleep(0.01 * (slow == "thread"))
            made.append(k)
            yield k

    taken = []
    with each_ahead(items()) as each:
        for k in each:
            time.sleep(0.01 * (slow == "caller"))
            assert len(made) <= k + 2
            taken.append(k)
    assert taken == made == [*range(6)]


def test_an_error_between_items_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ModelError("no third one")

    taken: list[int] = []

    def take() -> None:
        with each_ahead(items()) as each:
            taken.extend(each)

    with pytest.raises(ModelError, match="no third one"):
        take()
    assert taken == [1, 2]


LAYERS = """symbol n(lo=1)
input %x: f32[n, 8]
weight %w: f32[8, 8] source='w'
%a: f32[n, 8] = MatMul(%x, %w) @ 'a'
%s: f32[n, 8] = Softmax(%a, axis=1) @ 's'
%b: f32[n, 8] = MatMul(%s, %w) @ 'b'
%l: f32[n, 8] = LogSoftmax(%b, axis=1) @ 'l'
output %l
"""


def test_evidence_does_not_depend_on_which_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_graph(parse_graph("graph 'g'\n" + LAYERS), Options(arch=("sm_80",)), compile_kernels=False)
    engine, feeds = Engine(build.data, SimDevice(arch="sm_80")), sample_inputs(build.imported, {"n": 5})

    def evidence() -> dict[str, Any]:
        return verify_build(build, engine, Sample(feeds, {"n": 5}), VerifyOptions("full"), "fp32")

    plain = evidence()
    assert [k["status"] for k in plain["kernels"]] == ["verified"] * 2
    softmax, launch = opdef("Softmax"), SimDevice.launch

    def slow_launch(self: SimDevice, prepared: Any, stream: int = 0) -> None:
        time.sleep(0.02)
        launch(self, prepared, stream)

    with monkeypatch.context() as m:
        m.setattr(SimDevice, "launch", slow_launch)
        assert evidence() == plain
    reference = softmax.reference

    def slow_reference(*given: Any) -> tuple[np.ndarray, ...]:
        time.sleep(0.05)
        return reference(*given)

    object.__setattr__(softmax, "reference", slow_reference)
    try:
        assert evidence() == plain
    finally:
        object.__setattr__(softmax, "reference", reference)


def counts() -> list[int]:
    return [count() for count, _ in _libraries()]


def test_products_stay_on_one_thread_until_the_last_user_ends() -> None:
    before = counts()
    assert before, "numpy's wheels bring OpenBLAS"
    for _, limit in _libraries():
        limit(2)
    try:
        with one_thread():
            with one_thread():
                assert counts() == [1] * len(before)
                assert in_child(lambda note: counts()) == [1] * len(before)
            assert counts() == [1] * len(before)
        assert counts() == [2] * len(before)
    finally:
        for (_, limit), threads in zip(_libraries(), before, strict=True):
            limit(threads)
