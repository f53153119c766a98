"""Estimates of what verification costs at given sizes: CPU seconds of kernels on the simulator and of the reference.

What a build compares follows from estimates alone, so that its evidence does not depend on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from arcweld.compiler.dims import Dim, evaluate, product
from arcweld.compiler.ir import Graph, Node
from arcweld.driver.object_code import PlannedLaunch, in_order

# Rates on one core of a Xeon with AVX-512 (Sapphire Rapids) that had other work too, measured on 28 November 2026 with
# ResNet-50, MobileNetV2, BERT-base, GPT-2 and ViT-B/16 in fp32 and fp16: so slow that nearly all of them take less.
# Operations and stored elements a second on the simulator. Where warps take turns at random, each thread's loop is run.
IN_ORDER_FLOPS, ADVERSE_FLOPS, SIM_ELEMENTS = 5e9, 2e9, 30e6
# the same of numpy on one thread, which unfolds the windows of convolutions
REFERENCE_FLOPS, REFERENCE_ELEMENTS = 3e10, 2e8
LAUNCH_SECONDS = 3e-3  # of a check beside its work


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCost:
    """What the reference of a graph costs, by node: operations of products, and elements of the results."""

    operations: tuple[Dim, ...]
    elements: tuple[Dim, ...]
    _known: dict[tuple[tuple[str, int], ...], tuple[list[float], int]] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, graph: Graph) -> ReferenceCost:
        """The costs of a graph's nodes, in order."""
        nodes = graph.nodes
        return cls(tuple(map(_operations, nodes)), tuple(_sum(o.type.numel for o in n.outputs) for n in nodes))

    def seconds(self, sizes: Mapping[str, int], nodes: int | None = None) -> float:
        """Seconds of the first ``nodes`` nodes; None: of all."""
        ends = self._at(sizes)[0]
        return ends[len(ends) - 1 if nodes is None else nodes]

    def values(self, sizes: Mapping[str, int]) -> int:
        """Elements of all results together."""
        return self._at(sizes)[1]

    def _at(self, sizes: Mapping[str, int]) -> tuple[list[float], int]:
        """The seconds of the first 0, 1, 2, … nodes, and the elements of all results."""
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            number = {d: evaluate(d, sizes) for d in dict.fromkeys((*self.operations, *self.elements))}
            ends, total = [0.0], 0
            for operations, elements in zip(self.operations, self.elements):
                spent = number[operations] / REFERENCE_FLOPS + number[elements] / REFERENCE_ELEMENTS
                ends.append(ends[-1] + spent)
                total += number[elements]
            self._known[key] = ends, total
        return self._known[key]


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What a build's launches and reference cost, as functions of the symbols' sizes.

    kernels    operations and stored elements of each launch, by its name
    reference  of the fused graph
    """

    kernels: Mapping[str, tuple[Dim, Dim]]
    reference: ReferenceCost

    @classmethod
    def of(cls, graph: Graph, planned: Sequence[PlannedLaunch]) -> Costs:
        """The costs of a fused graph and the launches that were planned for it."""
        launches = in_order(planned)
        stored = {p.name: _sum(product(b.shape) for b in p.bound.kernel.buffers if b.written) for p in launches}
        return cls({p.name: (p.bound.flops, stored[p.name]) for p in launches}, ReferenceCost.of(graph))

    def simulated(self, p: PlannedLaunch, sizes: Mapping[str, int], *, adverse: bool) -> float:
        """Seconds of a launch on the simulator, whose warps run in order or, ``adverse``, in a random one."""
        flops, stored = self.kernels[p.name]
        rate = ADVERSE_FLOPS if adverse else IN_ORDER_FLOPS
        return evaluate(flops, sizes) / rate + evaluate(stored, sizes) / SIM_ELEMENTS


def _operations(node: Node) -> Dim:
    """Operations of a product of matrices, a convolution or attention; 0 for other nodes."""
    shapes = [v.shape for v in node.operands()]
    if node.op in ("MatMul", "MatMulInteger", "MatMulFloat8"):
        return node.output.type.numel * shapes[0][-1] * 2
    if node.op == "Gemm":
        return node.output.type.numel * shapes[0][0 if node.attrs["transA"] else 1] * 2
    if node.op in ("Conv", "ConvInteger", "ConvFloat8"):
        return node.output.type.numel * product(shapes[1][1:]) * 2
    if node.op == "ConvTranspose":  # each element of the input meets each of its channel's weights
        return product(shapes[0]) * product(shapes[1][1:]) * 2
    if node.op == "Attention":
        query, key, value = shapes[:3]
        return product(query[:3]) * key[2] * (query[3] + value[3]) * 2
    return 0


def _sum(dims: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for d in dims:
        total = total + d
    return total
