"""Teams of one thread: when a block is one, and what the twins of team.cuh compute."""

from __future__ import annotations

import numpy as np
import pytest
from sim_harness import In, Out, image, run

from arcweld.runtime.sim.device import ADVERSE_SEED, SimDevice

THREADS, COLUMNS = 96, 1000
SUMS = """#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"
struct Params { const f32* x; i32* sizes; f32* sums; };
extern "C" __global__ void sums(const __grid_constant__ Params p) {
  DYN_SHARED(f32, scratch);
  BEFORE
  const Team<96> team;
  p.sizes[blockIdx.x * 96 + threadIdx.x] = team.size;
  const f32 sum = row_reduce<96, 4, true>(team, 0.0f, 1000, scratch, OpSum(), [&](int col, f32 (&term)[4]) {
    for (int e = 0; e < 4; ++e) term[e] = p.x[blockIdx.x * 1000 + col + e];
  });
  __syncthreads();
  if (team.rank == 0) p.sums[blockIdx.x] = sum;
}
EXPORT_KERNEL(sums)
"""
WIDENED = """#include "prims.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "team.cuh"
struct Params { const u32* from; f32* to; };
extern "C" __global__ void widened(const __grid_constant__ Params p) {
  const Team<32> team;
  for (int i = team.rank; i < 8192; i += team.size) {
    f32 x[8];
    widen<T>(load_vec<4>(p.from + 4 * i), x);
    for (int e = 0; e < 8; ++e) p.to[8 * i + e] = x[e];
  }
}
EXPORT_KERNEL(widened)
"""


def summed(device: SimDevice, before: str = "") -> tuple[np.ndarray, np.ndarray]:
    """What each thread of three blocks takes its team's size for, -1 if it never ran; the sums of three rows."""
    x = np.random.default_rng(3).standard_normal((3, COLUMNS)).astype(np.float32)
    arguments = [In(x), Out(np.full((3, THREADS), -1, np.int32)), Out(np.zeros(3, np.float32))]
    kernel = image(SUMS.replace("BEFORE", before), "sums")
    sizes, sums = run(device, kernel, (3,), (THREADS,), arguments, 4 * THREADS // 32)
    np.testing.assert_allclose(sums, x.astype(np.float64).sum(axis=1), atol=1e-4)
    return sizes, sums


def test_one_thread_takes_a_block_that_runs_in_order_without_checks() -> None:
    alone, sums = summed(SimDevice())
    np.testing.assert_array_equal(alone, np.tile([1] + [-1] * (THREADS - 1), (3, 1)))
    for device in (SimDevice(seed=ADVERSE_SEED), SimDevice(checked=True)):
        sizes, others = summed(device)
        assert (sizes == THREADS).all()
        np.testing.assert_array_equal(others, sums)  # one order of summation


@pytest.mark.parametrize("before", ["__syncthreads();", "__syncwarp();"])
def test_no_thread_takes_a_block_in_which_others_have_begun(before: str) -> None:
    sizes, sums = summed(SimDevice(), before)
    assert (sizes == THREADS).all()
    np.testing.assert_array_equal(sums, summed(SimDevice())[1])


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_number_of_16_bits_is_widened(dtype: str, checked: bool) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    want = (
        bits.view(np.float16).astype(np.float32) if dtype == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)
    )
    kernel = image(WIDENED.replace("<T>", f"<{dtype}>"), "widened")
    (got,) = run(SimDevice(checked=checked), kernel, (1,), (32,), [In(bits), Out(np.zeros(1 << 16, np.float32))])
    np.testing.assert_array_equal(got, want)
