"""Matrix products in normal form: one index each for batch, row, column and k, and the best way to read each operand.

``acc[b, m, n] = sum over k of a(b, m, k) * b(b, k, n)``, of integers perhaps ``b(b, k, n) - zero(b, n)``. Several axes
of one role are flattened to one index, whose quotients and remainders cancel in addresses where the axes are contiguous
in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arcweld.codegen.kernel import Axis, Kernel, Store
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import collapse
from arcweld.codegen.printing.params import Params
from arcweld.codegen.printing.printer import Block, index_type
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, Sym
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, cast, loads, substitute_dim, substitute_index, walk

COPY_BYTES = 16  # of one asynchronous copy
NEAR = 24  # elements between neighbouring rows, up to which a warp's accesses share cache lines
UNKNOWN_EXTENT = 512  # of a dimension without an upper bound


@dataclass(frozen=True, slots=True)
class Operand:
    """How an implementation reads ``a`` or ``b``.

    row       the axis beside k: m for ``a``, n for ``b``
    along_k   neighbouring lanes of an access differ in k; else in the row
    width     lanes of one access through the load hook: 1, 2, 4 or 8; divides the lane axis' extent
    source    the load, if the operand is just one (perhaps masked), else None
    fill      what a masked element of the source is, where the operand is a constant there; else 0
    copyable  16 contiguous, aligned bytes can be copied as they are, with one mask for all of them
    by_rows   with accesses of one element, neighbouring threads should take neighbouring rows, not neighbouring k
    """

    expr: Expr
    row: Axis
    along_k: bool
    width: int
    source: Expr | None
    copyable: bool
    by_rows: bool = False
    fill: int = 0

    @property
    def storage(self) -> DType | None:
        """The loaded type if the operand is just one load, else None."""
        return None if self.source is None else _stored_type(self.source)

    @property
    def masked(self) -> bool:
        """True if the operand is just one load, and that has a mask."""
        return self.source is not None and bool(self.source.args)

    @property
    def start(self) -> str:
        """C text of the loaded buffer's pointer."""
        assert self.source is not None, "only a single load has a buffer"
        return f"p.{self.source.attr[0]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """The normal form of a ``contract`` kernel, or of a ``conv`` kernel as a matrix product.

    ``stores`` are in terms of the flat indices; ``acc`` is the type of the sums; ``zero`` is the zero point of ``b`` in
    that type (None: there is none). ``ends``: where the rows end that belong to each index of batch; None: all rows
    belong to each.
    """

    kernel: Kernel
    batch: Axis
    m: Axis
    n: Axis
    k: Axis
    a: Operand
    b: Operand
    stores: tuple[Store, ...]
    acc: DType
    zero: Expr | None = None
    ends: Expr | None = None

    @property
    def itype(self) -> str:
        """C type of indices and addresses: ``int`` or ``long long``."""
        return index_type(self.kernel)

    def epilogue_reads(self) -> int:
        """The number of loads in the epilogue that depend on the row: a residual does, a bias does not."""
        found = loads([s.value for s in self.stores])
        return sum(dims.mentions(_offset(self.kernel, x), self.m.sym) for x in found)

    def rows_together(self, columns: int, width: int) -> int:
        """How many accesses of an epilogue over 16 x ``columns`` a thread reads for before it stores the first.

        Where the epilogue reads operands for each row, such reads overlap; elsewhere they would only cost registers.
        """
        return min(columns // width // 2, 4) if self.epilogue_reads() else 1

    def store_width(self) -> int:
        """Neighbouring columns of one access of the epilogue; divides their number."""
        return vector_width(self.kernel, self.n.extent, [s.value for s in self.stores], self.stores, self.n.sym)


def problem_of(
    kernel: Kernel, roles: Sequence[Sequence[Axis]] | None = None, a_role: str = "a", b_role: str = "b"
) -> Problem:
    """The normal form of a kernel.

    ``roles``: the axes that become batch, m, n and k; None: the kernel's axes of those names. ``a_role`` and ``b_role``
    name the operands' loads.
    """
    if roles is None:
        if "problem" not in kernel.memo:
            named = [kernel.axes.get(r, ()) for r in ("batch", "m", "n", "k")]
            kernel.memo["problem"] = problem_of(kernel, named, a_role, b_role)
        found: Problem = kernel.memo["problem"]
        return found
    flats, table = [], {}
    for name, axes in zip(("_b", "_m", "_n", "_k"), roles, strict=True):
        flat, part = collapse(axes, name)
        flats.append(flat)
        table.update(part)
    batch, m, n, k = flats
    stores = tuple(_substituted(s, table) for s in kernel.stores)
    a = classify(kernel, substitute_index(kernel.loads[a_role], table), m, k)
    b = classify(kernel, substitute_index(kernel.loads[b_role], table), n, k)
    sums = [e.dtype for e in walk([s.value for s in stores]) if e.op == "var" and e.attr == "acc"]
    acc = sums[0] if sums else a.expr.dtype
    zero = cast(substitute_index(kernel.loads["zero"], table), acc) if "zero" in kernel.loads else None
    ends = substitute_index(kernel.loads["ends"], table) if "ends" in kernel.loads else None
    return Problem(kernel, batch, m, n, k, a, b, stores, acc, zero, ends)


def _substituted(s: Store, table: Mapping[dims.Atom, Dim]) -> Store:
    mask = None if s.mask is None else substitute_index(s.mask, table)
    coords = tuple(substitute_dim(c, table) for c in s.coords)
    return replace(s, coords=coords, value=substitute_index(s.value, table), mask=mask)


def conv_problem(kernel: Kernel) -> Problem:
    """A ``conv`` kernel as a matrix product (implicit GEMM).

    Groups are the batch, rows are the output pixels of all images, columns the output channels of a group. k runs over
    taps and input channels, in the order in which the input is read in wider accesses.
    """
    if "conv_problem" not in kernel.memo:
        kernel.memo["conv_problem"] = _conv_problem(kernel)
    found: Problem = kernel.memo["conv_problem"]
    return found


def _conv_problem(kernel: Kernel) -> Problem:
    axes = kernel.axes
    outer = (axes["g"], (*axes["n"], *axes["out"]), axes["co"])
    channels_last = problem_of(kernel, (*outer, (*axes["tap"], *axes["ci"])), "a", "w")
    if channels_last.a.width > 1 or axes["ci"][0].extent == 1:
        return channels_last
    channels_first = problem_of(kernel, (*outer, (*axes["ci"], *axes["tap"])), "a", "w")
    return channels_first if channels_first.a.width > 1 else channels_last


def classify(kernel: Kernel, e: Expr, row: Axis, k: Axis) -> Operand:
    """The best way to read ``e``: wide accesses along whichever of ``row`` and ``k`` is contiguous in memory."""
    widths = [vector_width(kernel, ax.extent, [e], (), ax.sym) if loads([e]) else 1 for ax in (k, row)]
    along_k = widths[0] > widths[1] or (widths[0] == widths[1] and not _unit_stride(kernel, e, row.sym, k.sym))
    lane = k if along_k else row
    source, fill = _single_load(e)
    copyable = source is not None and _copyable(kernel, source, lane)
    by_rows = max(widths) == 1 and _stride(kernel, e, row, k) < min(NEAR, _stride(kernel, e, k, row))
    return Operand(e, row, along_k, max(widths), source, copyable, by_rows, fill)


def _single_load(e: Expr) -> tuple[Expr | None, int]:
    """The load that ``e`` is, and what ``e`` is where that is masked: 0, or of bytes a constant; None for no load."""
    if e.op == "load":
        return e, 0
    if e.op == "where" and e.dtype in (DType.I8, DType.U8):
        mask, x, other = e.args
        if x.op == "load" and x.args == (mask,) and other.op == "const":
            return x, int(other.attr)
    return None, 0


def _stored_type(load: Expr) -> DType:
    found: DType = load.attr[1]
    return found


def _stride(kernel: Kernel, e: Expr, along: Axis, other: Axis) -> int:
    """Elements between the accesses at neighbouring indices of ``along``: the median over five places."""
    found = max(loads([e]), key=lambda x: len(dims.free_symbols(_offset(kernel, x))), default=None)
    if found is None or dims.dynamic_atoms(_offset(kernel, found)):
        return UNKNOWN_EXTENT
    offset = _offset(kernel, found)
    env = {s.name: likely(dims.var(s)) for s in dims.free_symbols(offset)}
    steps = []
    for place in range(5):
        env[other.sym.name] = likely(other.extent) * place // 5
        ends = []
        for step in (0, 1):
            env[along.sym.name] = min(likely(along.extent) * place // 5 + step, likely(along.extent) - 1)
            ends.append(dims.evaluate(offset, env))
        steps.append(abs(ends[1] - ends[0]))
    return sorted(steps)[2]


def _offset(kernel: Kernel, load: Expr) -> Dim:
    return kernel.buffer(load.attr[0]).offset(load.attr[2])


def _unit_stride(kernel: Kernel, e: Expr, sym: Sym, other: Sym) -> bool:
    """True if some load moves by one element when ``sym`` moves by one: of those that ``other`` moves too, if any.

    Scales of rows are neighbours where the elements, which are more, are not.
    """
    offsets = [_offset(kernel, x) for x in loads([e])]
    whole = [d for d in offsets if dims.mentions(d, other)]
    return any(dims.coefficient(d, sym) == 1 for d in whole or offsets)


def _copyable(kernel: Kernel, e: Expr, lane: Axis) -> bool:
    storage = _stored_type(e)
    if storage.is_packed:  # tensor cores get what such a type converts to
        return False
    width = COPY_BYTES // storage.size
    if not dims.is_multiple(lane.extent, width):
        return False
    block = Block(Params(kernel), {lane.sym: "i"}, lane=lane.sym, width=width)
    if any(block.is_laned(mask) for mask in e.args):
        return False
    return block.contiguous(kernel.buffer(e.attr[0]), e.attr[2]) is not None


def address_hook(
    hooks: Hooks, fn: str, operand: Operand, args: Sequence[tuple[str, Sym]], lane: Sym, width: int = 0
) -> str:
    """The text of ``bool fn(const Params& p, int b, int row, int k, const T*& at)`` for a copyable operand.

    ``at`` becomes the address of 16 bytes, or of ``width`` elements. The function returns false where the mask is
    false; ``at`` is then the buffer's start, a valid address whose data must not be used.
    """
    assert operand.source is not None, "address_hook needs a copyable operand"
    name, storage, coords = operand.source.attr
    block = Block(hooks.params, {s: c for c, s in args}, lane=lane, width=width or COPY_BYTES * 8 // storage.bits)
    buffer = hooks.kernel.buffer(name)
    base = block.contiguous(buffer, coords)
    assert base is not None, "address_hook needs a copyable operand"
    mask = block.value(operand.source.args[0]) if operand.masked else None
    start = hooks.params.buffer(name)
    place = block.place(start, dims.floordiv(base, storage.per_byte))  # a packed type's pointer counts bytes
    where = f"{mask} ? {place} : {start}" if mask else place
    listed = ", ".join(["const Params& p", *(f"{block.itype} {c}" for c, _ in args)])
    head = f"__device__ __forceinline__ bool {fn}({listed}, const {storage.cuda}*& at) {{"
    tail = [f"at = {where};", f"return {mask or 'true'};"]
    return "\n".join([head, *block.finish(), *("  " + t for t in tail), "}"])


def zero_hook(hooks: Hooks, problem: Problem) -> str:
    """The text of ``load_zero(p, b, n, out)``, which gives the zero point of column n; empty if there is none."""
    args = [("b", problem.batch.sym), ("n", problem.n.sym)]
    return "" if problem.zero is None else hooks.load("load_zero", problem.zero, args)


def tile_count(problem: Problem, rows: int, columns: int) -> Dim:
    """The number of tiles of ``rows`` x ``columns``: of rows in groups, the most that there can be.

    Each group may fill its last tile in part, and so may the rows that belong to none.
    """
    m, batch, across = problem.m.extent, problem.batch.extent, dims.ceildiv(problem.n.extent, columns)
    if problem.ends is None:
        return batch * dims.ceildiv(m, rows) * across
    return dims.minimum(m, dims.floordiv(m + (batch + 1) * (rows - 1), rows)) * across


def tile_context(hooks: Hooks, problem: Problem, rows: int, columns: int) -> dict[str, Any]:
    """What a template prints to find the tile of a block: of rows in groups, the hook of their ends too."""
    across = dims.ceildiv(problem.n.extent, columns)
    if problem.ends is None:
        tiles_m = extent(hooks, "tiles_m", dims.ceildiv(problem.m.extent, rows))
        return {"ends": "", "tiles_m": tiles_m, "tiles_n": extent(hooks, "tiles_n", across)}
    ends = hooks.load("load_end", problem.ends, [("b", problem.batch.sym)])
    groups = hooks.params.scalar("groups", problem.batch.extent)
    tiles_n = extent(hooks, "tiles_n", across)
    return {"ends": ends, "end_type": problem.ends.dtype.cuda, "groups": groups, "tiles_n": tiles_n}


def extent(hooks: Hooks, name: str, value: Dim) -> str:
    """C text of an extent for contract.cuh: ``Known<…>()`` of a constant, or ``Parameter{…}`` of a launch parameter."""
    text = hooks.params.scalar(name, value)
    return f"Known<{text}>()" if isinstance(value, int) else f"Parameter{{{text}}}"


def most(extent: Dim) -> int | None:
    """The upper bound of an extent, None if there is none."""
    return dims.bounds(extent)[1]


def likely(extent: Dim) -> int:
    """The extent that estimates assume, at least 1: of a symbolic one its upper bound, or else a guess."""
    if isinstance(extent, int):
        return max(extent, 1)
    lo, hi = dims.bounds(extent)
    return max(hi, 1) if hi is not None else max(lo or 1, UNKNOWN_EXTENT)
