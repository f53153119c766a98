"""Partitions an ATen graph into blocks for the compiler and nodes for PyTorch.

Every node gets a stage: even for compiled nodes, odd for PyTorch's. A value that crosses between the two sides goes
from a lower stage to a higher one. All compiled nodes of one stage form a block, which is convex by construction. Each
node has the lowest possible stage, so that the sides alternate as rarely as possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.torch.context import COMPLEX, HANDLERS
from arcweld.compiler.torch.fx_reader import (
    UNKNOWN,
    FxReader,
    Unavailable,
    attribute_of,
    is_symbolic_scalar,
    target_name,
    used_results,
    written_input,
)
from arcweld.compiler.torch.table import ASSERTIONS
from arcweld.compiler.torch.types import Sizes
from arcweld.torch.simplify import has_no_elements
from arcweld.torch.state import MemoryOrder, late_copies, memory_order

VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "view.default", "_unsafe_view.default", "reshape.default", "permute.default", "transpose.int", "t.default",
        "expand.default", "unsqueeze.default", "squeeze.dim", "squeeze.dims", "squeeze.default", "slice.Tensor",
        "select.int", "alias.default", "detach.default", "as_strided.default", "view_as_real.default",
        "view_as_complex.default", "unfold.default", "_conj.default", "_neg_view.default",
    )
)  # fmt: skip

SMALL = "part of a block smaller than min_block_size"
MOVES = "part of a block that only moves elements"
VIEW = "a view of a result: PyTorch makes it without a kernel"


@dataclass(slots=True)
class Verdict:
    """Whether one node can be compiled: ``reason`` is why not, or None. ``computes`` is False for mere movement."""

    reason: str | None
    computes: bool = False


@dataclass
class Partition:
    """The result of partitioning a graph.

    stages    of every node
    blocks    the nodes of each block by stage, in the order of execution
    left      the nodes that PyTorch runs, each with the reason
    computes  whether a compiled node computes anything, or only moves elements
    """

    stages: dict[fx.Node, int]
    blocks: dict[int, list[fx.Node]]
    left: dict[fx.Node, str]
    computes: dict[fx.Node, bool] = field(default_factory=dict)

    def left_counts(self) -> Counter[tuple[str, str]]:
        """(operator, reason) -> number of nodes that PyTorch runs, without views and arithmetic on sizes."""
        counted = {n: r for n, r in self.left.items() if r != VIEW and not _is_plumbing(n)}
        return Counter((target_name(n), r) for n, r in counted.items())

    @property
    def all_nodes(self) -> int:
        """Number of nodes on either side, without trailing views and arithmetic on sizes."""
        return self.compiled_nodes + sum(not _is_plumbing(n) for n, why in self.left.items() if why != VIEW)

    @property
    def compiled_nodes(self) -> int:
        """Number of nodes in blocks, without arithmetic on sizes."""
        return sum(not _is_plumbing(n) for nodes in self.blocks.values() for n in nodes)


class Examiner:
    """Decides for single nodes whether they can be compiled, by importing each with placeholders as operands.

    ``refused`` names operators that the user leaves to PyTorch. With ``movement`` every compiled node computes.
    """

    def __init__(
        self, sizes: Sizes, device: torch.device, refused: Collection[str] = (), movement: bool = False
    ) -> None:
        self.sizes = sizes
        self.device = device
        self.refused = frozenset(refused)
        self.movement = movement

    def __call__(self, node: fx.Node) -> Verdict:
        """Whether ``node`` can be compiled for the device."""
        name = target_name(node)
        if name not in HANDLERS and name not in COMPLEX and written_input(node) is None:
            return Verdict(UNKNOWN)
        if name in self.refused or name.rpartition(".")[0] in self.refused:
            return Verdict("listed in torch_executed_ops")
        try:
            return self._examine(node)
        except ArcweldError as error:
            return Verdict(error.message)

    def _examine(self, node: fx.Node) -> Verdict:
        for tensor in (t for n in (*node.all_input_nodes, node) for t in _tensors_of(n)):
            if tensor.device != self.device and not _is_constant_scalar(tensor, node):
                return Verdict(f"a tensor on {tensor.device}, the engine is on {self.device}")
            if has_no_elements(tensor):
                return Verdict("a tensor without elements")
        reader = FxReader("query", self.sizes)
        for operand in node.all_input_nodes:
            reader.env[operand] = self._stand_in(reader, operand)
        reader.read(node)
        if reader.problems:
            return Verdict(reader.problems[0].reason)
        return Verdict(None, self.movement or any(_computes(n.op) for n in reader.rw.nodes))

    def _stand_in(self, reader: FxReader, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if is_symbolic_scalar(node):
            return self.sizes.dim(value) if isinstance(value, int | torch.SymInt) else Unavailable("a symbolic number")
        if node.op == "get_attr" and value is None:
            return attribute_of(node)
        if isinstance(value, torch.Tensor):
            return reader.stand_in(value, node.name)
        return Unavailable("an operand that is not a tensor")


def _computes(op: str) -> bool:
    return opdef(op).kind is not Kind.MOVEMENT and op not in ("Identity", "Cast")


def _is_constant_scalar(tensor: torch.Tensor, node: fx.Node) -> bool:
    return tensor.dim() == 0 and any(n.op == "get_attr" for n in node.all_input_nodes)


def _tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """The (fake) tensors that a node returns, without those that no node reads."""
    value = node.meta.get("val")
    values = [value[k] for k in used_results(node)] if isinstance(value, tuple | list) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _is_plumbing(node: fx.Node) -> bool:
    """True for nodes that no report counts: tuple items, arithmetic on sizes, assertions."""
    name = target_name(node)
    return name == "getitem" or name in ASSERTIONS or is_symbolic_scalar(node)


# ---------------------------------------------------------------------------------------------------- the split


def partition(graph: fx.Graph, examine: Callable[[fx.Node], Verdict], min_block_size: int) -> Partition:
    """Partitions the call_function nodes of ``graph``.

    Blocks with fewer than ``min_block_size`` computing nodes are left to PyTorch.
    """
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    order = memory_order(nodes)
    left, computes = _classify(nodes, examine, order)
    _release_trailing_views(nodes, left)
    effects = _ordered_effects(nodes, order)
    while True:
        stages = _stages(nodes, left, effects)
        late = late_copies(stages, left)
        if late:
            left.update(late)
            continue
        blocks: dict[int, list[fx.Node]] = {}
        for n in nodes:
            if n not in left:
                blocks.setdefault(stages[n], []).append(n)
        small = [b for b in blocks.values() if sum(computes[n] for n in b) < min_block_size]
        if not small:
            return Partition(stages, dict(sorted(blocks.items())), left, computes)
        left.update({n: SMALL if any(computes[m] for m in b) else MOVES for b in small for n in b})


def _classify(
    nodes: Iterable[fx.Node], examine: Callable[[fx.Node], Verdict], order: MemoryOrder
) -> tuple[dict[fx.Node, str], dict[fx.Node, bool]]:
    left: dict[fx.Node, str] = {}
    computes: dict[fx.Node, bool] = {}
    for n in nodes:
        computes[n] = False
        if target_name(n) == "getitem":
            source = n.args[0]
            assert isinstance(source, fx.Node)
            if source in left:
                left[n] = left[source]
        elif is_symbolic_scalar(n):
            left[n] = "arithmetic on sizes"
        else:
            verdict = examine(n)
            computes[n] = verdict.computes
            reason = verdict.reason
            if reason is None and written_input(n) is not None:
                reason = order.refusal(n, left)
            if reason is not None:
                left[n] = reason
    return left, computes


def _release_trailing_views(nodes: list[fx.Node], left: dict[fx.Node, str]) -> None:
    """Leaves views to PyTorch that only PyTorch's nodes read: as results of a block they would cost a copy."""
    for n in reversed(nodes):
        name = target_name(n)
        if name not in VIEWS or (n in left and name != "aten.as_strided.default"):
            continue
        if all(u in left or u.op == "output" for u in n.users):
            left[n] = VIEW


