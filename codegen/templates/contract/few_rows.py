"""Products of few rows on tensor cores: 16-bit weights that are contiguous along k, each read once, 16 bytes at a time.

``gemv_stream`` (sm_90a) brings them by bulk copies into a ring in shared memory, where each warp has stages of its own;
``gemv_mma`` loads them to registers. Both request the first weights before they wait for the kernel before. An element
of a row that is no number of the weights' type may be the sum of two such numbers, which fill unused rows of the tile.
Weights of fewer bits with scales (``stored.py``) are brought as they are, and unpacked in registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SHARED_LIMIT, SM90_SHARED_LIMIT, SMS
from arcweld.codegen.templates.contract.ffma import load_hook, store_hook
from arcweld.codegen.templates.contract.gemv import WARPS, most_rows, narrowed
from arcweld.codegen.templates.contract.mma import ELEMENTS, FLOAT8
from arcweld.codegen.templates.contract.problem import Operand, Problem, address_hook, likely, most
from arcweld.codegen.templates.contract.stored import print_stored, stored_of
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.few_rows import FEW_NARROW_ROWS, FEW_ROWS

TILE_ROWS = 8  # of the instruction's tile, which the rows take
PIECE = 8  # elements of k that a lane takes at once
LINE_PAD = 64  # bytes between lines of shared memory: those that a warp reads at once lie in different banks
ALIGNMENT = 128  # bytes of the arrays in shared memory
RESIDENT = 2  # blocks of gemv_mma on a multiprocessor
IN_FLIGHT = 64 << 10  # bytes of weights that a block of gemv_stream has requested
TILE = 2048  # 16-bit elements of a warp's request, at most
DEPTHS = (512, 256, 128, 64, 32)
READ_TILE = 1024  # the same in registers, where rows are read beside it
SHARED_COST = 0.06  # of a byte from shared memory, relative to one of weights (an estimate: half of its time)
# of a step that a lane holds, at most: twice as many beside weights in shared memory, else half as many beside zero
# points in bytes
SCALES = 16
SHORT_COPY = 12.8  # bytes that take as long as beginning a bulk copy (an estimate)


@dataclass(frozen=True, slots=True)
class FewRowsTactic:
    """How blocks share out a product of few rows.

    columns  columns of a warp: 8 or 16
    split    warps that share out k (the others take other columns)
    depth    elements of k that a warp requests at a time of each of its columns
    stages   such requests of a warp that are in flight in shared memory; 0: one, in registers
    halves   numbers of the weights' type whose sum is an element of a row: 1 or 2
    resident the rows lie in shared memory; else they are read where they are multiplied
    waves    how often a block does this for one tile, for other columns each time
    early    as in ``ContractTactic``
    """

    columns: int
    split: int
    depth: int
    stages: int
    halves: int = 1
    resident: bool = True
    waves: int = 1
    early: bool = True

    @property
    def implementation(self) -> str:
        """Which of the two implementations it belongs to."""
        return "gemv_stream" if self.stages else "gemv_mma"

    @property
    def arch(self) -> str:
        """The architecture that it is for."""
        return "sm_90a" if self.stages else "sm_80"

    @property
    def wave_columns(self) -> int:
        """Columns that a block computes at once."""
        return self.columns * (WARPS // self.split)

    @property
    def block_columns(self) -> int:
        """Columns of a tile."""
        return self.waves * self.wave_columns

    @property
    def limit(self) -> int:
        """Bytes of shared memory that a block may have."""
        return SM90_SHARED_LIMIT if self.stages else SHARED_LIMIT


# ----------------------------------------------------------------------------------------------------- what is served


def supports(problem: Problem, least: int, streaming: bool) -> str | None:
    """The reason why the problem, of ``least`` rows or more, is left to others; None if it isn't.

    Of stored weights one row is enough: ordinary arithmetic takes longer to unpack them.
    """
    rows, b, stored = most(problem.m.extent), problem.b, stored_of(problem)
    least = least if stored is None else 1
    if rows is None or not least <= rows <= FEW_NARROW_ROWS:
        return f"{problem.m.extent} rows, not {least} to {FEW_NARROW_ROWS}"
    element = _element(problem)
    if element is None or not element.is_half or problem.acc is not DType.F32:
        return "not a product of 16-bit numbers with f32 sums"
    plain = b.storage is element and b.along_k and b.copyable and not b.masked
    if not plain and stored is None:
        return f"b: not {element.value} in aligned pieces of 16 bytes along k"
    if streaming and stored is not None and not stored.bulk:
        return "b: upper bits not in aligned pieces of 16 bytes along k"
    return None if (dims.bounds(problem.k.extent)[0] or 0) > 0 else "the depth may be 0"


def _element(problem: Problem) -> DType | None:
    """The type that tensor cores multiply; of 8-bit floats f16, which holds them exactly."""
    precision = problem.kernel.attrs.get("precision", "fp32")
    return DType.F16 if precision in FLOAT8 else ELEMENTS.get(precision)


def is_exact(problem: Problem) -> bool:
    """True if the elements of ``a`` are numbers of the type that is multiplied, so that rounding them loses nothing."""
    return problem.kernel.attrs["precision"] in FLOAT8 or problem.a.storage is _element(problem)


def weight_bits(problem: Problem) -> int:
    """Bits of an element of the weights as they are read."""
    stored = stored_of(problem)
    if stored is not None:
        return stored.bits
    element = _element(problem)
    assert element is not None, "a supported problem"
    return element.bits


# ------------------------------------------------------------------------------------------------------------ tactics


def tactics(problem: Problem, streaming: bool) -> tuple[FewRowsTactic, ...]:
    """All that fit into shared memory, by estimated cost.

    Elements of rows are one number where that is exact; else two, or for more rows than ordinary arithmetic takes,
    which does not round, first one. The best tactic with the other number comes last.
    """
    halves = (1,) if is_exact(problem) else (1, 2) if most_rows(problem) > FEW_ROWS else (2, 1)
    first, *other = (ranked(problem, candidates(problem, streaming, h)) for h in halves)
    return (*first, *(t for found in other for t in found[:1]))


def ranked(problem: Problem, found: Iterable[FewRowsTactic]) -> tuple[FewRowsTactic, ...]:
    """Tactics by estimated cost."""
    return tuple(sorted(found, key=lambda t: cost(problem, t)))


def candidates(problem: Problem, streaming: bool, halves: int) -> Iterator[FewRowsTactic]:
    """Columns of a warp and shares of k, each with the requests that suit them; rows are resident where they fit."""
    bits = weight_bits(problem)
    for columns in (8, 16):
        for split in (8, 4, 2, 1):
            depth = _depth(problem, columns, split, TILE * 16 // bits, streaming)
            stages = min(4, max(2, IN_FLIGHT // (WARPS * columns * depth * bits // 8))) if streaming else 0
            t = FewRowsTactic(columns, split, depth, stages, halves)
            if not may_keep_rows(problem) or layout(problem, t).end > t.limit:
                narrow = depth if streaming else _depth(problem, columns, split, READ_TILE, streaming)
                t = replace(t, resident=False, depth=narrow)
            yield t


def _depth(problem: Problem, columns: int, split: int, tile: int, streaming: bool) -> int:
    """The elements of k that a warp requests at a time: many, but so that no share of k is much shorter.

    Of stored weights so many that lanes hold few scales, and whole pieces.
    """
    k, stored = likely(problem.k.extent), stored_of(problem)
    least, most = DEPTHS[-1], min(tile // columns, -(-k // split))
    if stored is not None:
        least = max(least, stored.copied) if streaming else stored.unit
        scales = 2 * SCALES if streaming else SCALES // 2 if stored.has_zeros and not stored.dtype.is_packed else SCALES
        most = min(most, (stored.group or most) * scales * 8 // columns)
    fitting = [d for d in DEPTHS if least <= d <= max(least, most)]
    return min(fitting, key=lambda d: -(-k // (d * split)) * d)


def may_keep_rows(problem: Problem) -> bool:
    """True if all tiles of a block are products of the same rows, whose size is known."""
    return problem.batch.extent == 1 and isinstance(problem.k.extent, int)


def cost(problem: Problem, t: FewRowsTactic) -> float:
    """Bytes that the busiest multiprocessor reads, relative to an even share of those that have to be read."""
    n, k = likely(problem.n.extent), likely(problem.k.extent)
    tiles = -(-n // t.block_columns) * likely(problem.batch.extent)
    blocks = min(tiles, most_blocks(t))
    busiest = tiles // blocks * -(-blocks // SMS) + -(-(tiles % blocks) // SMS)
    wasted = -(-k // (t.split * t.depth)) * t.split * t.depth / k
    rows = 0.0  # read again, relative to the weights
    if not t.resident:
        rows = 8.0 / weight_bits(problem) * most_rows(problem) / t.wave_columns  # from the L2 cache, for each tile
    rows += 0.0 if stored_of(problem) is None else _stored_cost(problem, t)
    idle = 0.05 if blocks < SMS else 0.0
    return busiest * SMS * t.block_columns / n * (0.7 + 0.3 * wasted + rows) + 0.005 * t.split + 0.02 * t.waves + idle


def _stored_cost(problem: Problem, t: FewRowsTactic) -> float:
    """What else takes time beside weights of few bits: the rows from shared memory for each warp, and short copies."""
    weights = t.columns * PIECE * weight_bits(problem) // 8  # bytes of eight neighbours in k of a warp's columns
    tiles = -(-most_rows(problem) * t.halves // TILE_ROWS)
    rows = SHARED_COST * tiles * TILE_ROWS * 2 * PIECE / weights if t.resident else 0.0
    return rows + (SHORT_COPY * 8 / (t.depth * weight_bits(problem)) if t.stages else 0.0)


def most_blocks(t: FewRowsTactic) -> int:
    """The blocks among which tiles are shared out, at most.

    Those of gemv_stream leave room for the next kernel's, which then request their weights before this kernel ends.
    """
    return SMS if t.stages else RESIDENT * SMS


# ------------------------------------------------------------------------------------------------------ shared memory


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a block's arrays begin in shared memory, in bytes; ``pitch``: elements from one of the rows to the next."""

    left: int
    ring: int
    bars: int
    end: int
    pitch: int


