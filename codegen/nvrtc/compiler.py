"""CUDA source to cubin or PTX for any architecture, with no GPU and no driver: NVRTC in a process of its own.

The headers of ``codegen/include`` are handed to NVRTC as texts, and are the only files that a source can include.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from arcweld.codegen.nvrtc import worker
from arcweld.codegen.nvrtc.cache import DiskCache, content_key
from arcweld.codegen.nvrtc.process import CompilerProcess
from arcweld.compiler.archs import parse_arch
from arcweld.compiler.errors import ArcweldError, CompileError, CompileLimitError, EnvironmentError_

INCLUDE = Path(__file__).parents[1] / "include"

# Part of every cache key: raise it when the meaning of a cached entry changes.
CACHE_VERSION = "2"

_ERROR_FIRST = re.compile(
    r"^(?P<file>[^\s(][^(\n]*)\((?P<line>\d+)\): (?:catastrophic )?error[^:]*: (?P<text>.+)$", re.M
)
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_PTXAS_WARNING = re.compile(r"^.*\bC75(?:0[89]|1\d|20)\b.*$", re.M)
# What one compilation may take: processor seconds, address space and object code. Ours take about two seconds.
LIMITS: worker.Limits = (120, 4 << 30, 64 << 20)

_NO_MEMORY = re.compile(r"cannot allocate memory|failed to map segment|out of memory|cannot map zero-fill", re.I)
_lock = threading.Lock()
_process: CompilerProcess | None = None


@dataclass(frozen=True, slots=True)
class Compiled:
    """Object code and what ptxas reported about it.

    arch         the architecture that was compiled for (``sm_90a``)
    kind         ``cubin`` or ``ptx``
    log          NVRTC's log, without compile times
    registers    the most that a thread of any kernel in the source uses
    stack_bytes  the largest stack frame of a thread
    spill_bytes  stores and loads of spilled registers, of all kernels together
    warnings     ptxas' performance warnings C7508 to C7520 (wgmma serialised, setmaxnreg ignored)
    """

    name: str
    arch: str
    kind: str
    code: bytes
    log: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    warnings: tuple[str, ...]

    @property
    def cubin(self) -> bytes:
        """The code, for kind ``cubin``."""
        return self.code


@dataclass(frozen=True, slots=True)
class Job:
    """One source to compile.

    kind     ``cubin`` or ``ptx``
    debug    defines ARCWELD_DEBUG, which bounds the waits of mbarriers
    headers  (name, text) of the headers it may include; None: those of this package
    """

    source: str
    arch: str
    name: str = "kernel"
    kind: str = "cubin"
    debug: bool = False
    headers: tuple[tuple[str, str], ...] | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Every NVRTC option, in order; nothing is left to a default."""
        target = self.arch.replace("sm_", "compute_") if self.kind == "ptx" else self.arch
        options = [f"-arch={target}", "-std=c++17", "-default-device", "--fmad=true", "-lineinfo"]
        options += ["--ptxas-options=-v", "-DARCWELD_DEBUG=1"] if self.debug else ["--ptxas-options=-v"]
        return tuple(options)

    def request(self) -> worker.Request:
        """What a worker needs to compile the job."""
        files = self.headers if self.headers is not None else headers()
        texts, names = [t for _, t in files], [n for n, _ in files]
        theirs = self.headers is not None  # the source comes from an engine file
        return self.source, f"{self.name}.cu", texts, names, list(self.flags), self.kind, LIMITS, theirs

    def key(self) -> str:
        """Content hash of all that determines the result."""
        source, name, texts, names, flags, kind, _, _ = self.request()
        return content_key([CACHE_VERSION, version(), kind, name, source, *flags, *names, *texts])


@functools.cache
def headers() -> tuple[tuple[str, str], ...]:
    """(name, text) of every ``.cuh`` file in codegen/include, sorted by name."""
    return tuple((p.name, p.read_text(encoding="utf-8")) for p in sorted(INCLUDE.glob("*.cuh")))


@functools.cache
def binding() -> Any:
    """CuPy's NVRTC module, with the library loaded. Raises ImportError or RuntimeError if one of them is missing."""
    from cupy_backends.cuda.libs import nvrtc

    nvrtc.getVersion()
    return nvrtc


