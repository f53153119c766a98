"""The Device protocol: what the executor needs of a device. There are two, ``cuda`` and ``sim`` (a CPU).

Code that has to treat devices differently asks for a capability (``measures_time``), never for the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel to be loaded: its source, and a cubin that runs on the device or portable PTX (None if absent)."""

    name: str
    entry: str
    source: str
    cubin: bytes | None
    ptx: bytes | None


@dataclass(frozen=True, slots=True)
class TensorMapSpec:
    """The arguments of a TMA descriptor. ``address`` is the view's first byte; for the rest see ``TensorMap``."""

    dtype: str
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One launch with every number known.

    kernel        the device's handle from ``load_kernel``; None where only memory is cleared
    grid, block   blocks and threads along x, y and z
    shared_bytes  bytes of dynamic shared memory of a block
    cluster       blocks of a thread block cluster, along x
    pdl           whether it may start before the kernel before it has ended (programmatic dependent launch)
    cooperative   whether its blocks wait for each other, so that all of them have to run at once
    params        the bytes of the ``Params`` struct
    buffers       (address, bytes, written) of each array that the kernel may access; checked mode refuses others
    """

    name: str
    kernel: Any
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    cluster: int
    pdl: bool
    params: bytes
    buffers: tuple[tuple[int, int, bool], ...]
    cooperative: bool = False


class Memory(Protocol):
    """An allocation of device memory, aligned to 256 bytes or more and freed with the object."""

    @property
    def address(self) -> int:
        """The address of the first byte."""

    @property
    def nbytes(self) -> int:
        """The bytes that were asked for."""


class Download(Protocol):
    """A copy to the host that is under way."""

    def wait(self) -> np.ndarray:
        """The bytes, u8[nbytes], as soon as they are there. Work that was enqueued later is not waited for."""


class Device(Protocol):
    """Runs kernels. Streams are opaque integers; 0 is the default stream. Work on a stream is done in order.

    ``arch`` is the architecture, such as ``sm_90a``. All methods may raise DeviceError for a call that the device
    refuses and EnvironmentError_ for something that is not installed.
    """

    name: str
    arch: str

    @property
    def gpu_index(self) -> int | None:
        """CUDA's index of the GPU whose memory the device uses; None if it uses the host's."""

    @property
    def needs_object_code(self) -> bool:
        """Whether kernels are loaded as cubins or PTX. Otherwise the device compiles their source itself."""

    @property
    def is_simulator(self) -> bool:
        """Whether kernels run on the host, about a thousand times slower, so that time budgets must count them."""

    @property
    def measures_time(self) -> bool:
        """Whether the profiler can time single launches."""

    @property
    def can_capture(self) -> bool:
        """Whether launches can be captured as a graph. Otherwise the capture methods and ``replay`` raise."""

    @property
    def poisons_memory(self) -> bool:
        """Whether new memory has all bits set, so that reading what nobody wrote is seen."""

    def allocate(self, nbytes: int) -> Memory:
        """``nbytes`` bytes of undefined content; for 0 bytes too, the address is not that of any other allocation."""

    def host_address(self, array: np.ndarray) -> int | None:
        """The address at which kernels can read a C-contiguous host array as it is; None where it must be copied."""

    def upload(self, address: int, source: np.ndarray, stream: int = 0) -> None:
        """Enqueues the copy of a C-contiguous host array to device memory; the array must outlive the copy."""

    def adversary(self) -> Device:
        """The same device with threads in an order that exposes missing barriers, where it can choose."""

    def download(self, destination: np.ndarray, address: int, stream: int = 0) -> None:
        """Copies device memory into a writable C-contiguous host array and waits for it."""

    def download_later(self, address: int, nbytes: int, stream: int = 0) -> Download:
        """Enqueues a copy of device memory to the host, which need not have ended when this returns."""

    def copy(self, destination: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Enqueues a copy of ``nbytes`` bytes inside device memory."""

    def fill(self, address: int, nbytes: int, byte: int, stream: int = 0) -> None:
        """Enqueues setting ``nbytes`` bytes to ``byte``."""

    def compile_many(self, images: Sequence[KernelImage]) -> None:
        """Compiles all kernels in parallel, on a device that compiles, so that ``load_kernel`` finds them cached."""

    def load_kernel(self, image: KernelImage, shared_bytes: int) -> Any:
        """Loads a kernel to be launched with ``shared_bytes`` of dynamic shared memory; returns the device's handle."""

    def encode_tensor_map(self, spec: TensorMapSpec) -> bytes:
        """The 128 bytes of a TMA descriptor (CUtensorMap). Raises DeviceError for arguments that TMA forbids."""

    def prepare(self, spec: LaunchSpec) -> Any:
        """Converts a launch to the device's own form once, so that ``launch`` costs little host time."""

    def launch(self, prepared: Any, stream: int = 0) -> None:
        """Enqueues a launch that ``prepare`` returned."""

    def synchronize(self, stream: int = 0) -> None:
        """Waits for the work of a stream; for that of all streams if it is 0."""

    def enter(self) -> int:
        """Makes the device current in this thread; returns a token for ``leave``."""

    def leave(self, token: int) -> None:
        """Restores what was current before ``enter``."""

    def is_capturing(self, stream: int) -> bool:
        """Whether a capture of this stream is under way, by whomever."""

    def begin_capture(self) -> int:
        """Begins a capture; returns the stream whose launches are captured."""

    def end_capture(self) -> Any:
        """Ends the calling thread's capture and returns an executable graph."""

    def replay(self, graph: Any, stream: int = 0) -> None:
        """Enqueues all launches of a graph."""
