"""One way to render a template's kernels: what ``select`` chooses among."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.compiler.archs import runs_on


def _never(kernel: Kernel) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to render a template's kernels.

    ``arch`` is the least architecture (``sm_80``) or the exact one (``sm_90a``) that it is for; ``supports`` gives the
    reason why it can't render a kernel, or None; ``tactics`` lists the default first. Where ``defers`` is true of a
    kernel, the implementations that come later in the template's list are the better untuned choice.
    """

    name: str
    arch: str
    render: Callable[[Kernel, Any, str], KernelSource]
    tactics: Callable[[Kernel, str], tuple[Any, ...]]
    supports: Callable[[Kernel, str], str | None]
    defers: Callable[[Kernel], bool] = _never

    def fits(self, kernel: Kernel, arch: str) -> bool:
        """True if it can render ``kernel`` for ``arch``."""
        return runs_on(self.arch, arch) and self.supports(kernel, arch) is None
