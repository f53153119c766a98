"""Compiles the simulator's runtime library and the kernels with a host C++ compiler, cached by content.

A kernel becomes a small shared library whose undefined symbols (the ``sim_*`` functions) resolve against the runtime
library, which is loaded first and globally. Each ends with a hash of itself; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.paths import cache_dir, forget_oldest, touch
from arcweld.runtime.sim.tools import Compilers, run_compiler, workspace

log = logging.getLogger("arcweld.sim")

_HERE = Path(__file__).parent
_COMMON_FLAGS = (
    *("-std=c++17", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fno-plt"),
    *("-fno-strict-aliasing", "-fno-math-errno", "-fsigned-char"),
)
_RUNTIME_FLAGS = (
    *(*_COMMON_FLAGS, "-O3", "-pthread", "-ffp-contract=fast"),
    *("-fno-semantic-interposition", "-Wl,-Bsymbolic"),
)
# -nostdlib: the C library's functions come from the process, and linking them again would double the time.
_KERNEL_FLAGS = (*_COMMON_FLAGS, "-nostdlib", "-fno-trapping-math", "-ffp-contract=fast", "-w")
_MACHINES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64"}  # as platform.machine() names them
# Levels of x86-64, the best one first, and the flags of CPUs that have them. Code is made for a level, not for one CPU
# (-march=native), so that machines can share a cache, and for none above v3: on a Xeon with AVX-512 (family 6, model
# 207; GCC 12.4) v4, native, and v4 with vectors of 64 bytes took 0 to 8 % less CPU time than v3 in pointwise kernels,
# products by tiles, mma and wgmma. GCC's tuning for AMD (znver3), which native means there, took 3 to 8 % more in
# products. v3 is 1.3 (products, mma) to 2.3 times (wgmma) as fast as v2: fused multiply-adds, vectors of 32 bytes.
_LEVELS = (("x86-64-v3", ("avx2", "fma", "f16c", "bmi2")), ("x86-64-v2", ("sse4_2", "ssse3", "popcnt")))
# GCC before 15 may place vectors on a stack that it does not align for them: it misses accesses through pointers in
# functions without calls that would have needed vectors of 32 bytes aligned (GCC's bug 109780). The assembler's moves
# that need no alignment are as fast where addresses are aligned. Without them (binutils before 2.38) there are no
# vectors of 32 bytes.
_UNALIGNED = "-Wa,-muse-unaligned-vector-move"
MAX_LIBRARIES = 100_000  # in the cache: about 2 GB
_MAGIC = b"ARCWELD1"  # before the hash of what precedes it
_FAST_FLAGS = ("-O2", "-ftree-vectorize", "-g1")
_CHECKED_FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-DSIM_CHECKED")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A host C++ compiler: the command, the first line of ``--version``, and flags for it and for a CPU."""

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    kernel_flags: tuple[str, ...]  # of kernels alone
    instrument: tuple[str, ...]  # every memory access calls a __tsan_* hook, without linking the sanitizer's library


@dataclass(frozen=True, slots=True)
class SimSource:
    """A kernel to be compiled. ``arch`` (``sm_80``, ``sm_90a``) sets ``__CUDA_ARCH__``; ``checked`` adds the checks."""

    name: str
    entry: str
    source: str
    arch: str
    checked: bool


def include_dirs() -> tuple[Path, ...]:
    """The folders of the simulator's headers and of the headers that kernels include."""
    return _HERE, Path(str(importlib.resources.files("arcweld.codegen.include")))


@cache
def toolchain() -> Toolchain:
    """The compiler for this machine: ``CXX``, else g++, clang++ or the package ziglang.

    Raises EnvironmentError_ if there is none, if it does not run, or if this is not Linux on x86-64 or aarch64.
    """
    machine = _MACHINES.get(platform.machine(), "")
    if not machine or not sys.platform.startswith("linux"):
        raise EnvironmentError_(
            f"the sim device needs Linux on x86-64 or aarch64, not {sys.platform} on {platform.machine()}"
        )
    return describe(_find_compiler(), machine, Path("/proc/cpuinfo").read_text(errors="replace"))


