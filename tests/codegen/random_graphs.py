"""Random graphs of registered operators, small enough to run in a moment: what the fuzz tests of lowering compile.

Values stay near 1 and nothing discontinuous is computed from rounded numbers, so that any order of evaluation agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, evaluate, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Graph, Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.registry import make, unsupported_reason

SIZES = {"N": 3, "S": 5}
N, S = symbol("N", 1), symbol("S", 2, 64)
EXTENTS: tuple[Dim, ...] = (1, 2, 3, 4, 6, 8)
MOST = 6000  # elements
UNARY = ("Relu", "Sigmoid", "Tanh", "Gelu", "Abs", "Neg", "Sin", "Erf", "Silu", "Softplus", "HardSwish", "Identity")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
INTEGER = (DType.I32, DType.I64)


class Maker:
    """Grows one graph. ``pick(n)`` chooses a number below n."""

    def __init__(self, pick: Callable[[int], int], symbolic: bool) -> None:
        self.pick = pick
        self.extents = (*EXTENTS, N, S) if symbolic else EXTENTS
        self.rw = Rewriter(Graph("random", (), (), ()))
        self.inputs: list[Value] = []
        self.values: list[Value] = []
        self.rng = np.random.default_rng(0)

    # ----- choices

    def one(self, items: Sequence[Any]) -> Any:
        return items[self.pick(len(items))]

    def chance(self, of: int) -> bool:
        return self.pick(of) == 0

    def input(self, shape: Sequence[Dim], dtype: DType = DType.F32) -> Value:
        v = Value(self.rw.fresh("x"), TensorType(dtype, tuple(shape)))
        self.inputs.append(v)
        return v

    def weight(self, array: np.ndarray, dtype: DType) -> Value:
        return self.rw.constant(array.astype(dtype.numpy), dtype, "w", source=f"w{len(self.rw.weights)}")

    def operand(self, shape: Sequence[Dim], dtype: DType) -> Value:
        """A new input, or a weight where the shape allows it."""
        if all(isinstance(d, int) for d in shape) and self.chance(2):
            size = tuple(int(d) for d in shape)  # type: ignore[arg-type]
            return self.weight(random_array(self.rng, size, dtype), dtype)
        return self.input(shape, dtype)

    def make(self, op: str, inputs: Sequence[Value | None], **attrs: Any) -> Value | None:
        """The node's result, or None (and no node) where the operator refuses or the result is large."""
        count = len(self.rw.nodes)
        try:
            v = make(self.rw, op, inputs, attrs, origin=(f"n{count}",), hint="v")
        except (ModelError, UnsupportedError):
            del self.rw.nodes[count:]
            return None
        small = all(evaluate(d, SIZES) > 0 for d in v.shape) and evaluate(v.type.numel, SIZES) <= MOST
        if not small or unsupported_reason(self.rw.nodes[-1]) is not None:
            del self.rw.nodes[count:]
            return None
        return v

    # ----- growth

    def grow(self, steps: int) -> Graph:
        """A graph of about ``steps`` steps; a few of its values are outputs."""
        if N in self.extents:
            self.inputs.append(Value(self.rw.fresh("sizes"), TensorType(DType.BOOL, (N, S))))
        for _ in range(1 + self.pick(2)):
            rank = 1 + self.pick(4)
            self.values.append(self.input([self.one(self.extents) for _ in range(rank)], self._dtype()))
        for _ in range(steps):
            step = self.one(STEPS)
            # mostly the newest value: long chains are what fuses
            x = self.values[-1] if self.pick(3) else self.one(self.values)
            y = step(self, x)
            if y is not None:
                self.values.append(y)
        made = [o for n in self.rw.nodes for o in n.outputs]
        outputs = [made[-1]] if made else [self.values[-1]]
        for v in made[:-1]:
            if self.chance(6):
                outputs.append(v)
        return _live(Graph("random", tuple(self.inputs), tuple(outputs), tuple(self.rw.nodes), self.rw.weights))

    def _dtype(self) -> DType:
        return self.one((DType.F32, DType.F32, DType.F32, DType.F16, DType.I32))


