"""Runs one rendered kernel on the sim device in checked mode, and computes what it should give with numpy alone."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.nvrtc.compiler import compile_cubin
from arcweld.codegen.templates.select import IMPLEMENTATIONS, implementations
from arcweld.compiler.dims import evaluate
from arcweld.compiler.dtypes import pack as pack_elements
from arcweld.compiler.dtypes import stored_form, unpack
from arcweld.compiler.parameters import TensorMap, pack
from arcweld.runtime.device import KernelImage, LaunchSpec, TensorMapSpec
from arcweld.runtime.sim.device import SimDevice

T = TypeVar("T", bound=Hashable)


def run_kernel(
    source: KernelSource,
    kernel: Kernel,
    inputs: Mapping[str, np.ndarray],
    env: Mapping[str, int] | None = None,
    *,
    checked: bool = True,
    seed: int = 0,
    text: str | None = None,
    device: Any = None,
    cubin: bytes | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of ``source``, by canonical buffer name, on the sim device or on ``device`` (which then gets ``cubin``).

    ``text`` replaces the source (mutation tests). Counters must be zeros again after the launch.
    """
    env = dict(env or {})
    device = device or SimDevice(arch="sm_90a" if source.arch == "sm_90a" else "sm_80", checked=checked, seed=seed)
    memory, arrays = {}, {}
    everything = (*kernel.buffers, *source.workspace, *source.counters)
    for b in everything:
        shape = tuple(evaluate(d, env) for d in b.shape)
        if b.name in inputs:
            given = np.ascontiguousarray(np.asarray(inputs[b.name], b.dtype.numpy))
            assert given.shape == shape, f"{b.name}: {given.shape} given, kernel says {shape}"
            array = pack_elements(given)
        else:
            array = np.frombuffer(b"\xff" * b.dtype.nbytes(math.prod(shape)), stored_form(b.dtype, shape)[0])
        if b.name in source.zero or b in source.counters:
            array = np.zeros_like(array)
        memory[b.name], arrays[b.name] = device.allocate(max(1, array.nbytes)), array
        device.upload(memory[b.name].address, array)
    image = KernelImage(source.entry, source.entry, text or source.source, cubin, None)
    handle = device.load_kernel(image, source.shared_bytes)
    buffers = tuple((memory[b.name].address, arrays[b.name].nbytes, b.written) for b in everything)
    grid = tuple(evaluate(g, env) for g in source.grid)
    spec = LaunchSpec(
        source.entry, handle, (grid[0], grid[1], grid[2]), source.block, source.shared_bytes, source.cluster,
        source.pdl, packed(source, kernel, {k: m.address for k, m in memory.items()}, env, device), buffers,
        source.cooperative,
    )  # fmt: skip
    device.launch(device.prepare(spec))
    device.synchronize()
    out = {}
    for b in everything:
        if b.written:
            shape = tuple(evaluate(d, env) for d in b.shape)
            dtype, stored = stored_form(b.dtype, shape)
            got = np.empty(stored, dtype)
            device.download(got, memory[b.name].address)
            out[b.name] = unpack(got, b.dtype, shape)
    for b in source.counters:
        assert not out[b.name].any(), f"{b.name} is not zeros after the launch"
    return {b.name: out[b.name] for b in kernel.buffers if b.written}


def packed(
    source: KernelSource, kernel: Kernel, addresses: Mapping[str, int], env: Mapping[str, int], device: Any
) -> bytes:
    """The Params struct as bytes."""

    def encode(view: TensorMap[int], address: int) -> bytes:
        dtype = kernel.buffer(view.tensor).dtype.value
        return device.encode_tensor_map(
            TensorMapSpec(dtype, address, view.dims, view.strides, view.box, view.element_strides, view.swizzle)
        )

    return pack([p.convert(lambda d: evaluate(d, env)) for p in source.params], addresses, encode)


def assert_compiles(source: KernelSource, archs: tuple[str, ...] = ("sm_80", "sm_90a"), spills: int = 0) -> None:
    """NVRTC accepts the kernel for every architecture, with no more than ``spills`` bytes of spilled registers and none
    of ptxas' warnings (wgmma that is serialised, setmaxnreg that is ignored)."""
    for arch in archs if source.arch != "sm_90a" else ("sm_90a",):
        done = compile_cubin(source.source, arch, name=source.entry)
        assert not done.warnings, f"{source.entry} for {arch}: {done.warnings[0]}"
        assert done.spill_bytes <= spills, f"{source.entry} for {arch}: {done.spill_bytes} bytes of spills\n{done.log}"


def in_turn(found: Sequence[T], turn: int, every: int) -> list[T]:
    """Of a problem's tactics the first, which an untuned build takes, and each ``every``-th from ``turn`` on.

    ``every`` problems in a row that have the same tactics, in any order, leave none out if ``turn`` numbers them.
    With ``ARCWELD_EVERY=1``, all tactics of all problems.
    """
    every = 1 if os.environ.get("ARCWELD_EVERY") else every
    chosen = {found[0], *sorted(found, key=repr)[turn % every :: every]}
    return [t for t in found if t in chosen]


def tactics(kernel: Kernel, arch: str = "sm_80") -> tuple[Any, ...]:
    """The candidates of the implementation that an untuned build takes, its choice first."""
    return implementations(kernel, arch)[0].tactics(kernel, arch)


def render_with(kernel: Kernel, tactic: Any, arch: str = "sm_80") -> KernelSource:
    """The kernel, rendered by the implementation of its template that ``tactic`` belongs to."""
    (found,) = (i for i in IMPLEMENTATIONS[kernel.template] if i.name == tactic.implementation)
    return found.render(kernel, tactic, arch)
