"""Depthwise convolutions: one input and one output channel in each group.

A thread computes neighbouring channels (a vector, where channels are innermost) of neighbouring pixels along the last
spatial axis, and sums over all taps in f32, or in i32 where the operands are 8-bit integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from arcweld.codegen.kernel import Axis, Kernel, KernelSource
from arcweld.codegen.printing.approximate import approximate
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.contract.mma import INT8
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, Sym
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, cast, mentions, substitute_index

ARCH = "sm_80"
MAX_TAPS = 128  # all taps are unrolled
BUSY = 1 << 19  # outputs from which on every multiprocessor is busy with one pixel for each thread


@dataclass(frozen=True, slots=True)
class DepthwiseTactic:
    """How outputs are divided among threads.

    pixels   neighbouring pixels of a thread along the last spatial axis
    threads  threads of a block
    width    neighbouring channels of a thread; 0: as many as the accesses allow
    early    let the next kernel be launched when this one begins
    """

    pixels: int = 4
    threads: int = 128
    width: int = 0
    early: bool = False
    implementation: str = "depthwise"


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this implementation can't render the kernel, or None."""
    if any(a.extent != 1 for role in ("co", "ci") for a in kernel.axes[role]):
        return "a group has more than one input or output channel"
    taps = [a.extent for a in kernel.axes["tap"]]
    if not all(isinstance(t, int) for t in taps):
        return "the filter's size is not constant"
    if math.prod(_constant(t) for t in taps) > MAX_TAPS:
        return f"the filter has more than {MAX_TAPS} taps"
    if kernel.attrs.get("precision") == INT8:
        return None
    return None if kernel.loads["a"].dtype is DType.F32 else f"the product is of {kernel.loads['a'].dtype.value}"


def _constant(d: Dim) -> int:
    assert isinstance(d, int)
    return d


def tactics(kernel: Kernel, arch: str) -> tuple[DepthwiseTactic, ...]:
    """All combinations; the more outputs there are, the more pixels a thread has in the first ones."""
    work = [a.extent for a in (*kernel.axes["n"], *kernel.axes["out"], *kernel.axes["g"])]
    total = math.prod(w if isinstance(w, int) else 64 for w in work)
    order = (4, 2, 1) if total >= 4 * BUSY else ((2, 4, 1) if total >= BUSY else (1, 2, 4))
    return tuple(DepthwiseTactic(pixels, threads) for threads in (128, 256, 64) for pixels in order)


def shared_loads(e: Expr, out: Axis, tap: Axis, stride: int) -> tuple[Expr, Sym] | None:
    """``e`` in terms of ``position = out * stride + tap``, and the symbol of that position.

    Neighbouring pixels of a thread then load each position once. None if ``e`` depends on the two axes in any other
    way, as with a dilated filter.
    """
    position = Sym("_position", 0, (out.extent - 1) * stride + tap.extent - 1)
    moved = substitute_index(e, {tap.sym: dims.var(position) - out.index * stride})
    return None if mentions(moved, out.sym) else (moved, position)


def render_depthwise(kernel: Kernel, tactic: DepthwiseTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    hooks, g, outs, taps = Hooks(kernel), kernel.axes["g"][0], kernel.axes["out"], kernel.axes["tap"]
    width = tactic.width or _channels(kernel, g)
    stride = _constant(kernel.attrs["strides"][-1])
    shared = shared_loads(kernel.loads["a"], outs[-1], taps[-1], stride)
    pixel = [("n", kernel.axes["n"][0].sym), *((f"o{i}", a.sym) for i, a in enumerate(outs))]
    place = [*pixel, ("c", g.sym)]
    at_tap = [(f"tap{i}", a.sym) for i, a in enumerate(taps)]
    acc = DType.I32 if kernel.attrs.get("precision") == INT8 else DType.F32
    w_expr = kernel.loads["w"]
    if "zero" in kernel.loads:
        w_expr = cast(w_expr, acc) - cast(kernel.loads["zero"], acc)
    a_expr, last = shared if shared is not None else (kernel.loads["a"], taps[-1].sym)
    counts = _thread_counts(outs, g, tactic, width)
    total = dims.product([*counts.values(), kernel.axes["n"][0].extent])
    scalar = hooks.params.scalar
    return render(
        "conv/depthwise.cu.j2", kernel, hooks.params, arch=ARCH, grid=(dims.ceildiv(total, tactic.threads), 1, 1),
        block=(tactic.threads, 1, 1), tiled=overlapping(total, tactic.threads),
        t=tactic, width=width, stride=stride, shared=shared is not None,
        itype=hooks.itype, spatial=len(outs), place=[name for name, _ in pixel], at_tap=[name for name, _ in at_tap],
        taps=[_constant(a.extent) for a in taps], total=scalar("threads", total),
        counts={k: scalar(f"{k}_count", v) for k, v in counts.items()}, row=scalar("row", outs[-1].extent),
        load_a=hooks.load("load_a", a_expr, [*place, *at_tap[:-1], (at_tap[-1][0], last)], lane=g.sym, width=width),
        load_w=hooks.load("load_w", w_expr, [("c", g.sym), *at_tap], lane=g.sym, width=width),
        store=hooks.store(
            "store_out", approximate(kernel, kernel.stores), place, lane=g.sym, width=width, extent=g.extent,
            variables={"acc": ("acc", acc, True)},
        ),
        acc=acc.cuda, types=(a_expr.dtype.cuda, w_expr.dtype.cuda),
    )  # fmt: skip


def _channels(kernel: Kernel, g: Axis) -> int:
    """Neighbouring channels of a thread: as many as the accesses of activations and results allow."""
    values = [kernel.loads["a"], *(s.value for s in kernel.stores)]
    return vector_width(kernel, g.extent, values, kernel.stores, g.sym)


def _thread_counts(outs: Sequence[Axis], g: Axis, t: DepthwiseTactic, width: int) -> dict[str, Dim]:
    """The extents that a thread's index is divided by, innermost first: channel vectors, pixel runs, outer axes."""
    counts = {"c": dims.ceildiv(g.extent, width), f"o{len(outs) - 1}": dims.ceildiv(outs[-1].extent, t.pixels)}
    counts.update({f"o{i}": outs[i].extent for i in reversed(range(len(outs) - 1))})
    return counts
