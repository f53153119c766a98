"""Kernels for the window template: max and average pools, NHWC and NCHW, strides, padding, dilation, indices."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product

import numpy as np
from kernel_cases import Case, Suite, at, put, random

from arcweld.codegen.kernel import Axis, Buffer, Kernel, axis
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, const, index, variable, where

F32, F16 = DType.F32, DType.F16


@dataclass(frozen=True)
class Pool:
    """A square two-dimensional window."""

    size: int
    stride: int
    pad: int = 0
    dilation: int = 1

    def out(self, n: int) -> int:
        return (n + 2 * self.pad - self.dilation * (self.size - 1) - 1) // self.stride + 1


def inside(position: Dim, extent: int) -> Expr:
    """True where a tap does not lie in the padding."""
    i = index(position)
    low = binary("ge", i, const(0, DType.I64))
    return binary("and", low, binary("lt", i, const(extent, DType.I64)))


def pool_kernel(
    shape: tuple[Dim, int, int, int], pool: Pool, combine: str, dtype: DType, channels_last: bool = True
) -> Kernel:
    """Pooling of an image of ``shape`` (n, h, w, c); ``channels_last`` says how it lies in memory. Max
    pools end in a relu.
    """
    n, h, w, c = shape
    b, oy, ox, ch = axis("n", n), axis("oy", pool.out(h)), axis("ox", pool.out(w)), axis("c", c)
    ky, kx = axis("ky", pool.size), axis("kx", pool.size)
    y = oy.index * pool.stride + ky.index * pool.dilation - pool.pad
    x = ox.index * pool.stride + kx.index * pool.dilation - pool.pad
    order = (lambda p, q: (b, p, q, ch)) if channels_last else (lambda p, q: (b, ch, p, q))
    src = Buffer("in0", dtype, (n, h, w, c) if channels_last else (n, c, h, w))
    outs: tuple[Axis, ...] = order(oy, ox)  # type: ignore[no-untyped-call]
    dst_type = DType.I64 if combine == "argmax" else dtype
    dst = Buffer("out0", dst_type, tuple(a.extent for a in outs), True)
    mask = binary("and", inside(y, h), inside(x, w))
    tap = at(src, order(y, x), mask)  # type: ignore[no-untyped-call]
    if combine != "sum":
        tap = where(mask, tap, const(float("-inf"), tap.dtype))
    acc = variable("acc", dst_type.compute)
    if combine == "sum":
        acc = acc * (1.0 / pool.size**2)
    if combine == "max":
        acc = binary("max", acc, const(0.0, acc.dtype))
    return Kernel(
        "window", f"pool_{combine}", {"out": outs, "reduce": (ky, kx)}, {"x": tap}, (put(dst, outs, acc),), (src, dst),
        {"combine": combine},
    )  # fmt: skip


def pooled(image: np.ndarray, pool: Pool, combine: str) -> np.ndarray:
    """The same by loops over the windows of an (n, h, w, c) image."""
    x = np.pad(
        image.astype(np.float64), [(0, 0), (pool.pad,) * 2, (pool.pad,) * 2, (0, 0)],
        constant_values=0.0 if combine == "sum" else -np.inf,
    )  # fmt: skip
    n, h, w, c = image.shape
    out = np.zeros((n, pool.out(h), pool.out(w), c))
    span = pool.dilation * (pool.size - 1) + 1
    for i, j in product(range(pool.out(h)), range(pool.out(w))):
        y, z = i * pool.stride, j * pool.stride
        view = x[:, y : y + span : pool.dilation, z : z + span : pool.dilation].reshape(n, -1, c)
        if combine == "argmax":
            out[:, i, j] = view.argmax(1)
        else:
            out[:, i, j] = view.mean(1) if combine == "sum" else np.maximum(view.max(1), 0)
    return out


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(5)
    batch = symbol("batch", 1)
    rows: list[tuple[tuple[Dim, int, int, int], Pool, str, DType, bool]] = [
        ((2, 9, 9, 16), Pool(3, 2, 1), "max", F16, True),
        ((1, 8, 8, 12), Pool(2, 2), "sum", F32, True),
        ((1, 7, 6, 5), Pool(3, 1, 1), "sum", F32, True),
        ((1, 7, 8, 3), Pool(3, 2, 1), "max", F32, False),
        ((1, 11, 11, 8), Pool(3, 1, 2, 2), "max", DType.BF16, True),
        ((2, 6, 6, 4), Pool(2, 2), "argmax", F32, True),
        ((batch, 6, 6, 8), Pool(3, 3), "max", F16, True),
    ]
    for shape, pool, combine, dtype, last in rows:
        n = 3 if shape[0] is batch else shape[0]
        image = random(rng, (n, *shape[1:]), dtype)  # type: ignore[arg-type]
        name = f"{combine}_{pool.size}s{pool.stride}p{pool.pad}d{pool.dilation}_{dtype.value}{'' if last else '_nchw'}"

        def oracle(image=image, pool=pool, combine=combine, last=last):  # type: ignore[no-untyped-def]
            y = pooled(image, pool, combine)
            return {"out0": y if last else y.transpose(0, 3, 1, 2)}

        data = image if last else image.transpose(0, 3, 1, 2).copy()
        s.add(name, pool_kernel(shape, pool, combine, dtype, last), {"in0": data}, oracle, {"batch": 3})
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
