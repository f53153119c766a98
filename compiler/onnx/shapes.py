"""Evaluates shape arithmetic on the host while importing, so that shape tensors become attributes.

One table maps ONNX operators to functions on operands whose elements the host knows; elements may be symbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.arguments import (
    axes_argument,
    flattened_shape,
    normal_indices,
    reshaped,
    slice_spec,
    split_sizes,
    squeezed_shape,
    unsqueezed_shape,
)
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.operands import MAX_HOST_ELEMENTS, Operand, elements, on_host
from arcweld.compiler.onnx.proto import element_type
from arcweld.compiler.onnx.scalars import Undecided

HostFunction: TypeAlias = Callable[[NodeContext], Sequence[Operand]]
HOST: dict[str, HostFunction] = {}

MAX_COMPUTED = 1 << 20  # elements that one import evaluates here; then constant folding takes over, which is faster
_SMALL = 4096  # the most elements of an integer operand that is evaluated here
_TINY = 64  # the same for floats; larger ones are weights, which constant folding evaluates


def evaluate(c: NodeContext) -> Sequence[Operand] | None:
    """The node's outputs if the host can compute them, else None.

    Raises Undecided where the outputs depend on what the symbols' ranges leave open, ModelError for operands that do
    not go together.
    """
    fn = HOST.get(c.op)
    if fn is None:
        return None
    if c.op not in ("Shape", "Size") and not all(o is None or _worthwhile(o) for o in c.operands):
        return None
    if c.builder.computed > MAX_COMPUTED:
        if any(o is not None and o.is_symbolic for o in c.operands):
            raise Undecided(f"more than {MAX_COMPUTED} elements are computed while importing")
        return None
    try:
        found = fn(c)
        c.builder.computed += sum(o.known.size for o in found if o.known is not None)
        return found
    except (ValueError, OverflowError) as error:  # numpy's, for shapes and numbers: no type rule has seen the node
        c.broken(str(error))


def _worthwhile(o: Operand) -> bool:
    if o.known is None:
        return False
    return o.is_symbolic or o.known.size <= (_TINY if o.dtype.is_float else _SMALL)


def _host(*ops: str) -> Callable[[HostFunction], HostFunction]:
    def add(fn: HostFunction) -> HostFunction:
        HOST.update(dict.fromkeys(ops, fn))
        return fn

    return add


def _data(c: NodeContext, i: int = 0) -> np.ndarray:
    known = c.operand(i).known
    assert known is not None
    return known


def _like(c: NodeContext, data: Any) -> list[Operand]:
    return [on_host(data, c.operand(0).dtype)]


def _limit(shape: Sequence[Dim]) -> tuple[int, ...]:
    """``shape`` as ints. Raises Undecided where it is symbolic, or too large to be filled on the host."""
    n = dims.product(shape)
    if not isinstance(n, int) or n > MAX_HOST_ELEMENTS or not all(isinstance(d, int) and d >= 0 for d in shape):
        raise Undecided(f"a tensor of shape [{', '.join(map(str, shape))}] is not evaluated while importing", *shape)
    return tuple(int(d) for d in shape)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ elementwise


def _apply(fn: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    _limit(np.broadcast_shapes(*(a.shape for a in arrays)))
    return np.asarray(np.frompyfunc(fn, len(arrays), 1)(*arrays), object)


def _binary(fn: Callable[[Any, Any], Any], dtype: DType | None = None) -> HostFunction:
    def run(c: NodeContext) -> list[Operand]:
        if c.operand(0).dtype is not c.operand(1).dtype:
            c.broken(f"operands of {c.operand(0).dtype.value} and {c.operand(1).dtype.value}")
        out = _apply(fn, elements(c.operand(0)), elements(c.operand(1)))
        return [on_host(out, dtype or c.operand(0).dtype)]

    return run


def _unary(fn: Callable[[Any], Any], dtype: DType | None = None) -> HostFunction:
    def run(c: NodeContext) -> list[Operand]:
        return [on_host(_apply(fn, elements(c.operand(0))), dtype or c.operand(0).dtype)]

    return run


def _folded(fn: Callable[[Any, Any], Any]) -> HostFunction:
    def run(c: NodeContext) -> list[Operand]:
        out = elements(c.operand(0))
        for i in range(1, len(c.operands)):
            out = _apply(fn, out, elements(c.operand(i)))
        return _like(c, out)

    return run


for _name, _fn in (("Add", scalars.add), ("Sub", scalars.sub), ("Mul", scalars.mul)):
    HOST[_name] = _binary(_fn)
for _name, _fn in (
    ("Equal", scalars.equal), ("Less", scalars.less), ("LessOrEqual", scalars.less_equal),
    ("Greater", lambda a, b: scalars.less(b, a)), ("GreaterOrEqual", lambda a, b: scalars.less_equal(b, a)),
    ("And", lambda a, b: bool(a and b)), ("Or", lambda a, b: bool(a or b)), ("Xor", lambda a, b: bool(a) != bool(b)),
):  # fmt: skip
    HOST[_name] = _binary(_fn, DType.BOOL)
for _name, _op in (
    ("Neg", scalars.neg), ("Abs", scalars.absolute), ("Floor", scalars.floor), ("Ceil", scalars.ceil),
    ("Round", scalars.round_even), ("Sqrt", scalars.sqrt), ("Sign", scalars.sign),
    ("Reciprocal", lambda a: scalars.div_float(1.0, a)),
):  # fmt: skip
    HOST[_name] = _unary(_op)
HOST["Not"] = _unary(lambda a: not a, DType.BOOL)
HOST["Max"] = _folded(scalars.maximum)
HOST["Min"] = _folded(scalars.minimum)
HOST["Sum"] = _folded(scalars.add)


@_host("Div")
def _div(c: NodeContext) -> Sequence[Operand]:
    return _binary(scalars.div_float if c.operand(0).dtype.is_float else scalars.div_int)(c)


@_host("Mod")
def _mod(c: NodeContext) -> Sequence[Operand]:
    return _binary(scalars.fmod if c.int_attr("fmod") else scalars.mod)(c)


@_host("Pow")
def _pow(c: NodeContext) -> Sequence[Operand]:
    base, exponent = elements(c.operand(0)), elements(c.operand(1))
    convert = scalars.to_float if c.operand(0).dtype.is_float else scalars.to_int
    return _like(c, _apply(lambda a, b: convert(scalars.power(a, b)), base, exponent))


@_host("Where")
def _where(c: NodeContext) -> Sequence[Operand]:
    out = _apply(lambda p, a, b: a if p else b, *(elements(c.operand(i)) for i in range(3)))
    return [on_host(out, c.operand(1).dtype)]


@_host("Clip")
def _clip(c: NodeContext) -> Sequence[Operand]:
    if c.opset < 11:
        raise Undecided("Clip with attributes")
    out = elements(c.operand(0))
    if c.has(1):
        out = _apply(scalars.maximum, out, elements(c.operand(1)))
    if c.has(2):
        out = _apply(scalars.minimum, out, elements(c.operand(2)))
    return _like(c, out)


def _convert(o: Operand, to: DType) -> Operand:
    if to.is_float:
        fn = scalars.to_float
    else:
        fn = scalars.to_bool if to is DType.BOOL else scalars.to_int
    if not o.is_symbolic and not to.is_float and o.known is not None and o.dtype.is_int and to.is_int:
        return on_host(o.known.astype(to.numpy), to)
    return on_host(_apply(fn, elements(o)), to)


@_host("Cast", "CastLike")
def _cast(c: NodeContext) -> Sequence[Operand]:
    to = c.operand(1).dtype if c.op == "CastLike" else element_type(c.int_attr("to"))
    return [_convert(c.operand(0), to)]


# ---------------------------------------------------------------------------------------------------------- shapes


@_host("Shape")
def _shape(c: NodeContext) -> Sequence[Operand]:
    shape = c.shape(0)
    if c.opset >= 15:
        start, end = c.int_attr("start", 0), c.int_attr("end", len(shape))
        shape = shape[slice(start, end)]
    return [on_host(np.array([*shape, None], object)[:-1], DType.I64)]


@_host("Size")
def _size(c: NodeContext) -> Sequence[Operand]:
    out = np.empty((), object)
    out[()] = dims.product(c.shape(0))
    return [on_host(out, DType.I64)]


@_host("ConstantOfShape")
def _constant_of_shape(c: NodeContext) -> Sequence[Operand]:
    shape = _limit(c.dims(0, read=False))
    value, dtype = c.tensor_attr("value") or (np.zeros(1, np.float32), DType.F32)
    if value.size != 1:
        c.broken("the value should have one element")
    return [on_host(np.full(shape, value.reshape(-1)[0]), dtype)]


@_host("Range")
def _range(c: NodeContext) -> Sequence[Operand]:
    given = [elements(c.operand(i)).reshape(-1) for i in range(3)]
    if any(a.size != 1 for a in given):
        c.broken("start, limit and delta should have one element each")
    start, limit, step = (a[0] for a in given)
    if any(scalars.is_symbolic(x) for x in (start, limit, step)):
        raise Undecided(f"the length of a range from {start} to {limit}", start, limit)
    if step == 0:
        c.broken("the step is 0")
    count = max(0, int(np.ceil((limit - start) / step)))
    _limit((count,))
    return _like(c, np.array([start + i * step for i in range(count)], c.operand(0).dtype.numpy))


# -------------------------------------------------------------------------------------------------------- movement


@_host("Identity", "Dropout")
def _identity(c: NodeContext) -> Sequence[Operand]:
    if c.op == "Dropout":
        raise Undecided("Dropout")
    return [c.operand(0)]


@_host("Gather")
def _gather(c: NodeContext) -> Sequence[Operand]:
    data = _data(c)
    axis = c.axis(c.int_attr("axis"), data.ndim)
    if c.operand(1).is_symbolic:
        raise Undecided("an index depends on a dimension")
    indices = normal_indices(c, _data(c, 1), data.shape[axis])
    _limit(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])
    return _like(c, np.take(data, indices, axis))


@_host("Slice")
def _slice(c: NodeContext) -> Sequence[Operand]:
    data = _data(c)
    spec = slice_spec(c)
    for axis, (start, size, step) in enumerate(zip(spec.starts, spec.sizes, spec.steps)):
        first, count = c.concrete(start, "a start"), c.concrete(size, "a size")
        data = np.take(data, first + step * np.arange(count), axis)
    return _like(c, data)


@_host("Concat")
def _concat(c: NodeContext) -> Sequence[Operand]:
    arrays = [elements(c.operand(i)) for i in range(len(c.operands))]
    return _like(c, np.concatenate(arrays, c.axis(c.int_attr("axis"), arrays[0].ndim)))


@_host("Split")
def _split(c: NodeContext) -> Sequence[Operand]:
    data = _data(c)
    axis = c.axis(c.int_attr("axis"), data.ndim)
    sizes = [c.concrete(s, "a size") for s in split_sizes(c, data.shape[axis])]
    return [on_host(part, c.operand(0).dtype) for part in np.split(data, np.cumsum(sizes)[:-1], axis)]


@_host("Squeeze", "Unsqueeze", "Flatten", "Reshape")
def _reshape(c: NodeContext) -> Sequence[Operand]:
    if c.op == "Reshape":
        shape = reshaped(c, c.shape(0), c.dims(1, read=False), bool(c.int_attr("allowzero")))
    else:
        shape = {"Squeeze": squeezed_shape, "Unsqueeze": unsqueezed_shape, "Flatten": flattened_shape}[c.op](c)
    return _like(c, _data(c).reshape(_limit(shape)))


@_host("Transpose")
def _transpose(c: NodeContext) -> Sequence[Operand]:
    data = _data(c)
    perm = c.ints_attr("perm") or tuple(reversed(range(data.ndim)))
    if sorted(perm) != list(range(data.ndim)):
        c.broken(f"perm is {list(perm)}")
    return _like(c, data.transpose(perm))


@_host("Expand")
def _expand(c: NodeContext) -> Sequence[Operand]:
    shape = _limit(c.dims(1, read=False))
    return _like(c, np.broadcast_to(_data(c), np.broadcast_shapes(shape, _data(c).shape)))


@_host("Tile")
def _tile(c: NodeContext) -> Sequence[Operand]:
    repeats, data = c.ints(1), _data(c)
    if len(repeats) != data.ndim or any(r < 0 for r in repeats):
        c.broken(f"repeats are {repeats}")
    _limit([a * b for a, b in zip(repeats, data.shape)])
    return _like(c, np.tile(data, repeats))


@_host("NonZero")
def _nonzero(c: NodeContext) -> Sequence[Operand]:
    nonzero = _apply(scalars.to_bool, elements(c.operand(0)))
    return [on_host(np.stack(np.nonzero(nonzero.astype(bool))), DType.I64)]


@_host("ScatterND")
def _scatter_nd(c: NodeContext) -> Sequence[Operand]:
    if c.has_attr("reduction") or c.operand(1).is_symbolic or c.operand(1).rank == 0:
        raise Undecided("ScatterND")
    out, indices, updates = elements(c.operand(0)).copy(), _data(c, 1), elements(c.operand(2))
    depth = indices.shape[-1]
    if depth > out.ndim:
        c.broken("the indices are longer than the data's rank")
    at = tuple(normal_indices(c, indices[..., k], out.shape[k]) for k in range(depth))
    out[at] = updates
    return _like(c, out)


# ------------------------------------------------------------------------------------------------------ reductions


def _reduction(fn: Callable[[Any, Any], Any], start: Any, since: int) -> HostFunction:
    def run(c: NodeContext) -> list[Operand]:
        data = elements(c.operand(0))
        axes = axes_argument(c, 1, data.ndim, since)
        if not axes:
            if c.int_attr("noop_with_empty_axes"):
                return _like(c, data)
            axes = list(range(data.ndim))
        keep = bool(c.int_attr("keepdims", 1))
        rows = np.moveaxis(data, axes, range(len(axes)))
        rest = rows.shape[len(axes) :]
        rows = rows.reshape((-1, *rest))
        if not len(rows) and start is None:
            raise Undecided("the reduction of an empty tensor")
        out = np.full(rest, start, object) if start is not None else np.asarray(rows[0], object)
        for row in rows if start is not None else rows[1:]:
            out = np.asarray(np.frompyfunc(fn, 2, 1)(out, row), object)
        shape = [1 if i in axes else d for i, d in enumerate(data.shape)]
        return _like(c, out.reshape(shape) if keep else out)

    return run


HOST["ReduceProd"] = _reduction(scalars.mul, 1, 18)
HOST["ReduceSum"] = _reduction(scalars.add, 0, 13)
HOST["ReduceMax"] = _reduction(scalars.maximum, None, 18)
HOST["ReduceMin"] = _reduction(scalars.minimum, None, 18)
