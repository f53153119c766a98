"""The runs template: the runs of equal elements of a vector in order, counted, numbered and told in one launch.

Roles: axes ``col`` (one: the elements) and ``run`` (as many, for the runs); loads ``x`` and ``order`` over col; stores
over run with one of the variables ``value``, ``first`` and ``counts``, over col with ``kind``, and of one element with
``number``. Attribute ``by_place``: whether runs are numbered by their first places instead of by the order.
Each block counts the runs that begin in its part. Behind a barrier of the grid it knows how many begin before.
Numbering by first places does the same once more, for the elements as they lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource, Store
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import most
from arcweld.codegen.printing.printer import INDEX_LIMIT
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import RESIDENT_BLOCKS
from arcweld.codegen.templates.rows import argument
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import walk

USUAL_SYMBOLIC = 1 << 20  # elements that are assumed where no upper bound is known
ELEMENTS = 4  # of each thread, at least, before there is another block
RESULTS = ("value", "first", "counts", "kind", "number")


@dataclass(frozen=True, slots=True)
class RunsTactic:
    """``threads`` of a block, a power of two from 32 on, and the ``blocks``, which wait for each other."""

    threads: int = 256
    blocks: int = RESIDENT_BLOCKS


def tactics(kernel: Kernel, arch: str) -> tuple[RunsTactic, ...]:
    """The estimated best first: as many blocks as have something to do, at most those that are surely resident."""
    elements = most(kernel.axes["col"][0].extent, USUAL_SYMBOLIC)
    sizes = (256, 128, 64)
    return tuple(RunsTactic(n, max(1, min(RESIDENT_BLOCKS, -(-elements // (n * ELEMENTS))))) for n in sizes)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    if (dims.bounds(kernel.axes["col"][0].extent)[0] or 0) >= INDEX_LIMIT:
        return "more than 2**31 elements"
    return None


def render_runs(kernel: Kernel, tactic: RunsTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    (col,), (run,) = kernel.axes["col"], kernel.axes["run"]
    hooks, x, by_place = Hooks(kernel), kernel.loads["x"], bool(kernel.attrs["by_place"])
    functions = [hooks.load(f"load_{name}", kernel.loads[name], [argument(col)]) for name in ("x", "order")]
    stored = {name: [s for s in kernel.stores if _of(s) == name] for name in RESULTS}
    for name, stores in stored.items():
        if stores:
            args = {"kind": [argument(col)], "number": []}.get(name, [argument(run)])
            dtype = x.dtype if name == "value" else DType.I64
            functions.append(hooks.store(f"store_{name}", stores, args, variables={name: (name, dtype, False)}))
    hooks.params.workspace("sums", DType.I32, 2, tactic.blocks)
    needed = {"starts": bool(stored["counts"]), "kinds": by_place, "firsts": by_place,
              "numbers": by_place and bool(stored["kind"])}  # fmt: skip
    for name in (name for name, needs in needed.items() if needs):
        hooks.params.workspace(name, DType.I32, col.extent)
    hooks.params.counters("arrivals", 2)
    part = dims.ceildiv(col.extent, tactic.blocks)
    return render(
        "sort/runs.cu.j2", kernel, hooks.params, arch="sm_80", grid=(tactic.blocks, 1, 1), block=(tactic.threads, 1, 1),
        shared_bytes=tactic.threads // 32 * 4, pdl=False, cooperative=True,
        tiled=((col.extent, tactic.blocks), (col.extent, tactic.blocks * tactic.threads)), functions=functions,
        threads=tactic.threads, blocks=tactic.blocks, by_place=by_place, stored={n for n, s in stored.items() if s},
        key="u64" if x.dtype.size == 8 else "u32", ctype=x.dtype.cuda, part=hooks.params.scalar("part", part),
        col_count=hooks.params.scalar("col_count", col.extent),
    )  # fmt: skip


def _of(store: Store) -> str:
    """The result that a store holds."""
    (name,) = {str(e.attr) for e in walk([store.value]) if e.op == "var"}
    return name
