"""The conv template: convolution as a matrix product whose left operand is gathered, on the engines of ``contract``.

Roles: axes n (1), out (1-3 spatial), g (1), co (1, per group), tap (1-3), ci (1, per group); loads ``a`` (masked where
the window leaves the input) and ``w``; stores over n, out, g, co with the variable ``acc``. Rows are output pixels,
columns are output channels, k runs over taps and then input channels, groups are the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arcweld.codegen import contract, conv_wgmma, depthwise
from arcweld.codegen.contract_problem import conv_problem
from arcweld.codegen.conv_wgmma import ConvWgmmaTactic
from arcweld.codegen.depthwise import DepthwiseTactic
from arcweld.codegen.implementation import Implementation, runs_on
from arcweld.codegen.kernel import Kernel, KernelSource


def _late(i: Implementation) -> Implementation:
    """The implementation with the next kernel's launch triggered late: convolutions suffer from company (measured)."""

    def tactics(kernel: Kernel, arch: str) -> tuple[Any, ...]:
        found = i.tactics(kernel, arch)
        return tuple(dict.fromkeys([*(replace(t, early=False) for t in found), found[0]]))

    return replace(i, tactics=tactics)


def _implementations() -> tuple[Implementation, ...]:
    """Depthwise; then the contraction's engines, of which the boxes of ``conv_wgmma`` come before the portable ones."""
    own = Implementation("depthwise", "sm_80", depthwise.render_depthwise, depthwise.tactics, depthwise.supports)
    boxes = Implementation(
        "conv_wgmma", conv_wgmma.ARCH, conv_wgmma.render_conv_wgmma, conv_wgmma.tactics, conv_wgmma.supports
    )
    engines = [_late(i) for i in contract.implementations(conv_problem)]
    portable = next(i for i, e in enumerate(engines) if e.name == "mma")
    return (own, *engines[:portable], boxes, *engines[portable:])


IMPLEMENTATIONS = _implementations()


def supports(kernel: Kernel, arch: str) -> str | None:
    """None if some implementation can compute the kernel on ``arch``, else the reasons."""
    reasons = {i.name: i.supports(kernel, arch) for i in IMPLEMENTATIONS if runs_on(i.arch, arch)}
    return None if None in reasons.values() else "; ".join(f"{n}: {r}" for n, r in reasons.items())


def tactics(kernel: Kernel, arch: str) -> tuple[Any, ...]:
    """Candidates of the best implementation that supports the kernel, the analytical default first."""
    found = next(i for i in IMPLEMENTATIONS if runs_on(i.arch, arch) and i.supports(kernel, arch) is None)
    return found.tactics(kernel, arch)


def render_conv(kernel: Kernel, tactic: Any, arch: str) -> KernelSource:
    """Renders the kernel by the implementation that the tactic belongs to."""
    if isinstance(tactic, DepthwiseTactic):
        return depthwise.render_depthwise(kernel, tactic, arch)
    if isinstance(tactic, ConvWgmmaTactic):
        return conv_wgmma.render_conv_wgmma(kernel, tactic, arch)
    return contract.ENGINES[tactic.engine].render_problem(conv_problem(kernel), tactic, arch)
