"""Attention on Hopper's tensor cores: ``wgmma`` (PTX ISA) on tiles of f16 or bf16 that TMA copies to shared memory.

One thread fills rings of key and value tiles; every other warpgroup computes 64 queries, with the scores in registers.
The two ways of overlapping are those of FlashAttention-3 (Shah et al., 2024): with ``overlap``, the scores of the next
tile are computed during the softmax of this one; with ``ping_pong``, two warpgroups take turns on the tensor cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arcweld.codegen.kernel import Axis, Kernel, KernelSource, axis
from arcweld.codegen.printing.hooks import Hooks, Plain, plain_load
from arcweld.codegen.printing.nest import most
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.attention.parts import LOG2E, Attention, parts, print_hooks, shared_heads
from arcweld.codegen.templates.card import SM90_SHARED_LIMIT, SMS
from arcweld.codegen.templates.tiling import attention_tiling
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.expr import load
from arcweld.compiler.parameters import TensorMap

ARCH = "sm_90a"
MOST_HEAD_SIZE = 128
MASKED_KEYS = 64  # the most keys of a tile with a mask, whose values take registers
USUAL_SYMBOLIC = 512  # keys that are assumed where no upper bound is known
CAUSAL_HEADS = 8  # heads whose tiles are computed side by side with a causal mask, longest first


@dataclass(frozen=True, slots=True)
class AttentionWgmmaTactic:
    """How a block divides its work.

    groups      warpgroups that multiply, with 64 queries each
    keys        keys of a tile
    stages      pipeline stages: tiles of keys, and of values, in shared memory
    overlap     compute the next tile's scores during this tile's softmax
    ping_pong   let two warpgroups take turns on the tensor cores
    persistent  as many blocks as run at once, each of which takes several tiles of queries
    blocks      blocks that run on a multiprocessor at once
    """

    implementation: ClassVar[str] = "wgmma"

    groups: int = 1
    keys: int = 64
    stages: int = 2
    overlap: bool = False
    ping_pong: bool = False
    persistent: bool = False
    blocks: int = 1

    @property
    def registers(self) -> tuple[int, int]:
        """Registers (setmaxnreg) of a thread that loads and of one that multiplies; (0, 0): as the compiler has it."""
        return {1: (0, 0), 2: (24, 240), 3: (32, 160)}[self.groups]

    @property
    def threads(self) -> int:
        """Threads of a block: the warpgroups that multiply, and a warp or (for setmaxnreg) warpgroup that loads."""
        return 128 * self.groups + (128 if self.registers[0] else 32)


@dataclass(frozen=True, slots=True)
class WgmmaLayout:
    """Sizes and offsets in bytes of shared memory; depths in elements.

    An operand is stored as chunks of 64 columns, one after the other, in lines of 128 bytes that TMA swizzles.
    """

    depth: int
    value_depth: int
    chunks: int
    value_chunks: int
    q_bytes: int
    k_bytes: int
    v_bytes: int
    k_at: int
    v_at: int
    barriers_at: int
    total: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """An operand that TMA fetches: a descriptor of four dimensions, and C texts of its head and batch coordinates."""

    view: TensorMap[Dim]
    head: str
    batch: str


def layout(a: Attention, t: AttentionWgmmaTactic) -> WgmmaLayout:
    """The layout of shared memory: queries, the rings of keys and of values, mbarriers."""
    chunks, value_chunks = -(-a.size // 64), -(-a.value_size // 64)
    q, k, v = chunks * 64 * 128, chunks * t.keys * 128, value_chunks * t.keys * 128
    k_at = t.groups * q
    v_at = k_at + t.stages * k
    barriers_at = v_at + t.stages * v
    depth, value_depth = -(-a.size // 16) * 16, -(-a.value_size // 16) * 16
    total = barriers_at + 16 * t.groups + 32 * t.stages
    return WgmmaLayout(depth, value_depth, chunks, value_chunks, q, k, v, k_at, v_at, barriers_at, total)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this implementation can't render the kernel, or None."""
    if arch != ARCH:
        return f"{arch} has no wgmma"
    if kernel.attrs["precision"] not in ("f16", "bf16"):
        return f"precision {kernel.attrs['precision']} is not f16 or bf16"
    a = parts(kernel)
    if max(a.size, a.value_size) > MOST_HEAD_SIZE:
        return f"a head size above {MOST_HEAD_SIZE}"
    if a.scale <= 0:
        return "the scale is not positive"
    if not dims.is_nonneg(a.t.extent - 1):
        return "there may be no keys, which no descriptor can say"
    for role in ("q", "k", "v"):
        reason = _map_refusal(a, role)
        if reason is not None:
            return f"{role}: {reason}"
    return None