def partial_bytes(problem: Problem, t: FewRowsTactic) -> int:
    """Bytes of shared memory for the partial sums, which statistics of rows use before."""
    return max(t.split * t.halves * most_rows(problem) * t.wave_columns, WARPS) * 4


def pitch(problem: Problem) -> int:
    """Elements from one row in shared memory to the next."""
    k = problem.k.extent
    assert isinstance(k, int)
    return k + (LINE_PAD - 2 * k) % ALIGNMENT // 2


def line_bytes(problem: Problem, t: FewRowsTactic) -> int:
    """Bytes of shared memory for the request of one column."""
    stored = stored_of(problem)
    return t.depth * weight_bits(problem) // 8 + (LINE_PAD if stored is None else stored.pad(t.depth))


def layout(problem: Problem, t: FewRowsTactic, arrays_end: int = 0, own_left: bool = True) -> Layout:
    """The arrays behind the partial sums and those of a chain, which end at ``arrays_end``.

    ``own_left``: the chain has no array for the rows.
    """
    width = pitch(problem) if t.resident else 0
    left = _aligned(arrays_end or partial_bytes(problem, t))
    ring = _aligned(left + (2 * t.halves * most_rows(problem) * width if own_left else 0))
    bars = ring + WARPS * t.stages * t.columns * line_bytes(problem, t)
    return Layout(left, ring, bars, bars + 8 * WARPS * t.stages, width)


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


