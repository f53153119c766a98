"""``doctor``: checks what this machine has, and names the remedy for what is missing."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import typer

from arcweld.cli.common import out
from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.paths import cache_dir

OLDEST_CUDA = 12  # major version that a driver must support
EVERYTHING = "everything"
INSTEAD = {"cupy-cuda12x": ("cupy-cuda13x", "cupy"), "nvidia-cuda-nvrtc-cu12": ("nvidia-cuda-nvrtc",)}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was found, what it is needed for, and the remedy if it is not ``ok``."""

    name: str
    ok: bool
    found: str
    needed: str = ""
    remedy: str = ""


def check_nvrtc() -> Finding:
    """Compiles a small kernel with NVRTC, which needs no GPU."""
    from arcweld.codegen.nvrtc.compiler import compile_cubin, missing_nvrtc, version

    probe = '#include "prims.cuh"\nextern "C" __global__ void probe(float* x) { x[0] = 1.f; }\n'
    try:
        found = version()
        compile_cubin(probe, "sm_80", name="probe")
    except ArcweldError as error:
        remedy = error.hint or str(missing_nvrtc("").hint).replace("install", "install --force-reinstall")
        return Finding("NVRTC", False, error.message, "compiling kernels", remedy)
    return Finding("NVRTC", True, f"{found}, compiles for sm_80 with its own headers", "compiling kernels")


def check_driver() -> Finding:
    """Looks for the NVIDIA driver and its GPUs."""
    trouble, remedy = driver_trouble()
    if trouble:
        return Finding("GPU", False, f"{trouble}: only device sim runs here", "device cuda", remedy)
    from arcweld.runtime.devices import gpu_count

    n = gpu_count()
    return Finding("GPU", True, f"{n} GPU(s): {_gpu_names(n)}", "device cuda")


def driver_trouble() -> tuple[str, str]:
    """Why there is no usable GPU, and the remedy; two empty texts if there is one."""
    install = f"install an NVIDIA driver for CUDA {OLDEST_CUDA} or newer (nvidia-smi must list the card)"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver", f"{install}, or use --device sim"
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if not driver.cuDriverGetVersion(ctypes.byref(version)) and version.value < 1000 * OLDEST_CUDA:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"the NVIDIA driver knows CUDA {found} at most, {OLDEST_CUDA}.0 is needed", install
    if code := driver.cuInit(0):
        return f"the NVIDIA driver does not start (CUDA error {code})", "nvidia-smi says more; reload or reinstall it"
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver shows no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device sim"
    return "", ""


def _gpu_names(n: int) -> str:
    import cupy

    names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(n)]
    return ", ".join(names)


def check_packages() -> Finding:
    """Looks for the Python packages that Arcweld requires."""
    missing = [w for w in importlib.metadata.requires("arcweld") or () if "extra ==" not in w and not _satisfied(w)]
    if missing:
        line = f"pip install {shlex.join(missing)}"
        return Finding("packages", False, f"missing or too old: {', '.join(missing)}", EVERYTHING, line)
    return Finding("packages", True, "all that Arcweld needs")


def _satisfied(requirement: str) -> bool:
    """True for ``name>=1.2`` where 1.2 or newer is installed."""
    name, _, least = requirement.partition(">=")
    for candidate in (name, *INSTEAD.get(name, ())):
        try:
            found = importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
        return [int(x) for x in re.findall(r"\d+", found)[:3]] >= [int(x) for x in re.findall(r"\d+", least)[:3]]
    return False


def check_bindings() -> Finding:
    """Imports cuda.bindings, which launches kernels and graphs."""
    try:
        importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        return Finding("cuda-bindings", False, str(error), "device cuda", "pip install cuda-bindings")
    return Finding("cuda-bindings", True, importlib.metadata.version("cuda-bindings"), "device cuda")


def check_compiler() -> Finding:
    """Looks for a C++ compiler, which only the sim device needs, and at the variable for its host threads."""
    from arcweld.runtime.sim.build import toolchain
    from arcweld.runtime.sim.device import host_threads

    try:
        found = toolchain().command
        host_threads()
    except ArcweldError as error:
        return Finding("C++ compiler", False, error.message, "device sim", error.hint or "pip install ziglang")
    return Finding("C++ compiler", True, " ".join(found), "device sim")


def check_cache() -> Finding:
    """Checks that the cache folder is writable and has free space."""
    folder = cache_dir()
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "set ARCWELD_CACHE_DIR to a folder that can be written"
        return Finding("cache", False, f"no permission to write to {folder}", EVERYTHING, remedy)
    free = shutil.disk_usage(folder).free
    if free < 1 << 28:
        remedy = "free some disk, or set ARCWELD_CACHE_DIR"
        return Finding("cache", False, f"{folder}: {free / 1e6:.0f} MB free", "caches", remedy)
    return Finding("cache", True, f"{folder}: {free / 1e9:.1f} GB free", "caches")


CHECKS: dict[str, Callable[[], Finding]] = {
    "GPU": check_driver, "NVRTC": check_nvrtc, "cuda-bindings": check_bindings, "C++ compiler": check_compiler,
    "cache": check_cache, "packages": check_packages,
}  # fmt: skip


def examine(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check. An unexpected exception is a finding too: a broken machine can raise anything."""
    try:
        return check()
    except ArcweldError as error:
        return Finding(name, False, error.message, EVERYTHING, error.hint or "")
    except Exception as error:
        return Finding(name, False, f"{type(error).__name__}: {error}", EVERYTHING, "reinstall what it names")


def doctor() -> None:
    """Checks GPU, driver, NVRTC, compiler, packages; exit code 4 if no device works or nothing can be built."""
    findings = [examine(name, check) for name, check in CHECKS.items()]
    for f in findings:
        out.print(f"{'ok  ' if f.ok else 'miss'} {f.name}: {f.found}")
        if not f.ok and f.remedy:
            out.print(f"     needed for {f.needed}; remedy: {f.remedy}")
    state = {f.name: f.ok for f in findings}
    cuda = state["GPU"] and state["NVRTC"] and state["cuda-bindings"]
    sim = state["C++ compiler"]
    out.print(f"device cuda: {'ready' if cuda else 'not usable'}; device sim: {'ready' if sim else 'not usable'}")
    useless = any(f.needed == EVERYTHING for f in findings if not f.ok)
    if useless or not (cuda or sim) or not state["NVRTC"]:
        raise typer.Exit(4)
