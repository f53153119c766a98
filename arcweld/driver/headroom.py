"""Headroom: how far the values of a model in f16 stay below the largest number of that type.

A model that fits the tolerance for the inputs it was verified with may overflow for inputs that are a few times larger.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node

LARGEST = 65504.0  # of f16
LEAST_RATIO = 16.0
SMALL = 1 << 16  # elements: a larger weight is taken for a learnt table
_LARGEST_BITS = 0x7BFF
_NORMALISE = frozenset({"Softmax", "LogSoftmax", "Attention"})


@dataclass
class Fills:
    """Values that follow from constants near the end of f16's range, such as the fill of a mask, by name.

    They do not grow with the inputs, and such constants are clamped to the range.
    """

    names: set[str]

    @classmethod
    def of(cls, graph: Graph) -> Fills:
        """The constants of a graph."""
        small = {n: w.data for n, w in graph.weights.items() if w.data.size <= SMALL and w.data.dtype.kind == "f"}
        limit = LARGEST / LEAST_RATIO
        return cls({n for n, a in small.items() if a.size and np.max(np.abs(a.astype(np.float32))) >= limit})

    def follow(self, node: Node) -> bool:
        """True if the node's results are such values."""
        if node.op in _NORMALISE or not any(v.name in self.names for v in node.operands()):
            return False
        self.names.update(o.name for o in node.outputs)
        return True


@dataclass
class Headroom:
    """The largest finite magnitude of an f16 value that the reference computed, and the node that it came from."""

    fills: Fills
    largest: float = 0.0
    node: str = ""

    @classmethod
    def of(cls, graph: Graph) -> Headroom | None:
        """For a graph that computes in f16; None for any other."""
        if not any(o.dtype is DType.F16 for n in graph.nodes for o in n.outputs):
            return None
        return cls(Fills.of(graph))

    def see(self, node: Node, values: Mapping[str, np.ndarray]) -> None:
        """Looks at the results of ``node``."""
        if self.fills.follow(node):
            return
        for o in node.outputs:
            if o.dtype is DType.F16 and o.name in values:
                bits = np.ascontiguousarray(values[o.name]).view(np.uint16) & 0x7FFF  # magnitudes in the order of bits
                finite = bits[bits < _LARGEST_BITS]
                top = float(np.uint16(finite.max()).view(np.float16)) if finite.size else 0.0
                if top > self.largest:
                    self.largest, self.node = top, ", ".join(node.origin[:3]) or node.name

    def to_json(self) -> dict[str, Any]:
        """The evidence's entry."""
        return {"type": "f16", "largest": self.largest, "node": self.node}


def warn_of_headroom(evidence: Mapping[str, Any]) -> None:
    """Warns of an f16 value that comes within a factor of 16 of the largest number, naming its node."""
    found = evidence.get("headroom")
    if found and found["largest"] * LEAST_RATIO > LARGEST:
        times = LARGEST / found["largest"]
        text = f"values in f16 come within a factor of {times:.2g} of the largest number {LARGEST:g}, most at"
        remedy = "inputs a few times larger may overflow: use precision bf16, or verify with such inputs"
        warnings.warn(f"{text} {found['node']}: {remedy}", RuntimeWarning, stacklevel=4)
