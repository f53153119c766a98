"""The ``cuda`` device: CuPy allocates memory and loads modules, cuda.bindings launches kernels and captures graphs.

CuPy's own launch supports neither clusters nor programmatic dependent launch. ``cuLaunchKernelEx`` supports both, and
with a configuration packed beforehand it costs about 4 µs of host time.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.errors import DeviceError, EnvironmentError_
from arcweld.runtime.device import KernelImage, LaunchSpec, TensorMapSpec

STATIC_SHARED_LIMIT = 48 * 1024  # bytes of dynamic shared memory that need no function attribute
PORTABLE_CLUSTER = 8  # blocks of a cluster that every GPU with clusters supports
FIRST_PROGRAMMATIC = 90  # the first architecture with programmatic dependent launch
MAP_BYTES = 128  # of a TMA descriptor
MAP_ALIGNMENT = 64  # bytes, of a TMA descriptor

# CUtensorMapDataType. Booleans, 8-bit and packed types are copied as bytes, and the bits of NaNs are preserved.
_MAP_TYPES = {
    "u8": 0, "i8": 0, "bool": 0, "u16": 1, "i16": 1, "u32": 2, "i32": 3, "u64": 4, "i64": 5, "f16": 6, "f32": 7,
    "f64": 8, "bf16": 9, "f8e4m3fn": 0, "f8e5m2": 0, "f4e2m1": 0, "i4": 0, "u4": 0, "i2": 0, "u2": 0, "u1": 0,
}  # fmt: skip
# CUresult: faults inside kernels (illegal address, launch timeout, assert, …) after which a context is unusable
_LASTING = {700, 702, 710, *range(714, 720)}
_MAP_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_MAP_L2_PROMOTION_256B = 3


def _bindings() -> Any:
    """cuda.bindings' driver module, of CUDA 12 or 13."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EnvironmentError_(
            f"cuda.bindings cannot be imported: {error}", hint="pip install 'cuda-bindings>=12.8'"
        ) from None
    return driver


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise EnvironmentError_(f"CuPy cannot be imported: {error}", hint="pip install cupy-cuda12x") from None
    return cupy


class CudaMemory:
    """An allocation from CuPy's pool."""

    __slots__ = ("_pointer", "address", "nbytes")

    def __init__(self, pointer: Any, nbytes: int) -> None:
        self._pointer = pointer
        self.address = int(pointer.ptr)
        self.nbytes = nbytes


class CudaDownload:
    """A copy into pinned memory, and the event behind it."""

    def __init__(self, memory: Any, nbytes: int, done: Any) -> None:
        self._memory, self._nbytes, self._done = memory, nbytes, done

    def wait(self) -> np.ndarray:
        """The bytes, u8[nbytes], when they are there."""
        self._done.synchronize()
        return np.frombuffer(self._memory, np.uint8, self._nbytes)


class CudaKernel:
    """A function of a loaded module; it keeps the module alive.

    ``waits``: its code waits for the kernels before it (``griddepcontrol.wait``), as programmatic dependent launch
    requires.
    """

    __slots__ = ("function", "handle", "module", "name", "waits")

    def __init__(self, name: str, module: Any, function: Any, handle: Any, waits: bool = True) -> None:
        self.name = name
        self.module = module
        self.function = function
        self.handle = handle
        self.waits = waits


class PreparedLaunch:
    """The arguments of ``cuLaunchKernelEx``, in memory that does not move. ``stream`` -1: not launched yet."""

    __slots__ = ("address", "config", "handle", "keep", "name", "stream")

    def __init__(self, name: str, config: Any, handle: Any, params: bytes) -> None:
        blob = params_buffer(params)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(blob))
        self.name = name
        self.config = config
        self.handle = handle
        self.address = ctypes.addressof(pointers)
        self.keep = (blob, pointers)
        self.stream = -1


class CudaGraph:
    """An executable graph, destroyed with the object."""

    __slots__ = ("_driver", "handle")

    def __init__(self, driver: Any, handle: Any) -> None:
        self._driver = driver
        self.handle = handle

    def __del__(self) -> None:
        self._driver.cuGraphExecDestroy(self.handle)


class RecordingStream:
    """A thread's own stream for captures, destroyed when the thread ends."""

    __slots__ = ("_driver", "handle")

    def __init__(self, driver: Any, handle: Any) -> None:
        self._driver = driver
        self.handle = handle

    def __del__(self) -> None:
        self._driver.cuStreamDestroy(self.handle)


def waits_for_predecessors(image: KernelImage) -> bool:
    """Whether ``image`` executes ``griddepcontrol.wait`` on a GPU of sm_90 or newer.

    A cubin for such a GPU was compiled for sm_90 or newer, which has the instruction. PTX for an older target was
    compiled without it, and the driver does not add it when it translates the PTX for a newer GPU.
    """
    if image.cubin is not None:
        return True
    target = re.search(rb"^\s*\.target\s+sm_(\d+)", image.ptx or b"", re.M)
    return target is not None and int(target[1]) >= FIRST_PROGRAMMATIC