@functools.cache
def library() -> str:
    """The path of the NVRTC library that ``binding`` loaded. Raises EnvironmentError_ where it cannot be loaded."""
    version()
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = [line.rstrip("\n").split(maxsplit=5)[-1] for line in maps]
    return next(p for p in paths if Path(p).name.startswith("libnvrtc.so"))


@functools.cache
def version() -> str:
    """NVRTC's version: ``12.8.93`` where it comes from a wheel, else ``12.8``.

    Raises EnvironmentError_ where NVRTC cannot be loaded.
    """
    try:
        major, minor = binding().getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise missing_nvrtc(str(error)) from None
    except MemoryError:
        raise missing_nvrtc("out of memory") from None
    for wheel in (f"nvidia-cuda-nvrtc-cu{major}", "nvidia-cuda-nvrtc"):
        try:
            found = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found.startswith(f"{major}.{minor}."):
            return found
    return f"{major}.{minor}"


def missing_nvrtc(reason: str) -> EnvironmentError_:
    """The error for a machine where NVRTC cannot be loaded, with the pip line for the installed CuPy.

    Where there is too little memory to load it, nothing is missing, and the error says that.
    """
    if short := next((line.strip() for line in reason.splitlines() if _NO_MEMORY.search(line)), ""):
        return EnvironmentError_(f"there is not enough memory to load NVRTC: {short}", hint="check `ulimit -v`")
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions() if d.metadata["Name"]}
    if "cupy-cuda13x" in installed:
        remedy = "pip install nvidia-cuda-nvrtc"
    elif "cupy-cuda12x" in installed:
        remedy = "pip install nvidia-cuda-nvrtc-cu12"
    else:
        remedy = "pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12"
    return EnvironmentError_(f"NVRTC, the CUDA compiler library, cannot be loaded: {reason.strip()}", hint=remedy)


@functools.cache
def supported_archs() -> tuple[int, ...]:
    """Compute capabilities that this NVRTC compiles for, as integers (80 for sm_80), ascending.

    Raises EnvironmentError_ where NVRTC cannot be loaded.
    """
    version()
    return tuple(sorted(int(a) for a in binding().getSupportedArchs()))


def check_arch(arch: str) -> None:
    """Raises EnvironmentError_ for a text that is no architecture, and for one that this NVRTC does not know."""
    parsed = parse_arch(arch)
    if parsed is None:
        raise EnvironmentError_(f"{arch!r} is not an architecture", hint="write it as sm_80, sm_90a, sm_120")
    if parsed[0] not in supported_archs():
        known = " ".join(f"sm_{a}" for a in supported_archs())
        raise EnvironmentError_(
            f"NVRTC {version()} does not compile for {arch}",
            hint=f"it knows {known}; a newer CUDA wheel may know {arch}",
        )


def compile_cubin(
    source: str,
    arch: str,
    *,
    name: str = "kernel",
    debug: bool = False,
    strict: bool = False,
    cache: DiskCache | None = None,
) -> Compiled:
    """Compiles one source for exactly ``arch``.

    ``debug`` bounds the waits of mbarriers. Raises CompileError with the line and an excerpt of the source, and with
    ``strict`` also for register spills and ptxas' performance warnings; EnvironmentError_ where NVRTC is missing or too
    old.
    """
    return compile_job(Job(source, arch, name, "cubin", debug), strict=strict, cache=cache)


def compile_ptx(source: str, arch: str, *, name: str = "kernel", cache: DiskCache | None = None) -> bytes:
    """The zero-terminated PTX of one source for ``arch`` and newer ones. Raises as ``compile_cubin``."""
    return compile_job(Job(source, arch, name, "ptx"), cache=cache).code


def compile_job(job: Job, *, strict: bool = False, cache: DiskCache | None = None) -> Compiled:
    """Compiles, or takes the result from ``cache``. Raises as ``compile_cubin``."""
    done = from_cache(job, cache)
    if done is None:
        check_arch(job.arch)
        done = finish(job, _ask(job), cache)
    if strict:
        require_clean(done)
    return done


def _ask(job: Job) -> worker.Reply:
    """The reply of this process' own compiler process, which is started on first use and kept."""
    global _process
    with _lock:
        if _process is None:
            _process = CompilerProcess(library())
            atexit.register(_process.close)
        try:
            return _process.ask(job.request())
        except EOFError as error:
            atexit.unregister(_process.close)
            _process.close()
            _process = None
            raise death(job, str(error)) from None


def _forget_process() -> None:
    """A forked child must not talk to its parent's compiler process."""
    global _process
    _process = None


