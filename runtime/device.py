"""What the executor asks of a device. Two exist: ``cuda`` (CuPy and cuda.bindings) and ``sim`` (any x86-64
CPU). What differs between them is asked by what a device can do, never by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel as an engine holds it. ``cubin`` is for exactly this device's architecture, or None; ``ptx``
    is portable.
    """

    name: str
    entry: str
    source: str
    cubin: bytes | None
    ptx: bytes | None


@dataclass(frozen=True, slots=True)
class TensorMapSpec:
    """What a TMA descriptor is made from: the driver's arguments. See ``parameters.TensorMap`` for their meaning."""

    dtype: str
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One launch with every number known. ``params`` is the packed ``Params`` struct.

    ``buffers`` lists (address, bytes, written) for each array the kernel may touch: the sim device's
    checked mode refuses every access outside them.
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


class Memory(Protocol):
    """An owned allocation, at least 256-byte aligned, freed when the object dies."""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class Device(Protocol):
    """A place that runs kernels. Streams are opaque integers; 0 is the device's default stream.

    Every method raises DeviceError (a launch or a copy that failed) or EnvironmentError_ (something missing).
    """

    name: str
    arch: str

    @property
    def gpu_index(self) -> int | None:
        """CUDA's number of the GPU whose arrays the device takes as they are; None where its memory is the host's."""

    @property
    def needs_object_code(self) -> bool:
        """Whether kernels are loaded as cubins or PTX; a device that does not compiles their source itself."""

    @property
    def is_simulator(self) -> bool:
        """Whether kernels take the host's time, some thousand times a GPU's, so that a budget must count it."""

    @property
    def measures_time(self) -> bool:
        """Whether the seconds of a launch by itself can be measured, and mean something."""

    @property
    def can_capture(self) -> bool:
        """Whether launches can be recorded as a graph: whether the four methods below work."""

    def allocate(self, nbytes: int) -> Memory:
        """``nbytes`` bytes of undefined content; of 0 bytes an address that nobody else has."""

    def upload(self, address: int, source: np.ndarray, stream: int = 0) -> None:
        """Copies a C-contiguous host array to device memory."""

    def download(self, destination: np.ndarray, address: int, stream: int = 0) -> None:
        """Copies device memory into a C-contiguous host array and waits for it."""

    def copy(self, destination: int, source: int, nbytes: int, stream: int = 0) -> None: ...

    def fill_zero(self, address: int, nbytes: int, stream: int = 0) -> None: ...

    def compile_many(self, images: Sequence[KernelImage]) -> None:
        """Gets ready to load all of these at once, where that is quicker than one by one."""

    def load_kernel(self, image: KernelImage, shared_bytes: int) -> Any:
        """Loads one kernel and returns the device's handle for ``LaunchSpec.kernel``."""

    def encode_tensor_map(self, spec: TensorMapSpec) -> bytes:
        """The 128 bytes of a TMA descriptor."""

    def prepare(self, spec: LaunchSpec) -> Any:
        """Packs a launch once, so that ``launch`` costs as little as possible."""

    def launch(self, prepared: Any, stream: int = 0) -> None: ...

    def synchronize(self, stream: int = 0) -> None:
        """Waits for a stream; for every stream of the device when it is 0."""

    def enter(self) -> int:
        """Makes the device current in this thread; returns a token for ``leave``."""

    def leave(self, token: int) -> None:
        """Restores what was current before ``enter``."""

    def is_capturing(self, stream: int) -> bool:
        """Whether somebody records what is launched on this stream."""

    def begin_capture(self) -> int:
        """Starts recording launches; returns the stream on which to launch them."""

    def end_capture(self) -> Any:
        """Ends recording and returns an executable graph."""

    def replay(self, graph: Any, stream: int = 0) -> None: ...