def _live(graph: Graph) -> Graph:
    """Without nodes and inputs that no output needs, but for those inputs that say what the symbols are."""
    needed = graph.output_names()
    kept: list[Node] = []
    for n in reversed(graph.nodes):
        if any(o.name in needed for o in n.outputs):
            kept.insert(0, n)
            needed |= {v.name for v in n.operands()}
    inputs = tuple(v for v in graph.inputs if v.name in needed or v.name == "sizes")
    return graph.replace(nodes=tuple(kept), inputs=inputs)


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Floats in [-1, 1], small integers, bools."""
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        return rng.integers(-3, 4, shape).astype(dtype.numpy)
    return rng.uniform(-1, 1, shape).astype(dtype.numpy)


def feeds_of(graph: Graph, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for a graph; index operands are i64 inputs below every extent (see ``_indices``)."""
    rng = np.random.default_rng(seed)
    out = {}
    for v in graph.inputs:
        shape = tuple(evaluate(d, sizes) for d in v.shape)
        out[v.name] = random_array(rng, shape, v.dtype)
        if v.dtype is DType.I64:  # only ever used as indices, into extents of at least 2
            out[v.name] = rng.integers(-2, 2, shape)
    return out


# ---------------------------------------------------------------------------------------------------------- the steps


def _unary(m: Maker, x: Value) -> Value | None:
    if not x.dtype.is_float:
        return m.make(m.one(("Neg", "Abs", "Identity", "Relu")), [x])
    return m.make(m.one(UNARY), [x])


def _clip(m: Maker, x: Value) -> Value | None:
    low, high = m.one((None, -0.5, 0.0)), m.one((None, 0.75))
    return m.make("Clip", [x], min=low, max=high) if x.dtype.is_float else None


def _broadcastable(m: Maker, shape: Sequence[Dim]) -> list[Dim]:
    kept: list[Dim] = [1 if m.chance(3) else d for d in shape]
    return kept[m.pick(len(kept) + 1) if m.chance(2) else 0 :]


def _binary(m: Maker, x: Value) -> Value | None:
    fitting = [v for v in m.values if v.dtype is x.dtype and v.shape == x.shape]
    y = m.one(fitting) if m.chance(2) else m.operand(_broadcastable(m, x.shape), x.dtype)
    return m.make(m.one(BINARY), [x, y] if m.pick(2) else [y, x])


def _where(m: Maker, x: Value) -> Value | None:
    i = m.operand(_broadcastable(m, x.shape), DType.I32)
    cond = m.make(m.one(("Greater", "LessOrEqual", "Equal")), [i, m.weight(np.asarray(0), DType.I32)])
    other = m.operand(_broadcastable(m, x.shape), x.dtype)
    return None if cond is None else m.make("Where", [cond, x, other])


def _cast(m: Maker, x: Value) -> Value | None:
    if x.dtype is DType.I32 or x.dtype is DType.F16:
        return m.make("Cast", [x], to=DType.F32)
    return m.make("Cast", [x], to=m.one((DType.F16, DType.F64))) if x.dtype is DType.F32 else None


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
        if m.chance(2) or not isinstance(d, int):
            back = m.chance(4)
            low = 0 if isinstance(d, int) or m.chance(2) else 1  # symbolic extents are at least 2, or 1 for N
            low = 0 if d == N else low
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
    if mode in ("reflect", "wrap"):
        room = [evaluate(d, {"N": 1, "S": 2}) - (mode == "reflect") for d in x.shape]
        begin, end = ([min(p, r) for p, r in zip(ps, room)] for ps in (begin, end))
    return m.make("Pad", [x], pads=(*begin, *end), mode=mode, value=float(m.pick(2)))


def _indices(m: Maker, shape: Sequence[Dim]) -> Value:
    if all(isinstance(d, int) for d in shape) and m.chance(2):
        return m.weight(m.rng.integers(-2, 2, tuple(int(d) for d in shape)), DType.I64)  # type: ignore[arg-type]
    return m.input(shape, DType.I64)


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
    if not axes:
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


def _reduce(m: Maker, x: Value) -> Value | None:
    axes = tuple(k for k in range(x.type.rank) if m.chance(2)) or ((x.type.rank - 1,) if x.type.rank else ())
    names = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceL2") if x.dtype.is_float else ("ReduceSum",)
    return m.make(m.one(names), [x], axes=axes, keepdims=m.pick(2)) if axes else None


