"""The checked mode and the scheduler find injected bugs, and name the kernel's line."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from demo_kernels import DEMOS, Demo, edited
from mutate import mutations, survivors
from sim_harness import Argument, In, Out, image, run

from arcweld.compiler.errors import DeviceError
from arcweld.runtime.device import LaunchSpec
from arcweld.runtime.sim.device import SimDevice, SimMemory


@pytest.mark.parametrize("name", [name for name in DEMOS if name != "gelu"])
def test_every_deleted_synchronisation_is_noticed(name: str) -> None:
    demo = DEMOS[name]()
    assert len(mutations(demo.source)) >= 2
    for seed in (0, 9):
        device = SimDevice(checked=True, seed=seed)
        assert survivors(demo.source, lambda source, device=device: demo.passes(device, source)) == []


def test_mutations_delete_one_statement_each() -> None:
    source = (
        "a; __syncthreads();\n// __syncthreads();\nif (x) { mbar_wait(full + 8 * (s + 1), p); } cp_async_wait<1>();"
        "\nring.wait_full(); ring.advance();"
    )
    found = mutations(source)
    assert [(m.line, m.deleted) for m in found] == [
        (1, "__syncthreads();"),
        (3, "mbar_wait(full + 8 * (s + 1), p);"),
        (3, "cp_async_wait<1>();"),
        (4, "ring.wait_full();"),
    ]
    assert found[1].source.count("mbar_wait") == 0
    assert "{ *reinterpret_cast<volatile int*>(8) = 0; }" in found[1].trapped
    assert found[1].source.count("cp_async_wait") == 1


BUGS = {
    "expect_tx too small": ("wgmma", "2 * TILE);\n        tma", "TILE);\n        tma", ".*"),
    "expect_tx too large": ("wgmma", "2 * TILE);\n        tma", "3 * TILE);\n        tma", "deadlock.*mbarrier"),
    "no fence after mbarrier init": ("wgmma", "    fence_mbar_init();\n", "", "fence_mbar_init"),
    "wrong parity": (
        "wgmma",
        "mbar_wait(full + 8 * s, parity)",
        "mbar_wait(full + 8 * s, parity ^ 1)",
        "race|deadlock",
    ),
    "stage freed before it was read": (
        "wgmma",
        "    wgmma_commit();\n",
        "    if (lane == 0) mbar_arrive(empty + 8 * s);\n    wgmma_commit();\n",
        ".*",
    ),
    "no fence before wgmma": ("wgmma", "    wgmma_fence();\n", "", "without a wgmma_fence"),
    "no fence after waiting": (
        "wgmma", "    wgmma_fence();\n", "    if (t == 0) wgmma_fence();\n", "without a wgmma_fence",
    ),
    "an operand between lines of the swizzle": (
        "wgmma", "wgmma_desc(as + k * 32", "wgmma_desc(as + k * 128", "1024 bytes",
    ),
    "a descriptor with a base offset": (
        "wgmma", "wgmma_desc(as + k * 32, 16, 1024)", "(wgmma_desc(as + k * 32, 16, 1024) | 1ull << 49)", "base offset",
    ),
    "wgmma operand out of bounds": (
        "wgmma",
        "wgmma_desc(as + k * 32",
        "wgmma_desc(as + 204800 + k * 32",
        "out of bounds",
    ),
    "no commit": ("mma_gemm", "  cp_async_commit();\n", "", "cp.async"),
    "store past the end": (
        "gelu",
        "store_vec_stream(p.y + i",
        "store_vec_stream(p.y + i + 8",
        "write of 16 bytes out of bounds.*nearest buffer #2, byte offset 65536 of 65536, at bias_gelu.cu:22",
    ),
    "read past the end": ("gelu", "p.bias + i % p.columns", "p.bias + i", "read of 16 bytes out of bounds.*buffer #1"),
    "write to an input": (
        "gelu",
        "store_vec_stream(p.y",
        "store_vec_stream(const_cast<f16*>(p.x)",
        "buffer #0, which this launch only reads",
    ),
    "misaligned vector": ("gelu", "p.bias + i % p.columns", "p.bias + 4", "misaligned 16-byte read.*bias_gelu.cu:16"),
    "shared past the end": (
        "layernorm",
        "scratch[threadIdx.x / 32] = v",
        "scratch[threadIdx.x / 32 + 1] = v",
        "shared write out of bounds",
    ),
    "shared before it is written": (
        "layernorm",
        "if (threadIdx.x % 32 == 0)",
        "if (threadIdx.x == 0)",
        "uninitialised shared memory.*layernorm.cu:19",
    ),
    "divergent barrier": (
        "layernorm",
        "  v = warp_reduce(v, OpSum());\n",
        "  if (threadIdx.x < 32) __syncthreads();\n  v = warp_reduce(v, OpSum());\n",
        "divergent __syncthreads.*layernorm.cu",
    ),
    "return before a barrier": (
        "layernorm",
        "  float squares = 0;\n",
        "  float squares = 0;\n  if (threadIdx.x >= 64) return;\n",
        "deadlock|returned",
    ),
    "shuffle by half a warp": (
        "layernorm",
        "  v = warp_reduce(v, OpSum());",
        "  if (threadIdx.x % 32 < 16) v = warp_reduce(v, OpSum());",
        "divergent warp operation|deadlock|returned",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_injected_bug_is_caught(bug: str) -> None:
    name, old, new, message = BUGS[bug]
    demo = edited(DEMOS[name](), old, new)
    for seed in (0, 4):
        with pytest.raises(DeviceError, match=rf"(?s){message}"):
            demo.error(SimDevice(checked=True, seed=seed))


FAST_BUGS = {
    "layernorm without the barrier after": ("layernorm", "OpSum());\n  __syncthreads();", "OpSum());"),
    "layernorm without the barrier before": ("layernorm", "= v;\n  __syncthreads();", "= v;"),
    "gemm without the barrier before": ("mma_gemm", "    __syncthreads();\n    const f16* a", "    const f16* a"),
    "gemm without the barrier after": ("mma_gemm", "    __syncthreads();\n  }", "  }"),
    "gemm without the last wait": ("mma_gemm", "      cp_async_wait<0>();\n", ""),
}


@pytest.mark.parametrize("bug", FAST_BUGS)
def test_values_alone_show_a_missing_barrier(bug: str) -> None:
    """Without the checked mode: the schedule and the poison make the result wrong under every seed."""
    name, old, new = FAST_BUGS[bug]
    demo = edited(DEMOS[name](), old, new)
    for seed in range(8):
        try:
            assert not demo.passes(SimDevice(seed=seed)), f"seed {seed}"
        except DeviceError:
            continue


def _kernel(body: str, block: int, *arguments: Argument, shared: int = 256, seed: int = 0) -> list[np.ndarray]:
    names = ("const f32* x;", "f32* y;")
    source = (
        f'#include "prims.cuh"\nstruct Params {{ {" ".join(names[: len(arguments)])} }};\n'
        f'extern "C" __global__ void k(const __grid_constant__ Params p) {{\n'
        f"DYN_SHARED(f32, s); const int t = threadIdx.x;\n"
        f"{body}\n}}\nEXPORT_KERNEL(k)\n"
    )
    device = SimDevice(checked=True, seed=seed)
    return run(device, image(source, "k"), (1,), (block,), list(arguments), shared)


X, Y = In(np.arange(64, dtype=np.float32)), Out(np.zeros(64, np.float32))


def test_syncwarp_orders_lanes_and_a_shuffle_does_not() -> None:
    exchange = "s[t] = p.x[t]; {} p.y[t] = s[t ^ 1];"
    (ordered,) = _kernel(exchange.format("__syncwarp();"), 32, X, Y)
    np.testing.assert_array_equal(ordered[:32], X.array[:32][np.arange(32) ^ 1])
    for between in ("", "__shfl_xor_sync(~0u, t, 1);"):
        with pytest.raises(DeviceError, match=r"race|uninitialised"):
            _kernel(exchange.format(between), 32, X, Y)


def test_shared_atomics_do_not_race_with_each_other() -> None:
    body = "if (t == 0) s[0] = 0; __syncthreads(); atomic_add(s, p.x[t]); {} if (t == 0) p.y[0] = s[0];"
    (total,) = _kernel(body.format("__syncthreads();"), 64, X, Y)
    assert total[0] == X.array.sum()
    with pytest.raises(DeviceError, match="race"):
        _kernel(body.format(""), 64, X, Y)


def test_mask_that_names_returned_lanes() -> None:
    with pytest.raises(DeviceError, match="returned"):
        _kernel("if (t >= 16) return; p.y[t] = __shfl_xor_sync(~0u, p.x[t], 1);", 32, X, Y)
    (fine,) = _kernel("if (t >= 16) return; p.y[t] = __shfl_xor_sync(0xffffu, p.x[t], 1);", 32, X, Y)
    np.testing.assert_array_equal(fine[:16], X.array[:16][np.arange(16) ^ 1])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("while (*(volatile const f32*)p.x == 0.0f) {}", "livelock"),
        (
            "s[t] = s[t + 32] = 0; __syncwarp(); u32 r[4]; ldmatrix_x4(r, smem_u32(s) + t * 16);",
            "out of bounds: offset 256",
        ),
        (
            "s[t] = s[t + 32] = 0; __syncwarp(); u32 r[4]; ldmatrix_x4(r, smem_u32(s) + t * 4);",
            "misaligned shared address",
        ),
        ("mbar_arrive(smem_u32(s));", "never initialised"),
        (
            "if (t == 0) mbar_init(smem_u32(s), 1); __syncthreads(); s[0] = 1; mbar_wait(smem_u32(s), 0);",
            "race|overwritten",
        ),
        (
            "if (t == 0) mbar_init(smem_u32(s), 32); __syncthreads(); mbar_wait(smem_u32(s), 0);",
            "deadlock.*32 arrivals",
        ),
        (
            "if (t == 0) mbar_init(smem_u32(s), 1); __syncthreads(); mbar_expect_tx(smem_u32(s), 16);",
            "more than 1 arrivals|16 bytes",
        ),
        (
            "if (t == 0) mbar_init(smem_u32(s), 1); __syncthreads(); if (t == 0) mbar_expect_tx(smem_u32(s), 1 << 20);",
            "counts up to 1048575",
        ),
        ("named_bar_sync(1, t < 32 ? 64 : 32);", "disagree|deadlock"),
        ("named_bar_sync(1, 40);", "multiple of 32"),
        ("cp_async16(smem_u32(s) + t * 16, p.x); cp_async_commit();", "never waited for"),
        ("cp_async16(smem_u32(s), p.x + 1); cp_async_commit(); cp_async_wait<0>();", "not 16-byte aligned"),
        ("if (t) cp_async16(smem_u32(s) + t * 4, p.x);", "misaligned shared address"),
        ("p.y[t] = (f32)(64 / (int)p.x[0]);", "division by zero"),
        ("if (t == 5) __trap();", "thread \\(5,0,0\\).*__trap"),
        ("p.y[t] = smem_u32(p.y);", "not into the block's"),
    ],
)
def test_misuse_is_refused(body: str, message: str) -> None:
    with pytest.raises(DeviceError, match=rf"(?s){message}"):
        _kernel(body, 32, X, Y)


def test_clean_demos_stay_clean_in_one_process_after_a_failure() -> None:
    """A failed launch leaves fibers behind; the next launch must not notice."""
    demo: Demo = DEMOS["wgmma"]()
    broken = edited(demo, "    wgmma_wait<0>();\n", "")
    for seed in range(3):
        with pytest.raises(DeviceError):
            broken.error(SimDevice(checked=True, seed=seed))
        assert demo.passes(SimDevice(checked=True, seed=seed))
        assert demo.passes(SimDevice(seed=seed))


GATHER = """#include "prims.cuh"
struct Params { f32* y; };
extern "C" __global__ void gather(const __grid_constant__ Params p) {
  DYN_SHARED(f32, s);
  cluster_arrive();
  cluster_wait();
  if (blockIdx.x == 0) cluster_store(smem_u32(s) + threadIdx.x * 16, 1, 1.0f, 2.0f, 3.0f, 4.0f);
  AFTER
  if (blockIdx.x == 1) p.y[threadIdx.x] = READ;
}
EXPORT_KERNEL(gather)
"""


@pytest.mark.parametrize(
    ("after", "read", "message"),
    [
        ("cluster_arrive(); cluster_wait();", "s[4 * threadIdx.x + 2]", None),
        ("", "0.0f", "no cluster barrier follows"),
        ("", "s[4 * threadIdx.x + 2]", "uninitialised"),
    ],
)
def test_remote_stores_need_a_barrier_before_their_target_ends(after: str, read: str, message: str | None) -> None:
    device = SimDevice(checked=True)
    y = device.allocate(32 * 4)
    kernel = device.load_kernel(image(GATHER.replace("AFTER", after).replace("READ", read), "gather"), 512)
    params = struct.pack("<Q", y.address)
    spec = LaunchSpec("gather", kernel, (2, 1, 1), (32, 1, 1), 512, 2, False, params, ((y.address, y.nbytes, True),))
    if message is None:
        device.launch(device.prepare(spec))
        result = np.empty(32, np.float32)
        device.download(result, y.address)
        assert (result == 3).all()
    else:
        with pytest.raises(DeviceError, match=message):
            device.launch(device.prepare(spec))


CHAIN = """#include "prims.cuh"
struct Params { const f32* x; const f32* w; f32* y; };
extern "C" __global__ void scale(const __grid_constant__ Params p) {
  DYN_SHARED(f32, s);
  const int t = threadIdx.x;
  BODY
}
EXPORT_KERNEL(scale)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("const f32 w = p.w[t]; pdl_wait(); p.y[t] = p.x[t] * w;", None),
        ("if (t == 0) { pdl_wait(); s[0] = p.x[0]; } __syncthreads(); p.y[t] = p.w[t] * s[0];", None),
        (
            "const f32 x = p.x[t]; pdl_wait(); p.y[t] = x;",
            r"reads the result of an earlier kernel, buffer #0 at scale.cu:6",
        ),
        ("p.y[t] = p.w[t]; pdl_wait();", r"writes buffer #2 at scale.cu:6 before pdl_wait"),
        ("if (t < 32) pdl_wait(); p.y[t] = p.w[t];", r"thread \(32,0,0\).*writes buffer #2"),
        ("if (p.w[t] < -1e9f) pdl_wait();", r"no thread of the kernel called pdl_wait"),
    ],
)
def test_programmatic_dependent_launch(body: str, message: str | None) -> None:
    """A kernel launched with PDL may read weights, but no earlier kernel's result, before pdl_wait()."""
    device = SimDevice(checked=True)
    x, w, y = (device.allocate(256) for _ in range(3))
    ones = np.ones(64, np.float32)
    device.upload(w.address, ones)

    def launch(body: str, source: SimMemory, target: SimMemory) -> None:
        kernel = device.load_kernel(image(CHAIN.replace("BODY", body), "scale"), 256)
        params = struct.pack("<QQQ", source.address, w.address, target.address)
        buffers = ((source.address, 256, False), (w.address, 256, False), (target.address, 256, True))
        device.launch(device.prepare(LaunchSpec("s", kernel, (1, 1, 1), (64, 1, 1), 256, 1, True, params, buffers)))

    launch("pdl_wait(); p.y[t] = p.w[t];", y, x)
    if message is None:
        launch(body, x, y)
        result = np.empty_like(ones)
        device.download(result, y.address)
        np.testing.assert_array_equal(result, ones)
        return
    with pytest.raises(DeviceError, match=rf"(?s){message}"):
        launch(body, x, y)


