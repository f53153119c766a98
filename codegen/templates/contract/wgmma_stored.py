"""Matrix products on Hopper's tensor cores by weights that stay stored in few bits (``stored.py``).

The product is computed transposed, since ``wgmma`` takes its first operand alone from registers: columns of the result
are the instruction's rows. TMA copies the weights' bytes and the rows as they are; while tensor cores multiply 64 of k,
each warp unpacks its next 64. Weights are exact in 16 bits, and the f32 sums of a group are multiplied by its scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.printing.hooks import Hooks, Plain, plain_load
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SM90_SHARED_LIMIT, multiprocessors
from arcweld.codegen.templates.contract import wgmma
from arcweld.codegen.templates.contract.ffma import store_hook
from arcweld.codegen.templates.contract.mma import ELEMENTS
from arcweld.codegen.templates.contract.problem import Operand, Problem, extent, likely
from arcweld.codegen.templates.contract.stored import Stored, print_stored, stored_of
from arcweld.codegen.templates.contract.tactic import TILE_ROWS
from arcweld.codegen.templates.contract.wgmma import LINE, TMA_ALIGN, MappedOperand
from arcweld.codegen.templates.tiling import product_tiling
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.parameters import TensorMap

ARCH = wgmma.ARCH
DEPTH = 64  # of k in a stage of the rows: one swizzled line
# rows and columns of a block's tile: a warpgroup multiplies 64 columns
TILES = ((16, 64), (32, 64), (64, 64), (96, 64), (128, 64), (32, 128), (64, 128), (96, 128), (128, 128), (256, 128))
# the most rows of a tile of so many columns whose groups have sums of their own, which take as many registers again
GROUPED_ROWS = {64: 96, 128: 128}
PLANE_ROWS = {64: 64, 128: 128}  # the same where the upper bits take registers too
LINES = 3  # stages of the weights
STAGES = 8  # of the rows, at most
SCRATCH = 16 * 20 * 4  # bytes of a warp's scratch memory
# An estimate ranks tiles, since unpacking was not measured, which the model of time would have to know.
MACS = 3000  # multiply-adds of a multiprocessor in a cycle, of 16-bit numbers
L2_BYTES = 40  # bytes that a multiprocessor reads from the L2 cache in a cycle
TILE_CYCLES = 1000  # cycles of a tile beside its products: its first loads and its epilogue
UNPACK_CYCLES = 1.5  # of a warp for a register of two numbers and for two sums that are scaled (an estimate)


@dataclass(frozen=True, slots=True)
class WgmmaStoredTactic:
    """How one matrix product is divided among blocks.

    bm, bn  rows and columns of a tile
    stages  pipeline stages of the rows, of 64 of k
    lines   pipeline stages of the weights, of 128 bytes of each column
    early   as in ``ContractTactic``
    high    bytes of upper bits beside those 128
    """

    bm: int
    bn: int
    stages: int
    lines: int = LINES
    early: bool = True
    high: int = 0
    implementation: str = "wgmma_stored"

    @property
    def registers(self) -> tuple[int, int]:
        """Registers (setmaxnreg) of a thread that loads and of one that multiplies; (0, 0): as the compiler has it."""
        return (0, 0) if self.bn == 64 else (24, 240)

    @property
    def resident(self) -> int:
        """Blocks on a multiprocessor: one warpgroup alone does not keep it busy."""
        return 2 if self.bn == 64 else 1

    @property
    def threads(self) -> int:
        """Threads of a block: the warpgroups that multiply, and a warp or (for setmaxnreg) warpgroup that loads."""
        return 2 * self.bn + (128 if self.registers[0] else 32)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory: the stages, the epilogue's scratch, and mbarriers."""
        stages = self.stages * self.bm * LINE + self.lines * self.bn * (LINE + self.high)
        return stages + self.bn // 16 * SCRATCH + 16 * (self.stages + self.lines)