os.register_at_fork(after_in_child=_forget_process)


def death(job: Job, reason: str) -> CompileError:
    """The error for a compiler process that ended without a reply."""
    return CompileError(f"the compiler process died on {job.name} for {job.arch} ({reason})", node=job.name)


def from_cache(job: Job, cache: DiskCache | None) -> Compiled | None:
    """The cached result, or None. An entry that cannot be decoded is removed."""
    if cache is None:
        return None
    key = job.key()
    data = cache.get(key)
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=Compiled)
    except msgspec.DecodeError:
        cache.remove(key)
        return None


def finish(job: Job, reply: worker.Reply, cache: DiskCache | None) -> Compiled:
    """The result that a worker's reply stands for, put into ``cache``.

    Raises CompileError where compiling failed, CompileLimitError where it took too much, EnvironmentError_ where NVRTC
    is missing.
    """
    status, code, log = reply
    if status != "ok":
        raise _failure(job, status, log)
    log = "\n".join(line for line in log.splitlines() if "Compile time" not in line)
    spills = [tuple(map(int, m)) for m in _SPILLS.findall(log)]
    done = Compiled(
        name=job.name,
        arch=job.arch,
        kind=job.kind,
        code=code,
        log=log,
        registers=max((int(r) for r in _REGISTERS.findall(log)), default=0),
        stack_bytes=max((s[0] for s in spills), default=0),
        spill_bytes=sum(s[1] + s[2] for s in spills),
        warnings=tuple(w.strip() for w in _PTXAS_WARNING.findall(log)),
    )
    if cache is not None:
        cache.put(job.key(), msgspec.msgpack.encode(done))
    return done


def _failure(job: Job, status: str, log: str) -> ArcweldError:
    what = f"{job.name} for {job.arch}"
    seconds, memory, output = LIMITS
    match status:
        case "missing":
            return missing_nvrtc(log)
        case "time":
            return CompileLimitError(f"compiling {what} took more than {seconds} s of processor time", node=job.name)
        case "memory":
            return CompileLimitError(f"compiling {what} took more than {memory >> 20} MiB of memory", node=job.name)
        case "size":
            return CompileLimitError(f"{what} has more than {output >> 20} MiB of object code", node=job.name)
        case "died":
            return death(job, log)
        case "open":
            return EnvironmentError_(
                f"{what} comes from an engine file, and is compiled in a confined process only: {log}",
                hint="build the engine for this GPU's architecture",
            )
    return compile_error(job, log)


def require_clean(done: Compiled) -> None:
    """Raises CompileError for a kernel that spills registers or that ptxas warned about."""
    if done.warnings:
        raise CompileError(f"{done.name} for {done.arch}: {done.warnings[0]}", node=done.name)
    if done.spill_bytes:
        raise CompileError(
            f"{done.name} for {done.arch} spills {done.spill_bytes} bytes ({done.registers} registers used)",
            node=done.name,
            hint="choose a smaller tile, or more threads with fewer values each",
        )


def compile_error(job: Job, log: str) -> CompileError:
    """A CompileError that names the line of the generated source and shows the lines around it."""
    match = _ERROR_FIRST.search(log)
    if match is None:
        first = next((line for line in log.splitlines() if "error" in line or "fatal" in line), log[:300])
        return CompileError(f"{job.name} does not compile for {job.arch}: {first.strip()}", node=job.name)
    file, line = match["file"], int(match["line"])
    shown = excerpt(text_of(job, file), line)
    message = f"{job.name} does not compile for {job.arch}: {file}:{line}: {match['text'].strip()}"
    return CompileError(message + (f"\n{shown}" if shown else ""), node=f"{file}:{line}")


def text_of(job: Job, file: str) -> str:
    """The text that an error's file name refers to: a header, or the source itself."""
    base = Path(file).name
    for name, text in job.headers if job.headers is not None else headers():
        if name == base:
            return text
    return job.source if base == f"{job.name}.cu" else ""


def excerpt(text: str, line: int, around: int = 2) -> str:
    """The lines around line number ``line`` (from 1), numbered, with that line marked; "" if there is no such line."""
    lines = text.splitlines()
    if not 1 <= line <= len(lines):
        return ""
    first = max(1, line - around)
    return "\n".join(
        f"{'>' if n == line else ' '} {n:5d} | {lines[n - 1]}" for n in range(first, min(len(lines), line + around) + 1)
    )
