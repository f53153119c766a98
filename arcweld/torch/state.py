"""Inputs that a graph writes: AOTAutograd leaves one ``copy_(input, new_value)`` for each at the end of its graph.

A block takes over the copies of values that it computes: its engine writes them into the input's own memory. That reads
and writes of one memory keep their order, is seen to here, because their values do not say it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from arcweld.compiler.torch.fx_reader import target_name, written_input

ELSEWHERE = "PyTorch computes the new value"
LATE = "PyTorch reads the old values after the new ones are computed"
OVERTAKEN = "the input is read after it is written"


@dataclass(frozen=True, slots=True)
class MemoryOrder:
    """What must run before a node because of memory, not of values.

    before     a copy -> the earlier readers of its target; a reader -> the copies before it into what it reads
    overtaken  the copies into inputs that are read afterwards
    """

    before: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    overtaken: set[fx.Node] = field(default_factory=set)

    def refusal(self, copy: fx.Node, left: Collection[fx.Node]) -> str | None:
        """Why no block can take over a copy, or None; ``left`` holds the earlier nodes that PyTorch runs."""
        source = copy.args[1]
        if not isinstance(source, fx.Node) or source.op != "call_function" or source in left:
            return ELSEWHERE
        return OVERTAKEN if copy in self.overtaken else None


def memory_order(nodes: Iterable[fx.Node]) -> MemoryOrder:
    """The order of reads and writes of inputs among a graph's nodes."""
    position = {n: k for k, n in enumerate(nodes)}
    order = MemoryOrder()
    for copy in position:
        target = written_input(copy)
        if target is None:
            continue
        for reader in _readers(target):
            if reader is copy or reader not in position:
                continue
            if position[reader] < position[copy]:
                order.before.setdefault(copy, []).append(reader)
            else:
                order.before.setdefault(reader, []).append(copy)
                order.overtaken.add(copy)
    return order


def late_copies(stages: Mapping[fx.Node, int], left: Collection[fx.Node]) -> dict[fx.Node, str]:
    """The copies that no block can take over after all: they have to wait until its new value is no longer its own."""
    copies = [n for n in stages if n not in left and written_input(n) is not None]
    return {n: LATE for n in copies if stages[n] != stages[n.all_input_nodes[1]]}


def kept_in_inputs(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Results of a block that nodes outside can read in the input that the block writes them to.

    The graph itself may not return them, or a view of them: a later write to the input would change the result.
    """
    found: dict[fx.Node, fx.Node] = {}
    for copy in nodes:
        target = written_input(copy)
        if target is None:
            continue
        value = copy.all_input_nodes[1]
        writers = sum(written_input(u) is target for u in target.users)
        if writers == 1 and _equal_strides(value, target) and not any(n.op == "output" for n in _readers(value)):
            found.setdefault(value, target)
    return found


def _equal_strides(a: fx.Node, b: fx.Node) -> bool:
    """True if the strides are known to be equal: no guard is added for symbolic ones."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    pairs = zip(a.meta["val"].stride(), b.meta["val"].stride(), strict=True)
    return all(statically_known_true(s == t) for s, t in pairs)


def _readers(memory: fx.Node) -> set[fx.Node]:
    """All nodes that may read the memory of a node's result, through views of it too."""
    found: set[fx.Node] = set()
    waiting = [memory]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                if _may_alias(user):
                    waiting.append(user)
    return found


def _may_alias(node: fx.Node) -> bool:
    """True if the result may share memory with what the node reads. What is no ATen operator is taken to do so."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    if written_input(node) is not None:  # its readers wait for it anyway
        return False
    name = target_name(node)
    return name == "aten._unsafe_view.default" or any(r.alias_info for r in node.target._schema.returns)
