"""Weight packing: constant weights are stored in the order in which the kernels read them.

Dense: [out channel, taps, in channel], so that a filter tap is contiguous along its input channels.
Depthwise: [taps, channel]. Matrix products of 16-bit types: [n, k]. The node keeps its operand's meaning:
a Transpose (a view, read through an index map) stands between the packed weight and it.
"""

from __future__ import annotations

from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import make
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite


def pack_weights(graph: Graph, options: Options) -> Graph:
    """Packs the weights of channels-last Conv and ConvTranspose nodes, and of MatMul."""
    return rewrite(graph, _pack)


def _pack(rw: Tracker, node: Node) -> bool:
    w = rw.inputs_of(node)[1] if node.op in ("Conv", "ConvTranspose", "MatMul") else None
    if w is None or w.name not in rw.weights:
        return False
    packed_order = _product_order(w) if node.op == "MatMul" else _order(node, w.type.rank)
    if packed_order == tuple(range(w.type.rank)):
        return False
    packed = rw.make("Transpose", [w], node.origin, f"{w.name}.packed", perm=packed_order)
    back = tuple(packed_order.index(i) for i in range(w.type.rank))
    view = make(rw, "Transpose", [packed], {"perm": back}, origin=node.origin, hint=f"{w.name}.view")
    x, _, *rest = rw.inputs_of(node)
    rw.redirect(node, rw.make(node.op, [x, view, *rest], node.origin, node.output.name, **node.attrs))
    return True


def _product_order(w: Value) -> tuple[int, ...]:
    """16-bit [k, n] is stored as [n, k] where every row then starts on 16 bytes: tensor cores take that in any tile."""
    narrow = w.type.rank == 2 and w.dtype.is_half and isinstance(w.shape[0], int) and w.shape[0] % 8 == 0
    return (1, 0) if narrow else tuple(range(w.type.rank))


def _order(node: Node, rank: int) -> tuple[int, ...]:
    """The stored axes of the weight. Conv has [O, I/g, taps], ConvTranspose [I, O/g, taps]."""
    w = node.inputs[1]
    assert w is not None
    if node.attrs["layout"] != "NHWC":
        return tuple(range(rank))
    taps = tuple(range(2, rank))
    if w.shape[1] == 1 and node.attrs["group"] == w.shape[0]:
        return (*taps, 1, 0)
    return (0, *taps, 1) if node.op == "Conv" else (1, *taps, 0)
