"""The transpose template: elements that are neighbours along one axis where they are read and along another
where they are written pass through a tile in shared memory, so that both sides move whole vectors.

Roles: axes ``out``; no loads; stores over the out axes. The loads in the stored values that are contiguous
along another axis than the stores are staged, each in a tile of its own; all other loads are done where the
result is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Axis, Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import collapse, most, power_of_two_at_least, rewrite
from arcweld.codegen.printing.render import render
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, loads, substitute, variable

UNBOUNDED = 1 << 30
MOST_TILES = 8


@dataclass(frozen=True, slots=True)
class TransposeTactic:
    """The tile's extents along the stores' contiguous axis and along the loads', and the threads of a block."""

    along_store: int
    along_load: int
    threads: int = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """A kernel over the axes ``outer`` (flattened), ``a`` (contiguous for stores) and ``b`` (contiguous for
    staged loads).
    """

    kernel: Kernel
    outer: Axis
    a: Axis
    b: Axis
    staged: tuple[Expr, ...]

    @property
    def element(self) -> int:
        """Bytes of the widest staged element."""
        return max(int(e.attr[1].size) for e in self.staged)


@dataclass(frozen=True, slots=True)
class Tile:
    """A staged load as the template needs it: hook, shared array, types, and the conversions between them."""

    hook: str
    name: str
    storage: str
    ctype: str
    to_storage: str
    to_compute: str
    offset: int
    pitch: int


def tactics(kernel: Kernel, arch: str) -> tuple[TransposeTactic, ...]:
    """Tiles of about 4 KiB first, then larger and smaller ones."""
    p = plan(kernel)
    if isinstance(p, str):
        return ()
    side = 64 if p.element <= 2 else 32
    sizes = [(side, side), (side, 2 * side), (2 * side, side), (64, 64), (32, 32)]
    return tuple(dict.fromkeys(fitted(p, *size) for size in sizes))


