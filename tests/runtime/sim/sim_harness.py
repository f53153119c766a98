"""Runs one hand-written kernel on a device: packs its ``Params`` struct from numpy arrays and returns the outputs."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from arcweld.codegen import include
from arcweld.runtime.device import Device, KernelImage, LaunchSpec, TensorMapSpec

KERNELS = Path(__file__).parent / "kernels"
INCLUDE = Path(include.__path__[0])


@dataclass(frozen=True, slots=True)
class In:
    """A read-only array argument."""

    array: np.ndarray


@dataclass(frozen=True, slots=True)
class Out:
    """A written array argument; it starts with the array's content and is returned."""

    array: np.ndarray


@dataclass(frozen=True, slots=True)
class Map:
    """A tensor map over a 2-D to 4-D array (numpy order); ``box`` and ``steps`` in the same order, innermost last."""

    array: np.ndarray
    box: tuple[int, ...]
    written: bool = False
    steps: tuple[int, ...] = ()
    swizzle: int = 128


Argument = In | Out | Map | int | float


def source_of(name: str, **options: Any) -> str:
    """The text of tests' kernels/NAME: .cu as it is, .cu.j2 rendered with the project's delimiters."""
    text = (KERNELS / name).read_text()
    return render(text, **options) if name.endswith(".j2") else text


def render(text: str, **options: Any) -> str:
    environment = jinja2.Environment(
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(str(INCLUDE)),
    )
    return environment.from_string(text).render(**options)


def image(source: str, entry: str) -> KernelImage:
    return KernelImage(entry, entry, source, None, None)


def run(
    device: Device,
    kernel: KernelImage,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: list[Argument],
    shared: int = 0,
    pdl: bool = False,
) -> list[np.ndarray]:
    """Launches once and returns the arrays of the Out and written Map arguments, in order."""
    params, buffers, keep, results = b"", [], [], []
    for argument in arguments:
        if isinstance(argument, int | np.integer):
            params = _append(params, struct.pack("<i", argument), 4)
            continue
        if isinstance(argument, float):
            params = _append(params, struct.pack("<f", argument), 4)
            continue
        array = np.ascontiguousarray(argument.array)
        memory = device.allocate(max(array.nbytes, 1))
        device.upload(memory.address, array)
        written = isinstance(argument, Out) or (isinstance(argument, Map) and argument.written)
        keep.append(memory)
        buffers.append((memory.address, array.nbytes, written))
        if written:
            results.append((array, memory))
        if isinstance(argument, Map):
            params = _append(params, device.encode_tensor_map(_map_spec(argument, array, memory.address)), 64)
        else:
            params = _append(params, struct.pack("<Q", memory.address), 8)
    params = params.ljust(-(-len(params) // 64) * 64, b"\0")
    handle = device.load_kernel(kernel, shared)
    full = lambda dims: (*dims, 1, 1)[:3]
    spec = LaunchSpec(kernel.name, handle, full(grid), full(block), shared, 1, pdl, params, tuple(buffers))
    device.launch(device.prepare(spec))
    device.synchronize()
    outputs = []
    for array, memory in results:
        result = np.empty_like(array)
        device.download(result, memory.address)
        outputs.append(result)
    return outputs


def _append(params: bytes, item: bytes, alignment: int) -> bytes:
    return params + b"\0" * (-len(params) % alignment) + item


def _map_spec(argument: Map, array: np.ndarray, address: int) -> TensorMapSpec:
    names = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "int32": "i32", "int8": "i8", "uint8": "u8"}
    steps = argument.steps or (1,) * array.ndim
    return TensorMapSpec(
        names[array.dtype.name],
        address,
        tuple(reversed(array.shape)),
        tuple(reversed(array.strides[:-1])),
        tuple(reversed(argument.box)),
        tuple(reversed(steps)),
        argument.swizzle,
    )
