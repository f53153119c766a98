"""The conv template: convolution as a matrix product whose left operand is gathered, on the engines of ``contract``.

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