def fitted(p: Plan, along_store: int, along_load: int) -> TransposeTactic:
    """The tile, narrowed to short axes and lengthened along the other one so that it holds as much."""
    cells = along_store * along_load
    short_a = power_of_two_at_least(min(along_store, max(1, most(p.a.extent, UNBOUNDED))))
    short_b = power_of_two_at_least(min(along_load, max(1, most(p.b.extent, UNBOUNDED))))
    if short_a < along_store:
        short_b = min(cells // short_a, power_of_two_at_least(max(1, most(p.b.extent, UNBOUNDED))), 512)
    elif short_b < along_load:
        short_a = min(cells // short_b, power_of_two_at_least(max(1, most(p.a.extent, UNBOUNDED))), 512)
    return TransposeTactic(short_a, short_b)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel does not profit from, or can't use, a tile."""
    p = plan(kernel)
    return p if isinstance(p, str) else None


def plan(kernel: Kernel) -> Plan | str:
    """The axes that matter, or why there are none."""
    outs = tuple(a for a in kernel.axes["out"] if a.extent != 1)
    stores = [kernel.buffer(s.buffer).offset(s.coords) for s in kernel.stores]
    a = _unit_axis(outs, stores)
    if a is None:
        return "the stores share no contiguous axis"
    b: Axis | None = None
    staged: list[Expr] = []
    for e in loads([s.value for s in kernel.stores]):
        offset = kernel.buffer(e.attr[0]).offset(e.attr[2])
        own = _unit_axis(outs, [offset])
        if own is None or own == a or dims.coefficient(offset, a.sym) in (None, 0) or _inside_index(kernel, e):
            continue
        if b is not None and own != b:
            return "two loads are contiguous along different axes, and neither is that of the stores"
        b = own
        staged.append(e)
    if b is None:
        return "every load is contiguous along the stores' axis"
    if len(staged) > MOST_TILES:
        return f"{len(staged)} loads would each need a tile in shared memory"
    return _merged(kernel, outs, a, b, staged)


def _unit_axis(axes: Sequence[Axis], offsets: Sequence[Dim]) -> Axis | None:
    found = [a for a in axes if all(dims.coefficient(o, a.sym) == 1 for o in offsets)]
    return found[0] if len(found) == 1 else None


def _inside_index(kernel: Kernel, e: Expr) -> bool:
    """True if the load only serves as an index of another load: it can't be replaced by a variable there."""
    for s in kernel.stores:
        for other in loads([s.value]):
            for c in other.attr[2]:
                if any(e in loads([d.payload]) for d in dims.dynamic_atoms(c)):  # type: ignore[list-item]
                    return True
    return False


def _merged(kernel: Kernel, outs: tuple[Axis, ...], a: Axis, b: Axis, staged: list[Expr]) -> Plan:
    """Merges axes that are neighbours in memory on both sides, and flattens all but the two of the tile."""
    tracked = [kernel.buffer(s.buffer).offset(s.coords) for s in kernel.stores]
    tracked += [kernel.buffer(e.attr[0]).offset(e.attr[2]) for e in staged]
    groups: list[list[Axis]] = []
    for x in outs:
        if groups and all(_steps_over(o, groups[-1][-1], x) for o in tracked):
            groups[-1].append(x)
        else:
            groups.append([x])
    table: dict[dims.Atom, Dim] = {}
    flat: dict[str, Axis] = {}
    for role, members in (
        ("a", next(g for g in groups if a in g)),
        ("b", next(g for g in groups if b in g)),
        ("outer", [x for g in groups if a not in g and b not in g for x in g]),
    ):
        flat[role], part = collapse(members, role)
        table |= part
    new = rewrite(kernel, {"out": (flat["outer"], flat["a"], flat["b"])}, table)
    # the staged loads again, in the rewritten expressions
    again = rewrite(replace(kernel, loads={str(n): e for n, e in enumerate(staged)}), {}, table).loads
    return Plan(new, flat["outer"], flat["a"], flat["b"], tuple(again[str(n)] for n in range(len(staged))))


def _steps_over(offset: Dim, outer: Axis, inner: Axis) -> bool:
    whole, part = dims.coefficient(offset, outer.sym), dims.coefficient(offset, inner.sym)
    return whole is not None and part is not None and whole == part * inner.extent


def render_transpose(kernel: Kernel, tactic: TransposeTactic, arch: str) -> KernelSource:
    """Renders for any architecture. Raises ValueError where ``supports`` gives a reason."""
    p = plan(kernel)
    if isinstance(p, str):
        raise ValueError(p)
    hooks = Hooks(p.kernel)
    args = [("outer", p.outer.sym), ("a", p.a.sym), ("b", p.b.sym)]
    read = min(vector_width(p.kernel, p.b.extent, [e], (), p.b.sym) for e in p.staged)
    tiles, functions, bytes_ = _tiles(hooks, p, args, min(read, tactic.along_load), tactic)
    read = min(read, tactic.along_load)
    swap = {e: variable(t.name, e.dtype) for e, t in zip(p.staged, tiles)}
    stores = tuple(replace(s, value=substitute(s.value, swap.get)) for s in p.kernel.stores)
    write = min(vector_width(p.kernel, p.a.extent, [s.value for s in stores], stores, p.a.sym), tactic.along_store)
    given = {t.name: (t.name, e.dtype, True) for e, t in zip(p.staged, tiles)}
    functions.append(hooks.store("store_a", stores, args, lane=p.a.sym, width=write, variables=given))
    count_a, count_b = dims.ceildiv(p.a.extent, tactic.along_store), dims.ceildiv(p.b.extent, tactic.along_load)
    return render(
        "pointwise/transpose.cu.j2", p.kernel, hooks.params, arch="sm_80",
        grid=(count_a * count_b * p.outer.extent, 1, 1), block=(tactic.threads, 1, 1), shared_bytes=bytes_,
        functions=functions, tiles=tiles, tactic=tactic, read=read, write=write,
        tiles_a=hooks.params.scalar("tiles_a", count_a), tiles_b=hooks.params.scalar("tiles_b", count_b),
        extent_a=hooks.params.scalar("extent_a", p.a.extent), extent_b=hooks.params.scalar("extent_b", p.b.extent),
    )  # fmt: skip


def _tiles(
    hooks: Hooks, p: Plan, args: Sequence[tuple[str, dims.Sym]], width: int, tactic: TransposeTactic
) -> tuple[list[Tile], list[str], int]:
    """The shared arrays, their load hooks, and the bytes of all arrays.

    Rows are padded to an odd number of 32-bit words, so that neither side's accesses pile up in one bank.
    """
    tiles: list[Tile] = []
    functions: list[str] = []
    offset = 0
    for n, e in enumerate(p.staged):
        stored: DType = e.attr[1]
        half, pitch = stored.is_half, tactic.along_load + max(1, 4 // stored.size)
        functions.append(hooks.load(f"load_b{n}", e, args, lane=p.b.sym, width=width))
        to_storage = f"from_f32<{stored.cuda}>" if half else ""
        to_compute = "to_f32" if half else ""
        tiles.append(Tile(f"load_b{n}", f"x{n}", stored.cuda, e.dtype.cuda, to_storage, to_compute, offset, pitch))
        offset += -(-tactic.along_store * pitch * stored.size // 16) * 16
    return tiles, functions, offset


__all__ = ["TransposeTactic", "plan", "render_transpose", "supports", "tactics"]
