"""Weight packing: constant weights are stored in the order in which kernels read them.

    Conv(x, w)  ->  Conv(x, Transpose(packed)), where packed is a weight, and the Transpose a view

Convolutions: [out channel, taps, in channel], so that a filter tap is contiguous along its input channels. Depthwise
ones: [taps, channel]. Matrix products of 8 and 16-bit types, and of weights that stay packed: [n, k]. Requires: layout
is chosen, and nothing folds constants later. Ensures: weights of channels-last convolutions and of products are so.
"""

from __future__ import annotations

from arcweld.compiler.dims import is_multiple
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.float8 import FACTORS
from arcweld.compiler.ops.integer import BYTES
from arcweld.compiler.ops.registry import Kind, make, opdef
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite
from arcweld.passes.stored import planes, stored_matrix, transposed

VECTOR = 8  # elements that a kernel unpacks together


def pack_weights(graph: Graph, options: Options) -> Graph:
    """Packs the weights of channels-last convolutions, and of products of matrices."""
    return rewrite(graph, _pack)


def _pack(rw: Tracker, node: Node) -> bool:
    kind = opdef(node.op).kind
    w = rw.inputs_of(node)[1] if kind in (Kind.CONTRACT, Kind.CONV) else None
    if w is not None and w.name not in rw.weights:
        if node.op == "MatMul":
            return _pack_stored(rw, node, w)
        return kind is Kind.CONV and _pack_stored_taps(rw, node, w)
    if w is None:
        return False
    packed_order = _product_order(w) if kind is Kind.CONTRACT else _order(node, w.type.rank)
    if packed_order == tuple(range(w.type.rank)):
        return False
    packed = rw.make("Transpose", [w], node.origin, f"{w.name}.packed", perm=packed_order)
    back = tuple(packed_order.index(i) for i in range(w.type.rank))
    view = make(rw, "Transpose", [packed], {"perm": back}, origin=node.origin, hint=f"{w.name}.view")
    x, _, *rest = rw.inputs_of(node)
    rw.redirect(node, rw.make(node.op, [x, view, *rest], node.origin, node.output.name, **node.attrs))
    return True


def _pack_stored(rw: Tracker, node: Node, w: Value) -> bool:
    """Stores the right operand [k, n] of a product as [n, k], where it stays packed: vectors then run along k."""
    stored = stored_matrix(rw.producer, w)
    if stored is None or stored.swapped or not isinstance(w.shape[0], int) or w.shape[0] % VECTOR:
        return False
    x, *_ = rw.inputs_of(node)
    rw.redirect(node, rw.make("MatMul", [x, transposed(rw, stored, f"{w.name}.packed")], node.origin, node.output.name))
    return True


def _pack_stored_taps(rw: Tracker, node: Node, w: Value) -> bool:
    """Stores a convolution's weight that stays packed in the order of others, with its scales along another axis."""
    casts: list[Node] = []
    base = rw.producer(w)
    while base is not None and base.op == "Cast":
        casts.insert(0, base)
        base = rw.producer(base.operands()[0])
    order = _order(node, w.type.rank)
    if base is None or base.op != "DequantizeLinear" or base.attrs["block"] or order == tuple(range(w.type.rank)):
        return False
    if len(planes(base)) > 1:  # no model has convolutions by such
        return False
    elements, *scales = base.inputs
    packed = rw.make("Transpose", [elements], base.origin, f"{w.name}.packed", perm=order)
    attrs = {**base.attrs, "axis": order.index(base.attrs["axis"])}
    v = rw.make("DequantizeLinear", [packed, *scales], base.origin, **attrs)
    for cast in casts:
        v = rw.make("Cast", [v], cast.origin, **cast.attrs)
    view = rw.make("Transpose", [v], node.origin, perm=tuple(order.index(i) for i in range(w.type.rank)))
    x, _, *rest = rw.inputs_of(node)
    rw.redirect(node, rw.make(node.op, [x, view, *rest], node.origin, node.output.name, **node.attrs))
    return True


def _product_order(w: Value) -> tuple[int, ...]:
    """The stored axes of a product's weight [k, n]: of 8 and 16-bit types [n, k], if its rows then start on 16 bytes.

    The wgmma implementation takes that order with every tile, and of 8-bit types no other.
    """
    narrow = w.type.rank == 2 and (w.dtype.is_half or w.dtype in (*BYTES, *FACTORS))
    return (1, 0) if narrow and is_multiple(w.shape[0], 16 // w.dtype.size) else tuple(range(w.type.rank))


def _order(node: Node, rank: int) -> tuple[int, ...]:
    """The stored axes of a convolution's weight: of ConvTranspose [I, O/g, taps], of others [O, I/g, taps]."""
    w = node.inputs[1]
    assert w is not None
    if node.attrs["layout"] != "NHWC":
        return tuple(range(rank))
    taps = tuple(range(2, rank))
    if w.shape[1] == 1 and node.attrs["group"] == w.shape[0]:
        return (*taps, 1, 0)
    return (1, *taps, 0) if node.op == "ConvTranspose" else (0, *taps, 1)
