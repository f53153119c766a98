"""Affine folding: constant scales and shifts of channels move into the neighbouring convolution or matrix product.

    Conv(x, w) * s + b   ->  Conv(x, w * s, b)
    Conv(x * s + b, w)   ->  Conv(x, w * s, sum(w * b))      a shift only if nothing is padded

Requires: batch normalisation not yet decomposed. Ensures: no BatchNormalization, Mul, Div, Add or Sub by per-channel
constants is left behind a Conv or ConvTranspose of constant weights whose result nobody else reads, or in front of such
a Conv; no Mul or Div by constants behind a MatMul with a constant right operand. An Add behind a MatMul stays: it is
free in the kernel's epilogue, and so does a factor that takes weights out of their type's range. New weights have
records of how they were made.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value, merge_origins
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite, use_counts

_CONV = frozenset({"Conv", "ConvTranspose"})


def fold_affine(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with per-channel scales and shifts folded into weights."""
    uses = use_counts(graph)

    def visit(rw: Tracker, node: Node) -> bool:
        return _after(rw, node, uses) or _before(rw, node, uses)

    return rewrite(graph, visit)


# ----------------------------------------------------------------------------------- y * scale + shift, after


def _after(rw: Tracker, node: Node, uses: dict[str, int]) -> bool:
    """Folds ``node``, an affine map of a convolution's or product's result, into that one's weights."""
    found = _affine(rw, node)
    if found is None:
        return False
    old, scale, shift = found
    hero = rw.producer(rw.get(old))
    if hero is None or (hero.op not in _CONV and hero.op != "MatMul"):
        return False
    weight = hero.operands()[1]
    if uses[old.name] != 1 or hero.output.shape != node.output.shape or weight.name not in rw.weights:
        return False
    axis = hero.output.type.rank - 1 if hero.op == "MatMul" else _channel_axis(hero)
    if hero.op == "MatMul" and (shift is not None or weight.type.rank < 2):
        return False
    fit = [None if v is None else _per_channel(rw, v, hero.output, axis) for v in (scale, shift)]
    if any(v is not None and f is None for v, f in zip((scale, shift), fit)) or not _stays_in_range(rw, weight, fit[0]):
        return False
    new = _scaled_hero(rw, hero, fit[0], fit[1], node)
    rw.redirect(node, new)
    return True


def _affine(rw: Tracker, node: Node) -> tuple[Value, Value | None, Value | None] | None:
    """``node`` as x * scale + shift with constants: (x of the old graph, scale, shift); None for other nodes."""
    if node.op == "BatchNormalization":
        scale, shift = batch_norm_constants(rw, node)
        return None if scale is None else (node.operands()[0], scale, shift)
    if node.op not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2 or not node.output.dtype.is_float:
        return None
    x, c = node.operands()
    if rw.get(c).name not in rw.weights:
        if node.op in ("Div", "Sub"):
            return None
        x, c = c, x
    constant = rw.get(c)
    if constant.name not in rw.weights or rw.get(x).name in rw.weights:
        return None
    if node.op == "Div":
        constant = rw.make("Reciprocal", [constant], node.origin)
    if node.op == "Sub":
        constant = rw.make("Neg", [constant], node.origin)
    return (x, constant, None) if node.op in ("Mul", "Div") else (x, None, constant)


def batch_norm_constants(rw: Tracker, node: Node) -> tuple[Value | None, Value | None]:
    """A batch normalisation's scale and shift, each [C, 1, …] to broadcast to [N, C, spatial].

    None for both if its operands are not all constant.
    """
    rank = node.output.type.rank
    parts = [rw.get(v) for v in node.operands()[1:]]
    if len(parts) != 4 or any(v.name not in rw.weights for v in parts):
        return None, None
    scale, bias, mean, var = [_wide(rw, v) for v in parts]
    eps = rw.constant(np.asarray(node.attrs["epsilon"], var.dtype.numpy), var.dtype, "epsilon")
    rstd = rw.make("Rsqrt", [rw.make("Add", [var, eps], node.origin)], node.origin)
    factor = rw.make("Mul", [scale, rstd], node.origin, f"{node.output.name}.scale")
    shift = rw.make(
        "Sub", [bias, rw.make("Mul", [mean, factor], node.origin)], node.origin, f"{node.output.name}.shift"
    )
    shape = (*scale.shape, *(1,) * (rank - 2)) if rank > 1 else scale.shape
    return rw.make("Reshape", [factor], node.origin, shape=shape), rw.make("Reshape", [shift], node.origin, shape=shape)


def _wide(rw: Tracker, v: Value) -> Value:
    """A 16-bit constant as f32, so that folding rounds only once."""
    return rw.make("Cast", [v], (), to=DType.F32) if v.dtype.is_half else v


def _channel_axis(hero: Node) -> int:
    return 1 if hero.attrs["layout"] == "NCHW" else hero.output.type.rank - 1


def _per_channel(rw: Tracker, constant: Value, y: Value, axis: int) -> Value | None:
    """``constant`` as a vector [C] (or [1]) along ``axis`` of ``y``; None if it varies along other axes."""
    first = y.type.rank - constant.type.rank
    if first < 0 or any(d != 1 and first + k != axis for k, d in enumerate(constant.shape)):
        return None
    return rw.make("Reshape", [constant], (), shape=(constant.type.numel,))