# ------------------------------------------------------------------------------------------------------------- source


def render_problem(problem: Problem, t: FewRowsTactic) -> KernelSource:
    """The kernel's CUDA source."""
    hooks = Hooks(problem.kernel)
    return render_page(problem, t, hooks, layout(problem, t), store=store_hook(hooks, problem, 1))


def render_page(
    problem: Problem, t: FewRowsTactic, hooks: Hooks, shared: Layout, *, store: str = "", run: int = 0, **more: Any
) -> KernelSource:
    """The source, with the epilogue ``store`` or, of a chain, what ``more`` has."""
    kernel, stored, element = problem.kernel, stored_of(problem), _element(problem)
    assert element is not None, "a supported problem"
    b = problem.b if stored is None else stored.q
    a, before = narrowed(problem.a, PIECE, True), bool(kernel.attrs.get("stages"))
    tiles = dims.ceildiv(problem.n.extent, t.block_columns) * problem.batch.extent
    blocks = dims.minimum(tiles, most_blocks(t))
    scalar, rows = hooks.params.scalar, most_rows(problem)
    n, k = problem.n.extent, problem.k.extent
    context: dict[str, Any] = {
        "rows": rows, "open": rows != problem.m.extent, "m_extent": scalar("rows", problem.m.extent),
        "columns": t.block_columns, "wave": t.wave_columns, "run": run or t.block_columns, "chain": None,
        "unit": (1, 1),
        "load_a": "" if before else load_hook(hooks, problem, "load_a", a),
        "address_b": _address(hooks, problem, "address_b", b), "store": store,
        "address_high": "" if stored is None or stored.high is None else _address(
            hooks, problem, "address_high", stored.high, stored.high.width),
        "stored": None if stored is None else print_stored(hooks, problem, stored, t.depth),
        "tiles": scalar("tiles", tiles), "n_extent": scalar("columns", n), "k_extent": scalar("depth", k),
        "columns_whole": dims.is_multiple(n, t.block_columns), "depth_whole": dims.is_multiple(k, t.split * t.depth),
        "looping": not isinstance(tiles, int) or tiles > most_blocks(t),
        "across": scalar("across", dims.ceildiv(n, t.block_columns)),
    }  # fmt: skip
    return render(
        "contract/few_rows.cu.j2", kernel, hooks.params, arch=t.arch, grid=(blocks, 1, 1), block=(32 * WARPS, 1, 1),
        shared_bytes=shared.end, tiled=_tiled(problem, t), t=t, a=a, b=b, itype=problem.itype,
        shared=shared, element=element.cuda, b_is_weight=bool(kernel.attrs.get("b_is_weight")),
        batched=problem.batch.extent != 1, **(context | more),
    )  # fmt: skip


