"""The conv template: convolution as a matrix product (implicit GEMM), by the implementations of ``contract``.

Roles: axes ``n`` (1), ``out`` (1 to 3, spatial), ``g`` (1), ``co`` (1, of a group), ``tap`` (1 to 3), ``ci`` (1, of a
group); loads ``a``, masked where a tap lies in the padding, and ``w``; of integers perhaps a load ``zero`` over g and
co, which is subtracted from ``w``; stores over n, out, g, co with the variable ``acc``. As a product, rows are output
pixels, columns output channels, k runs over taps and input channels, and groups are the batch.
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
    """The implementation with tactics that launch the next kernel late: an overlapping one slows convolutions down."""

    def tactics(kernel: Kernel, arch: str) -> tuple[Any, ...]:
        found = i.tactics(kernel, arch)
        return tuple(dict.fromkeys([*(replace(t, early=False) for t in found), found[0]]))

    return replace(i, tactics=tactics)


def _implementations() -> tuple[Implementation, ...]:
    """Depthwise first, then those of ``contract``, with ``conv_wgmma`` in front of the portable ones."""
    own = Implementation("depthwise", "sm_80", depthwise.render_depthwise, depthwise.tactics, depthwise.supports)
    boxes = Implementation(
        "conv_wgmma", conv_wgmma.ARCH, conv_wgmma.render_conv_wgmma, conv_wgmma.tactics, conv_wgmma.supports
    )
    shared = [_late(i) for i in contract.implementations(conv_problem)]
    portable = next(n for n, i in enumerate(shared) if i.name == "mma")
    return (own, *shared[:portable], boxes, *shared[portable:])


IMPLEMENTATIONS = _implementations()
