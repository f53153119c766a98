"""Cooperative launches on the simulator: blocks that wait for each other, and what is said where they don't."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mutate import with_header
from sim_harness import Out, image, run

from arcweld.compiler.errors import DeviceError
from arcweld.runtime.device import LaunchSpec
from arcweld.runtime.sim.device import SimDevice

ROUNDS = """#include "prims.cuh"
#include "grid_barrier.cuh"
struct Params { f32* x; f32* y; };
extern "C" __global__ void rounds(const __grid_constant__ Params p) {
  DYN_SHARED(f32, s);
  const int t = threadIdx.x, blocks = gridDim.x, own = blockIdx.x * blockDim.x + t;
  u32* const counters = reinterpret_cast<u32*>(p.y);
  GridBarrier barrier{counters, (u32)blocks};
  BODY
}
EXPORT_KERNEL(rounds)
"""
# each round adds the next block's number of the round before
ROTATE = """
  const int next = (own + blockDim.x) % (blocks * blockDim.x), all = blocks * blockDim.x;
  s[t] = blockIdx.x;
  for (int round = 0; round < 6; ++round) {
    const f32* const from = p.x + round % 2 * all;
    f32* const to = p.x + (round + 1) % 2 * all;
    to[own] = from[own] + from[next] + s[t];
    barrier.arrive();
    barrier.wait();
  }
  barrier.leave();"""


class Cooperative(SimDevice):
    """A simulator that takes every launch as a cooperative one."""

    def prepare(self, spec: LaunchSpec) -> Any:
        return super().prepare(replace(spec, cooperative=True))


def launch(
    body: str, device: SimDevice, blocks: int = 5, threads: int = 64, source: str = ROUNDS
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, two of each thread, and the counters after the launch."""
    x = np.zeros(2 * blocks * threads, np.float32)
    x[: blocks * threads] = np.arange(blocks * threads) % 7
    kernel = image(source.replace("BODY", body), "rounds")
    arguments = [Out(x), Out(np.zeros(4, np.float32))]
    first, second = run(device, kernel, (blocks,), (threads,), arguments, threads * 4)
    return first, second


def rotated(blocks: int, threads: int) -> np.ndarray:
    x = (np.arange(blocks * threads) % 7).astype(np.float32)
    block = np.repeat(np.arange(blocks), threads)
    for _ in range(6):
        x = x + np.roll(x, -threads) + block
    return x


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (5, 64), (3, 40), (40, 128)])
def test_blocks_see_what_the_others_did_before_the_barrier(
    checked: bool, seed: int, blocks: int, threads: int
) -> None:
    x, counters = launch(ROTATE, Cooperative(checked=checked, seed=seed), blocks, threads)
    np.testing.assert_array_equal(x[: blocks * threads], rotated(blocks, threads))
    assert not counters.any()


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("barrier.wait();", ""), "block number 1 writes at rounds.cu:15 what block number 0 of the same .* has read"),
        (("barrier.arrive();\n    barrier.wait();", ""), "block number 1 writes at rounds.cu:15 what block number 0"),
        (("round % 2 * all", "0"), "what block number . of the same launch has (read|written)"),
        (("barrier.leave();", "if (blockIdx.x) barrier.wait();"), "deadlock: .* to be 35, which is 30; 1 of 5"),
        (("barrier.arrive();", "if (blockIdx.x != 2) barrier.arrive();"), "deadlock: .* number to be 5, which is 4"),
        (("barrier.arrive();", "if (t != 3) __syncthreads();"), "divergent __syncthreads"),
    ],
)  # fmt: skip
def test_checked_mode_finds_what_is_missing(change: tuple[str, str], message: str, seed: int) -> None:
    assert change[0] in ROTATE
    with pytest.raises(DeviceError, match=message):
        launch(ROTATE.replace(*change), Cooperative(checked=True, seed=seed))


@pytest.mark.parametrize(
    "call", ["__syncthreads();\n    if (threadIdx.x == 0) add", "    __syncthreads();\n  }\n  // After"]
)
def test_the_barrier_needs_both_of_its_barriers_of_a_block(call: str) -> None:
    source, _ = with_header(ROUNDS, "grid_barrier.cuh")
    text, missing = re.subn(re.escape(call), call.replace("__syncthreads();", ";"), source)
    assert missing == 1
    with pytest.raises(DeviceError, match="of the same launch has"):
        launch(ROTATE, Cooperative(checked=True), source=text)


def test_threads_of_a_block_that_wait_for_each_other() -> None:
    with pytest.raises(DeviceError, match=r"block \(0,0,0\) .* deadlock: no thread can run; barrier 1 has 32 of 64"):
        launch("if (t < 32) named_bar_sync(1, 64);", Cooperative())


def test_an_ordinary_launch_cannot_wait_for_blocks() -> None:
    message = "waits for a number to be 5, which is 1: only in a cooperative launch are all blocks there"
    with pytest.raises(DeviceError, match=message):
        launch(ROTATE, SimDevice(checked=True))


def test_asynchronous_units_are_refused() -> None:
    body = "cp_async4(smem_u32(s + t), p.x + own);\n  barrier.arrive();\n  barrier.wait();\n  barrier.leave();"
    with pytest.raises(DeviceError, match="a block of a cooperative launch uses asynchronous copies"):
        launch(body, Cooperative())


def test_too_many_threads_at_once_are_refused() -> None:
    with pytest.raises(DeviceError, match="at most 65536 threads at once, the cooperative launch has 66560"):
        launch(ROTATE, Cooperative(), 65, 1024)


def test_an_ordinary_launch_after_a_failed_one_is_right() -> None:
    with pytest.raises(DeviceError):
        launch(ROTATE.replace("barrier.wait();", ""), Cooperative(checked=True))
    device = SimDevice(checked=True)
    x, _ = launch("s[t] = p.x[own]; __syncthreads(); p.x[own] = s[t ^ 1];", device)
    plain = (np.arange(320) % 7).astype(np.float32)
    np.testing.assert_array_equal(x[:320], plain.reshape(-1, 2)[:, ::-1].reshape(-1))
