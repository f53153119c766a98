"""Registers as object code has them, against what ptxas said when it made it, and occupancy against known cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcweld.codegen.cost.occupancy import occupancy
from arcweld.codegen.nvrtc.compiler import compile_cubin
from arcweld.runtime.cubin import registers

KERNELS = Path(__file__).parent.parent / "golden" / "kernels"


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a", "sm_120"])
@pytest.mark.parametrize("name", ["argmax_f32", "attention_causal_f16", "pointwise_gelu_f16"])
def test_registers_are_those_that_ptxas_told(name: str, arch: str) -> None:
    made = compile_cubin((KERNELS / f"{name}.cu").read_text(encoding="utf-8"), arch)
    assert made.registers > 0
    assert registers(made.code) == made.registers


def test_code_that_tells_nothing() -> None:
    code = compile_cubin((KERNELS / "argmax_f32.cu").read_text(encoding="utf-8"), "sm_90a").code
    for damaged in (b"", b"\x7fELF", code[:64], code[: len(code) // 2], b"\0" * len(code)):
        assert registers(damaged) is None
    for k in range(0, len(code), 7):  # whatever the bytes are, it ends and raises nothing
        found = registers(code[:k] + bytes([code[k] ^ 0xFF]) + code[k + 1 :])
        assert found is None or found >= 0


@pytest.mark.parametrize(
    ("used", "shared", "threads", "arch", "percent"),
    [
        (32, 0, 256, "sm_80", 100), (64, 0, 256, "sm_80", 50), (33, 0, 1024, "sm_80", 50), (255, 0, 128, "sm_80", 12.5),
        (32, 48 << 10, 128, "sm_80", 18.75), (32, 0, 1024, "sm_89", 66.667), (40, 0, 128, "sm_86", 100),
        (168, 200 << 10, 384, "sm_90a", 18.75), (16, 0, 32, "sm_90a", 50), (32, 0, 64, "sm_86", 66.667),
    ],
)  # fmt: skip
def test_occupancy(used: int, shared: int, threads: int, arch: str, percent: float) -> None:
    """By the rules of NVIDIA's occupancy calculator, worked out by hand."""
    found = occupancy(used, shared, threads, arch)
    assert found is not None
    assert 100 * found == pytest.approx(percent, abs=0.01)


def test_a_card_without_known_limits_has_no_occupancy() -> None:
    assert occupancy(32, 0, 128, "sm_75") is None
