"""The sim device as a Device: memory, caching, compiler choice, errors, tensor maps."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from demo_kernels import gelu, mma_gemm
from sim_harness import In, Out, image, run

from arcweld.compiler.errors import CompileError, DeviceError, EnvironmentError_
from arcweld.compiler.paths import cache_dir, replacing
from arcweld.runtime.device import LaunchSpec, TensorMapSpec
from arcweld.runtime.sim import build
from arcweld.runtime.sim.device import SimDevice

COPY = """#include "prims.cuh"
struct Params { const f32* x; f32* y; };
extern "C" __global__ void copy(const __grid_constant__ Params p) { p.y[threadIdx.x] = p.x[threadIdx.x] + SCALE; }
EXPORT_KERNEL(copy)
"""


def copy_kernel(scale: int) -> str:
    return COPY.replace("SCALE", str(scale))


def kernels_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("runtime-"))


def run_copy(device: SimDevice, scale: int) -> np.ndarray:
    x = np.arange(8, dtype=np.float32)
    return run(device, image(copy_kernel(scale), "copy"), (1,), (8,), [In(x), Out(x * 0)])[0]


def test_memory_is_aligned_and_poisoned_only_in_checked_mode() -> None:
    for nbytes in (1, 255, 4096):
        memory = SimDevice(checked=True).allocate(nbytes)
        assert memory.address % 256 == 0
        assert memory.nbytes == nbytes
        assert (memory.array == 0xFF).all()
    assert SimDevice().allocate(0).address % 256 == 0


def test_upload_copy_fill_download() -> None:
    device = SimDevice()
    a, b = device.allocate(64), device.allocate(64)
    device.upload(a.address, np.arange(16, dtype=np.int32))
    device.copy(b.address, a.address + 16, 48)
    device.fill(b.address, 8, 0)
    result = np.empty(12, np.int32)
    device.download(result, b.address)
    assert result.tolist() == [0, 0, *range(6, 16)]
    with pytest.raises(DeviceError, match="contiguous"):
        device.upload(a.address, np.zeros((4, 4), np.int32).T[:2])


def test_a_kernel_is_compiled_once(fresh_cache: Path) -> None:
    assert run_copy(SimDevice(), 5)[3] == 8
    (first,) = kernels_in(fresh_cache)
    stamp = (fresh_cache / first).stat().st_mtime_ns
    assert run_copy(SimDevice(), 5)[3] == 8
    assert (fresh_cache / first).stat().st_mtime_ns == stamp
    run_copy(SimDevice(checked=True), 5)
    run_copy(SimDevice(arch="sm_80"), 5)
    assert len(kernels_in(fresh_cache)) == 3


def test_compile_many_fills_the_cache_and_reports_errors(fresh_cache: Path) -> None:
    device = SimDevice()
    images = [image(copy_kernel(scale), "copy") for scale in (1, 2, 3, 2)]
    device.compile_many(images)
    assert len(kernels_in(fresh_cache)) == 3
    assert run_copy(device, 3)[0] == 3
    with pytest.raises(CompileError, match=r"copy.cu:3:.*missing"):
        device.compile_many([image(COPY.replace("SCALE", "missing"), "copy")])
    assert len(kernels_in(fresh_cache)) == 3, "a failed compile leaves nothing behind"


def test_a_kernel_without_export_is_refused() -> None:
    source = copy_kernel(0).replace("EXPORT_KERNEL(copy)\n", "")
    with pytest.raises(DeviceError, match=r"EXPORT_KERNEL\(copy\)"):
        SimDevice().load_kernel(image(source, "copy"), 0)


@pytest.mark.parametrize(("system", "machine"), [("linux", "riscv64"), ("linux", "armv7l"), ("darwin", "aarch64")])
def test_other_platforms_are_refused(system: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build.toolchain.cache_clear()
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build.sys, "platform", system)
    try:
        with pytest.raises(EnvironmentError_, match=f"Linux on x86-64 or aarch64, not {system} on {machine}"):
            build.toolchain()
    finally:
        build.toolchain.cache_clear()


def test_libraries_of_different_cpus_are_kept_apart(fresh_cache: Path) -> None:
    """Machines may share a cache folder; none may load code with instructions that its CPU lacks."""
    command = build.toolchain().command
    cpus = ["", "sse4_2 ssse3 popcnt", "sse4_2 ssse3 popcnt avx2 fma f16c bmi2"]
    described = [build.describe(command, "x86_64", f"flags : fpu {cpu}\n") for cpu in cpus]
    levels = [flag for tools in described for flag in tools.flags if "x86" in flag]
    assert levels == ["-march=x86-64", "-march=x86-64-v2", "-march=x86-64-v3"]
    source = build.SimSource("copy", "copy", copy_kernel(0), "sm_90a", False)
    paths = {build._kernel_path(source, tools) for tools in [*described, build.describe(command, "aarch64", "")]}
    assert len(paths) == 4


def test_without_moves_that_need_no_alignment_gcc_makes_no_vectors_of_32_bytes(tmp_path: Path) -> None:
    """GCC may leave them where the stack is not aligned for them."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++")
    old = tmp_path / "old-g++"
    old.write_text(f'#!/bin/sh\ncase "$*" in *unaligned-vector-move*) exit 1;; esac\nexec {compiler} "$@"\n')
    old.chmod(0o755)
    cpu = "flags : sse4_2 ssse3 popcnt avx2 fma f16c bmi2"
    flags = [build.describe((command,), "x86_64", cpu).flags for command in (str(old), compiler)]
    assert "-march=x86-64-v2" in flags[0]
    assert not any("unaligned" in x for x in flags[0])
    if any("unaligned" in x for x in flags[1]):
        assert "-march=x86-64-v3" in flags[1]