def describe(command: tuple[str, ...], machine: str, cpu: str) -> Toolchain:
    """The toolchain of a compiler ``command`` for ``machine``, which is ``x86_64`` or ``aarch64``.

    ``cpu`` is what /proc/cpuinfo says of the CPU. Raises EnvironmentError_ if the compiler does not run.
    """
    probe = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise EnvironmentError_(
            f"the C++ compiler `{shlex.join(command)}` does not run: {probe.stderr.strip()[:200]}",
            hint="set CXX to a working g++ or clang++",
        )
    version = probe.stdout.splitlines()[0]
    is_gcc, is_zig = "Free Software Foundation" in probe.stdout, any("zig" in part for part in command)
    unaligned = (_UNALIGNED,) if is_gcc and machine == "x86_64" and _assembles(command, _UNALIGNED) else ()
    levels = _LEVELS if unaligned or not is_gcc else _LEVELS[1:]
    flags = [*_cpu_flags(machine, cpu, is_zig, levels), *unaligned]
    if machine == "aarch64":  # its division by zero gives 0: the compiler adds the trap that an x86 CPU has
        trap = "-fsanitize-undefined-trap-on-error" if is_gcc else "-fsanitize-trap=integer-divide-by-zero"
        kernel_flags: tuple[str, ...] = ("-fsanitize=integer-divide-by-zero", trap)
    else:
        kernel_flags = ()
    if is_gcc:
        flags.append("-fvect-cost-model=dynamic")  # clang's default; GCC's at -O2 leaves register tiles scalar
        return Toolchain(command, version, tuple(flags), kernel_flags, ("-fsanitize=thread",))
    flags.append("-fno-sanitize=undefined")  # on by default in zig's clang
    return Toolchain(command, version, tuple(flags), kernel_flags, ("-Xclang", "-fsanitize=thread"))


def _assembles(command: tuple[str, ...], flag: str) -> bool:
    """Whether the compiler's assembler knows ``flag``."""
    probe = [*command, flag, "-x", "assembler", "-c", "-o", os.devnull, "-"]
    return subprocess.run(probe, input="", capture_output=True, text=True, check=False).returncode == 0


