"""What choices that are not measured assume about a GPU.

Sizes of shared memory are those of the CUDA Programming Guide's table of compute capabilities.
"""

from __future__ import annotations

# streaming multiprocessors of the commonest GPU of each architecture
MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90a": 132, "sm_120": 170}
# the most blocks that wait for each other: the multiprocessors of an A30, of usual cards in data centres the smallest
RESIDENT_BLOCKS = 56
SMS = MULTIPROCESSORS["sm_90a"]  # for choices that are the same for all architectures
SHARED_LIMIT = 99 * 1024  # bytes of shared memory that every supported card gives a block
SM90_SHARED_LIMIT = 227 * 1024  # bytes that a block gets on sm_90


def multiprocessors(arch: str) -> int:
    """Streaming multiprocessors that rankings of tactics assume for ``arch``."""
    return MULTIPROCESSORS.get(arch, MULTIPROCESSORS["sm_80"])
