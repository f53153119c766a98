"""The conv template: convolution as a matrix product whose left operand is gathered, by the algorithms of ``contract``.

Roles: axes n (1), out (1-3 spatial), g (1), co (1, per group), tap (1-3), ci (1, per group); loads ``a`` (masked where
the window leaves the input) and ``w``; stores over n, out, g, co with the variable ``acc``. Rows are output pixels,
columns are output channels, k runs over taps and then input channels, groups are the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.templates.contract import implementations as contract
from arcweld.codegen.templates.contract.problem import conv_problem
from arcweld.codegen.templates.conv import depthwise
from arcweld.codegen.templates.conv import wgmma as conv_wgmma
from arcweld.codegen.templates.implementation import Implementation


def _late(i: Implementation) -> Implementation:
    """The implementation with the next kernel launched late: one that overlaps a convolution slows it (measured)."""

    def tactics(kernel: Kernel, arch: str) -> tuple[Any, ...]:
        found = i.tactics(kernel, arch)
        return tuple(dict.fromkeys([*(replace(t, early=False) for t in found), found[0]]))

    return replace(i, tactics=tactics)


def _implementations() -> tuple[Implementation, ...]:
    """Depthwise; then the contraction's algorithms, with the boxes of ``conv_wgmma`` before the portable ones."""
    own = Implementation("depthwise", "sm_80", depthwise.render_depthwise, depthwise.tactics, depthwise.supports)
    boxes = Implementation(
        "conv_wgmma", conv_wgmma.ARCH, conv_wgmma.render_conv_wgmma, conv_wgmma.tactics, conv_wgmma.supports
    )
    shared = [_late(i) for i in contract.implementations(conv_problem)]
    portable = next(n for n, i in enumerate(shared) if i.name == "mma")
    return (own, *shared[:portable], boxes, *shared[portable:])


IMPLEMENTATIONS = _implementations()
