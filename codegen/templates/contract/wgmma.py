"""Matrix products on Hopper's tensor cores: ``wgmma`` (PTX ISA) on tiles that TMA copies to shared memory.

Both operands must be single loads of f16, bf16 or 8-bit types that a TMA descriptor can describe; of 8-bit types, both
contiguous along k, as the instruction wants them. Tensor cores keep few bits of sums of products of 8-bit floats: those
of a line, 128 of k, are added to f32 sums, which take as many registers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from arcweld.codegen.cost.choice import candidate_us, kind_of
from arcweld.codegen.kernel import Axis, KernelSource
from arcweld.codegen.printing.hooks import Hooks, Plain, plain_load
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SM90_SHARED_LIMIT, multiprocessors
from arcweld.codegen.templates.contract.ffma import store_hook
from arcweld.codegen.templates.contract.mma import FLOAT8, INT8, element_context, element_of, elements_of
from arcweld.codegen.templates.contract.problem import Operand, Problem, likely, tile_context, tile_count, zero_hook
from arcweld.codegen.templates.contract.tactic import TILE_ROWS
from arcweld.codegen.templates.contract.tactic import tiles as estimated_tiles
from arcweld.codegen.templates.tiling import product_tiling
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.parameters import TensorMap

ARCH = "sm_90a"
LINE = 128  # bytes of k in a stage: one swizzled line
TMA_ALIGN = 16  # bytes: of addresses and strides (CUDA Driver API, cuTensorMapEncodeTiled)
# rows and columns of a block's tile: a warpgroup multiplies 64 rows; columns are a multiple of 16
TILES = (
    (64, 32), (64, 48), (64, 64), (64, 96), (64, 128), (64, 256), (128, 64), (128, 96), (128, 128), (128, 192),
    (128, 256), (192, 128), (256, 128),
)  # fmt: skip
REGISTERS = 65536  # registers of a multiprocessor
MOST_REGISTERS = 255  # registers that a thread can have
LEAST_REGISTERS = 40  # registers of a thread beside its sums
READ_REGISTERS = 24  # registers of a thread for each epilogue access that is read for before the first store
SPLITS = (1, 2, 4, 8)  # blocks of a cluster among which k may be shared out
MOST_SPLIT = 192  # rows and columns, together, of a tile whose k may be shared out
MIN_STEPS = 4  # the least stages of k for each block of a cluster


@dataclass(frozen=True, slots=True)
class ContractWgmmaTactic:
    """How one matrix product is divided among blocks.

    bm, bn  rows and columns of a tile
    stages  pipeline stages of one line of k
    blocks  the most blocks of a persistent kernel, each of which takes several tiles; 0: one block for each tile
    early   as in ``ContractTactic``
    split   blocks of a cluster that share out the k of one tile; the last one adds their sums (needs ``blocks`` 0)
    """

    bm: int
    bn: int
    stages: int
    blocks: int = 0
    early: bool = True
    implementation: str = "wgmma"
    split: int = 1

    @property
    def chunk(self) -> int:
        """Columns of one pass of the epilogue: the most of 64, 32, 16 that divide ``bn``."""
        return next(c for c in (64, 32, 16) if self.bn % c == 0)

    @property
    def threads(self) -> int:
        """Threads of a block: a warpgroup of 128 for each 64 rows, and one warp that loads."""
        return 2 * self.bm + 32

    @property
    def spare_registers(self) -> int:
        """Registers that a thread has beside its sums.

        They are allocated for whole warpgroups of 4 warps, in steps of 8 for each thread.
        """
        own = REGISTERS // (-(-self.threads // 128) * 128) // 8 * 8
        return min(own, MOST_REGISTERS) - self.bn // 2

    def together(self, problem: Problem, width: int) -> int:
        """Epilogue accesses of ``width`` columns that a thread reads for before it stores, as registers allow."""
        wanted = problem.rows_together(self.chunk, width)
        while wanted > 1 and wanted * READ_REGISTERS > self.spare_registers - extra_registers(problem, self):
            wanted //= 2
        return wanted

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory: the stages, the epilogue's scratch, the sums of a cluster's blocks, and mbarriers."""
        scratch = self.bm // 16 * 16 * (self.chunk + 8) * 4
        exchange = (self.split - 1) * self.bm * self.bn * 4
        return self.stages * (self.bm + self.bn) * 128 + scratch + exchange + 16 * self.stages


T = TypeVar("T", bound=ContractWgmmaTactic)


@dataclass(frozen=True, slots=True)
class MappedOperand:
    """An operand that TMA fetches: a descriptor of ``rank`` dimensions, contiguous along k or along its row axis."""

    view: TensorMap[Dim]
    along_k: bool
    rank: int


def supports(problem: Problem, arch: str) -> str | None:
    """The reason why this implementation can't compute the problem, or None."""
    reason = type_refusal(problem)
    if reason is not None:
        return reason
    if not dims.is_nonneg(problem.k.extent - 1):
        return "the depth may be 0, which no descriptor can say"
    for name, operand in (("a", problem.a), ("b", problem.b)):
        reason = map_refusal(problem, name, operand)
        if reason is not None:
            return f"{name}: {reason}"
    return None


