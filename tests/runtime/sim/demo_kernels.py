"""The demonstration kernels with their launches and numpy references, shared by the sim device's tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sim_harness import Argument, In, Map, Out, image, run, source_of

from arcweld.runtime.device import Device


@dataclass(frozen=True, slots=True)
class Demo:
    """One kernel and one launch of it. ``reference`` is in f64; ``tolerance`` is absolute."""

    name: str
    entry: str
    source: str
    grid: tuple[int, ...]
    block: int
    shared: int
    arguments: list[Argument]
    reference: np.ndarray
    tolerance: float

    def error(self, device: Device, source: str | None = None) -> float:
        """The largest absolute error of a run, NaN where the output holds one."""
        kernel = image(source or self.source, self.entry)
        (result,) = run(device, kernel, self.grid, (self.block,), self.arguments, self.shared, pdl=True)
        return float(np.abs(result.astype(np.float64) - self.reference).max())

    def passes(self, device: Device, source: str | None = None) -> bool:
        return self.error(device, source) <= self.tolerance


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _empty(*shape: int, dtype: type = np.float16) -> Out:
    return Out(np.full(shape, np.nan, dtype))


def gelu() -> Demo:
    x, bias = _normal(0, 64, 512).astype(np.float16), _normal(1, 512).astype(np.float16)
    z = x.astype(np.float64) + bias
    reference = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    arguments = [In(x), In(bias), _empty(64, 512), x.size, 512]
    return Demo("gelu", "bias_gelu", source_of("gelu.cu"), (16,), 256, 0, arguments, reference, 4e-3)


def layernorm() -> Demo:
    x, gain, shift = _normal(0, 16, 320).astype(np.float16), _normal(1, 320), _normal(2, 320)
    z = x.astype(np.float64)
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
    gain, shift = gain.astype(np.float32), shift.astype(np.float32)
    arguments = [In(x), In(gain), In(shift), _empty(16, 320), 320, 1e-5]
    source = source_of("layernorm.cu")
    return Demo("layernorm", "layernorm", source, (16,), 128, 16, arguments, z * gain + shift, 6e-3)


def mma_gemm(m: int = 100, n: int = 136, k: int = 96) -> Demo:
    a, b = (_normal(0, m, k) / 4).astype(np.float16), (_normal(1, k, n) / 4).astype(np.float16)
    bias = _normal(2, n).astype(np.float16)
    reference = np.maximum(a.astype(np.float64) @ b.astype(np.float64) + bias, 0)
    arguments = [In(a), In(b), In(bias), _empty(m, n), m, n, k]
    grid, shared = (-(-n // 64), -(-m // 64)), 2 * (64 * 40 + 32 * 72) * 2
    return Demo("mma_gemm", "mma_gemm", source_of("mma_gemm.cu"), grid, 128, shared, arguments, reference, 4e-3)


def flash(heads: int = 2, length: int = 160) -> Demo:
    q, k, v = (_normal(i, heads, length, 64).astype(np.float16) for i in range(3))
    s = np.einsum("hqd,hkd->hqk", q.astype(np.float64), k.astype(np.float64)) * 0.125
    s = np.exp(s - s.max(-1, keepdims=True))
    reference = s / s.sum(-1, keepdims=True) @ v.astype(np.float64)
    arguments = [In(q), In(k), In(v), _empty(heads, length, 64), length, 0.125]
    grid = (-(-length // 64), heads)
    return Demo("flash", "flash", source_of("flash.cu"), grid, 128, 192 * 72 * 2, arguments, reference, 2e-3)


def wgmma_gemm(trans_b: int = 0, from_registers: int = 0, m: int = 100, n: int = 128, k: int = 256) -> Demo:
    a, b = (_normal(0, m, k) / 4).astype(np.float16), (_normal(1, n, k) / 4).astype(np.float16)
    reference = a.astype(np.float64) @ b.astype(np.float64).T
    c = np.full((m, n), np.nan, np.float16)
    maps = [Map(a, (64, 64)), Map(b.T.copy() if trans_b else b, (64, 64)), Map(c, (64, 64), written=True)]
    source = source_of("wgmma_gemm.cu.j2", trans_b=trans_b, from_registers=from_registers)
    name = f"wgmma_gemm_{'tn'[trans_b]}{'sr'[from_registers]}"
    shared = 5 * 8192 + 64
    return Demo(name, "wgmma_gemm", source, (n // 64, -(-m // 64)), 160, shared, [*maps, k], reference, 8e-3)


def ffma_gemm(size: int = 64) -> Demo:
    a, b = (_normal(i, size, size).astype(np.float32) for i in range(2))
    arguments = [In(a), In(b), _empty(size, size, dtype=np.float32), size, size, size]
    reference = a.astype(np.float64) @ b.astype(np.float64)
    grid = (size // 64, size // 64)
    return Demo("ffma_gemm", "ffma_gemm", source_of("ffma_gemm.cu"), grid, 256, 8192, arguments, reference, 1e-4)


DEMOS: dict[str, Callable[[], Demo]] = {
    "gelu": gelu,
    "layernorm": layernorm,
    "mma_gemm": mma_gemm,
    "flash": flash,
    "ffma_gemm": ffma_gemm,
    "wgmma": wgmma_gemm,
    "wgmma_trans_b": lambda: wgmma_gemm(trans_b=1),
    "wgmma_from_registers": lambda: wgmma_gemm(from_registers=1),
    "wgmma_from_registers_trans_b": lambda: wgmma_gemm(trans_b=1, from_registers=1),
}


def edited(demo: Demo, old: str, new: str) -> Demo:
    """The demo with one piece of its source replaced; the piece must occur."""
    assert old in demo.source, f"{demo.name} no longer contains {old!r}"
    return replace(demo, source=demo.source.replace(old, new))
