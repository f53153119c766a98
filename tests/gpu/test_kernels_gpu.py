"""Every template's cases on a real GPU: each implementation that the card can run, with each tactic, against numpy."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from arcweld.codegen.implementation import Implementation
from arcweld.codegen.nvrtc import Job
from arcweld.codegen.pool import compile_many
from arcweld.codegen.select import implementations
from arcweld.runtime import devices
from arcweld.runtime.device import Device

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
from harness import run_kernel
from kernel_cases import Case, assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices.gpu_count() == 0, reason="needs an NVIDIA GPU")]

TEMPLATES = (
    "rowwise", "reduce", "window", "transpose", "contract", "gemv", "conv", "depthwise", "attention", "contract_wgmma",
    "conv_wgmma",
)  # fmt: skip
MODULES = tuple(f"cases_{t}" for t in TEMPLATES)


@pytest.fixture(scope="module")
def device() -> Device:
    return devices.open_device("cuda")


def attempts(case: Case, arch: str) -> list[tuple[Implementation, Any]]:
    """(implementation, tactic) pairs: all tactics of all implementations."""
    # the oracle's cases name the template they are for; lowering reaches these two through others
    wanted = {"transpose": "pointwise", "depthwise": "conv"}.get(case.kernel.template, case.kernel.template)
    kernel = replace(case.kernel, template=wanted)
    return [(i, t) for i in implementations(kernel, arch) for t in i.tactics(kernel, arch)]


def slack(case: Case) -> float:
    """Roundings allowed: the order of sums and the GPU's functions cost tens of f32 roundings, few of 16 bits."""
    return 3.0 if any(b.dtype.is_half for b in case.kernel.buffers if b.written) else 40.0


@pytest.mark.parametrize("module", MODULES)
def test_cases_match_numpy(module: str, device: Device) -> None:
    cases = importlib.import_module(module)
    arch = device.arch
    plan = [(c, i, t, i.render(c.kernel, t, arch)) for c in cases.cases() for i, t in attempts(c, arch)]
    compiled = compile_many([Job(s.source, arch, s.entry) for *_, s in plan])
    problems = []
    for (case, implementation, tactic, source), object_code in zip(plan, compiled):
        label = f"{case.id} {implementation.name} {tactic}"
        if object_code.spill_bytes:
            problems.append(f"{label}: {object_code.spill_bytes} bytes of spills")
        try:
            got = run_kernel(source, case.kernel, case.inputs, case.env, device=device, cubin=object_code.code)
            assert_close(case.kernel, got, cases.expected(case), slack(case))
        except Exception as error:  # every case is tried, all failures are reported together
            problems.append(f"{label}: {type(error).__name__}: {str(error)[:300]}")
            if "illegal" in str(error).lower() or "launch failed" in str(error).lower():
                break  # the context is lost
    print(f"{module}: {len(plan)} kernels, {len(problems)} problems")
    assert not problems, "\n".join(problems)
