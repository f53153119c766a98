"""The recurrence template: blocks that stay for all steps of a recurrent layer, with their weights in shared memory.

Roles: axes ``step direction row gate unit k``; loads ``x`` over step, row, direction, gate and unit, ``r`` over
direction, gate, unit and k, ``length`` over row, ``first_<state>`` over direction, row and unit; formulas and stores as
``codegen/lowering/recurrence.py`` says. Attributes: its passes, ``backwards`` for each direction, and ``r_is_weight``.
A block computes some hidden units of one direction, for all gates. One block has all units where their weights fit: it
keeps the states to itself, and other blocks have other rows. Else the blocks of a direction exchange states through
global memory, and a barrier of the grid separates the passes: all of them have to be on the GPU at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arcweld.codegen.kernel import Kernel, KernelSource, Store
from arcweld.codegen.lowering.recurrence import Pass, roles
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import most, power_of_two_at_least
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.card import RESIDENT_BLOCKS, SHARED_LIMIT
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, substitute_index, walk

THREADS = 256
LEAST_UNITS = 8  # of a block that exchanges states: fewer would make a step shorter, but not its barrier
MOST_TILE = 8  # rows that are multiplied together
USUAL_TILE = 4  # where the number of rows is open
SOURCE_LIMIT = 32 * 1024  # bytes of shared memory for the states that the weights multiply


@dataclass(frozen=True, slots=True)
class RecurrenceTactic:
    """``units`` hidden units of a block (all of them: no block waits for another) and ``tile`` rows at a time.

    ``resident``: the weights stay in shared memory; else each step reads them again, from the L2 cache.
    """

    units: int
    tile: int
    resident: bool = True


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes of a kernel with a tactic; a chunk is ``width`` elements along k, of which ``chunks`` make a row."""

    hidden: int
    gates: int
    tile: int
    units: int
    width: int
    chunks: int
    compute: DType
    stored: DType
    passes: tuple[Pass, ...]
    resident: bool

    def rows(self, p: Pass) -> int:
        """The rows of weights of a block in one pass."""
        return (p.end - p.first) * self.units

    def lanes(self, p: Pass) -> int:
        """Threads that have rows of their own."""
        return min(THREADS, -(-self.rows(p) // 32) * 32)

    def split(self, p: Pass) -> int:
        """Parts into which the chunks of a row are divided."""
        return max(1, min(THREADS // self.lanes(p), self.chunks))

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return max(self.lanes(p) * self.split(p) for p in self.passes)

    @property
    def piece(self) -> int:
        """Neighbouring states that one access reads: what divides the hidden size and a chunk."""
        row = self.width * self.chunks
        return next(n for n in (4, 2, 1) if n * self.compute.size <= 16 and self.hidden % n == 0 and row % n == 0)

    @property
    def source_elements(self) -> int:
        return self.tile * self.chunks * self.width

    @property
    def part_elements(self) -> int:
        """The elements of the sums of all parts, in whole pieces of 16 bytes."""
        most_parts = max(self.split(p) * self.tile * self.rows(p) for p in self.passes)
        return -(-max(most_parts, THREADS // 32) // 4) * 4

    @property
    def weight_bytes(self) -> int:
        return self.gates * self.units * self.chunks * self.width * self.stored.size if self.resident else 0

    @property
    def shared_bytes(self) -> int:
        """The shared memory of a block."""
        return (self.source_elements + self.part_elements) * self.compute.size + self.weight_bytes


def _shape(kernel: Kernel, tactic: RecurrenceTactic) -> _Shape:
    r, hidden = kernel.loads["r"], _hidden(kernel)
    loaded = [kernel.buffer(e.attr[0]).dtype for e in walk([r]) if e.op == "load"]
    stored = loaded[0] if r.op == "load" and loaded[0].is_half else r.dtype
    width = 16 // stored.size if tactic.resident else _load_width(kernel)
    return _Shape(
        hidden, kernel.axes["gate"][0].extent, tactic.tile, tactic.units, width, -(-hidden // width), r.dtype, stored,  # type: ignore[arg-type]
        kernel.attrs["passes"], tactic.resident,
    )  # fmt: skip


def _hidden(kernel: Kernel) -> int:
    extent = kernel.axes["unit"][0].extent
    assert isinstance(extent, int), "the type rule wants a number"
    return extent


def _load_width(kernel: Kernel) -> int:
    """The most neighbouring weights that one access reads."""
    k = kernel.axes["k"][0]
    return vector_width(kernel, k.extent, [kernel.loads["r"]], (), k.sym)


def tactics(kernel: Kernel, arch: str) -> tuple[RecurrenceTactic, ...]:
    """One block for all units where their weights fit into its shared memory, else as many as are surely resident.

    Where not even their shares fit, each step reads the weights from the L2 cache.
    """
    _, direction, row, *_ = roles(kernel.axes)
    hidden, wide = _hidden(kernel), kernel.loads["r"].dtype.size
    tile = min(MOST_TILE, power_of_two_at_least(row.extent)) if isinstance(row.extent, int) else USUAL_TILE
    while tile > 1 and tile * hidden * wide > SOURCE_LIMIT:
        tile //= 2
    blocks = RESIDENT_BLOCKS // most(direction.extent, 2)
    shared = min(hidden, max(LEAST_UNITS, -(-hidden // blocks)))
    ranked = ((hidden, True), (shared, True), (shared, False))
    found = (RecurrenceTactic(units, tile, resident) for units, resident in dict.fromkeys(ranked))
    return tuple(t for t in found if _shape(kernel, t).shared_bytes <= SHARED_LIMIT)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    if tactics(kernel, arch):
        return None
    return f"the states of {_hidden(kernel)} hidden units don't fit into a block's shared memory"


def render_recurrence(kernel: Kernel, tactic: RecurrenceTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    step, direction, row, *_ = roles(kernel.axes)
    shape, hooks = _shape(kernel, tactic), Hooks(kernel)
    rounded = "rounded" in kernel.loads
    alone = tactic.units == shape.hidden and not (rounded and not dims.is_nonneg(tactic.tile - row.extent))
    blocks = -(-shape.hidden // tactic.units)
    looped = not alone and not dims.is_nonneg(tactic.tile - row.extent)
    states = tuple(dict.fromkeys(s for p in shape.passes for s in p.updates if _is_own(shape, s)))
    functions = [*_load_hooks(kernel, hooks, shape), *_formula_hooks(kernel, hooks), *_store_hooks(kernel, hooks)]
    params = hooks.params
    params.scalar("steps", step.extent)
    rows = params.scalar("rows", row.extent)
    if not alone:
        exchanged = tuple(dict.fromkeys(p.source for p in shape.passes))
        for s in exchanged:
            params.workspace(f"shared_{s}", shape.compute, 2, direction.extent, row.extent, shape.hidden)
        for s in states if looped else ():
            params.workspace(f"own_{s}", shape.compute, direction.extent, row.extent, shape.hidden)
        params.counters("arrivals", direction.extent, 2)
    return render(
        "recurrence/recurrence.cu.j2", kernel, params, arch="sm_80",
        grid=(1 if alone else blocks, direction.extent, dims.ceildiv(row.extent, tactic.tile) if alone else 1),
        block=(shape.threads, 1, 1), shared_bytes=shape.shared_bytes, pdl=alone, cooperative=not alone,
        tiled=(*overlapping(row.extent, tactic.tile), (step.extent, 2)),
        # each thread fills, hands on and (for its range) reads the same elements of the source
        own_source=alone and shape.chunks * shape.width == shape.hidden,
        functions=functions, s=shape, alone=alone, looped=looped, states=states, blocks=blocks,
        ctype=shape.compute.cuda, wtype=shape.stored.cuda, load_width=_load_width(kernel),
        items=-(-tactic.tile * tactic.units // shape.threads), steps=params.scalar("steps", step.extent), rows=rows,
        directions=direction.extent, has_length="length" in kernel.loads, rounded=rounded, firsts=_firsts(kernel),
        sources={p.source for p in shape.passes}, newer_sources=_newer(shape), uses=_uses(kernel, shape),
        backwards=_backwards(kernel), early=kernel.attrs["r_is_weight"],
        step_store=_stores(kernel, last=False), last_store=_stores(kernel, last=True),
    )  # fmt: skip


def _is_own(shape: _Shape, state: str) -> bool:
    """True for a state that its own unit reads: all but what another pass only multiplies."""
    return state == "h" or all(state != p.source for p in shape.passes)


def _newer(shape: _Shape) -> list[set[str]]:
    """For each pass, the states that earlier passes of the same step have computed."""
    return [{s for p in shape.passes[:n] for s in p.updates} for n in range(len(shape.passes))]


def _firsts(kernel: Kernel) -> tuple[str, ...]:
    """The states that have a value before the first step."""
    return tuple(s.removeprefix("first_") for s in kernel.loads if s.startswith("first_"))


def _backwards(kernel: Kernel) -> str:
    """C text that says whether a block's direction runs from the last step to the first."""
    runs = kernel.attrs["backwards"]
    return "direction == 1" if len(runs) == 2 else str(runs[0]).lower()


def _variables(e: Expr) -> list[str]:
    return sorted({x.attr for x in walk([e]) if x.op == "var"})


def _uses(kernel: Kernel, shape: _Shape) -> dict[str, list[str]]:
    """State -> the variables of its formula, in the order of the hook's parameters."""
    return {s: _variables(kernel.loads[f"next_{s}"]) for p in shape.passes for s in p.updates}


def _stores(kernel: Kernel, last: bool) -> list[str]:
    """The variables of the stores after each step, or after the last one; none where there are no such stores."""
    found = {n for s in _selected(kernel, last) for n in _variables(s.value)}
    return sorted(found)


def _selected(kernel: Kernel, last: bool) -> list[Store]:
    return [s for s in kernel.stores if any(n.startswith("last_") for n in _variables(s.value)) == last]


# -------------------------------------------------------------------------------------------------------------- hooks


def _load_hooks(kernel: Kernel, hooks: Hooks, shape: _Shape) -> list[str]:
    step, direction, row, gate, unit, k = roles(kernel.axes)
    at = [("step", step.sym), ("direction", direction.sym), ("row", row.sym), ("unit", unit.sym)]
    found = [
        hooks.load(f"load_x{g}", substitute_index(kernel.loads["x"], {gate.sym: g}), at) for g in range(shape.gates)
    ]
    weights = [("direction", direction.sym), ("gate", gate.sym), ("unit", unit.sym), ("k", k.sym)]
    found.append(hooks.load("load_r", kernel.loads["r"], weights, lane=k.sym, width=_load_width(kernel)))
    found += [hooks.load(f"load_first_{s}", kernel.loads[f"first_{s}"], at[1:]) for s in _firsts(kernel)]
    if "rounded" in kernel.loads:
        e = kernel.loads["rounded"]
        found.append(hooks.load("round_state", e, [], variables=_typed(e.dtype, ["h", "low", "high"])))
    if "length" in kernel.loads:
        found.append(hooks.load("load_length", kernel.loads["length"], [("row", row.sym)]))
    return found


def _formula_hooks(kernel: Kernel, hooks: Hooks) -> list[str]:
    _, direction, _, _, unit, _ = roles(kernel.axes)
    at = [("direction", direction.sym), ("unit", unit.sym)]
    formulas = {name: e for name, e in kernel.loads.items() if name.startswith("next_")}
    return [hooks.load(name, e, at, variables=_typed(e.dtype, _variables(e))) for name, e in formulas.items()]


def _store_hooks(kernel: Kernel, hooks: Hooks) -> list[str]:
    step, direction, row, _, unit, _ = roles(kernel.axes)
    at = [("step", step.sym), ("direction", direction.sym), ("row", row.sym), ("unit", unit.sym)]
    dtype, found = kernel.loads["r"].dtype, []
    for name, last in (("store_step", False), ("store_last", True)):
        stores = _selected(kernel, last)
        if stores:
            variables = _typed(dtype, _stores(kernel, last))
            found.append(hooks.store(name, stores, at[1:] if last else at, variables=variables))
    return found


def _typed(dtype: DType, names: list[str]) -> dict[str, Any]:
    return {n: (n, dtype, False) for n in names}
