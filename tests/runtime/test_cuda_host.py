"""The cuda device's host side, on machines without a GPU: packed launches, tensor map arguments, missing
drivers.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.compiler.errors import DeviceError, EnvironmentError_
from arcweld.runtime import cuda, devices
from arcweld.runtime.device import KernelImage, LaunchSpec, TensorMapSpec

driver = pytest.importorskip("cuda.bindings.driver")


def bare(arch: str) -> cuda.CudaDevice:
    """A device object that has met no driver."""
    device = object.__new__(cuda.CudaDevice)
    device.arch = arch
    device.model = "none"
    device._driver = driver
    return device


def spec(**parts: object) -> LaunchSpec:
    kernel = cuda.CudaKernel("k", None, None, driver.CUfunction(1234))
    base = LaunchSpec("k", kernel, (7, 2, 3), (128, 2, 1), 4096, 1, False, b"0123456789abcdef", ())
    return replace(base, **parts)  # type: ignore[arg-type]


def test_prepared_launch_holds_the_configuration_and_one_parameter() -> None:
    prepared = bare("sm_90a").prepare(spec())
    config = prepared.config
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (7, 2, 3)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (128, 2, 1)
    assert config.sharedMemBytes == 4096
    assert config.numAttrs == 0
    (pointer,) = (ctypes.c_uint64 * 1).from_address(prepared.address)
    assert pointer % cuda.MAP_ALIGNMENT == 0
    assert ctypes.string_at(pointer, 16) == b"0123456789abcdef"


@pytest.mark.parametrize("params", [b"", b"x", bytes(range(256)) * 16])
def test_params_keep_their_bytes(params: bytes) -> None:
    blob = cuda.params_buffer(params)
    assert ctypes.addressof(blob) % cuda.MAP_ALIGNMENT == 0
    assert bytes(blob)[: len(params)] == params


def test_attributes_follow_the_launch_and_the_architecture() -> None:
    kinds = driver.CUlaunchAttributeID
    cluster, pdl = bare("sm_90a")._attributes(spec(cluster=4, pdl=True))
    assert cluster.id == kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    dims = cluster.value.clusterDim
    assert (dims.x, dims.y, dims.z) == (4, 1, 1)
    assert pdl.id == kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert pdl.value.programmaticStreamSerializationAllowed == 1
    assert bare("sm_86")._attributes(spec(pdl=True)) == []
    assert len(bare("sm_120a")._attributes(spec(pdl=True))) == 1


def test_blocks_that_wait_for_each_other_are_launched_together() -> None:
    (together,) = bare("sm_86")._attributes(spec(cooperative=True))
    assert together.id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    assert together.value.cooperative == 1


@pytest.mark.parametrize(("blocks", "fits"), [(84, True), (85, False)])
def test_more_blocks_than_run_at_once_are_refused(blocks: int, fits: bool) -> None:
    device = bare("sm_86")
    device.model, device.gpu_index = "a GPU", 0
    answers = {"cuDeviceGetAttribute": 28, "cuOccupancyMaxActiveBlocksPerMultiprocessor": 3}
    asked = {name: lambda *_, found=found: (0, found) for name, found in answers.items()}
    device._driver = SimpleNamespace(**{**vars(driver), **asked})
    launch = spec(cooperative=True, grid=(blocks, 1, 1))
    if fits:
        assert device.prepare(launch).config.numAttrs == 1
        return
    with pytest.raises(DeviceError, match="k needs 85 blocks at once, a GPU runs 84 of them"):
        device.prepare(launch)


WAITING = """#include "prims.cuh"
extern "C" __global__ void k() { pdl_wait(); }
"""


@pytest.mark.parametrize(("arch", "waits"), [("sm_80", False), ("sm_89", False), ("sm_90", True), ("sm_90a", True)])
def test_only_code_that_waits_is_launched_programmatically(arch: str, waits: bool) -> None:
    """PTX for an old target has no ``griddepcontrol.wait``, on whatever GPU the driver translates it for."""
    ptx = compile_ptx(WAITING, arch, name="k")
    assert (b"griddepcontrol.wait" in ptx) == waits
    image = KernelImage("k", "k", WAITING, None, ptx)
    assert cuda.waits_for_predecessors(image) == waits
    assert cuda.waits_for_predecessors(replace(image, cubin=b"ELF"))
    kernel = cuda.CudaKernel("k", None, None, driver.CUfunction(1234), waits)
    assert len(bare("sm_100a")._attributes(spec(pdl=True, kernel=kernel))) == int(waits)


@pytest.mark.parametrize(
    ("code", "lasting"),
    [("CUDA_ERROR_ILLEGAL_ADDRESS", True), ("CUDA_ERROR_LAUNCH_FAILED", True), ("CUDA_ERROR_MISALIGNED_ADDRESS", True),
     ("CUDA_ERROR_ASSERT", True), ("CUDA_ERROR_INVALID_VALUE", False), ("CUDA_ERROR_OUT_OF_MEMORY", False)],
)  # fmt: skip
def test_errors_that_last_are_said_to(code: str, lasting: bool) -> None:
    device = bare("sm_90a")
    texts = {"cuGetErrorName": lambda error: (0, error.name.encode()), "cuGetErrorString": lambda error: (0, b"no")}
    device._driver = SimpleNamespace(**texts)
    with pytest.raises(DeviceError, match=f"launching k failed: {code}: no") as caught:
        device._check((getattr(driver.CUresult, code),), "launching k")
    assert ("start it anew" in (caught.value.hint or "")) == lasting


class Streams:
    """The driver's calls about streams and graphs, in so far as recording makes them."""

    CUstream_flags = driver.CUstream_flags
    CUstreamCaptureMode = driver.CUstreamCaptureMode

    def __init__(self) -> None:
        self.made, self.destroyed, self.recording = 0, [], set()

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        self.made += 1
        return 0, 100 + self.made

    def cuStreamDestroy(self, stream: int) -> tuple[int]:
        self.destroyed.append(stream)
        return (0,)

    def cuStreamBeginCapture(self, stream: int, mode: object) -> tuple[int]:
        self.recording.add(stream)
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, str]:
        self.recording.remove(stream)
        return 0, "graph"

    def cuGraphInstantiate(self, graph: str, flags: int) -> tuple[int, str]:
        return 0, "executable"

    def cuGraphDestroy(self, graph: str) -> tuple[int]:
        return (0,)

    def cuGraphExecDestroy(self, executable: str) -> tuple[int]:
        return (0,)


