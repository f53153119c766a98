"""Whole kernels (pointwise, LayerNorm, GEMMs, attention) on the sim device against numpy, under several schedules."""

from __future__ import annotations

import pytest
from demo_kernels import DEMOS, ffma_gemm, mma_gemm, wgmma_gemm

from arcweld.runtime.sim.device import SimDevice


@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.parametrize("checked", [False, True], ids=["fast", "checked"])
def test_demo_kernel_matches_numpy(name: str, checked: bool) -> None:
    demo = DEMOS[name]()
    for seed in (0, 1, 2, 77):
        assert demo.error(SimDevice(checked=checked, seed=seed)) <= demo.tolerance, f"seed {seed}"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_arch_sets_the_macro(arch: str) -> None:
    demo = ffma_gemm()
    number = {"sm_80": 800, "sm_90a": 900}[arch]
    guard = f"#if __CUDA_ARCH__ != {number}\n#error wrong architecture\n#endif\n"
    assert demo.passes(SimDevice(arch=arch), guard + demo.source)


@pytest.mark.parametrize("shape", [(64, 64, 32), (1, 8, 8), (70, 72, 40)])
def test_mma_gemm_at_ragged_shapes(shape: tuple[int, int, int]) -> None:
    demo = mma_gemm(*shape)
    assert demo.error(SimDevice(checked=True)) <= demo.tolerance


def test_wgmma_gemm_with_one_and_many_stages() -> None:
    for k in (64, 128, 448):
        demo = wgmma_gemm(m=64, n=64, k=k)
        assert demo.error(SimDevice(checked=True, seed=k)) <= demo.tolerance
