"""Every primitive on a GPU against numpy and against the simulator.

``ARCWELD_WRITE_GOLDEN=1`` stores the GPU's results (tests/golden/prims/*.npz), which let the simulator be compared with
the hardware where there is none.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from demo_kernels import DEMOS
from prim_cases import PrimCase, warp_level_cases
from prim_cases_async import async_cases
from prim_cases_lanes import lane_cases
from sim_harness import run

from arcweld.codegen.nvrtc.compiler import compile_cubin
from arcweld.runtime.device import Device, KernelImage
from arcweld.runtime.sim.device import SimDevice

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parents[1] / "golden" / "prims"
CASES = [*warp_level_cases(), *lane_cases(), *async_cases()]


@pytest.fixture(scope="module")
def device() -> Device:
    cupy = pytest.importorskip("cupy")
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            pytest.skip("no GPU")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    from arcweld.runtime.cuda import CudaDevice

    return CudaDevice()


def _compiled(source: str, entry: str, arch: str) -> KernelImage:
    return KernelImage(entry, entry, source, compile_cubin(source, arch, name=entry, debug=True).cubin, None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_primitive_on_the_gpu(case: PrimCase, device: Device) -> None:
    if case.arch == "sm_90a" and device.arch != "sm_90a":
        pytest.skip(f"needs sm_90a, not {device.arch}")
    kernel = _compiled(case.source, case.name, device.arch)
    outputs = run(device, kernel, (case.grid,), (case.block,), case.arguments, case.shared)
    case.check(outputs, case.reference)
    case.check(case.run(SimDevice()), outputs)
    if os.environ.get("ARCWELD_WRITE_GOLDEN"):
        _store(case.name, outputs)


def _store(name: str, outputs: list[np.ndarray]) -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    plain = [output.view(np.uint16) if output.dtype.kind == "V" else output for output in outputs]
    np.savez_compressed(GOLDEN / f"{name}.npz", **{f"output{i}": output for i, output in enumerate(plain)})


@pytest.mark.parametrize("name", DEMOS)
def test_demo_kernel_on_the_gpu(name: str, device: Device) -> None:
    demo = DEMOS[name]()
    if "wgmma" in name and device.arch != "sm_90a":
        pytest.skip(f"needs sm_90a, not {device.arch}")
    kernel = _compiled(demo.source, demo.entry, device.arch)
    (result,) = run(device, kernel, demo.grid, (demo.block,), demo.arguments, demo.shared)
    assert float(np.abs(result.astype(np.float64) - demo.reference).max()) <= demo.tolerance
