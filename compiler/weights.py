"""Makes weights from weights while compiling, by operators' references, with a record that can be replayed.

``records.py`` says what a record is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.bulk import contiguous
from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import from_numpy
from arcweld.compiler.errors import InputError, ModelError
from arcweld.compiler.ir import Rewriter, TensorType, Value, Weight, weight_value
from arcweld.compiler.mapped import WORTHWHILE, give_back, is_dense, is_mapped, make_constant
from arcweld.compiler.ops.registry import check_attrs, make, opdef
from arcweld.compiler.records import Transform, sources
from arcweld.compiler.text import literal_text, parse_fields, parse_literal, parse_type

# Elements of a constant that a record writes out; a larger one is a source, even without a name in the model.
# A scalar is always written out, as kernels hold its value as a literal.
INLINE_LIMIT = 64
_GENERATED = frozenset({"Range"})  # operators without operands whose result is recorded as a step, not as a source

# Bounds of what is computed of constants while compiling. Without them a chain of a few nodes that double their operand
# would take all memory: Concat(c, c) its elements, Add(c, c) the steps of its record.
SMALL = 64 * 1024  # bytes of a result that may always be a weight
GROWTH = 4  # a larger result may have this many times the bytes that it is made from, as f32 has of int8 weights
MOST_STEPS = 65_536  # steps of a record


def is_affordable(result: TensorType, operands: Sequence[tuple[str, Weight]]) -> bool:
    """Whether a result computed from ``operands``, (name, weight) pairs, may be a weight.

    It may not if its shape is symbolic, if it is large and much larger than the arrays of the model that the operands
    are made from, or if its record would be too long.
    """
    size, elements = result.nbytes, result.numel
    if isinstance(size, IntExpr) or isinstance(elements, IntExpr):
        return False
    if sum(max(1, len(w.transform)) for _, w in operands) >= MOST_STEPS:
        return False
    # no more elements than an operand has, but wider ones: 8-bit weights as f64, for exact sums
    widest = max((w.data.size for _, w in operands), default=0)
    return size <= SMALL or elements <= widest or size <= GROWTH * _bytes_of_sources(operands)


def _bytes_of_sources(operands: Sequence[tuple[str, Weight]]) -> int:
    """The bytes of the model's arrays that weights are made from, each array once."""
    found: dict[str, Dim] = {}
    for name, w in operands:
        if not w.transform:
            found[w.source or name] = w.data.nbytes
        for source, text in {args for step, args in w.transform if step == "source"}:
            found[source] = parse_type(text).nbytes
    return sum(int(n) for n in found.values() if isinstance(n, int))


def evaluate(op: str, operands: Sequence[tuple[str, Weight]], attrs: Mapping[str, Any]) -> Weight:
    """The weight that operator ``op`` computes from ``operands``, (name, weight) pairs, with its record.

    ``attrs`` must have all attributes, with ints for dimensions. Raises what the operator's reference raises.
    """
    with np.errstate(all="ignore"):  # NaN and infinity are results like any other
        (result, *_) = opdef(op).reference([w.data for _, w in operands], attrs)
    is_view = any(np.may_share_memory(result, w.data) for _, w in operands)
    # a large array that is new, or a view of a mapped file, keeps its order of axes until an engine needs another one
    stays = result.nbytes >= WORTHWHILE and is_dense(result) and (is_mapped(result) or not is_view)
    data = result if stays else contiguous(result)
    shared = [np.may_share_memory(data, w.data) for _, w in operands]
    if not any(shared):
        make_constant(data)
    for (_, w), same in zip(operands, shared):
        if not same:
            give_back(w.data)
    steps = [step for name, w in operands for step in record(name, w)]
    text = ", ".join(f"{k}={literal_text(v)}" for k, v in attrs.items())
    steps.append((op, (len(operands), text)))
    counts = (op in _GENERATED and data.size > INLINE_LIMIT) or any(step in _GENERATED for step, _ in steps[:-1])
    if not counts and not any(step == "source" for step, _ in steps):
        return Weight(data)
    transform = tuple(steps)
    named = sources(Weight(data, "", transform))
    return Weight(data, named[0] if len(named) == 1 else "", transform)


