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
    """One algorithm that renders a template's kernels.

    name      for logs and errors
    arch      the least architecture (``sm_80``) or the exact one (``sm_90a``) that it is for
    render    (kernel, tactic, arch) -> CUDA source; raises only for kernels that it does not support
    tactics   (kernel, arch) -> tactics, the default first, then what tuning may try
    supports  (kernel, arch) -> the reason why it can't render the kernel, or None
    defers    kernel -> True where implementations later in the template's list are expected to be faster
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
