"""Conformance cases of the primitives: one small kernel each, fixed random inputs and a numpy reference.

The same cases run on the simulator, on a GPU, and against stored results of a GPU. This file holds conversions, warp
operations and tensor cores; ``prim_cases_async`` holds copies and barriers, ``prim_cases_lanes`` reductions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import ml_dtypes
import numpy as np
from sim_harness import Argument, In, Out, image, run

from arcweld.runtime.device import Device

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, slots=True)
class PrimCase:
    """``body`` is the kernel's text after ``struct Params``; ``tolerance`` is relative to the largest value."""

    name: str
    params: str
    body: str
    arguments: list[Argument]
    reference: list[np.ndarray]
    block: int = 32
    grid: int = 1
    shared: int = 0
    tolerance: float = 0.0
    arch: str = "sm_80"
    includes: str = ""

    @property
    def source(self) -> str:
        return (
            f'#include "prims.cuh"\n{self.includes}\nstruct Params {{ {self.params} }};\n'
            f'extern "C" __global__ void __launch_bounds__({self.block})\n'
            f"{self.name}(const __grid_constant__ Params p) {{\n"
            f"  const int t = threadIdx.x, lane = threadIdx.x % 32;\n  (void)lane;\n{self.body}\n}}\n"
            f"EXPORT_KERNEL({self.name})\n"
        )

    def run(self, device: Device) -> list[np.ndarray]:
        return run(device, image(self.source, self.name), (self.grid,), (self.block,), self.arguments, self.shared)

    def check(self, outputs: list[np.ndarray], expected: list[np.ndarray], tolerance: float | None = None) -> None:
        tolerance = self.tolerance if tolerance is None else tolerance
        for got, want in zip(outputs, expected, strict=True):
            if tolerance:
                scale = float(np.nanmax(np.abs(want.astype(np.float64)))) or 1.0
                np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=tolerance * scale)
            else:
                np.testing.assert_array_equal(got, want)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def zeros(*shape: int, dtype: type | np.dtype = np.float32) -> Out:
    return Out(np.zeros(shape, dtype))


def hard_floats() -> np.ndarray:
    """65536 f32 values: random bits, values near f16's limits, ties of both 16-bit formats, infinities, NaN."""
    rng = _rng(1)
    bits = rng.integers(0, 2**32, 32768, np.uint32)
    scaled = (rng.standard_normal(16384) * np.exp2(rng.integers(-28, 18, 16384))).astype(np.float32)
    ties = rng.integers(0, 2**16, 8192).astype(np.uint32) << 16 | 0x8000  # bf16 ties
    half = rng.integers(0, 2**10, 8190).astype(np.uint32) << 13 | 0x1000 | 0x3F800000  # f16 ties
    special = np.array([np.inf, -np.inf], np.float32).view(np.uint32)
    return np.concatenate([bits, scaled.view(np.uint32), ties, half, special]).view(np.float32)


def conversion_cases() -> list[PrimCase]:
    all_bits = np.arange(65536, dtype=np.uint16)
    x = hard_floats()
    index = "const int i = blockIdx.x * 256 + t;"
    with np.errstate(all="ignore"):
        f16, bf16 = x.astype(np.float16), x.astype(BF16)
        tf32 = _round_tf32(x)
        as_f32 = [all_bits.view(np.float16).astype(np.float32), all_bits.view(BF16).astype(np.float32)]
    return [
        PrimCase(
            "half_to_f32", "const f16* x; const bf16* y; f32* a; f32* b;",
            f"{index} p.a[i] = to_f32(p.x[i]); p.b[i] = to_f32(p.y[i]);",
            [In(all_bits), In(all_bits), zeros(65536), zeros(65536)], as_f32, 256, 256,
        ),
        PrimCase(
            "f32_to_half", "const f32* x; f32* a; f32* b;",
            f"{index} p.a[i] = to_f32(from_f32<f16>(p.x[i])); p.b[i] = to_f32(from_f32<bf16>(p.x[i]));",
            [In(x), zeros(65536), zeros(65536)], [f16.astype(np.float32), bf16.astype(np.float32)], 256, 256,
        ),
        PrimCase(
            "pack_unpack", "const f32* x; f32* a; f32* b;",
            f"{index} unpack2<f16>(pack2<f16>(p.x[2 * i], p.x[2 * i + 1]), p.a[2 * i], p.a[2 * i + 1]);"
            "unpack2<bf16>(pack2<bf16>(p.x[2 * i], p.x[2 * i + 1]), p.b[2 * i], p.b[2 * i + 1]);",
            [In(x), zeros(65536), zeros(65536)], [f16.astype(np.float32), bf16.astype(np.float32)], 256, 128,
        ),
        PrimCase(
            "round_tf32", "const f32* x; f32* a;",
            f"{index} const f32 v = p.x[i]; p.a[i] = fabsf(v) < INFINITY ? __uint_as_float(f32_to_tf32(v)) : 0.0f;",
            [In(x), zeros(65536)], [tf32], 256, 256,
        ),
        _integer_conversions(),
        _math_case(),
        *_pair_cases(),
    ]  # fmt: skip


