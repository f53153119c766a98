"""What an engine keeps between calls: memory, weights that may change, the state of each thread."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from runtime_programs import W, chain, chain_reference, check, rows, scale_add
from test_graphs import GraphDevice

from arcweld.compiler.errors import DeviceError, EngineFileError, InputError
from arcweld.runtime.arena import aligned
from arcweld.runtime.binding import OrtValue
from arcweld.runtime.engine import MAX_CONTEXTS, Engine, load
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.locks import SharedLock
from arcweld.runtime.program import Tensor, WeightEntry
from arcweld.runtime.sim.device import SimDevice


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(chain(), SimDevice(checked=True))


def test_memory_is_exact(engine: Engine) -> None:
    report = engine.memory(n=10)
    assert report.arena == aligned(10 * 8 * 4)  # t and its alias; y is a result
    assert report.weights == aligned(32) + aligned(30)
    assert report.outputs == aligned(320) + aligned(4)
    assert report.total == report.weights + report.arena + report.inputs + report.outputs
    with pytest.raises(InputError, match="'n'"):
        engine.memory()


def test_the_arena_grows_and_is_released() -> None:
    engine = Engine(chain(), SimDevice())
    check(engine, rows(4))
    check(engine, rows(60))
    (context,) = engine._local.contexts.values()
    assert context.arena_bytes == aligned(60 * 32)
    check(engine, rows(4))
    engine.release()
    assert context.arena_bytes == 0
    check(engine, rows(4))


def test_many_shapes_are_bounded() -> None:
    engine = Engine(chain(), SimDevice())
    for n in range(1, 80):
        engine(rows(n))
    (context,) = engine._local.contexts.values()
    assert len(context._specialised) <= 64


def test_the_contexts_of_a_thread_are_bounded() -> None:
    engine = Engine(chain(), SimDevice())
    for stream in range(2 * MAX_CONTEXTS):
        engine._context(stream)
    assert list(engine._local.contexts) == list(range(MAX_CONTEXTS, 2 * MAX_CONTEXTS))


def test_save_load_and_update_weights(tmp_path: Path) -> None:
    engine = Engine(chain(), SimDevice())
    new = np.linspace(-1, 1, 8).astype(np.float32)
    engine.update_weights({"model.w": new})
    x = rows(3)
    np.testing.assert_allclose(engine(x)[0], chain_reference(x, new)[0], rtol=1e-5, atol=1e-5)
    engine.save(tmp_path / "chain.engine")
    again = load(tmp_path / "chain.engine", "sim")
    np.testing.assert_array_equal(again(x)[0], engine(x)[0])
    assert again.kernel_origins == {"scale_add": "source", "row_sum": "source"}
    assert repr(again).startswith("<Engine chain(x: f32[n, 8]) -> (y: f32[n, 8], total: f32[])")


def test_weights_that_do_not_fit_change_nothing(engine: Engine) -> None:
    before = engine(rows(3))[0]
    for values, message in [
        ({"w": np.zeros(9, np.float32)}, "packs to"),
        ({"w": np.zeros(8)}, "packs to float64"),
        ({"nothing": np.zeros(8)}, "no weight 'nothing'"),
        ({"w": np.zeros(8, np.float32), "half": np.zeros(3)}, "packs to"),
    ]:
        with pytest.raises(InputError, match=message):
            engine.update_weights(values)
    np.testing.assert_array_equal(engine(rows(3))[0], before)


def test_recorded_packing_is_replayed() -> None:
    steps = (
        ("source", ("model.w", "f64[3, 2]")),
        ("Transpose", (1, "perm=(1, 0)")),
        ("Cast", (1, "to=dtype(f32)")),
        ("source", ("model.v", "f32[2, 1]")),
        ("Concat", (2, "axis=1")),
        ("constant", ("f32[4]", "(1.0, 2.0, 1.0, 1.0)")),
        ("Mul", (2, "")),
        ("Reshape", (1, "shape=(8,)")),
    )
    weight = WeightEntry("w", "f32", (8,), "", steps)
    data = chain()
    program = msgspec.structs.replace(data.program, weights=(weight, data.program.weights[1]), fixed=("model.scalar",))
    engine = Engine(replace(data, program=program), SimDevice())
    rng = np.random.default_rng(5)
    w, v = rng.standard_normal((3, 2)), rng.standard_normal((2, 1)).astype(np.float32)
    engine.update_weights({"model.w": w, "model.v": v})
    packed = np.hstack([w.T.astype(np.float32), v]) * np.array([1, 2, 1, 1], np.float32)
    x = rows(2)
    np.testing.assert_allclose(engine(x)[0], chain_reference(x, packed.reshape(8))[0], rtol=1e-5, atol=1e-5)
    for values, message in [
        ({"model.w": w}, "joined with 'model.v'"),
        ({"model.w": w, "model.v": v.astype(np.float16)}, r"'model.v' is f16\[2, 1\], the model's is f32\[2, 1\]"),
        ({"model.w": w.T, "model.v": v}, r"'model.w' is f64\[2, 3\]"),
        ({"model.scalar": v}, "constant"),
    ]:
        with pytest.raises(InputError, match=message):
            engine.update_weights(values)
    np.testing.assert_allclose(engine(x)[0], chain_reference(x, packed.reshape(8))[0], rtol=1e-5, atol=1e-5)
    engine.update_weights({"w": W})  # the engine's own name takes the packed form
    np.testing.assert_allclose(engine(x)[0], chain_reference(x, W)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        (("transpose", (1, 0)),),
        (("source", ("model.w", "f32[8]")), ("Transpose", (2, "perm=(0,)"))),
        (("source", ("model.w", "f32[8]")), ("Transpose", (1, "perm=("))),
        (("source", ("model.w", "f32[8]")), ("Nothing", (1, ""))),
        (("source", ("model.w", "f32[8]")), ("Reshape", (1, "shape=(3,)"))),
        (("source", ("model.w", "f32[8]")), ("Transpose", ())),
        (("source", ("model.w", "f32[8]")), ("source", ("model.w", "f32[8]"))),
        (("source", ("model.w", 3)),),
        (("source", ("model.w",)),),
    ],
)
def test_a_damaged_record_is_refused(steps: tuple[tuple[str, tuple[int | str, ...]], ...]) -> None:
    data = chain()
    weight = WeightEntry("w", "f32", (8,), "model.w", steps)
    program = msgspec.structs.replace(data.program, weights=(weight, data.program.weights[1]))
    engine = Engine(replace(data, program=program), SimDevice())
    with pytest.raises((EngineFileError, InputError)):
        engine.update_weights({"model.w": W})


def test_threads_do_not_disturb_each_other(engine: Engine) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(1, 12):
                check(engine, rows(n, seed * 100 + n))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


class PausingDevice(GraphDevice):
    """Lets another thread run between any two launches, as a GPU does; each thread records for itself."""

    def __init__(self) -> None:
        self.local = threading.local()
        super().__init__()

    @property
    def recording(self) -> list[tuple[str, tuple[object, ...]]] | None:
        return getattr(self.local, "graph", None)

    @recording.setter
    def recording(self, graph: list[tuple[str, tuple[object, ...]]] | None) -> None:
        self.local.graph = graph

    def replay(self, graph: object, stream: int = 0) -> None:
        for step in graph:  # type: ignore[attr-defined]
            super().replay([step], stream)
            time.sleep(0.0005)

    def launch(self, prepared: object, stream: int = 0) -> None:
        super().launch(prepared, stream)
        time.sleep(0.0005)

    def upload(self, address: int, source: np.ndarray, stream: int = 0) -> None:
        super().upload(address, source, stream)
        time.sleep(0.0005)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_call_sees_all_old_or_all_new_weights(graphs: bool) -> None:
    """``w`` is read by two launches, so that a change between them shows."""
    engine = Engine(chain(), PausingDevice(), graphs=graphs)
    values = [np.full(8, v, np.float32) for v in (1.0, -3.0)]
    x = rows(3)
    wanted = [chain_reference(x, w)[0] for w in values]
    engine.update_weights({"model.w": values[0]})
    torn: list[np.ndarray] = []
    seen: set[int] = set()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            y = engine(x)[0]
            matching = [k for k, w in enumerate(wanted) if np.allclose(y, w, rtol=1e-5, atol=1e-5)]
            seen.update(matching)
            if not matching:
                torn.append(y)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(60):
        engine.update_weights({"model.w": values[(n + 1) % 2]})
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []
    assert seen == {0, 1}
    np.testing.assert_array_equal(engine.data.weights["w"], values[0])


def test_a_lock_for_many_readers_or_one_writer() -> None:
    lock, log = SharedLock(), list[str]()
    lock.acquire_read()
    lock.acquire_read()  # another reader, for what the lock knows

    def write() -> None:
        with lock:
            log.append("wrote")

    def read() -> None:
        lock.acquire_read()
        log.append("read")
        lock.release_read()

    writer = threading.Thread(target=write)
    writer.start()
    while not lock._writers:
        time.sleep(0.001)
    reader = threading.Thread(target=read)  # it comes after the writer that waits
    reader.start()
    time.sleep(0.02)
    assert log == []
    lock.release_read()
    lock.release_read()
    writer.join()
    reader.join()
    assert log == ["wrote", "read"]
    with pytest.raises(KeyError), lock:
        raise KeyError
    read()


# ------------------------------------------------------------------------------------- more than the memory

WIDE = 1 << 34  # columns of a result: 2^47 bytes for 2048 rows, which no address space holds


def too_wide() -> EngineData:
    """``chain``'s first launch, with a result of which it writes the beginning only."""
    data = chain()
    program = msgspec.structs.replace(
        data.program,
        outputs=(Tensor("y", "f32", ("n", str(WIDE))),),
        temps=(),
        aliases=(),
        launches=(scale_add("first", "x", "w", "y", 2.0, "8*n", "8"),),
    )
    return replace(data, program=program)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_result_that_memory_cannot_hold_is_named(kind: str) -> None:
    x: object = rows(2048)
    if kind == "torch":
        x = pytest.importorskip("torch").from_numpy(x)
    told = rf"not enough memory for output 'y' of shape \[2048, {WIDE}\]: {1 << 47} bytes"
    with pytest.raises(DeviceError, match=told):
        Engine(too_wide(), SimDevice())(x)


def test_a_value_that_memory_cannot_hold() -> None:
    with pytest.raises(DeviceError, match=rf"not enough memory for shape \[2048, {WIDE}\]: {1 << 47} bytes"):
        OrtValue.ortvalue_from_shape_and_type((2048, WIDE), np.float32)
    for shape in ((2, -1), (1 << 40, 1 << 40), ("n",)):
        with pytest.raises(InputError, match="no array has the shape"):
            OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