def _cpu_flags(machine: str, cpu: str, is_zig: bool, levels: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """The instructions that code may use. Libraries of machines that share a cache differ by these flags."""
    if machine == "aarch64":
        # All of them have NEON and conversions of 16-bit floats. Atomics are instructions, not calls of functions in
        # the compiler's library, with which kernels are not linked.
        return ("-mcpu=generic",) if is_zig else ("-march=armv8-a", "-mno-outline-atomics")
    level = next((name for name, needs in levels if all(f" {flag}" in cpu for flag in needs)), "x86-64")
    return (f"-mcpu={level.replace('-', '_')}" if is_zig else f"-march={level}",)


def _find_compiler() -> tuple[str, ...]:
    if configured := os.environ.get("CXX"):
        command = tuple(shlex.split(configured))
        if not shutil.which(command[0]):
            raise EnvironmentError_(f"CXX names `{command[0]}`, which is not installed", hint="unset CXX or correct it")
        return command
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise EnvironmentError_(
        "the sim device needs a C++ compiler and found none",
        hint="apt-get install g++   (or: pip install ziglang, or set CXX)",
    )


def runtime_library(tools: Toolchain | None = None) -> Path:
    """The path of the simulator's runtime library, built on first use (about two seconds). Raises CompileError.

    ``tools`` is another compiler than this machine's.
    """
    tools = tools or toolchain()
    sources = sorted(_HERE.glob("*.cpp"))
    flags = [*_RUNTIME_FLAGS, *tools.flags]
    key = _digest(tools, flags, [*sources, *sorted(_HERE.glob("*.h"))], "")
    path = cache_dir() / "sim" / f"runtime-{key}.so"
    if not _intact(path):
        _make(path, [*tools.command, *flags, *map(str, sources)], "the sim runtime", "")
    return path


def kernel_library(kernel: SimSource, tools: Toolchain | None = None) -> Path:
    """The path of the kernel's library, compiled unless cached. Raises CompileError with the kernel's line.

    ``tools`` is another compiler than this machine's.
    """
    tools = tools or toolchain()
    path = _kernel_path(kernel, tools)
    if not _intact(path):
        _compile(kernel, path, tools)
    return path


def kernel_libraries(kernels: Sequence[SimSource], jobs: int = 2) -> list[Path]:
    """``kernel_library`` of each kernel. ``jobs`` processes compile what is not cached; equal sources only once."""
    from concurrent.futures import ThreadPoolExecutor

    tools = toolchain()
    paths = [_kernel_path(kernel, tools) for kernel in kernels]
    missing = {path: kernel for path, kernel in zip(paths, kernels) if not _intact(path)}
    compilers = Compilers()
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:  # each thread only waits for its compiler
        try:
            futures = [pool.submit(_compile, kernel, path, tools, compilers) for path, kernel in missing.items()]
            for future in futures:
                future.result()
        except (KeyboardInterrupt, SystemExit):
            pool.shutdown(wait=False, cancel_futures=True)
            compilers.stop()
            raise
    return paths


def _kernel_flags(kernel: SimSource, tools: Toolchain) -> list[str]:
    number = "".join(c for c in kernel.arch.removeprefix("sm_") if c.isdigit())
    mode = (*_CHECKED_FLAGS, *tools.instrument) if kernel.checked else _FAST_FLAGS
    return [*_KERNEL_FLAGS, *tools.flags, *tools.kernel_flags, *mode, f"-D__CUDA_ARCH__={number}0"]


@cache
def _headers() -> tuple[Path, ...]:
    return tuple(path for folder in include_dirs() for path in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")]))


def _kernel_path(kernel: SimSource, tools: Toolchain) -> Path:
    key = _digest(tools, _kernel_flags(kernel, tools), _headers(), kernel.name + "\0" + kernel.source)
    return cache_dir() / "sim" / f"{kernel.entry[:60]}-{key}.so"


@cache
def _content(path: Path, mtime_ns: int) -> bytes:
    del mtime_ns  # part of the cache's key only
    return path.read_bytes()


def _digest(tools: Toolchain, flags: Sequence[str], files: Sequence[Path], text: str) -> str:
    h = hashlib.sha256()
    for part in (*tools.command, tools.version, *flags, text):
        h.update(part.encode() + b"\0")
    for path in files:
        h.update(path.name.encode() + b"\0" + _content(path, path.stat().st_mtime_ns) + b"\0")
    return h.hexdigest()[:24]


def _compile(kernel: SimSource, path: Path, tools: Toolchain, compilers: Compilers | None = None) -> None:
    includes = [f"-I{folder}" for folder in include_dirs()]
    text = f'#line 1 "{kernel.name}.cu"\n{kernel.source}'
    log.debug("compiling %s%s", kernel.name, " with checks" if kernel.checked else "")
    command = [*tools.command, *_kernel_flags(kernel, tools), *includes, "-include", "cuda_sim.h", "-x", "c++", "-"]
    _make(path, command, f"kernel {kernel.name}", text, compilers)


def _make(path: Path, command: list[str], what: str, stdin: str, compilers: Compilers | None = None) -> None:
    """Makes the library ``path`` by a compiler command without its output, and appends the hash."""
    with workspace(path) as folder:
        made = folder / path.name
        run_compiler([*command, "-o", str(made)], what, stdin, folder, compilers)
        try:
            with made.open("r+b") as file:
                content = file.read()
                file.write(_MAGIC + hashlib.sha256(content).digest())
            os.replace(made, path)
            if path.stem.endswith("0"):  # a digit of its hash: one in sixteen counts the others
                forget_oldest(path.parent, MAX_LIBRARIES)
        except OSError as error:
            raise EnvironmentError_(f"{path} cannot be written: {error.strerror}") from error


def _intact(path: Path) -> bool:
    """Whether the library is there and ends with its own hash. The loader does not see what is behind its sections."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EnvironmentError_(f"{path} cannot be read: {error.strerror}") from error
    tail = len(data) - len(_MAGIC) - hashlib.sha256().digest_size
    if tail > 0 and data[tail:] == _MAGIC + hashlib.sha256(memoryview(data)[:tail]).digest():
        touch(path)
        return True
    log.warning("the library %s is damaged: it is made again", path)
    return False
