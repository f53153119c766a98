"""Storage: quantised weights stay as small as the model stores them, where that pays; kernels unpack what they read.

    MatMul(x, DequantizeLinear(w, scale))  ->  the same with keep=1: w stays i4, and no pass evaluates the node

Widened, weights are larger and products of them can use the fastest engines; packed, every kernel that reads them
spends operations on it. For each node the pass compares the modelled times of both for the products that read it, at
the least sizes that their rows can have. Requires: nothing has evaluated such nodes. Ensures: a
DequantizeLinear of weights is marked, or constant folding will evaluate it. What makes its operands is folded, and the
arithmetic that exporters write in its place is recovered (``patterns_storage.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from arcweld.compiler.cards import Card, usual_card
from arcweld.compiler.dims import Dim, bounds, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.integer import BYTES
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.region import is_view
from arcweld.passes.common import Tracker, rewrite
from arcweld.passes.constant_folding import fold
from arcweld.passes.patterns_storage import recover_storage
from arcweld.passes.stored import element_bits

log = logging.getLogger("arcweld.storage")

SMALL = 4096  # elements: less takes no time either way, and a weight is simpler
SLACK = 1.1  # packed weights may cost this much of the widened ones' time: they are several times smaller
ROWS = 128  # of a tile: as often as a product has so many rows, it unpacks its weights once more
UNPACK = 4  # scalar operations for one element: its bits, a conversion, its zero point, its scale


# The shares of tensor cores' rate that kernels with unpacked operands reach: portable ones, and those of products of
# matrices that unpack while tensor cores multiply (0: there are none). On Hopper, portable kernels use mma.sync. Both
# shares are assumed there, not measured.
SHARES: Mapping[str, tuple[float, float]] = {"sm_90a": (0.62, 0.8)}
NO_SHARES = (1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Times:
    """Modelled seconds of the products that read one quantised weight, on one architecture."""

    packed: float
    widened: float

    @property
    def pays(self) -> bool:
        """Whether the weight should stay packed."""
        return self.packed <= SLACK * self.widened


def storage(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with those DequantizeLinear of weights marked that stay."""
    if not any(_widens(n) for n in graph.nodes):
        return graph
    graph = recover_storage(fold(graph, but=_widens))
    levels = _levels(graph)
    found = {n.output.name: n for n in graph.nodes if is_candidate(graph, n, levels)}
    readers = graph.consumers()
    for name in [n for n in levels if any(r.output.name in found for r in readers.get(n, ()))]:
        found.pop(name, None)  # it stays if what it scales does
    kept = {name for name, n in found.items() if _stays(readers, n, options)}
    kept |= {n for n in levels if readers.get(n) and all(r.output.name in kept for r in readers[n])}
    for name in found:
        log.debug("%s: %s", name, "packed" if name in kept else "widened")

    def visit(rw: Tracker, node: Node) -> bool:
        if node.output.name not in kept:
            return False
        attrs = {**node.attrs, "keep": 1}
        rw.redirect(node, rw.make(node.op, rw.inputs_of(node), node.origin, node.output.name, **attrs))
        return True

    return rewrite(graph, visit) if kept else graph


def _widens(node: Node) -> bool:
    """True for what makes larger elements of smaller ones, which may be weights or their scales."""
    return node.op in ("DequantizeLinear", "Cast") and node.operands()[0].dtype.bits < node.output.dtype.bits


def _levels(graph: Graph) -> frozenset[str]:
    """Results of a DequantizeLinear of integers of 8 bits, all of it weights: perhaps scales of two levels."""
    return frozenset(
        n.output.name
        for n in graph.nodes
        if n.op == "DequantizeLinear" and n.operands()[0].dtype in BYTES
        if all(v.name in graph.weights for v in n.operands())
    )