def test_a_thread_records_on_one_stream_of_its_own_until_it_ends() -> None:
    device, streams = bare("sm_90a"), Streams()
    device._driver, device._local, device._recording = streams, threading.local(), threading.Lock()
    used: list[int] = []

    def work() -> None:
        for _ in range(2):
            used.append(device.begin_capture())
            assert streams.recording == {used[-1]}
            device.end_capture()

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        gc.collect()
    assert used == [101, 101, 102, 102, 103, 103]
    assert streams.destroyed == [101, 102, 103]


class Copies:
    """What is done with a copy to the host, in its order; the bytes are there when the event has been waited for."""

    ptr = 77  # of the event, which this is too

    def __init__(self) -> None:
        self.done: list[tuple[object, ...]] = []
        self.memory = Pinned(8)
        self.cuda = self

    def alloc_pinned_memory(self, nbytes: int) -> Pinned:
        assert nbytes == len(self.memory)
        return self.memory

    def cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> tuple[int]:
        self.done.append(("copy", target, source, nbytes, stream))
        return (0,)

    def Event(self, *, disable_timing: bool) -> Copies:
        return self

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.done.append(("record", event, stream))
        return (0,)

    def synchronize(self) -> None:
        self.done.append(("wait",))
        self.memory[:] = range(8)


class Pinned(bytearray):
    """Memory of the host, with its address as CuPy gives it."""

    ptr = 55


def test_a_copy_to_the_host_is_waited_for_by_its_event() -> None:
    device, copies = bare("sm_90a"), Copies()
    device._driver, device._cupy = copies, copies
    download = device.download_later(0x1000, 8, 3)
    assert copies.done == [("copy", 55, 0x1000, 8, 3), ("record", 77, 3)]
    assert download.wait().tolist() == list(range(8))
    assert copies.done[-1] == ("wait",)


def test_tensor_map_arguments_are_those_of_the_driver() -> None:
    arguments = cuda.tensor_map_arguments(
        TensorMapSpec("bf16", 0x1000, (64, 128, 3), (256, 32768), (64, 8, 1), (1, 2, 1), 128)
    )
    dtype, rank, address, dims, strides, box, steps, interleave, swizzle, promotion, fill = arguments
    assert dtype.value == int(driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16)
    assert (rank.value, address.value) == (3, 0x1000)
    assert (list(dims), list(strides)) == ([64, 128, 3], [256, 32768])
    assert (list(box), list(steps)) == ([64, 8, 1], [1, 2, 1])
    assert interleave.value == int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE)
    assert swizzle.value == int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B)
    assert promotion.value == int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
    assert fill.value == int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    with pytest.raises(DeviceError):
        cuda.tensor_map_arguments(TensorMapSpec("f8", 0, (64,), (), (64,), (1,), 128))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("u8", "UINT8"), ("u16", "UINT16"), ("u32", "UINT32"), ("i32", "INT32"), ("u64", "UINT64"), ("i64", "INT64"),
        ("f16", "FLOAT16"), ("f32", "FLOAT32"), ("f64", "FLOAT64"), ("i4", "UINT8"), ("u4", "UINT8"), ("i2", "UINT8"),
        ("u2", "UINT8"), ("u1", "UINT8"), ("f4e2m1", "UINT8"),
    ],
)  # fmt: skip
def test_tensor_map_types_are_the_drivers(ours: str, theirs: str) -> None:
    number = int(getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{theirs}"))
    assert cuda._MAP_TYPES[ours] == number


def test_swizzles_are_the_drivers() -> None:
    for width, code in cuda._MAP_SWIZZLES.items():
        name = f"CU_TENSOR_MAP_SWIZZLE_{width}B" if width else "CU_TENSOR_MAP_SWIZZLE_NONE"
        assert int(getattr(driver.CUtensorMapSwizzle, name)) == code


def test_no_gpu_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    with pytest.raises(EnvironmentError_, match="there is no GPU 0") as caught:
        devices.open_device("cuda")
    assert "nvidia-smi" in (caught.value.hint or "")


def test_every_call_that_the_device_makes_exists() -> None:
    """CUDA 12's and 13's bindings, and CuPy, have each name that cuda.py uses."""
    cupy = pytest.importorskip("cupy")
    source = Path(cuda.__file__).read_text(encoding="utf-8")
    for name in set(re.findall(r"(?<!cuda\.)\b_?driver\.(\w+)", source)):
        assert hasattr(driver, name), name
    assert cupy.cuda.memory.OutOfMemoryError
    assert cupy.cuda.runtime.CUDARuntimeError
    assert cupy.cuda.driver.CUDADriverError
    assert cupy.cuda.function.Module().load