BLOCKS = """#include "prims.cuh"
struct Params { f32* x; f32* y; };
extern "C" __global__ void blocks(const __grid_constant__ Params p) {
  DYN_SHARED(f32, s);
  const int t = threadIdx.x, i = blockIdx.x * 32 + t;
  BODY
}
EXPORT_KERNEL(blocks)
"""
LAST_BLOCK = """
  p.y[i] = p.x[i];
  threadfence();
  __syncthreads();
  if (t == 0) s[0] = atomicAdd(reinterpret_cast<int*>(p.x) + 128, 1) == 3;
  __syncthreads();
  if (s[0] != 0.0f) {
    threadfence();
    p.y[t] = p.y[t] + p.y[t + 32] + p.y[t + 64] + p.y[t + 96];
  }"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("p.y[i] = p.x[i]; p.y[i] += 1.0f;", None),
        ("p.x[i] += 1.0f; atomic_add(p.y, p.x[i]);", None),
        (LAST_BLOCK, None),
        (LAST_BLOCK.replace("threadfence();", "", 1), "block number 3 reads .* what block number 0 .* has written"),
        ("".join(LAST_BLOCK.rsplit("threadfence();", 1)), "block number 3 reads .* what block number 0 .* has written"),
        ("p.y[i] = p.x[i] + (i >= 32 ? p.y[i - 32] : 0.0f);", "block number 1 reads at blocks.cu:6 what block"),
        ("p.x[i] = p.x[(i + 32) % 128];", "block number 1 writes at blocks.cu:6 what block number 0 .* has read"),
    ],
)
def test_blocks_of_one_launch_have_no_order(body: str, message: str | None) -> None:
    arguments = [Out(np.zeros(129, np.float32)), Out(np.zeros(129, np.float32))]
    kernel = image(BLOCKS.replace("BODY", body), "blocks")
    launch = lambda: run(SimDevice(checked=True), kernel, (4,), (32,), list(arguments), 64)
    if message is None:
        launch()
        return
    with pytest.raises(DeviceError, match=message):
        launch()
