"""``doctor``: what this machine has, what is wrong with it, and the exact line that mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import typer
from arcweld.compiler.cli.common import out
from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.paths import cache_dir


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: ``ok``, what was found, and the remedy where it is not. ``needed`` tells what it is for."""

    name: str
    ok: bool
    found: str
    needed: str = ""
    remedy: str = ""


def check_nvrtc() -> Finding:
    """NVRTC: compiles kernels, with or without a GPU."""
    from arcweld.codegen.nvrtc import compile_cubin, version

    probe = '#include "prims.cuh"\nextern "C" __global__ void probe(float* x) { x[0] = 1.f; }\n'
    try:
        found = version()
        compile_cubin(probe, "sm_80", name="probe")
    except ArcweldError as error:
        return Finding("NVRTC", False, error.message, "compiling kernels", error.hint or "")
    return Finding("NVRTC", True, f"{found}, compiles for sm_80 with its own headers", "compiling kernels")


def check_driver() -> Finding:
    """The NVIDIA driver and its GPUs."""
    from arcweld.runtime.devices import gpu_count

    n = gpu_count()
    if n:
        return Finding("GPU", True, f"{n} GPU(s): {_gpu_names(n)}", "device cuda")
    remedy = "install the NVIDIA driver (nvidia-smi must list the card), or use --device sim"
    return Finding("GPU", False, "no NVIDIA driver or no GPU: only device sim runs here", "device cuda", remedy)


def _gpu_names(n: int) -> str:
    import cupy

    names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(n)]
    return ", ".join(names)


def check_bindings() -> Finding:
    """cuda.bindings: launches kernels and graphs."""
    try:
        importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        return Finding("cuda-bindings", False, str(error), "device cuda", "pip install cuda-bindings")
    return Finding("cuda-bindings", True, importlib.metadata.version("cuda-bindings"), "device cuda")


def check_compiler() -> Finding:
    """A C++ compiler: only the sim device needs one."""
    from arcweld.runtime.sim.build import toolchain

    try:
        found = toolchain().command
    except ArcweldError as error:
        return Finding("C++ compiler", False, error.message, "device sim", error.hint or "pip install ziglang")
    return Finding("C++ compiler", True, " ".join(found), "device sim")


def check_cache() -> Finding:
    """The cache folder and the room in it."""
    folder = cache_dir()
    probe = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(probe).free
    if free < 1 << 28:
        remedy = "free some disk, or set ARCWELD_CACHE_DIR"
        return Finding("cache", False, f"{folder}: {free / 1e6:.0f} MB free", "caches", remedy)
    return Finding("cache", True, f"{folder}: {free / 1e9:.1f} GB free", "caches")


CHECKS: tuple[Callable[[], Finding], ...] = (check_driver, check_nvrtc, check_bindings, check_compiler, check_cache)


def doctor() -> None:
    """Checks driver, NVRTC, headers, compiler and GPU; exit code 4 if no device works or nothing can be built."""
    findings = [check() for check in CHECKS]
    for f in findings:
        out.print(f"{'ok  ' if f.ok else 'miss'} {f.name}: {f.found}", markup=False)
        if not f.ok and f.remedy:
            out.print(f"     needed for {f.needed}; remedy: {f.remedy}", markup=False)
    state = {f.name: f.ok for f in findings}
    cuda = state["GPU"] and state["NVRTC"] and state["cuda-bindings"]
    sim = state["C++ compiler"]
    out.print(f"device cuda: {'ready' if cuda else 'not usable'}; device sim: {'ready' if sim else 'not usable'}")
    if not (cuda or sim) or not state["NVRTC"]:
        raise typer.Exit(4)
