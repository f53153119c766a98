"""Builds the module of a partitioned graph: calls of ``Block`` modules, and all other nodes unchanged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx

from arcweld.compiler.torch.fx_reader import target_name, written_input
from arcweld.compiler.torch.layout import dense_order
from arcweld.compiler.torch.symbols import placeholder_symbols, symbols_in
from arcweld.compiler.torch.types import Sizes
from arcweld.torch.block import Block
from arcweld.torch.partition import Partition, run_order
from arcweld.torch.state import kept_in_inputs

# (name, the block's module, the outer nodes that it reads, strides that PyTorch relies on by result) -> the block
MakeBlock = Callable[[str, fx.GraphModule, list[fx.Node], dict[int, tuple[int, ...]]], Block]


def split_module(module: fx.GraphModule, partition: Partition, make: MakeBlock) -> fx.GraphModule:
    """A module that computes what ``module`` does, with each block of ``partition`` replaced by what ``make`` gives."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    parts: dict[str, torch.nn.Module] = {}
    for n in module.graph.nodes:
        if n.op in ("placeholder", "get_attr"):
            new[n] = graph.node_copy(n)
    done: set[int] = set()
    for n in run_order(partition):
        if n in partition.left:
            new[n] = graph.node_copy(n, lambda o: new[o])
        elif partition.stages[n] not in done:
            stage = partition.stages[n]
            done.add(stage)
            name = f"block_{len(parts)}"
            parts[name] = _call_block(graph, module, partition, stage, name, new, make)
    (output,) = [n for n in module.graph.nodes if n.op == "output"]
    graph.node_copy(output, lambda o: new[o])
    result = fx.GraphModule(_Attributes(module, parts), graph)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


class _Attributes(torch.nn.Module):  # type: ignore[misc]
    """The attributes that the new graph refers to: those of the old module, and the blocks."""

    def __init__(self, module: fx.GraphModule, parts: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        for n in module.graph.nodes:
            if n.op == "get_attr":
                root = str(n.target).partition(".")[0]
                setattr(self, root, getattr(module, root))
        for name, part in parts.items():
            self.add_module(name, part)


def _call_block(
    graph: fx.Graph, module: fx.GraphModule, partition: Partition, stage: int, name: str,
    new: dict[fx.Node, fx.Node], make: MakeBlock,
) -> Block:  # fmt: skip
    nodes = partition.blocks[stage]
    kept = kept_in_inputs(nodes)
    body, inputs, outputs = _extract(module, nodes, kept)
    block = make(name, body, inputs, _strides_relied_on(outputs, set(nodes)))
    call = graph.call_module(name, tuple(new[n] for n in inputs))
    for k, n in enumerate(outputs):
        new[n] = graph.call_function(_item, (call, k))
    new.update((n, new[target]) for n in nodes if (target := kept.get(n, written_input(n))) is not None)
    return block


def _item(results: tuple[Any, ...], k: int) -> Any:
    return results[k]


def _extract(
    module: fx.GraphModule, nodes: list[fx.Node], kept: Collection[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node], list[fx.Node]]:
    """The nodes as a module; with it the outer nodes that it reads, and those of its nodes that are read outside.

    What it writes to inputs is no result: neither the copies nor the values in ``kept``, which are read there. Symbols
    in its sizes are inputs too, if they are placeholders of the whole graph.
    """
    inside = set(nodes)
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    inputs: list[fx.Node] = []
    for n in nodes:
        for o in n.all_input_nodes:
            if o in inside or o in new:
                continue
            if o.op == "get_attr":
                new[o] = graph.node_copy(o)
            else:
                new[o] = graph.placeholder(o.name)
                new[o].meta = dict(o.meta)
                inputs.append(o)
        new[n] = graph.node_copy(n, lambda o: new[o])
    missing = symbols_in(nodes)
    for name, o in placeholder_symbols(module.graph).items():
        if name in missing and o not in new:
            new[o] = graph.placeholder(o.name)
            new[o].meta = dict(o.meta)
            inputs.append(o)
    results = [n for n in nodes if n not in kept and written_input(n) is None]
    outputs = [
        n for n in results if any(u not in inside for u in n.users) and not isinstance(n.meta["val"], tuple | list)
    ]
    graph.output(tuple(new[n] for n in outputs))
    return fx.GraphModule(module, graph), inputs, outputs


def _strides_relied_on(outputs: list[fx.Node], inside: Collection[fx.Node]) -> dict[int, tuple[int, ...]]:
    """The strides of results that are not dense and that an outer node reads by stride, by position."""
    found: dict[int, tuple[int, ...]] = {}
    for k, n in enumerate(outputs):
        if not any(_reads_strides(u) for u in n.users if u not in inside):
            continue
        value = n.meta["val"]
        strides = tuple(value.stride())
        static = all(isinstance(s, int) for s in strides)
        if static and not value.is_contiguous() and dense_order(value, Sizes()) is None:
            found[k] = strides
    return found


def _reads_strides(node: fx.Node) -> bool:
    name = target_name(node)
    return name.startswith("aten.as_strided") or not name.startswith(("aten.", "getitem", "output"))