def _ordered_effects(nodes: Iterable[fx.Node], order: MemoryOrder) -> dict[fx.Node, list[fx.Node]]:
    """What must run before a node for other reasons than its operands.

    Random and impure nodes keep their order, and reads and writes of one input do.
    """
    before = {n: list(earlier) for n, earlier in order.before.items()}
    last: fx.Node | None = None
    for n in nodes:
        tags = getattr(n.target, "tags", ())
        if written_input(n) is None and (n.is_impure() or torch.Tag.nondeterministic_seeded in tags):
            if last is not None:
                before.setdefault(n, []).append(last)
            last = n
    return before


def _stages(
    nodes: Iterable[fx.Node], left: Mapping[fx.Node, str], effects: Mapping[fx.Node, list[fx.Node]]
) -> dict[fx.Node, int]:
    """The stage of each node: even for compiled nodes, odd for the others, as low as operands and effects allow."""
    stages: dict[fx.Node, int] = {}
    for n in nodes:
        mine = n not in left
        stage = 0 if mine else -1
        for p in (*(p for p in n.all_input_nodes if p in stages), *effects.get(n, ())):
            stage = max(stage, stages[p] + ((p in left) == mine))
        stages[n] = stage
    return stages


def run_order(partition: Partition) -> list[fx.Node]:
    """All nodes in the order of execution: by stage, and in graph order inside a stage."""
    return sorted(partition.stages, key=lambda n: partition.stages[n])
