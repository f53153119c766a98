"""Kernels that show which host threads run them, and the launches of these."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from sim_harness import image

from arcweld.runtime.device import LaunchSpec
from arcweld.runtime.sim.device import SimDevice

# ``met`` counts arrivals. A thread that waits for others gives up after a long while, so that a test fails in the end.
HEAD = """#include "prims.cuh"
#include "last_block.cuh"
extern "C" int sched_yield();
struct Params { u64* y; u32* met; };
__device__ bool meet(u32* met, u32 wanted) {
  atomicAdd(met, 1u);
  for (int i = 0; i < 3000000 && __atomic_load_n(met, __ATOMIC_SEQ_CST) < wanted; ++i) sched_yield();
  return __atomic_load_n(met, __ATOMIC_SEQ_CST) >= wanted;
}
extern "C" __global__ void blocks(const __grid_constant__ Params p) {
  DYN_SHARED(u32, s);
  const u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z), t = threadIdx.x;
  (void)s;
"""
TAIL = "\n}\nEXPORT_KERNEL(blocks)\n"
# Which host thread runs each block.
WHERE = "p.y[block] = (u64)sim_place.sm;"
# Blocks of the first half take some 20 us each, so that sharing is worthwhile; the others wait for one another.
MEET = """
  if (block < gridDim.x / 2) for (int i = 0; i < 3000; ++i) atomicAdd(p.met + 8, 1u);
  else if (!meet(p.met, 2)) __trap();
"""
TOGETHER = MEET + WHERE


@dataclass(frozen=True, slots=True)
class Blocks:
    """A prepared launch of a kernel with the two arrays ``y`` and ``met``, which are the launch's memory itself."""

    device: SimDevice
    y: np.ndarray
    met: np.ndarray
    prepared: Any
    memory: tuple[Any, ...]

    def run(self) -> np.ndarray:
        """Launches with zeros in ``met``; returns a copy of ``y``."""
        self.met[:] = 0
        self.device.launch(self.prepared)
        return self.y.copy()


def blocks(body: str, threads: int, grid: tuple[int, int, int], block: int = 32, cluster: int = 1) -> Blocks:
    """A launch that ``threads`` host threads may share. ``y`` is u64, one a CUDA thread, ``met`` u32[64]: zeros."""
    device = SimDevice()
    device.threads = threads
    count = grid[0] * grid[1] * grid[2] * block
    memory = device.allocate(8 * count), device.allocate(256)
    kernel = device.load_kernel(image(HEAD + body + TAIL, "blocks"), 1024)
    params = struct.pack("<QQ", memory[0].address, memory[1].address).ljust(64, b"\0")
    buffers = ((memory[0].address, 8 * count, True), (memory[1].address, 256, True))
    spec = LaunchSpec("blocks", kernel, grid, (block, 1, 1), 1024, cluster, False, params, buffers)
    y, met = memory[0].array.view(np.uint64), memory[1].array.view(np.uint32)
    y[:] = met[:] = 0
    return Blocks(device, y, met, device.prepare(spec), memory)


# Numbers that are known, by a launch that is worth several host threads.
BODY = "p.y[block * blockDim.x + t] += block; for (int i = 0; i < 2000; ++i) atomicAdd(p.met, 1u);"


def counting(threads: int) -> Blocks:
    """A launch of BODY by 100 blocks of 4 threads."""
    return blocks(BODY, threads, (100, 1, 1), 4)


def is_right(launch: Blocks) -> bool:
    """Whether a run of ``counting`` gives what it should."""
    launch.y[:] = 0
    return bool((launch.run() == np.arange(400) // 4).all()) and launch.met[0] == 400 * 2000


def works(threads: int = 4) -> bool:
    """Whether a new launch of ``counting`` is right."""
    return is_right(counting(threads))


def is_shared() -> bool:
    """Whether several host threads run the blocks of a launch that ends only if they do."""
    return len({*blocks(TOGETHER, 4, (64, 1, 1), 1).run().tolist()}) > 1
