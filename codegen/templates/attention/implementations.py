"""The attention template: ``softmax(scale * q k^T + mask) v`` in one pass over the keys, never storing the
scores.

Roles, attributes and the meaning of masks stand in ``attention_parts``. Engines: ``ffma`` takes everything;
``mma`` takes f16 and bf16 on tensor cores.
"""

from __future__ import annotations

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.nest import most
from arcweld.codegen.templates.attention import ffma as attention_ffma
from arcweld.codegen.templates.attention import mma as attention_mma
from arcweld.codegen.templates.attention import wgmma as attention_wgmma
from arcweld.codegen.templates.attention.ffma import FfmaTactic
from arcweld.codegen.templates.attention.mma import MmaTactic
from arcweld.codegen.templates.attention.parts import parts, unsupported
from arcweld.codegen.templates.attention.wgmma import WgmmaTactic
from arcweld.codegen.templates.card import SMS

AttentionTactic = FfmaTactic | MmaTactic | WgmmaTactic


def tactics(kernel: Kernel, arch: str) -> tuple[AttentionTactic, ...]:
    """The analytical choice first: tensor cores for f16 and bf16, else the ordinary pipelines."""
    if attention_mma.supports(kernel, arch) is None:
        portable: tuple[AttentionTactic, ...] = attention_mma.tactics(kernel, arch)
        if attention_wgmma.supports(kernel, arch) is not None:
            return portable
        exact: tuple[AttentionTactic, ...] = attention_wgmma.tactics(kernel, arch)
        return (*exact, *portable[:4]) if fills_the_card(kernel) else (*portable[:8], *exact[:3])
    return attention_ffma.tactics(kernel, arch)


def fills_the_card(kernel: Kernel) -> bool:
    """True if there are enough queries for blocks of 64 on every multiprocessor."""
    a = parts(kernel)
    queries = most(a.s.extent, 512)
    return queries >= 64 and most(a.heads, 16) * -(-queries // 64) >= SMS


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    return unsupported(kernel)


def render_attention(kernel: Kernel, tactic: AttentionTactic, arch: str) -> KernelSource:
    """Renders with the engine that ``tactic`` belongs to."""
    if isinstance(tactic, MmaTactic):
        return attention_mma.render_mma(kernel, tactic, arch)
    if isinstance(tactic, WgmmaTactic):
        return attention_wgmma.render_wgmma(kernel, tactic, arch)
    return attention_ffma.render_ffma(kernel, tactic, arch)
