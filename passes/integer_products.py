"""Integer products: products and convolutions of dequantised 8-bit operands multiply the integers.

    Conv(DequantizeLinear(x, sx, zx), DequantizeLinear(w, sw, zw), DequantizeLinear(b, sx * sw))
    -> (ConvInteger(x, w) - corrections for zx and zw + b) * (sx * sw)

The left operand has one scale, the right one may have one for each column or output channel. The result differs from
that of the dequantised operands by f32 rounding only: the integers are exact. Requires: weights not yet dequantised by
constant folding. Ensures: no MatMul, Gemm or Conv of two such operands is left, unless its sums might not fit into i32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from arcweld.compiler.dims import Dim, bounds, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.integer import BYTES
from arcweld.compiler.ops.integer_products import integer_conv, integer_matmul
from arcweld.compiler.ops.shapes import FLOATS
from arcweld.compiler.options import Options
from arcweld.compiler.region import is_view
from arcweld.compiler.weights import is_evaluated
from arcweld.passes.common import FoldingEmitter, Tracker, rewrite
from arcweld.passes.dce import remove_dead

LARGEST = 1 << 31  # magnitude that i32 does not hold


@dataclass(frozen=True, slots=True)
class _Quantised:
    """A dequantised 8-bit operand: ``(source - zero) * scale``, with scalars or vectors, and then transposed.

    ``axis``: that of the vectors, in the transposed operand.
    """

    source: Value
    scale: Value
    zero: Value | None
    perm: tuple[int, ...]
    axis: int

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The operand's shape."""
        return tuple(self.source.shape[p] for p in self.perm)

    @property
    def is_uniform(self) -> bool:
        """True for one scale."""
        return self.scale.type.numel == 1

    @property
    def largest(self) -> int:
        """The largest magnitude of ``source - zero``."""
        return 128 if self.zero is None and self.source.dtype is DType.I8 else 255


class _Folding(FoldingEmitter):
    """Emits integer products in the place of a node."""

    def operand(self, x: _Quantised) -> Value:
        """The integers of an operand."""
        return self.transpose(x.source, x.perm)

    def scalar(self, x: Value) -> Value:
        """A parameter; one of one element becomes a scalar."""
        return self.reshape(x, ()) if x.type.numel == 1 else x


