"""What untuned choices assume about a card.

Sizes of shared memory are those of the CUDA Programming Guide's table of compute capabilities.
"""

from __future__ import annotations

# streaming multiprocessors of the card that each architecture is usually found as
MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90a": 132, "sm_120": 170}
SMS = MULTIPROCESSORS["sm_90a"]  # where one choice serves all architectures
SHARED_LIMIT = 99 * 1024  # bytes of shared memory that every supported card gives a block
SM90_SHARED_LIMIT = 227 * 1024  # bytes that a block gets on sm_90


def multiprocessors(arch: str) -> int:
    """How many blocks a ranking takes to run side by side."""
    return MULTIPROCESSORS.get(arch, MULTIPROCESSORS["sm_80"])