def params_buffer(params: bytes) -> ctypes.Array[ctypes.c_char]:
    """A copy of the parameter struct, aligned to 64 bytes as a tensor map in it requires."""
    raw = (ctypes.c_char * (len(params) + MAP_ALIGNMENT))()
    start = -ctypes.addressof(raw) % MAP_ALIGNMENT
    blob = (ctypes.c_char * max(len(params), 1)).from_buffer(raw, start)
    ctypes.memmove(blob, params, len(params))
    return blob


def tensor_map_arguments(spec: TensorMapSpec) -> tuple[Any, ...]:
    """The arguments of ``cuTensorMapEncodeTiled`` after the output pointer, as ctypes values.

    Raises DeviceError for an element type or a swizzle that TMA does not support.
    """
    rank = len(spec.dims)
    if spec.dtype not in _MAP_TYPES or spec.swizzle not in _MAP_SWIZZLES:
        raise DeviceError(f"no tensor map for element type {spec.dtype} with swizzle {spec.swizzle}")
    return (
        ctypes.c_int(_MAP_TYPES[spec.dtype]),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(spec.address),
        (ctypes.c_uint64 * rank)(*spec.dims),
        (ctypes.c_uint64 * max(rank - 1, 1))(*spec.strides),
        (ctypes.c_uint32 * rank)(*spec.box),
        (ctypes.c_uint32 * rank)(*spec.element_strides),
        ctypes.c_int(0),  # no interleave
        ctypes.c_int(_MAP_SWIZZLES[spec.swizzle]),
        ctypes.c_int(_MAP_L2_PROMOTION_256B),
        ctypes.c_int(0),  # zero fill outside
    )


