"""Blocks of one launch on several host threads: who runs them, atomics, errors, clusters, floating-point settings."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
import threading
from collections.abc import Callable

import numpy as np
import pytest
from demo_kernels import Demo, layernorm, mma_gemm, wgmma_gemm
from sim_harness import Out, image, run
from thread_kernels import MEET, TOGETHER, WHERE, blocks, is_shared

from arcweld.compiler import cpus
from arcweld.compiler.errors import DeviceError, EnvironmentError_
from arcweld.runtime.devices import open_device
from arcweld.runtime.sim import device as sim
from arcweld.runtime.sim.build import runtime_library
from arcweld.runtime.sim.device import SimDevice, host_threads

# ------------------------------------------------------------------------------------------------ who runs the blocks


@pytest.mark.parametrize("threads", [2, 4])
def test_blocks_run_at_the_same_time(threads: int) -> None:
    launch = blocks(TOGETHER, threads, (64, 1, 1), 1)
    for _ in range(3):
        assert 2 <= len({*launch.run().tolist()}) <= threads


def test_one_thread_runs_all_blocks_in_order() -> None:
    launch = blocks("p.y[block * blockDim.x + t] = atomicAdd(p.met, 1u);", 1, (5, 3, 2), 4)
    np.testing.assert_array_equal(launch.run(), np.arange(120))
    assert len({*blocks(WHERE, 1, (2000, 1, 1), 1).run().tolist()}) == 1


def test_every_block_runs_once_with_its_own_index() -> None:
    body = "p.y[block * blockDim.x + t] += blockIdx.x + 1000 * blockIdx.y + 1000000 * blockIdx.z + 100000000ull * t;"
    z, y, x, t = np.meshgrid(np.arange(7), np.arange(11), np.arange(101), np.arange(8), indexing="ij")
    expected = x + 1000 * y + 1000000 * z + 100000000 * t
    for threads in (1, 2, 4, 7):
        got = blocks(body, threads, (101, 11, 7), 8).run()
        np.testing.assert_array_equal(got, expected.reshape(-1))


def test_a_cluster_stays_on_one_host_thread() -> None:
    where = blocks(TOGETHER, 4, (64, 1, 1), 1, cluster=4).run().reshape(16, 4)
    assert (where == where[:, :1]).all()
    assert len({*where.reshape(-1).tolist()}) > 1


def test_fibers_and_scratch_memory_of_host_threads_are_their_own() -> None:
    body = """
      for (int round = 0; round < 20; ++round) {
        s[t] = block * 64 + t + round;
        __syncthreads();
        u32 v = s[t ^ 33];
        for (int m = 16; m; m /= 2) v += __shfl_xor_sync(~0u, v, m);
        __syncthreads();
        p.y[block * blockDim.x + t] += v;
      }"""
    launch = blocks(body, 4, (300, 1, 1), 64)
    block, t = np.divmod(np.arange(300 * 64), 64)
    warp = (t // 32) ^ 1  # whose numbers are read
    expected = sum(32 * (block * 64 + 32 * warp + r) + 31 * 16 for r in range(20))
    np.testing.assert_array_equal(launch.run(), expected)


@pytest.mark.parametrize("make", [mma_gemm, wgmma_gemm, layernorm])
def test_units_of_host_threads_are_their_own(make: Callable[[], Demo]) -> None:
    demo, device = make(), SimDevice()
    device.threads = 4
    for _ in range(20):
        assert demo.error(device) <= demo.tolerance


# What hosts.cpp has under its lock, the checker for the one launch that it looks at, and what loading tells of the CPU.
SHARED = """
  block_start buffer_capacity buffer_count buffers clock_of fenced fenced_clock fenced_view free_sms grid_shadow
  grid_shadow_bytes guards idle known known_capacity last_buffer last_region launch_blocks launching left lock
  old_actions open_launches opened overlapping pdl_clock pdl_waits region_capacity region_count regions released
  released_capacity released_count shadow sim_uses_avx512 sites spin_address spin_count usual_shadow view workers
  writes_capacity writes_of
