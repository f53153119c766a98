"""Conformance cases of lanes.cuh and of the reductions that are built on it."""

from __future__ import annotations

import numpy as np
from prim_cases import PrimCase, zeros
from sim_harness import In


def lane_cases() -> list[PrimCase]:
    """Reductions over lanes and blocks, sums that lanes share out, and vectors of a lane."""
    x = np.random.default_rng(4).integers(-50, 50, 256).astype(np.float32)
    sums = np.repeat(x.reshape(32, 8).sum(1), 8)
    warps = np.repeat(x.reshape(8, 32).max(1), 32)
    best = np.stack([np.full(256, x.min()), np.full(256, np.argmin(x))], -1).astype(np.float32)
    argmin = (
        "struct Best { f32 value; i32 index; }; Best b = {p.x[t], t};"
        "b = block_reduce<256>(b, reinterpret_cast<Best*>(smem), [](Best a, Best c) {"
        "  return c.value < a.value || (c.value == a.value && c.index < a.index) ? c : a; });"
        "p.d[2 * t] = b.value; p.d[2 * t + 1] = (f32)b.index;"
    )
    return [
        PrimCase(
            "reductions", "const f32* x; f32* a; f32* b; f32* c; f32* d; f64* e;",
            "DYN_SHARED(unsigned char, smem); f32* scratch = reinterpret_cast<f32*>(smem); const f32 v = p.x[t];"
            "p.a[t] = lanes_reduce<8>(v, OpSum()); p.b[t] = warp_reduce(v, OpMax());"
            "p.c[t] = block_reduce<256>(v, scratch, OpSum()); __syncthreads();" + argmin +
            "p.e[t] = warp_reduce((f64)v, OpMin());",
            [In(x), *(zeros(256) for _ in range(3)), zeros(256, 2), zeros(256, dtype=np.float64)],
            [sums, warps, np.full(256, x.sum()), best, np.repeat(x.reshape(8, 32).min(1), 32).astype(np.float64)],
            256, shared=64, includes='#include "reduce.cuh"',
        ),
        _nan_case(), _part_of_a_warp_case(), _shared_sums_case(), _multiply_add_case(),
    ]  # fmt: skip


def _part_of_a_warp_case() -> PrimCase:
    """Sums of 16 lanes in a block of 48 threads, whose last warp has no others."""
    x = np.random.default_rng(8).integers(-50, 50, 48).astype(np.float32)
    return PrimCase(
        "part_of_a_warp", "const f32* x; f32* y;", "p.y[t] = lanes_reduce<16>(p.x[t], OpSum());", [In(x), zeros(48)],
        [np.repeat(x.reshape(3, 16).sum(1), 16)], 48, includes='#include "reduce.cuh"',
    )  # fmt: skip


def _nan_case() -> PrimCase:
    x = np.random.default_rng(5).standard_normal(64).astype(np.float32)
    x[7] = np.nan
    reference = [np.repeat(x.reshape(2, 32).max(1), 32), np.repeat(x.reshape(2, 32).min(1), 32)]
    body = "p.a[t] = warp_reduce(p.x[t], OpMax()); p.b[t] = warp_reduce(p.x[t], OpMin());"
    return PrimCase(
        "nan_wins", "const f32* x; f32* a; f32* b;", body, [In(x), zeros(64), zeros(64)], reference, 64,
        includes='#include "reduce.cuh"',
    )  # fmt: skip


def _shared_sums_case() -> PrimCase:
    """Four sums over the lanes 8 and 16 apart, and two over all lanes: which one a lane holds, and its value."""
    x = np.random.default_rng(6).integers(-50, 50, (64, 4)).astype(np.float32)
    lane = np.arange(64) % 32
    number, of_two = (lane >> 4 & 1) * 2 + (lane >> 3 & 1), lane >> 4
    by_eight = np.tile(x.reshape(2, 4, 8, 4).sum(1), (1, 4, 1)).reshape(64, 4)
    by_warp = np.repeat(x.reshape(2, 32, 4).sum(1), 32, axis=0)
    one = lambda sums, which: np.take_along_axis(sums, which[:, None], 1)[:, 0]
    sums = np.stack([one(by_eight, number), one(by_warp, of_two)], -1)
    which = np.stack([number, of_two], -1).astype(np.int32)
    body = (
        "f32 v[4] = {p.x[t * 4], p.x[t * 4 + 1], p.x[t * 4 + 2], p.x[t * 4 + 3]}, w[2] = {v[0], v[1]};"
        "p.which[t * 2] = share_sums<8>(v); p.which[t * 2 + 1] = share_sums<1>(w);"
        "p.y[t * 2] = v[0]; p.y[t * 2 + 1] = w[0];"
    )
    return PrimCase(
        "shared_sums", "const f32* x; i32* which; f32* y;", body,
        [In(x), zeros(64, 2, dtype=np.int32), zeros(64, 2)], [which, sums], 64,
        includes='#include "reduce.cuh"',
    )  # fmt: skip


def _multiply_add_case() -> PrimCase:
    x = np.random.default_rng(7).integers(-50, 50, (64, 8)).astype(np.float32)
    body = (
        "f32 a[4], b[3]; i32 c[4]; i8 d[4];"
        "for (int i = 0; i < 4; ++i) a[i] = p.x[t * 8 + i], c[i] = (i32)p.x[t * 8 + i], d[i] = (i8)p.x[t * 8 + 4 + i];"
        "for (int i = 0; i < 3; ++i) b[i] = p.x[t * 8 + i];"
        "f32 v[4] = {p.x[t * 8 + 4], p.x[t * 8 + 5], p.x[t * 8 + 6], p.x[t * 8 + 7]}, w[3] = {v[0], v[1], v[2]};"
        "multiply_add(a, p.x[t * 8], v); multiply_add(b, p.x[t * 8], w); multiply_add(c, (u8)3, d);"
        "for (int i = 0; i < 4; ++i) p.a[t * 4 + i] = a[i], p.c[t * 4 + i] = c[i];"
        "for (int i = 0; i < 3; ++i) p.b[t * 3 + i] = b[i];"
    )
    expected = x[:, :4] + x[:, :1] * x[:, 4:]
    return PrimCase(
        "multiply_adds", "const f32* x; f32* a; f32* b; i32* c;", body,
        [In(x), zeros(64, 4), zeros(64, 3), zeros(64, 4, dtype=np.int32)],
        [expected, expected[:, :3], (x[:, :4] + 3 * x[:, 4:]).astype(np.int32)], 64, includes='#include "lanes.cuh"',
    )  # fmt: skip
