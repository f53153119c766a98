"""Float8 products: products and convolutions of dequantised 8-bit floats multiply these, and scale the sums.

    MatMul(DequantizeLinear(x, sx), DequantizeLinear(w, sw))  ->  MatMulFloat8(x, w) * sx * sw

Scales may differ along any axis that is not summed over: one for each row of the activation (a token), one for each
column or output channel of the weight. Products of 8-bit floats are exact in f32, so that the result differs from that
of the dequantised operands by the rounding of sums and scales only. Requires: weights not yet dequantised by constant
folding. Ensures: no MatMul, Gemm or Conv of two such operands is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.compiler.dims import Dim, is_nonneg
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.float8 import FACTORS
from arcweld.compiler.options import Options
from arcweld.passes.common import FoldingEmitter, Tracker, rewrite
from arcweld.passes.dce import remove_dead

RESULTS = (DType.F32, DType.F16, DType.BF16)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A dequantised operand: ``source * scale``, whose axes are then permuted.

    ``axis``: the source's axis of a vector of scales; ``block``: that of which all elements share a scale, where scales
    have the source's rank.
    """

    source: Value
    scale: Value
    perm: tuple[int, ...]
    axis: int | None
    block: int | None

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The operand's shape."""
        return tuple(self.source.shape[p] for p in self.perm)

    def scales_along(self) -> list[Dim]:
        """The shape of the scales with the operand's axes; empty for one scale."""
        if self.axis is None and self.block is None:
            return []
        own = self.scale.shape
        return [own[p] if self.axis is None else own[0] if p == self.axis else 1 for p in self.perm]


class _Scaling(FoldingEmitter):
    """Emits products of 8-bit floats in the place of a node."""

    def factor(self, x: _Scaled, shape: list[Dim]) -> Value:
        """The scales in f32, as a scalar or in ``shape``."""
        return self.reshape(self.cast(x.scale, DType.F32), shape)


def float8_products(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with products of dequantised 8-bit floats as products of these."""
    if not any(n.op == "DequantizeLinear" and n.operands()[0].dtype in FACTORS for n in graph.nodes):
        return graph
    result = rewrite(graph, _visit)
    return graph if result is graph else remove_dead(result)


def _visit(rw: Tracker, node: Node) -> bool:
    if node.op not in ("MatMul", "Gemm", "Conv") or node.output.dtype not in RESULTS:
        return False
    given = rw.inputs_of(node)
    a, b = _operand(rw, given[0]), _operand(rw, given[1])
    if a is None or b is None:
        return False
    bias = given[2] if len(given) > 2 else None
    return _conv(rw, node, a, b, bias) if node.op == "Conv" else _matmul(rw, node, a, b, bias)


def _operand(rw: Tracker, value: Value | None) -> _Scaled | None:
    """What ``value`` dequantises, perhaps transposed behind it; None for anything else."""
    transpose = rw.producer(value, "Transpose")
    node = rw.producer(value if transpose is None else transpose.operands()[0], "DequantizeLinear")
    if node is None or node.operands()[0].dtype not in FACTORS:
        return None
    source, scale, zero, offset = [*node.inputs, None, None][:4]
    assert source is not None
    assert scale is not None
    known = rw.array(zero)
    if offset is not None or (zero is not None and (known is None or known.astype("float32").any())):
        return None
    axis, block = (None, None) if scale.type.numel == 1 else (node.attrs["axis"], None)
    if axis is not None and node.attrs["block"]:
        if not is_nonneg(node.attrs["block"] - source.shape[axis]):
            return None  # several blocks along an axis
        axis, block = None, axis
    perm = tuple(range(source.type.rank) if transpose is None else transpose.attrs["perm"])
    return _Scaled(source, scale, perm, axis, block)


def _matmul(rw: Tracker, node: Node, a: _Scaled, b: _Scaled, bias: Value | None) -> bool:
    flip = [bool(node.op == "Gemm" and node.attrs[name]) for name in ("transA", "transB")]
    scales = [x.scales_along() for x in (a, b)]
    for found, turned in zip(scales, flip):
        if found and turned:
            found.reverse()
    if (scales[0] and scales[0][-1] != 1) or (scales[1] and scales[1][-2] != 1):
        return False  # they differ along what is summed over
    e = _Scaling(rw, node)
    left, right = (
        e.transpose(e.transpose(x.source, x.perm), (1, 0) if t else range(len(x.shape))) for x, t in zip((a, b), flip)
    )
    y = e.emit("MatMulFloat8", left, right)
    factors = [e.factor(x, shape) for x, shape in zip((a, b), scales)]
    if node.op == "Gemm":
        factors[1] = e.scale(factors[1], node.attrs["alpha"])
        bias = None if bias is None else e.scale(e.cast(bias, DType.F32), node.attrs["beta"])
    _finish(rw, node, e, y, factors, bias)
    return True


def _conv(rw: Tracker, node: Node, x: _Scaled, w: _Scaled, bias: Value | None) -> bool:
    images, filters = x.scales_along(), w.scales_along()
    if node.attrs["layout"] != "NCHW" or any(d != 1 for d in (*images[1:], *filters[1:])):
        return False
    e, spatial = _Scaling(rw, node), (1,) * (len(x.shape) - 2)
    y = e.emit("ConvFloat8", e.transpose(x.source, x.perm), e.transpose(w.source, w.perm), **node.attrs)
    # one for each filter, that is for each channel of the result
    factors = [e.factor(x, images), e.factor(w, [filters[0], *spatial] if filters else [])]
    if bias is not None:
        bias = e.reshape(e.cast(bias, DType.F32), (*bias.shape, *spatial))
    _finish(rw, node, e, y, factors, bias)
    return True


def _finish(rw: Tracker, node: Node, e: _Scaling, y: Value, factors: list[Value], bias: Value | None) -> None:
    """Scales the sums, adds the bias, and makes the result that of ``node``."""
    constant = all(f.name in rw.weights for f in factors)
    if constant and min(f.type.rank for f in factors) == 0:
        factors = [e.emit("Mul", *factors)]
    for f in factors:
        y = e.emit("Mul", y, f)
    if bias is not None:
        y = e.emit("Add", y, e.cast(bias, DType.F32))
    rw.redirect(node, e.cast(y, node.output.dtype))