def test_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    build.toolchain.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    try:
        with pytest.raises(EnvironmentError_, match=r"(?s)C\+\+ compiler.*apt-get install g\+\+"):
            build.toolchain()
        monkeypatch.setenv("CXX", "no-such-compiler -O3")
        with pytest.raises(EnvironmentError_, match="no-such-compiler"):
            build.toolchain()
    finally:
        build.toolchain.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("clang++") and not shutil.which("clang++-14"), reason="no clang")
def test_clang_builds_the_same_results(tmp_path: Path) -> None:
    clang = shutil.which("clang++") or shutil.which("clang++-14") or ""
    code = (
        "from demo_kernels import mma_gemm, wgmma_gemm\nfrom arcweld.runtime.sim.device import SimDevice\n"
        "assert mma_gemm().passes(SimDevice()) and wgmma_gemm().passes(SimDevice(checked=True))\n"
    )
    environment = {**os.environ, "CXX": clang, "ARCWELD_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _spec(**changes: object) -> LaunchSpec:
    device = SimDevice()
    kernel = device.load_kernel(image(copy_kernel(0), "copy"), 0)
    fields: dict = {
        "name": "copy", "kernel": kernel, "grid": (1, 1, 1), "block": (8, 1, 1), "shared_bytes": 0, "cluster": 1,
        "pdl": True, "params": struct.pack("<QQ", 0, 0), "buffers": (),
    }  # fmt: skip
    return LaunchSpec(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": (1025, 1, 1)}, "1025 threads"),
        ({"shared_bytes": 300_000}, "300000 bytes of shared memory"),
        ({"cluster": 2}, "clusters"),
        ({}, "invalid or misaligned memory access"),
    ],
)
def test_bad_launches_are_errors_not_crashes(changes: dict, message: str) -> None:
    device = SimDevice()
    with pytest.raises(DeviceError, match=message):
        device.launch(device.prepare(_spec(**changes)))


def test_an_empty_grid_runs_nothing() -> None:
    device = SimDevice()
    device.launch(device.prepare(_spec(grid=(0, 1, 1))))


def test_block_and_grid_indices() -> None:
    source = """#include "prims.cuh"
struct Params { i32* y; };
extern "C" __global__ void where(const __grid_constant__ Params p) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  p.y[block * 24 + thread] = block * 1000 + thread;
}
EXPORT_KERNEL(where)
"""
    (y,) = run(SimDevice(), image(source, "where"), (2, 3, 2), (4, 3, 2), [Out(np.zeros(288, np.int32))])
    np.testing.assert_array_equal(y.reshape(12, 24), np.arange(12)[:, None] * 1000 + np.arange(24))


def test_threads_may_share_the_device() -> None:
    demos, device, failures = [gelu(), mma_gemm()], SimDevice(), []

    def work(demo: object) -> None:
        for _ in range(5):
            if not demo.passes(device):  # type: ignore[attr-defined]
                failures.append(demo)

    workers = [threading.Thread(target=work, args=(demo,)) for demo in demos * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


GOOD_MAP = TensorMapSpec("f16", 4096, (64, 32), (128,), (64, 8), (1, 1), 128)


def test_tensor_map_has_128_bytes() -> None:
    assert len(SimDevice().encode_tensor_map(GOOD_MAP)) == 128


@pytest.mark.parametrize(
    "changes",
    [
        {"address": 4104},
        {"strides": (120,)},
        {"strides": ()},
        {"dims": (64, 0)},
        {"box": (128, 8)},
        {"box": (4, 8)},
        {"box": (64, 300)},
        {"element_strides": (2, 1)},
        {"element_strides": (1, 9)},
        {"swizzle": 100},
        {"dims": (64,) * 5, "strides": (128,) * 4, "box": (8,) * 5, "element_strides": (1,) * 5},
    ],
)
def test_tensor_maps_the_driver_would_refuse(changes: dict) -> None:
    fields = {name: getattr(GOOD_MAP, name) for name in GOOD_MAP.__slots__}
    with pytest.raises(DeviceError, match="invalid tensor map"):
        SimDevice().encode_tensor_map(TensorMapSpec(**{**fields, **changes}))


def test_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b"
    assert cache_dir().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(EnvironmentError_, match="ARCWELD_CACHE_DIR"):
        cache_dir()


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value"
    with replacing(target) as temporary:
        temporary.write_text("one")

    def fail_halfway() -> None:
        with replacing(target) as temporary:
            temporary.write_text("two")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["value"]