def is_candidate(graph: Graph, node: Node, levels: frozenset[str] = frozenset()) -> bool:
    """True for a DequantizeLinear of a weight that is larger as numbers to compute with.

    Its scales and offsets are weights, or in ``levels``.
    """
    if node.op != "DequantizeLinear" or node.attrs["keep"]:
        return False
    if not all(v.name in graph.weights or (v.name in levels and v in node.inputs[1:]) for v in node.operands()):
        return False
    x = node.operands()[0]
    count = x.type.numel
    return isinstance(count, int) and count > SMALL and element_bits(node) < node.output.dtype.bits


def _stays(readers: Mapping[str, Sequence[Node]], node: Node, options: Options) -> bool:
    """True if the weight of ``node`` should stay as it is stored.

    Where the build narrows f32, floats of that type stay, as narrowing leaves nothing to unpack; those of the other
    16-bit type are converted once.
    """
    x = node.operands()[0]
    if x.dtype.is_half and node.output.dtype is DType.F32 and options.float_type.is_half:
        return x.dtype is options.float_type
    return all(t.pays for t in _compare(readers, node, options).values())


def _compare(readers: Mapping[str, Sequence[Node]], node: Node, options: Options) -> dict[str, Times]:
    """For each architecture of the build, the modelled times with the weights of ``node`` packed and widened."""
    x = node.operands()[0]
    assert isinstance(x.type.numel, int)
    float_type = options.float_type if node.output.dtype is DType.F32 else node.output.dtype
    heroes = list(_heroes(readers, node))
    rows = max(map(least_rows, heroes), default=1)
    return compare_sizes(x.type.numel, rows, element_bits(node), float_type, options, all(map(is_product, heroes)))


def is_product(hero: Node) -> bool:
    """True for a product of matrices, False for a convolution."""
    return opdef(hero.op).kind is not Kind.CONV


def compare_sizes(
    elements: int, rows: int, bits: int, wide: DType, options: Options, product: bool
) -> dict[str, Times]:
    """The modelled times of both forms for each architecture, of a weight and of a product of so many rows."""
    return {a: times(elements, rows, bits, wide, usual_card(a), product) for a in options.arch or ("sm_80",)}


def times(elements: int, rows: int, bits: int, wide: DType, card: Card, product: bool = True) -> Times:
    """The modelled times of a product of ``rows`` rows by a weight of ``elements`` of ``bits`` bits, or ``wide``.

    ``product``: of matrices, not a convolution as one.
    """
    operations = 2 * rows * elements
    rate = card.tensor["f16"] if wide.is_half else card.scalar
    portable, beside = SHARES.get(card.arch, NO_SHARES)
    unpacking = UNPACK * elements * -(-rows // ROWS) / (card.scalar / 2)
    if wide.is_half and product and beside:
        computing = max(operations / (rate * beside), unpacking)
    else:
        computing = operations / (rate * portable if wide.is_half else rate) + unpacking
    return Times(
        packed=max(elements * bits / 8 / card.memory, computing),
        widened=max(elements * wide.bits / 8 / card.memory, operations / rate),
    )


def _heroes(readers: Mapping[str, Sequence[Node]], node: Node) -> Iterator[Node]:
    """The products and convolutions that read the result of ``node``, directly or through views and casts."""
    names = [node.output.name]
    while names:
        for n in readers.get(names.pop(), ()):
            if is_view(n) or n.op == "Cast":
                names.append(n.output.name)
            elif n.op == "Gemm" or opdef(n.op).kind in (Kind.CONTRACT, Kind.CONV):
                yield n


def least_rows(node: Node) -> int:
    """The least number of rows that are multiplied by each element of the weight."""
    out: Value = node.output
    channel = out.type.rank - 1 if node.attrs.get("layout", "NHWC") == "NHWC" else 1
    if opdef(node.op).kind is not Kind.CONV:
        channel = out.type.rank - 1
    return _least([d for k, d in enumerate(out.shape) if k != channel])


def _least(shape: Sequence[Dim]) -> int:
    least, _ = bounds(product(shape))
    return max(1, least or 1)
