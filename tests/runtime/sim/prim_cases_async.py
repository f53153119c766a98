"""Conformance cases of asynchronous copies, barriers, TMA and wgmma; see ``prim_cases``."""

from __future__ import annotations

import numpy as np
from prim_cases import BF16, PrimCase, float8_patterns, zeros
from sim_harness import In, Map, Out, render


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def copy_cases() -> list[PrimCase]:
    """Thread t copies its first t % (size + 1) bytes; the rest of the destination must be zero."""
    cases = []
    for size in (16, 8, 4):
        x = _rng(size).integers(1, 256, (64, size)).astype(np.uint8)
        reference = np.where(np.arange(size) < np.arange(64)[:, None] % (size + 1), x, 0).astype(np.uint8)
        body = (
            f"DYN_SHARED(u8, smem); cp_async{size}(smem_u32(smem + t * {size}), p.x + t * {size}, t % {size + 1});"
            "cp_async_commit(); cp_async_wait<0>(); __syncthreads();"
            f"for (int i = t; i < {64 * size}; i += 64) p.y[i] = smem[i];"
        )
        arguments = [In(x), zeros(64, size, dtype=np.uint8)]
        cases.append(PrimCase(f"cp_async_{size}", "const u8* x; u8* y;", body, arguments, [reference], 64, shared=1024))
    return [*cases, _pipeline_case()]


def _pipeline_case() -> PrimCase:
    """Four copies in four groups, consumed in order with two still in flight."""
    x = _rng(20).integers(0, 100, (4, 128)).astype(np.int32)
    body = (
        "DYN_SHARED(i32, smem); for (int s = 0; s < 4; ++s) {"
        "  cp_async4(smem_u32(smem + s * 128 + t), p.x + s * 128 + t); cp_async_commit(); }"
        "cp_async_wait<2>(); __syncthreads(); p.y[t] = smem[127 - t] + smem[128 + 127 - t];"
        "cp_async_wait<0>(); __syncthreads(); p.y[128 + t] = smem[256 + 127 - t] + smem[384 + 127 - t];"
    )
    reference = np.stack([x[0] + x[1], x[2] + x[3]])[:, ::-1].copy()
    arguments = [In(x), zeros(2, 128, dtype=np.int32)]
    return PrimCase("cp_async_groups", "const i32* x; i32* y;", body, arguments, [reference], 128, shared=2048)


def barrier_cases() -> list[PrimCase]:
    """Two producer and two consumer warps pass ten rows through one buffer, by named barriers and by mbarriers."""
    x = _rng(21).integers(0, 100, (10, 64)).astype(np.int32)
    named = """
  DYN_SHARED(i32, smem);
  for (int i = 0; i < 10; ++i) {
    if (t < 64) {
      named_bar_sync(1, 128);
      smem[t] = p.x[i * 64 + t];
      named_bar_arrive(2, 128);
    } else {
      named_bar_arrive(1, 128);
      named_bar_sync(2, 128);
      p.y[i * 64 + t - 64] = smem[127 - t];
      named_bar_sync(3, 64);
    }
  }"""
    mbarrier = """
  DYN_SHARED(i32, smem);
  const u32 full = smem_u32(smem) + 256, empty = full + 8;
  if (t == 0) {
    mbar_init(full, 64);
    mbar_init(empty, 64);
  }
  __syncthreads();
  for (int i = 0; i < 10; ++i) {
    if (t < 64) {
      mbar_wait(empty, (i & 1) ^ 1);
      smem[t] = p.x[i * 64 + t];
      mbar_arrive(full);
    } else {
      mbar_wait(full, i & 1);
      p.y[i * 64 + t - 64] = smem[127 - t];
      mbar_arrive(empty);
    }
  }"""
    reference = x[:, ::-1].copy()
    arguments = lambda: [In(x), zeros(10, 64, dtype=np.int32)]
    params = "const i32* x; i32* y;"
    return [
        PrimCase("named_barriers", params, named, arguments(), [reference], 128, shared=256),
        PrimCase("mbarriers", params, mbarrier, arguments(), [reference], 128, shared=272, arch="sm_90a"),
    ]


def swizzled(tile: np.ndarray, swizzle: int) -> np.ndarray:
    """The bytes of a tile as TMA lays them out: 16-byte chunks exchanged by the row's address bits."""
    raw = np.ascontiguousarray(tile).view(np.uint8).reshape(-1)
    offset = np.arange(raw.size)
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    out = np.empty_like(raw)
    out[offset ^ ((offset >> 7 & mask) << 4)] = raw
    return out