def _plain(a: Attention, role: str) -> tuple[Plain | None, Axis]:
    """The operand as an affine load over batch, head, row and column, or None; and its head axis.

    Where query heads share keys and values, that is the axis of the latter's heads.
    """
    e, head = a.kernel.loads[role], a.h
    row, lane = (a.s if role == "q" else a.t), (a.dv if role == "v" else a.d)
    shared = shared_heads(a.kernel, role)
    if shared is not None and isinstance(a.h.extent, int) and e.op == "load" and not e.args:
        head = axis("kv_h", a.h.extent // shared.b if isinstance(shared.b, int) else 1)
        buffer, dtype, coords = e.attr
        e = load(buffer, dtype, [dims.substitute(c, {shared: head.index}) for c in coords])
    return plain_load(a.kernel, e, [a.b.sym, head.sym, row.sym, lane.sym]), head


def _map_refusal(a: Attention, role: str) -> str | None:
    """The reason why TMA can't fetch the operand, or None."""
    plain, head = _plain(a, role)
    if plain is None:
        return "not a plain load with constant strides"
    if plain.buffer.dtype.value != a.kernel.attrs["precision"]:
        return f"stored as {plain.buffer.dtype.value}"
    lane, row = (a.dv if role == "v" else a.d), (a.s if role == "q" else a.t)
    if plain.strides[lane.sym] != 1 and lane.extent != 1:
        return "not contiguous along the head size"
    steps = [plain.strides[x.sym] for x in (row, head, a.b)]
    if not all(dims.is_multiple(d, 8) for d in (plain.offset, *steps)):
        return "rows do not start on 16 bytes"
    return None if all(dims.is_nonneg(d) for d in (plain.offset, *steps)) else "a stride may be negative"


def _mapped(a: Attention, role: str, rows: int) -> Mapped:
    plain, head = _plain(a, role)
    assert plain is not None
    lane, row = (a.dv if role == "v" else a.d), (a.s if role == "q" else a.t)
    assert isinstance(lane.extent, int)
    line = -(-lane.extent // 8) * 8
    extents: list[Dim] = [lane.extent]
    strides: list[Dim] = []
    for x in (row, head, a.b):
        step = plain.strides[x.sym]
        still = isinstance(step, int) and step == 0
        extents.append(row.extent if x is row else (1 if still else x.extent))
        strides.append((line if still else step) * plain.buffer.dtype.size)
    view = TensorMap(
        f"map_{role}", plain.buffer.name, plain.offset * plain.buffer.dtype.size, dims=tuple(extents),
        strides=tuple(strides), box=(64, rows, 1, 1), element_strides=(1, 1, 1, 1),
    )  # fmt: skip
    group = a.h.extent // head.extent if isinstance(a.h.extent, int) and isinstance(head.extent, int) else 1
    head_text = "0" if extents[2] == 1 else ("h" if group == 1 else f"h / {group}")
    return Mapped(view, head_text, "0" if extents[3] == 1 else "b")


def tactics(kernel: Kernel, arch: str) -> tuple[AttentionWgmmaTactic, ...]:
    """Tactics that fit. Many keys: blocks of two or three warpgroups first; few: several blocks of one warpgroup."""
    a = parts(kernel)
    keys = most(a.t.extent, USUAL_SYMBOLIC)
    crowd, take_turns = 3 if a.mask is None else 2, not a.causal
    small = [
        AttentionWgmmaTactic(1, 64, 3, persistent=take_turns, blocks=crowd),
        AttentionWgmmaTactic(1, 112, 2, persistent=take_turns, blocks=crowd),
        AttentionWgmmaTactic(1, 128, 1, blocks=crowd),
        AttentionWgmmaTactic(1, 64, 2, blocks=crowd),
        AttentionWgmmaTactic(1, 64, 2, blocks=2),
    ]
    small = small[_least_waste(keys, small[:3]) :] + small[: _least_waste(keys, small[:3])]
    large = [
        AttentionWgmmaTactic(2, 128, 3, True, True, take_turns),
        AttentionWgmmaTactic(2, 128, 2, True, True, take_turns),
        AttentionWgmmaTactic(2, 160, 2, True, True, take_turns),
        AttentionWgmmaTactic(2, 128, 2, True, True),
    ]
    large.insert(0 if take_turns else len(large), AttentionWgmmaTactic(3, 128, 3, True, True, take_turns))
    ordered = (large + small) if keys > 768 and a.mask is None else (small + large)
    fitting = [
        t
        for t in ordered
        if layout(a, t).total <= SM90_SHARED_LIMIT // t.blocks
        and (a.mask is None or t.keys <= MASKED_KEYS)
        and (t.groups < 3 or a.value_size <= 64)
        and (t.keys <= 128 or a.value_size > 64)
        and (t.stages < 3 or t.groups == 1 or a.value_size <= 64)
        and (a.value_size <= 64 or t.groups > 1 or t.blocks <= 2)
    ]
    return tuple(dict.fromkeys(fitting))[:6]


def _least_waste(keys: int, choices: list[AttentionWgmmaTactic]) -> int:
    """The position of the choice whose last tile has the fewest absent keys; of equals, the one with larger tiles."""
    overshoot = [(-(-keys // t.keys) * t.keys - keys, -t.keys) for t in choices]
    return overshoot.index(min(overshoot))


def render_wgmma(kernel: Kernel, tactic: AttentionWgmmaTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, for sm_90a."""
    a, hooks = parts(kernel), Hooks(kernel)
    space = layout(a, tactic)
    printed = print_hooks(a, hooks, {"mask": 2, "out": 2})
    maps = {role: _mapped(a, role, 64 if role == "q" else tactic.keys) for role in ("q", "k", "v")}
    for m in maps.values():
        hooks.params.tensor_map(m.view)
    scalar = hooks.params.scalar
    rows = dims.ceildiv(a.s.extent, 64 * tactic.groups)
    tiles = rows * a.heads
    return render(
        "attention/wgmma.cu.j2", kernel, hooks.params, arch=ARCH,
        grid=(dims.minimum(tiles, SMS * tactic.blocks) if tactic.persistent else tiles, 1, 1),
        block=(tactic.threads, 1, 1), shared_bytes=space.total,
        tiled=(
            *overlapping(a.s.extent, 64 * tactic.groups), (a.t.extent, tactic.keys * tactic.stages),
            (tiles, SMS * tactic.blocks),
        ),
        tiling=attention_tiling(
            a, "wgmma", 64 * tactic.groups, tactic.keys, tactic.stages, tiles, 64, tactic.persistent
        ),
        a=a, t=tactic, layout=space, hooks=printed, maps=maps,
        T=kernel.attrs["precision"], scale=repr(a.scale * LOG2E), excluded=a.fill_text(LOG2E),
        unit=LOG2E, fold=a.folds,
        wgmma_ns=tuple(sorted({tactic.keys, space.value_depth})), tiles=scalar("tile_count", tiles),
        row_tiles=scalar("query_tiles", rows), all_heads=scalar("all_heads", a.heads),
        section=CAUSAL_HEADS if a.causal else 1, heads=scalar("head_count", a.h.extent),
        queries=scalar("query_count", a.s.extent), keys=hooks.params.member("key_count", a.t.extent),
        offset=scalar("causal_offset", a.causal_offset),
    )  # fmt: skip