def type_refusal(problem: Problem) -> str | None:
    """The reason why the tensor cores can't multiply the problem's types, or None."""
    precision = problem.kernel.attrs.get("precision")
    known = ("f16", "bf16", INT8, *FLOAT8)
    if precision not in known:
        return f"precision {precision} is not one of {', '.join(known)}"
    wanted = DType.I32 if precision == INT8 else DType.F32
    return None if problem.acc is wanted else f"the accumulator is {problem.acc.value}"


def extra_registers(problem: Problem, t: ContractWgmmaTactic) -> int:
    """Registers of a thread for the sums of a line, where these are not the tile's sums themselves."""
    return t.bn // 2 if problem.kernel.attrs["precision"] in FLOAT8 else 0


def line_of(problem: Problem) -> int:
    """Elements of k in a stage: those of one line."""
    return LINE // element_of(problem).size


def map_refusal(problem: Problem, name: str, operand: Operand) -> str | None:
    """The reason why TMA can't fetch the operand, or None."""
    plain = _plain(problem, operand)
    if plain is None:
        return "not a plain load with constant strides"
    element = elements_of(problem)[name == "b"]
    if plain.buffer.dtype is not element:
        return f"stored as {plain.buffer.dtype.value}"
    k, row, batch = (plain.strides[s.sym] for s in (problem.k, operand.row, problem.batch))
    along_k = k == 1 or problem.k.extent == 1
    lane, line = (problem.k, row) if along_k else (operand.row, k)
    if plain.strides[lane.sym] != 1 and lane.extent != 1:
        return "contiguous along neither k nor its rows"
    if not along_k and (name == "a" or element.size == 1):
        return "not contiguous along k"
    per = TMA_ALIGN // plain.buffer.dtype.size
    if not all(dims.is_multiple(d, per) for d in (plain.offset, line, batch)):
        return "rows do not start on 16 bytes"
    return None if all(dims.is_nonneg(d) for d in (line, batch)) else "a stride may be negative"


def _plain(problem: Problem, operand: Operand) -> Plain | None:
    return plain_load(problem.kernel, operand.expr, [problem.batch.sym, operand.row.sym, problem.k.sym])


def mapped(problem: Problem, operand: Operand, name: str, box_rows: int) -> MappedOperand:
    """The descriptor of a supported operand.

    A box is ``box_rows`` rows x one line of k if the operand is contiguous along k, else 64 x 64.
    """
    plain = _plain(problem, operand)
    assert plain is not None
    along_k = plain.strides[problem.k.sym] == 1 or problem.k.extent == 1
    inner, outer = (problem.k, operand.row) if along_k else (operand.row, problem.k)
    axes = [inner, outer]
    if problem.batch.extent != 1 and plain.strides[problem.batch.sym] != 0:
        axes.append(problem.batch)
    size, line = plain.buffer.dtype.size, line_of(problem)
    view = TensorMap(
        f"map_{name}", plain.buffer.name, plain.offset * size, dims=tuple(a.extent for a in axes),
        strides=tuple(_stride(plain, a, inner) * size for a in axes[1:]),
        box=(line, box_rows if along_k else line, 1)[: len(axes)], element_strides=(1,) * len(axes),
    )  # fmt: skip
    return MappedOperand(view, along_k, len(axes))


def _stride(plain: Plain, along: Axis, inner: Axis) -> Dim:
    """Elements between neighbours along an axis; where that is 0, any number that TMA allows (only one is read)."""
    stride = plain.strides[along.sym]
    per = TMA_ALIGN // plain.buffer.dtype.size
    return dims.ceildiv(inner.extent, per) * per if stride == 0 else stride


def tactics(problem: Problem, arch: str) -> tuple[ContractWgmmaTactic, ...]:
    """The tiles by modelled time, each with as many stages as fit; then variants of the best."""
    return with_variants(by_modelled_time(problem, arch))


