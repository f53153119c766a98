"""Attention of few queries over many keys: blocks divide the keys of a head, as in Flash-Decoding (Dao et al., 2023).

The query heads that share keys and values are rows of one block, so that each key and value is read once, straight to
registers. A block leaves its part of the result in a workspace, and the last block of a head merges them. Keys that a
mask excludes by their position are not read: a step takes time by its position, not by the cache's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import least, most, power_of_two_at_least
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.attention import mma
from arcweld.codegen.templates.attention.parts import (
    LOG2E,
    Attention,
    grouped,
    parts,
    print_hooks,
    print_limit,
    transfer,
)
from arcweld.codegen.templates.card import SMS
from arcweld.compiler.dtypes import DType

MOST_ROWS = 16  # queries of all heads of a group
LEAST_KEYS = 64  # of a split: fewer take no less time
FEW_KEYS = 64  # up to so many, other implementations hold them in one tile
MOST_VECTORS = 16  # of four elements, of a lane's queries and of its results, in f32
MOST_TILES = 16  # of 16 results for 8 queries, of a warp on tensor cores


@dataclass(frozen=True, slots=True)
class SplitTactic:
    """How the keys of a head are divided.

    splits  blocks that share the keys of a head
    warps   warps of a block, each with its own keys
    keys    keys that a warp loads at once: a multiple of 16 on tensor cores
    """

    implementation: ClassVar[str] = "split"

    splits: int = 1
    warps: int = 8
    keys: int = 16


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """Extents of a block's arrays, and their offsets in shared memory in bytes.

    across   in f32, lanes that share a key
    slices   parts of the keys that a block merges
    pitch    elements of a row of results
    """

    rows: int
    across: int
    slices: int
    pitch: int
    state_at: int
    share_at: int
    whole_at: int
    flag_at: int
    bytes: int


def packed(kernel: Kernel) -> Kernel:
    """The kernel with the heads that share keys as rows, where there are such heads."""
    together = grouped(kernel)
    return kernel if together is None else together


def is_half(kernel: Kernel) -> bool:
    """True if tensor cores multiply."""
    return kernel.attrs["precision"] in ("f16", "bf16")


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this implementation can't render the kernel, or None."""
    a = parts(packed(kernel))
    if not isinstance(a.s.extent, int) or not 1 <= a.s.extent <= MOST_ROWS:
        return f"more than {MOST_ROWS} queries share their keys"
    rows = a.s.extent
    if is_half(kernel):
        if reason := mma.supports(kernel, arch):
            return reason
        tiles = -(-a.value_size // 64) * 4 * -(-rows // 8)
        return f"{rows} queries of {a.value_size} take too many registers" if tiles > MOST_TILES else None
    if a.ctype is not DType.F32:
        return f"operands are {a.ctype.value}"
    vectors = rows * -(-max(a.size, a.value_size) // (4 * _across(a)))
    return f"{rows} queries of {a.size} take too many registers" if vectors > MOST_VECTORS else None


def defers(kernel: Kernel) -> bool:
    """True where there are so few keys that nothing is gained."""
    return most(kernel.axes["t"][0].extent, FEW_KEYS + 1) <= FEW_KEYS


def _across(a: Attention) -> int:
    """Lanes that share a key in f32: each takes four elements at least."""
    return min(32, max(8, power_of_two_at_least(-(-max(a.size, a.value_size) // 4))))


def tactics(kernel: Kernel, arch: str) -> tuple[SplitTactic, ...]:
    """As many splits as give a block to each multiprocessor, as far as there are keys for them, and as that pays."""
    a = parts(packed(kernel))
    assert isinstance(a.s.extent, int)
    heads = max(1, least(a.heads))
    enough = -(-SMS // heads)
    if _costs_more(a, heads, enough):
        enough = 1
    splits = max(1, min(enough, most(a.t.extent, enough * LEAST_KEYS) // LEAST_KEYS))
    if is_half(kernel):
        keys = 32 if max(a.size, a.value_size) <= 64 else 16
        smaller = 16
    else:
        vectors = -(-max(a.size, a.value_size) // (4 * _across(a)))
        keys = 32 // _across(a) * (4 if a.s.extent * vectors <= 8 else 2)
        smaller = keys // 2
    longest = -(-most(a.t.extent, 1 << 20) // splits)
    warps = min(8, power_of_two_at_least(-(-longest // keys)))
    choices = (SplitTactic(splits, warps, keys), SplitTactic(splits, warps, smaller), SplitTactic(splits, 4, smaller))
    return tuple(dict.fromkeys(choices))


def _costs_more(a: Attention, heads: int, splits: int) -> bool:
    """Whether parts of results, written and read, are a larger share of all bytes than idle multiprocessors of all."""
    assert isinstance(a.s.extent, int)
    written = 2 * splits * a.s.extent * (a.value_size + 2) * 4  # f32, with the maximum and the sum of each row
    read = most(a.t.extent, 1 << 20) * (a.size + a.value_size) * (2 if is_half(a.kernel) else a.ctype.size)
    return written * SMS >= read * (SMS - heads)


def layout(a: Attention, t: SplitTactic) -> SplitLayout:
    """The layout of shared memory: results of all slices, their states, shares, the block's state, a flag."""
    assert isinstance(a.s.extent, int)
    rows, across = a.s.extent, _across(a)
    slices = t.warps if is_half(a.kernel) else t.warps * (32 // across)
    pitch = -(-a.value_size // 8) * 8
    state_at = slices * rows * pitch * 4
    share_at = state_at + slices * rows * 8
    whole_at = share_at + (max(slices, t.splits) * rows + 1) // 2 * 8
    flag_at = whole_at + rows * 8
    return SplitLayout(rows, across, slices, pitch, state_at, share_at, whole_at, flag_at, flag_at + 16)


def render_split(kernel: Kernel, tactic: SplitTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    kernel = packed(kernel)
    a, hooks, half = parts(kernel), Hooks(kernel), is_half(kernel)
    space = layout(a, tactic)
    element = DType(kernel.attrs["precision"]) if half else a.ctype
    lanes = 8 if half else 4
    transfers = {role: transfer(a, hooks, role, element) for role in ("k", "v")} if half else {}
    hooked = {role: lanes for role in ("k", "v") if role not in transfers or not transfers[role].is_async}
    out = 4 if space.rows * a.value_size >= 4 * 32 * tactic.warps else 2
    printed = print_hooks(a, hooks, {"q": lanes, **hooked, "mask": 2 if half else 1, "out": out})
    scalar, params = hooks.params.scalar, hooks.params
    widths = [transfers[role].per if role not in hooked else width for role, width in zip("kv", (printed.k, printed.v))]
    limit, ends = print_limit(a, hooks)
    if tactic.splits > 1:
        params.workspace("partial", DType.F32, a.heads, tactic.splits, space.rows, space.pitch)
        params.workspace("partial_state", DType.F32, a.heads, tactic.splits, space.rows, 2)
        params.counters("arrived", a.heads)
    natural = a.mask_kind != "none"  # as in ffma: in units of log2, scores around -10000 would be rounded more
    unit = 1.0 if natural and not half else LOG2E
    return render(
        "attention/split.cu.j2", kernel, params, arch="sm_80", grid=(a.heads * tactic.splits, 1, 1),
        block=(32 * tactic.warps, 1, 1), shared_bytes=space.bytes,
        tiled=tuple((a.t.extent, tactic.keys * n) for n in (1, tactic.splits, tactic.splits * tactic.warps)),
        a=a, tactic=tactic, layout=space, hooks=printed, functions=[*printed.functions, *ends], limit=limit, half=half,
        transfers=transfers, widths=widths, T=element.value,
        fold=half and a.folds, scale=repr(a.scale * LOG2E), unit=unit,
        score_unit=repr(LOG2E / unit), excluded=a.fill_text(LOG2E if half else 1.0),
        heads=scalar("head_count", a.h.extent), queries=str(space.rows), keys=scalar("key_count", a.t.extent),
        offset=scalar("causal_offset", a.causal_offset),
    )  # fmt: skip
