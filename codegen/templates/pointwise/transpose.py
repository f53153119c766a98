"""Pointwise kernels that transpose: they read along one axis and write along another, through a tile in shared memory.

So both sides move whole vectors. Loads that are contiguous along another axis than the stores are *staged*, each in a
tile of its own; all others are done where the result is written. Roles as in ``pointwise``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Axis, Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import collapse, most, power_of_two_at_least, rewrite
from arcweld.codegen.printing.render import overlapping, render
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, loads, substitute, variable

UNBOUNDED = 1 << 30  # stands for the extent of an axis without an upper bound
MOST_TILES = 8  # the most loads that are staged in one kernel


@dataclass(frozen=True, slots=True)
class TransposeTactic:
    """The tile's extents along the stores' contiguous axis and along the loads', and the threads of a block."""

    along_store: int
    along_load: int
    threads: int = 256


@dataclass(frozen=True, slots=True)
class Tiling:
    """A kernel over three axes: ``a`` (contiguous for stores), ``b`` (for staged loads), and ``outer``, all others."""

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
    """A staged load as the template prints it.

    hook                    the load hook's name
    name                    the shared array, and the variable of the loaded element
    storage, ctype          C types in shared memory and in registers; ``to_storage``, ``to_compute`` convert
    offset                  bytes from the start of shared memory
    pitch                   elements between rows
    """

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
    p = tiling(kernel)
    if isinstance(p, str):
        return ()
    side = 64 if p.element <= 2 else 32
    sizes = [(side, side), (side, 2 * side), (2 * side, side), (64, 64), (32, 32)]
    return tuple(dict.fromkeys(fitted(p, *size) for size in sizes))


def fitted(p: Tiling, along_store: int, along_load: int) -> TransposeTactic:
    """The tactic of a tile of about the given extents.

    A tile is no longer than a power of two that covers a short axis; it then grows along the other one, up to 512.
    """
    cells = along_store * along_load
    short_a = power_of_two_at_least(min(along_store, max(1, most(p.a.extent, UNBOUNDED))))
    short_b = power_of_two_at_least(min(along_load, max(1, most(p.b.extent, UNBOUNDED))))
    if short_a < along_store:
        short_b = min(cells // short_a, power_of_two_at_least(max(1, most(p.b.extent, UNBOUNDED))), 512)
    elif short_b < along_load:
        short_a = min(cells // short_b, power_of_two_at_least(max(1, most(p.a.extent, UNBOUNDED))), 512)
    return TransposeTactic(short_a, short_b)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why a tile doesn't help this kernel or can't be used, or None."""
    p = tiling(kernel)
    return p if isinstance(p, str) else None


def tiling(kernel: Kernel) -> Tiling | str:
    """The kernel over the axes of the tile, or the reason why there is no tile."""
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
        if e.attr[1].is_packed:  # a tile would take as much memory traffic as the bits themselves
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
    """True if the load is part of another load's coordinates, where no variable can replace it."""
    for s in kernel.stores:
        for other in loads([s.value]):
            for c in other.attr[2]:
                if any(e in loads([d.payload]) for d in dims.dynamic_atoms(c)):  # type: ignore[list-item]
                    return True
    return False


def _merged(kernel: Kernel, outs: tuple[Axis, ...], a: Axis, b: Axis, staged: list[Expr]) -> Tiling:
    """The kernel over outer, a and b; axes that are contiguous with a or b in every access are part of them."""
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
    return Tiling(new, flat["outer"], flat["a"], flat["b"], tuple(again[str(n)] for n in range(len(staged))))


def _steps_over(offset: Dim, outer: Axis, inner: Axis) -> bool:
    whole, part = dims.coefficient(offset, outer.sym), dims.coefficient(offset, inner.sym)
    return whole is not None and part is not None and whole == part * inner.extent


def render_transpose(kernel: Kernel, tactic: TransposeTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``. Raises ValueError where ``supports`` gives a reason."""
    p = tiling(kernel)
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
        tiled=(*overlapping(p.a.extent, tactic.along_store), *overlapping(p.b.extent, tactic.along_load)),
        functions=functions, tiles=tiles, tactic=tactic, read=read, write=write,
        tiles_a=hooks.params.scalar("tiles_a", count_a), tiles_b=hooks.params.scalar("tiles_b", count_b),
        extent_a=hooks.params.scalar("extent_a", p.a.extent), extent_b=hooks.params.scalar("extent_b", p.b.extent),
    )  # fmt: skip


def _tiles(
    hooks: Hooks, p: Tiling, args: Sequence[tuple[str, dims.Sym]], width: int, tactic: TransposeTactic
) -> tuple[list[Tile], list[str], int]:
    """The shared arrays, the texts of their load hooks, and the bytes of all arrays.

    Rows are padded by one 32-bit word or element, so that the accesses of both sides spread over the banks.
    """
    tiles: list[Tile] = []
    functions: list[str] = []
    offset = 0
    for n, e in enumerate(p.staged):
        stored: DType = e.attr[1]
        half, pitch = stored.compute is not stored, tactic.along_load + max(1, 4 // stored.size)
        functions.append(hooks.load(f"load_b{n}", e, args, lane=p.b.sym, width=width))
        to_storage = f"from_f32<{stored.cuda}>" if half else ""
        to_compute = "to_f32" if half else ""
        tiles.append(Tile(f"load_b{n}", f"x{n}", stored.cuda, e.dtype.cuda, to_storage, to_compute, offset, pitch))
        offset += -(-tactic.along_store * pitch * stored.size // 16) * 16
    return tiles, functions, offset


__all__ = ["TransposeTactic", "render_transpose", "supports", "tactics", "tiling"]
