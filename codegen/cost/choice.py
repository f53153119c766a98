"""The model's time of a kernel that is only described: what choices among tactics that nobody measures compare."""

from __future__ import annotations

from arcweld.codegen.cost.fitted import FITTED
from arcweld.codegen.cost.model import TiledWork, tiled_time
from arcweld.codegen.cost.occupancy import LIMITS, RESERVED, USUAL
from arcweld.compiler.cards import Card, usual_card
from arcweld.compiler.tiling import Tiling

RESIDENT = 8  # blocks: registers, which only object code tells, rarely allow more
KINDS = {"conv": "convolution", "attention": "attention"}  # of tiled kernels by their template; others: products


def kind_of(template: str, engine: str) -> str:
    """The kind of measured kernels that a template's tiled kernels count as: a key of ``FITTED``.

    ``engine``: as in ``Tiling``.
    """
    if (template, engine) == ("attention", "mma"):
        return "attention_mma"
    return KINDS.get(template, "product")


def resident(shared_bytes: int, threads: int, card: Card) -> int:
    """Blocks that fit side by side on a multiprocessor, as far as shared memory and threads decide."""
    limits = LIMITS.get(card.arch, USUAL)
    by_memory = limits.shared // (shared_bytes + RESERVED)
    return max(1, min(by_memory, limits.warps * 32 // threads, RESIDENT))


def candidate_us(kind: str, tiling: Tiling[int], shared_bytes: int, threads: int, arch: str) -> float:
    """Modelled microseconds of a candidate of a kind (``kind_of``) on the card that stands for ``arch``.

    What all candidates have in common is left out: a bound by memory. So those which memory would bound are told apart
    by what they do beside it.
    """
    card = usual_card(arch)
    work = TiledWork(tiling, resident(shared_bytes, threads, card))
    return tiled_time(work, card, FITTED[kind]).us
