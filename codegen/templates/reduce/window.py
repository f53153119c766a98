"""The window template: reductions over a few constant taps, as in pooling. A thread loops over the taps of its outputs.

Roles: axes ``out`` and ``reduce`` (the taps, of constant extents); load ``x`` over both, which is the combiner's
identity where a tap lies in the padding. Attributes and stores are those of the reduce template; the index of an arg
reduction counts taps in row-major order.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import flatten_roles
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.reduce.combiners import combiner, unsupported_combiner
from arcweld.compiler import dims

MOST_TAPS = 1024
UNROLLED = 64  # the most taps of a loop that is unrolled completely


@dataclass(frozen=True, slots=True)
class WindowTactic:
    """``width`` neighbouring outputs of a thread (0: as many as the accesses allow); ``threads`` of a block."""

    width: int = 0
    threads: int = 128


def tactics(kernel: Kernel, arch: str) -> tuple[WindowTactic, ...]:
    """The widest vectors first, then half as wide ones."""
    width = natural_width(_flat(kernel))
    return tuple(dict.fromkeys(WindowTactic(w, t) for w in (width, max(1, width // 2)) for t in (128, 256)))


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    taps = _taps(kernel)
    if not isinstance(taps, int) or taps > MOST_TAPS:
        return f"the window has {taps} taps; the window template takes at most {MOST_TAPS}, known when compiling"
    return unsupported_combiner(kernel)


def natural_width(flat: Kernel) -> int:
    """The most lanes of a vector along the outputs that the accesses allow."""
    (out,) = flat.axes["out"]
    exprs = [flat.loads["x"], *(s.value for s in flat.stores)]
    return vector_width(flat, out.extent, exprs, flat.stores, out.sym)


def _flat(kernel: Kernel) -> Kernel:
    return flatten_roles(kernel, {"out": "out_index", "reduce": "tap"})


def _taps(kernel: Kernel) -> dims.Dim:
    return dims.product(a.extent for a in kernel.axes["reduce"])


def render_window(kernel: Kernel, tactic: WindowTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat = _flat(kernel)
    (out,), (tap,) = flat.axes["out"], flat.axes["reduce"]
    width = tactic.width or natural_width(flat)
    hooks, how = Hooks(flat), combiner(flat, laned=True)
    args = [("out_index", out.sym)]
    x = hooks.load("load_x", flat.loads["x"], [*args, ("tap", tap.sym)], lane=out.sym, width=width)
    store = hooks.store("store_out", flat.stores, args, lane=out.sym, width=width, variables=how.variables)
    return render(
        "reduce/window.cu.j2", flat, hooks.params, arch="sm_80",
        grid=(dims.ceildiv(out.extent, tactic.threads * width), 1, 1), block=(tactic.threads, 1, 1),
        tiled=overlapping(out.extent, tactic.threads * width, tactic.threads),
        functions=[x, store], how=how, ctype=flat.loads["x"].dtype.cuda, width=width, taps=tap.extent,
        unroll=tap.extent if isinstance(tap.extent, int) and tap.extent <= UNROLLED else 8,
        out_count=hooks.params.scalar("out_count", out.extent),
    )  # fmt: skip
