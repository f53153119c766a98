"""The simulator's cache and memory: damage, interruption, full disks and too little memory are told apart."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from sim_harness import In, Out, image, run

from arcweld.compiler.errors import CompileError, DeviceError, EnvironmentError_
from arcweld.runtime.sim import build, tools
from arcweld.runtime.sim import device as sim
from arcweld.runtime.sim.device import SimDevice

SCALE = """#include "prims.cuh"
struct Params { const f32* x; f32* y; };
extern "C" __global__ void scale(const __grid_constant__ Params p) { p.y[threadIdx.x] = p.x[threadIdx.x] * FACTOR; }
EXPORT_KERNEL(scale)
"""
X = np.arange(8, dtype=np.float32)


def scaled(factor: int) -> np.ndarray:
    return run(SimDevice(), image(SCALE.replace("FACTOR", str(factor)), "scale"), (1,), (8,), [In(X), Out(X * 0)])[0]


def kernels(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("runtime-"))


def test_the_number_of_libraries_is_bounded(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MAX_LIBRARIES", 100)
    scaled(3)
    (ours,) = kernels(fresh_cache)
    for n in range(120):
        (fresh_cache / f"old-{n}.so").write_bytes(b"")
        os.utime(fresh_cache / f"old-{n}.so", (n, n))
    factor = 4
    while len(kernels(fresh_cache)) > 100:  # until the hash of a new one ends with a 0
        scaled(factor)
        factor += 1
        assert factor < 100
    assert ours.exists()
    assert build._intact(build.runtime_library())


# ------------------------------------------------------------------------------------------------------ damage


def test_any_flipped_bit_is_repaired(fresh_cache: Path) -> None:
    scaled(3)
    gc.collect()
    (path,) = kernels(fresh_cache)
    whole = path.read_bytes()
    source = build.SimSource("scale", "scale", SCALE.replace("FACTOR", "3"), "sm_90a", False)
    pick = random.Random(0)
    for at in [0, 1, len(whole) - 1, len(whole) - 33, *(pick.randrange(len(whole)) for _ in range(12))]:
        data = bytearray(whole)
        data[at] ^= 1 << pick.randrange(8)
        path.write_bytes(data)
        assert build.kernel_library(source) == path
        assert path.read_bytes() != bytes(data)
        assert build._intact(path)


@pytest.mark.parametrize("content", [b"", b"x", b"ARCWELD1" + bytes(32)])
def test_other_content_is_replaced(fresh_cache: Path, content: bytes) -> None:
    scaled(4)
    (path,) = kernels(fresh_cache)
    path.write_bytes(content)
    build.kernel_libraries([build.SimSource("scale", "scale", SCALE.replace("FACTOR", "4"), "sm_90a", False)])
    assert build._intact(path)


def test_damage_is_repaired_before_a_kernel_runs(fresh_cache: Path) -> None:
    """In a process of its own, because a library that is loaded stays what it was."""
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_sim_cache import scaled, X
        assert (scaled(5) == X * 5).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, check=True)
    (path,) = kernels(fresh_cache)
    text = path.read_bytes()
    at = text.index(b".text") // 2  # somewhere in the code or its headers
    path.write_bytes(text[:at] + bytes(64) + text[at + 64 :])
    subprocess.run(command, check=True)
    assert path.read_bytes() == text


# ------------------------------------------------------------------------------------------------ interruption

SLOW_COMPILER = """#!/bin/sh
case "$*" in *--version*) echo "slow 1.0"; exit 0;; esac
echo started > "$TMPDIR/object.o"
sleep 60 & wait
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_no_temporary_file(number: signal.Signals, fresh_cache: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "slow-g++"
    compiler.write_text(SLOW_COMPILER)
    compiler.chmod(0o755)
    script = """
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells switch off in the background
        from arcweld.runtime.sim.build import SimSource, kernel_library
        kernel_library(SimSource("k", "k", "", "sm_80", False))
    """
    environment = {**os.environ, "CXX": str(compiler)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment, stderr=-1) as process:
        end = time.monotonic() + 30
        while not list(fresh_cache.glob(".work-*/object.o")) and time.monotonic() < end:
            time.sleep(0.02)
        (left,) = fresh_cache.glob(".work-*")
        process.send_signal(number)
        process.communicate(timeout=30)
    if number is signal.SIGKILL:  # nobody could clean up: the next compilation does
        scaled(6)
    assert not left.exists()
    assert all(p.suffix == ".so" for p in fresh_cache.iterdir())


def test_what_a_living_process_is_making_stays(fresh_cache: Path) -> None:
    theirs = fresh_cache / f".work-{os.getppid()}-0123abcd"
    theirs.mkdir()
    scaled(7)
    assert theirs.is_dir()


# --------------------------------------------------------------------------------------- what a machine may lack


@pytest.mark.parametrize(
    ("shown", "kind", "message"),
    [
        ("k.cu:3: error: 'x' was not declared", CompileError, "k.cu:3"),
        ("fatal error: error writing to x.s: No space left on device", EnvironmentError_, "no space left"),
        ("collect2: fatal error: ld terminated with signal 7 [Bus error]", EnvironmentError_, "no space left"),
        ("ld: final link failed: File too large", EnvironmentError_, "no space left"),
        ("cc1plus: out of memory allocating 65536 bytes", EnvironmentError_, "out of memory"),
        ("virtual memory exhausted: Cannot allocate memory", EnvironmentError_, "out of memory"),
        ("g++: fatal error: Killed signal terminated program cc1plus", EnvironmentError_, "out of memory"),
    ],
)
def test_failures_of_the_compiler_are_told_apart(
    shown: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\ncat > /dev/null\necho "{shown}" >&2\nexit 1\n')
    compiler.chmod(0o755)
    with pytest.raises(kind, match=message) as caught:
        tools.run_compiler([str(compiler)], "kernel k", "text", tmp_path)
    assert type(caught.value) is kind


def test_a_disk_that_is_full(fresh_cache: Path) -> None:
    """A limit on the size of files stands in for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(EnvironmentError_, match="no space left"):
            scaled(8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kernels(fresh_cache) == []
    assert (scaled(8) == X * 8).all()


def test_a_compiler_that_cannot_be_started(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(tools.subprocess, "Popen", refuse)
    with pytest.raises(EnvironmentError_, match="cannot be started: Cannot allocate memory"):
        scaled(9)


MEMORY = """
    import resource, sys
    sys.path[:0] = {paths!r}
    from demo_kernels import mma_gemm, wgmma_gemm
    from arcweld.compiler.errors import DeviceError
    from arcweld.runtime.sim.device import SimDevice
    launch = SimDevice.launch

    def limited(self, prepared, stream=0):
        used = 1024 * int(next(x for x in open("/proc/self/status") if x.startswith("VmSize")).split()[1])
        resource.setrlimit(resource.RLIMIT_AS, (used + ({spare} << 20), -1))
        try:
            return launch(self, prepared, stream)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

    demo, device = {demo}(), SimDevice(checked={checked})
    SimDevice.launch = limited
    try:
        demo.passes(device)
    except DeviceError as error:
        assert "not enough memory" in str(error), error
    else:
        raise AssertionError("it had enough")
    SimDevice.launch = launch
    assert demo.passes(device)  # and harms nothing
"""


@pytest.mark.parametrize(
    ("demo", "checked", "spare"),
    [("mma_gemm", False, 4), ("mma_gemm", False, 200), ("wgmma_gemm", True, 4), ("wgmma_gemm", True, 268)],
)
def test_too_little_memory_inside_a_launch(demo: str, checked: bool, spare: int) -> None:
    script = textwrap.dedent(MEMORY.format(paths=sys.path, demo=demo, checked=checked, spare=spare))
    subprocess.run([sys.executable, "-c", script], check=True)


def test_too_much_device_memory() -> None:
    for nbytes in (1 << 46, 1 << 62):
        with pytest.raises(DeviceError, match=f"not enough memory for {nbytes} bytes"):
            SimDevice().allocate(nbytes)


# ------------------------------------------------------------------------------------------------ loaded kernels


def mapped() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/scale-" in line}


def test_the_number_of_loaded_kernels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "MAX_RECENT", 3)
    gc.collect()
    before = len(mapped())
    device = SimDevice()
    kept = device.load_kernel(image(SCALE.replace("FACTOR", "100"), "scale"), 0)
    for factor in range(101, 109):
        device.load_kernel(image(SCALE.replace("FACTOR", str(factor)), "scale"), 0)
    gc.collect()
    assert len(mapped()) - before <= 4
    assert device.load_kernel(image(SCALE.replace("FACTOR", "100"), "scale"), 0) is kept


def test_a_prepared_launch_keeps_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "MAX_RECENT", 1)
    device = SimDevice()
    for factor in (110, 111, 112):
        one = image(SCALE.replace("FACTOR", str(factor)), "scale")
        (y,) = run(device, one, (1,), (8,), [In(X), Out(X * 0)])
        np.testing.assert_array_equal(y, X * factor)
