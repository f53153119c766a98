"""The choice of device and of object code for it, and sessions with ONNX Runtime's calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from runtime_programs import chain, check, rows

from arcweld.compiler.archs import parse_arch, runs_on
from arcweld.compiler.errors import ArcweldError, DeviceError, EngineFileError, InputError, UsageError
from arcweld.runtime import devices, injected
from arcweld.runtime.device import KernelImage
from arcweld.runtime.engine import Engine
from arcweld.runtime.kernels import binary_archs, choose_variant
from arcweld.runtime.session import InferenceSession
from arcweld.runtime.sim.device import SimDevice


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
    assert not runs_on("sm_90a", "sm_90")  # code for sm_90 may not use what only sm_90a has
    assert parse_arch("sm_90a") == (90, "a")
    assert {parse_arch(a) for a in ("volta", "sm_09", "sm_9", "sm_90b", "sm_90a ")} == {None}
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

    needs_object_code = True

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

    monkeypatch.setattr(injected, "rebuild", rebuild)
    names = ("scale_add", "row_sum")
    cubins = {("sm_90a", n): b"exact" for n in names} | {("sm_90", n): b"near" for n in names}
    data = replace(chain(), cubins=cubins, ptx=dict.fromkeys(names, b"ptx"))
    engine = Engine(data, FakeGpu(refuses))
    assert engine.kernel_origins == dict.fromkeys(names, origin)
    assert bool(calls) == (origin == "rebuilt from source")
    check(engine, rows(2))
    monkeypatch.setattr(injected, "rebuild", None)
    with pytest.raises(DeviceError, match="cannot be loaded"):
        Engine(replace(data, cubins={}, ptx={}), FakeGpu(refuses))


def test_session_has_onnx_runtimes_calls(tmp_path: Path) -> None:
    Engine(chain(), SimDevice()).save(tmp_path / "chain.engine")
    session = InferenceSession(tmp_path / "chain.engine", "sim")
    (x,) = session.get_inputs()
    assert (x.name, x.shape, x.type) == ("x", ["n", 8], "tensor(float)")
    assert [o.name for o in session.get_outputs()] == ["y", "total"]
    array = rows(3)
    both = session.run(None, {"x": array})
    (total,) = session.run(["total"], {"x": array})
    assert total == both[1]
    with pytest.raises(InputError, match="no output 'z'"):
        session.run(["z"], {"x": array})
    with pytest.raises(UsageError):
        InferenceSession(session.engine, "sim")


def test_calls_of_onnx_runtime_by_habit(tmp_path: Path) -> None:
    Engine(chain(), SimDevice()).save(tmp_path / "chain.engine")
    session = InferenceSession((tmp_path / "chain.engine").read_bytes(), "sim")
    array = rows(3)
    want = session.run(None, {"x": array})
    for results in (session.run([], {"x": array}), session.run(output_names=None, input_feed={"x": array})):
        np.testing.assert_array_equal(results[0], want[0])
    path = tmp_path / "chain.engine"
    (tmp_path / "m.onnx").write_bytes(b"")
    refused: list[tuple[str, Callable[[], object]]] = [
        ("output names are a list", lambda: session.run("y", {"x": array})),
        ("run options", lambda: session.run(None, {"x": array}, object())),  # type: ignore[arg-type]
        ("by name, not as a list", lambda: session.run(None, [array])),  # type: ignore[arg-type]
        ("by name, not as a NoneType", lambda: session.run(None, None)),  # type: ignore[arg-type]
        ("masked array", lambda: session.run(None, {"x": np.ma.masked_array(array)})),
        ("session options", lambda: InferenceSession(path, sess_options=object())),  # type: ignore[arg-type]
        ("a object is not a device", lambda: InferenceSession(path, object())),  # type: ignore[arg-type]
        ("no provider", lambda: InferenceSession(path, providers=["CPUExecutionProvider"])),
        ("no provider", lambda: InferenceSession(path, providers=[])),
        ("no provider", lambda: InferenceSession(path, providers="CUDAExecutionProvider")),
        ("option 'arena'", lambda: InferenceSession(path, providers=[("CUDAExecutionProvider", {"arena": 1})])),
        ("both name the device", lambda: InferenceSession(path, "sim", providers=["CUDAExecutionProvider"])),
        ("is a model, not an engine", lambda: InferenceSession(tmp_path / "m.onnx", "sim")),
        ("there is no engine file", lambda: InferenceSession(tmp_path / "nothere.onnx", "sim")),
        ("no GPU 7", lambda: InferenceSession(path, providers=[("CUDAExecutionProvider", {"device_id": 7}), "x"])),
    ]
    for message, call in refused:
        with pytest.raises(ArcweldError, match=message):
            call()


def test_dimensions_of_the_memory_report_are_checked() -> None:
    engine = Engine(chain(), SimDevice())
    for sizes, message in (({"n": 2, "q": 1}, "no dimension 'q'"), ({"n": "2"}, "whole number"), ({}, "for dimension")):
        with pytest.raises(InputError, match=message):
            engine.memory(**sizes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="by name, not as a list"):
        engine.update_weights([])  # type: ignore[arg-type]


def test_a_damaged_engine_is_refused_before_anything_runs() -> None:
    with pytest.raises(EngineFileError):
        Engine(replace(chain(), weights={}), SimDevice())
