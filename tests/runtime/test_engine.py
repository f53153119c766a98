"""Engines on the sim device: results against numpy, kinds of arrays, errors, memory, weights, threads,
sessions.
"""

from __future__ import annotations

import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from arcweld.compiler.errors import DeviceError, EngineFileError, InputError, UsageError
from arcweld.runtime import devices
from arcweld.runtime import engine as engine_module
from arcweld.runtime.arena import aligned
from arcweld.runtime.device import KernelImage, LaunchSpec
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.kernels import binary_archs, choose_variant, runs_on
from arcweld.runtime.program import SCHEMA, Alias, Field, Program, Symbol, Tensor, Weight
from arcweld.runtime.session import InferenceSession
from arcweld.runtime.sim.device import SimDevice
from hypothesis import given
from hypothesis import strategies as st
from runtime_programs import SCALE_ADD, chain, chain_reference, scale_add, tiles, weights

W = weights()["w"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(chain(), SimDevice(checked=True))


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


def check(engine: Engine, x: np.ndarray) -> None:
    y, total = engine(x)
    want, want_total = chain_reference(x, W)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, want_total, rtol=1e-4, atol=1e-3)
    assert y.dtype == np.float32
    assert total.shape == ()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_any_sequence_of_shapes_matches_numpy(sizes: list[int]) -> None:
    engine = Engine(chain(), SimDevice())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for seed, n in enumerate(sizes):
            check(engine, rows(n, seed))


def test_results_are_never_overwritten(engine: Engine) -> None:
    first, _ = engine(rows(5, 1))
    kept = first.copy()
    engine(rows(5, 2))
    np.testing.assert_array_equal(first, kept)


def test_arguments_by_position_name_and_dict(engine: Engine) -> None:
    x = rows(3)
    by_position, by_name, by_dict = engine(x)[0], engine(x=x)[0], engine.run({"x": x})
    np.testing.assert_array_equal(by_position, by_name)
    np.testing.assert_array_equal(by_position, by_dict["y"])
    assert list(by_dict) == ["y", "total"]


@pytest.mark.parametrize("kind", ["strided", "read-only", "misaligned", "fortran", "memmap"])
def test_any_numpy_layout(engine: Engine, kind: str, tmp_path: Path) -> None:
    x = rows(6)
    if kind == "strided":
        array = np.repeat(x, 2, axis=0)[::2]
    elif kind == "read-only":
        array = x.copy()
        array.flags.writeable = False
    elif kind == "misaligned":
        array = np.empty(6 * 8 + 1, np.float32)[1:].reshape(6, 8)
        array[...] = x
    elif kind == "fortran":
        array = np.asfortranarray(x)
    else:
        np.save(tmp_path / "x.npy", x)
        array = np.load(tmp_path / "x.npy", mmap_mode="r")
    check(engine, array)


def test_torch_in_torch_out(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    x = rows(4)
    y, total = engine(torch.from_numpy(x))
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y.numpy(), chain_reference(x, W)[0], rtol=1e-5, atol=1e-5)
    transposed = torch.from_numpy(np.ascontiguousarray(x.T)).T.requires_grad_()
    np.testing.assert_array_equal(engine(transposed)[0].numpy(), y.numpy())
    assert total.shape == ()


