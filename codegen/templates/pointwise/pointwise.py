"""The pointwise template: elementwise computation and data movement, over one flat index.

Roles: axes ``out`` (any number); no loads; stores over the out axes. Scatters in place use it too: their stores have
masks, coordinates read at run time, and reductions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Axis, Kernel, KernelSource, Store
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import collapse
from arcweld.codegen.printing.render import overlapping, render
from arcweld.compiler import dims
from arcweld.compiler.expr import substitute_dim, substitute_index


@dataclass(frozen=True, slots=True)
class PointwiseTactic:
    """``width`` neighbouring elements of a thread (0: as many as the accesses allow); ``threads`` of a block."""

    width: int = 0
    threads: int = 256


def tactics(kernel: Kernel, arch: str) -> tuple[PointwiseTactic, ...]:
    """The default, then narrower vectors and other block sizes."""
    return (PointwiseTactic(), PointwiseTactic(threads=128), PointwiseTactic(threads=512), PointwiseTactic(width=2))


def supports(kernel: Kernel, arch: str) -> str | None:
    """None: it renders every kernel of the template."""
    return None


def flatten(kernel: Kernel) -> tuple[Axis, tuple[Store, ...]]:
    """One axis over all elements, and the stores in terms of its index."""
    flat, table = collapse(kernel.axes["out"], "i")
    stores = tuple(
        replace(
            s,
            coords=tuple(substitute_dim(c, table) for c in s.coords),
            value=substitute_index(s.value, table),
            mask=None if s.mask is None else substitute_index(s.mask, table),
        )
        for s in kernel.stores
    )
    return flat, stores


def render_pointwise(kernel: Kernel, tactic: PointwiseTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat, stores = flatten(kernel)
    hooks = Hooks(kernel)
    width = tactic.width or vector_width(kernel, flat.extent, [s.value for s in stores], stores, flat.sym)
    text = hooks.store("compute", stores, [("i", flat.sym)], lane=flat.sym, width=width, extent=flat.extent)
    count = hooks.params.scalar("count", flat.extent)
    blocks = dims.ceildiv(flat.extent, tactic.threads * width)
    return render(
        "pointwise/pointwise.cu.j2", kernel, hooks.params, arch="sm_80", grid=(blocks, 1, 1),
        block=(tactic.threads, 1, 1), tiled=overlapping(flat.extent, tactic.threads * width, tactic.threads),
        store=text, width=width, itype=hooks.itype, count=count,
    )  # fmt: skip
