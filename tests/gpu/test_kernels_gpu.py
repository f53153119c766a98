"""Every template's cases on a real GPU: each implementation that the card can run, with each tactic, against numpy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.nvrtc.compiler import Compiled, Job
from arcweld.codegen.nvrtc.pool import compile_many
from arcweld.codegen.templates.implementation import Implementation
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import DeviceError
from arcweld.compiler.expr import walk
from arcweld.driver.object_code import SPILL_BYTES
from arcweld.runtime import devices
from arcweld.runtime.device import Device

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
from harness import run_kernel
from kernel_cases import Case, assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices.gpu_count() == 0, reason="needs an NVIDIA GPU")]

TEMPLATES = (
    "rowwise", "reduce", "scan", "window", "transpose", "contract", "gemv", "few_rows", "stored", "conv", "depthwise",
    "attention", "contract_wgmma", "conv_wgmma", "attention_wgmma", "wgmma_stored", "large",
    "recurrence", "sort", "select", "runs", "suppress",
)  # fmt: skip
MODULES = tuple(f"cases_{t}" for t in TEMPLATES)


@pytest.fixture(scope="module")
def device() -> Device:
    return devices.open_device("cuda")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A case, an implementation with one of its tactics, and whether that is what an untuned build takes."""

    case: Case
    implementation: Implementation
    tactic: Any
    is_default: bool

    def __str__(self) -> str:
        return f"{self.case.id} {self.implementation.name} {self.tactic}"


def attempts(case: Case, arch: str) -> list[Attempt]:
    """Every tactic of every implementation; for a case that names its tactic, that one."""
    # the oracle's cases name the template they are for; lowering reaches these two through others
    wanted = {"transpose": "pointwise", "depthwise": "conv"}.get(case.kernel.template, case.kernel.template)
    kernel = replace(case.kernel, template=wanted)
    found = [(i, i.tactics(kernel, arch)) for i in implementations(kernel, arch)]
    if kernel.stem == "stored_matmul":  # the oracle doesn't round what is unpacked, but tiles of tensor cores do
        found = [(i, known) for i, known in found if i.name not in ("mma", "wgmma")]
    elif _rounds(kernel):  # and so does the oracle, but ordinary arithmetic doesn't
        found = [(i, known) for i, known in found if i.name != "ffma"]
    if case.tactic is None:
        return [Attempt(case, i, t, n == 0) for i, known in found for n, t in enumerate(known)]
    return [Attempt(case, i, case.tactic, False) for i, known in found if any(_alike(case.tactic, t) for t in known)]


def _rounds(kernel: Kernel) -> bool:
    """True if tensor cores take the operands in a narrower type than memory holds them in."""
    stored = {e.attr[1] for e in walk(list(kernel.loads.values())) if e.op == "load"}
    precision = kernel.attrs.get("precision")
    return precision == "tf32" or (precision in ("f16", "bf16") and DType.F32 in stored)


def _alike(a: Any, b: Any) -> bool:
    """True for tactics of the same implementation."""
    return type(a) is type(b) and getattr(a, "implementation", "") == getattr(b, "implementation", "")


def slack(case: Case) -> float:
    """Roundings allowed: the order of sums and the GPU's functions cost tens of f32 roundings, few of 16 bits."""
    return 3.0 if any(b.dtype.is_half for b in case.kernel.buffers if b.written) else 40.0


def compiled(sources: Sequence[KernelSource], arch: str) -> Iterator[tuple[Compiled, Compiled | None]]:
    """Object code of each, and for kernels that wait also one whose waits end: no mistake can hang the GPU."""
    waiting = [s for s in sources if _waits(s)]
    jobs = [Job(s.source, arch, s.entry) for s in sources]
    code = compile_many(jobs + [Job(s.source, arch, s.entry, debug=True) for s in waiting])
    bounded = iter(code[len(jobs) :])
    for source, done in zip(sources, code):
        yield done, next(bounded) if _waits(source) else None


def _waits(source: KernelSource) -> bool:
    """True if the kernel waits for mbarriers, itself or by a ring, or for other blocks."""
    return "mbar_wait" in source.source or "ring.cuh" in source.source or source.cooperative


@pytest.mark.parametrize("module", MODULES)
def test_cases_match_numpy(module: str, device: Device) -> None:
    cases = importlib.import_module(module)
    plan = [a for case in cases.cases() for a in attempts(case, device.arch)]
    sources = [a.implementation.render(a.case.kernel, a.tactic, device.arch) for a in plan]
    expected = {case.id: cases.expected(case) for case in cases.cases()}
    problems = []
    for attempt, source, (code, bounded) in zip(plan, sources, compiled(sources, device.arch)):
        case = attempt.case
        if attempt.is_default and (code.warnings or code.spill_bytes > SPILL_BYTES):
            problems.append(f"{attempt}: {code.spill_bytes} bytes of spills {' '.join(code.warnings)}")
        try:
            for cubin in (bounded, code):
                if cubin is not None:
                    got = run_kernel(source, case.kernel, case.inputs, case.env, device=device, cubin=cubin.code)
                    assert_close(case.kernel, got, expected[case.id], slack(case))
        except Exception as error:  # every case is tried, all failures are reported together
            problems.append(f"{attempt}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            if isinstance(error, DeviceError) and lost(device):
                problems.append("the GPU's context is lost: the rest was not tried")
                break
    print(f"{module}: {len(plan)} kernels, {len(problems)} problems")
    assert not problems, "\n".join(problems)


def lost(device: Device) -> bool:
    """True once a fault in a kernel has made every further call of this process fail."""
    try:
        device.synchronize()
    except DeviceError:
        return True
    return False