def test_dlpack_in_numpy_out(engine: Engine) -> None:
    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    y, _ = engine(Foreign(rows(4)))
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, engine(rows(4))[0])


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((rows(2).astype(np.float64),), {}, "must be f32, got f64"),
        ((rows(2).astype(ml_dtypes.bfloat16),), {}, "must be f32, got bf16"),
        ((np.zeros((2, 8), "complex64"),), {}, "must be f32, got complex64"),
        ((rows(2)[0],), {}, r"must be f32\[n, 8\], got shape \[8\]: 1 dimensions instead of 2"),
        ((rows(2)[:, :7],), {}, r"got shape \[2, 7\]: dimension 1 is 7, not 8"),
        (([[1.0] * 8],), {}, "is a list, not an array"),
        ((), {}, "input 'x' is missing"),
        ((rows(2), rows(2)), {}, "2 inputs were given"),
        ((rows(2),), {"x": rows(2)}, "given twice"),
        ((), {"z": rows(2)}, "has no input 'z'"),
    ],
)
def test_wrong_inputs_name_expected_and_got(
    engine: Engine, args: tuple[object, ...], kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine(*args, **kwargs)


def test_wrong_torch_dtype_is_named(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="must be f32, got bf16"):
        engine(torch.zeros((2, 8), dtype=torch.bfloat16))


def test_outside_the_range_runs_with_one_warning() -> None:
    engine = Engine(chain(), SimDevice())
    with pytest.warns(RuntimeWarning, match="dimension n is 65; the engine was built and tuned for 1 to 64"):
        check(engine, rows(65))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(engine, rows(66))


# ------------------------------------------------------------------------------------------- programs of
# many forms


def two_inputs(**symbol: int) -> EngineData:
    program = Program(
        schema=SCHEMA,
        name="two",
        symbols=(Symbol("n", **symbol),),
        inputs=(Tensor("x", "f32", ("n",)), Tensor("z", "f32", ("n + 1",))),
        outputs=(Tensor("y", "f32", ("n",)),),
        weights=(),
        temps=(),
        aliases=(),
        launches=(scale_add("only", "x", "z", "y", 1.0, "n", "n"),),
    )
    return EngineData(program=program, sources={"scale_add": SCALE_ADD}, weights={})


def test_symbols_bind_across_inputs() -> None:
    engine = Engine(two_inputs(), SimDevice())
    x, z = np.arange(5, dtype=np.float32), np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(engine(x, z), x + z[:5])
    with pytest.raises(InputError, match=r"dimension 0 is 5, not 6 \(n \+ 1\)"):
        engine(x, z[:5])


def test_symbols_inside_expressions_are_solved() -> None:
    data = two_inputs()
    shapes = (Tensor("x", "f32", ("3*n + 2",)), Tensor("z", "f32", ("n",)))
    outputs = (Tensor("y", "f32", ("3*n + 2",)),)
    for inputs in (shapes, shapes[:1]):
        reads = shapes[1].name if len(inputs) == 2 else "x"
        launches = (scale_add("only", "x", reads, "y", 1.0, "3*n + 2", "n"),)
        program = msgspec.structs.replace(data.program, inputs=inputs, outputs=outputs, launches=launches)
        engine = Engine(replace(data, program=program), SimDevice())
        x = np.arange(14, dtype=np.float32)
        given = (x, np.arange(4, dtype=np.float32))[: len(inputs)]
        np.testing.assert_array_equal(engine(*given), x + np.arange(14) % 4)
        wrong = (x[:12], *given[1:])
        with pytest.raises(InputError, match=r"dimension 0 is 12, not"):
            engine(*wrong)


def test_multiples_are_required() -> None:
    engine = Engine(two_inputs(multiple_of=4), SimDevice())
    with pytest.raises(InputError, match="multiple of 4"):
        engine(np.zeros(5, np.float32), np.zeros(6, np.float32))


def test_outputs_that_are_inputs_weights_and_aliases() -> None:
    """An output may be an input or a weight under its own name, or a view of a temporary."""
    program = Program(
        schema=SCHEMA,
        name="views",
        symbols=(Symbol("n", 0),),
        inputs=(Tensor("x", "f32", ("n", "8")),),
        outputs=(
            Tensor("x", "f32", ("n", "8")),
            Tensor("w", "f32", ("8",)),
            Tensor("last", "f32", ("8",)),
            Tensor("again", "f32", ("8*n",)),
        ),
        weights=(Weight("w", "f32", (8,)),),
        temps=(Tensor("t", "f32", ("n", "8")),),
        aliases=(Alias("last", "t", "32*n - 32"), Alias("again", "t")),
        launches=(scale_add("only", "x", "w", "t", 2.0, "8*n", "8"),),
    )
    engine = Engine(EngineData(program, {"scale_add": SCALE_ADD}, {"w": W}), SimDevice(checked=True))
    x = rows(3)
    same_x, same_w, last, again = engine(x)
    want = 2 * x + W
    np.testing.assert_array_equal(same_x, x)
    assert not np.shares_memory(same_x, x)
    np.testing.assert_array_equal(same_w, W)
    np.testing.assert_allclose(last, want[-1], rtol=1e-6)
    np.testing.assert_allclose(again, want.reshape(-1), rtol=1e-6)
    with pytest.raises(InputError, match="reaches outside"):
        engine(rows(0))


def test_a_launch_that_needs_too_much_is_refused() -> None:
    data = two_inputs()
    launch = data.program.launches[0]
    fields = (*launch.variants[0].fields[:4], Field("i32", "n*1000000000"), Field("i32", "n"))
    variant = msgspec.structs.replace(launch.variants[0], fields=fields)
    wide = msgspec.structs.replace(data.program, launches=(msgspec.structs.replace(launch, variants=(variant,)),))
    with pytest.raises(InputError, match="in 32 bits"):
        Engine(replace(data, program=wide), SimDevice())(np.zeros(5, np.float32), np.zeros(6, np.float32))
    variant = msgspec.structs.replace(launch.variants[0], grid=("1", "n*70000", "1"))
    high = msgspec.structs.replace(data.program, launches=(msgspec.structs.replace(launch, variants=(variant,)),))
    with pytest.raises(InputError, match="grid"):
        Engine(replace(data, program=high), SimDevice())(np.zeros(5, np.float32), np.zeros(6, np.float32))


def test_tensor_maps_follow_the_input() -> None:
    engine = Engine(tiles(), SimDevice(checked=True))
    for n in (8, 8, 29, 1):
        x = np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32)
        np.testing.assert_array_equal(engine(x), x.T)


