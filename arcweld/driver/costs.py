"""Estimates of what verification costs at given sizes: CPU seconds of kernels on the simulator and of the reference.

What a build compares follows from estimates alone, so that its evidence does not depend on how fast the machine is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from arcweld.compiler.dims import Dim, evaluate, product
from arcweld.compiler.ir import Graph
from arcweld.driver.object_code import PlannedLaunch, in_order

# operations and stored elements a second on the simulator, on one core
SIM_FLOPS, SIM_ELEMENTS = 1.5e9, 30e6
# the same of numpy, which unfolds the windows of convolutions
REFERENCE_FLOPS, REFERENCE_ELEMENTS = 6e9, 2e8
LAUNCH_SECONDS = 3e-3  # of a check beside its work


@dataclass(frozen=True, slots=True)
class Costs:
    """What a build's launches and reference cost, as functions of the symbols' sizes.

    kernels   flops and stored elements of each launch, by its name
    flops     of all launches
    elements  of all values of the graph: distinct numbers with how often they occur
    """

    kernels: Mapping[str, tuple[Dim, Dim]]
    flops: Mapping[Dim, int]
    elements: Mapping[Dim, int]

    @classmethod
    def of(cls, graph: Graph, planned: Sequence[PlannedLaunch]) -> Costs:
        """The costs of a fused graph and the launches that were planned for it."""
        launches = in_order(planned)
        stored = {p.name: _sum(product(b.shape) for b in p.bound.kernel.buffers if b.written) for p in launches}
        return cls(
            {p.name: (p.bound.flops, stored[p.name]) for p in launches},
            Counter(p.bound.flops for p in launches),
            Counter(o.type.numel for n in graph.nodes for o in n.outputs),
        )

    def simulated(self, p: PlannedLaunch, sizes: Mapping[str, int]) -> float:
        """Seconds of a launch on the simulator."""
        flops, stored = self.kernels[p.name]
        return evaluate(flops, sizes) / SIM_FLOPS + evaluate(stored, sizes) / SIM_ELEMENTS

    def reference(self, sizes: Mapping[str, int]) -> float:
        """Seconds of the reference of the whole graph."""
        flops = sum(count * evaluate(d, sizes) for d, count in self.flops.items())
        return flops / REFERENCE_FLOPS + self.values(sizes) / REFERENCE_ELEMENTS

    def values(self, sizes: Mapping[str, int]) -> int:
        """Elements of all values of the graph together."""
        return sum(count * evaluate(d, sizes) for d, count in self.elements.items())


def _sum(dims: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for d in dims:
        total = total + d
    return total
