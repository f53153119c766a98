"""How many nodes a call of a function or a subgraph becomes at least: known by arithmetic before any is imported.

    f calls g twice, g calls h twice, …: thirty functions of two nodes are a thousand million nodes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import FunctionProto, NodeProto

from arcweld.compiler.onnx.scope import normal_domain

Functions = Mapping[tuple[str, str], FunctionProto]


class Expansion:
    """Counts of nodes. A function is counted once for each depth at which it is called.

    Functions that are nested deeper than ``deepest`` don't count: the import refuses them when it reaches them.
    """

    def __init__(self, functions: Functions, deepest: int) -> None:
        self.functions = functions
        self.deepest = deepest
        self._known: dict[tuple[str, str, int], int] = {}

    def size(self, nodes: Sequence[NodeProto], depth: int) -> int:
        """The least number of nodes that ``nodes``, which lie at ``depth``, become: of branches the smaller one counts.

        Loops may run zero times, so their bodies don't count.
        """
        return sum(1 + self._call(node, depth) + self._branches(node, depth) for node in nodes)

    def _call(self, node: NodeProto, depth: int) -> int:
        domain = normal_domain(node.domain)
        function = self.functions.get((domain, node.op_type))
        if function is None or depth >= self.deepest:
            return 0
        key = (domain, node.op_type, depth)
        if key not in self._known:
            self._known[key] = self.size(function.node, depth + 1)
        return self._known[key]

    def _branches(self, node: NodeProto, depth: int) -> int:
        if node.op_type != "If" or depth >= self.deepest:
            return 0
        return min((self.size(a.g.node, depth + 1) for a in node.attribute if a.HasField("g")), default=0)
