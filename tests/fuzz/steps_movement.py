"""Steps of random graphs that move elements: reshapes, slices, pads, gathers, scatters and their kin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from maker import INDICES, Maker, S, Step

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value


def _merge(m: Maker, x: Value) -> Value | None:
    if x.type.rank < 2:
        return m.make("Reshape", [x], shape=(*x.shape, 1))
    k = m.pick(x.type.rank - 1)
    return m.make("Reshape", [x], shape=(*x.shape[:k], x.shape[k] * x.shape[k + 1], *x.shape[k + 2 :]))


def _split(m: Maker, x: Value) -> Value | None:
    k = m.pick(x.type.rank) if x.type.rank else 0
    for f in (2, 3, 4):
        if x.type.rank and isinstance(x.shape[k], int) and x.shape[k] % f == 0:
            halves: tuple[Dim, ...] = (f, x.shape[k] // f) if m.chance(2) else (x.shape[k] // f, f)
            return m.make("Reshape", [x], shape=(*x.shape[:k], *halves, *x.shape[k + 1 :]))
    return m.make("Reshape", [x], shape=(x.type.numel,))


def _transpose(m: Maker, x: Value) -> Value | None:
    left = list(range(x.type.rank))
    perm = tuple(left.pop(m.pick(len(left))) for _ in range(x.type.rank))
    return m.make("Transpose", [x], perm=perm)


def _expand(m: Maker, x: Value) -> Value | None:
    shape = tuple(m.one(m.extents) if d == 1 else d for d in x.shape)
    return m.make("Expand", [x], shape=(m.one((2, 3)), *shape) if m.chance(3) else shape)


def _slice(m: Maker, x: Value) -> Value | None:
    starts: list[Dim] = []
    sizes: list[Dim] = []
    steps: list[int] = []
    for d in x.shape:
        if m.chance(2) or not isinstance(d, int) or d == 0:
            back = m.smallest(d) > 0 and m.chance(4)
            low = 1 if m.smallest(d) > 1 and m.chance(2) else 0
            starts.append(d - 1 if back else low)
            sizes.append(d if back else d - low)
            steps.append(-1 if back else 1)
            continue
        step = m.one((1, 2, -1, -2))
        size = 1 + m.pick((d + abs(step) - 1) // abs(step))
        reach = (size - 1) * abs(step)
        start = m.pick(d - reach)
        starts.append(start if step > 0 else start + reach)
        sizes.append(size)
        steps.append(step)
    return m.make("Slice", [x], starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


def _concat(m: Maker, x: Value) -> Value | None:
    if not x.type.rank:
        return None
    k = m.pick(x.type.rank)
    shape = [m.one((1, 2, 3)) if j == k else d for j, d in enumerate(x.shape)]
    parts = [x, m.operand(shape, x.dtype)]
    if m.chance(3):
        parts.append(x)
    return m.make("Concat", parts if m.chance(2) else parts[::-1], axis=k)


def _pad(m: Maker, x: Value) -> Value | None:
    begin = [m.pick(3) for _ in x.shape]
    end = [m.pick(3) for _ in x.shape]
    mode = m.one(("constant", "constant", "edge", "reflect", "wrap"))
    if mode != "constant":  # that many elements there are to repeat
        least = [m.smallest(d) for d in x.shape]
        room = [max(n - 1, 0) if mode == "reflect" else 9 if n and mode == "edge" else n for n in least]
        begin, end = ([min(p, r) for p, r in zip(ps, room)] for ps in (begin, end))
    return m.make("Pad", [x], pads=(*begin, *end), mode=mode, value=float(m.pick(2)))


def _indices(m: Maker, shape: Sequence[Dim]) -> Value:
    if all(isinstance(d, int) for d in shape) and m.chance(2):
        return m.weight(m.rng.integers(-2, 2, tuple(int(d) for d in shape)), DType.I64)  # type: ignore[arg-type]
    return m.input(shape, DType.I64, INDICES)


def _wide_axes(x: Value) -> list[int]:
    """Axes that indices from -2 to 1 can address."""
    return [k for k, d in enumerate(x.shape) if (isinstance(d, int) and d >= 2) or d == S]


def _gather(m: Maker, x: Value) -> Value | None:
    axes = _wide_axes(x)
    if not axes:
        return None
    k = m.one(axes)
    if m.chance(3):
        shape = [m.one((1, 2, 3)) if j == k else d for j, d in enumerate(x.shape)]
        return m.make("GatherElements", [x, _indices(m, shape)], axis=k)
    return m.make("Gather", [x, _indices(m, [m.one(m.extents) for _ in range(m.pick(3))])], axis=k)


def _gather_nd(m: Maker, x: Value) -> Value | None:
    depth = 0
    while depth in _wide_axes(x) and m.pick(3):
        depth += 1
    return m.make("GatherND", [x, _indices(m, [m.one((2, 3)), depth])], batch_dims=0) if depth else None


def _scatter(m: Maker, x: Value) -> Value | None:
    axes = _wide_axes(x)
    if not axes or x.dtype is DType.BOOL:
        return None
    reduction = m.one(("add", "mul", "max", "min"))
    if 0 in axes and m.chance(2):
        at, count = _indices(m, [3, 1]), 3
        if m.chance(2):  # distinct rows: what a plain scatter may have
            at, count, reduction = m.weight(np.array([[-1], [0]]), DType.I64), 2, "none"
        return m.make("ScatterND", [x, at, m.operand([count, *x.shape[1:]], x.dtype)], reduction=reduction)
    k = m.one(axes)
    shape = [m.one((1, 2, 3)) if j == k else d for j, d in enumerate(x.shape)]
    return m.make("ScatterElements", [x, _indices(m, shape), m.operand(shape, x.dtype)], axis=k, reduction=reduction)


def _tile(m: Maker, x: Value) -> Value | None:
    return m.make("Tile", [x], repeats=tuple(m.one((1, 1, 2, 3)) for _ in x.shape))


def _trilu(m: Maker, x: Value) -> Value | None:
    return m.make("Trilu", [x], upper=m.pick(2), k=m.pick(3) - 1)


def _depth_to_space(m: Maker, x: Value) -> Value | None:
    if m.chance(2):
        return m.make("SpaceToDepth", [x], blocksize=2)
    return m.make("DepthToSpace", [x], blocksize=2, mode=m.one(("DCR", "CRD")))


def _resize(m: Maker, x: Value) -> Value | None:
    if not x.dtype.is_float or not all(isinstance(d, int) for d in x.shape):
        return None
    sizes = tuple(d if k < 2 else m.one((d, 2 * d, d + 1)) for k, d in enumerate(x.shape))
    mode = m.one(("nearest", "linear"))
    return m.make("Resize", [x], sizes=sizes, scales=None, mode=mode, coordinate_transformation_mode="half_pixel")


MOVEMENT: tuple[Step, ...] = (
    _merge, _split, _transpose, _expand, _slice, _concat, _pad, _gather, _gather_nd, _scatter, _tile, _trilu,
    _depth_to_space, _resize,
)  # fmt: skip