def record(name: str, weight: Weight) -> Transform:
    """The steps of a record that push ``weight``, which the graph calls ``name``."""
    if weight.transform:
        return weight.transform
    if weight.data.size > INLINE_LIMIT or (weight.source and weight.data.ndim):
        return (("source", (weight.source or name, str(_type_of(weight.data)))),)
    return (("constant", (str(_type_of(weight.data)), literal_text(tuple(_plain(weight.data))))),)


def replay(transform: Transform, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array that the record ``transform`` makes from ``arrays``, new data of the model's weights by name.

    Raises InputError for a source that is missing or of another type than in the model, ModelError for a damaged
    record.
    """
    stack: list[np.ndarray] = []
    for step, args in transform:
        if step == "source":
            stack.append(_source(arrays, *args))
        elif step == "constant":
            stack.append(_constant(*args))
        else:
            count, text = args
            if not 0 <= count <= len(stack) or (count == 0) != (step in _GENERATED):
                raise ModelError("a weight's record is damaged", node=step)
            attrs = check_attrs(opdef(step), parse_fields(text), step)
            operands, stack = stack[len(stack) - count :], stack[: len(stack) - count]
            stack.append(opdef(step).reference(operands, attrs)[0])
    if len(stack) != 1:
        raise ModelError("a weight's record is damaged: it does not leave one array")
    return stack[0]


def _source(arrays: Mapping[str, np.ndarray], name: str, type_: str) -> np.ndarray:
    if name not in arrays:
        raise InputError(f"the weight {name!r} is missing")
    given = str(_type_of(arrays[name]))
    if given != type_:
        raise InputError(f"the new value of weight {name!r} is {given}, the model's is {type_}")
    return arrays[name]


def derive(
    rw: Rewriter,
    op: str,
    inputs: Sequence[Value],
    attrs: Mapping[str, Any] | None = None,
    *,
    origin: tuple[str, ...] = (),
    hint: str = "",
) -> Value:
    """Like ``registry.make``, but where all operands and attributes are constant it adds a weight instead of a node.

    It does not if the result ``is_affordable`` no more.
    """
    if not all(v.name in rw.weights for v in inputs) or not is_evaluated(attrs or {}):
        return make(rw, op, inputs, attrs, origin=origin, hint=hint)
    spec = opdef(op)
    full = check_attrs(spec, attrs or {}, origin[0] if origin else op)
    operands = [(v.name, rw.weights[v.name]) for v in inputs]
    result = spec.infer([v.type for v in inputs], full)[0]
    if not is_affordable(result, operands):
        return make(rw, op, inputs, attrs, origin=origin, hint=hint)
    weight = evaluate(op, operands, full)
    name = rw.fresh(hint or f"{inputs[0].name}.{op.lower()}")
    rw.weights[name] = weight
    return weight_value(name, weight.data, result.dtype)


def is_evaluated(attrs: Mapping[str, Any]) -> bool:
    """Whether a node with these attributes is evaluated if its operands are constant.

    It is not if an attribute holds a symbolic dimension, or ``keep`` says that its operands stay as they are stored.
    """
    return not is_symbolic(tuple(attrs.values())) and not attrs.get("keep")


def is_symbolic(value: Any) -> bool:
    """Whether an attribute value holds a symbolic dimension."""
    return isinstance(value, IntExpr) or (isinstance(value, tuple) and any(is_symbolic(v) for v in value))


def _type_of(data: np.ndarray) -> TensorType:
    return TensorType(from_numpy(data.dtype), tuple(data.shape))


def _plain(data: np.ndarray) -> list[Any]:
    wide = data.astype(np.float64) if data.dtype.kind not in "biu" else data
    return list(wide.ravel().tolist())


def _constant(type_: str, values: str) -> np.ndarray:
    dtype, shape = parse_type(type_).dtype, tuple(int(str(d)) for d in parse_type(type_).shape)
    array = np.array(parse_literal(values), np.float64 if dtype.is_float else dtype.numpy)
    return array.astype(dtype.numpy).reshape(shape)
