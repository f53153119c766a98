"""What choices that are not measured assume about a GPU: sizes of the cards that stand for architectures.

Sizes of shared memory are those of the CUDA Programming Guide's table of compute capabilities.
"""

from __future__ import annotations

from arcweld.compiler.cards import usual_card

# the most blocks that wait for each other: the multiprocessors of an A30, of usual cards in data centres the smallest
RESIDENT_BLOCKS = 56
SMS = usual_card("sm_90a").multiprocessors  # for choices that are the same for all architectures
SHARED_LIMIT = 99 * 1024  # bytes of shared memory that every supported card gives a block
SM90_SHARED_LIMIT = 227 * 1024  # bytes that a block gets on sm_90


def multiprocessors(arch: str) -> int:
    """Streaming multiprocessors of the card that stands for ``arch``."""
    return usual_card(arch).multiprocessors
