"""The ``sim`` device: runs generated CUDA kernels on the CPU, with numpy arrays as device memory.

Checked mode makes it a test oracle: it raises DeviceError, with the kernel's line, for races, missing waits, and
accesses that are out of bounds, misaligned or to uninitialised memory.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from arcweld.compiler.cpus import available_cpus
from arcweld.compiler.dtypes import DEVICE_TYPES
from arcweld.compiler.errors import DeviceError, EnvironmentError_
from arcweld.runtime.device import KernelImage, LaunchSpec, TensorMapSpec
from arcweld.runtime.sim.build import SimSource, kernel_libraries, kernel_library, runtime_library
from arcweld.runtime.sim.symbols import resolve

_ALIGNMENT = 256
ADVERSE_SEED = 1
_MAP_MAGIC = int.from_bytes(b"ASIM_MAP", "little")
# of packed types, maps count bytes
_ELEMENT_BYTES = {name: 1 if t.is_packed else t.size for name, t in DEVICE_TYPES.items()}
MAX_RECENT = 256  # kernels that stay loaded though no engine uses them any more
THREADS_VARIABLE = "ARCWELD_SIM_THREADS"
MOST_THREADS = 256
_ERROR_BYTES = 4096
_CHECKER = threading.Lock()  # of the checked mode, which takes one launch at a time, and of what devices note for it
# A fork waits for the checked launch that another thread runs: its child would have a lock that nobody gives back.
os.register_at_fork(before=_CHECKER.acquire, after_in_parent=_CHECKER.release, after_in_child=_CHECKER.release)


class _Reason(threading.local):
    """Where the runtime library writes why a launch of this thread failed."""

    def __init__(self) -> None:
        self.text = ctypes.create_string_buffer(_ERROR_BYTES)


_REASON = _Reason()


def host_threads() -> int:
    """How many host threads may share a launch's blocks: ARCWELD_SIM_THREADS, else the CPUs that this process may use.

    Raises EnvironmentError_ if the variable holds anything but a number from 1 to 256.
    """
    given = os.environ.get(THREADS_VARIABLE)
    if not given:
        return min(available_cpus(), MOST_THREADS)
    if given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= MOST_THREADS:
        return int(given)
    raise EnvironmentError_(
        f"{THREADS_VARIABLE} is {given!r}, which is not a number of threads from 1 to {MOST_THREADS}",
        hint=f"unset {THREADS_VARIABLE} for all CPUs, or set it to 1 for one thread",
    )


@cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
    library.sim_launch.argtypes = [
        ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p,
        ctypes.c_uint64,
    ]  # fmt: skip
    return library


def _aligned(nbytes: int) -> np.ndarray:
    try:
        raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than an address can hold
        raise DeviceError(f"the sim device has not enough memory for {nbytes} bytes") from error
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


class SimMemory:
    """A numpy-owned allocation, 256-byte aligned."""

    __slots__ = ("address", "array", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.array = _aligned(max(nbytes, 1))
        self.address = int(self.array.ctypes.data)
        self.nbytes = nbytes


@dataclass(frozen=True, slots=True, eq=False)
class SimDownload:
    """Bytes that have been copied."""

    found: np.ndarray

    def wait(self) -> np.ndarray:
        """The bytes."""
        return self.found


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class SimKernel:
    """A loaded kernel and the address of its host entry. Its library is closed with it."""

    name: str
    address: int


def _close(handle: int) -> None:
    """Unloads a library that nothing uses any more."""
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(handle))


@dataclass(frozen=True, slots=True)
class _Prepared:
    name: str
    kernel: SimKernel
    packed: np.ndarray  # LaunchSpec of launch.h
    address: int  # of ``packed``
    params: np.ndarray
    buffers: tuple[tuple[int, int, bool], ...]
    empty: bool


class SimDevice:
    """Runs kernels on the CPU through the Device protocol. Every call returns when its work is done.

    arch     ``sm_80`` or ``sm_90a``: the architecture whose kernels it runs
    checked  checked mode, two to ten times slower
    seed     0 runs warps in order; any other value gives a reproducible adversarial schedule

    In order and unchecked, ``threads`` host threads share the blocks of a launch (``host_threads``, whose error it
    raises). Otherwise, and in cooperative launches, the calling thread runs them one after another.
    """

    gpu_index = None
    is_simulator = True
    needs_object_code = measures_time = can_capture = False

    def __init__(self, arch: str = "sm_90a", checked: bool = False, seed: int = 0) -> None:
        self.name = "sim"
        self.arch = arch
        self.checked = checked
        self.seed = seed
        self.threads = host_threads()
        self._kernels: WeakValueDictionary[tuple[str, str, str], SimKernel] = WeakValueDictionary()
        self._recent: deque[SimKernel] = deque(maxlen=MAX_RECENT)
        self._results: dict[int, int] = {}  # begin -> end address of memory written by kernels, in checked mode

    @property
    def poisons_memory(self) -> bool:
        """Whether it is in checked mode."""
        return self.checked

    def adversary(self) -> SimDevice:
        """A device with the same loaded kernels and a random, reproducible schedule."""
        other = SimDevice(self.arch, self.checked, ADVERSE_SEED)
        other._kernels = self._kernels
        return other

    # ------------------------------------------------------------ memory
    def allocate(self, nbytes: int) -> SimMemory:
        """``nbytes`` bytes; in checked mode filled with 0xFF, which is NaN in every floating type."""
        memory = SimMemory(nbytes)
        if self.checked:
            memory.array.fill(0xFF)
        return memory

    def host_address(self, array: np.ndarray) -> int | None:
        """The array's own address; its memory then counts as written by the host."""
        address = int(array.ctypes.data)
        self._forget_results(address, address + array.nbytes)
        return address

    def upload(self, address: int, source: np.ndarray, stream: int = 0) -> None:
        """Copies a C-contiguous array; its memory then counts as written by the host."""
        if not source.flags.c_contiguous:
            raise DeviceError("upload needs a C-contiguous array")
        if source.nbytes:
            self._forget_results(address, address + source.nbytes)
            ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, destination: np.ndarray, address: int, stream: int = 0) -> None:
        """Copies into a writable C-contiguous array."""
        if not destination.flags.c_contiguous or not destination.flags.writeable:
            raise DeviceError("download needs a writable C-contiguous array")
        if destination.nbytes:
            ctypes.memmove(destination.ctypes.data, address, destination.nbytes)

    def download_later(self, address: int, nbytes: int, stream: int = 0) -> SimDownload:
        """Copies at once."""
        found = np.empty(nbytes, np.uint8)
        self.download(found, address)
        return SimDownload(found)

    def copy(self, destination: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Copies ``nbytes`` bytes."""
        if nbytes:
            ctypes.memmove(destination, source, nbytes)

    def fill(self, address: int, nbytes: int, byte: int, stream: int = 0) -> None:
        """Sets ``nbytes`` bytes to ``byte``."""
        if nbytes:
            ctypes.memset(address, byte, nbytes)

    # ------------------------------------------------------------ kernels
    def load_kernel(self, image: KernelImage, shared_bytes: int) -> SimKernel:
        """Compiles the kernel's source unless it is cached, and loads it.

        Raises CompileError for source that does not compile, EnvironmentError_ without a C++ compiler.
        """
        key = (image.name, image.entry, image.source)
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self._open(image, str(kernel_library(self._source(image))))
        self._recent.append(kernel)
        return kernel

    def compile_many(self, images: Sequence[KernelImage], jobs: int = 2) -> None:
        """Compiles all kernels into the cache with ``jobs`` processes, so that ``load_kernel`` only opens them."""
        kernel_libraries([self._source(image) for image in images], jobs)

    def _source(self, image: KernelImage) -> SimSource:
        return SimSource(image.name, image.entry, image.source, self.arch, self.checked)

    def _open(self, image: KernelImage, path: str) -> SimKernel:
        _runtime()
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise DeviceError(f"kernel {image.name} cannot be loaded: {error}") from error
        try:
            entry = getattr(library, f"{image.entry}__sim")
        except AttributeError:
            raise DeviceError(
                f"kernel {image.name} has no entry {image.entry}",
                hint=f"end the source with EXPORT_KERNEL({image.entry})",
            ) from None
        kernel = SimKernel(image.name, int(ctypes.cast(entry, ctypes.c_void_p).value or 0))
        weakref.finalize(kernel, _close, library._handle).atexit = False
        return kernel

    def encode_tensor_map(self, spec: TensorMapSpec) -> bytes:
        """The simulator's own descriptor of 128 bytes. Raises DeviceError for what the CUDA driver would refuse."""
        size = _ELEMENT_BYTES.get(spec.dtype, 0)
        problem = _tensor_map_problem(spec, size)
        if problem:
            raise DeviceError(f"invalid tensor map: {problem} ({spec})")
        rank = len(spec.dims)
        pad = (0,) * (4 - rank)
        tail = (*spec.dims, *pad, *spec.strides, *pad, *spec.box, *pad, *spec.element_strides, *pad)
        body = struct.pack("<QQIIII4Q3Q4H4H", _MAP_MAGIC, spec.address, rank, size, spec.swizzle, 0, *tail)
        return body.ljust(128, b"\0")

    # ------------------------------------------------------------ launches
    def prepare(self, spec: LaunchSpec) -> Any:
        """Packs a launch. Raises DeviceError for a grid that the clusters do not divide."""
        if spec.grid[0] % spec.cluster:
            raise DeviceError(f"{spec.name}: {spec.grid[0]} blocks do not divide into clusters of {spec.cluster}")
        params = _aligned(max(len(spec.params), 1))
        params[: len(spec.params)] = np.frombuffer(spec.params, np.uint8)
        numbers = (*spec.grid, *spec.block, spec.shared_bytes, spec.cluster, spec.cooperative, spec.pdl, 0)
        packed = np.frombuffer(struct.pack("<2Q6IQ4I", spec.kernel.address, params.ctypes.data, *numbers), np.uint8)
        return _Prepared(
            spec.name, spec.kernel, packed, int(packed.ctypes.data), params, spec.buffers, 0 in spec.grid
        )  # fmt: skip

    def launch(self, prepared: Any, stream: int = 0) -> None:
        """Runs the whole grid. Several threads may launch at once, except in checked mode, where they take turns.

        Raises DeviceError with the simulator's message and the kernel's line: those of the first block that fails.
        """
        p: _Prepared = prepared
        if p.empty:
            return
        runtime, reason = _runtime(), _REASON.text
        if self.checked:
            with _CHECKER:
                flags = self._buffer_flags(p.buffers)
                failed = runtime.sim_launch(
                    p.address, self.seed, 1, 1, len(flags), flags.ctypes.data, reason, _ERROR_BYTES
                )
        else:
            failed = runtime.sim_launch(p.address, self.seed, self.threads, 0, 0, None, reason, _ERROR_BYTES)
        if failed:
            message = resolve(reason.value.decode(errors="replace"))
            raise DeviceError(f"kernel {p.kernel.name} failed: {message}", node=p.name)

    def _forget_results(self, begin: int, end: int) -> None:
        """Memory that the host writes no longer counts as a kernel's result."""
        if not self.checked:
            return
        with _CHECKER:
            self._results = {b: e for b, e in self._results.items() if e <= begin or b >= end}

    def _buffer_flags(self, buffers: tuple[tuple[int, int, bool], ...]) -> np.ndarray:
        """Rows (begin, bytes, flags) as ``u64[n, 3]``: flag 1, this launch writes it; 2, an earlier kernel wrote it."""
        rows = []
        for begin, size, written in buffers:
            dependent = any(b < begin + size and begin < e for b, e in self._results.items())
            rows.append((begin, size, int(written) | 2 * int(dependent)))
        for begin, size, written in buffers:
            if written:
                self._results[begin] = max(begin + size, self._results.get(begin, 0))
        return np.array(rows, np.uint64).reshape(-1, 3)

    def synchronize(self, stream: int = 0) -> None:
        """Nothing to wait for: launches return when they are done."""

    def enter(self) -> int:
        """Does nothing: there is only one device."""
        return 0

    def leave(self, token: int) -> None:
        """Does nothing, as ``enter`` did."""

    def is_capturing(self, stream: int) -> bool:
        """Always False."""
        return False

    def begin_capture(self) -> int:
        """Raises DeviceError: there are no graphs."""
        raise DeviceError("the sim device does not capture graphs")

    def end_capture(self) -> Any:
        """Raises DeviceError: there are no graphs."""
        raise DeviceError("the sim device does not capture graphs")

    def replay(self, graph: Any, stream: int = 0) -> None:
        """Raises DeviceError: there are no graphs."""
        raise DeviceError("the sim device does not capture graphs")


def _tensor_map_problem(spec: TensorMapSpec, size: int) -> str:
    """Why the CUDA driver would refuse this descriptor, or an empty string."""
    rank = len(spec.dims)
    loaded = [-(-box // max(step, 1)) for box, step in zip(spec.box, spec.element_strides)]
    if not size or size > 8:
        return f"element type {spec.dtype}"
    lengths = (len(spec.strides) + 1, len(spec.box), len(spec.element_strides))
    if not 1 <= rank <= 4 or lengths != (rank, rank, rank):
        return "1 to 4 dimensions, one stride fewer, as many box extents and element strides"
    if spec.address % 16:
        return "the address is not 16-byte aligned"
    if any(stride % 16 or not 0 < stride < 2**40 for stride in spec.strides):
        return "strides must be positive multiples of 16 bytes"
    if any(not 0 < dim <= 2**32 for dim in spec.dims):
        return "dimensions must be 1 to 2**32"
    if any(not 0 < box <= 256 for box in spec.box) or any(not 0 < step <= 8 for step in spec.element_strides):
        return "box extents must be 1 to 256, element strides 1 to 8"
    if spec.element_strides[0] != 1:
        return "the innermost element stride must be 1"
    if loaded[0] * size % 16:
        return "the innermost box extent is not a multiple of 16 bytes"
    if spec.swizzle not in (0, 32, 64, 128) or (spec.swizzle and loaded[0] * size > spec.swizzle):
        return "the innermost box extent is wider than the swizzle"
    return ""