def _round_tf32(x: np.ndarray) -> np.ndarray:
    bits = (x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), bits.view(np.float32), np.float32(0))


def _integer_conversions() -> PrimCase:
    x = _rng(2).integers(-100, 100, 256).astype(np.int32)
    types = ("i8", "i16", "i64", "f16", "bf16", "f32", "f64", "bool")
    body = "".join(f"p.y[t * {len(types)} + {k}] = cvt<i32>(cvt<{name}>(p.x[t]));" for k, name in enumerate(types))
    reference = np.stack([x] * 7 + [(x != 0).astype(np.int32)], 1)
    return PrimCase(
        "convert_integers", "const i32* x; i32* y;", body, [In(x), zeros(256, 8, dtype=np.int32)], [reference], 256
    )


def _math_case() -> PrimCase:
    x = np.linspace(-6, 6, 1024, dtype=np.float32)
    body = "const int i = blockIdx.x * 256 + t; p.a[i] = tanh_approx(p.x[i]); p.b[i] = ex2_approx(p.x[i]);"
    reference = [np.tanh(x.astype(np.float64)), np.exp2(x.astype(np.float64))]
    arguments = [In(x), zeros(1024), zeros(1024)]
    return PrimCase(
        "approximate_math", "const f32* x; f32* a; f32* b;", body, arguments, reference, 256, 4, tolerance=6e-4
    )


def _pair_cases() -> list[PrimCase]:
    """a * b + c of pairs, rounded once: of values whose sums cancel too, and ties."""
    rng, found = _rng(9), []
    for name, kind, digits in (("f16", np.dtype(np.float16), 10), ("bf16", BF16, 7)):
        a, b = ((rng.standard_normal(8192) * 4).astype(kind) for _ in range(2))
        c = np.concatenate([rng.standard_normal(4096), -a[4096:].astype(np.float64) * b[4096:].astype(np.float64)])
        c = (c * rng.choice([1.0, 1.0, 2.0**-9, 2.0**-14], 8192)).astype(kind)
        exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
        _, exponent = np.frexp(exact)
        low = -13 if name == "f16" else -125  # of numbers that are not subnormal
        last = np.ldexp(1.0, np.maximum(exponent, low) - digits - 1)
        want = (np.rint(exact / last) * last).astype(np.float32)
        found.append(PrimCase(
            f"fma_pairs_{name}", "const u32* a; const u32* b; const u32* c; f32* y;",
            "const int i = blockIdx.x * 256 + t;"
            f"unpack2<{name}>(fma2<{name}>(p.a[i], p.b[i], p.c[i]), p.y[2 * i], p.y[2 * i + 1]);",
            [*(In(x.view(np.uint32)) for x in (a, b, c)), zeros(8192)], [want], 256, 16,
        ))  # fmt: skip
    return found