def by_modelled_time(problem: Problem, arch: str) -> list[ContractWgmmaTactic]:
    """The tactics of all tiles that the operands' orders allow, by modelled time."""
    steps = -(-likely(problem.k.extent) // line_of(problem))
    n_major = not mapped(problem, problem.b, "b", 8).along_k
    found = [
        t for bm, bn in TILES if not (n_major and bn % 64) for t in fitted(ContractWgmmaTactic(bm, bn, 2), steps, arch)
    ]
    if problem.ends is not None:  # blocks of a cluster would have to agree that there is no tile for them
        found = [t for t in found if t.split == 1]
    return by_time(found, lambda t: estimated_tiles(problem, t), steps, problem, arch)


def fitted(t: T, steps: int, arch: str) -> list[T]:
    """The tactics of a tile, each with as many stages as fit: none if two don't.

    ``steps``: stages of k in all. A small tile uses half of the shared memory, so that two blocks run on one
    multiprocessor, or all of it. A large one is a persistent kernel with a block for each multiprocessor. All but the
    largest come with k split over clusters too.
    """
    small = t.bm + t.bn <= 160
    half, whole = SM90_SHARED_LIMIT // 2, SM90_SHARED_LIMIT
    found = []
    for split, limit in [*([(1, half)] if small else []), *((split, whole) for split in SPLITS)]:
        own = -(-steps // split)
        if split > 1 and (own < MIN_STEPS or t.bm + t.bn > MOST_SPLIT):
            break
        s = replace(t, split=split, blocks=0 if small or split > 1 else multiprocessors(arch))
        while s.stages < min(own, 12) and replace(s, stages=s.stages + 1).shared_bytes <= limit:
            s = replace(s, stages=s.stages + 1)
        if s.shared_bytes <= limit and (split == 1 or s.stages >= min(own, MIN_STEPS)):
            found.append(s)
    return list(dict.fromkeys(found))


def by_time(found: Sequence[T], tiles: Callable[[T], int], steps: int, problem: Problem, arch: str) -> list[T]:
    """The tactics whose sums leave registers for the rest, by modelled time.

    ``tiles``: the output tiles of a tactic; ``steps``: stages of k.
    """
    line, kind = line_of(problem), kind_of(problem.kernel.template, "wgmma")

    def us(t: T) -> float:
        tiling = product_tiling(
            problem, "wgmma", (t.bm, t.bn, line), (64, t.bn), t.stages, tiles(t), steps, t.split,
            persistent=t.blocks > 0,
        )  # fmt: skip
        # tiles of four warpgroups were not measured: two of them and a wide tile rather than four and a narrow one
        tie = 1.0 if t.bm < 256 else 1.12
        return tie * candidate_us(kind, tiling.convert(likely), t.shared_bytes, t.threads, arch)

    if extra_registers(problem, found[0]):
        found = [t for t in found if t.spare_registers - extra_registers(problem, t) >= LEAST_REGISTERS]
    return sorted(found, key=us)


def with_variants(ordered: Sequence[T]) -> tuple[T, ...]:
    """The first ten; then the first with the other value of ``early``, and with half the stages."""
    best = ordered[0]
    variants = replace(best, early=not best.early), replace(best, stages=max(2, best.stages // 2))
    return tuple(dict.fromkeys([*ordered[:10], *variants]))


def tiled(problem: Problem, t: ContractWgmmaTactic, tiles: Dim) -> tuple[tuple[Dim, int], ...]:
    """Rows of a tile and of a group of tiles, columns of a tile, the k that fills the ring, the tiles of one wave."""
    m, n, k = problem.m.extent, problem.n.extent, problem.k.extent
    return (m, t.bm), (m, TILE_ROWS * t.bm), (n, t.bn), (k, t.split * t.stages * line_of(problem)), (tiles, t.blocks)


def instructions(problem: Problem, t: ContractWgmmaTactic) -> dict[str, Any]:
    """What the template prints of types, and the instructions that it includes."""
    context = element_context(problem, elements_of(problem))
    by_line = bool(extra_registers(problem, t))
    if context["whole"] or by_line:
        context["wgmma_types"] = ("float8" if by_line else "int8",)
    return {**context, "by_line": by_line, "paired": (), "wgmma_ns": (t.bn,), "line": line_of(problem)}


def render_problem(problem: Problem, t: ContractWgmmaTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, for sm_90a."""
    kernel, hooks = problem.kernel, Hooks(problem.kernel)
    a = mapped(problem, problem.a, "a", t.bm)
    b = mapped(problem, problem.b, "b", t.bn)
    for operand in (a, b):
        hooks.params.tensor_map(operand.view)
    count = tile_count(problem, t.bm, t.bn)
    width, scalar = problem.store_width(), hooks.params.scalar
    blocks = dims.minimum(count, t.blocks) if t.blocks else count
    return render(
        "contract/wgmma.cu.j2", kernel, hooks.params, arch=ARCH, grid=(blocks * t.split, 1, 1), cluster=t.split,
        block=(t.threads, 1, 1),
        shared_bytes=t.shared_bytes, tiled=tiled(problem, t, count),
        tiling=product_tiling(
            problem, "wgmma", (t.bm, t.bn, line_of(problem)), (64, t.bn), t.stages, count, split=t.split,
            persistent=t.blocks > 0,
        ),
        t=t, a=a, b=b, itype=problem.itype,
        chunk=t.chunk, width=width, **instructions(problem, t), store=store_hook(hooks, problem, width),
        zero_points=zero_hook(hooks, problem),
        together=t.together(problem, width),
        b_is_weight=bool(kernel.attrs.get("b_is_weight")), tiles=scalar("tiles", count),
        **tile_context(hooks, problem, t.bm, t.bn),
        m_extent=scalar("rows", problem.m.extent), n_extent=scalar("columns", problem.n.extent),
        k_extent=scalar("depth", problem.k.extent),
    )  # fmt: skip