def test_a_call_is_a_bounded_number_of_python_steps(engine: Engine) -> None:
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


def test_no_inputs_and_no_launches() -> None:
    program = Program(
        SCHEMA, "constant", (), (), (Tensor("w", "f32", ("8",)),), (Weight("w", "f32", (8,)),), (), (), ()
    )
    np.testing.assert_array_equal(Engine(EngineData(program, {}, {"w": W}), SimDevice())(), W)


# ------------------------------------------------------------------------------------------------ keeping,
# memory


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(1, 80):
            engine(rows(n))
    (context,) = engine._local.contexts.values()
    assert len(context._bound) <= 64


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
    weight = Weight("w", "f32", (8,), "", steps)
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
    weight = Weight("w", "f32", (8,), "model.w", steps)
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


# --------------------------------------------------------------------------------------------- devices and
# sessions


def test_device_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.VARIABLE, raising=False)
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    assert devices.choose() == "cuda"
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    assert devices.choose() == "sim"
    monkeypatch.setenv(devices.VARIABLE, "sim:sm_80")
    assert devices.open_device().arch == "sm_80"
    assert devices.open_device("sim").arch == "sm_90a"
    with pytest.raises(UsageError, match="not a device"):
        devices.open_device("tpu")


def test_falling_to_the_simulator_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(devices.VARIABLE, raising=False)
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    devices._say.cache_clear()
    with caplog.at_level("WARNING", "arcweld.runtime"):
        devices.open_device()
        devices.open_device()
    assert [r.message for r in caplog.records] == ["running on device sim (no NVIDIA GPU found)"]


