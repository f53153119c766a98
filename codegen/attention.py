"""The attention template: ``softmax(scale * q k^T + mask) v`` in one pass over the keys, never storing the
scores.

Roles, attributes and the meaning of masks stand in ``attention_parts``. Engines: ``ffma`` takes everything;
``mma`` takes f16 and bf16 on tensor cores.
"""

from __future__ import annotations

from arcweld.codegen import attention_ffma, attention_mma
from arcweld.codegen.attention_ffma import FfmaTactic
from arcweld.codegen.attention_mma import MmaTactic
from arcweld.codegen.attention_parts import unsupported
from arcweld.codegen.kernel import Kernel, KernelSource

AttentionTactic = FfmaTactic | MmaTactic


def tactics(kernel: Kernel, arch: str) -> tuple[AttentionTactic, ...]:
    """The analytical choice first: tensor cores for f16 and bf16, else the ordinary pipelines."""
    if attention_mma.supports(kernel, arch) is None:
        return attention_mma.tactics(kernel, arch)
    return attention_ffma.tactics(kernel, arch)


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    return unsupported(kernel)


def render_attention(kernel: Kernel, tactic: AttentionTactic, arch: str) -> KernelSource:
    """Renders with the engine that ``tactic`` belongs to."""
    if isinstance(tactic, MmaTactic):
        return attention_mma.render_mma(kernel, tactic, arch)
    return attention_ffma.render_ffma(kernel, tactic, arch)