def _address(hooks: Hooks, problem: Problem, name: str, b: Operand, width: int = 0) -> str:
    args = [("b", problem.batch.sym), ("row", b.row.sym), ("k", problem.k.sym)]
    return address_hook(hooks, name, b, args, problem.k.sym, width)


def _tiled(problem: Problem, t: FewRowsTactic) -> tuple[tuple[Dim, int], ...]:
    """Columns of a tile, and of all blocks; the k of a step, and of as many as are in flight."""
    step, round_ = t.split * t.depth, most_blocks(t) * t.block_columns
    columns = ((problem.n.extent, t.block_columns), (problem.n.extent, round_))
    return (*columns, (problem.k.extent, step), (problem.k.extent, step * max(1, t.stages)))


@dataclass(frozen=True)
class FewRows:
    """One of the two implementations, for ``contract`` kernels (see ``Algorithm`` in ``implementations.py``).

    ``least``: the least upper bound of the rows that it serves.
    """

    ARCH: str
    streaming: bool
    least: int

    def supports(self, problem: Problem, arch: str) -> str | None:
        """The reason why it can't compute the problem, or None."""
        return supports(problem, self.least, self.streaming)

    def tactics(self, problem: Problem, arch: str) -> tuple[FewRowsTactic, ...]:
        """The tactics for a supported problem, the default first."""
        return tactics(problem, self.streaming)

    def render_problem(self, problem: Problem, tactic: Any, arch: str) -> KernelSource:
        """The CUDA source for a supported problem."""
        return render_problem(problem, tactic)


STREAM = FewRows("sm_90a", True, 1)
MMA = FewRows("sm_80", False, 2)  # one row is left to ordinary arithmetic, which needs no copy of it
