"""The attention template: ``softmax(scale * q k^T + mask) v`` in one pass over the keys, never storing the scores.

The softmax is online (Milakov and Gimelshein, 2018), in tiles as in FlashAttention (Dao et al., 2022). Roles,
attributes and the meaning of masks are documented in ``attention.parts``.
"""

from __future__ import annotations

from collections.abc import Callable

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.printing.nest import most
from arcweld.codegen.templates.attention import ffma, mma, split, wgmma
from arcweld.codegen.templates.attention.parts import parts, unsupported
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.implementation import Implementation


def _fills_the_card(kernel: Kernel) -> bool:
    """True if there are at least 64 queries, and a block of 64 queries for every multiprocessor."""
    a = parts(kernel)
    queries = most(a.s.extent, 512)
    return queries >= 64 and most(a.heads, 16) * -(-queries // 64) >= SMS


def _supports(own: Callable[[Kernel, str], str | None]) -> Callable[[Kernel, str], str | None]:
    """``supports`` of an implementation: the reason why none can render a kernel, else the one that ``own`` gives."""
    return lambda kernel, arch: unsupported(kernel) or own(kernel, arch)


IMPLEMENTATIONS = (
    Implementation("split", "sm_80", split.render_split, split.tactics, _supports(split.supports), split.defers),
    Implementation(
        "wgmma", wgmma.ARCH, wgmma.render_wgmma, wgmma.tactics, _supports(wgmma.supports),
        defers=lambda kernel: not _fills_the_card(kernel),
    ),
    Implementation("mma", "sm_80", mma.render_mma, mma.tactics, _supports(mma.supports)),
    Implementation("ffma", "sm_80", ffma.render_ffma, ffma.tactics, _supports(ffma.supports)),
)  # fmt: skip