def test_variants_and_binaries_by_architecture() -> None:
    assert runs_on("sm_80", "sm_90a")
    assert runs_on("sm_90a", "sm_90a")
    assert not runs_on("sm_90a", "sm_100a")
    assert not runs_on("sm_90a", "sm_86")
    assert runs_on("sm_100f", "sm_103a")
    assert not runs_on("sm_100f", "sm_120a")
    assert binary_archs(["sm_80", "sm_90a", "sm_86", "sm_90"], "sm_89") == ["sm_86", "sm_80"]
    assert binary_archs(["sm_80", "sm_90a", "sm_90"], "sm_90a") == ["sm_90a", "sm_90"]
    assert binary_archs(["sm_80", "sm_90a"], "sm_120a") == []
    launch = chain().program.launches[0]
    old = launch.variants[0]
    both = msgspec.structs.replace(launch, variants=(old, msgspec.structs.replace(old, arch="sm_90a")))
    assert choose_variant(both, "sm_90a").arch == "sm_90a"
    assert choose_variant(both, "sm_86").arch == "sm_80"
    with pytest.raises(DeviceError, match="exists for sm_80"):
        choose_variant(launch, "sm_75")


class FakeGpu(SimDevice):
    """A simulator that claims to be a GPU and refuses some object code: for the order of attempts."""

    def __init__(self, refuses: set[bytes]) -> None:
        super().__init__("sm_90a")
        self.name = "fake"
        self.refuses = refuses

    def load_kernel(self, image: KernelImage, shared_bytes: int) -> object:
        if image.cubin in self.refuses or image.ptx in self.refuses:
            raise DeviceError("no kernel image is available")
        return super().load_kernel(image, shared_bytes)


@pytest.mark.parametrize(
    ("refuses", "origin"),
    [
        (set(), "cubin sm_90a"),
        ({b"exact"}, "cubin sm_90"),
        ({b"exact", b"near"}, "ptx"),
        ({b"exact", b"near", b"ptx"}, "rebuilt from source"),
    ],
)
def test_object_code_by_preference(monkeypatch: pytest.MonkeyPatch, refuses: set[bytes], origin: str) -> None:
    calls: list[tuple[str, str]] = []

    def rebuild(name: str, source: str, headers: dict[str, str], arch: str) -> bytes:
        calls.append((name, arch))
        return b"new"

    monkeypatch.setattr(engine_module, "rebuild_hook", rebuild)
    names = ("scale_add", "row_sum")
    cubins = {("sm_90a", n): b"exact" for n in names} | {("sm_90", n): b"near" for n in names}
    data = replace(chain(), cubins=cubins, ptx=dict.fromkeys(names, b"ptx"))
    engine = Engine(data, FakeGpu(refuses))
    assert engine.kernel_origins == dict.fromkeys(names, origin)
    assert bool(calls) == (origin == "rebuilt from source")
    check(engine, rows(2))
    monkeypatch.setattr(engine_module, "rebuild_hook", None)
    with pytest.raises(DeviceError, match="cannot be loaded"):
        Engine(replace(data, cubins={}, ptx={}), FakeGpu(refuses))


def test_session_has_onnx_runtimes_calls(tmp_path: Path) -> None:
    Engine(chain(), SimDevice()).save(tmp_path / "chain.engine")
    session = InferenceSession(tmp_path / "chain.engine", "sim")
    (x,) = session.get_inputs()
    assert (x.name, x.shape, x.type) == ("x", ("n", 8), "tensor(float)")
    assert [o.name for o in session.get_outputs()] == ["y", "total"]
    array = rows(3)
    both = session.run(None, {"x": array})
    (total,) = session.run(["total"], {"x": array})
    assert total == both[1]
    with pytest.raises(InputError, match="no output 'z'"):
        session.run(["z"], {"x": array})
    with pytest.raises(UsageError):
        InferenceSession(session.engine, "sim")


def test_a_damaged_engine_is_refused_before_anything_runs() -> None:
    with pytest.raises(EngineFileError):
        Engine(replace(chain(), weights={}), SimDevice())


# -------------------------------------------------------------------------------------- graphs, on a device
# of glass


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

    def fill_zero(self, address: int, nbytes: int, stream: int = 0) -> None:
        if self.recording is not None:
            self.recording.append(("fill_zero", (address, nbytes)))
        else:
            super().fill_zero(address, nbytes)

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

    monkeypatch.setattr(engine._shared.arrays, "empty", empty)
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
    assert 0 < sum(b.graphs for b in context._bound.values()) <= 32


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