class CudaDevice:
    """One NVIDIA GPU through the Device protocol. Streams are CUstream handles as integers."""

    needs_object_code = measures_time = can_capture = True
    is_simulator = poisons_memory = False

    def __init__(self, index: int = 0) -> None:
        """Raises EnvironmentError_ without a driver, CuPy or cuda.bindings, or for a GPU older than sm_80."""
        self.name = "cuda"
        self.gpu_index = index
        self._cupy = _cupy()
        self._driver = _bindings()
        self._runtime = self._cupy.cuda.runtime
        try:
            major, minor = divmod(int(self._cupy.cuda.Device(index).compute_capability), 10)
            self.model = self._runtime.getDeviceProperties(index)["name"].decode()
        except self._runtime.CUDARuntimeError as error:
            raise EnvironmentError_(
                f"GPU {index} cannot be used: {error}", hint="check nvidia-smi; the driver may be older than CUDA 12"
            ) from None
        if major < 8:
            raise EnvironmentError_(f"{self.model} is sm_{major}{minor}; Arcweld needs sm_80 or newer")
        # From Hopper on, code with architecture-specific instructions (wgmma, setmaxnreg) has the suffix.
        self.arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
        self._encode: Any = None
        self._launch = self._driver.cuLaunchKernelEx
        self._local = threading.local()  # each thread captures on a stream of its own
        self._recording = threading.Lock()  # held while some thread records a graph

    def _check(self, result: tuple[Any, ...], doing: str = "a CUDA call") -> Any:
        """The values that a driver call returned. Raises DeviceError, with CUDA's name and text, for an error code."""
        error, *values = result
        if error:
            _, name = self._driver.cuGetErrorName(error)
            _, text = self._driver.cuGetErrorString(error)
            shown = name.decode() if name else str(error)
            raise DeviceError(
                f"{doing} failed: {shown}: {text.decode() if text else 'unknown'}", node=self.model,
                hint="a kernel has failed, and CUDA refuses all further work of this process: start it anew"
                if int(error) in _LASTING else None,
            )  # fmt: skip
        return values[0] if len(values) == 1 else tuple(values)

    # ------------------------------------------------------------------------------------------------ memory

    def allocate(self, nbytes: int) -> CudaMemory:
        """Allocates from CuPy's pool. Raises DeviceError if the GPU's memory does not suffice."""
        try:
            return CudaMemory(self._cupy.cuda.alloc(max(nbytes, 256)), nbytes)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            free, total = self._runtime.memGetInfo()
            raise DeviceError(
                f"out of GPU memory for {nbytes:,} bytes ({free:,} of {total:,} free): {error}",
                hint="use smaller shapes; engine.memory() tells the bytes before a run",
            ) from None

    def host_address(self, array: np.ndarray) -> int | None:
        """None: kernels read the GPU's memory."""
        return None

    def upload(self, address: int, source: np.ndarray, stream: int = 0) -> None:
        """Enqueues a copy to the GPU. Pageable memory has been read when it returns, pinned memory is read later."""
        if not source.flags.c_contiguous:
            raise DeviceError("upload needs a C-contiguous array")
        if source.nbytes:
            pointer = int(source.__array_interface__["data"][0])
            result = self._driver.cuMemcpyHtoDAsync(address, pointer, source.nbytes, stream)
            self._check(result, "copying to the GPU")

    def download(self, destination: np.ndarray, address: int, stream: int = 0) -> None:
        """Copies from the GPU into ``destination`` and waits for the stream."""
        if not destination.flags.c_contiguous or not destination.flags.writeable:
            raise DeviceError("download needs a writable C-contiguous array")
        if destination.nbytes:
            pointer = int(destination.__array_interface__["data"][0])
            result = self._driver.cuMemcpyDtoHAsync(pointer, address, destination.nbytes, stream)
            self._check(result, "copying from the GPU")
        self._check(self._driver.cuStreamSynchronize(stream), "waiting for the GPU")

    def download_later(self, address: int, nbytes: int, stream: int = 0) -> CudaDownload:
        """Enqueues a copy into pinned memory; only that can go on beside the host's work."""
        memory = self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1))
        if nbytes:
            result = self._driver.cuMemcpyDtoHAsync(int(memory.ptr), address, nbytes, stream)
            self._check(result, "copying from the GPU")
        done = self._cupy.cuda.Event(disable_timing=True)
        self._check(self._driver.cuEventRecord(int(done.ptr), stream), "recording an event")
        return CudaDownload(memory, nbytes, done)

    def copy(self, destination: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Enqueues a copy inside the GPU's memory."""
        error = self._driver.cuMemcpyDtoDAsync(destination, source, nbytes, stream)
        if error[0]:
            self._check(error, "copying on the GPU")

    def adversary(self) -> CudaDevice:
        """The device itself: the hardware orders threads."""
        return self

    def fill(self, address: int, nbytes: int, byte: int, stream: int = 0) -> None:
        """Enqueues setting ``nbytes`` bytes to ``byte``."""
        if nbytes:
            self._check(self._driver.cuMemsetD8Async(address, byte, nbytes, stream), "filling GPU memory")

    # ------------------------------------------------------------------------------------------------ kernels

    def compile_many(self, images: Sequence[KernelImage]) -> None:
        """Nothing to do: object code is loaded, not compiled."""

    def load_kernel(self, image: KernelImage, shared_bytes: int) -> CudaKernel:
        """Loads a cubin, or has the driver compile PTX. Raises DeviceError if the driver refuses the code."""
        code = image.cubin if image.cubin is not None else image.ptx
        if code is None:
            raise DeviceError(f"kernel {image.name} has neither a cubin nor PTX", node=image.name)
        module = self._cupy.cuda.function.Module()
        try:
            module.load(code)
            function = module.get_function(image.entry)
        except self._cupy.cuda.driver.CUDADriverError as error:
            raise DeviceError(f"kernel {image.name} does not load: {error}", node=image.name) from None
        handle = self._driver.CUfunction(int(function.ptr))
        if shared_bytes > STATIC_SHARED_LIMIT:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            result = self._driver.cuFuncSetAttribute(handle, attribute, shared_bytes)
            self._check(result, f"giving {shared_bytes} bytes of shared memory to {image.name}")
        return CudaKernel(image.name, module, function, handle, waits_for_predecessors(image))

    def encode_tensor_map(self, spec: TensorMapSpec) -> bytes:
        """Encodes a TMA descriptor; through ctypes, because the output must be 64-byte aligned. Raises DeviceError."""
        if self._encode is None:
            self._encode = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
        raw = (ctypes.c_char * (MAP_BYTES + MAP_ALIGNMENT))()
        address = ctypes.addressof(raw)
        start = -address % MAP_ALIGNMENT
        status = self._encode(ctypes.c_void_p(address + start), *tensor_map_arguments(spec))
        if status:
            self._check((self._driver.CUresult(status),), f"encoding the tensor map {spec}")
        return raw.raw[start : start + MAP_BYTES]

    def prepare(self, spec: LaunchSpec) -> PreparedLaunch:
        """Packs one launch.

        Raises DeviceError for a cluster size that the GPU refuses, and for more blocks that wait for each other than it
        runs at once.
        """
        kernel: CudaKernel = spec.kernel
        if spec.cluster > PORTABLE_CLUSTER:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            result = self._driver.cuFuncSetAttribute(kernel.handle, attribute, 1)
            self._check(result, f"allowing clusters of {spec.cluster} for {spec.name}")
        if spec.cooperative:
            self._check_residency(spec)
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = spec.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = spec.block
        config.sharedMemBytes = spec.shared_bytes
        attributes = self._attributes(spec)
        if attributes:
            config.attrs = attributes
        config.numAttrs = len(attributes)
        return PreparedLaunch(spec.name, config, kernel.handle, spec.params)

    def _check_residency(self, spec: LaunchSpec) -> None:
        """Raises DeviceError if the GPU can't run all blocks of a cooperative launch at once."""
        driver, blocks = self._driver, math.prod(spec.grid)
        count = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        multiprocessors = self._check(driver.cuDeviceGetAttribute(count, self.gpu_index), "asking for multiprocessors")
        found = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
            spec.kernel.handle, math.prod(spec.block), spec.shared_bytes
        )
        most = multiprocessors * self._check(found, f"asking how many blocks of {spec.name} run at once")
        if blocks > most:
            raise DeviceError(
                f"{spec.name} needs {blocks} blocks at once, {self.model} runs {most} of them",
                node=spec.name, hint="use a GPU with more multiprocessors, or a smaller hidden size",
            )  # fmt: skip

    def _attributes(self, spec: LaunchSpec) -> list[Any]:
        driver, kinds = self._driver, self._driver.CUlaunchAttributeID
        attributes: list[Any] = []
        if spec.cluster > 1:
            cluster = driver.CUlaunchAttribute()
            cluster.id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dims = cluster.value.clusterDim
            dims.x, dims.y, dims.z = spec.cluster, 1, 1
            attributes.append(cluster)
        if spec.pdl and spec.kernel.waits and not self.arch.startswith("sm_8"):
            pdl = driver.CUlaunchAttribute()
            pdl.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            pdl.value.programmaticStreamSerializationAllowed = 1
            attributes.append(pdl)
        if spec.cooperative:
            together = driver.CUlaunchAttribute()
            together.id = kinds.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            together.value.cooperative = 1
            attributes.append(together)
        return attributes

    def launch(self, prepared: Any, stream: int = 0) -> None:
        """Enqueues a launch. Raises DeviceError if it is refused; a fault inside the kernel shows at the next wait."""
        if prepared.stream != stream:
            prepared.config.hStream = self._driver.CUstream(stream)
            prepared.stream = stream
        error = self._launch(prepared.config, prepared.handle, prepared.address, 0)
        if error[0]:
            self._check(error, f"launching {prepared.name}")

    def synchronize(self, stream: int = 0) -> None:
        """Waits for a stream, or for the whole GPU if it is 0. Raises DeviceError for a fault inside a kernel."""
        if stream:
            self._check(self._driver.cuStreamSynchronize(stream), "waiting for the GPU")
        else:
            with self._recording:  # the driver refuses to wait for a context while any stream of it is recorded
                self._check(self._driver.cuCtxSynchronize(), "waiting for the GPU")

    def enter(self) -> int:
        """Makes this GPU's primary context current; the token is the GPU that was current before."""
        previous = int(self._runtime.getDevice())
        self._runtime.setDevice(self.gpu_index)
        return previous

    def leave(self, token: int) -> None:
        """Makes the GPU ``token`` current again."""
        if token != self.gpu_index:
            self._runtime.setDevice(token)

    # ------------------------------------------------------------------------------------------------ graphs

    def is_capturing(self, stream: int) -> bool:
        """Whether a capture of the stream is under way. The default stream (0) cannot be captured."""
        if stream == 0:
            return False
        status = self._check(self._driver.cuStreamIsCapturing(stream), "asking a stream")
        return bool(status)

    def begin_capture(self) -> int:
        """Begins a capture on the thread's own stream. Waits for a capture of another thread to end."""
        own: RecordingStream | None = getattr(self._local, "stream", None)
        if own is None:
            flag = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            handle = self._check(self._driver.cuStreamCreate(int(flag)), "making a stream")
            own = self._local.stream = RecordingStream(self._driver, handle)
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._recording.acquire()
        try:
            self._check(self._driver.cuStreamBeginCapture(own.handle, mode), "beginning a graph")
        except DeviceError:
            self._recording.release()
            raise
        return int(own.handle)

    def end_capture(self) -> CudaGraph:
        """Ends the thread's capture and instantiates the graph."""
        try:
            graph = self._check(self._driver.cuStreamEndCapture(self._local.stream.handle), "ending a graph")
        finally:
            self._recording.release()
        try:
            executable = self._check(self._driver.cuGraphInstantiate(graph, 0), "making a graph")
        finally:
            self._driver.cuGraphDestroy(graph)
        return CudaGraph(self._driver, executable)

    def replay(self, graph: Any, stream: int = 0) -> None:
        """Enqueues a captured graph."""
        error = self._driver.cuGraphLaunch(graph.handle, stream)
        if error[0]:
            self._check(error, "launching a graph")
