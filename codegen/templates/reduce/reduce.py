"""The reduce template: one value for each point of the output axes, combined over the reduced axes.

Roles: axes ``out`` and ``reduce`` (any number of each, in any order in memory); load ``x`` over both; stores over the
out axes with the variable ``acc``, the combined value. Attributes: ``combine`` (sum, prod, max, min, argmax, argmin)
and ``select_last`` (which of equal elements an arg reduction takes). Of an arg reduction, ``acc`` is the i64 index over
the flattened reduced axes, and ``value`` the element at it. NaN wins max, min and arg reductions, as in numpy. An empty
reduction gives the combiner's identity.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Axis, Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import flatten_roles, most, power_of_two_at_least
from arcweld.codegen.printing.printer import INDEX_LIMIT
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.reduce.combiners import combiner, unsupported_combiner
from arcweld.compiler import dims
from arcweld.compiler.expr import loads

USUAL_SYMBOLIC = 1024  # elements that are assumed where no upper bound is known


@dataclass(frozen=True, slots=True)
class ReduceTactic:
    """How outputs and reduced elements are divided among threads.

    direction  of neighbouring threads: ``row`` (along the reduced axes) or ``column`` (along the output axes)
    width      neighbouring elements of a thread; 0: as many as the accesses allow
    lanes      threads that share one output, a power of two; in ``row``, more than 32 are the whole block
    outputs    outputs of a block in ``row`` (with at most 32 lanes), vectors of outputs of a block in ``column``
    unroll     elements (or vectors) that a thread has in flight
    """

    direction: str
    width: int = 0
    lanes: int = 32
    outputs: int = 4
    unroll: int = 4


def tactics(kernel: Kernel, arch: str) -> tuple[ReduceTactic, ...]:
    """The estimated best first. The direction is that of the axis which is contiguous in memory."""
    flat = _flat(kernel)
    (out,), (red,) = flat.axes["out"], flat.axes["reduce"]
    outputs = most(out.extent, USUAL_SYMBOLIC)
    length = most(red.extent, USUAL_SYMBOLIC) if isinstance(red.extent, int) else min(most(red.extent, 1024), 1024)
    if contiguous_bytes(kernel, "out") > contiguous_bytes(kernel, "reduce"):
        first = default_column(natural_width(flat, "column"), outputs, length)
        more = [
            ReduceTactic("column", w, first.lanes * f, max(1, first.outputs // f), first.unroll)
            for w, f in ((first.width, 2), (max(1, first.width // 2), 1), (first.width, 4))
            if first.lanes * f <= 32
        ]
    else:
        first = default_row(natural_width(flat, "row"), outputs, length)
        lanes = [n for n in (first.lanes * 2, first.lanes * 4, first.lanes // 2) if 1 <= n <= 1024]
        more = [ReduceTactic("row", first.width, n, max(1, 128 // n), first.unroll) for n in lanes]
        more.append(ReduceTactic("row", first.width, first.lanes, first.outputs, 8))
    return tuple(dict.fromkeys([first, *more]))


def default_row(width: int, outputs: int, length: int) -> ReduceTactic:
    """The ``row`` tactic: about four vectors for each thread, and more threads for an output while the GPU has room."""
    lanes = min(32, power_of_two_at_least(-(-length // (width * 4))))
    while lanes < 1024 and length >= 2 * lanes * width and outputs * lanes < SMS * 1024:
        lanes *= 2
    while lanes < 1024 and length > lanes * width * 64:
        lanes *= 2
    return ReduceTactic("row", width, lanes, max(1, 128 // lanes), 8 if length > lanes * width * 4 else 4)


def default_column(width: int, outputs: int, length: int) -> ReduceTactic:
    """The ``column`` tactic: warps of neighbouring outputs, with more threads for an output while the GPU has room."""
    vectors = -(-outputs // width)
    lanes = 1
    while lanes < 32 and vectors * lanes < SMS * 1024 and length >= 4 * lanes:
        lanes *= 2
    across = min(power_of_two_at_least(vectors), max(32, 256 // lanes))
    while across > 8 and across * lanes > 32 and -(-vectors // across) < SMS:
        across //= 2
    return ReduceTactic("column", width, lanes, max(across, -(-32 // lanes)), 4)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    flat = _flat(kernel)
    for role in ("out", "reduce"):
        if (dims.bounds(flat.axes[role][0].extent)[0] or 0) >= INDEX_LIMIT:
            return f"more than 2**31 iterations over the {role} axes"
    return unsupported_combiner(kernel)


def contiguous_bytes(kernel: Kernel, role: str) -> int:
    """Bytes of one element of every load in ``x`` that is contiguous along the role's last axis, added up."""
    axes = [a for a in kernel.axes.get(role, ()) if a.extent != 1]
    total = 0
    for e in loads([kernel.loads["x"]]) if axes else []:
        buffer = kernel.buffer(e.attr[0])
        if dims.coefficient(buffer.offset(e.attr[2]), axes[-1].sym) == 1:
            total += buffer.dtype.size
    return total