def _scaled_hero(rw: Tracker, hero: Node, scale: Value | None, shift: Value | None, node: Node) -> Value:
    """``hero`` with a scaled and shifted result, which replaces ``node``."""
    origin = merge_origins((hero, node))
    x, weight = hero.operands()[:2]
    bias = hero.inputs[2] if len(hero.inputs) > 2 else None
    if scale is not None:
        weight = _cast(
            rw, rw.make("Mul", [_wide(rw, weight), _along_outputs(rw, hero, weight, scale)], origin), weight.dtype
        )
        if bias is not None:
            bias = rw.make("Mul", [_wide(rw, bias), _wide(rw, scale)], origin)
    if shift is not None:
        channels = hero.output.shape[_channel_axis(hero)]
        shift = rw.make("Expand", [shift], origin, shape=(channels,))
        bias = shift if bias is None else rw.make("Add", [_wide(rw, bias), _wide(rw, shift)], origin)
    inputs: list[Value | None] = [x, weight]
    if bias is not None:
        inputs.append(_cast(rw, bias, x.dtype))
    return rw.make(hero.op, inputs, origin, node.output.name, **hero.attrs)


def _stays_in_range(rw: Tracker, weight: Value, scale: Value | None) -> bool:
    """False if a weight times ``scale`` might overflow its type, or none of a channel be a normal number."""
    if scale is None or 0 in weight.shape or 0 in scale.shape:
        return True
    data = rw.weights[weight.name].data
    info = ml_dtypes.finfo(data.dtype)
    factors = np.abs(rw.weights[scale.name].data.astype(np.float64))
    top = max(abs(float(data.max())), abs(float(data.min())))
    with np.errstate(invalid="ignore"):
        reached = top * factors[factors != 0]
    return bool(np.all(reached <= float(info.max)) and (top == 0 or np.all(reached >= float(info.tiny))))


def _along_outputs(rw: Tracker, hero: Node, weight: Value, scale: Value) -> Value:
    """``scale`` [C] (or [1]) shaped to broadcast along the output channels of the weight."""
    scale = _wide(rw, scale)
    rank = weight.type.rank
    if hero.op == "MatMul" or scale.shape == (1,):
        return scale
    if hero.op == "Conv":
        return rw.make("Reshape", [scale], (), shape=(weight.shape[0], *(1,) * (rank - 1)))
    group, inputs, outputs = hero.attrs["group"], weight.shape[0], weight.shape[1]  # weight is [I, O/group, spatial]
    assert isinstance(inputs, int)
    rows = rw.make("Reshape", [scale], (), shape=(group, 1, outputs))
    rows = rw.make("Expand", [rows], (), shape=(group, inputs // group, outputs))
    return rw.make("Reshape", [rows], (), shape=(inputs, outputs, *(1,) * (rank - 2)))


def _cast(rw: Tracker, v: Value, dtype: DType) -> Value:
    return v if v.dtype is dtype else rw.make("Cast", [v], (), to=dtype)


# ---------------------------------------------------------------------------------- x * scale + shift, before


def _before(rw: Tracker, node: Node, uses: dict[str, int]) -> bool:
    """Folds all affine maps of ``node``'s input into ``node``, a Conv with constant weights."""
    if node.op != "Conv" or node.attrs["group"] != 1:
        return False
    inputs, covered = list(rw.inputs_of(node)), [node]
    if any(v is not None and v.name not in rw.weights for v in inputs[1:]):
        return False
    old = node.operands()[0]
    while uses.get(old.name) == 1:
        first = rw.producer(rw.get(old))
        step = _affine_input(rw, node, first) if first is not None else None
        weight = inputs[1]
        if first is None or step is None or weight is None or not _stays_in_range(rw, weight, step[1]):
            break
        old, scale, shift = step
        covered.insert(0, first)
        inputs = _conv_of_affine(rw, [rw.get(old), *inputs[1:]], scale, shift, merge_origins(covered))
    if len(covered) == 1:
        return False
    rw.redirect(node, rw.make("Conv", inputs, merge_origins(covered), node.output.name, **node.attrs))
    return True


def _affine_input(rw: Tracker, node: Node, first: Node) -> tuple[Value, Value | None, Value | None] | None:
    """``first``, the producer of ``node``'s input, as (its own input, scale, shift), vectors along the channels.

    None if it is no affine map, or one that can't be folded.
    """
    found = _affine(rw, first)
    if found is None:
        return None
    source, scale, shift = found
    if source.shape != first.output.shape or (shift is not None and any(p != 0 for p in node.attrs["pads"])):
        return None
    fit = [None if v is None else _per_channel(rw, v, first.output, _channel_axis(node)) for v in (scale, shift)]
    if any(v is not None and f is None for v, f in zip((scale, shift), fit)):
        return None
    return source, fit[0], fit[1]


def _conv_of_affine(
    rw: Tracker, inputs: list[Value | None], scale: Value | None, shift: Value | None, origin: tuple[str, ...]
) -> list[Value | None]:
    """The operands of a Conv of x that equals the Conv of x * scale + shift.

    They are x, w * scale, and bias + sum(w * shift) over input channels and taps.
    """
    x, weight, bias = [*inputs, None][:3]
    assert x is not None
    assert weight is not None
    spatial = tuple(range(2, weight.type.rank))
    wide = _wide(rw, weight)
    if shift is not None:
        column = rw.make("Reshape", [_wide(rw, shift)], origin, shape=(*shift.shape, *(1,) * len(spatial)))
        moved = rw.make("ReduceSum", [rw.make("Mul", [wide, column], origin)], origin, axes=(1, *spatial), keepdims=0)
        bias = _cast(rw, moved if bias is None else rw.make("Add", [_wide(rw, bias), moved], origin), x.dtype)
    if scale is not None:
        column = rw.make("Reshape", [_wide(rw, scale)], origin, shape=(*scale.shape, *(1,) * len(spatial)))
        weight = _cast(rw, rw.make("Mul", [wide, column], origin), weight.dtype)
    return [x, weight] if bias is None else [x, weight, bias]
