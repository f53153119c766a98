"""Occupancy: how many warps of a kernel a multiprocessor holds, of those that it could.

Limits and how registers are given out are from the CUDA C++ Programming Guide (technical specifications by compute
capability) and the occupancy calculator of Nsight Compute.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a multiprocessor: warps, blocks, bytes of shared memory."""

    warps: int
    blocks: int
    shared: int


LIMITS = {
    "sm_80": Limits(64, 32, 164 << 10), "sm_86": Limits(48, 16, 100 << 10), "sm_89": Limits(48, 24, 100 << 10),
    "sm_90a": Limits(64, 32, 228 << 10), "sm_100": Limits(64, 32, 228 << 10), "sm_120": Limits(48, 24, 100 << 10),
}  # fmt: skip
USUAL = LIMITS["sm_120"]  # for a newer one
REGISTERS = 64 << 10  # of a multiprocessor
RESERVED = 1 << 10  # bytes of shared memory of each block
REGISTER_UNIT, WARP_UNIT = 256, 4  # a warp's registers come in such units, and the warps of a block


def occupancy(registers: int, shared_bytes: int, threads: int, arch: str) -> float | None:
    """Resident warps by the most that there can be, from 0 to 1; None for an architecture without known limits.

    registers, threads  of a thread, of a block
    shared_bytes        of a block
    """
    limits = LIMITS.get(arch)
    if limits is None:
        return None
    warps = -(-threads // 32)
    each = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // each // WARP_UNIT * WARP_UNIT // warps if each else limits.blocks
    by_memory = limits.shared // (shared_bytes + RESERVED)
    blocks = min(by_registers, by_memory, limits.warps // warps, limits.blocks)
    return blocks * warps / limits.warps