def natural_width(flat: Kernel, direction: str) -> int:
    """The most lanes of a vector along ``direction`` that the accesses allow."""
    (lane,) = flat.axes["reduce" if direction == "row" else "out"]
    stores = flat.stores if direction == "column" else ()
    return vector_width(flat, lane.extent, [flat.loads["x"], *(s.value for s in stores)], stores, lane.sym)


def render_reduce(kernel: Kernel, tactic: ReduceTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat = _flat(kernel)
    return (_render_row if tactic.direction == "row" else _render_column)(flat, tactic)


def _flat(kernel: Kernel) -> Kernel:
    return flatten_roles(kernel, {"out": "out_index", "reduce": "step"})


def _arg(a: Axis) -> tuple[str, dims.Sym]:
    return a.sym.name, a.sym


def _render_row(kernel: Kernel, tactic: ReduceTactic) -> KernelSource:
    (out,), (red,) = kernel.axes["out"], kernel.axes["reduce"]
    width = tactic.width or natural_width(kernel, "row")
    hooks, how = Hooks(kernel), combiner(kernel, laned=False)
    x = hooks.load("load_x", kernel.loads["x"], [_arg(out), _arg(red)], lane=red.sym, width=width)
    store = hooks.store("store_out", kernel.stores, [_arg(out)], variables=how.variables)
    threads = max(32, tactic.lanes * (tactic.outputs if tactic.lanes <= 32 else 1))
    per_block = threads // tactic.lanes
    return render(
        "reduce/row.cu.j2", kernel, hooks.params, arch="sm_80", grid=(dims.ceildiv(out.extent, per_block), 1, 1),
        block=(threads, 1, 1), shared_bytes=how.size * tactic.lanes // 32 if tactic.lanes > 32 else 0,
        tiled=(*overlapping(out.extent, per_block), (red.extent, tactic.lanes * width * tactic.unroll)),
        functions=[x, store], how=how, ctype=kernel.loads["x"].dtype.cuda, width=width, lanes=tactic.lanes,
        per_block=per_block, unroll=tactic.unroll, out_count=hooks.params.scalar("out_count", out.extent),
        step_count=hooks.params.scalar("step_count", red.extent),
    )  # fmt: skip


def _render_column(kernel: Kernel, tactic: ReduceTactic) -> KernelSource:
    (out,), (red,) = kernel.axes["out"], kernel.axes["reduce"]
    width = tactic.width or natural_width(kernel, "column")
    hooks, how = Hooks(kernel), combiner(kernel, laned=True)
    x = hooks.load("load_x", kernel.loads["x"], [_arg(out), _arg(red)], lane=out.sym, width=width)
    store = hooks.store("store_out", kernel.stores, [_arg(out)], lane=out.sym, width=width, variables=how.variables)
    across, threads = tactic.outputs, tactic.outputs * tactic.lanes
    return render(
        "reduce/column.cu.j2", kernel, hooks.params, arch="sm_80",
        grid=(dims.ceildiv(out.extent, across * width), 1, 1), block=(threads, 1, 1),
        shared_bytes=threads * width * how.size if tactic.lanes > 1 else 0,
        tiled=(*overlapping(out.extent, across * width, across), (red.extent, tactic.lanes * tactic.unroll)),
        functions=[x, store], how=how, ctype=kernel.loads["x"].dtype.cuda, width=width, lanes=tactic.lanes,
        across=across, unroll=tactic.unroll, out_count=hooks.params.scalar("out_count", out.extent),
        step_count=hooks.params.scalar("step_count", red.extent),
    )  # fmt: skip
