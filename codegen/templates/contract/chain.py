"""The chain template: a product of few rows, the norm of its rows before it, and results that read its tile behind it.

Roles: as of ``contract`` without ``batch``, where the number of rows may be open, and axes ``part0``, ``part1``, … over
the columns of each store, and one more over the elements that are made from one column, where these are several; loads
``a`` and ``b``. With ``stages`` (as of ``rowwise``) also ``x``, the element of a row, and ``row``, what becomes of it:
the array ``left``, from which ``a`` is read. Stores are over ``m`` and the axis of their part, and read the array
``tile``. Attributes: as of ``contract``; ``stages``; ``unit`` (see ``region.Chain``); ``part0``, …: the first column
and the columns between neighbours along each axis. ``heads``: the number of row-wise operators behind the product. Each
has axes ``head0``, …, an attribute of that name, its ``head0_stages``, and an array for each statistic, by unit.

``gemv`` or ``few_rows`` renders it. A block computes whole units; its columns are then one run of neighbours, or runs
that are the unit's stride apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Buffer, Kernel, KernelSource
from arcweld.codegen.printing.approximate import approximate
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.printer import from_compute
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.contract import few_rows, gemv
from arcweld.codegen.templates.contract.few_rows import FewRows, FewRowsTactic
from arcweld.codegen.templates.contract.gemv import GemvTactic
from arcweld.codegen.templates.contract.problem import Problem, problem_of
from arcweld.codegen.templates.implementation import Implementation
from arcweld.codegen.templates.reduce.statistics import PrintedStage, index_args, print_stages
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr

TILE, LEFT = "tile", "left"
ALIGNMENT = 16  # bytes of shared memory, for vectors
WAVES = (1, 2, 4, 8, 16, 32)
RESIDENT = 2  # blocks of a multiprocessor


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why no tactic fits the kernel, or None."""
    if reason := gemv.supports(problem_of(kernel), arch):
        return reason
    members, stride = kernel.attrs["unit"]
    return None if tactics(kernel, arch) else f"no block has whole units of {members} columns {stride} apart"


def tactics(kernel: Kernel, arch: str) -> tuple[GemvTactic, ...]:
    """Those of ``gemv`` with as many waves as whole units take, by estimated cost."""
    return _fitting(kernel, arch)[1]


