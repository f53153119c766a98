"""The Dynamo backend ``arcweld``: compiles blocks of AOTAutograd's graphs and leaves the rest to PyTorch.

AOTAutograd removes mutation and aliasing, so that the graphs are functional here; what they write to their inputs are
copies at the end. Nodes that cannot be compiled run as ATen operators inside the same callable; they are counted and
reported.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.torch.importer import kept_composites
from arcweld.compiler.torch.types import Sizes
from arcweld.runtime.devices import VARIABLE, choose, gpu_count, numbered, torch_device
from arcweld.torch.block import Block, EngineBuilder
from arcweld.torch.options import BackendOptions, parse_options
from arcweld.torch.partition import Examiner, partition
from arcweld.torch.recurrent import layers_for_tracing
from arcweld.torch.report import BlockReport, GraphReport, add_report
from arcweld.torch.simplify import simplify
from arcweld.torch.split import split_module

_numbers = itertools.count()

NO_GPU = (
    f"arcweld: no NVIDIA GPU found, so this model runs in PyTorch; set {VARIABLE}=sim to run its kernels on the CPU"
)


def arcweld(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend function that ``torch.compile`` calls; ``options`` are those of ``BackendOptions``.

    Without a GPU it warns once and returns the module's own forward function, unless the sim device is named. Raises
    UsageError for unknown options, UnsupportedError as ``compile_graph_module`` does.
    """
    chosen = parse_options(options, mode)
    device = engine_device(chosen, example_inputs)
    if device is None:
        _warn_once(NO_GPU)
        return module.forward  # type: ignore[no-any-return]
    return compile_with(module, example_inputs, chosen, device, functools.partial(_engine, chosen, device))


def compile_with(
    module: fx.GraphModule, example_inputs: Sequence[Any], options: BackendOptions, device: str, build: EngineBuilder
) -> Callable[..., Any]:
    """Runs AOTAutograd on ``module`` and compiles its graphs for ``device``; ``build`` makes the engines."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    def inference(gm: fx.GraphModule, args: Sequence[Any]) -> Callable[..., Any]:
        return _boxed(compile_graph_module(gm, options, device, build))

    def training(gm: fx.GraphModule, args: Sequence[Any]) -> Callable[..., Any]:
        if not options.training:
            return _boxed(_left_to_pytorch(gm))
        # parameters change at every training step: as constants they would have to be packed each time
        return _boxed(compile_graph_module(gm, dataclasses.replace(options, freeze=False), device, build))

    compiler = aot_autograd(
        fw_compiler=training,
        bw_compiler=training,
        inference_compiler=inference,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=kept_composites(),
        keep_inference_input_mutations=True,
    )
    with layers_for_tracing(module, example_inputs):
        result: Callable[..., Any] = compiler(module, example_inputs)
    return result


def compile_graph_module(
    module: fx.GraphModule, options: BackendOptions, device: str, build: EngineBuilder
) -> Callable[..., Any]:
    """Partitions a functional ATen graph, in place, and returns the callable that runs it.

    Engines are built at the first call. Raises UnsupportedError with ``require_full_compilation`` if some nodes cannot
    be compiled.
    """
    name = f"graph_{next(_numbers)}"
    simplify(module)
    place = torch.device(torch_device(device))
    examine = Examiner(Sizes(), place, options.torch_executed_ops, options.movement)
    parts = partition(module.graph, examine, 1 if options.require_full_compilation else options.min_block_size)
    report = GraphReport(name, parts.all_nodes, parts.compiled_nodes, left=dict(parts.left_counts()))
    if options.require_full_compilation and report.left:
        reasons = "\n".join(f"  {op} ({n} x): {why}" for (op, why), n in report.left.items())
        raise UnsupportedError(
            f"{name} cannot be compiled as a whole:\n{reasons}",
            hint="drop require_full_compilation to run these in PyTorch",
        )
    if options.dryrun or not parts.blocks:
        report.eager = "dryrun" if options.dryrun else None
        add_report(report)
        return module.forward  # type: ignore[no-any-return]
    fixed = _static_placeholders(module)

    def make(part: str, body: fx.GraphModule, inputs: list[fx.Node], restride: dict[int, tuple[int, ...]]) -> Block:
        block = BlockReport(f"{name}.{part}", sum(n.op == "call_function" for n in body.graph.nodes))
        report.blocks.append(block)
        return Block(body, block, build, options, static=[n in fixed for n in inputs], restride=restride)

    result = split_module(module, parts, make)
    add_report(report)
    return result.forward  # type: ignore[no-any-return]


def engine_device(options: BackendOptions, example_inputs: Sequence[Any]) -> str | None:
    """The name of the device for engines: that of ``options`` or ARCWELD_DEVICE, else the inputs' GPU.

    None if no device is named and there is no GPU.
    """
    if options.device is None and not os.environ.get(VARIABLE):
        if not gpu_count():
            return None
        indices = [t.device.index for t in example_inputs if isinstance(t, torch.Tensor) and t.is_cuda]
        return f"cuda:{indices[0] if indices else torch.cuda.current_device()}"
    return numbered(choose(options.device))


def _engine(options: BackendOptions, device: str, graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> Any:
    from arcweld.driver.api import compile_graph

    return compile_graph(
        graph, precision=options.precision, device=device, verify=options.verify, verify_budget=options.verify_budget,
        tolerance=options.tolerance, tf32=options.tf32, disable=tuple(options.disable), dump=options.dump, feeds=feeds,
    )  # fmt: skip


def _static_placeholders(module: fx.GraphModule) -> set[fx.Node]:
    """The placeholders for parameters and buffers, which Dynamo has marked as static."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    positions = set() if metadata is None else set(metadata.static_input_indices or ())
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    return {n for k, n in enumerate(placeholders) if k in positions}


def _left_to_pytorch(module: fx.GraphModule) -> Callable[..., Any]:
    name = f"graph_{next(_numbers)}"
    why = "gradients are needed and training=False; call the model under torch.no_grad() to compile it"
    calls = sum(n.op == "call_function" for n in module.graph.nodes)
    add_report(GraphReport(name, calls, 0, eager=why))
    return module.forward  # type: ignore[no-any-return]


def _boxed(fn: Callable[..., Any]) -> Callable[..., Any]:
    from torch._functorch.aot_autograd import make_boxed_func

    boxed: Callable[..., Any] = make_boxed_func(fn)
    return boxed


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)
