"""The conv template on wgmma against numpy on the checked simulator, and through NVRTC for sm_90a."""

from __future__ import annotations

import cases_conv_wgmma
import numpy as np
import pytest
from cases_conv import SHAPES, Shape, conv_kernel
from harness import assert_compiles, run_kernel
from kernel_cases import Case, assert_close
from mutate import survivors

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.templates.conv.implementations import IMPLEMENTATIONS
from arcweld.codegen.templates.conv.wgmma import best_patch, geometry, render_conv_wgmma, supports, tactics
from arcweld.compiler.dtypes import DType
from arcweld.driver.object_code import SPILL_BYTES

CASES = cases_conv_wgmma.cases()
ARCH = "sm_90a"


def rendered(case: Case) -> KernelSource:
    return render_conv_wgmma(case.kernel, case.tactic or tactics(case.kernel, ARCH)[0], ARCH)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, ARCH) is None
    for seed in (0, 1, 2):
        got = run_kernel(rendered(case), case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_conv_wgmma.expected(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(rendered(case))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 32])
def test_every_tactic_compiles_with_hardly_a_spill(batch: int) -> None:
    kernel = conv_kernel(Shape(batch, (28, 28), 128, 128, (3, 3), pad=1), DType.F16)
    for i, tactic in enumerate(tactics(kernel, ARCH)):
        assert tactic.shared_bytes <= 227 * 1024
        assert_compiles(render_conv_wgmma(kernel, tactic, ARCH), spills=SPILL_BYTES if i else 0)


def test_every_wait_is_needed() -> None:
    case = next(c for c in CASES if c.id == "large_several_tiles_each")
    source = rendered(case)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return np.allclose(got["out0"].astype(float), cases_conv_wgmma.expected(case)["out0"], 1e-2, 1e-2)

    assert {m.deleted for m in survivors(source.source, passes, "contract.cuh")} <= {"fence_proxy_async();"}


@pytest.mark.parametrize(
    ("batch", "size", "count"), [(32, 56, 32 * 49), (32, 28, 32 * 13), (32, 14, 32 * 4), (32, 7, 28), (1, 7, 1)]
)
def test_patches_cover_the_output_with_little_waste(batch: int, size: int, count: int) -> None:
    kernel = conv_kernel(Shape(batch, (size, size), 64, 64, (3, 3), pad=1), DType.F16)
    n, h, w = best_patch(geometry(kernel))
    assert n * h * w <= 64
    assert -(-batch // n) * -(-size // h) * -(-size // w) <= 1.1 * count


def test_reasons_for_refusal() -> None:
    for name, reason in (
        ("odd_channels", "5 input channels"), ("groups", "groups of 16"), ("3d", "three spatial"),
        ("transposed", "transposed"),
    ):  # fmt: skip
        assert reason in (supports(conv_kernel(SHAPES[name], DType.F16), ARCH) or "")
    assert "precision" in (supports(conv_kernel(SHAPES["3x3"], DType.F32), ARCH) or "")
    patches = conv_kernel(Shape(1, (32, 32), 8, 16, (16, 16), stride=16), DType.F16)
    assert "a stride above 8" in (supports(patches, ARCH) or "")
    assert "not a plain load" in (supports(conv_kernel(SHAPES["3x3"], DType.F16, prologue=True), ARCH) or "")


@pytest.mark.parametrize(
    ("name", "arch", "best"),
    [("3x3", "sm_90a", "conv_wgmma"), ("3x3", "sm_80", "mma"), ("pointwise", "sm_90a", "wgmma"),
     ("groups", "sm_90a", "mma"), ("first_layer", "sm_90a", "mma")],
)  # fmt: skip
def test_best_implementation(name: str, arch: str, best: str) -> None:
    kernel = conv_kernel(SHAPES[name], DType.F16)
    found = [i.name for i in IMPLEMENTATIONS if i.fits(kernel, arch)]
    assert found[0] == best