def integer_products(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with products of dequantised integers as integer products."""
    if not any(n.op == "DequantizeLinear" for n in graph.nodes):
        return graph
    result = rewrite(graph, _visit)
    return graph if result is graph else remove_dead(result)


def _visit(rw: Tracker, node: Node) -> bool:
    if _is_constant_view(rw, node):
        rw.redirect(node, rw.make(node.op, rw.inputs_of(node), node.origin, node.output.name, **node.attrs))
        return True
    if node.op not in ("MatMul", "Gemm", "Conv"):
        return False
    given = rw.inputs_of(node)
    a, b = _operand(rw, given[0]), _operand(rw, given[1])
    if a is None or b is None or not a.is_uniform:
        return False
    bias = given[2] if len(given) > 2 else None
    if node.op == "Conv":
        return _conv(rw, node, a, b, bias)
    return _matmul(rw, node, a, b, bias)


def _is_constant_view(rw: Tracker, node: Node) -> bool:
    """True for a view of 8-bit weights, such as one direction's of an LSTM: what they hold has to be known."""
    x = rw.inputs_of(node)[0] if is_view(node) else None
    return x is not None and x.dtype in BYTES and x.name in rw.weights and is_evaluated(node.attrs)


def _operand(rw: Tracker, value: Value | None) -> _Quantised | None:
    """What ``value`` dequantises, perhaps transposed behind it; None for anything else."""
    transpose = rw.producer(value, "Transpose")
    node = rw.producer(value if transpose is None else transpose.operands()[0], "DequantizeLinear")
    if node is None or node.operands()[0].dtype not in BYTES or node.attrs["block"]:
        return None
    source, scale, zero, offset = [*node.inputs, None, None][:4]
    assert source is not None
    assert scale is not None
    if offset is not None or scale.dtype not in FLOATS or (zero is not None and zero.dtype is not source.dtype):
        return None
    perm = tuple(range(source.type.rank) if transpose is None else transpose.attrs["perm"])
    return _Quantised(source, scale, zero, perm, perm.index(node.attrs["axis"]) if perm else 0)


def _fits(rw: Tracker, a: _Quantised, b: _Quantised, terms: Dim, bias: Value | None) -> bool:
    """True if sums of ``terms`` products, and a constant bias of integers, are sure to fit into i32."""
    _, most = bounds(terms)
    if most is None:
        return False
    known = rw.array(bias)
    added = 0 if bias is None else LARGEST if known is None else int(np.abs(known.astype(np.int64)).max(initial=0))
    return most * a.largest * b.largest + added < LARGEST


def _matmul(rw: Tracker, node: Node, a: _Quantised, b: _Quantised, bias: Value | None) -> bool:
    flip = [node.op == "Gemm" and node.attrs[name] for name in ("transA", "transB")]
    columns = len(b.shape) - (2 if flip[1] else 1)
    depth = a.shape[0 if flip[0] else -1]
    if not (b.is_uniform or b.axis == columns) or not _fits(rw, a, b, depth, None):
        return False
    e = _Folding(rw, node)
    left, right = (e.transpose(e.operand(x), (1, 0)) if t else e.operand(x) for x, t in zip((a, b), flip))
    y = integer_matmul(e, left, right, _zero(e, a), _zero(e, b))
    plain = node.op == "MatMul" or (node.attrs["alpha"] == 1.0 and node.attrs["beta"] == 1.0)
    if node.op == "Gemm":
        bias = None if bias is None else e.scale(bias, node.attrs["beta"])
        b = b if plain else replace(b, scale=e.scale(b.scale, node.attrs["alpha"]))
    _finish(rw, node, e, y, a, b, bias, depth, ())
    return True


def _conv(rw: Tracker, node: Node, x: _Quantised, w: _Quantised, bias: Value | None) -> bool:
    terms = product(w.shape[1:])
    if node.attrs["layout"] != "NCHW" or not (w.is_uniform or w.axis == 0) or not _fits(rw, x, w, terms, None):
        return False
    e = _Folding(rw, node)
    y = integer_conv(e, e.operand(x), e.operand(w), _zero(e, x), _zero(e, w), **node.attrs)
    _finish(rw, node, e, y, x, w, bias, terms, (1,) * (len(x.shape) - 2))
    return True


def _zero(e: _Folding, x: _Quantised) -> Value | None:
    return None if x.zero is None else e.scalar(x.zero)


def _finish(
    rw: Tracker, node: Node, e: _Folding, y: Value, a: _Quantised, b: _Quantised, bias: Value | None, terms: Dim,
    spatial: tuple[int, ...],
) -> None:  # fmt: skip
    """Adds the bias, scales, and makes the result that of ``node``. ``spatial``: the axes behind channels, as 1s."""

    def along(x: Value) -> Value:
        return x if x.type.rank == 0 else e.reshape(x, (*x.shape, *spatial))

    scale = e.emit("Mul", *(e.cast(e.scalar(x.scale), DType.F32) for x in (a, b)))
    steps = _integer_bias(rw, e, bias, scale)
    if steps is not None and _fits(rw, a, b, terms, steps):
        y, bias = e.emit("Add", y, along(steps)), None
    y = e.emit("Mul", e.cast(y, DType.F32), along(scale))
    if bias is not None:
        y = e.emit("Add", y, along(e.cast(bias, DType.F32)))
    rw.redirect(node, e.cast(y, node.output.dtype))


def _integer_bias(rw: Tracker, e: _Folding, bias: Value | None, scale: Value) -> Value | None:
    """The i32 integers of a bias that is dequantised by the product of the operands' scales; None for another bias."""
    found = rw.producer(bias, "DequantizeLinear")
    if found is None or found.operands()[0].dtype is not DType.I32:
        return None
    data, step, zero, more = [*found.inputs, None, None][:4]
    if more is not None or found.attrs["block"]:
        return None
    own, wanted, offset = rw.array(step), rw.array(scale), rw.array(zero)
    if data is None or own is None or wanted is None or (zero is not None and (offset is None or offset.any())):
        return None
    if own.size != 1 and (data.type.rank != 1 or wanted.size not in (1, own.size)):
        return None
    return data if np.allclose(own.astype(np.float32).reshape(-1), wanted.reshape(-1), rtol=1e-6, atol=0) else None