"""


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_no_variable_of_the_runtime_is_shared_by_accident() -> None:
    """A variable of the runtime library belongs into ``Sm``, or several host threads change it at once."""
    listed = subprocess.run(["nm", "-C", str(runtime_library())], capture_output=True, text=True, check=True).stdout
    variables = {*re.findall(r" [bBdD] (?:sim::)?(?:\(anonymous namespace\)::)?(\w+)$", listed, re.M)}
    ours = {name for name in variables if not name.startswith("_")}  # others are the C library's
    assert {"lock", "shadow"} <= ours
    assert ours - {*SHARED.split()} == {"sim_place"}  # which each thread has


# ------------------------------------------------------------------------------------------------ atomics

ATOMICS = """#include "prims.cuh"
struct Params { i32* ints; f32* floats; f64* doubles; f16* halves; bf16* bfloats; u64* longs; };
extern "C" __global__ void atomics(const __grid_constant__ Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  for (int k = 0; k < 4; ++k) {
    atomic_add(p.ints, i);
    atomic_max(p.ints + 1, (i * 7919) % n);
    atomic_min(p.ints + 2, (i * 7919) % n - 5);
    atomic_inc((u32*)p.ints + 3, 99);
    atomicOr(p.ints + 4, 1 << i % 31);
    atomicSub(p.ints + 5, 3);
    for (i32 old = p.ints[6]; ;) {  // as a caller's own loop does
      const i32 seen = atomicCAS(p.ints + 6, old, old + 2);
      if (seen == old) break;
      old = seen;
    }
    atomic_add(p.floats, 1.f);
    atomic_max(p.floats + 1, (f32)((i * 7919) % n));
    atomic_min(p.floats + 2, -(f32)((i * 7919) % n));
    atomic_add(p.doubles, 0.5);
    if (i % 128 == 0) atomic_add(p.halves + 1, from_f32<f16>(1.f));
    if (i % 1024 == 0) atomic_add(p.bfloats + 1, from_f32<bf16>(1.f));
    atomicAdd(p.longs, 1ull << 32);
  }
}
EXPORT_KERNEL(atomics)
"""


def test_atomics_are_atomic() -> None:
    blocks_, block = 256, 128
    n = blocks_ * block
    device = SimDevice()
    device.threads = 4
    for _ in range(3):
        arrays = [np.zeros(8, t) for t in (np.int32, np.float32, np.float64, np.float16, np.uint16, np.uint64)]
        ints, floats, doubles, halves, bfloats, longs = run(
            device, image(ATOMICS, "atomics"), (blocks_,), (block,), [Out(a) for a in arrays]
        )
        most = (np.arange(n) * 7919 % n).max()
        assert ints[:7].tolist() == [2 * n * (n - 1), most, -5, 4 * n % 100, 2**31 - 1, -12 * n, 8 * n]
        assert floats[:3].tolist() == [4 * n, most, -most]
        assert (doubles[0], halves[1], longs[0]) == (2 * n, 4 * n / 128, 4 * n << 32)
        assert bfloats[1] == np.array([4 * n / 1024], np.float32).view(np.uint32)[0] >> 16
        assert halves[0] == bfloats[0] == halves[2] == bfloats[2] == 0


def test_the_last_block_sees_what_the_others_wrote() -> None:
    body = """
      p.y[block * blockDim.x + t] = block + t;
      if (!is_last_block(p.met, gridDim.x, s)) return;
      for (u32 i = t; i < gridDim.x * blockDim.x; i += blockDim.x) atomicAdd((u64*)(p.met + 2), p.y[i]);
      if (t == 0) atomicAdd(p.met + 4, 1u);"""
    launch = blocks(body, 4, (400, 1, 1), 32)
    for _ in range(20):
        launch.y[:] = 0
        launch.run()
        assert launch.met[2:4].view(np.uint64)[0] == np.add.outer(np.arange(400), np.arange(32)).sum()
        assert launch.met[[0, 4]].tolist() == [0, 1]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("__trap();", r"__trap\(\)"),
        ("*(volatile int*)(u64)(8 + p.met[5]) = 1;", "invalid or misaligned memory access"),
        ("p.y[0] = 12345 / (int)p.met[5];", "integer division by zero"),
        ("if (t) __syncthreads();", "deadlock"),
    ],
)
def test_the_first_block_that_fails_is_reported(fault: str, message: str) -> None:
    # blocks before it take long, so that later ones fail earlier
    wait = "if (block < 37) for (int i = 0; i < 20000; ++i) atomicAdd(p.met + 1, 1u);\n"
    launch = blocks(f"{wait}if (block >= 37) {{ {fault} }}", 4, (200, 1, 1), 2)
    for _ in range(5):
        with pytest.raises(DeviceError, match=rf"block \(37,0,0\) thread \([01],0,0\): .*{message}"):
            launch.run()
        assert launch.met[1] == 37 * 2 * 20000  # those before it have run to their end
    assert is_shared()  # the workers go on


def test_failures_of_threads_that_launch_at_once_are_told_apart() -> None:
    launches = [blocks(f'if (block == {i}) sim_fail("number {i}");', 2, (40, 1, 1), 1) for i in range(8)]
    seen: dict[int, list[str]] = {}

    def fail(i: int) -> None:
        for _ in range(30):
            with pytest.raises(DeviceError) as caught:
                launches[i].run()
            seen.setdefault(i, []).append(caught.value.message)

    threads = [threading.Thread(target=fail, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert len(seen[i]) == 30
        assert all(f"block ({i},0,0)" in text and f"number {i}" in text for text in seen[i])


# ------------------------------------------------------------------------------------------------ settings

FE_TONEAREST, FE_UPWARD = 0, {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]  # of the C library's fenv.h


def test_workers_round_as_the_launching_thread_does() -> None:
    body = MEET + "p.y[block] = __float_as_uint(1.f / (f32)(block + 3 + p.met[9]));"
    libm = ctypes.CDLL("libm.so.6")
    launch = blocks(body, 4, (64, 1, 1), 1)
    near = launch.run().astype(np.uint32).view(np.float32)
    libm.fesetround(FE_UPWARD)
    try:
        up = launch.run().astype(np.uint32).view(np.float32)
    finally:
        libm.fesetround(FE_TONEAREST)
    exact = 1 / (np.arange(64, dtype=np.float64) + 3)
    np.testing.assert_array_equal(near, exact.astype(np.float32))
    above = np.where(near < exact, np.nextafter(near, np.float32(1)), near)
    np.testing.assert_array_equal(up, above)


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", " 2", "257", "9" * 5000, "²"])
def test_a_wrong_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ARCWELD_SIM_THREADS", value)
    for make in (host_threads, SimDevice):
        with pytest.raises(EnvironmentError_, match=r"ARCWELD_SIM_THREADS is .* 1 to 256") as caught:
            make()
        assert repr(value) in caught.value.message
        assert "ARCWELD_SIM_THREADS" in str(caught.value.hint)


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_SIM_THREADS", "3")
    assert SimDevice().threads == 3
    monkeypatch.setenv("ARCWELD_SIM_THREADS", "")
    assert SimDevice().threads == cpus.available_cpus()
    monkeypatch.delenv("ARCWELD_SIM_THREADS")
    monkeypatch.setattr(sim, "available_cpus", lambda: 1000)
    assert SimDevice().threads == 256
    assert open_device("sim").name == "sim"
