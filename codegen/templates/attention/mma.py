"""Attention for f16 and bf16 on tensor cores (``mma.sync``, sm_80 and newer).

A warp computes 16 queries. The warps of a block share tiles of keys and values; they may also split the keys of a tile,
each with an online softmax of its own, which are merged at the end. Keys and values that are stored as they are
multiplied come by asynchronous copies, others through load hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import most
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.attention.parts import (
    LOG2E,
    Attention,
    grouped,
    parts,
    print_hooks,
    print_limit,
    transfer,
)
from arcweld.codegen.templates.card import SHARED_LIMIT, SMS
from arcweld.codegen.templates.tiling import attention_tiling
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType

USUAL_SYMBOLIC = 512  # queries or keys that are assumed where no upper bound is known
REGISTER_HEAD_SIZE = 128  # the largest head size of queries that stay in registers
FEW_QUERIES = 64  # up to so many, the queries of heads that share keys are computed together

# (query_warps, key_warps, keys, stages), best first: for many queries, for at most 16, and for those in between
_LONG = ((4, 1, 64, 2), (4, 1, 32, 3), (8, 1, 64, 2), (4, 1, 64, 3), (2, 2, 32, 2), (2, 1, 32, 2), (4, 1, 32, 2))
_DECODE = ((1, 8, 16, 2), (1, 4, 32, 2), (1, 8, 16, 1), (1, 4, 16, 4), (1, 4, 32, 1), (1, 4, 16, 2), (1, 2, 32, 2))
_SHORT = ((2, 2, 64, 1), (1, 4, 32, 1), (2, 4, 32, 2), (2, 2, 32, 2), (1, 4, 16, 4), (1, 2, 32, 2), (2, 2, 16, 2))


@dataclass(frozen=True, slots=True)
class MmaTactic:
    """How a block divides queries and keys.

    query_warps  warps along the queries, 16 each
    key_warps    warps along the keys of a tile
    keys         keys of a tile that one warp takes
    stages       pipeline stages: tiles of keys and values in shared memory
    grouped      lay the query heads that share keys and values along the query axis
    """

    implementation: ClassVar[str] = "mma"

    query_warps: int = 4
    key_warps: int = 1
    keys: int = 64
    stages: int = 2
    grouped: bool = False


@dataclass(frozen=True, slots=True)
class MmaLayout:
    """Extents of a block's tiles and pitches in elements; ``ring_at`` and ``bytes`` in bytes of shared memory.

    Rows are an odd number of 16-byte pieces, so that ldmatrix meets no bank conflicts.
    """

    rows: int
    tile: int
    depth: int
    value_depth: int
    k_pitch: int
    v_pitch: int
    q_shared: bool
    ring_at: int
    bytes: int


def layout(a: Attention, t: MmaTactic) -> MmaLayout:
    """The layout of shared memory: queries of a large head size, then the ring; merging reuses both."""
    rows, tile = 16 * t.query_warps, t.keys * t.key_warps
    depth, value_depth = -(-a.size // 16) * 16, -(-a.value_size // 16) * 16
    k_pitch, v_pitch = depth + 8, value_depth + 8
    q_shared = depth > REGISTER_HEAD_SIZE
    ring_at = rows * k_pitch * 2 if q_shared else 0
    stage = tile * (k_pitch + v_pitch) * 2
    warps = t.query_warps * t.key_warps
    merge = warps * (value_depth // 8 + 1) * 512 if t.key_warps > 1 else 0
    return MmaLayout(
        rows,
        tile,
        depth,
        value_depth,
        k_pitch,
        v_pitch,
        q_shared,
        ring_at,
        max(ring_at + t.stages * stage, merge),
    )


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this implementation can't render the kernel, or None."""
    if kernel.attrs["precision"] not in ("f16", "bf16"):
        return f"precision {kernel.attrs['precision']} is not f16 or bf16"
    if kernel.loads["q"].dtype is not DType.F32:
        return "operands are not 16-bit floats"
    return None


def tactics(kernel: Kernel, arch: str) -> tuple[MmaTactic, ...]:
    """Tactics from the fixed lists that fit: many queries take large blocks, few take blocks that split the keys."""
    packed = grouped(kernel)
    few = packed is not None and most(packed.axes["s"][0].extent, USUAL_SYMBOLIC) <= FEW_QUERIES
    a = parts(packed if packed is not None and few else kernel)
    queries, keys = most(a.s.extent, USUAL_SYMBOLIC), most(a.t.extent, USUAL_SYMBOLIC)
    many = most(a.heads, 16) * -(-queries // 64) >= 2 * SMS
    ordered = _DECODE if queries <= 16 else (_LONG + _SHORT if many else _SHORT + _LONG)
    choices: list[MmaTactic] = []
    for down, along, width, stages in ordered:
        width = min(width, 32) if a.value_size > REGISTER_HEAD_SIZE else width
        t = MmaTactic(down, along, width, min(stages, max(1, -(-keys // (width * along)))), few)
        too_wide = width * along > max(64, 2 * keys) or 16 * (down - 1) >= max(queries, 16)
        if not too_wide and layout(a, t).bytes <= SHARED_LIMIT and t not in choices:
            choices.append(t)
    return tuple(choices[:10]) or (MmaTactic(1, 1, 16, 1, few),)


def render_mma(kernel: Kernel, tactic: MmaTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``. Raises ValueError if ``grouped`` finds no groups."""
    packed = grouped(kernel) if tactic.grouped else kernel
    if packed is None:
        raise ValueError("no query heads share their keys and values")
    kernel = packed
    a, hooks = parts(kernel), Hooks(kernel)
    space = layout(a, tactic)
    element = DType(kernel.attrs["precision"])
    transfers = [transfer(a, hooks, role, element) for role in ("k", "v")]
    hooked = {s.role: 8 for s in transfers if not s.is_async}
    printed = print_hooks(a, hooks, {"q": 8 if space.q_shared else 2, **hooked, "mask": 2, "out": 2})
    limit, ends = print_limit(a, hooks)
    scalar = hooks.params.scalar
    tiles = dims.ceildiv(a.s.extent, space.rows)
    return render(
        "attention/mma.cu.j2", kernel, hooks.params, arch="sm_80", grid=(tiles * a.heads, 1, 1),
        block=(32 * tactic.query_warps * tactic.key_warps, 1, 1), shared_bytes=space.bytes,
        tiled=(*overlapping(a.s.extent, space.rows), (a.t.extent, tactic.keys * tactic.key_warps * tactic.stages)),
        tiling=attention_tiling(
            a, "mma", space.rows, tactic.keys * tactic.key_warps, tactic.stages, tiles * a.heads, 16
        ),
        a=a, tactic=tactic, layout=space, hooks=printed, functions=[*printed.functions, *ends], limit=limit,
        transfers=transfers, T=kernel.attrs["precision"], scale=repr(a.scale * LOG2E),
        excluded=a.fill_text(LOG2E), unit=LOG2E, fold=a.folds, group=_group(space.value_depth // 8),
        tiles=scalar("query_tiles", tiles), heads=scalar("head_count", a.h.extent),
        queries=scalar("query_count", a.s.extent), keys=scalar("key_count", a.t.extent),
        offset=scalar("causal_offset", a.causal_offset),
    )  # fmt: skip


def _group(tiles: int) -> int:
    """Output fragments that are multiplied together: the largest of 8, 6, 4, 2 that divides their number."""
    return max(n for n in (2, 4, 6, 8) if tiles % n == 0)