def supports(problem: Problem, arch: str) -> str | None:
    """The reason why this implementation can't compute the problem, or None."""
    precision = problem.kernel.attrs.get("precision", "fp32")
    element, stored = ELEMENTS.get(precision), stored_of(problem)
    if element is None or not element.is_half:
        return f"precision {precision} is not f16 or bf16"
    if stored is None:
        return "b: not weights of few bits, contiguous along k"
    if not dims.is_nonneg(problem.k.extent - 1):
        return "the depth may be 0, which no descriptor can say"
    reason = wgmma.map_refusal(problem, "a", problem.a)
    if reason is not None:
        return f"a: {reason}"
    reasons = (_weight_refusal(problem, plane) for plane in (stored.q, stored.high) if plane is not None)
    reason = next((r for r in reasons if r is not None), None)
    return None if reason is None else f"b: {reason}"


def _plain(problem: Problem, plane: Operand) -> Plain | None:
    return plain_load(problem.kernel, plane.expr, [problem.batch.sym, problem.n.sym, problem.k.sym])


def _weight_refusal(problem: Problem, plane: Operand) -> str | None:
    """The reason why TMA can't fetch a plane of the weights, or None."""
    plain = _plain(problem, plane)
    if plain is None or plain.strides[problem.k.sym] != 1:
        return "not a plain load with constant strides"
    others = (plain.strides[problem.n.sym], plain.strides[problem.batch.sym])
    assert plane.storage is not None, "a load"
    if not all(dims.is_multiple(d, TMA_ALIGN * 8 // plane.storage.bits) for d in (plain.offset, *others)):
        return "columns do not start on 16 bytes"
    return None if all(dims.is_nonneg(d) for d in others) else "a stride may be negative"


def mapped_weights(problem: Problem, plane: Operand, name: str, line: int, columns: int) -> MappedOperand:
    """The descriptor of the bytes of a plane of the weights, ``line`` of each of ``columns`` columns in a box."""
    plain, dtype = _plain(problem, plane), plane.storage
    assert plain is not None, "a supported problem"
    assert dtype is not None, "a load"
    length = dtype.nbytes(problem.k.extent)
    axes = [problem.n]
    if problem.batch.extent != 1 and plain.strides[problem.batch.sym] != 0:
        axes.append(problem.batch)
    strides = [dtype.nbytes(plain.strides[a.sym]) for a in axes]
    lines = tuple(dims.ceildiv(length, TMA_ALIGN) * TMA_ALIGN if s == 0 else s for s in strides)
    view = TensorMap(
        name, plain.buffer.name, dtype.nbytes(plain.offset), dims=(length, *(a.extent for a in axes)),
        strides=lines, box=(line, columns, 1)[: len(axes) + 1], element_strides=(1,) * (len(axes) + 1),
        swizzle=LINE if line == LINE else 0,
    )  # fmt: skip
    return MappedOperand(view, True, len(axes) + 1)


# ------------------------------------------------------------------------------------------------------------ tactics


def tactics(problem: Problem, arch: str) -> tuple[WgmmaStoredTactic, ...]:
    """The tiles by estimated time, each with as many stages as fit; then variants of the best."""
    stored = stored_of(problem)
    assert stored is not None, "a supported problem"
    most = GROUPED_ROWS if stored.high is None else PLANE_ROWS
    found = [
        _fitted(WgmmaStoredTactic(bm, bn, 2, high=stored.upper_line(LINE)), -(-likely(problem.k.extent) // DEPTH))
        for bm, bn in TILES if stored.group is None or bm <= most[bn]
    ]
    ranked = sorted(found, key=lambda t: _cycles(problem, stored, t, multiprocessors(arch)))
    best = ranked[0]
    return tuple(dict.fromkeys([*ranked, replace(best, early=False), replace(best, stages=max(2, best.stages // 2))]))


def _fitted(t: WgmmaStoredTactic, steps: int) -> WgmmaStoredTactic:
    """The tactic with as many stages as the shared memory of its resident blocks has room for, and k has steps."""
    limit = SM90_SHARED_LIMIT // t.resident
    while t.stages < min(steps, STAGES) and replace(t, stages=t.stages + 1).shared_bytes <= limit:
        t = replace(t, stages=t.stages + 1)
    return t


def _cycles(problem: Problem, stored: Stored, t: WgmmaStoredTactic, count: int) -> float:
    """Estimated cycles of the busiest of ``count`` multiprocessors.

    Products, unpacking and traffic overlap: what takes longest counts.
    """
    rows, columns, batch = (likely(d.extent) for d in (problem.m, problem.n, problem.batch))
    tiles = -(-rows // t.bm) * -(-columns // t.bn) * batch
    waves = -(-tiles // count)  # blocks that a multiprocessor computes, perhaps two of them at once
    scaled = 0.0 if stored.group is None else t.bm * DEPTH / min(stored.group, DEPTH) / 4
    unpacked = (16 + scaled) * UNPACK_CYCLES * t.bn / 64
    traffic = (t.bm * LINE + t.bn * DEPTH * stored.bits // 8) / L2_BYTES
    step = max(t.bm * t.bn * DEPTH / MACS, unpacked, traffic)
    steps = -(-likely(problem.k.extent) // DEPTH)
    return waves * (steps * step + TILE_CYCLES / t.resident)


# ------------------------------------------------------------------------------------------------------------- source


def render_problem(problem: Problem, t: WgmmaStoredTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, for sm_90a."""
    kernel, hooks, stored = problem.kernel, Hooks(problem.kernel), stored_of(problem)
    assert stored is not None, "a supported problem"
    a, w = wgmma.mapped(problem, problem.a, "a", t.bm), mapped_weights(problem, stored.q, "map_b", LINE, t.bn)
    high = None
    if stored.high is not None:
        high = mapped_weights(problem, stored.high, "map_high", stored.upper_line(LINE), t.bn)
    for operand in filter(None, (a, w, high)):
        hooks.params.tensor_map(operand.view)
    tiles_m, tiles_n = dims.ceildiv(problem.m.extent, t.bm), dims.ceildiv(problem.n.extent, t.bn)
    width, scalar = problem.store_width(), hooks.params.scalar
    return render(
        "contract/wgmma_stored.cu.j2", kernel, hooks.params, arch=ARCH,
        grid=(problem.batch.extent * tiles_m * tiles_n, 1, 1), block=(t.threads, 1, 1), shared_bytes=t.shared_bytes,
        tiled=_tiled(problem, stored, t), t=t, a=a, w=w, itype=problem.itype, width=width,
        tiling=product_tiling(
            problem, "wgmma", (t.bm, t.bn, DEPTH), (t.bm, 64), t.stages, problem.batch.extent * tiles_m * tiles_n
        ),
        element=ELEMENTS[kernel.attrs["precision"]].cuda, wgmma_ns=(t.bm,),
        stored=print_stored(hooks, problem, stored, DEPTH), grouped=stored.group is not None, group=stored.group,
        store=store_hook(hooks, problem, width), b_is_weight=bool(kernel.attrs.get("b_is_weight")),
        tiles_m=extent(hooks, "tiles_m", tiles_m), tiles_n=extent(hooks, "tiles_n", tiles_n),
        m_extent=scalar("rows", problem.m.extent), n_extent=scalar("columns", problem.n.extent),
        k_extent=scalar("depth", problem.k.extent),
    )  # fmt: skip


def _tiled(problem: Problem, stored: Stored, t: WgmmaStoredTactic) -> tuple[tuple[Dim, int], ...]:
    """Rows of a tile and of a group of tiles, columns of a tile, the k that fills either ring."""
    m, n, k = problem.m.extent, problem.n.extent, problem.k.extent
    line = LINE * 8 // stored.dtype.bits
    return (m, t.bm), (m, TILE_ROWS * t.bm), (n, t.bn), (k, t.stages * DEPTH), (k, t.lines * line)