def _softmax(m: Maker, x: Value) -> Value | None:
    if not x.type.rank or not x.dtype.is_float:
        return None
    return m.make(m.one(("Softmax", "Softmax", "LogSoftmax")), [x], axis=m.pick(x.type.rank))


def _norm(m: Maker, x: Value) -> Value | None:
    if not x.type.rank or not x.dtype.is_float or evaluate(x.shape[-1], {"N": 1, "S": 2}) < 2:
        return None
    axis = x.type.rank - 1 - (m.pick(2) if x.type.rank > 1 else 0)
    scale = m.operand(x.shape[axis:], x.dtype)
    if m.chance(3):
        return m.make("RMSNormalization", [x, scale], axis=axis, epsilon=1e-2)
    bias = m.operand(x.shape[axis:], x.dtype) if m.chance(2) else None
    return m.make("LayerNormalization", [x, scale, bias], axis=axis, epsilon=1e-2)


def _matmul(m: Maker, x: Value) -> Value | None:
    if x.type.rank < 2 or not x.dtype.is_float:
        return None
    n = m.one(m.extents)
    batch = list(x.shape[:-2]) if m.chance(3) else []
    if m.chance(3):
        return m.make("MatMul", [m.operand([*batch, n, x.shape[-2]], x.dtype), x])
    return m.make("MatMul", [x, m.operand([*batch, x.shape[-1], n], x.dtype)])


def _conv(m: Maker, x: Value) -> Value | None:
    if x.type.rank not in (3, 4) or not x.dtype.is_float or not isinstance(x.shape[1], int):
        return None
    r, c = x.type.rank - 2, x.shape[1]
    group = m.one([g for g in (1, 1, 2, c) if c % g == 0])
    kernel = [m.one((1, 2, 3)) for _ in range(r)]
    common = {
        "strides": tuple(m.one((1, 2)) for _ in range(r)), "dilations": tuple(m.one((1, 1, 2)) for _ in range(r)),
        "pads": tuple(m.pick(3) for _ in range(2 * r)), "group": group, "layout": "NCHW",
    }  # fmt: skip
    out = m.one((1, 2, 4)) * group
    bias = m.operand([out], x.dtype) if m.chance(2) else None
    if m.chance(4):
        w = m.operand([c, out // group, *kernel], x.dtype)
        return m.make("ConvTranspose", [x, w, bias], output_padding=(0,) * r, **common)
    return m.make("Conv", [x, m.operand([out, c // group, *kernel], x.dtype), bias], **common)


def _pool(m: Maker, x: Value) -> Value | None:
    if x.type.rank not in (3, 4) or not x.dtype.is_float:
        return None
    r = x.type.rank - 2
    kernel = tuple(m.one((1, 2, 3)) for _ in range(r))
    attrs: dict[str, Any] = {
        "kernel_shape": kernel, "strides": tuple(m.one((1, 2)) for _ in range(r)), "dilations": (1,) * r,
        "pads": tuple(m.pick(k) for k in (*kernel, *kernel)), "ceil_mode": m.pick(2), "layout": "NCHW",
    }  # fmt: skip
    if m.chance(2):
        return m.make("MaxPool", [x], **attrs)
    return m.make("AveragePool", [x], count_include_pad=m.pick(2), **attrs)


def _attention(m: Maker, x: Value) -> Value | None:
    if x.type.rank != 4 or not x.dtype.is_float or not isinstance(x.shape[1], int):
        return None
    groups = m.one([g for g in (1, 2, x.shape[1]) if x.shape[1] % g == 0])
    t = m.one(m.extents)
    k = m.operand([x.shape[0], groups, t, x.shape[3]], x.dtype)
    v = m.operand([x.shape[0], groups, t, m.one((2, 4))], x.dtype)
    mask = m.operand([1, 1, x.shape[2], t], x.dtype) if m.chance(2) else None
    return m.make("Attention", [x, k, v, mask], scale=0.5, is_causal=int(mask is None and t == x.shape[2]))


STEPS: tuple[Callable[[Maker, Value], Value | None], ...] = (
    _unary, _unary, _clip, _binary, _binary, _where, _cast, _merge, _split, _transpose, _expand, _slice, _concat, _pad,
    _gather, _gather_nd, _scatter, _tile, _trilu, _depth_to_space, _resize, _reduce, _softmax, _norm, _matmul, _matmul,
    _conv, _conv, _pool, _attention,
)  # fmt: skip
