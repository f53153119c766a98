"""The memory of tensors between stages: taken again by later turns and calls, and let go when nothing needs it."""

from __future__ import annotations

import dataclasses
import threading
import weakref

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import arcweld
from arcweld.compiler.errors import DeviceError, EngineFileError
from arcweld.runtime.engine import Engine
from arcweld.runtime.pool import Pool
from arcweld.runtime.sim.device import SimDevice, SimMemory

X = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)


class Counting(SimDevice):
    """Counts allocations, the bytes that are held, and the most that were held at once."""

    def __init__(self, checked: bool = True) -> None:
        super().__init__(checked=checked)
        self.allocations = self.held = self.most = 0

    def allocate(self, nbytes: int) -> SimMemory:
        memory = super().allocate(nbytes)
        self.allocations += 1
        self.held += nbytes
        self.most = max(self.most, self.held)
        weakref.finalize(memory.array, self._freed, nbytes)
        return memory

    def _freed(self, nbytes: int) -> None:
        self.held -= nbytes


def of(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> onnx.ModelProto:
    graph = h.make_graph(nodes, "memory", inputs, [h.make_tensor_value_info(o, T.FLOAT, None) for o in outputs])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)


def turns() -> onnx.ModelProto:
    """x becomes sin(x) + x as often as ``k`` says; each turn is a stage of its own."""
    v = [h.make_tensor_value_info(n, T.FLOAT, [64, 256]) for n in ("v", "w")]
    i, on, on2 = (h.make_tensor_value_info(n, t, []) for n, t in (("i", T.INT64), ("on", T.BOOL), ("on2", T.BOOL)))
    body = h.make_graph(
        [
            h.make_node("Sin", ["v"], ["s"]), h.make_node("Add", ["s", "v"], ["w"]),
            h.make_node("Identity", ["on"], ["on2"]),
        ],
        "body", [i, on, v[0]], [on2, v[1]],
    )  # fmt: skip
    inputs = [h.make_tensor_value_info("x", T.FLOAT, [64, 256]), h.make_tensor_value_info("k", T.INT64, [])]
    return of([h.make_node("Loop", ["k", "", "x"], ["y"], body=body)], inputs, ["y"])


def want(k: int) -> np.ndarray:
    y = X
    for _ in range(k):
        y = np.sin(y) + y
    return y


def test_a_loop_allocates_nothing_at_later_turns_and_calls() -> None:
    device = Counting()
    engine = Engine(arcweld.compile(turns(), device="sim").data, device)
    counts = []
    for k in (1, 5, 40, 40):
        before = device.allocations
        np.testing.assert_allclose(engine(X, np.array(k)), want(k), rtol=1e-4, atol=1e-5)
        counts.append(device.allocations - before)
    assert counts[1] <= 2  # one state is read while the next is written
    assert counts[2:] == [0, 0]


def chain(length: int) -> onnx.ModelProto:
    """Rows are chosen ``length`` times, so that there are as many stages, each with a tensor as large as x."""
    nodes = []
    for k in range(length):
        before, after = (f"x{k}" if k else "x"), f"x{k + 1}"
        nodes += [
            h.make_node("Abs", [before], [f"a{k}"]),
            h.make_node("ReduceMax", [f"a{k}"], [f"m{k}"], axes=[1], keepdims=0),
            h.make_node("Cast", [f"m{k}"], [f"c{k}"], to=T.BOOL),
            h.make_node("Compress", [before, f"c{k}"], [after], axis=0),
        ]  # fmt: skip
    return of(nodes, [h.make_tensor_value_info("x", T.FLOAT, [64, 256])], [f"x{length}"])


def test_tensors_that_nothing_needs_any_more_are_let_go() -> None:
    most = []
    for length in (3, 12):
        device = Counting()
        engine = Engine(arcweld.compile(chain(length), device="sim").data, device)
        start = device.held
        np.testing.assert_array_equal(engine(X), X)
        most.append(device.most - start)
    assert most[1] <= most[0] + X.nbytes  # twelve stages' tensors are not held at once


def test_shapes_that_change_do_not_gather_memory() -> None:
    device = Counting()
    proto = chain(2)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    engine = Engine(arcweld.compile(proto, device="sim").data, device)
    held = []
    for n in (64, 3, 64, 17, 64):
        np.testing.assert_array_equal(engine(X[:n]), X[:n])
        held.append(device.held)
    assert held[4] <= held[0] + 4096  # the records of the largest shapes, and no memory of the others
    engine.release()
    assert device.held < held[0]


def test_threads_have_memory_of_their_own() -> None:
    engine = arcweld.compile(turns(), device="sim")
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for _ in range(4):
                np.testing.assert_allclose(engine(X, np.array(k)), want(k), rtol=1e-4, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in (3, 7, 11)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_memory_of_other_sizes_is_freed_where_a_device_has_no_more() -> None:
    class Small(Counting):
        def allocate(self, nbytes: int) -> SimMemory:
            if self.held + nbytes > 8192:
                raise DeviceError("no memory is left")
            return super().allocate(nbytes)

    device = Small()
    pool = Pool(device, 0)
    first = pool.allocate(4096)
    del first
    whole = pool.allocate(8192)
    with pytest.raises(DeviceError, match="no memory is left"):
        pool.allocate(512)
    assert whole.nbytes == device.held == 8192


def test_memory_that_is_lent_again_is_poisoned_in_checked_mode() -> None:
    device = SimDevice(checked=True)
    pool = Pool(device, 0)
    lent = pool.allocate(64)
    address = lent.address
    device.upload(address, np.zeros(16, np.float32))
    del lent
    again, found = pool.allocate(64), np.zeros(16, np.float32)
    device.download(found, again.address)
    assert again.address == address
    assert np.isnan(found).all()


def test_two_steps_that_make_one_tensor_are_refused() -> None:
    data = arcweld.compile(chain(1), device="sim").data
    program = msgspec.structs.replace(data.program, steps=(*data.program.steps, data.program.steps[-1]))
    with pytest.raises(EngineFileError, match="two steps make"):
        Engine(dataclasses.replace(data, program=program), "sim")
