"""Attention on the ordinary arithmetic units: f32 or f64, any head size up to 256, any operand expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import most
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.attention import mma
from arcweld.codegen.templates.attention.parts import LOG2E, Attention, parts, print_hooks, print_limit, transfer
from arcweld.codegen.templates.card import SHARED_LIMIT, SMS
from arcweld.codegen.templates.tiling import attention_tiling
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType

USUAL_SYMBOLIC = 512  # queries or keys that estimates assume where no upper bound is known
SHARED_ON_SM = 200 * 1024  # bytes of shared memory that the blocks of one multiprocessor have together
LANES, L2_BYTES = 128, 40  # of one multiprocessor in a cycle: multiply-adds, and bytes from the L2 cache
STEP_LATENCY = 700  # cycles from the request for a tile to its arrival


@dataclass(frozen=True, slots=True)
class FfmaTactic:
    """A block computes ``threads // across * row_tile`` queries, over tiles of ``across * key_tile`` keys.

    across    threads that share a query, a power of two up to 32
    row_tile  queries of a thread
    key_tile  keys of a tile that a thread computes
    threads   threads of a block
    """

    implementation: ClassVar[str] = "ffma"

    across: int = 8
    row_tile: int = 4
    key_tile: int = 8
    threads: int = 128


@dataclass(frozen=True, slots=True)
class FfmaLayout:
    """Extents of a block's tiles, and pitches and offsets of the arrays in shared memory, all in elements."""

    rows: int
    keys: int
    depth: int
    groups: int
    k_pitch: int
    v_pitch: int
    p_pitch: int
    k_at: int
    v_at: int
    p_at: int
    total: int


def layout(a: Attention, t: FfmaTactic) -> FfmaLayout:
    """The layout of shared memory: queries, keys, values, probabilities.

    Pitches are odd multiples of four elements (16 bytes of f32): a column of such vectors is spread over all banks.
    """
    rows, keys = t.threads // t.across * t.row_tile, t.across * t.key_tile
    depth = -(-a.size // 4) * 4
    groups = -(-a.value_size // (4 * t.across))
    k_pitch = depth + (4 if depth // 4 % 2 == 0 else 8)
    v_pitch = groups * t.across * 4
    p_pitch = keys + 4
    k_at = rows * k_pitch
    v_at = k_at + keys * k_pitch
    p_at = v_at + keys * v_pitch
    return FfmaLayout(rows, keys, depth, groups, k_pitch, v_pitch, p_pitch, k_at, v_at, p_at, p_at + rows * p_pitch)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why the kernel is left to tensor cores, or None. It can render every kernel of the template."""
    return "tensor cores take f16 and bf16" if mma.supports(kernel, arch) is None else None


def tactics(kernel: Kernel, arch: str) -> tuple[FfmaTactic, ...]:
    """The best six of the tiles that fit into shared memory, by estimated time."""
    a = parts(kernel)
    spreads = (8, 16, 32) if a.value_size <= 128 else (16, 32)
    choices = [
        t
        for across in spreads
        for threads in (256, 128, 64)
        for r in (4, 2, 1)
        for n in (8, 4, 2, 1)
        if layout(a, t := FfmaTactic(across, r, n, threads)).total * a.ctype.size <= SHARED_LIMIT
    ]
    return tuple(sorted(choices, key=lambda t: estimated_cycles(a, t))[:6])


def estimated_cycles(a: Attention, t: FfmaTactic) -> float:
    """Cycles of the busiest multiprocessor. Blocks that run on it at once overlap their waits, not their arithmetic."""
    tile = layout(a, t)
    blocks = most(a.heads, 16) * -(-most(a.s.extent, USUAL_SYMBOLIC) // tile.rows)
    steps = -(-most(a.t.extent, USUAL_SYMBOLIC) // tile.keys)
    per_sm = -(-blocks // SMS)
    together = max(1, min(per_sm, 16, SHARED_ON_SM // (tile.total * a.ctype.size), 2048 // t.threads))
    macs = tile.rows * tile.keys * (tile.depth + tile.v_pitch)
    reads = 0.5 / t.row_tile + 0.5 / t.key_tile  # of shared memory, 16 bytes for each four multiply-adds
    arithmetic = macs * (1 + 2 * reads) + tile.rows * tile.keys * 16
    lanes = min(LANES, together * t.threads / 4)  # four warps keep one scheduler busy
    busy = arithmetic * together / lanes
    wait = STEP_LATENCY + tile.keys * (tile.depth + tile.v_pitch) * a.ctype.size / L2_BYTES * min(per_sm, together)
    return per_sm / together * (steps * (busy + wait) + 1500)


def render_ffma(kernel: Kernel, tactic: FfmaTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    a = parts(kernel)
    tile, hooks = layout(a, tactic), Hooks(kernel)
    transfers = [transfer(a, hooks, role, a.ctype) for role in ("k", "v")]
    hooked = {s.role: 4 for s in transfers if not s.is_async}
    printed = print_hooks(a, hooks, {"q": 4, **hooked, "mask": 1, "out": 4})
    widths = [s.per if s.is_async else width for s, width in zip(transfers, (printed.k, printed.v))]
    limit, ends = print_limit(a, hooks)
    scalar = hooks.params.scalar
    tiles, natural = dims.ceildiv(a.s.extent, tile.rows), a.mask_kind != "none"
    return render(
        "attention/ffma.cu.j2", kernel, hooks.params, arch="sm_80", grid=(tiles * a.heads, 1, 1),
        block=(tactic.threads, 1, 1), shared_bytes=tile.total * a.ctype.size,
        tiled=(*overlapping(a.s.extent, tile.rows), (a.t.extent, tile.keys)), a=a, tactic=tactic, layout=tile,
        tiling=attention_tiling(a, "ffma", tile.rows, tile.keys, 1, tiles * a.heads, tactic.row_tile),
        transfers=transfers, widths=widths, hooks=printed, functions=[*printed.functions, *ends], limit=limit,
        ctype=a.ctype.cuda, exp2="exp2" if a.ctype is DType.F64 else "exp2f",
        # with a mask, scores stay as they are: in units of log2 those around -10000 would be rounded more
        natural=natural, scale=repr(a.scale if natural else a.scale * LOG2E), log2e=repr(LOG2E), log2e_value=LOG2E,
        excluded=a.fill_text(), tiles=scalar("query_tiles", tiles),
        heads=scalar("head_count", a.h.extent), queries=scalar("query_count", a.s.extent),
        keys=scalar("key_count", a.t.extent), offset=scalar("causal_offset", a.causal_offset),
    )  # fmt: skip