def _tile(x: np.ndarray, start: tuple[int, ...], count: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray:
    """``count`` elements from ``start`` by ``steps`` in each dimension, zero outside the array."""
    out = np.zeros(count, x.dtype)
    for index in np.ndindex(*count):
        at = tuple(s + i * step for s, i, step in zip(start, index, steps))
        if all(0 <= a < n for a, n in zip(at, x.shape)):
            out[index] = x[at]
    return out


_LOAD = """
  DYN_SHARED(u8, smem);
  const u32 bar = smem_u32(smem) + BYTES;
  if (t == 0) {
    mbar_init(bar, 1);
    fence_mbar_init();
    mbar_expect_tx(bar, BYTES);
    tma_prefetch_map(&p.map);
    tma_load_RANKd(smem_u32(smem), &p.map, bar, COORDINATES);
  }
  __syncthreads();
  mbar_wait(bar, 0);
  for (int i = t; i < BYTES; i += 64) p.y[i] = smem[i];
"""
_STORE = """
  DYN_SHARED(u8, smem);
  for (int i = t; i < BYTES; i += 64) smem[i] = p.x[i];
  fence_proxy_async();
  __syncthreads();
  if (t == 0) {
    tma_store_RANKd(&p.map, smem_u32(smem), COORDINATES);
    tma_store_commit();
    tma_store_wait<0>();
  }
"""


def _fill(text: str, tile: np.ndarray, start: tuple[int, ...]) -> str:
    coordinates = ", ".join(str(s) for s in reversed(start))
    return text.replace("BYTES", str(tile.nbytes)).replace("RANK", str(tile.ndim)).replace("COORDINATES", coordinates)


def _load_case(name: str, x: np.ndarray, start: tuple, box: tuple, steps: tuple = (), swizzle: int = 128) -> PrimCase:
    steps = steps or (1,) * x.ndim
    count = tuple(-(-b // s) for b, s in zip(box, steps))
    tile = _tile(x, start, count, steps)
    arguments = [Map(x, box, steps=steps, swizzle=swizzle), zeros(tile.nbytes, dtype=np.uint8)]
    shared = tile.nbytes + 64
    return PrimCase(
        f"tma_load_{name}", "TensorMap map; u8* y;", _fill(_LOAD, tile, start), arguments, [swizzled(tile, swizzle)],
        64, shared=shared, arch="sm_90a",
    )  # fmt: skip


def _store_case(name: str, shape: tuple, start: tuple, box: tuple, swizzle: int = 128) -> PrimCase:
    tile = _rng(30).standard_normal(box).astype(np.float16)
    y = np.full(shape, -1, np.float16)
    reference = y.copy()
    for index in np.ndindex(*box):
        at = tuple(s + i for s, i in zip(start, index))
        if all(0 <= a < n for a, n in zip(at, shape)):
            reference[at] = tile[index]
    arguments = [Map(y, box, written=True, swizzle=swizzle), In(swizzled(tile, swizzle))]
    return PrimCase(
        f"tma_store_{name}", "TensorMap map; const u8* x;", _fill(_STORE, tile, start), arguments, [reference], 64,
        shared=tile.nbytes, arch="sm_90a",
    )  # fmt: skip


def bulk_cases() -> list[PrimCase]:
    """Lane i copies i + 1 pieces of 16 bytes: all complete on one mbarrier."""
    x = _rng(33).integers(0, 256, (8, 128)).astype(np.uint8)
    body = """
  DYN_SHARED(u8, smem);
  const u32 bar = smem_u32(smem) + 1024;
  if (t == 0) {
    mbar_init(bar, 8);
    fence_mbar_init();
  }
  __syncthreads();
  if (t < 8) {
    mbar_expect_tx(bar, 16 * t + 16);
    bulk_load(smem_u32(smem) + 128 * t, p.x + 128 * t, 16 * t + 16, bar, evict_first_policy());
  }
  mbar_wait(bar, 0);
  for (int i = t; i < 1024; i += 64) p.y[i] = i % 128 < i / 128 * 16 + 16 ? smem[i] : 0;
"""
    reference = np.where(np.arange(128) < np.arange(8)[:, None] * 16 + 16, x, 0).astype(np.uint8)
    arguments = [In(x), zeros(8, 128, dtype=np.uint8)]
    return [PrimCase("bulk_load", "const u8* x; u8* y;", body, arguments, [reference], 64, shared=1040, arch="sm_90a")]


def tma_cases() -> list[PrimCase]:
    normal = lambda *shape: _rng(31).standard_normal(shape).astype(np.float16)
    return [
        _load_case("2d", normal(40, 96), (8, 16), (16, 64)),
        _load_case("2d_outside", normal(40, 96), (-3, 64), (16, 64)),
        _load_case("2d_below", normal(40, 96), (36, -8), (16, 64)),
        _load_case("2d_plain", normal(40, 96), (4, 8), (16, 128), swizzle=0),
        _load_case("2d_swizzle64", normal(40, 96), (4, 8), (16, 32), swizzle=64),
        _load_case("2d_swizzle32", normal(40, 96), (4, 8), (16, 16), swizzle=32),
        _load_case("2d_f32", _rng(32).standard_normal((24, 64)).astype(np.float32), (20, 32), (8, 32)),
        _load_case("3d", normal(3, 10, 64), (1, 4, 0), (2, 8, 64)),
        _load_case("4d", normal(2, 6, 7, 64), (1, -1, 3, 0), (1, 4, 5, 64)),
        _load_case("4d_strided", normal(2, 9, 9, 64), (0, -1, 1, 0), (2, 6, 8, 64), (1, 2, 2, 1)),
        _store_case("2d", (40, 96), (8, 16), (16, 64)),
        _store_case("2d_clipped", (40, 96), (32, 64), (16, 64)),
        _store_case("2d_plain", (40, 96), (4, 8), (8, 64), swizzle=0),
        _store_case("3d", (3, 10, 64), (1, 6, 0), (2, 8, 64)),
        _store_case("4d", (2, 6, 7, 64), (1, 3, 3, 0), (1, 4, 5, 64)),
    ]


_WGMMA = """
  DYN_SHARED(u8, smem);
  const u32 base = smem_u32(smem), b = base + 8192;
  for (int i = t; i < (8192 + NBYTES) / 2; i += 128) reinterpret_cast<u16*>(smem)[i] = p.x[i];
  fence_proxy_async();
  __syncthreads();
  f32 d[N / 2];
  for (int i = 0; i < N / 2; ++i) d[i] = 1.0f;
  u32 a[4][4];
  for (int k = 0; k < 4; ++k) {
    const int row = t / 32 * 16 + lane % 16, chunk = k * 2 + lane / 16;
    ldmatrix_x4(a[k], base + row * 128 + ((chunk ^ row % 8) << 4));
  }
  wgmma_fence();
  for (int k = 0; k < 4; ++k) CALL
  wgmma_commit();
  wgmma_wait<0>();
  for (int j = 0; j < N / 8; ++j)
    for (int r = 0; r < 4; ++r)
      p.c[(t / 32 * 16 + lane / 4 + r / 2 * 8) * N + j * 8 + lane % 4 * 2 + r % 2] = d[j * 4 + r];
"""


def _wgmma_case(name: str, dtype: np.dtype, n: int, registers: bool, transposed: bool, accumulate: int) -> PrimCase:
    """A 64 x 64 by 64 x n product in four steps of 16; the accumulator starts at one."""
    a, b = (_rng(40 + i).standard_normal((rows, 64)).astype(dtype) for i, rows in enumerate((64, n)))
    if transposed:  # [K][N] in blocks of 64 columns, each of 64 lines of 128 bytes
        padded = np.zeros((64, -(-n // 64) * 64), dtype)
        padded[:, :n] = b.T
        laid_out = np.concatenate([swizzled(padded[:, j : j + 64], 128) for j in range(0, padded.shape[1], 64)])
        b_step = "wgmma_desc(b + k * 2048, 8192, 1024)"
    else:
        laid_out = swizzled(b, 128)
        b_step = "wgmma_desc(b + k * 32, 16, 1024)"
    operand = "a[k]" if registers else "wgmma_desc(base + k * 32, 16, 1024)"
    kind = "rs" if registers else "ss"
    flag = "1" if accumulate else "k != 0"
    call = f"wgmma_{kind}<{name}, {n}, {int(transposed)}>(d, {operand}, {b_step}, {flag});"
    body = _WGMMA.replace("NBYTES", str(laid_out.size)).replace("N /", f"{n} /").replace("* N +", f"* {n} +")
    reference = a.astype(np.float64) @ b.astype(np.float64).T + accumulate
    x = np.concatenate([swizzled(a, 128), laid_out])
    label = f"wgmma_{kind}_{name}_n{n}{'_transposed' if transposed else ''}"
    return PrimCase(
        label, "const u16* x; f32* c;", body.replace("CALL", call), [In(x), Out(np.zeros((64, n), np.float32))],
        [reference], 128, shared=8192 + laid_out.size, tolerance=1e-5, arch="sm_90a",
        includes=render('<% include "wgmma.cuh.j2" %>', wgmma_ns=[n]),
    )  # fmt: skip


def _wgmma_int8_case(left: str, right: str, n: int, accumulate: int) -> PrimCase:
    """A 64 x 128 by 128 x n product in four steps of 32; the accumulator starts at one."""
    types = {"i8": np.int8, "u8": np.uint8}
    a, b = (
        _rng(50 + i).integers(np.iinfo(types[t]).min, np.iinfo(types[t]).max + 1, (rows, 128)).astype(types[t])
        for i, (t, rows) in enumerate(((left, 64), (right, n)))
    )
    laid_out = [swizzled(x.view(np.uint16), 128) for x in (a, b)]
    flag = "1" if accumulate else "k != 0"
    steps = "wgmma_desc(base + k * 32, 16, 1024), wgmma_desc(b + k * 32, 16, 1024)"
    body = _WGMMA.replace("NBYTES", str(laid_out[1].size)).replace("N /", f"{n} /").replace("* N +", f"* {n} +")
    body = body.replace("f32 d[", "i32 d[").replace("= 1.0f", "= 1")
    body = body.replace("CALL", f"wgmma_ss_bytes<{left}, {right}, {n}>(d, {steps}, {flag});")
    reference = a.astype(np.int64) @ b.astype(np.int64).T + accumulate
    return PrimCase(
        f"wgmma_{left}_{right}_n{n}", "const u16* x; i32* c;", body,
        [In(np.concatenate(laid_out)), Out(np.zeros((64, n), np.int32))], [reference.astype(np.int32)], 128,
        shared=8192 + laid_out[1].size, arch="sm_90a",
        includes=render('<% include "wgmma.cuh.j2" %>', wgmma_ns=[n], wgmma_types=["int8"]),
    )  # fmt: skip


def _wgmma_float8_case(left: str, right: str, n: int, accumulate: int) -> PrimCase:
    """The same of 8-bit floats."""
    a, b = (float8_patterns(50 + i, t, rows, 128) for i, (t, rows) in enumerate(((left, 64), (right, n))))
    laid_out = [swizzled(x.view(np.uint16), 128) for x in (a, b)]
    flag = "1" if accumulate else "k != 0"
    steps = "wgmma_desc(base + k * 32, 16, 1024), wgmma_desc(b + k * 32, 16, 1024)"
    body = _WGMMA.replace("NBYTES", str(laid_out[1].size)).replace("N /", f"{n} /").replace("* N +", f"* {n} +")
    body = body.replace("CALL", f"wgmma_ss_bytes<{left}, {right}, {n}>(d, {steps}, {flag});")
    reference = a.astype(np.float64) @ b.astype(np.float64).T + accumulate
    return PrimCase(
        f"wgmma_{left}_{right}_n{n}", "const u16* x; f32* c;", body,
        [In(np.concatenate(laid_out)), Out(np.zeros((64, n), np.float32))], [reference], 128,
        shared=8192 + laid_out[1].size, arch="sm_90a", tolerance=2.0**-12,
        includes=render('<% include "wgmma.cuh.j2" %>', wgmma_ns=[n], wgmma_types=["float8"]),
    )  # fmt: skip


def wgmma_cases() -> list[PrimCase]:
    f16 = np.dtype(np.float16)
    return [
        _wgmma_case("f16", f16, 64, False, False, 1),
        _wgmma_case("bf16", BF16, 128, False, False, 0),
        _wgmma_case("f16", f16, 8, False, False, 0),
        _wgmma_case("f16", f16, 96, False, False, 1),
        _wgmma_case("f16", f16, 128, False, True, 1),
        _wgmma_case("bf16", BF16, 256, False, True, 0),
        _wgmma_case("f16", f16, 64, True, False, 0),
        _wgmma_case("bf16", BF16, 64, True, True, 1),
        _wgmma_case("f16", f16, 192, True, True, 0),
        _wgmma_case("f16", f16, 48, True, False, 0),  # less than a block of 64 columns, and one and a bit
        _wgmma_case("bf16", BF16, 80, True, True, 1),
        _wgmma_int8_case("i8", "i8", 64, 1),
        _wgmma_int8_case("i8", "u8", 32, 0),
        _wgmma_int8_case("u8", "i8", 256, 1),
        _wgmma_int8_case("u8", "u8", 96, 0),
        _wgmma_float8_case("f8e4m3fn", "f8e4m3fn", 128, 1),
        _wgmma_float8_case("f8e4m3fn", "f8e5m2", 40, 0),
        _wgmma_float8_case("f8e5m2", "f8e4m3fn", 64, 1),
        _wgmma_float8_case("f8e5m2", "f8e5m2", 96, 0),
    ]


def async_cases() -> list[PrimCase]:
    return [*copy_cases(), *barrier_cases(), *bulk_cases(), *tma_cases(), *wgmma_cases()]