def _fitting(kernel: Kernel, arch: str) -> tuple[Problem, tuple[GemvTactic, ...]]:
    """The normal form with the widest accesses for which there are tactics, and those."""
    problem = problem_of(kernel)
    while True:
        found = [replace(t, waves=w) for t in gemv.tactics(problem, arch) for w in WAVES]
        least: dict[GemvTactic, GemvTactic] = {}
        for t in found:
            if _run(kernel, problem, t):
                least.setdefault(replace(t, waves=1), t)
        if least or problem.b.width == 1:
            ranked = sorted(least.values(), key=lambda t: gemv.cost(problem, t, arch))
            return problem, tuple(ranked)
        problem = replace(problem, b=replace(problem.b, width=problem.b.width // 2))


def _few_rows(kernel: Kernel, engine: FewRows) -> tuple[FewRowsTactic, ...]:
    """Those of ``engine`` with as many waves as whole units take, by estimated cost.

    A norm's result is the sum of two numbers where that fills rows of the instruction's tile that are unused; else one,
    of the type that the graph gives it. The best tactic with the other comes last.
    """
    problem = problem_of(kernel)
    if not kernel.attrs["stages"]:
        return _whole_units(kernel, problem, engine.tactics(problem, engine.ARCH))
    halves = (2, 1) if 2 * gemv.most_rows(problem) <= few_rows.TILE_ROWS else (1, 2)
    every = (few_rows.candidates(problem, engine.streaming, h) for h in halves)
    first, other = (_whole_units(kernel, problem, [t for t in found if t.resident]) for found in every)
    return (*few_rows.ranked(problem, first), *few_rows.ranked(problem, other)[:1])


def _whole_units(kernel: Kernel, problem: Problem, found: Iterable[FewRowsTactic]) -> tuple[FewRowsTactic, ...]:
    """The tactics with the least waves that make whole units, where a block then has enough shared memory."""
    able = []
    for plain in found:
        several = (replace(plain, waves=w) for w in WAVES)
        t = next((t for t in several if _run(kernel, problem, t)), None)
        if t is not None and _layout(kernel, problem, t).end <= t.limit:
            able.append(t)
    return tuple(able)


def _block_columns(problem: Problem, t: GemvTactic | FewRowsTactic) -> int:
    """Columns of a tile."""
    return gemv.block_columns(problem.b, t) if isinstance(t, GemvTactic) else t.block_columns


def _run(kernel: Kernel, problem: Problem, t: GemvTactic | FewRowsTactic) -> int:
    """The neighbouring columns of a block: all that it has, or those of one member of its units. 0: it can't be."""
    members, stride = kernel.attrs["unit"]
    columns = _block_columns(problem, t)
    units = columns // members
    if columns % members or units == 0:
        return 0
    if units % stride == 0:
        return columns
    whole = problem.b.along_k or (stride % units == 0 and units % problem.b.width == 0)  # vectors along the columns
    return units if whole else 0


def render_chain(kernel: Kernel, t: GemvTactic | FewRowsTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch`` that the tactic is for."""
    problem = _fitting(kernel, arch)[0] if isinstance(t, GemvTactic) else problem_of(kernel)
    kernel = _local(kernel, problem, t)
    problem = replace(problem, kernel=kernel)
    hooks = Hooks(kernel)
    printed = PrintedChain(
        _arrays(kernel.scratch, problem, t), _before(hooks, problem) if kernel.attrs["stages"] else None,
        [_head(hooks, problem, j) for j in range(kernel.attrs["heads"])],
        [_part(hooks, problem, i) for i in range(len(kernel.stores))], tile_count(problem, t),
    )  # fmt: skip
    around = {
        "unit": kernel.attrs["unit"], "chain": printed, "stages": printed.before.stages if printed.before else (),
        "width": printed.before.width if printed.before else 1, "run": _run(kernel, problem, t),
    }  # fmt: skip
    if isinstance(t, FewRowsTactic):
        return few_rows.render_page(problem, t, hooks, _layout(kernel, problem, t), **around)
    return gemv.render_page(problem, t, hooks, shared_bytes=printed.shared_bytes, blocks=printed.blocks, **around)


def tile_count(problem: Problem, t: GemvTactic | FewRowsTactic) -> int:
    """Tiles of columns."""
    count = dims.ceildiv(problem.n.extent, _block_columns(problem, t))
    assert isinstance(count, int)
    return count


def _local(kernel: Kernel, problem: Problem, t: GemvTactic | FewRowsTactic) -> Kernel:
    """The kernel over the normal form's axes, with places in a block's arrays instead of the product's columns."""
    (m,), (k,) = kernel.axes["m"], kernel.axes["k"]
    table = {m.sym: problem.m.index, k.sym: problem.k.index}
    place = _places(kernel.attrs["unit"], _run(kernel, problem, t), _block_columns(problem, t))

    def change(e: Expr) -> Expr:
        return expr.substitute(expr.substitute_index(e, table), place)

    loads = {role: change(e) for role, e in kernel.loads.items()} | {"a": problem.a.expr, "b": problem.b.expr}
    stages = {k: tuple(s.mapped(change) for s in v) for k, v in kernel.attrs.items() if k.endswith("stages")}
    stores = tuple(replace(s, value=change(s.value)) for s in problem.stores)
    scratch = _scratch(kernel, problem, t)
    return replace(kernel, loads=loads, stores=stores, scratch=scratch, attrs={**kernel.attrs, **stages})


def _scratch(kernel: Kernel, problem: Problem, t: GemvTactic | FewRowsTactic) -> tuple[Buffer, ...]:
    """The arrays in shared memory as one block has them."""
    columns, rows = _block_columns(problem, t), gemv.most_rows(problem)
    units = columns // kernel.attrs["unit"][0]
    left = (rows, problem.k.extent) if isinstance(t, GemvTactic) else (t.halves * rows, few_rows.pitch(problem))
    shapes = {TILE: (rows, columns), LEFT: left}
    return tuple(replace(b, shape=shapes.get(b.name, (rows, units))) for b in kernel.scratch)


def _places(unit: tuple[int, int], run: int, columns: int) -> Callable[[Expr], Expr | None]:
    """Replaces a column at which the tile is read, and a unit of a statistic, by its place in the block's arrays."""
    members, stride = unit

    def place(column: Dim) -> Dim:
        if run == columns:
            return dims.mod(column, columns)
        whole = dims.floordiv(column, members * stride) * stride + dims.mod(column, stride)
        return dims.mod(dims.floordiv(column, stride), members) * run + dims.mod(whole, run)

    def change(e: Expr) -> Expr | None:
        if e.op != "load" or not (e.attr[0] == TILE or e.attr[0].startswith("head")):
            return None
        name, dtype, (row, index) = e.attr
        at = place(index) if name == TILE else dims.mod(index, columns // members)
        return expr.load(name, dtype, (row, at), e.args[0] if e.args else None)

    return change


@dataclass(frozen=True, slots=True)
class SharedArray:
    """An array in shared memory behind the partial sums: its declaration, and where it ends, in bytes."""

    text: str
    end: int


def _arrays(scratch: Iterable[Buffer], problem: Problem, t: GemvTactic | FewRowsTactic) -> list[SharedArray]:
    sums = gemv.partial_bytes(problem, t) if isinstance(t, GemvTactic) else few_rows.partial_bytes(problem, t)
    at = max(sums, 4 * gemv.WARPS)
    found = []
    for b in scratch:
        at = -(-at // ALIGNMENT) * ALIGNMENT
        shape = "".join(f"[{d}]" for d in b.shape)
        ctype, start = b.dtype.cuda, f"reinterpret_cast<char*>(partial) + {at}"
        size = dims.product(b.shape)
        assert isinstance(size, int)
        at += size * b.dtype.size
        found.append(SharedArray(f"{ctype}* const {b.name} = reinterpret_cast<{ctype}*>({start});  // {shape}", at))
    return found


def _layout(kernel: Kernel, problem: Problem, t: FewRowsTactic) -> few_rows.Layout:
    """Where the arrays of ``few_rows`` lie behind those of the chain."""
    arrays = _arrays(_scratch(kernel, problem, t), problem, t)
    return few_rows.layout(problem, t, arrays[-1].end, own_left=not kernel.attrs["stages"])


# ------------------------------------------------------------------------------------------------ behind the product


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the product a part has.

    start    the first one
    strides  columns between neighbours along each axis, the slowest first
    extents  of these axes
    repeats  the elements that are made from one of them
    """

    start: int
    strides: tuple[int, ...]
    extents: tuple[Dim, ...]
    repeats: Dim

    @property
    def condition(self) -> str:
        """C text of the test that column ``n`` is one of them."""
        tests = [f"{self.start} <= n"] if self.start else []
        inner = None
        for stride, extent, index in zip(self.strides, self.extents, self._indices("n")):
            if inner is None or inner != stride * extent:
                tests.append(f"{index} < {extent}")
            inner = stride
        if self.strides and self.strides[-1] > 1:
            tests.append(f"{self._rest('n')} % {self.strides[-1]} == 0")
        return " && ".join(tests or ["n == 0"])

    def place(self, n: str) -> str:
        """C text of the indices along the axes of column ``n``, as arguments."""
        return ", ".join([*self._indices(n), *(["again"] if self.repeats != 1 else [])])

    def _rest(self, n: str) -> str:
        return f"({n} - {self.start})" if self.start else (f"({n})" if " " in n else n)

    def _indices(self, n: str) -> list[str]:
        """The index along each axis."""
        found, rest = [], self._rest(n)
        for stride in self.strides:
            found.append(rest if stride == 1 else f"{rest} / {stride}")
            rest = f"{rest} % {stride}"
        return found


def _columns(kernel: Kernel, name: str) -> Columns:
    start, strides = kernel.attrs[name]
    extents = tuple(a.extent for a in kernel.axes[name])
    count = len(strides)
    return Columns(start, strides, extents[:count], dims.product(extents[count:]))


@dataclass(frozen=True, slots=True)
class PrintedPart:
    """The hook ``name(p, m, indices…, arrays…)`` of a part."""

    name: str
    text: str
    columns: Columns
    arrays: str

    @property
    def loop(self) -> str:
        """C text of the head of a loop over the elements that are made from one column."""
        repeats = self.columns.repeats
        return "" if repeats == 1 else f"for (int again = 0; again < {repeats}; ++again) "


def _part(hooks: Hooks, problem: Problem, i: int) -> PrintedPart:
    kernel, name = hooks.kernel, f"store_part{i}"
    stores = approximate(kernel, [kernel.stores[i]])
    args = [("m", problem.m.sym), *index_args(*kernel.axes[f"part{i}"])]
    text = hooks.store(name, stores, args)
    return PrintedPart(name, text, _columns(kernel, f"part{i}"), _passed(hooks, [s.value for s in stores]))


def _passed(hooks: Hooks, roots: Sequence[Expr]) -> str:
    """The arrays that hooks take, as arguments behind others."""
    read = {e.attr[0] for e in expr.walk(roots) if e.op == "load"}
    return "".join(f", {b.name}" for b in hooks.kernel.scratch if b.name in read)


@dataclass(frozen=True, slots=True)
class PrintedHead:
    """The statistics of a row-wise operator behind the product. ``arrays``: what each stage's hook reads."""

    functions: list[str]
    stages: list[PrintedStage]
    columns: Columns
    arrays: list[str]

    @property
    def reads_heads(self) -> bool:
        """True if its rows are made from the results of other heads."""
        return any(", head" in a for a in self.arrays)

    def earlier(self, count: int) -> str:
        """The first ``count`` statistics as arguments behind others."""
        return "".join(f", row_{s.name}[0]" for s in self.stages[:count])


def _head(hooks: Hooks, problem: Problem, j: int) -> PrintedHead:
    kernel = hooks.kernel
    args = [("m", problem.m.sym), *index_args(*kernel.axes[f"head{j}"])]
    stages = kernel.attrs[f"head{j}_stages"]
    functions, printed, _ = print_stages(hooks, stages, args, args[:1], {}, prefix=f"head{j}_")
    return PrintedHead(functions, printed, _columns(kernel, f"head{j}"), [_passed(hooks, [s.value]) for s in stages])


# ------------------------------------------------------------------------------------------------ before the product


@dataclass(frozen=True, slots=True)
class PrintedRows:
    """The rows before a product: hooks, statistics, ``width`` neighbouring elements of a thread, ``lanes`` of a row."""

    functions: list[str]
    stages: list[PrintedStage]
    width: int
    lanes: int
    ctype: str
    storage: DType

    @property
    def rounded(self) -> str:
        """C text of an element ``filled[e]`` as it is stored."""
        return from_compute(self.storage, "filled[e]")


def _before(hooks: Hooks, problem: Problem) -> PrintedRows:
    kernel, m, k = hooks.kernel, problem.m, problem.k
    x, row, stages = kernel.loads["x"], kernel.loads["row"], kernel.attrs["stages"]
    width = vector_width(kernel, k.extent, [x, row, *(s.value for s in stages)], (), k.sym)
    element = {"x": ("x", x.dtype, True)}
    args = index_args(m, k)
    functions, printed, known = print_stages(hooks, stages, args, args[:1], element, lane=k.sym, width=width)
    functions.insert(0, hooks.load("load_x", x, args, lane=k.sym, width=width))
    functions.append(hooks.load("fill_row", row, args, lane=k.sym, width=width, variables=known))
    lanes = 32 * gemv.WARPS if m.extent == 1 else 32
    return PrintedRows(functions, printed, width, lanes, x.dtype.cuda, problem.a.expr.attr[1])


@dataclass(frozen=True, slots=True)
class PrintedChain:
    """What the template prints round the product."""

    arrays: list[SharedArray]
    before: PrintedRows | None
    heads: list[PrintedHead]
    parts: list[PrintedPart]
    tiles: int

    @property
    def blocks(self) -> int:
        """So many that all run at once: each computes the rows before the product, which takes as long as a tile."""
        return min(self.tiles, RESIDENT * SMS) if self.before else self.tiles

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return self.arrays[-1].end

    @property
    def functions(self) -> list[str]:
        """The texts of all hooks."""
        groups = [self.before.functions if self.before else [], *(h.functions for h in self.heads)]
        return [*(f for g in groups for f in g), *(p.text for p in self.parts)]


def _implementation(name: str, engine: FewRows) -> Implementation:
    def supported(kernel: Kernel, arch: str) -> str | None:
        if reason := engine.supports(problem_of(kernel), arch):
            return reason
        return None if _few_rows(kernel, engine) else "no block has whole units and enough shared memory"

    return Implementation(name, engine.ARCH, render_chain, lambda kernel, arch: _few_rows(kernel, engine), supported)


IMPLEMENTATIONS = (
    _implementation("gemv_stream", few_rows.STREAM),
    _implementation("gemv_mma", few_rows.MMA),
    Implementation("gemv", gemv.ARCH, render_chain, tactics, supports),
)
