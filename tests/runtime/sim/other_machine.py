"""The simulator compiled for another CPU, whose launches run in processes of their own: in an emulator, if need be."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.errors import DeviceError
from arcweld.runtime.device import KernelImage, LaunchSpec
from arcweld.runtime.sim import build
from arcweld.runtime.sim.device import SimDevice

DRIVER = Path(__file__).parent / "driver.c"
_FIRST_ADDRESS = 1 << 37
_PAGES = 1 << 16  # the largest page that an aarch64 machine may have
_SYSTEM = Path("/usr/aarch64-linux-gnu")  # where Debian's cross compiler has the C library


@dataclass(frozen=True, slots=True)
class Machine:
    """A compiler for a CPU, and the command before a program for it."""

    tools: build.Toolchain
    emulator: tuple[str, ...]


@cache
def aarch64() -> Machine | str:
    """Linux on aarch64 by a cross compiler and qemu, or what is missing here."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if not compiler:
        return "aarch64-linux-gnu-g++ is not installed (package g++-aarch64-linux-gnu)"
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not emulator or not (_SYSTEM / "lib").exists():
        return f"qemu-aarch64 (package qemu-user) or {_SYSTEM} is not there"
    return Machine(build.describe((compiler,), "aarch64", ""), (emulator, "-L", str(_SYSTEM)))


@cache
def old_x86_64(cpu: str) -> Machine | str:
    """This machine with no more than the instructions that the flags ``cpu`` name, or why not."""
    if platform.machine() != "x86_64":
        return "this is no x86-64 machine"
    return Machine(build.describe(build.toolchain().command, "x86_64", cpu), ())


@cache
def _driver(machine: Machine) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="arcweld-driver-"))
    libm = ("-Wl,--no-as-needed", "-lm", "-ldl")  # as in a process of Python, for kernels
    path = folder / "driver"
    command = [*machine.tools.command, "-x", "c", "-O1", "-Wall", "-Werror", str(DRIVER), *libm, "-o", str(path)]
    subprocess.run(command, check=True)
    return path


@dataclass(frozen=True, slots=True)
class OtherMemory:
    """An array of the device's memory; ``address`` is where the process will map it."""

    address: int
    array: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


@dataclass(frozen=True, slots=True)
class OtherKernel:
    name: str
    path: Path
    entry: str


class OtherDevice(SimDevice):
    """The sim device on another machine, for single launches. Memory lives as long as the device."""

    def __init__(self, machine: Machine, arch: str = "sm_90a", checked: bool = False, seed: int = 0) -> None:
        super().__init__(arch, checked, seed)
        self._machine = machine
        self._memory: list[OtherMemory] = []
        self._next = _FIRST_ADDRESS

    def allocate(self, nbytes: int) -> Any:
        """Pages with an unmapped one behind them."""
        memory = OtherMemory(self._next, np.full(max(nbytes, 1), 0xFF, np.uint8))
        self._next += (nbytes // _PAGES + 2) * _PAGES
        self._memory.append(memory)
        return memory

    def upload(self, address: int, source: np.ndarray, stream: int = 0) -> None:
        self._at(address)[: source.nbytes] = np.frombuffer(source.tobytes(), np.uint8)

    def download(self, destination: np.ndarray, address: int, stream: int = 0) -> None:
        content = self._at(address)[: destination.nbytes].view(destination.dtype)
        destination[...] = content.reshape(destination.shape)

    def _at(self, address: int) -> np.ndarray:
        (found,) = (m.array for m in self._memory if m.address == address)
        return found

    def load_kernel(self, image: KernelImage, shared_bytes: int) -> Any:
        path = build.kernel_library(self._source(image), self._machine.tools)
        return OtherKernel(image.name, path, f"{image.entry}__sim")

    def prepare(self, spec: LaunchSpec) -> Any:
        return spec

    def launch(self, prepared: Any, stream: int = 0) -> None:
        """One launch. Raises DeviceError with the simulator's message."""
        machine, spec = self._machine, prepared
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder) / "job"
            job.write_bytes(self._job(spec))
            libraries = [str(build.runtime_library(machine.tools)), str(spec.kernel.path)]
            command = [*machine.emulator, str(_driver(machine)), *libraries, spec.kernel.entry, str(job)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 1:
                raise DeviceError(f"kernel {spec.name} failed: {done.stdout.strip()}", node=spec.name)
            assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"
            self._take_results(job.read_bytes())

    def _job(self, p: LaunchSpec) -> bytes:
        """As ``struct Job`` of the driver and what follows it."""
        rows = self._buffer_flags(p.buffers)
        threads = 2  # host threads, where the launch may have several
        numbers = (*p.grid, *p.block, p.shared_bytes, p.cluster, p.cooperative, p.pdl, 0)
        head = struct.pack("<2Q6IQ4I", 0, 0, *numbers) + struct.pack("<3Q", self.seed, threads, self.checked)
        head += struct.pack("<3Q", len(p.params), len(rows), len(self._memory))
        arrays = (struct.pack("<2Q", m.address, m.array.nbytes) + m.array.tobytes() for m in self._memory)
        return head + p.params + rows.tobytes() + b"".join(arrays)

    def _take_results(self, job: bytes) -> None:
        end = len(job)
        for memory in reversed(self._memory):
            memory.array[:] = np.frombuffer(job[end - memory.array.nbytes : end], np.uint8)
            end -= memory.array.nbytes + 16