def warp_cases() -> list[PrimCase]:
    x = _rng(3).integers(0, 1000, 64).astype(np.int32)
    lanes = np.arange(32)
    w = x.reshape(2, 32)
    up = np.where(lanes >= 3, w[:, (lanes - 3) % 32], w)
    down = np.where(lanes % 8 + 2 < 8, w[:, (lanes + 2) % 32], w)
    shuffles = np.stack([w[:, lanes // 8 * 8 + 5], up, down, w[:, lanes ^ 9]], -1).reshape(64, 4)
    ballots = (w & 1) @ (1 << lanes.astype(np.int64))
    votes = np.repeat(np.stack([ballots, (w > 990).any(1), (w >= 0).all(1)], -1), 32, axis=0)
    return [
        PrimCase(
            "shuffles", "const i32* x; i32* y;",
            "const i32 v = p.x[t]; i32* y = p.y + t * 4; y[0] = __shfl_sync(~0u, v, 5, 8);"
            "y[1] = __shfl_up_sync(~0u, v, 3); y[2] = __shfl_down_sync(~0u, v, 2, 8);"
            "y[3] = __shfl_xor_sync(~0u, v, 9);",
            [In(x), zeros(64, 4, dtype=np.int32)], [shuffles], 64,
        ),
        PrimCase(
            "votes", "const i32* x; i64* y;",
            "const i32 v = p.x[t]; p.y[t * 3] = __ballot_sync(~0u, v & 1);"
            "p.y[t * 3 + 1] = __any_sync(~0u, v > 990) != 0;"
            "p.y[t * 3 + 2] = __all_sync(~0u, v >= 0) != 0;",
            [In(x), zeros(64, 3, dtype=np.int64)], [votes.astype(np.int64)], 64,
        ),
    ]  # fmt: skip


def matrix_cases() -> list[PrimCase]:
    """ldmatrix and stmatrix: register i of lane 4g + s holds the elements (g, 2s) and (g, 2s + 1) of matrix i."""
    m = _rng(6).integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    stage = (
        "DYN_SHARED(u16, smem); for (int i = t; i < 256; i += 32) smem[i] = p.x[i]; __syncwarp(); "
        "const u32 row = smem_u32(smem) + lane * 16, row2 = smem_u32(smem) + lane % 16 * 16;"
    )
    plain = m.reshape(4, 32, 2)
    transposed = np.ascontiguousarray(m.transpose(0, 2, 1)).reshape(4, 32, 2)
    words = lambda a: np.ascontiguousarray(a.transpose(1, 0, 2)).view(np.uint32).reshape(32, -1)
    cases = []
    for name, count, matrices in (
        ("", 4, plain),
        ("_trans", 4, transposed),
        ("", 2, plain[:2]),
        ("_trans", 2, transposed[:2]),
    ):
        body = (
            f"{stage} u32 r[{count}]; ldmatrix_x{count}{name}(r, {'row' if count == 4 else 'row2'});"
            f"for (int i = 0; i < {count}; ++i) p.y[t * {count} + i] = r[i];"
        )
        arguments = [In(m), zeros(32, count, dtype=np.uint32)]
        params = "const u16* x; u32* y;"
        cases.append(PrimCase(f"ldmatrix_x{count}{name}", params, body, arguments, [words(matrices)], shared=512))
    body = (
        "DYN_SHARED(u16, smem); u32 r[4]; for (int i = 0; i < 4; ++i) r[i] = p.x[t * 4 + i];"
        "stmatrix_x4(smem_u32(smem) + lane * 16, r); __syncwarp(); for (int i = t; i < 256; i += 32) p.y[i] = smem[i];"
    )
    arguments = [In(words(plain)), zeros(4, 8, 8, dtype=np.uint16)]
    cases.append(PrimCase("stmatrix", "const u32* x; u16* y;", body, arguments, [m], shared=512, arch="sm_90a"))
    return cases


def mma_cases() -> list[PrimCase]:
    """Fragments are filled from row-major A and column-major B as the PTX manual lays them out."""
    return [*_mma_half_cases(), _mma_tf32_case(), *_mma_int8_cases(), *_mma_float8_cases()]


_MMA_HALF = """
  const int g = lane / 4, s = lane % 4 * 2;
  u32 a[MI][4], b[NJ][2];
  f32 d[MI][NJ][4];
  for (int i = 0; i < MI; ++i)
    for (int r = 0; r < 4; ++r)
      a[i][r] = *reinterpret_cast<const u32*>(p.a + (i * 16 + g + r % 2 * 8) * 16 + s + r / 2 * 8);
  for (int j = 0; j < NJ; ++j)
    for (int r = 0; r < 2; ++r) b[j][r] = *reinterpret_cast<const u32*>(p.b + (j * 8 + g) * 16 + s + r * 8);
  for (int i = 0; i < MI; ++i)
    for (int j = 0; j < NJ; ++j)
      for (int r = 0; r < 4; ++r) d[i][j][r] = p.c[(i * 16 + g + r / 2 * 8) * NJ * 8 + j * 8 + s + r % 2];
  CALL
  for (int i = 0; i < MI; ++i)
    for (int j = 0; j < NJ; ++j)
      for (int r = 0; r < 4; ++r) p.c[(i * 16 + g + r / 2 * 8) * NJ * 8 + j * 8 + s + r % 2] = d[i][j][r];
"""


def _mma_half_cases() -> list[PrimCase]:
    cases = []
    for name, dtype in (("f16", np.dtype(np.float16)), ("bf16", BF16)):
        for mi, nj, call in (
            (1, 1, f"mma_m16n8k16<{name}>(d[0][0], a[0], b[0]);"),
            (2, 3, f"mma_tile<{name}>(d, a, b);"),
        ):
            rng = _rng(7)
            a, b = (rng.standard_normal((n, 16)).astype(dtype) for n in (16 * mi, 8 * nj))
            c = rng.standard_normal((16 * mi, 8 * nj)).astype(np.float32)
            body = _MMA_HALF.replace("MI", str(mi)).replace("NJ", str(nj)).replace("CALL", call)
            reference = c + a.astype(np.float64) @ b.astype(np.float64).T
            cases.append(
                PrimCase(
                    f"mma_{name}_{mi}x{nj}", f"const {name}* a; const {name}* b; f32* c;", body,
                    [In(a), In(b), Out(c)], [reference], tolerance=4e-6,
                )
            )  # fmt: skip
    return cases


def _mma_tf32_case() -> PrimCase:
    rng = _rng(8)
    a, b = (_round_tf32(rng.standard_normal((n, 8)).astype(np.float32)) for n in (16, 8))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    body = """
  const int g = lane / 4, s = lane % 4;
  u32 a[4], b[2];
  f32 d[4];
  for (int r = 0; r < 4; ++r) a[r] = __float_as_uint(p.a[(g + r % 2 * 8) * 8 + s + r / 2 * 4]);
  for (int r = 0; r < 2; ++r) b[r] = __float_as_uint(p.b[g * 8 + s + r * 4]);
  for (int r = 0; r < 4; ++r) d[r] = p.c[(g + r / 2 * 8) * 8 + s * 2 + r % 2];
  mma_m16n8k8_tf32(d, a, b);
  for (int r = 0; r < 4; ++r) p.c[(g + r / 2 * 8) * 8 + s * 2 + r % 2] = d[r];"""
    reference = c + a.astype(np.float64) @ b.astype(np.float64).T
    params = "const f32* a; const f32* b; f32* c;"
    return PrimCase("mma_tf32", params, body, [In(a), In(b), Out(c)], [reference], tolerance=4e-6)


_MMA_INT8 = """
  const int g = lane / 4, s = lane % 4;
  u32 a[MI][4], b[NJ][2];
  i32 d[MI][NJ][4];
  for (int i = 0; i < MI; ++i)
    for (int r = 0; r < 4; ++r)
      a[i][r] = *reinterpret_cast<const u32*>(p.a + (i * 16 + g + r % 2 * 8) * 32 + s * 4 + r / 2 * 16);
  for (int j = 0; j < NJ; ++j)
    for (int r = 0; r < 2; ++r) b[j][r] = *reinterpret_cast<const u32*>(p.b + (j * 8 + g) * 32 + s * 4 + r * 16);
  for (int i = 0; i < MI; ++i)
    for (int j = 0; j < NJ; ++j)
      for (int r = 0; r < 4; ++r) d[i][j][r] = p.c[(i * 16 + g + r / 2 * 8) * NJ * 8 + j * 8 + s * 2 + r % 2];
  CALL
  for (int i = 0; i < MI; ++i)
    for (int j = 0; j < NJ; ++j)
      for (int r = 0; r < 4; ++r) p.c[(i * 16 + g + r / 2 * 8) * NJ * 8 + j * 8 + s * 2 + r % 2] = d[i][j][r];
"""


def _mma_int8_cases() -> list[PrimCase]:
    """All mixes of signs, over the whole range of each type, and sums that wrap."""
    cases = []
    for left, right in product(("i8", "u8"), repeat=2):
        for mi, nj, call in (
            (1, 1, f"mma_m16n8k32<{left}, {right}>(d[0][0], a[0], b[0]);"),
            (2, 3, f"mma_tile_bytes<{left}, {right}>(d, a, b);"),
        ):
            a, b = (_bytes(_rng(k), name, n) for k, name, n in ((9, left, 16 * mi), (12, right, 8 * nj)))
            c = _rng(9).integers(-1000, 1000, (16 * mi, 8 * nj)).astype(np.int32)
            c[0, 0] = 2**31 - 5
            reference = (c + a.astype(np.int64) @ b.astype(np.int64).T).astype(np.int32)
            body = _MMA_INT8.replace("MI", str(mi)).replace("NJ", str(nj)).replace("CALL", call)
            params = f"const {left}* a; const {right}* b; i32* c;"
            name = f"mma_{left}_{right}_{mi}x{nj}"
            cases.append(PrimCase(name, params, body, [In(a), In(b), Out(c)], [reference]))
    return cases


def _mma_float8_cases() -> list[PrimCase]:
    """Both types and their mixes; a NaN reaches its row. ``in_f16``: as GPUs without them do."""
    cases = []
    for left, right in product(FLOAT8, repeat=2):
        for mi, nj, kind, call in (
            (1, 1, "", f"mma_m16n8k32<{left}, {right}>(d[0][0], a[0], b[0]);"),
            (2, 3, "", f"mma_tile_bytes<{left}, {right}>(d, a, b);"),
            (1, 1, "_in_f16", f"mma_m16n8k32_in_f16<{left}, {right}>(d[0][0], a[0], b[0]);"),
        ):
            a, b = (float8_patterns(k, name, n) for k, name, n in ((9, left, 16 * mi), (12, right, 8 * nj)))
            a.view(np.uint8)[3, 5], b.view(np.uint8)[2, 7] = 0xFF, 0x7F
            c = _rng(9).standard_normal((16 * mi, 8 * nj)).astype(np.float32)
            reference = c + a.astype(np.float64) @ b.astype(np.float64).T
            body = _MMA_INT8.replace("MI", str(mi)).replace("NJ", str(nj)).replace("CALL", call)
            body = body.replace("i32 d", "f32 d")
            # GPUs may keep as few as 14 bits of products that are aligned to the largest one
            cases.append(
                PrimCase(
                    f"mma_{left}_{right}_{mi}x{nj}{kind}", "const u8* a; const u8* b; f32* c;", body,
                    [In(a.view(np.uint8)), In(b.view(np.uint8)), Out(c)], [reference], tolerance=2.0**-12,
                    includes='#include "float8.cuh"',
                )
            )  # fmt: skip
    return cases


FLOAT8 = {"f8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "f8e5m2": np.dtype(ml_dtypes.float8_e5m2)}


def float8_patterns(seed: int, name: str, rows: int, depth: int = 32) -> np.ndarray:
    """Random patterns of finite 8-bit floats."""
    x = _rng(seed).integers(0, 256, (rows, depth)).astype(np.uint8).view(FLOAT8[name])
    return np.where(np.isfinite(x.astype(np.float32)), x, FLOAT8[name].type(1))


def _bytes(rng: np.random.Generator, name: str, rows: int) -> np.ndarray:
    """Random 8-bit integers of all magnitudes, the extremes among them: ``rows`` x 32."""
    info = np.iinfo({"i8": np.int8, "u8": np.uint8}[name])
    x = rng.integers(info.min, info.max + 1, (rows, 32)).astype(info.dtype)
    x[0, :4] = info.min, info.max, info.min, info.max
    return x


def dp4a_cases() -> list[PrimCase]:
    """The product of four bytes by four, added to a number; one sum for each lane, the first of which wraps."""
    cases = []
    for left, right in product(("i8", "u8"), repeat=2):
        a, b = (_bytes(_rng(k), name, 4).reshape(32, 4) for k, name in ((13, left), (14, right)))
        c = np.full(32, 100, np.int32)
        c[0] = 2**31 - 5
        reference = (c + (a.astype(np.int64) * b.astype(np.int64)).sum(1)).astype(np.int32)
        call = f"dp4a<{left}, {right}>(p.a[lane], p.b[lane], p.c[lane])"
        arguments = [In(a), In(b), Out(c)]
        cases.append(PrimCase(f"dp4a_{left}_{right}", "const u32* a; const u32* b; i32* c;",
                              f"p.c[lane] = {call};", arguments, [reference]))  # fmt: skip
    return cases


def atomic_cases() -> list[PrimCase]:
    x = _rng(10).integers(-20, 20, 256).astype(np.int32)
    total = x.reshape(2, 128).sum(1)
    names = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64, "f16": np.float16, "bf16": BF16}
    body = "".join(f"atomic_add(p.sum_{n} + t % 2, cvt<{n}>(p.x[t / 2 + t % 2 * 128]));" for n in names)
    params = "const i32* x; " + " ".join(f"{n}* sum_{n};" for n in names)
    sums = [total.astype(d) for d in names.values()]
    extremes = _rng(11).standard_normal(256).astype(np.float32)
    with_nan = extremes.copy()
    with_nan[100] = np.nan
    whole = (extremes * 1000).astype(np.int64)
    limits = [
        np.array([extremes.max(), extremes.min(), np.nan, np.nan], np.float32),
        np.array([whole.max(), whole.min()], np.int64),
        np.array([whole.max(), whole.min()], np.int32),
    ]
    return [
        PrimCase("atomic_adds", params, body, [In(x), *(zeros(2, dtype=d) for d in names.values())], sums, 256),
        PrimCase(
            "atomic_limits", "const f32* x; const f32* y; const i64* z; f32* a; i64* b; i32* c;",
            "atomic_max(p.a, p.x[t]); atomic_min(p.a + 1, p.x[t]);"
            "atomic_max(p.a + 2, p.y[t]); atomic_min(p.a + 3, p.y[t]);"
            "atomic_max(p.b, p.z[t]); atomic_min(p.b + 1, p.z[t]);"
            "atomic_max(p.c, (i32)p.z[t]); atomic_min(p.c + 1, (i32)p.z[t]);",
            [In(extremes), In(with_nan), In(whole), zeros(4), zeros(2, dtype=np.int64), zeros(2, dtype=np.int32)],
            limits, 256,
        ),
        PrimCase(
            "atomic_wraps", "u32* counter; u32* seen;", "atomic_add(p.seen + atomic_inc(p.counter, 6u), 1u);",
            [zeros(1, dtype=np.uint32), zeros(8, dtype=np.uint32)],
            [np.array([64 % 7], np.uint32), np.array([10] + [9] * 6 + [0], np.uint32)], 64,
        ),
    ]  # fmt: skip


def vector_cases() -> list[PrimCase]:
    cases = []
    for name, dtype, width in (
        ("u8", np.uint8, 16),
        ("f16", np.float16, 2),
        ("f32", np.float32, 4),
        ("f64", np.float64, 4),
    ):
        x = _rng(12).integers(0, 200, 64 * width).astype(dtype)
        body = (
            f"auto v = load_vec<{width}>(p.x + t * {width}); auto w = load_vec_stream<{width}>(p.x + t * {width});"
            f"Vec<{name}, {width}> r; for (int i = 0; i < {width}; ++i) r[i] = v[{width - 1} - i];"
            f"store_vec(p.y + t * {width}, r); store_vec_stream(p.z + t * {width}, w);"
        )
        reversed_ = x.reshape(64, width)[:, ::-1].reshape(-1)
        arguments = [In(x), zeros(x.size, dtype=dtype), zeros(x.size, dtype=dtype)]
        params = f"const {name}* x; {name}* y; {name}* z;"
        cases.append(PrimCase(f"vectors_{name}_{width}", params, body, arguments, [reversed_, x], 64))
    return cases


def warp_level_cases() -> list[PrimCase]:
    return [
        *conversion_cases(),
        *warp_cases(),
        *matrix_cases(),
        *mma_cases(),
        *dp4a_cases(), *atomic_cases(),
        *vector_cases(),
    ]
